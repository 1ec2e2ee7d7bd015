import contextlib
import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from rankcollapse import models
from rankcollapse.feedback import convert, exact_feedback, feedback_layers

NETS = [("mlp", (3, 8, 8)), ("cnn4", (3, 16, 16)), ("resnet18", (3, 16, 16))]
CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "bias": False},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": (2, 1), "padding": (0, 2)},
    {"kernel_size": (1, 3), "dilation": (1, 2)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "groups": 2},
    {"kernel_size": 3, "groups": 4, "padding": 1},
    {"kernel_size": 3, "groups": 4, "out_channels": 8, "padding": 1},
    {"kernel_size": 3, "padding": "valid", "stride": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 2, "padding": "same"},
    {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": (3, 4), "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "replicate"},
    {"kernel_size": 2, "padding": "same", "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": 2, "groups": 2},
]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def build(tiny, architecture, shape, normalization="none", seed=0, **options):
    config = tiny(architecture=architecture, normalization=normalization, width=4, depth=3, **options)
    return models.build(config, shape, 10, gen(seed))


def gradients(model, x, delta=None):
    """The gradients of every parameter and of the input, for the error `delta` of the output, or for its sum."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    model.zero_grad()
    y = model(x)
    if delta is None:
        y.sum().backward()  # an error that is expanded in memory
    else:
        y.backward(delta)
    return {"input": x.grad, **{name: p.grad.clone() for name, p in model.named_parameters()}}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), f"gradient of {name} differs from backpropagation's"


def assert_exact_feedback_is_backpropagation(plain, x, like=None):
    """Convert a copy, set B = W, and compare all gradients with those of the model as it was."""
    delta = torch.randn(plain(x).shape, generator=gen(2), dtype=x.dtype)
    converted = convert(copy.deepcopy(plain), "fa", gen(1))
    for error in (delta, None):
        expected = gradients(plain, x, error)
        with exact_feedback(converted):
            assert_same_bits(gradients(converted, x, error), expected)
    return converted


# ---- the nets ----


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # The count that every CIFAR ResNet-18 has.
        ({"architecture": "resnet18", "width": 64, "normalization": "batch"}, 11_173_962),
        # Convolutions of 27, 288, 576 and 576 entries per output, their norms, and a classifier of 128 x 2 x 2 inputs.
        (
            {"architecture": "cnn4", "width": 32, "normalization": "batch"},
            27 * 32 + 288 * 64 + 576 * 64 + 576 * 128 + 2 * (32 + 64 + 64 + 128) + 512 * 10 + 10,
        ),
        ({"architecture": "mlp", "width": 7, "depth": 2}, 3072 * 7 + 7 + 7 * 7 + 7 + 7 * 10 + 10),
        ({"architecture": "mlp", "width": 7, "depth": 1, "normalization": "batch"}, 3072 * 7 + 2 * 7 + 7 * 10 + 10),
    ],
    ids=lambda value: value["architecture"] if isinstance(value, dict) else None,
)
def test_nets_have_the_parameters_counted_by_hand(tiny, options, expected):
    net = models.skeleton(tiny(**options), (3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) == expected


def test_resnet18_computes_what_torchvisions_computes_with_the_same_stem(tiny):
    """Weights carried over in order: the two nets list their layers alike."""
    theirs = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = models.build(tiny(architecture="resnet18", normalization="batch", width=64), (3, 16, 16), 10, gen())
    values = list(ours.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    x = torch.randn(2, 3, 16, 16, generator=gen(1))
    torch.testing.assert_close(ours(x), theirs(x))


# ---- B = W is backpropagation, to the bit ----


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 3, 2, 5), (0, 5)])
def test_linear_with_b_equal_to_w_gives_bp_gradients_to_the_bit(shape, bias):
    torch.manual_seed(0)
    assert_exact_feedback_is_backpropagation(nn.Linear(5, 7, bias=bias), torch.randn(shape))


def test_linear_takes_an_input_that_is_not_contiguous():
    torch.manual_seed(0)
    assert_exact_feedback_is_backpropagation(nn.Linear(5, 7), torch.randn(3, 5, 4).transpose(1, 2))


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batched", "unbatched"])
def test_convolution_with_b_equal_to_w_gives_bp_gradients_to_the_bit(options, batch):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, **{"out_channels": 6, **({"out_channels": 4} if options.get("groups") == 4 else {}), **options})
    assert_exact_feedback_is_backpropagation(conv, torch.randn(*batch, 4, 9, 8))


@st.composite
def convolutions(draw):
    def pair(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups, kernel, dilation = draw(st.integers(1, 3)), pair(1, 4), pair(1, 2)
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.just(pair(0, 3))))
    stride = (1, 1) if padding == "same" else pair(1, 3)
    size = pair(5, 9)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    sides = {"same": [t - t // 2 for t in total], "valid": [0, 0]}.get(padding, padding)
    assume(mode == "zeros" or all(side < n for side, n in zip(sides, size, strict=True)))
    assume(all(n + 2 * side > t for n, side, t in zip(size, sides, total, strict=True)))
    inputs, outputs = (groups * draw(st.integers(1, 3)) for _ in range(2))
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()), padding_mode=mode
    )  # fmt: skip
    models.initialize(conv, gen(draw(st.integers(0, 9))))
    return conv, (draw(st.integers(1, 3)), inputs, *size)


@settings(max_examples=100)
@given(convolutions())
def test_any_convolution_with_b_equal_to_w_gives_bp_gradients_to_the_bit(drawn):
    conv, shape = drawn
    assert_exact_feedback_is_backpropagation(conv, torch.randn(shape, generator=gen(3)))


@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize(("architecture", "shape"), NETS)
def test_whole_nets_with_b_equal_to_w_give_bp_gradients_to_the_bit(tiny, architecture, shape, normalization):
    plain = build(tiny, architecture, shape, normalization)
    x = torch.randn(4, *shape, generator=gen(4))
    converted = assert_exact_feedback_is_backpropagation(plain, x)
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, converted.get_buffer(name)), f"running statistics {name} differ"


def test_torchvision_resnet18_with_b_equal_to_w_gives_bp_gradients_to_the_bit():
    torch.manual_seed(0)
    plain = torchvision.models.resnet18(num_classes=10)
    converted = convert(copy.deepcopy(plain), "fa", gen(1))
    for layer in feedback_layers(converted).values():
        layer.feedback = layer.weight.detach()
    x, delta = torch.randn(2, 3, 64, 64), torch.randn(2, 10)
    assert_same_bits(gradients(converted, x, delta), gradients(plain, x, delta))
    assert len(feedback_layers(converted)) == 21  # 20 convolutions, 3 of them 1x1 shortcuts, and the classifier


@pytest.mark.parametrize("architecture", ["cnn4", "resnet18"])
def test_channels_last_nets_with_b_equal_to_w_give_bp_gradients_to_the_bit(tiny, architecture):
    plain = build(tiny, architecture, (3, 16, 16)).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 16, 16, generator=gen(4)).to(memory_format=torch.channels_last)
    converted = assert_exact_feedback_is_backpropagation(plain, x)
    for name, layer in feedback_layers(converted).items():
        assert layer.feedback.stride() == layer.weight.stride(), f"B of {name} is laid out unlike W"


@pytest.mark.parametrize(("architecture", "shape"), NETS)
def test_under_bfloat16_autocast_b_equal_to_w_is_plain_autocast(tiny, architecture, shape):
    plain = build(tiny, architecture, shape)
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(4, *shape, generator=gen(4))
        assert plain(x).dtype == torch.bfloat16
        converted = convert(copy.deepcopy(plain), "fa", gen(1))
        delta = torch.randn(4, 10, generator=gen(2)).bfloat16()
        expected = gradients(plain, x, delta)
        with exact_feedback(converted):
            found = gradients(converted, x, delta)
    assert_same_bits(found, expected)
    assert {value.dtype for value in found.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(3, 4), (2, 3)), (nn.Conv2d(2, 4, 2, 2, padding="valid", groups=2), (2, 2, 4, 5))]
)
def test_float64_gradients_with_b_equal_to_w_pass_gradcheck(layer, shape):
    layer = convert(models.initialize(layer, gen()).double(), "fa", gen())
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))

    def forward(x, weight, bias):
        values = {"weight": weight, "bias": bias, "feedback": weight.detach()}
        return torch.func.functional_call(layer, values, x)

    x = torch.randn(shape, generator=gen(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(forward, (x, weight, bias))


# ---- another B is feedback alignment ----


def test_mlp_with_random_b_follows_the_equations_of_feedback_alignment():
    """Three layers in numpy: δ_3 = softmax - onehot, δ_l = (B_{l+1}ᵀ δ_{l+1}) * relu', gradient δ_l h_{l-1}ᵀ."""
    sizes = [6, 5, 4, 3]
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    convert(models.initialize(net, gen()).double(), "fa", gen(1), models.init_weight)
    layers = list(feedback_layers(net).values())
    x, labels = torch.randn(7, sizes[0], generator=gen(2), dtype=torch.float64), torch.arange(7) % 3
    x.requires_grad_()
    F.cross_entropy(net(x), labels).backward()

    weights, biases, feedback = (
        [getattr(layer, name).detach().numpy() for layer in layers] for name in ("weight", "bias", "feedback")
    )
    hidden = [x.detach().numpy()]
    for i in range(3):
        a = hidden[-1] @ weights[i].T + biases[i]
        hidden.append(np.maximum(a, 0) if i < 2 else a)
    delta = np.exp(hidden[3]) / np.exp(hidden[3]).sum(1, keepdims=True)
    delta[np.arange(7), labels.numpy()] -= 1
    delta /= 7
    for i in (2, 1, 0):
        np.testing.assert_allclose(layers[i].weight.grad, delta.T @ hidden[i], rtol=0, atol=1e-15)
        np.testing.assert_allclose(layers[i].bias.grad, delta.sum(0), rtol=0, atol=1e-15)
        delta = delta @ feedback[i]
        if i:
            delta = delta * (hidden[i] > 0)
    np.testing.assert_allclose(x.grad, delta, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"groups": 4, "stride": 2},
    ],
    ids=str,
)
def test_convolution_with_random_b_sends_the_error_through_b_alone(options):
    conv = convert(models.initialize(nn.Conv2d(4, 8, 3, **options), gen()).double(), "fa", gen(1), models.init_weight)
    x = torch.randn(2, 4, 9, 8, generator=gen(2), dtype=torch.float64)
    delta = torch.randn(conv(x).shape, generator=gen(3), dtype=torch.float64)
    found = gradients(conv, x, delta)
    torch.testing.assert_close(found["input"], nn.grad.conv2d_input(x.shape, conv.feedback, delta, **options))
    torch.testing.assert_close(found["weight"], nn.grad.conv2d_weight(x, conv.weight.shape, delta, **options))
    torch.testing.assert_close(found["bias"], delta.sum((0, 2, 3)))


