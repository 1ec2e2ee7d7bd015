"""Learning rules: how the error reaches the hidden layers, and which of their parameters learn.

A rule holds no state: what it adds to a model, feedback weights above all, is in the model's buffers, so that a
checkpoint is complete. A new rule is a class here, its name in RULES, and the name in `config.Settings.rule`.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from rankcollapse.library import updates
from rankcollapse.library.error_signal import unchanged_errors
from rankcollapse.library.feedback import FEEDBACK_LAYERS, Broadcast, Conv2d, feedback_layers
from rankcollapse.library.laws import Init
from rankcollapse.library.norms import NORMS


@dataclass(frozen=True)
class Backpropagation:
    """The error travels through Wᵀ. `learns` says which parameters do: all, or the classifier's and norm layers' alone,
    or the classifier's alone; the classifier is the last Linear or Conv2d layer.
    """

    learns: Literal["all", "norm", "classifier"] = "all"

    def attach(self, model: nn.Module, generator: Generator | None, init: Init | None, example: object = None) -> None:
        """Make the model learn by this rule, in place. `example`: inputs, for a rule that wants to know shapes."""
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

    def attach(self, model: nn.Module, generator: Generator | None, init: Init | None, example: object = None) -> None:
        if generator is None:
            raise ValueError("feedback weights are drawn at random: pass generator=torch.Generator().manual_seed(...)")
        layers = _reachable(model)
        shapes = self._shapes(model, layers, example)
        for layer in layers.values():
            # In the state dict, so that a checkpoint is complete; not a parameter, so that no optimiser sees it.
            drawn = _draw(layer.weight.detach(), shapes[layer], generator, init)
            layer.__class__ = FEEDBACK_LAYERS[type(layer)]
            layer.register_buffer("feedback", drawn)
        self._extend(model, generator)
        super().attach(model, generator, init)
        model.register_forward_hook(_guard)
        for name, layer in feedback_layers(model).items():
            if layer.weight.requires_grad:
                _watch(name, layer)

    def _shapes(self, model: nn.Module, layers: dict[str, nn.Module], example: object) -> dict[nn.Module, torch.Size]:
        """The shape of each layer's B."""
        return {layer: layer.weight.shape for layer in layers.values()}

    def _extend(self, model: nn.Module, generator: Generator) -> None:
        """Add what the rule has beside B."""


def _draw(weight: Tensor, shape: torch.Size, generator: Generator, init: Init | None) -> Tensor:
    """A B of this shape. Of another than W's, without `init`: entries of W, on the scale of as many inputs as B has."""
    alike, options = shape == weight.shape, {"generator": generator, "device": generator.device}
    if init is not None:
        drawn = torch.empty(shape, dtype=weight.dtype)
        init(drawn, generator)
    elif alike:
        drawn = weight.flatten()[torch.randperm(weight.numel(), **options).to(weight.device)].view(shape)
    else:
        drawn = weight.flatten()[torch.randint(weight.numel(), shape, **options).to(weight.device)]
        drawn = drawn * math.sqrt(weight[0].numel() / math.prod(shape[1:]))
    # Laid out in memory as W is: a product with B then costs what one with W costs.
    return (torch.empty_like(weight) if alike else weight.new_empty(shape)).copy_(drawn)


