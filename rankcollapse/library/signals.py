"""What is measured on one batch: spectra of errors, activations and updates, alignment angles, and norms.

A measurement leaves training as it was, to the bit: it writes no gradient, and puts back every mode, the running
statistics of norm layers and all other buffers, and torch's random state, so that each pass draws the same dropout.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rankcollapse.library import models, rules
from rankcollapse.library.feedback import feedback_layers
from rankcollapse.library.ranks import Spectrum
from rankcollapse.library.spectra import singular_values
from rankcollapse.library.trajectory import ALL

POOLED_IMAGES = 32  # of each batch go into the pool: its eigenvalues cost their number cubed
Loss = Callable[[object, object], Tensor]  # of what the model returns, and of the targets: one number

# ---- one pass ----


class Pass(NamedTuple):
    """What one batch shows, by layer; one that was not called, or not with autograd on, is in none of it.

    Rows are images or samples, and tokens where a Linear layer has sequences [n, tokens, features]. A layer that was
    called several times has the rows of all its calls, one call after the other. Zeros where the loss does not reach.
    """

    activations: dict[str, Tensor]  # the input h [rows, features]
    errors: dict[str, Tensor]  # δ = ∂L/∂a of the output a [rows, features]
    below: dict[str, Tensor]  # ∂L/∂h [rows, features], of the model's last layer alone
    gradients: dict[str, Tensor]  # ∂L/∂W in the shape of W, over all calls


def passes(model: nn.Module, loss: Loss, batch: tuple[object, object]) -> Pass:
    """A forward and a backward pass of a batch, inputs and targets, as `measure` takes them and with its errors."""
    weights = models.matrices(model)
    calls: dict[str, list[dict[str, Tensor]]] = {name: [] for name in weights}
    inputs, targets = tree_map_only(Tensor, torch.clone, batch)  # a model may write over its inputs
    with _untouched(model), ExitStack() as hooks:
        for name, made in calls.items():
            hook = partial(_keep, made, name == [*weights][-1])
            hooks.enter_context(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
        value = loss(_outputs(model, inputs), targets)
        calls = {name: list(made) for name, made in calls.items() if made}  # a checkpoint calls again, going back
        if not calls:
            raise ValueError("nothing to measure: no Linear or Conv2d layer was called, with autograd and uncompiled")
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = f"a tensor of shape {[*value.shape]}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(f"loss gave {what}, but it must give a tensor of one number, such as a mean")
        found = torch.autograd.grad(value, [weights[name] for name in calls], materialize_grads=True)

    def rows(kind: str) -> dict[str, Tensor]:
        parts = {name: [call[kind] for call in made] for name, made in calls.items() if kind in made[0]}
        return {name: _rows(name, model.get_submodule(name), each) for name, each in parts.items()}

    return Pass(rows("activation"), rows("error"), rows("below"), dict(zip(calls, found, strict=True)))


def _outputs(model: nn.Module, inputs: object) -> object:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _keep(calls: list[dict], below: bool, layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
    """Add a call of a layer; errors come as the backward pass reaches the tensors, as they were when they were made."""
    h = (*args, *kwargs.values())[0]
    if output.requires_grad:
        calls.append({"activation": h.detach()})
        for kind, tensor in [("error", output), ("below", h)][: 1 + below]:
            calls[-1][kind] = tensor.new_zeros(()).expand_as(tensor)
            if tensor.requires_grad:
                tensor.register_hook(partial(calls[-1].__setitem__, kind))


def _rows(name: str, layer: nn.Module, parts: list[Tensor]) -> Tensor:
    """Inputs or outputs of a layer's calls, or their gradients, as one matrix."""
    conv = isinstance(layer, nn.Conv2d)
    parts = [torch.atleast_2d(t.flatten(-3)) if conv else t.reshape(-1, t.shape[-1]) for t in parts]
    if len({part.shape[1] for part in parts}) > 1:
        raise ValueError(f"layer {name!r} was called on images of several sizes, but its rows must have one length")
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Passes in here are those of training, and reach frozen weights; then all is put back.

    A model in training mode keeps the modes of its parts, such as those of a batch norm that is frozen by `eval()`.
    """
    feedback = {*feedback_layers(model).values()}  # no pass changes their buffers
    with ExitStack() as after:
        after.enter_context(torch.random.fork_rng({p.device for p in model.parameters() if p.is_cuda}))
        for module in model.modules():
            after.callback(setattr, module, "training", module.training)
            for name, buffer in module.named_buffers(recurse=False) if module not in feedback else ():
                after.callback(setattr, module, name, buffer)
                after.callback(buffer.copy_, buffer.clone())
        for weight in models.matrices(model).values():
            after.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(True)
        if not model.training:
            model.train()
        yield


def cosines(pairs: Mapping[str, tuple[Tensor, Tensor]], pooled: Collection[str] = ()) -> dict[str, float]:
    """The cosine of each pair, and ALL: that of all `pooled` ones, seen as one vector; NaN where one is zero."""
    products = {name: _products(*pair) for name, pair in pairs.items()}
    if pooled:
        products[ALL] = torch.stack([products[name] for name in pooled]).sum(0)
    threes = {name: three.tolist() for name, three in products.items()}
    return {name: ab / (aa * bb) ** 0.5 if aa * bb else math.nan for name, (ab, aa, bb) in threes.items()}


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a·b, a·a and b·b of two tensors of one shape, float64 [3], on the CPU."""
    a, b = a.detach().flatten().double(), b.detach().flatten().double()
    return torch.stack([a @ b, a @ a, b @ b]).cpu()