@pytest.mark.parametrize(("architecture", "shape"), NETS)
def test_random_b_changes_every_gradient_but_the_classifiers(tiny, architecture, shape):
    plain = build(tiny, architecture, shape)
    converted = convert(copy.deepcopy(plain), "fa", gen(1), models.init_weight)
    x, delta = torch.randn(4, *shape, generator=gen(4)), torch.randn(4, 10, generator=gen(2))
    expected, found = gradients(plain, x, delta), gradients(converted, x, delta)
    for name, value in expected.items():
        if name.endswith("weight"):
            assert torch.equal(found[name], value) == (name == "head.weight"), name


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(3, 4), (2, 3)), (nn.Conv2d(2, 4, 3, padding=1), (2, 2, 4, 5))])
def test_weight_and_bias_gradients_of_a_layer_are_exact_whatever_b_is(layer, shape):
    plain = models.initialize(layer, gen())
    x = torch.randn(shape, generator=gen(2))
    delta = torch.randn(plain(x).shape, generator=gen(3))
    expected = gradients(plain, x, delta)
    found = gradients(convert(copy.deepcopy(plain), "fa", gen(1)), x, delta)
    assert not torch.equal(found.pop("input"), expected.pop("input"))
    assert_same_bits(found, expected)


def test_the_forward_pass_does_not_depend_on_b(tiny):
    plain = build(tiny, "resnet18", (3, 16, 16), "batch")
    x = torch.randn(4, 3, 16, 16, generator=gen(4))
    assert torch.equal(convert(copy.deepcopy(plain), "fa", gen(1))(x), plain(x))


