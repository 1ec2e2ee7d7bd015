"""The products of a convolution by every way, against PyTorch's own in float64, and which way is taken."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rankcollapse import convert, exact_feedback
from rankcollapse.experiment.training import deterministic
from rankcollapse.library import products
from rankcollapse.library.products import How

FLAT = (1, 1), (0, 0), (1, 1), 1  # stride, padding, dilation, groups


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def geometry(stride=1, padding=1, groups=1):
    return (stride, stride), (padding, padding), (1, 1), groups


def conv(inputs, outputs, kernel=3, stride=1, padding=None, **more):
    """A convolution whose weights a generator draws, so large that its outputs are of order one."""
    padding = kernel // 2 if padding is None else padding
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, **more)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen(1)) / (inputs * kernel**2) ** 0.5)
    return layer


def pictures(n, channels, side, dtype=torch.float32, last=True):
    x = torch.randn(n, channels, side, side, generator=gen(2)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def gradients(layer, x, dtype=None):
    """The output, and the gradients of x and of each parameter for a random error, under autocast to `dtype`."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        y = layer(x)
    y.backward(torch.randn(y.shape, generator=gen(3), dtype=torch.float64).to(y.dtype))
    return [y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


# ---- every way is a convolution ----


@st.composite
def cases(draw):
    def pair(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, padding, dilation, sides = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 2), pair(1, 6)
    fits = all(s + 2 * p > (k - 1) * d for s, p, k, d in zip(sides, padding, kernel, dilation, strict=True))
    if not fits:
        padding = tuple(p + k * d for p, k, d in zip(padding, kernel, dilation, strict=True))
    n, channels, outputs = draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    last = draw(st.booleans())
    return (n, channels, *sides), (outputs, channels, *kernel), (stride, padding, dilation, 1), last


@given(cases())
@settings(max_examples=150, deadline=None)
def test_every_way_gives_the_convolution_and_its_gradients(case):
    """In float64, with another matrix for the error than for the output, down to empty batches."""
    shape, kernel, where, last = case
    x, w, b = (torch.randn(s, generator=gen(i), dtype=torch.float64) for i, s in enumerate((shape, kernel, kernel)))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    bias = torch.randn(kernel[0], generator=gen(3), dtype=torch.float64)
    y = F.conv2d(x, w, bias, *where)
    delta = torch.randn(y.shape, generator=gen(4), dtype=torch.float64)
    expected = products.backward(delta, b, x, kernel, where, How(), (True, True, True))
    for way in ("whole", "unfolded"):
        laid, back = (products.lay_out(each, shape[2:], where, way, torch.float64) for each in (w, b))
        torch.testing.assert_close(products.forward(x, laid, bias, kernel, where, way), y)
        for weights in ("unfolded", "tapped"):
            found = products.backward(delta, back, x, kernel, where, How(way, way, weights), (True, True, True))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other)


def test_what_is_not_wanted_is_not_computed():
    x, delta, w = pictures(2, 3, 2), pictures(2, 4, 2), torch.ones(4, 3, 3, 3)
    laid = products.lay_out(w, (2, 2), geometry(), "whole", torch.float32)
    how = How("whole", "whole", "tapped")
    assert products.backward(delta, laid, x, w.shape, geometry(), how, (False, False, False)) == (None, None, None)


def test_a_picture_as_one_vector_by_hand():
    """Of a kernel 1 2 3 over two pixels in a row, padded by one: y0 = 2 x0 + 3 x1 and y1 = x0 + 2 x1."""
    w = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    laid = products.lay_out(w, (1, 2), ((1, 1), (0, 1), (1, 1), 1), "whole", torch.float32)
    assert laid.tolist() == [[2, 3], [1, 2]]


# ---- which way ----

