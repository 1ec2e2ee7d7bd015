"""What is measured during a run: spectra of gradients, errors, activations and updates, and alignment angles.

A probe leaves training as it was, to the bit: it draws from no generator of the run, writes no gradient, and puts the
running statistics of batch norm back.
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankcollapse import files, models
from rankcollapse.config import InputError, RunConfig
from rankcollapse.feedback import exact_feedback, feedback_layers
from rankcollapse.ranks import from_gram, singular_values

ALL = "all"  # in place of a layer's name: the whole net
POOLED_IMAGES = 32  # of each probe batch go into the pool: its eigenvalues cost their number cubed


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one measured matrix. The quantities and their scopes:

    gradient_trajectory, cumulative | window: [T, P], minibatch gradients of the weights at T steps of training
    error, batch | pooled: [samples, features], δ = ∂L/∂a of a layer, of one probe, or of all probes of the run
    classifier_input_error, batch | pooled: [samples, features], ∂L/∂h of the classifier's input, pooled at each probe
    activation, batch: [samples, features], the input h of a layer
    update, step: [out, in * kh * kw], W after a step less W before
    """

    quantity: str
    layer: str
    scope: str
    step: int
    rows: int
    values: np.ndarray


@dataclass(frozen=True)
class Alignment:
    """A cosine: of W and B (`weight`), or of the run's gradient and the BP gradient of the same batch (`gradient`)."""

    quantity: str
    layer: str
    step: int
    value: float