def test_norm_and_activation_pass_the_error_exactly():
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    convert(net, "fa", gen(1))
    x = torch.randn(8, 6, generator=gen(2), dtype=torch.float64)
    delta = torch.randn(8, 3, generator=gen(3), dtype=torch.float64)
    found = gradients(net, x, delta)
    below = net[:3]
    expected = torch.autograd.grad(below(x), list(below.parameters()), delta @ net[3].feedback)
    for (name, _), value in zip(below.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-14)


def test_identity_shortcut_passes_the_error_exactly():
    block = models.initialize(models.BasicBlock(4, 4, 1, "none"), gen())
    convert(block, "fa", gen(1))
    for layer in feedback_layers(block).values():
        layer.feedback.zero_()  # nothing comes back through the residual branch
    x, delta = torch.randn(2, 4, 6, 6, generator=gen(2)), torch.randn(2, 4, 6, 6, generator=gen(3))
    expected = delta * (block(x) > 0)
    assert torch.equal(gradients(block, x, delta)["input"], expected)


def test_compiled_net_gives_the_eager_gradients(tiny):
    net = convert(build(tiny, "cnn4", (3, 8, 8)), "fa", gen(1))
    x, delta = torch.randn(4, 3, 8, 8, generator=gen(4)), torch.randn(4, 10, generator=gen(2))
    expected = gradients(net, x, delta)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    found = {name.removeprefix("_orig_mod."): value for name, value in gradients(compiled, x, delta).items()}
    assert_same_bits(found, expected)