@dataclass(frozen=True)
class DirectFeedbackAlignment(FeedbackAlignment):
    """Through Bᵀ the output's error goes straight to the input of every layer, in place of what the layer would send
    there (Nøkland 2016, arXiv:1609.01596). What lies between two layers passes errors on as it is.
    B [outputs, *shape of the layer's input] is drawn by feedback alignment's law; the classifier's is as that one's.
    """

    def _extend(self, model: nn.Module, generator: Generator) -> None:
        broadcast = Broadcast(model)
        for layer in feedback_layers(model).values():
            layer.broadcast = broadcast

    def _shapes(self, model: nn.Module, layers: dict[str, nn.Module], example: object) -> dict[nn.Module, torch.Size]:
        """From a pass of `example` in eval mode, which leaves no trace. Raises ValueError for what does not fit."""
        if example is None:
            raise ValueError("direct feedback has the shapes of the layers' inputs: pass example=, inputs of the model")
        seen: dict[nn.Module, list[torch.Size]] = {layer: [] for layer in layers.values()}
        with torch.random.fork_rng(), torch.no_grad(), ExitStack() as after:
            for layer in seen:
                hook = layer.register_forward_pre_hook(lambda layer, args: seen[layer].append(args[0].shape))
                after.callback(hook.remove)
            for module in model.modules():
                after.callback(setattr, module, "training", module.training)
            output = model.eval()(*(example if isinstance(example, tuple) else (example,)))
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise ValueError("the model's output is not a matrix [batch, outputs], whose error direct feedback sends")
        for name, layer in layers.items():
            if [shape[0] for shape in seen[layer]] != [len(output)]:
                what = f"layer {name!r} has inputs {[[*shape] for shape in seen[layer]]} in a batch of {len(output)}"
                raise ValueError(f"{what}, but direct feedback takes one, [batch, ...]")
        return {layer: torch.Size((output.shape[1], *shapes[0][1:])) for layer, shapes in seen.items()}


@dataclass(frozen=True)
class KolenPollack(FeedbackAlignment):
    """B starts as in feedback alignment and gets W's update, both with the same decay (Kolen & Pollack 1994; Akrout et
    al., arXiv:1904.05391): B - W shrinks by that decay at each step. Without decay it stays.
    """

    def _extend(self, model: nn.Module, generator: Generator) -> None:
        for layer in feedback_layers(model).values():
            layer.register_buffer("before", layer.weight.detach().clone())  # W before the step

    @torch.no_grad()
    def after_step(self, model: nn.Module, keep: float) -> None:
        for layer in feedback_layers(model).values():
            layer.feedback.sub_(layer.before).mul_(keep).add_(layer.weight)
            layer.before.copy_(layer.weight)


@dataclass(frozen=True)
class SignSymmetry(FeedbackAlignment):
    """B has the signs of W as it is, those of a zero too, and `magnitudes` of the law that feedback alignment draws B
    from: of each layer one alone, their root mean square (usf), each drawn anew after each step (brsf), or once (frsf)
    (Liao et al. 2016, arXiv:1510.05067; names of Sanfiz & Akrout 2021, arXiv:2108.13446).

    >>> net = nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> net = convert(net, SignSymmetry(magnitudes="fixed"), torch.Generator().manual_seed(0), optimizer=optimizer)
    >>> bool((net.feedback.sign() == net.weight.sign()).all())
    True
    """

    magnitudes: Literal["uniform", "redrawn", "fixed"] = "uniform"

    def _extend(self, model: nn.Module, generator: Generator) -> None:
        for layer in feedback_layers(model).values():
            if self.magnitudes == "uniform":
                layer.feedback.fill_(layer.feedback.square().mean().sqrt())
            elif self.magnitudes == "redrawn":
                layer.register_buffer("magnitudes", layer.feedback.abs().flatten())  # to draw from, with replacement
            layer.feedback.copysign_(layer.weight.detach())
        if self.magnitudes == "redrawn":
            _remember_draws(model, generator)

    @torch.no_grad()
    def after_step(self, model: nn.Module, keep: float) -> None:
        draw = _next_draw(model) if self.magnitudes == "redrawn" else None
        for layer in feedback_layers(model).values():
            if draw:
                law = layer.magnitudes  # int32 is drawn and looked up in a third of the time
                which = torch.randint(len(law), law.shape, dtype=torch.int32, **draw)
                layer.feedback.copy_(law.index_select(0, which).view(layer.feedback.shape))
            layer.feedback.copysign_(layer.weight)