# ---- the grid's ----


class Signals:
    """The signals of one batch through a model, measured as often as one likes.

    `alignment` and `norms` have rows of (quantity, layer, step, value). The cosines are that of W and B (`weight`), and
    of the run's gradient and the BP gradient of the same batch (`gradient`), each also with an untrained B in place of
    the run's (`weight_null`, `gradient_null`). Under dfa there is no cosine of W and B. The norms are the root mean
    square of h (`activation`), the Frobenius norms of W (`weight`), of the run's gradient (`gradient`) and of the BP
    gradient (`reference`), and what the last step added to W, its rate times its direction and decay aside, over W
    after it (`relative_update`).
    """

    def __init__(self, model: nn.Module, batch: tuple[Tensor, Tensor], null: Callable[[int, list[Tensor]], object]):
        """batch: inputs [n, ...], not sorted by class, and labels. null: fills the untrained B of a step."""
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

    def update(self, optimizer: torch.optim.Optimizer, step: int, rate: float) -> None:
        """Right after the last of `step` steps, while its gradient is there: what it added to W at its `rate`."""
        for name, weight in self.learning.items():
            moved = weight.grad is not None  # not if it was frozen in the meantime
            update = optimizer.direction(weight) if moved else torch.zeros_like(weight).flatten(1)
            self._add("update", name, "step", step, update)
            size = rate * update.double().norm() / weight.detach().double().norm()
            self.norms.append(("relative_update", name, step, float(size)))

    def measure(self, step: int) -> None:
        """After `step` steps: spectra of errors and activations, alignment and norms, all in float32."""
        activations, errors, below, gradients = self._passes()
        for name, values in activations.items():
            self._add("activation", name, "batch", step, values)
        measured = {("error", name): values for name, values in errors.items()}
        measured |= {("classifier_input_error", name): values for name, values in below.items()}
        for (quantity, name), values in measured.items():
            self._add(quantity, name, "batch", step, values)
            self.pool.setdefault((quantity, name), []).append(values[:POOLED_IMAGES].clone())
        self.steps.append(step)
        reference = self._align(step, gradients)
        sizes = {("activation", name): h.double().square().mean().sqrt() for name, h in activations.items()}
        sizes |= {("weight", name): w.detach().double().norm() for name, w in self.weights.items()}
        for quantity, found in (("gradient", gradients), ("reference", reference)):
            sizes |= {(quantity, name): gradient.double().norm() for name, gradient in found.items()}
        self.norms += [(quantity, name, step, float(size)) for (quantity, name), size in sizes.items()]

    def finish(self) -> None:
        """After the last measurement: the spectra of what was pooled over all of them."""
        for (quantity, name), parts in self.pool.items():
            pooled, samples = torch.cat(parts), len(parts[0])
            every = quantity == "classifier_input_error"  # the curve that tells the rules apart; the others are dear
            for measured in range(1 if every else len(parts), len(parts) + 1):
                self._add(quantity, name, "pooled", self.steps[measured - 1], pooled[: measured * samples])

    def _passes(self) -> Pass:
        return passes(self.model, F.cross_entropy, self.batch)

    def _align(self, step: int, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The cosines, where the model has a B; the BP gradient of each W."""
        feedback = {name: layer.feedback for name, layer in feedback_layers(self.model).items()}
        if not feedback:
            return gradients
        direct = any(layer.broadcast for layer in feedback_layers(self.model).values())
        with rules.exact_feedback(self.model):
            *_, exact = self._passes()
        fresh = {name: torch.empty(b.shape) for name, b in feedback.items()}
        self.null(step, [*fresh.values()])
        fresh = {name: b.to(self.weights[name]) for name, b in fresh.items()}
        with rules.through(self.model, fresh):
            *_, untrained = self._passes()
        for kind, b, found in (("", feedback, gradients), ("_null", fresh, untrained)):
            # No error is sent below the first layer: its B is never used. The classifier's gradient is always exact.
            weight = cosines({name: (w, b[name]) for name, w in [*self.weights.items()][1:] if not direct})
            hidden = [*self.weights][:-1]
            gradient = cosines({name: (found[name], exact[name]) for name in hidden}, pooled=hidden)
            for quantity, values in (("weight", weight), ("gradient", gradient)):
                self.alignment += [(quantity + kind, layer, step, cosine) for layer, cosine in values.items()]
        return exact

    def _add(self, quantity: str, layer: str, scope: str, step: int, rows: Tensor) -> None:
        self.spectra.append(Spectrum(quantity, layer, scope, step, len(rows), singular_values(rows)))