class Probes:
    """The measurements of a run, taken as it goes."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, config: RunConfig):
        """images: the normalised probe batch [n, channels, height, width]; not sorted by class."""
        self.model, self.images, self.labels, self.config = model, images, labels, config
        self.weights = models.matrices(model)
        self.spectra: list[Spectrum] = []
        self.alignment: list[Alignment] = []
        # Under bf16 autocast a gradient is a bf16 tensor cast to float32: kept as bf16, nothing of it is lost.
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.rows = {
            name: torch.empty(config.gradient_rows, w.numel(), dtype=dtype, device=w.device)
            for name, w in self.weights.items()
        }
        self.steps: list[int] = []
        self.pool: dict[tuple[str, str], list[Tensor]] = {}
        self.signal_steps: list[int] = []
        self.before = {name: torch.empty_like(w) for name, w in self.weights.items()}

    # -- gradient trajectory --

    def gradient(self, step: int) -> None:
        """After the backward pass of a step: keep its gradient as a row if one is due."""
        if self.config.gradient_every and step % self.config.gradient_every == 0:
            for name, weight in self.weights.items():
                self.rows[name][len(self.steps)].view(weight.shape).copy_(weight.grad)
            self.steps.append(step)

    def _trajectory(self) -> None:
        total = len(self.steps)
        window, stride = self.config.gradient_window, self.config.gradient_stride
        if total < 2:
            return
        # The rows are full-rank with minibatch noise, so float32 products resolve them; see ranks for the rest.
        grams = {name: _gram(rows[:total]) for name, rows in self.rows.items()}
        grams[ALL] = torch.stack(list(grams.values())).sum(0)
        for t in sorted({*range(stride, total, stride), total} - {1}):
            for name, gram in grams.items():
                self._add("gradient_trajectory", name, "cumulative", self.steps[t - 1], t, from_gram(gram[:t, :t]))
                if t >= window:
                    last = slice(t - window, t)
                    values = from_gram(gram[last, last])
                    self._add("gradient_trajectory", name, "window", self.steps[t - 1], window, values)

    # -- signals of the probe batch --

    def due(self, epoch: int) -> bool:
        every = self.config.signals_every
        return bool(every) and (epoch % every == 0 or epoch == self.config.epochs)

    def signals(self, step: int) -> None:
        """Between two steps: spectra of errors and activations, and alignment, on the probe batch in float32."""
        errors, activations, classifier_input, gradients = self._passes()
        for name, values in activations.items():
            self._add("activation", name, "batch", step, len(values), singular_values(values))
        found = [("error", name, values) for name, values in errors.items()]
        for quantity, name, values in [*found, ("classifier_input_error", "head", classifier_input)]:
            self._add(quantity, name, "batch", step, len(values), singular_values(values))
            self.pool.setdefault((quantity, name), []).append(values[:POOLED_IMAGES])
        self.signal_steps.append(step)
        self._alignment(step, gradients)
        for name, weight in self.weights.items():
            self.before[name].copy_(weight.detach())

    def update(self, step: int) -> None:
        """After a step: the spectrum of its update, if signals were probed just before it."""
        if self.signal_steps[-1:] != [step]:
            return
        for name, before in self.before.items():
            values = (self.weights[name].detach() - before).flatten(1)
            self._add("update", name, "step", step, len(values), singular_values(values))

    def _passes(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """δ and h of every layer [samples, features], ∂L/∂h of the classifier's input, and the weights' gradients."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def keep(name):
            def hook(module, args, output):
                inputs[name], outputs[name] = args[0], output

            return hook

        modules = dict(self.model.named_modules())
        handles = [modules[name].register_forward_hook(keep(name)) for name in self.weights]
        try:
            with _untouched(self.model):
                loss = F.cross_entropy(self.model(self.images), self.labels)
                last = list(self.weights)[-1]
                found = torch.autograd.grad(loss, [*outputs.values(), inputs[last], *self.weights.values()])
        finally:
            for handle in handles:
                handle.remove()
        errors = dict(zip(outputs, (g.flatten(1) for g in found), strict=False))
        activations = {name: h.detach().flatten(1) for name, h in inputs.items()}
        gradients = dict(zip(self.weights, found[len(outputs) + 1 :], strict=True))
        return errors, activations, found[len(outputs)].flatten(1), gradients

    def _alignment(self, step: int, gradients: dict[str, Tensor]) -> None:
        layers = feedback_layers(self.model)
        if not layers:
            return
        with exact_feedback(self.model), _untouched(self.model):
            loss = F.cross_entropy(self.model(self.images), self.labels)
            exact = dict(zip(self.weights, torch.autograd.grad(loss, list(self.weights.values())), strict=True))
        names = list(self.weights)
        for name in names[1:]:  # no error is sent below the first layer: its B is never used
            self._align("weight", name, step, _products(layers[name].weight, layers[name].feedback))
        # The classifier's gradient is exact in every rule: its cosine is 1.
        products = {name: _products(gradients[name], exact[name]) for name in names[:-1]}
        for name, found in products.items():
            self._align("gradient", name, step, found)
        if products:
            self._align("gradient", ALL, step, torch.stack(list(products.values())).sum(0))

    def _align(self, quantity: str, name: str, step: int, products: Tensor) -> None:
        ab, aa, bb = products.tolist()
        self.alignment.append(Alignment(quantity, name, step, ab / (aa * bb) ** 0.5 if aa * bb else math.nan))

    # -- the end --

    def finish(self) -> None:
        """After the last step: what needs all of training at once."""
        self._trajectory()
        for (quantity, name), parts in self.pool.items():
            pooled, samples = torch.cat(parts), len(parts[0])
            every = quantity == "classifier_input_error"  # the curve that tells the rules apart; the others are dear
            for probed in range(1 if every else len(parts), len(parts) + 1):
                rows = pooled[: probed * samples]
                self._add(quantity, name, "pooled", self.signal_steps[probed - 1], len(rows), singular_values(rows))

    def _add(self, quantity: str, layer: str, scope: str, step: int, rows: int, values: np.ndarray) -> None:
        self.spectra.append(Spectrum(quantity, layer, scope, step, rows, values))


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a·b, a·a and b·b of two tensors of one shape, float64 [3]."""
    a, b = a.detach().flatten().double(), b.detach().flatten().double()
    return torch.stack([a @ b, a @ a, b @ b])


def _gram(rows: Tensor) -> Tensor:
    """A Aᵀ, float32 [T, T], of rows [T, P] of any type; by slices, so that no float32 copy of all of A is made."""
    total, block = len(rows), -(-len(rows) // 3)
    gram = rows.new_zeros(total, total, dtype=torch.float32)
    buffer = rows.new_empty(total, 2**13, dtype=torch.float32)
    for part in rows.split(2**13, dim=1):
        columns = buffer[:, : part.shape[1]].copy_(part)
        for i in range(0, total, block):  # only at and below the diagonal: two thirds of the work
            gram[i:, i : i + block].addmm_(columns[i:], columns[i : i + block].t())
    return gram.tril() + gram.tril(-1).t()


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Passes in here, forward and backward, run in train mode; running statistics and mode are put back after."""
    training = model.training
    buffers = [(b, b.clone()) for name, b in model.named_buffers() if not name.endswith("feedback")]
    model.train()
    try:
        yield
    finally:
        model.train(training)
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)


# ---- spectra.npz ----


def save_spectra(path: Path | str, spectra: list[Spectrum]) -> None:
    """All spectra of a run in one file of plain arrays, the values end to end in float32."""
    columns = {
        key: np.array([getattr(s, key) for s in spectra]) for key in ("quantity", "layer", "scope", "step", "rows")
    }
    lengths = np.array([len(s.values) for s in spectra], dtype=np.int64)
    values = np.concatenate([s.values for s in spectra]).astype(np.float32) if spectra else np.empty(0, np.float32)
    files.write(path, lambda temporary: np.savez_compressed(temporary, **columns, length=lengths, values=values))


def read_spectra(path: Path | str) -> list[Spectrum]:
    """Raises InputError for a file that is not one of `save_spectra`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = np.split(file["values"].astype(np.float64), np.cumsum(file["length"])[:-1])
            columns = [file[key].tolist() for key in ("quantity", "layer", "scope", "step", "rows")]
            return [Spectrum(*row, values) for *row, values in zip(*columns, parts, strict=False)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is not a readable spectra file ({error}): delete its run folder to train it anew"
        ) from error