@dataclass(frozen=True)
class WeightMirror(FeedbackAlignment):
    """B learns W from noise: B ← (1 - decay) B + rate mean(y xᵀ), y = W x (Akrout et al. 2019, arXiv:1904.05391).

    After each step each layer alone sees `patches` normal x of unit variance, as long as a row of the flattened W. B
    tends to rate / decay times W, but for noise, √(decay / 2 * length / patches) of W, and lags by 1 / decay steps.

    >>> net = nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    >>> slow = WeightMirror(rate=0.001, decay=0.001)  # closer in the end, later
    >>> net = convert(net, slow, torch.Generator().manual_seed(0), optimizer=optimizer)
    """

    rate: float = 0.01
    decay: float = 0.01
    patches: int = 64

    def _extend(self, model: nn.Module, generator: Generator) -> None:
        _remember_draws(model, generator)

    @torch.no_grad()
    def after_step(self, model: nn.Module, keep: float) -> None:
        draw = _next_draw(model)
        for layer in feedback_layers(model).values():
            weight = updates.flatten(layer.weight, layer.weight)
            x = torch.randn(self.patches, weight.shape[1], dtype=weight.dtype, **draw)
            learnt = updates.unflatten((x @ weight.t()).t() @ x, layer.weight)
            layer.feedback.mul_(1 - self.decay).add_(learnt, alpha=self.rate / self.patches)


def _remember_draws(model: nn.Module, generator: Generator) -> None:
    """A buffer [seed, draws so far], from which draws after steps are made: a model that is loaded goes on."""
    seed = torch.randint(2**53, (), generator=generator, device=generator.device)
    model.register_buffer("draws", torch.tensor([int(seed), 0], device=next(model.parameters()).device))


def _next_draw(model: nn.Module) -> dict:
    """Where the draws after this step come from, and on what device they are."""
    seed = int(model.draws.sum())
    model.draws[1] += 1
    return {"generator": torch.Generator(model.draws.device).manual_seed(seed), "device": model.draws.device}


RULES: dict[str, Backpropagation] = {
    "bp": Backpropagation(),
    "fa": FeedbackAlignment(),
    "dfa": DirectFeedbackAlignment(),
    "kp": KolenPollack(),
    "usf": SignSymmetry("all", "uniform"),
    "brsf": SignSymmetry("all", "redrawn"),
    "frsf": SignSymmetry("all", "fixed"),
    "wm": WeightMirror(),
    "frozen": Backpropagation(learns="classifier"),
    "frozen-fa": FeedbackAlignment(learns="norm"),
    "frozen-bp": Backpropagation(learns="norm"),
}


