"""What is measured during a run: spectra of gradients, errors, activations and updates, alignment angles, and norms.

A probe leaves training as it was, to the bit: it draws from no generator of the run, writes no gradient, and puts the
running statistics of batch norm back.
"""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankcollapse import models
from rankcollapse.config import RunConfig
from rankcollapse.data import generator
from rankcollapse.rules import RULES
from rankcollapse.spectra import Spectrum

ALL = "all"  # in place of a layer's name: the whole net
POOLED_IMAGES = 32  # of each probe batch go into the pool: its eigenvalues cost their number cubed
# Of a cosine: that of W and B (`weight`), or of the run's gradient and the BP gradient of the same batch (`gradient`),
# each also with an untrained B in place of the run's (`weight_null`, `gradient_null`). Of a norm: the root mean square
# of h (`activation`), the Frobenius norms of W (`weight`) and of the BP gradient (`reference`).
SCALARS = ("quantity", "layer", "step", "value")
LISTS = ("gradient_steps", "signal_steps", "alignment", "norms")  # of Probes, plain: in its state_dict as they are


# ---- spectra by Gram matrices ----


def singular_values(matrix: Tensor) -> np.ndarray:
    """Singular values of an [m, n] matrix, descending, float64 [min(m, n)]; NaN all through if an entry is not finite.

    By the eigenvalues of the smaller Gram matrix, all in float64: values below about 1e-8 of the largest are noise.
    """
    matrix = matrix.double()
    return from_gram(matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix)


def from_gram(gram: Tensor) -> np.ndarray:
    """Singular values of A, descending, float64 [n], from its Gram matrix A Aᵀ [n, n]."""
    gram = gram.double()
    if not bool(torch.isfinite(gram).all()):
        return np.full(len(gram), np.nan)
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt().cpu().numpy()


