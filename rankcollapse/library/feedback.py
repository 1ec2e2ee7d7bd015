"""Layers whose error travels back through feedback weights B in place of Wᵀ.

With a_l = W_l h_{l-1} and the error signal δ_l = ∂L/∂a_l, backpropagation sends Wᵀ_l δ_l down and feedback alignment
sends Bᵀ_l δ_l (Lillicrap et al. 2016; arXiv:2606.11123, eq. on p. 3). B has the shape of W, so that B = W *is*
backpropagation, to the bit. The gradients of W and of the bias stay the local ones, δ_l h_{l-1}ᵀ and δ_l.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _refuse_second_derivative() -> None:
    """It would take B for W. Cheaper in a backward pass than PyTorch's own `once_differentiable`."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("feedback weights have no second derivative: call backward without create_graph")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, feedback, bias):
        ctx.save_for_backward(x, feedback)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, delta):
        _refuse_second_derivative()
        x, feedback = ctx.saved_tensors
        to_x, to_weight, _, to_bias = ctx.needs_input_grad
        grad_x, grad_weight = delta @ feedback if to_x else None, delta.t() @ x if to_weight else None
        return grad_x, grad_weight, None, delta.sum(0) if to_bias else None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, feedback, bias, geometry):
        ctx.save_for_backward(x, feedback)
        ctx.geometry = geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx, delta):
        _refuse_second_derivative()
        x, feedback = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        to_x, to_weight, _, to_bias, _ = ctx.needs_input_grad
        wanted = to_x, to_weight, to_bias
        # The gradient of the weight does not depend on the weight handed in, so one call gives all three.
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            delta, x, feedback, [len(feedback)], stride, padding, dilation, False, (0, 0), groups, wanted
        )
        return grad_x, grad_weight, None, grad_bias, None


class _Feedback:
    """What both layers share. `called`: whether an input has passed since the layer was converted."""

    feedback: Tensor
    called = False

    def _plain(self) -> bool:
        """Whether nothing will be sent back through this layer. Raises RuntimeError under tracing."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            mend = "load the weights into a model that is not converted, and trace that"
            raise RuntimeError(f"a traced or exported graph would train by backpropagation: {mend}")
        if torch.compiler.is_compiling() or not self.called:  # to set it is slow; to read it would compile twice
            self.called = True
        # Not `x.requires_grad`: it is false within torch.vmap, which must meet the Function and so its error.
        return not torch.is_grad_enabled()

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x, W, B and the bias, as autocast would cast them for a product: it is off in a Function's backward pass."""
        device = x.device.type
        if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
            return x, self.weight, self.feedback, self.bias
        dtype = torch.get_autocast_dtype(device)
        return x.to(dtype), self.weight.to(dtype), self._cast(dtype), None if self.bias is None else self.bias.to(dtype)

    def __getstate__(self) -> dict:
        """A copy keeps no cast: version counters start anew in it."""
        return {key: value for key, value in self.__dict__.items() if key != "_kept"}

    def _cast(self, dtype: torch.dtype) -> Tensor:
        """B in `dtype`, kept until B changes, so that it is not cast at every step.

        Autograd's version counter tells: write B in place or assign it, but not through `.data`, which escapes it.
        """
        if torch.compiler.is_compiling():
            return self.feedback.to(dtype)
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] is not self.feedback or kept[1] != (self.feedback._version, dtype):
            kept = self.feedback, (self.feedback._version, dtype), self.feedback.to(dtype)
            self.__dict__["_kept"] = kept
        return kept[2]


class FeedbackLinear(_Feedback, nn.Linear):
    """`nn.Linear` (any leading dimensions) whose error signal travels back through the buffer `feedback` [out, in]."""

    def forward(self, x: Tensor) -> Tensor:
        if self._plain():
            return nn.Linear.forward(self, x)
        if x.dim() == 2:
            return _Linear.apply(*self._operands(x))
        rows = _Linear.apply(*self._operands(x.reshape(-1, self.in_features)))
        return rows.view(*x.shape[:-1], self.out_features)


class FeedbackConv2d(_Feedback, nn.Conv2d):
    """`nn.Conv2d` whose error signal travels back through the buffer `feedback` [out, in / groups, kh, kw]."""

    def forward(self, x: Tensor) -> Tensor:
        if self._plain():
            return nn.Conv2d.forward(self, x)
        padding = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            # A copy of pixels: autograd passes the error back through it exactly.
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), (0, 0)
        batch = x if x.dim() == 4 else x.unsqueeze(0)  # a single image may come without a batch dimension
        y = _Conv2d.apply(*self._operands(batch), (self.stride, padding, self.dilation, self.groups))
        return y if x.dim() == 4 else y.squeeze(0)


FEEDBACK_LAYERS = {nn.Linear: FeedbackLinear, nn.Conv2d: FeedbackConv2d}


def feedback_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with feedback weights by name, in the order of the model; empty under backpropagation."""
    return {n: m for n, m in model.named_modules() if isinstance(m, _Feedback)}
