"""Learning rules: how the error reaches the hidden layers, and which of their parameters learn.

A rule holds no state: what it adds to a model, feedback weights above all, is in the model's buffers, so that a
checkpoint is complete. A new rule is a class here, its name in RULES, and the name in `config.Settings.rule`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rankcollapse.library.feedback import FEEDBACK_LAYERS, Conv2d, feedback_layers
from rankcollapse.library.norms import NORMS

Init = Callable[[Tensor, torch.Generator], object]


@dataclass(frozen=True)
class Backpropagation:
    """The error travels through Wᵀ. `learns` says which parameters do: all, or the classifier's and norm layers' alone,
    or the classifier's alone; the classifier is the last Linear or Conv2d layer.
    """

    learns: Literal["all", "norm", "classifier"] = "all"

    def attach(self, model: nn.Module, generator: torch.Generator | None, init: Init | None) -> None:
        """Make the model learn by this rule, in place."""
        for module in model.modules():
            if type(module) is nn.Conv2d:
                module.__class__ = Conv2d
        if self.learns == "all":
            return
        classifier = [m for m in model.modules() if isinstance(m, tuple(FEEDBACK_LAYERS))][-1]
        for module in model.modules():
            if module is not classifier and not (self.learns == "norm" and isinstance(module, NORMS)):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)

    def after_step(self, model: nn.Module, keep: float) -> None:
        """After the optimiser's step; `keep`: the factor that decay left of the forward weights in it, 1 - lr decay."""


@dataclass(frozen=True)
class FeedbackAlignment(Backpropagation):
    """The error travels through Bᵀ, fixed and random, from the law of the initial W (Lillicrap et al. 2016).

    With `init` B is drawn from that law. Without, from the entries of W as they stand, in random order: their empirical
    law, whatever initialisation the model's author chose.
    """

    def attach(self, model: nn.Module, generator: torch.Generator | None, init: Init | None) -> None:
        if generator is None:
            raise ValueError("feedback weights are drawn at random: pass generator=torch.Generator().manual_seed(...)")
        for layer in _reachable(model):
            layer.__class__ = FEEDBACK_LAYERS[type(layer)]
            weight = layer.weight.detach()
            if init is None:
                order = torch.randperm(weight.numel(), generator=generator, device=generator.device)
                drawn = weight.flatten()[order.to(weight.device)].view(weight.shape)
            else:
                drawn = torch.empty(weight.shape, dtype=weight.dtype)
                init(drawn, generator)
            # In the state dict, so that a checkpoint is complete; not a parameter, so that no optimiser sees it.
            # Laid out in memory as W is: a product with B then costs what one with W costs.
            layer.register_buffer("feedback", torch.empty_like(weight).copy_(drawn))
        super().attach(model, generator, init)
        model.register_forward_hook(_guard)
        for name, layer in feedback_layers(model).items():
            if layer.weight.requires_grad:
                _watch(name, layer)


@dataclass(frozen=True)
class KolenPollack(FeedbackAlignment):
    """B starts as in feedback alignment and gets W's update, both with the same decay (Kolen & Pollack 1994; Akrout et
    al., arXiv:1904.05391): B - W shrinks by that decay at each step. Without decay it stays.
    """

    def attach(self, model: nn.Module, generator: torch.Generator | None, init: Init | None) -> None:
        super().attach(model, generator, init)
        for layer in feedback_layers(model).values():
            layer.register_buffer("before", layer.weight.detach().clone())  # W before the step

    @torch.no_grad()
    def after_step(self, model: nn.Module, keep: float) -> None:
        for layer in feedback_layers(model).values():
            layer.feedback.sub_(layer.before).mul_(keep).add_(layer.weight)
            layer.before.copy_(layer.weight)


RULES: dict[str, Backpropagation] = {
    "bp": Backpropagation(),
    "fa": FeedbackAlignment(),
    "kp": KolenPollack(),
    "frozen": Backpropagation(learns="classifier"),
    "frozen-fa": FeedbackAlignment(learns="norm"),
    "frozen-bp": Backpropagation(learns="norm"),
}


