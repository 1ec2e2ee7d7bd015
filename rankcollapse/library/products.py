"""The three products of a convolution on a CPU, by PyTorch's kernels or as matrix products where those are faster.

PyTorch's kernels (oneDNN) walk over the pixels of a picture, and collapse where it has few and its channels are many.
Three ways to write the same sums as products of matrices take their place:

- `whole`: the picture is one vector [pixels * channels], and the weights are laid out as the matrix that takes it to
  the output's. Nothing of the picture is copied. It pays where a picture has fewer pixels than a kernel has taps: a
  3 x 3 kernel on 2 x 2 pixels has 16 pairs of pixels, where it reads 36 taps.
- `unfolded`: each output pixel is a row of all that its kernel sees (im2col).
- `tapped`: the gradient of the weight, tap by tap, over the pixels that see the picture through it. No padding is
  multiplied, but it is a product of its own for each tap: it pays where each is large.

`choose` says which, from shapes, type and processor alone, never by timing: same machine, same bits. `make bench` lists
the layers where it was not the faster choice. All take any stride, padding and dilation, and one group. An unfolded
picture lives for one product: it has at most 16 output pixels, so 16 * taps * channels numbers an image, unless it is
`whole`, for which kernel and picture are large both.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rankcollapse.library import processor

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]  # stride, padding, dilation, groups
Kernel = Sequence[int]  # out, in, kh, kw

AMX, BFLOAT16 = processor.has_amx(), processor.multiplies_bfloat16()
IMAGES, CHANNELS = 16, 16  # fewer than these have too little to do for the price of a copy
LARGE = 2**24  # multiplications from which a tap has enough to do to be a product of its own


class How(NamedTuple):
    """How each product of a convolution is computed: `torch`, `whole`, `unfolded` or `tapped`."""

    forward: str = "torch"
    to_input: str = "torch"
    to_weight: str = "torch"


def choose(x: Tensor, kernel: Kernel, geometry: Geometry) -> How:
    """The way of each product, for inputs x [n, in, h, w] in the type of the products.

    Where a kernel has twice as many taps as the picture has pixels it is `whole`. In bfloat16 that holds for every
    batch and number of channels, and no gradient of a weight with taps that see only padding is PyTorch's: oneDNN
    (torch 2.14) may leave that of such taps uninitialised. Elsewhere matrices win in bfloat16, with AMX and with AVX512
    alike, up to 4 pixels of output, and up to 16 for 1 x 1 kernels and the gradient of the weight. In float32 they win
    up to 4 on processors with AMX. On an AMD EPYC with AVX512 products of matrices run at half the rate of
    convolutions, and only the gradient of the weight and 1 x 1 kernels gain, up to 4.
    """
    if x.device.type != "cpu" or geometry[3] > 1 or x.dtype not in (torch.bfloat16, torch.float32):
        return How()
    n, channels, *picture = x.shape
    sides = _outputs(picture, kernel, geometry)
    if min(sides) < 1:
        return How()  # which says what is wrong
    taps, outputs = math.prod(kernel[2:]), math.prod(sides)
    few = n < IMAGES or channels < CHANNELS
    weights = "tapped" if n * outputs * channels * kernel[0] >= LARGE and taps > 1 else "unfolded"
    if 2 * math.prod(picture) <= taps and (not few or x.dtype == torch.bfloat16):
        return How("whole", "whole", weights)
    rest = "tapped" if x.dtype == torch.bfloat16 and _blind(picture, kernel, geometry) else "torch"
    if few:
        return How(to_weight=rest)
    if x.dtype == torch.bfloat16:
        up_to, up_to_weight = (4, 16) if BFLOAT16 else (0, 0)
    else:
        up_to, up_to_weight = 4 if AMX else 0, 4
    both = "unfolded" if outputs <= (up_to_weight if taps == 1 else up_to) else "torch"
    return How(both, both, weights if outputs <= up_to_weight else rest)


def lay_out(weight: Tensor, picture: Sequence[int], geometry: Geometry, way: str, dtype: torch.dtype) -> Tensor:
    """A weight [out, in, kh, kw] cast to `dtype`, as a product by `way` takes it, for inputs of h x w pixels.

    `whole`: [outputs * out, pixels * in], zero where a pixel is not seen; `unfolded`: [out, kh * kw * in].
    """
    if way == "torch":
        return weight.to(dtype)
    taps_last = weight.permute(0, 2, 3, 1)
    if way == "unfolded":
        return taps_last.reshape(len(weight), -1).to(dtype)
    rows, columns = _windows(picture, weight.shape, geometry)
    shape = len(rows), len(columns), len(weight), *picture, weight.shape[1]
    laid = (torch.empty if _all_seen(rows, columns, picture) else torch.zeros)(shape, dtype=dtype)
    for i, (row, row_taps) in enumerate(rows):
        for j, (column, column_taps) in enumerate(columns):
            laid[i, j, :, row, column] = taps_last[:, row_taps, column_taps]
    return laid.view(len(rows) * len(columns) * len(weight), -1)


def forward(x: Tensor, laid: Tensor, bias: Tensor | None, kernel: Kernel, geometry: Geometry, way: str) -> Tensor:
    """The convolution [n, out, h', w'] of x [n, in, h, w] with what `lay_out` made of a weight."""
    if way == "torch":
        return F.conv2d(x, laid, bias, *geometry)
    height, width = _outputs(x.shape[2:], kernel, geometry)
    if way == "whole":
        rows = _vectors(x)
        bias = bias if bias is None else bias.repeat(height * width)
    else:
        rows = _unfold(x, kernel, geometry)
    y = F.linear(rows, laid, bias).view(len(x), height, width, kernel[0]).permute(0, 3, 1, 2)
    last = x.is_contiguous(memory_format=torch.channels_last)
    # A copy, for a Function's output that is a view could not be changed in place, as by ReLU(inplace=True).
    return y.clone(memory_format=torch.channels_last if last else torch.contiguous_format)


def backward(
    delta: Tensor, laid: Tensor, x: Tensor, kernel: Kernel, geometry: Geometry, how: How, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias, those that are wanted, from that of the output [n, out, h', w'].

    The error goes through `laid`, what `lay_out` made of W or B by `how.to_input`.
    """
    if how.to_weight == "torch":
        # The gradient of the weight does not depend on the weight handed in, so one call gives all three.
        return _backward(delta, x, laid, geometry, wanted)
    return (
        to_input(delta, laid, x, kernel, geometry, how.to_input) if wanted[0] else None,
        to_weight(delta, x, kernel, geometry, how.to_weight) if wanted[1] else None,
        delta.sum((0, 2, 3)) if wanted[2] else None,
    )