def gram(rows: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """A Aᵀ, float32 [T, T] on `device`, of rows [T, P] of any type; by slices: A may be a file larger than memory."""
    total, block = len(rows), -(-len(rows) // 3)
    products = torch.zeros(total, total, device=device)
    buffer = torch.empty(total, 2**13, device=device)
    for part in rows.split(2**13, dim=1):
        columns = buffer[:, : part.shape[1]].copy_(part)
        for i in range(0, total, block):  # only at and below the diagonal: two thirds of the work
            products[i:, i : i + block].addmm_(columns[i:], columns[i : i + block].t())
    return products.tril() + products.tril(-1).t()


# ---- the measurements of a run ----


class Probes:
    """The measurements of a run, taken as it goes. Gradients are rows of the file `path`, which only grows."""

    def __init__(self, model: nn.Module, optimizer, batch: tuple[Tensor, Tensor], config: RunConfig, path: Path):
        """optimizer: that of W. batch: normalised images [n, channels, height, width], not sorted by class; labels."""
        self.model, self.optimizer, self.batch, self.config, self.path = model, optimizer, batch, config, path
        self.weights = models.matrices(model)
        self.learning = {name: w for name, w in self.weights.items() if w.requires_grad}
        # Under bf16 autocast a gradient is a bf16 tensor cast to float32: kept as bf16, nothing of it is lost.
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        sizes = [w.numel() for w in self.learning.values()]
        self.row = torch.empty(sum(sizes), dtype=dtype, device=batch[1].device)
        self.parts = dict(zip(self.learning, self.row.split(sizes), strict=True))
        self.gradient_steps: list[int] = []
        self.signal_steps: list[int] = []
        self.pool: dict[tuple[str, str], list[Tensor]] = {}
        self.spectra: list[Spectrum] = []
        self.alignment: list[tuple[str, str, int, float]] = []  # rows of SCALARS, as are those of `norms`
        self.norms: list[tuple[str, str, int, float]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.file = path.open("r+b")

    def state_dict(self) -> dict:
        """All but the gradients, which are on disk when this returns: plain values and tensors."""
        self.file.flush()
        os.fsync(self.file.fileno())
        pool = {key: list(parts) for key, parts in self.pool.items()}
        spectra = [(*astuple(s)[:-1], torch.from_numpy(s.values)) for s in self.spectra]
        return {"pool": pool, "spectra": spectra, **{key: list(getattr(self, key)) for key in LISTS}}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`; rows that the file of gradients got after it are written anew."""
        self.pool = {key: [part.to(self.row.device) for part in parts] for key, parts in state["pool"].items()}
        self.spectra = [Spectrum(*what, values.cpu().numpy()) for *what, values in state["spectra"]]
        for key in LISTS:
            setattr(self, key, list(state[key]))

    # -- gradient trajectory --

    def wants_gradient(self, step: int) -> bool:
        return bool(self.config.gradient_every) and step % self.config.gradient_every == 0

    def gradient(self, step: int) -> None:
        """After the backward pass of step `step`: its gradient as a row."""
        for name, weight in self.learning.items():
            self.parts[name].view(weight.shape).copy_(weight.grad)
        self.file.seek(len(self.gradient_steps) * self.row.nbytes)
        self.file.write(self.row.cpu().view(torch.uint8).numpy())
        self.gradient_steps.append(step)

    def _trajectory(self) -> None:
        total, window, stride = len(self.gradient_steps), self.config.gradient_window, self.config.gradient_stride
        if total < 2:
            return
        self.file.flush()
        rows = torch.from_file(str(self.path), size=total * len(self.row), dtype=self.row.dtype).view(total, -1)
        # The rows are full-rank with minibatch noise, so float32 products resolve them; see `singular_values`.
        columns = rows.split([len(part) for part in self.parts.values()], dim=1)
        grams = {name: gram(part, self.row.device) for name, part in zip(self.parts, columns, strict=True)}
        grams[ALL] = torch.stack(list(grams.values())).sum(0)
        for t in sorted({*range(stride, total, stride), total} - {1}):
            step = self.gradient_steps[t - 1]
            for name, products in grams.items():
                self._add("gradient_trajectory", name, "cumulative", step, t, from_gram(products[:t, :t]))
                if t >= window:
                    last = slice(t - window, t)
                    self._add("gradient_trajectory", name, "window", step, window, from_gram(products[last, last]))

    # -- signals of the probe batch --

    def wants_signals(self, epoch: int) -> bool:
        every = self.config.signals_every
        return bool(every) and (epoch % every == 0 or epoch == self.config.epochs)

    def update(self, step: int) -> None:
        """Right after the last of `step` steps, while its gradient is there: what it added to W, per unit of rate."""
        for name, weight in self.learning.items():
            update = self.optimizer.direction(weight)
            self._add("update", name, "step", step, len(update), singular_values(update))

    def signals(self, step: int) -> None:
        """After `step` steps: spectra of errors and activations, alignment and norms, of the probe batch in float32."""
        activations, errors, gradients = self._passes()
        for name, values in activations.items():
            self._add("activation", name, "batch", step, len(values), singular_values(values))
        for (quantity, name), values in errors.items():
            self._add(quantity, name, "batch", step, len(values), singular_values(values))
            self.pool.setdefault((quantity, name), []).append(values[:POOLED_IMAGES].clone())
        self.signal_steps.append(step)
        reference = self._align(step, gradients)
        sizes = {("activation", name): h.double().square().mean().sqrt() for name, h in activations.items()}
        sizes |= {("weight", name): w.detach().double().norm() for name, w in self.weights.items()}
        sizes |= {("reference", name): gradient.double().norm() for name, gradient in reference.items()}
        self.norms += [(quantity, name, step, float(size)) for (quantity, name), size in sizes.items()]

    def _passes(self) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor], dict[str, Tensor]]:
        """By layer: its h [samples, features], errors by quantity as well, [samples, features], and W's gradient."""
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def keep(layer: nn.Module, args: tuple, output: Tensor) -> None:
            seen[layer] = args[0], output

        images, labels = self.batch
        with ExitStack() as hooks, _untouched(self.model):
            layers = [self.model.get_submodule(name) for name in self.weights]
            for layer in layers:
                hooks.enter_context(layer.register_forward_hook(keep))
            loss = F.cross_entropy(self.model(images), labels)
            inputs, outputs = zip(*(seen[layer] for layer in layers), strict=True)
            found = torch.autograd.grad(loss, [*outputs, inputs[-1], *self.weights.values()])
        measured = [*(("error", name) for name in self.weights), ("classifier_input_error", "head")]
        activations = {name: h.detach().flatten(1) for name, h in zip(self.weights, inputs, strict=True)}
        errors = {key: error.flatten(1) for key, error in zip(measured, found, strict=False)}
        return activations, errors, dict(zip(self.weights, found[len(measured) :], strict=True))

    def _align(self, step: int, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The cosines, where the rule has a B; the BP gradient of each W."""
        rule, feedback = RULES[self.config.rule], RULES[self.config.rule].feedback(self.model)
        if not feedback:
            return gradients
        with rule.exact(self.model):
            *_, exact = self._passes()
        draw = generator(self.config.seed, f"untrained feedback, {step}")
        fresh = {name: models.init_weight(torch.empty(w.shape), draw).to(w) for name, w in self.weights.items()}
        with rule.through(self.model, fresh):
            *_, untrained = self._passes()
        for kind, b, found in (("", feedback, gradients), ("_null", fresh, untrained)):
            # No error is sent below the first layer: its B is never used. The classifier's gradient is always exact.
            weight = {name: _products(w, b[name]) for name, w in [*self.weights.items()][1:]}
            gradient = {name: _products(found[name], exact[name]) for name in [*self.weights][:-1]}
            if gradient:
                gradient[ALL] = torch.stack(list(gradient.values())).sum(0)
            for quantity, products in (("weight", weight), ("gradient", gradient)):
                for layer, three in products.items():
                    ab, aa, bb = three.tolist()
                    cosine = ab / (aa * bb) ** 0.5 if aa * bb else math.nan
                    self.alignment.append((quantity + kind, layer, step, cosine))
        return exact

    # -- the end --

    def finish(self) -> None:
        """After the last step: what needs all of training at once. The file of gradients then has served."""
        self._trajectory()
        for (quantity, name), parts in self.pool.items():
            pooled, samples = torch.cat(parts), len(parts[0])
            every = quantity == "classifier_input_error"  # the curve that tells the rules apart; the others are dear
            for probed in range(1 if every else len(parts), len(parts) + 1):
                rows = pooled[: probed * samples]
                self._add(quantity, name, "pooled", self.signal_steps[probed - 1], len(rows), singular_values(rows))
        self.file.close()

    def _add(self, quantity: str, layer: str, scope: str, step: int, rows: int, values: np.ndarray) -> None:
        self.spectra.append(Spectrum(quantity, layer, scope, step, rows, values))


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a·b, a·a and b·b of two tensors of one shape, float64 [3], on the CPU."""
    a, b = a.detach().flatten().double(), b.detach().flatten().double()
    return torch.stack([a @ b, a @ a, b @ b]).cpu()


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Passes in here run in train mode and reach frozen weights; mode, freeze and running statistics are put back."""
    training, norms = model.training, [m for m in model.modules() if isinstance(m, models.NORMS)]
    statistics = [(b, b.clone()) for norm in norms for b in norm.buffers()]
    frozen = [w for w in models.matrices(model).values() if not w.requires_grad]
    model.train()
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        model.train(training)
        for weight in frozen:
            weight.requires_grad_(False)
        for buffer, kept in statistics:
            buffer.copy_(kept)