# ---- B itself ----


def test_convert_and_build_leave_global_random_state_alone(tiny, global_random_state):
    before = global_random_state()
    net = build(tiny, "resnet18", (3, 8, 8), "batch")
    convert(copy.deepcopy(net), "fa", gen(1))
    convert(net, "fa", gen(1), models.init_weight)
    assert global_random_state() == before


def test_b_is_in_the_state_dict_and_not_among_the_parameters(tiny):
    net = convert(build(tiny, "cnn4", (3, 8, 8)), "fa", gen(1))
    keys = {f"{name}.feedback" for name in models.matrices(net)}
    assert len(keys) == 5
    assert keys <= net.state_dict().keys()
    assert not any("feedback" in name for name, _ in net.named_parameters())
    other = convert(build(tiny, "cnn4", (3, 8, 8), seed=5), "fa", gen(2))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.head.feedback, net.head.feedback)


def test_parameters_stay_the_same_objects(tiny):
    net = build(tiny, "cnn4", (3, 8, 8))
    before = dict(net.named_parameters())
    assert convert(net, "fa", gen(1)) is net
    after = dict(net.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is p for name, p in before.items())


@pytest.mark.parametrize("init", [None, models.init_weight], ids=["entries of W", "init"])
def test_b_follows_the_generator(tiny, init):
    first, again, other = (convert(build(tiny, "cnn4", (3, 8, 8)), "fa", gen(s), init).state_dict() for s in (1, 1, 2))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name], other[name]) == (not name.endswith("feedback")), name