def to_input(delta: Tensor, laid: Tensor, x: Tensor, kernel: Kernel, geometry: Geometry, way: str) -> Tensor:
    """The gradient of x by one of the ways."""
    if way == "torch":
        return _backward(delta, x, laid, geometry, (True, False, False))[0]
    n, channels, *picture = x.shape
    if way == "whole":
        return (_vectors(delta) @ laid).view(n, *picture, channels).permute(0, 3, 1, 2)
    seen = (_rows(delta) @ laid).view(n, *delta.shape[2:], *kernel[2:], channels)
    found = seen.new_zeros(n, *picture, channels)
    for (i, j), (rows, columns), (row_pixels, column_pixels) in _taps(picture, kernel, geometry):
        found[:, row_pixels, column_pixels] += seen[:, rows, columns, i, j]
    return found.permute(0, 3, 1, 2)


def to_weight(delta: Tensor, x: Tensor, kernel: Kernel, geometry: Geometry, way: str) -> Tensor:
    """The gradient of the weight, `unfolded` or `tapped`."""
    out, channels, *taps = kernel
    if way == "unfolded":
        return (_rows(delta).t() @ _unfold(x, kernel, geometry)).view(out, *taps, channels).permute(0, 3, 1, 2)
    found = x.new_zeros(out, *taps, channels)
    sent, seen = delta.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    for (i, j), (rows, columns), (row_pixels, column_pixels) in _taps(x.shape[2:], kernel, geometry):
        errors = sent[:, rows, columns].reshape(-1, out)
        found[:, i, j] = errors.t() @ seen[:, row_pixels, column_pixels].reshape(-1, channels)
    return found.permute(0, 3, 1, 2)


def _backward(delta: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: Sequence[bool]):
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        delta, x, weight, [len(weight)], stride, padding, dilation, False, (0, 0), groups, wanted
    )