@contextmanager
def through(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Within this context errors travel back through `weights`, by name of a layer, in place of B."""
    with ExitStack() as after:
        for name, layer in feedback_layers(model).items():
            for key in ("feedback", "broadcast", "keeps"):
                after.callback(setattr, layer, key, getattr(layer, key))
            layer.feedback, layer.keeps = weights[name].detach(), False
            layer.broadcast = None if weights[name] is layer.weight else layer.broadcast  # through W goes δ, never e
        yield


@contextmanager
def exact_feedback(model: nn.Module) -> Iterator[None]:
    """Within this context gradients are those of backpropagation: B is W in every layer, and no error is changed.

    >>> net = convert(nn.Linear(2, 1), "fa", torch.Generator().manual_seed(0))
    >>> x = torch.ones(1, 2, requires_grad=True)
    >>> with exact_feedback(net):
    ...     net(x).sum().backward()
    >>> bool((x.grad == net.weight).all())
    True
    """
    weights = {name: layer.weight for name, layer in feedback_layers(model).items()}
    with through(model, weights), unchanged_errors(model):
        yield


def convert(
    model: nn.Module,
    rule: str | Backpropagation = "fa",
    generator: Generator | None = None,
    init: Init | None = None,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    example: object = None,
) -> nn.Module:
    """Make `model` learn by `rule`, one of RULES or a rule of one's own, and return it.

    Linear and Conv2d layers, at any depth, get feedback weights of their own. They change in place (their class and a
    buffer, `feedback`); parameters, hooks and names stay, so an optimiser made before still holds. `generator` draws B
    layer by layer in the order of `model.modules()`; the global random state is not touched. `init(tensor, generator)`
    fills a tensor from the law of the forward initialisation, or of another law of B, see `laws`.

    Rules that act after each step (kp, usf, brsf, frsf, wm) do so at the steps of `optimizer`; of several, stepped in
    their order, at those of the last that holds a converted weight. Without it a warning says what to call. Copies, and
    models that are pickled, have no optimizer that they follow: call `RULES[rule].after_step(copy, keep)`. Fill or load
    W before this: kp takes what changes W between two steps for its update. `dfa` runs the model once on `example`,
    inputs or a tuple of them, for the shapes of its B, and takes inputs of no other shape then.

        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> model = convert(model, "kp", torch.Generator().manual_seed(0), optimizer=optimizer)

    Raises ValueError for an unknown rule, a missing generator or example, a model that is converted already, optimisers
    of other weights, and any layer whose weights would go on by backpropagation (transposed or 1-D convolutions, ...).
    What only shows when the model runs raises RuntimeError there: a weight used without calling its layer, a second
    derivative, `torch.vmap`, tracing. `rankcollapse.check` compares the whole with an explicit reference.
    """
    if isinstance(rule, str) and rule not in RULES:
        raise ValueError(f"rule is {rule!r}; it must be one of {', '.join(RULES)}")
    chosen = RULES[rule] if isinstance(rule, str) else rule
    chosen.attach(model, generator, init, example)
    if type(chosen).after_step is Backpropagation.after_step:
        return model
    if optimizer is None:
        mend = f"rule {rule!r} acts after each step: pass optimizer=, or call its after_step(model, keep)"
        warnings.warn(mend, stacklevel=2)
    else:
        _follow([optimizer] if isinstance(optimizer, torch.optim.Optimizer) else [*optimizer], model, chosen)
    return model


def _follow(optimizers: list[torch.optim.Optimizer], model: nn.Module, rule: Backpropagation) -> None:
    """Call the rule's `after_step` at the end of each step of the last optimiser that holds weights of its layers."""
    weights = {layer.weight for layer in feedback_layers(model).values()}

    def holding() -> list[tuple[torch.optim.Optimizer, dict]]:
        return [(o, group) for o in optimizers for group in o.param_groups if weights.intersection(group["params"])]

    def after(*_: object) -> None:
        kept = {_keep(*held) for held in holding()}
        if len(kept) > 1 and isinstance(rule, KolenPollack):
            raise ValueError(f"decay leaves {sorted(kept)} of the weights, but under kp it must be the same of all")
        rule.after_step(model, kept.pop())

    if not holding():
        raise ValueError("no optimizer holds a weight of the model's layers: make it from the model's parameters")
    holding()[-1][0].register_step_post_hook(after)


def _keep(optimizer: torch.optim.Optimizer, group: dict) -> float:
    """The factor that decay leaves of a group's weights in a step; decay that is part of the gradient is W's update."""
    apart = isinstance(optimizer, updates.MomentumSGD | torch.optim.Muon) or group.get("decoupled_weight_decay")
    return 1 - float(group["lr"]) * group["weight_decay"] if apart else 1.0


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


def _reachable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers to convert, by name. Raises ValueError for any that cannot be."""
    layers = {}
    for name, module in model.named_modules():
        layer, own = f"layer {name or 'model'!r}", list(module.parameters(recurse=False))
        if type(module) in FEEDBACK_LAYERS.values():
            raise ValueError(f"{layer} has feedback weights already; convert a fresh model")
        if any(p.is_meta or nn.parameter.is_lazy(p) for p in own):
            raise ValueError(f"{layer} has no weights yet: initialise the model, then convert it")
        matrix = any(sum(n > 1 for n in p.shape) > 1 for p in own)
        if type(module) in FEEDBACK_LAYERS:
            layers[name] = module
        elif isinstance(module, _UNREACHED) or (matrix and not isinstance(module, _EXACT)):
            what = f"{layer} is a {type(module).__name__}, whose weights feedback cannot reach"
            raise ValueError(f"{what}: only nn.Linear and nn.Conv2d themselves have feedback weights")
    return layers
