"""Layers whose error travels back through feedback weights B in place of Wᵀ.

With a_l = W_l h_{l-1} and the error signal δ_l = ∂L/∂a_l, backpropagation sends Wᵀ_l δ_l down and feedback alignment
sends Bᵀ_l δ_l (Lillicrap et al. 2016; arXiv:2606.11123, eq. on p. 3). B has the shape of W, so that B = W *is*
backpropagation, to the bit. The gradients of W and of the bias stay the local ones, δ_l h_{l-1}ᵀ and δ_l.

Direct feedback alignment sends Bᵀ_l e down, e = ∂L/∂output [n, outputs], with B_l [outputs, *shape of one h_{l-1}].
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankcollapse.library import products


def _refuse_second_derivative() -> None:
    """It would take B for W. Cheaper in a backward pass than PyTorch's own `once_differentiable`."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("this backward pass has no second derivative: call backward without create_graph")


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
    """`feedback` is B as `products.lay_out` makes it, or None for W itself; the weight is cast in here to `dtype`."""

    @staticmethod
    def forward(ctx, x, weight, feedback, bias, dtype, geometry, how):
        laid = products.lay_out(weight, x.shape[2:], geometry, how.forward, dtype)
        sent = feedback
        if sent is None:
            same = how.to_input == how.forward
            sent = laid if same else products.lay_out(weight, x.shape[2:], geometry, how.to_input, dtype)
        ctx.save_for_backward(x, sent)
        ctx.kernel, ctx.dtype, ctx.geometry, ctx.how = weight.shape, weight.dtype, geometry, how
        return products.forward(x, laid, bias, weight.shape, geometry, how.forward)

    @staticmethod
    def backward(ctx, delta):
        _refuse_second_derivative()
        x, sent = ctx.saved_tensors
        to_x, to_weight, _, to_bias, *_ = ctx.needs_input_grad
        wanted = to_x, to_weight, to_bias
        grad_x, grad, grad_bias = products.backward(delta, sent, x, ctx.kernel, ctx.geometry, ctx.how, wanted)
        return grad_x, None if grad is None else grad.to(ctx.dtype), None, grad_bias, None, None, None


class _Direct(torch.autograd.Function):
    """Zeros [n, outputs] in the place of x [n, ...]: what is sent back to them, e, goes to x through `feedback`."""

    @staticmethod
    def forward(ctx, x, feedback, dtype):
        ctx.save_for_backward(feedback)
        return x.new_zeros((len(x), len(feedback)), dtype=dtype)

    @staticmethod
    def backward(ctx, error):
        _refuse_second_derivative()
        (feedback,) = ctx.saved_tensors
        last = feedback.dim() == 4 and feedback.is_contiguous(memory_format=torch.channels_last)
        b = feedback.movedim(1, -1) if last else feedback  # as it lies in memory, so that nothing is copied
        sent = (error @ b.flatten(1)).view(len(error), *b.shape[1:])
        return sent.movedim(-1, 1) if last else sent, None, None


class Broadcast:
    """What brings e, the gradient of the loss by a model's output, to each of its layers.

    A layer adds zeros to the output whose derivative by its input is B, and is cut off from what is below otherwise: so
    autograd itself brings e there, compiled or not. `sent` holds the zeros of a pass, and nothing between two.
    """

    def __init__(self, model: nn.Module):
        self.sent: dict[nn.Module, Tensor] | None = None
        model.register_forward_pre_hook(self.begin)
        model.register_forward_hook(self.end)

    def begin(self, model: nn.Module, args: tuple) -> None:
        self.sent = {}

    def cut(self, layer: "_Feedback", x: Tensor) -> Tensor:
        """x without the way down, which is e's alone. Raises RuntimeError where e cannot come, fit, or come once."""
        if self.sent is None:
            raise RuntimeError("a layer of dfa is called outside of its model: call, or checkpoint, the whole")
        if layer in self.sent:
            raise RuntimeError("a layer of dfa is called twice in a pass, but its B is for one input alone")
        if x.requires_grad and x.shape[1:] != layer.feedback.shape[1:]:  # autograd would sum what it can broadcast
            what = f"a layer of dfa has an input {[*x.shape]}, but its B {[*layer.feedback.shape]}"
            raise RuntimeError(f"{what}: it takes inputs of the shape of the example alone")
        dtype = _autocast(x) or x.dtype  # of e in the product with B
        self.sent[layer] = _Direct.apply(x, layer._cast(Tensor.to, dtype), dtype)
        return x.detach()

    def end(self, model: nn.Module, args: tuple, output: object) -> object:
        """The output with the zeros added. Raises RuntimeError if it is not a matrix of one row per input."""
        sent, self.sent = self.sent, None
        for zeros in sent.values():
            if not isinstance(output, Tensor) or output.shape != zeros.shape:
                raise RuntimeError(f"the model's output is not the matrix {[*zeros.shape]} that a layer's B is for")
        return output + torch.stack([*sent.values()]).sum(0).to(output.dtype) if sent else output


def _autocast(x: Tensor) -> torch.dtype | None:
    """The type that autocast gives to products of x; None where it leaves them alone."""
    device = x.device.type
    on = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if on else None