@pytest.mark.parametrize("layer", [nn.Linear(60, 80), nn.Conv2d(16, 32, 3, groups=2)], ids=["linear", "grouped conv"])
def test_with_init_b_has_the_uniform_law_of_forward_initialisation(layer):
    weight = models.initialize(layer, gen()).weight.detach().clone()
    convert(layer, "fa", gen(1), models.init_weight)
    bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
    b = layer.feedback.flatten().double().numpy()
    assert np.abs(b).max() <= bound
    assert stats.kstest(b, stats.uniform(-bound, 2 * bound).cdf).pvalue > 0.01
    assert abs(np.corrcoef(b, weight.flatten())[0, 1]) < 4 / math.sqrt(len(b))


def test_without_init_b_holds_the_entries_of_w_in_another_order():
    layer = nn.Conv2d(8, 16, 3)
    weight = nn.init.normal_(layer.weight.detach(), std=3.0, generator=gen())
    convert(layer, "fa", gen(1))
    assert layer.feedback.shape == weight.shape
    assert torch.equal(layer.feedback.flatten().sort().values, weight.flatten().sort().values)
    correlation = np.corrcoef(layer.feedback.flatten(), weight.flatten())[0, 1]
    assert abs(correlation) < 4 / math.sqrt(weight.numel())


@pytest.mark.parametrize("init", [None, models.init_weight], ids=["entries of W", "init"])
def test_every_layer_has_a_b_of_its_own(tiny, init):
    net = convert(build(tiny, "resnet18", (3, 8, 8)), "fa", gen(1), init)
    layers = feedback_layers(net)
    assert list(layers) == list(models.matrices(net))
    assert {"head", "stem", "block3.shortcut.conv", "block5.shortcut.conv", "block7.shortcut.conv"} <= layers.keys()
    assert len({layer.feedback.data_ptr() for layer in layers.values()}) == len(layers) == 21
    for name, layer in layers.items():
        same_shape = [m for n, m in layers.items() if n != name and m.feedback.shape == layer.feedback.shape]
        assert not any(torch.equal(m.feedback, layer.feedback) for m in same_shape), name
        assert not torch.equal(layer.feedback, layer.weight), name


def test_b_does_not_move_with_w(tiny):
    net = convert(build(tiny, "cnn4", (3, 8, 8)), "fa", gen(1))
    before = {name: layer.feedback.clone() for name, layer in feedback_layers(net).items()}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    assert all(torch.equal(layer.feedback, before[name]) for name, layer in feedback_layers(net).items())


def test_exact_feedback_puts_b_back_even_after_an_error(tiny):
    net = convert(build(tiny, "cnn4", (3, 8, 8)), "fa", gen(1))
    before = {name: layer.feedback for name, layer in feedback_layers(net).items()}
    with contextlib.suppress(KeyError), exact_feedback(net):
        assert torch.equal(net.head.feedback, net.head.weight)
        raise KeyError
    assert all(layer.feedback is before[name] for name, layer in feedback_layers(net).items())


def test_rule_bp_leaves_the_model_as_it_is(tiny):
    net = build(tiny, "cnn4", (3, 8, 8))
    keys = list(net.state_dict())
    convert(net, "bp")
    assert feedback_layers(net) == {}
    assert type(net.head) is nn.Linear
    assert list(net.state_dict()) == keys


# ---- refusals ----


def test_an_unknown_rule_is_refused(one_sentence):
    with pytest.raises(ValueError, match="rule is 'dfa'") as caught:
        convert(nn.Linear(2, 2), "dfa", gen())
    one_sentence(caught.value, "bp", "fa")


def test_a_missing_generator_is_refused(one_sentence):
    with pytest.raises(ValueError, match="pass generator=") as caught:
        convert(nn.Linear(2, 2), "fa")
    one_sentence(caught.value)


