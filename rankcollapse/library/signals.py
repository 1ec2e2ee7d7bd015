"""What is measured on one batch: spectra of errors, activations and updates, alignment angles, and norms.

A measurement leaves training as it was, to the bit: it draws from no generator of the run, writes no gradient, and puts
the running statistics of batch norm back.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankcollapse.library import models, rules
from rankcollapse.library.feedback import feedback_layers
from rankcollapse.library.ranks import Spectrum
from rankcollapse.library.spectra import singular_values
from rankcollapse.library.trajectory import ALL

POOLED_IMAGES = 32  # of each batch go into the pool: its eigenvalues cost their number cubed


class Signals:
    """The signals of one batch through a model, measured as often as one likes.

    `alignment` and `norms` have rows of (quantity, layer, step, value). The cosines are that of W and B (`weight`), and
    of the run's gradient and the BP gradient of the same batch (`gradient`), each also with an untrained B in place of
    the run's (`weight_null`, `gradient_null`). Under dfa there is no cosine of W and B. The norms are the root mean
    square of h (`activation`), the Frobenius norms of W (`weight`) and of the BP gradient (`reference`).
    """

    def __init__(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], null: Callable[[int], Callable[[Tensor], object]]
    ):
        """batch: inputs [n, ...], not sorted by class, and labels. null: of a step, what fills its untrained B."""
        self.model, self.batch, self.null = model, batch, null
        self.weights = models.matrices(model)
        self.learning = {name: w for name, w in self.weights.items() if w.requires_grad}
        self.steps: list[int] = []
        self.pool: dict[tuple[str, str], list[Tensor]] = {}
        self.spectra: list[Spectrum] = []
        self.alignment: list[tuple[str, str, int, float]] = []
        self.norms: list[tuple[str, str, int, float]] = []

    def state_dict(self) -> dict:
        """Plain values and tensors."""
        pool = {key: list(parts) for key, parts in self.pool.items()}
        spectra = [(*astuple(s)[:-1], torch.from_numpy(s.values)) for s in self.spectra]
        lists = {key: list(getattr(self, key)) for key in ("steps", "alignment", "norms")}
        return {"pool": pool, "spectra": spectra, **lists}

    def load_state_dict(self, state: dict) -> None:
        device = self.batch[1].device
        self.pool = {key: [part.to(device) for part in parts] for key, parts in state["pool"].items()}
        self.spectra = [Spectrum(*what, values.cpu().numpy()) for *what, values in state["spectra"]]
        for key in ("steps", "alignment", "norms"):
            setattr(self, key, list(state[key]))

    def update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Right after the last of `step` steps, while its gradient is there: what it added to W, per unit of rate."""
        for name, weight in self.learning.items():
            moved = weight.grad is not None  # not if it was frozen in the meantime
            update = optimizer.direction(weight) if moved else torch.zeros_like(weight).flatten(1)
            self._add("update", name, "step", step, update)

    def measure(self, step: int) -> None:
        """After `step` steps: spectra of errors and activations, alignment and norms, all in float32."""
        activations, errors, gradients = self._passes()
        for name, values in activations.items():
            self._add("activation", name, "batch", step, values)
        for (quantity, name), values in errors.items():
            self._add(quantity, name, "batch", step, values)
            self.pool.setdefault((quantity, name), []).append(values[:POOLED_IMAGES].clone())
        self.steps.append(step)
        reference = self._align(step, gradients)
        sizes = {("activation", name): h.double().square().mean().sqrt() for name, h in activations.items()}
        sizes |= {("weight", name): w.detach().double().norm() for name, w in self.weights.items()}
        sizes |= {("reference", name): gradient.double().norm() for name, gradient in reference.items()}
        self.norms += [(quantity, name, step, float(size)) for (quantity, name), size in sizes.items()]

    def finish(self) -> None:
        """After the last measurement: the spectra of what was pooled over all of them."""
        for (quantity, name), parts in self.pool.items():
            pooled, samples = torch.cat(parts), len(parts[0])
            every = quantity == "classifier_input_error"  # the curve that tells the rules apart; the others are dear
            for measured in range(1 if every else len(parts), len(parts) + 1):
                self._add(quantity, name, "pooled", self.steps[measured - 1], pooled[: measured * samples])

    def _passes(self) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor], dict[str, Tensor]]:
        """By layer: its h [samples, features], errors by quantity as well, [samples, features], and W's gradient."""
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def keep(layer: nn.Module, args: tuple, output: Tensor) -> None:
            seen[layer] = args[0], output

        inputs, labels = self.batch
        with ExitStack() as hooks, _untouched(self.model):
            layers = [self.model.get_submodule(name) for name in self.weights]
            for layer in layers:
                hooks.enter_context(layer.register_forward_hook(keep))
            loss = F.cross_entropy(self.model(inputs), labels)
            inputs, outputs = zip(*(seen[layer] for layer in layers), strict=True)
            found = torch.autograd.grad(loss, [*outputs, inputs[-1], *self.weights.values()])
        measured = [*(("error", name) for name in self.weights), ("classifier_input_error", [*self.weights][-1])]
        activations = {name: h.detach().flatten(1) for name, h in zip(self.weights, inputs, strict=True)}
        errors = {key: error.flatten(1) for key, error in zip(measured, found, strict=False)}
        return activations, errors, dict(zip(self.weights, found[len(measured) :], strict=True))

    def _align(self, step: int, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The cosines, where the model has a B; the BP gradient of each W."""
        feedback = {name: layer.feedback for name, layer in feedback_layers(self.model).items()}
        if not feedback:
            return gradients
        direct = any(layer.broadcast for layer in feedback_layers(self.model).values())
        with rules.exact_feedback(self.model):
            *_, exact = self._passes()
        fill = self.null(step)
        fresh = {name: torch.empty(b.shape) for name, b in feedback.items()}
        for b in fresh.values():
            fill(b)
        fresh = {name: b.to(self.weights[name]) for name, b in fresh.items()}
        with rules.through(self.model, fresh):
            *_, untrained = self._passes()
        for kind, b, found in (("", feedback, gradients), ("_null", fresh, untrained)):
            # No error is sent below the first layer: its B is never used. The classifier's gradient is always exact.
            weight = {name: _products(w, b[name]) for name, w in [*self.weights.items()][1:] if not direct}
            gradient = {name: _products(found[name], exact[name]) for name in [*self.weights][:-1]}
            if gradient:
                gradient[ALL] = torch.stack(list(gradient.values())).sum(0)
            for quantity, products in (("weight", weight), ("gradient", gradient)):
                for layer, three in products.items():
                    ab, aa, bb = three.tolist()
                    cosine = ab / (aa * bb) ** 0.5 if aa * bb else math.nan
                    self.alignment.append((quantity + kind, layer, step, cosine))
        return exact

    def _add(self, quantity: str, layer: str, scope: str, step: int, rows: Tensor) -> None:
        self.spectra.append(Spectrum(quantity, layer, scope, step, len(rows), singular_values(rows)))


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a·b, a·a and b·b of two tensors of one shape, float64 [3], on the CPU."""
    a, b = a.detach().flatten().double(), b.detach().flatten().double()
    return torch.stack([a @ b, a @ a, b @ b]).cpu()


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Passes in here run in train mode and reach frozen weights; mode, freeze and running statistics are put back."""
    with ExitStack() as after:
        for statistics in (b for m in model.modules() if isinstance(m, models.NORMS) for b in m.buffers()):
            after.callback(statistics.copy_, statistics.clone())
        for weight in models.matrices(model).values():
            after.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(True)
        after.callback(model.train, model.training)
        model.train()
        yield