LAYERS = {  # inputs [n, in, h, w], kernel [out, in, k, k], stride: in bfloat16, in float32
    "one pixel": ((128, 512, 1, 1), (512, 512, 3, 3), 1, "whole whole tapped", "whole whole tapped"),
    "four pixels": ((64, 128, 2, 2), (128, 128, 3, 3), 1, "whole whole unfolded", "whole whole unfolded"),
    "four pixels, few channels": ((64, 32, 2, 2), (32, 32, 3, 3), 1, "whole whole unfolded", "whole whole unfolded"),
    "to four pixels": ((128, 256, 4, 4), (512, 256, 3, 3), 2, "unfolded unfolded tapped", "torch torch tapped"),
    "sixteen pixels": ((128, 64, 4, 4), (64, 64, 3, 3), 1, "torch torch unfolded", "torch torch torch"),
    "sixteen, wider": ((128, 128, 4, 4), (128, 128, 3, 3), 1, "torch torch tapped", "torch torch torch"),
    "64 pixels": ((128, 128, 8, 8), (128, 128, 3, 3), 1, "torch torch torch", "torch torch torch"),
    "shortcut": ((128, 64, 8, 8), (128, 64, 1, 1), 2, "unfolded unfolded unfolded", "torch torch torch"),
    "shortcut to a pixel": ((9, 256, 2, 2), (512, 256, 1, 1), 2, "torch torch torch", "torch torch torch"),
    "stem": ((128, 3, 32, 32), (64, 3, 7, 7), 2, "torch torch torch", "torch torch torch"),
    "one picture of one pixel": ((1, 8, 1, 1), (8, 8, 3, 3), 1, "whole whole unfolded", "torch torch torch"),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_the_way_is_a_fixed_rule_on_shape_type_and_processor(monkeypatch, layer):
    shape, kernel, stride, *expected = LAYERS[layer]
    where = geometry(stride, kernel[2] // 2)
    monkeypatch.setattr(products, "AMX", False)
    monkeypatch.setattr(products, "BFLOAT16", True)
    for dtype, ways in zip((torch.bfloat16, torch.float32), expected, strict=True):
        assert products.choose(torch.empty(shape, dtype=dtype), kernel, where) == How(*ways.split())
    assert products.choose(torch.empty(shape, dtype=torch.float64), kernel, where) == How()
    assert products.choose(torch.empty(shape, device="meta"), kernel, where) == How(), "only a CPU has a rule"
    monkeypatch.setattr(products, "AMX", True)
    amx = products.choose(torch.empty(shape), kernel, where)
    assert amx == (How("unfolded", "unfolded", "tapped") if layer == "to four pixels" else How(*expected[1].split()))
    monkeypatch.setattr(products, "BFLOAT16", False)
    without = products.choose(torch.empty(shape, dtype=torch.bfloat16), kernel, where)
    assert without == (How(*expected[0].split()) if "whole" in expected[0] else How())


def test_groups_are_pytorchs():
    x, layer = pictures(32, 32, 2), conv(32, 32, groups=2)
    assert products.choose(x, layer.weight.shape, geometry(groups=2)) == How()
    expected, found = gradients(layer, x), gradients(convert(copy.deepcopy(layer), "bp"), x)
    assert all(map(torch.equal, found, expected))


# ---- layers ----

SHAPES = [  # channels in and out, side, kernel, stride: one of each class of LAYERS
    (64, 64, 1, 3, 1), (128, 128, 2, 3, 1), (16, 32, 2, 3, 2), (64, 128, 4, 3, 2),
    (64, 64, 4, 3, 1), (256, 128, 8, 3, 1), (32, 32, 8, 3, 1), (256, 256, 2, 3, 1), (64, 128, 8, 1, 2),
    (32, 16, 2, 1, 1), (3, 16, 8, 7, 2), (16, 16, 4, 7, 1),
]  # fmt: skip


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_as_close_to_float64_as_pytorchs(dtype, shape, last):
    """Each of output and gradients no further than twice as far, or a few roundings of its type."""
    inputs, outputs, side, kernel, stride = shape
    layer, x = conv(inputs, outputs, kernel, stride), pictures(32, inputs, side, last=last)
    if last:
        layer = layer.to(memory_format=torch.channels_last)
    autocast = dtype if dtype == torch.bfloat16 else None
    if autocast:  # what rounding the operands does is not what is asked here
        with torch.no_grad():
            layer.weight.copy_(layer.weight.to(dtype))
        x = x.to(dtype).float()
    exact = gradients(copy.deepcopy(layer).double(), x.double())
    errors = [
        [float((a.double() - b).norm() / b.norm()) for a, b in zip(gradients(each, x, autocast), exact, strict=True)]
        for each in (layer, convert(copy.deepcopy(layer), "bp"))
    ]
    for theirs, ours in zip(*errors, strict=True):
        assert ours <= max(2 * min(theirs, 1), 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_b_equal_to_w_gives_the_bits_of_the_same_layer_under_backpropagation(dtype, shape, last):
    """And those of PyTorch wherever its kernels are chosen; a run has the same bits twice."""
    inputs, outputs, side, kernel, stride = shape
    plain, x = conv(inputs, outputs, kernel, stride), pictures(32, inputs, side, last=last)
    if last:
        plain = plain.to(memory_format=torch.channels_last)
    bp, fa = convert(copy.deepcopy(plain), "bp"), convert(copy.deepcopy(plain), "fa", gen(5))
    with deterministic(), exact_feedback(fa):
        expected = gradients(bp, x, dtype)
        assert all(map(torch.equal, gradients(fa, x, dtype), expected))
        assert all(map(torch.equal, gradients(bp, x, dtype), expected))
        how = products.choose(x.to(dtype or x.dtype), plain.weight.shape, geometry(stride, kernel // 2))
        if how == How():
            assert all(map(torch.equal, gradients(plain, x, dtype), expected))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        assert torch.equal(fa(x), expected[0]), "evaluation has the same products"
        assert torch.equal(bp(x), expected[0])


def test_taps_that_see_only_padding_have_no_gradient():
    """PyTorch's kernel leaves them as the memory was, in bfloat16; of one pixel the middle tap alone sees anything."""
    for n, channels in ((1, 4), (64, 64)):
        layer = convert(conv(channels, channels, stride=2), "bp").to(memory_format=torch.channels_last)
        _, _, weight, _ = gradients(layer, pictures(n, channels, 1), torch.bfloat16)
        middle = torch.zeros(3, 3, dtype=bool)
        middle[1, 1] = True
        assert (weight[:, :, ~middle] == 0).all()
        assert (weight[:, :, middle] != 0).any()


@pytest.mark.parametrize(
    ("n", "channels", "kernel", "stride", "padding", "dilation", "sides"),
    [(1, 16, (3, 3), 4, 1, 1, (3, 3)), (8, 64, (3, 3), 4, 1, 1, (3, 3)), (1, 3, (4, 3), (1, 4), 1, 1, (4, 2)),
     (2, 3, (3, 3), 1, 6, 6, (5, 5)), (32, 16, (3, 3), 1, 6, 6, (5, 5)), (32, 3, (3, 3), 1, 1, 1, (1, 20))],
)  # fmt: skip
@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_nor_in_pictures_of_more_pixels(rule, n, channels, kernel, stride, padding, dilation, sides):
    """What the memory held is made large, so that it shows."""
    layer = convert(nn.Conv2d(channels, 16, kernel, stride, padding, dilation).bfloat16(), rule, gen())
    x = torch.randn(n, channels, *sides, generator=gen(2)).bfloat16()
    seen = torch.zeros_like(layer.weight, dtype=torch.float64).requires_grad_()  # it has no part in its gradient
    y = layer(x)
    F.conv2d(x.double(), seen, None, stride, padding, dilation).sum().backward()
    for size in (layer.weight.numel(), 2 * layer.weight.numel(), 2**14):
        del [torch.full((size,), 1e30) for _ in range(3)][:]
    y.sum().backward()
    torch.testing.assert_close(layer.weight.grad.double(), seen.grad, atol=0.02 * float(seen.grad.abs().max()), rtol=0)
    assert (seen.grad == 0).all((0, 1)).any(), "a tap that sees only padding"


@given(cases())
@settings(max_examples=300, deadline=None)
def test_taps_are_blind_where_the_gradient_of_ones_is_zero(case):
    shape, kernel, where, _ = case
    weight = torch.ones(kernel, requires_grad=True)
    F.conv2d(torch.ones(1, *shape[1:]), weight, None, *where).sum().backward()
    assert products._blind(shape[2:], kernel, where) == bool((weight.grad == 0).any())


@pytest.mark.parametrize("shape", [(0, 32, 2, 2), (32, 2, 2), (0, 32, 4, 4)])
def test_an_empty_batch_and_a_single_picture(shape):
    layer, x = conv(32, 16), torch.randn(shape, generator=gen())
    for dtype in (None, torch.bfloat16):
        expected, found = gradients(layer, x, dtype), gradients(convert(copy.deepcopy(layer), "bp"), x, dtype)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("rule", ["bp", "fa"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(("side", "last"), [(1, False), (1, True), (2, False), (2, True)])
def test_what_comes_out_may_be_changed_in_place(rule, dtype, side, last):
    layer, x = convert(conv(32, 16), rule, gen()), pictures(32, 32, side, last=last)
    aside, inside = nn.Sequential(layer, nn.ReLU()), nn.Sequential(layer, nn.ReLU(inplace=True))
    for one, other in zip([t.clone() for t in gradients(aside, x, dtype)], gradients(inside, x, dtype), strict=True):
        assert torch.equal(one, other)


def test_types_that_do_not_fit_are_refused_as_pytorch_does():
    layer = convert(conv(32, 16), "fa", gen())
    with pytest.raises(RuntimeError, match="type"):
        layer(pictures(32, 32, 2, torch.float64))


def test_a_converted_convolution_can_be_converted_once_more():
    layer = convert(convert(conv(32, 16), "bp"), "fa", gen())
    assert layer.feedback.shape == layer.weight.shape


def test_a_picture_smaller_than_its_kernel_is_refused_as_pytorch_does():
    layer = convert(conv(32, 16, padding=0), "bp")
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        layer(pictures(32, 32, 1))