def test_a_second_conversion_is_refused(one_sentence):
    net = convert(nn.Sequential(nn.Linear(2, 2)), "fa", gen())
    with pytest.raises(ValueError, match="layer '0' has feedback weights already") as caught:
        convert(net, "fa", gen())
    one_sentence(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        nn.MultiheadAttention(4, 2),
        nn.ConvTranspose2d(2, 3, 3),
        nn.Conv1d(2, 3, 3),
        nn.Conv1d(1, 1, 3),
        nn.Conv3d(2, 3, 3),
        nn.LSTM(3, 4),
        nn.Bilinear(2, 3, 4),
    ],
    ids=str,
)
def test_a_layer_that_would_go_on_with_backpropagation_is_refused(layer, one_sentence):
    net = nn.Sequential(nn.Linear(2, 2), layer)
    with pytest.raises(ValueError, match=f"layer '1' is a {type(layer).__name__}") as caught:
        convert(net, "fa", gen())
    one_sentence(caught.value, "'fa'")
    assert type(net[0]) is nn.Linear, "a refused model is left as it was"
    convert(net, "bp")  # backpropagation is what it would do anyway


def test_a_bare_matrix_parameter_is_refused(one_sentence):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing = nn.Parameter(torch.eye(3))

    with pytest.raises(ValueError, match="layer 'model' is a Net") as caught:
        convert(Net(), "fa", gen())
    one_sentence(caught.value, "'fa'")


def test_embeddings_and_norms_are_let_through():
    net = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm((3, 4)), nn.Linear(4, 2))
    assert list(feedback_layers(convert(net, "fa", gen()))) == ["2"]


def test_a_model_on_the_meta_device_is_refused(one_sentence):
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="layer '0' has no weights yet") as caught:
        convert(net, "fa", gen())
    one_sentence(caught.value)


@pytest.mark.parametrize("layer", [nn.LazyLinear(2), nn.LazyConv2d(2, 3)], ids=["linear", "convolution"])
def test_a_lazy_layer_without_weights_is_refused(layer, one_sentence):
    with pytest.raises(ValueError, match="layer '0' has no weights yet") as caught:
        convert(nn.Sequential(layer), "fa", gen())
    one_sentence(caught.value)


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv2d(3, 4, 3)], ids=["linear", "convolution"])
def test_the_memory_layout_of_b_does_not_matter(layer):
    """B given in another order in memory is the same B."""
    x = torch.randn(2, *([5] if isinstance(layer, nn.Linear) else [3, 6, 6]), requires_grad=True)
    model = convert(nn.Sequential(layer), "fa", torch.Generator().manual_seed(0))
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    b = layer.feedback
    layer.feedback = b.t().contiguous().t() if b.dim() == 2 else b.contiguous(memory_format=torch.channels_last)
    assert layer.feedback.stride() != b.stride()
    (found,) = torch.autograd.grad(model(x).square().sum(), x)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv2d(3, 4, 3)], ids=["linear", "convolution"])
def test_a_b_that_is_loaded_or_written_or_assigned_counts_from_the_next_pass(layer):
    x = torch.randn(2, *([5] if isinstance(layer, nn.Linear) else [3, 6, 6]), requires_grad=True)
    model = convert(nn.Sequential(layer), "fa", gen(0))

    def sent_back():
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        return torch.autograd.grad(y.float().sum(), x)[0]

    once = sent_back()
    model.load_state_dict({**model.state_dict(), "0.feedback": 2 * layer.feedback})
    assert torch.equal(sent_back(), 2 * once)
    layer.feedback.mul_(2)
    assert torch.equal(sent_back(), 4 * once)
    layer.feedback = 2 * layer.feedback
    assert torch.equal(sent_back(), 8 * once)
    with exact_feedback(model):
        assert not torch.equal(sent_back(), 8 * once)
    assert torch.equal(sent_back(), 8 * once)
    assert torch.equal(copy.deepcopy(model)[0].feedback, layer.feedback)