class _Feedback:
    """What layers with feedback weights share. `called`: whether an input has passed since the layer was converted."""

    feedback: Tensor
    called = False
    keeps = True  # the cast of B; not while W is in its place, which fused optimisers change without telling
    broadcast: Broadcast | None = None  # under dfa: what brings e, which then goes through B in the place of δ

    def _plain(self) -> bool:
        """Whether nothing will be sent back through this layer. Raises RuntimeError under tracing."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            mend = "load the weights into a model that is not converted, and trace that"
            raise RuntimeError(f"a traced or exported graph would train by backpropagation: {mend}")
        if torch.compiler.is_compiling() or not self.called:  # to set it is slow; to read it would compile twice
            self.called = True
        # Not `x.requires_grad`: it is false within torch.vmap, which must meet the Function and so its error.
        return not torch.is_grad_enabled()

    def __getstate__(self) -> dict:
        """A copy keeps no cast: version counters start anew in it."""
        return {key: value for key, value in self.__dict__.items() if key != "_kept"}

    def _cast(self, make: Callable[..., Tensor], *how: object) -> Tensor:
        """`make(B, *how)`, kept until B or `how` changes, so that B is not cast at every step.

        Autograd's version counter tells: write B in place or assign it, but not through `.data`, which escapes it.
        """
        if torch.compiler.is_compiling() or not self.keeps:
            return make(self.feedback, *how)
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] is not self.feedback or kept[1] != (self.feedback._version, *how):
            kept = self.feedback, (self.feedback._version, *how), make(self.feedback, *how)
            self.__dict__["_kept"] = kept
        return kept[2]


class FeedbackLinear(_Feedback, nn.Linear):
    """`nn.Linear` (any leading dimensions) whose error signal travels back through the buffer `feedback` [out, in].

    `convert` makes it of an `nn.Linear`, and gives it its B.

    >>> from rankcollapse import convert
    >>> layer = convert(nn.Linear(3, 1), "fa", torch.Generator().manual_seed(0))
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> bool((torch.autograd.grad(layer(x).sum(), x)[0] == layer.feedback).all())
    True
    """

    def forward(self, input: Tensor) -> Tensor:
        if self._plain():
            return nn.Linear.forward(self, input)
        if self.broadcast:
            return nn.Linear.forward(self, self.broadcast.cut(self, input))
        rows = input if input.dim() == 2 else input.reshape(-1, self.in_features)
        weight, feedback, bias, dtype = self.weight, self.feedback, self.bias, _autocast(input)
        if dtype is not None:  # as autocast would cast them for a product: it is off in a Function's backward pass
            rows, weight, feedback = rows.to(dtype), weight.to(dtype), self._cast(Tensor.to, dtype)
            bias = None if bias is None else bias.to(dtype)
        y = _Linear.apply(rows, weight, feedback, bias)
        return y if input.dim() == 2 else y.view(*input.shape[:-1], self.out_features)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` by whatever products are the fastest here, see `products`: to the bit where those are PyTorch's."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return nn.Conv2d.forward(self, input)
        return self._convolve(input, feeds_back=False)

    def _convolve(self, x: Tensor, feeds_back: bool) -> Tensor:
        """The convolution of pictures [n, in, h, w], or of one [in, h, w]; errors go back through B, or W itself."""
        padding = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            # A copy of pixels: autograd passes the error back through it exactly.
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), (0, 0)
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        geometry, dtype, bias = (self.stride, padding, self.dilation, self.groups), _autocast(x), self.bias
        if dtype is None:
            dtype = self.weight.dtype
        else:  # as autocast would cast them, which is off in a Function's backward pass
            batch, bias = batch.to(dtype), None if bias is None else bias.to(dtype)
        how = products.choose(batch, self.weight.shape, geometry)
        feedback = None
        if feeds_back:
            feedback = self._cast(products.lay_out, batch.shape[2:], geometry, how.to_input, dtype)
        elif how == products.How():
            y = F.conv2d(batch, self.weight, bias, *geometry)
            return y if x.dim() == 4 else y.squeeze(0)
        y = _Conv2d.apply(batch, self.weight, feedback, bias, dtype, geometry, how)
        return y if x.dim() == 4 else y.squeeze(0)


class FeedbackConv2d(_Feedback, Conv2d):
    """`nn.Conv2d` whose error signal travels back through the buffer `feedback` [out, in / groups, kh, kw].

    >>> from rankcollapse import convert
    >>> convert(nn.Conv2d(4, 6, 3, groups=2), "fa", torch.Generator().manual_seed(0)).feedback.shape
    torch.Size([6, 2, 3, 3])
    """

    def forward(self, input: Tensor) -> Tensor:
        plain = self._plain()
        if self.broadcast and not plain:
            return self._convolve(self.broadcast.cut(self, input), feeds_back=False)
        return self._convolve(input, feeds_back=not plain)


FEEDBACK_LAYERS = {nn.Linear: FeedbackLinear, nn.Conv2d: FeedbackConv2d, Conv2d: FeedbackConv2d}


def feedback_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with feedback weights by name, in the order of the model; empty under backpropagation."""
    return {n: m for n, m in model.named_modules() if isinstance(m, _Feedback)}
