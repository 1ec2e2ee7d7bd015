"""Feedback learning: layers whose error travels back through feedback weights B in place of Wᵀ.

With a_l = W_l h_{l-1} and the error signal δ_l = ∂L/∂a_l, backpropagation sends Wᵀ_l δ_l down and feedback alignment
sends Bᵀ_l δ_l (Lillicrap et al. 2016; arXiv:2606.11123, eq. on p. 3). B has the shape of W, so that B = W *is*
backpropagation, to the bit. The gradients of W and of the bias stay the local ones, δ_l h_{l-1}ᵀ and δ_l.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

Init = Callable[[Tensor, torch.Generator], object]


# ---- rules: what a layer's feedback weights are. A new rule is one function here and its name in RULES. ----


def bp(layer: nn.Module, init: Init | None, generator: torch.Generator) -> None:
    """Backpropagation: the layer stays as it is and the error travels through Wᵀ."""


def fa(layer: nn.Module, init: Init | None, generator: torch.Generator) -> Tensor:
    """Feedback alignment: B is fixed and random, from the law of the layer's forward initialisation.

    With `init` it is drawn from that law. Without, from the entries of W as they stand, in random order: their
    empirical law, whatever initialisation the model's author chose.
    """
    weight = layer.weight.detach()
    if init is not None:
        feedback = torch.empty(weight.shape, dtype=weight.dtype)
        init(feedback, generator)
    else:
        order = torch.randperm(weight.numel(), generator=generator, device=generator.device)
        feedback = weight.flatten()[order.to(weight.device)].view(weight.shape)
    return feedback.to(weight.device)


RULES: dict[str, Callable[[nn.Module, Init | None, torch.Generator], Tensor | None]] = {"bp": bp, "fa": fa}


# ---- the backward passes ----
#
# Eager: the forward pass is PyTorch's own, and what its own backward pass finds in W's place is B. All that is added
# are two hooks on what is saved; `make bench` prints what they cost. torch.compile cannot trace such hooks; for it the
# same gradients are written out as Functions.


def _swapped(layer: nn.Module, weight: Tensor) -> saved_tensors_hooks:
    """Within this context an operation that saves `weight`, or a transpose of it, saves the layer's B instead."""
    address, feedback = weight.data_ptr(), _like(weight, layer)

    def pack(saved: Tensor) -> Tensor:
        return feedback.as_strided(saved.size(), saved.stride()) if saved.data_ptr() == address else saved

    return saved_tensors_hooks(pack, _unpack)


def _unpack(saved: Tensor) -> Tensor:
    return saved


def _like(weight: Tensor, layer: nn.Module) -> Tensor:
    """B in the dtype of `weight` and laid out in memory alike: a transpose of `weight` is told by its strides.

    Kept until B changes, so that it is not cast at every step. Autograd's version counter tells: write B in place or
    assign it, but not through `.data`, which escapes that counter.
    """
    feedback = layer.feedback
    state = feedback._version, weight.dtype, weight.stride()
    kept = layer.__dict__.get("_feedback_like")
    if kept is None or kept[0] is not feedback or kept[1] != state:
        cast = feedback.to(weight.dtype)
        if cast.stride() != weight.stride():
            cast = torch.empty_like(weight).copy_(cast)
        kept = layer.__dict__["_feedback_like"] = feedback, state, cast
    return kept[2]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, feedback, bias):
        ctx.save_for_backward(x, feedback)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, delta):
        x, feedback = ctx.saved_tensors
        rows = delta.reshape(-1, delta.shape[-1])
        return delta @ feedback, rows.t() @ x.reshape(-1, x.shape[-1]), None, rows.sum(0)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, feedback, bias, geometry):
        ctx.save_for_backward(x, feedback)
        ctx.geometry = geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx, delta):
        x, feedback = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        # The gradient of the weight does not depend on the weight handed in, so one call gives all three.
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            delta, x, feedback, [len(feedback)], stride, padding, dilation, False, (0, 0), groups, (True, True, True)
        )
        return grad_x, grad_weight, None, grad_bias, None