@contextmanager
def through(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Within this context errors travel back through `weights`, by name of a layer, in place of B."""
    with ExitStack() as after:
        for name, layer in feedback_layers(model).items():
            after.callback(setattr, layer, "feedback", layer.feedback)
            layer.feedback = weights[name].detach()
        yield


def exact_feedback(model: nn.Module) -> AbstractContextManager[None]:
    """Within this context gradients are those of backpropagation: B is W in every layer."""
    return through(model, {name: layer.weight for name, layer in feedback_layers(model).items()})


def convert(
    model: nn.Module, rule: str = "fa", generator: torch.Generator | None = None, init: Init | None = None
) -> nn.Module:
    """Make `model` learn by `rule`, one of RULES, and return it. `kp` also wants its `after_step` after each step.

    Linear and Conv2d layers, at any depth, get feedback weights of their own. They change in place (their class and a
    buffer, `feedback`); parameters, hooks and names stay, so an optimiser made before still holds. `generator` draws B
    layer by layer in the order of `model.modules()`; the global random state is not touched. `init(tensor, generator)`
    fills a tensor from the law of the forward initialisation.

    Raises ValueError for an unknown rule, a missing generator, a model that is converted already, and any layer whose
    weights would silently go on learning by backpropagation (transposed or 1-D convolutions, attention, ...). What only
    shows when the model runs raises RuntimeError there: a weight used without calling its layer, `torch.vmap`, a second
    derivative, tracing. `rankcollapse.check` compares the whole with an explicit reference.
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; it must be one of {', '.join(RULES)}")
    RULES[rule].attach(model, generator, init)
    return model


def _guard(model: nn.Module, args: tuple, output: object) -> None:
    """After a forward pass of the whole: a layer that was never called may not be learnt by another way.

    Raises RuntimeError for a frozen one, whose weight has no gradient to tell by; others are watched: copies have lost
    the hooks of their tensors. Once all have been called it is gone, and costs nothing.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    missed = {name: layer for name, layer in feedback_layers(model).items() if not layer.called}
    for name, layer in missed.items():
        _watch(name, layer) if layer.weight.requires_grad else _refuse_bypass(name, layer)
    if not missed:
        hooks = model._forward_hooks
        del hooks[next(key for key, hook in hooks.items() if hook is _guard)]


def _watch(name: str, layer: nn.Module) -> None:
    """A gradient of its weight raises RuntimeError if the layer was not called by then; a lawful one ends the watch."""

    def hook(gradient: Tensor) -> None:
        _refuse_bypass(name, layer)
        handle.remove()

    if not hasattr(layer.weight, "_watched"):  # no copy has a tensor's attributes, nor its hooks
        layer.weight._watched = True
        handle = layer.weight.register_hook(hook)


def _refuse_bypass(name: str, layer: nn.Module) -> None:
    if not layer.called:
        what = f"layer {name!r} was never called in a forward pass, yet its weight is part of one"
        raise RuntimeError(f"{what}: the model hands it to a function itself, and so it would learn by backpropagation")


# ---- what can be converted ----

# A table that no error passes through, or an elementwise scale that it passes exactly.
_EXACT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
# These send the error back through their own weights, and no rule reaches those. Subclasses of the first two may use
# their weights in any way.
_UNREACHED = (
    nn.Linear, nn.Conv2d, nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Bilinear, nn.RNNBase, nn.MultiheadAttention,
)  # fmt: skip


def _reachable(model: nn.Module) -> list[nn.Module]:
    """The layers to convert. Raises ValueError for any that cannot be."""
    layers = []
    for name, module in model.named_modules():
        layer, own = f"layer {name or 'model'!r}", list(module.parameters(recurse=False))
        if type(module) in FEEDBACK_LAYERS.values():
            raise ValueError(f"{layer} has feedback weights already; convert a fresh model")
        if any(p.is_meta or nn.parameter.is_lazy(p) for p in own):
            raise ValueError(f"{layer} has no weights yet: initialise the model, then convert it")
        matrix = any(sum(n > 1 for n in p.shape) > 1 for p in own)
        if type(module) in FEEDBACK_LAYERS:
            layers.append(module)
        elif isinstance(module, _UNREACHED) or (matrix and not isinstance(module, _EXACT)):
            what = f"{layer} is a {type(module).__name__}, whose weights feedback cannot reach"
            raise ValueError(f"{what}: only nn.Linear and nn.Conv2d themselves have feedback weights")
    return layers