def _rows(pixels: Tensor) -> Tensor:
    """[n, channels, h, w] as [n * h * w, channels]: without a copy where the memory is channels_last."""
    return pixels.permute(0, 2, 3, 1).reshape(-1, pixels.shape[1])


def _vectors(pixels: Tensor) -> Tensor:
    """[n, channels, h, w] as [n, h * w * channels]."""
    return pixels.permute(0, 2, 3, 1).reshape(len(pixels), math.prod(pixels.shape[1:]))


def _unfold(x: Tensor, kernel: Kernel, geometry: Geometry) -> Tensor:
    """What each output pixel sees of x [n, in, h, w]: [n * h' * w', kh * kw * in]."""
    strides, padding, dilations, _ = geometry
    seen = x.permute(0, 2, 3, 1)
    if any(padding):
        seen = F.pad(seen, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    for side, (taps, stride, dilation) in enumerate(zip(kernel[2:], strides, dilations, strict=True), start=1):
        seen = seen.unfold(side, (taps - 1) * dilation + 1, stride)[..., ::dilation]
    return seen.permute(0, 1, 2, 4, 5, 3).reshape(-1, math.prod(kernel[1:]))


# ---- which pixels meet which taps: an output pixel r sees pixel r * stride + tap * dilation - padding ----


def _outputs(picture: Sequence[int], kernel: Kernel, geometry: Geometry) -> list[int]:
    sides = zip(picture, kernel[2:], *geometry[:3], strict=True)
    return [(size + 2 * pad - (taps - 1) * apart - 1) // stride + 1 for size, taps, stride, pad, apart in sides]


def _all_seen(rows: list, columns: list, picture: Sequence[int]) -> bool:
    """Whether every output pixel sees every pixel."""
    sides = zip((rows, columns), picture, strict=True)
    return all(len(range(size)[pixels]) == size for side, size in sides for pixels, _ in side)


def _windows(picture: Sequence[int], kernel: Kernel, geometry: Geometry) -> list[list[tuple[slice, slice]]]:
    """For both sides, of each output pixel: the pixels that it sees, and the taps that it sees them through."""
    found = []
    sides = zip(picture, kernel[2:], *geometry[:3], _outputs(picture, kernel, geometry), strict=True)
    for size, taps, stride, pad, apart, outputs in sides:
        firsts = [r * stride - pad for r in range(outputs)]  # what the first tap sees
        lows = [max(0, math.ceil(-first / apart)) for first in firsts]
        highs = [min(taps, math.ceil((size - first) / apart)) for first in firsts]
        found.append([
            (slice(first + low * apart, first + (high - 1) * apart + 1, apart), slice(low, high))
            if low < high else (slice(0, 0), slice(0, 0))
            for first, low, high in zip(firsts, lows, highs, strict=True)
        ])  # fmt: skip
    return found


def _blind(picture: Sequence[int], kernel: Kernel, geometry: Geometry) -> bool:
    """Whether some tap sees only padding: none does in a picture as large as what a kernel and one stride span."""
    sides = zip(picture, kernel[2:], *geometry[:3], strict=True)
    small = any(size < (taps - 1) * apart + stride for size, taps, stride, _, apart in sides)
    return small and len(_taps(picture, kernel, geometry)) < math.prod(kernel[2:])


def _taps(picture: Sequence[int], kernel: Kernel, geometry: Geometry):
    """Of each tap (i, j) that sees some of the picture: the output pixels that see it through that tap, by rows and
    columns, and what they see.
    """
    found = []
    sides = zip(picture, kernel[2:], *geometry[:3], _outputs(picture, kernel, geometry), strict=True)
    for size, taps, stride, pad, apart, outputs in sides:
        side = []
        for tap in range(taps):
            shift = tap * apart - pad
            low, high = max(0, math.ceil(-shift / stride)), min(outputs, (size - 1 - shift) // stride + 1)
            if low < high:
                pixels = slice(low * stride + shift, (high - 1) * stride + shift + 1, stride)
                side.append((tap, slice(low, high), pixels))
        found.append(side)
    return [((i, j), (rows, columns), (p, q)) for i, rows, p in found[0] for j, columns, q in found[1]]