def _autocast(x: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """`tensors` as autocast would cast them for a matrix product with x."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


# ---- the layers. Where a layer's input needs no gradient, no error is sent through it and B has no part. ----


class FeedbackLinear(nn.Linear):
    """`nn.Linear` (any leading dimensions) whose error signal travels back through the buffer `feedback` [out, in]."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return super().forward(x)
        if torch.compiler.is_compiling():
            return _Linear.apply(*_autocast(x, x, self.weight, self.feedback, self.bias))
        (weight,) = _autocast(x, self.weight)
        with _swapped(self, weight):
            return F.linear(x, weight, self.bias)


class FeedbackConv2d(nn.Conv2d):
    """`nn.Conv2d` whose error signal travels back through the buffer `feedback` [out, in / groups, kh, kw]."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return super().forward(x)
        padding = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            x, padding = self._pad(x), (0, 0)  # a copy of pixels: autograd passes the error back through it exactly
        geometry = self.stride, padding, self.dilation, self.groups
        if torch.compiler.is_compiling():
            batch = x if x.dim() == 4 else x.unsqueeze(0)  # a single image may come without a batch dimension
            y = _Conv2d.apply(*_autocast(x, batch, self.weight, self.feedback, self.bias), geometry)
            return y if x.dim() == 4 else y.squeeze(0)
        (weight,) = _autocast(x, self.weight)
        with _swapped(self, weight):
            return F.conv2d(x, weight, self.bias, *geometry)

    def _pad(self, x: Tensor) -> Tensor:
        if self.padding == "valid":
            return x
        if self.padding == "same":  # the odd pixel goes to the end, as in nn.Conv2d
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            rows, columns = ((t // 2, t - t // 2) for t in total)
        else:
            rows, columns = ((p, p) for p in self.padding)
        return F.pad(x, (*columns, *rows), mode="constant" if self.padding_mode == "zeros" else self.padding_mode)


FEEDBACK_LAYERS = {nn.Linear: FeedbackLinear, nn.Conv2d: FeedbackConv2d}
# A table that no error passes through, or an elementwise scale that it passes exactly.
_EXACT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)
# These send the error back through their own weights, and no rule reaches those. Subclasses of the first two may use
# their weights in any way.
_UNREACHED = (
    nn.Linear, nn.Conv2d, nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Bilinear, nn.RNNBase, nn.MultiheadAttention,
)  # fmt: skip


def convert(
    model: nn.Module, rule: str = "fa", generator: torch.Generator | None = None, init: Init | None = None
) -> nn.Module:
    """Make `model` learn by `rule`: its Linear and Conv2d layers, at any depth, get feedback weights of their own.

    The layers change in place (their class and one buffer, `feedback`); parameters, hooks and names stay, so an
    optimiser made before still holds. The model is returned. `generator` draws B layer by layer in the order of
    `model.modules()`; the global random state is not touched. `init(tensor, generator)` fills a tensor from the law
    of the forward initialisation; without it that law is read off W, see `fa`.

    Raises ValueError for an unknown rule, a missing generator, a model that is converted already, and any layer whose
    weights would silently go on learning by backpropagation (transposed or 1-D convolutions, attention, ...).
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; it must be one of {', '.join(RULES)}")
    if rule != "bp" and generator is None:
        raise ValueError(f"rule {rule!r} draws feedback weights: pass generator=torch.Generator().manual_seed(...)")
    layers = []
    for name, module in model.named_modules():
        if type(module) in FEEDBACK_LAYERS.values():
            raise ValueError(f"layer {name or 'model'!r} has feedback weights already; convert a fresh model")
        if any(p.is_meta or nn.parameter.is_lazy(p) for p in module.parameters(recurse=False)):
            raise ValueError(f"layer {name or 'model'!r} has no weights yet: initialise the model, then convert it")
        if type(module) in FEEDBACK_LAYERS:
            layers.append(module)
        elif rule != "bp" and _unreached(module):
            raise ValueError(
                f"layer {name or 'model'!r} is a {type(module).__name__}, whose weights rule {rule!r} cannot reach: "
                "only nn.Linear and nn.Conv2d themselves have feedback weights"
            )
    for layer in layers:
        feedback = RULES[rule](layer, init, generator)
        if feedback is not None:
            layer.__class__ = FEEDBACK_LAYERS[type(layer)]
            # In the state dict, so that a checkpoint is complete; not a parameter, so that no optimiser sees it.
            # Laid out in memory as W is: a product with B then costs what one with W costs.
            layer.register_buffer("feedback", torch.empty_like(layer.weight.detach()).copy_(feedback))
    return model


def _unreached(module: nn.Module) -> bool:
    """Whether an error would travel through weights of this module's own that are no feedback weights."""
    own = [p.shape for p in module.parameters(recurse=False)]
    matrix = any(sum(n > 1 for n in shape) > 1 for shape in own)
    return isinstance(module, _UNREACHED) or (matrix and not isinstance(module, _EXACT))


def feedback_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The converted layers by name, in the order of the model; empty under backpropagation."""
    return {n: m for n, m in model.named_modules() if isinstance(m, tuple(FEEDBACK_LAYERS.values()))}


@contextmanager
def exact_feedback(model: nn.Module) -> Iterator[None]:
    """Within this context B is W in every layer, so that gradients are those of backpropagation."""
    layers = feedback_layers(model).values()
    kept = [layer.feedback for layer in layers]
    try:
        for layer in layers:
            layer.feedback = layer.weight.detach()
        yield
    finally:
        for layer, feedback in zip(layers, kept, strict=True):
            layer.feedback = feedback
