"""The backward pass against explicit references: B = W is backpropagation to the bit, another B feedback alignment."""

import contextlib
import copy
import pickle
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from rankcollapse import check, convert, exact_feedback
from rankcollapse.experiment.training import deterministic
from rankcollapse.library import models
from rankcollapse.library.feedback import feedback_layers

NETS = ["mlp", "cnn", "resnet18"]
SHAPE = 3, 32, 32
pytestmark = pytest.mark.filterwarnings("ignore:rule 'kp' acts after each step")


@pytest.fixture(autouse=True)
def seeded():
    """Layers that a test makes, and no generator fills, have the same weights in every run."""
    torch.manual_seed(0)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def build(plain):
    """A function from an architecture to a small net of the grid for images of SHAPE.

    Of width 8: on processors with AVX2 alone torch 2.14 crashes in strided 1 x 1 convolutions of 4 channels that lie
    last.
    """
    return lambda architecture, normalization="none", width=8: plain(
        dataset="cifar10", architecture=architecture, normalization=normalization, width=width, depth=None
    )


def gradients(model, x, delta=None, call=None):
    """The gradients of every parameter and of the input, for the error `delta` of the output, or for its sum.

    `call`: what runs the model, if not the model itself.
    """
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    model.zero_grad()
    y = (call or model)(x)
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


def assert_exact_feedback_is_backpropagation(plain, x, device):
    """Convert a copy, set B = W, and compare all gradients with those of the model as it was."""
    plain, x = plain.to(device), x.to(device)
    delta = torch.randn(plain(x).shape, generator=gen(2), dtype=x.dtype).to(device)
    converted = convert(copy.deepcopy(plain), "fa", gen(1))
    with deterministic():  # a GPU's backpropagation has not even its own bits without
        for error in (delta, None):
            expected = gradients(plain, x, error)
            with exact_feedback(converted):
                assert_same_bits(gradients(converted, x, error), expected)
    return converted


def has_bits(conv, device):
    """Whether the bits of backpropagation can be asked for: on a GPU a reflection's derivative has none of its own, and
    `same` pads within a kernel, feedback before it, which sums in another order.
    """
    same = (conv.padding_mode, conv.padding) == ("zeros", "same")
    return device == "cpu" or not (same or conv.padding_mode == "reflect")


# ---- B = W is backpropagation, to the bit ----


def test_a_converted_layer_may_be_called_by_keyword():
    for rule in ("fa", "bp"):
        net = convert(nn.ModuleList([nn.Conv2d(1, 2, 3), nn.Linear(4, 3)]), rule, torch.Generator().manual_seed(0))
        for layer, x in zip(net, (torch.ones(1, 1, 5, 5), torch.ones(2, 4)), strict=True):
            assert torch.equal(layer(input=x), layer(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 3, 2, 5), (0, 5), (5, 3)])
def test_linear_with_b_equal_to_w_gives_bp_gradients_to_the_bit(shape, bias, device):
    """The last is not contiguous."""
    x = torch.randn(shape)
    assert_exact_feedback_is_backpropagation(nn.Linear(5, 7, bias=bias), x if shape[-1] == 5 else x.t(), device)


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
    return conv, (*draw(st.sampled_from([(), (1,), (3,)])), inputs, *size)  # a single image, or a batch


@settings(max_examples=150)
@given(convolutions())
def test_any_convolution_gives_bp_gradients_to_the_bit_by_w_and_sends_the_error_through_b_alone_by_another(
    device, drawn
):
    conv, shape = drawn
    if has_bits(conv, device):
        assert_exact_feedback_is_backpropagation(conv, torch.randn(shape, generator=gen(3)), device)
    plain = copy.deepcopy(conv).double()
    layer = convert(copy.deepcopy(plain), "fa", gen(1), models.init_weight).to(device)
    x = torch.randn(shape, generator=gen(2), dtype=torch.float64)
    delta = torch.randn(plain(x).shape, generator=gen(3), dtype=torch.float64)
    found, expected = gradients(layer, x.to(device), delta.to(device)), gradients(explicit(plain, layer), x, delta)
    exact = gradients(plain, x, delta)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value)
        assert name == "input" or torch.allclose(value, exact[name]), name
    assert not torch.allclose(expected["input"], exact["input"]) or not exact["input"].any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize("architecture", NETS)
def test_whole_nets_with_b_equal_to_w_give_bp_gradients_to_the_bit(build, architecture, normalization, layout, device):
    plain = build(architecture, normalization).to(memory_format=layout)
    x = torch.randn(4, *SHAPE, generator=gen(4)).to(memory_format=layout)
    converted = assert_exact_feedback_is_backpropagation(plain, x, device)
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, converted.get_buffer(name)), f"running statistics {name} differ"
    for name, layer in feedback_layers(converted).items():
        assert layer.feedback.stride() == layer.weight.stride(), f"B of {name} is laid out unlike W"


@pytest.mark.parametrize("architecture", NETS)
def test_under_bfloat16_autocast_b_equal_to_w_is_plain_autocast(build, architecture, device):
    plain = build(architecture).to(device)
    with deterministic(), torch.autocast(device, torch.bfloat16):
        x = torch.randn(4, *SHAPE, generator=gen(4)).to(device)
        assert plain(x).dtype == torch.bfloat16
        converted = convert(copy.deepcopy(plain), "fa", gen(1))
        delta = torch.randn(4, 10, generator=gen(2)).bfloat16().to(device)
        expected = gradients(plain, x, delta)
        with exact_feedback(converted):
            found = gradients(converted, x, delta)
    assert_same_bits(found, expected)
    assert {value.dtype for value in found.values()} == {torch.float32}


# ---- another B is feedback alignment ----


def test_mlp_with_random_b_follows_the_equations_of_feedback_alignment(device):
    """Three layers in numpy: δ_3 = softmax - onehot, δ_l = (B_{l+1}ᵀ δ_{l+1}) * relu', gradient δ_l h_{l-1}ᵀ."""
    sizes = [6, 5, 4, 3]
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    convert(models.initialize(net, gen()).double(), "fa", gen(1), models.init_weight).to(device)
    layers = list(feedback_layers(net).values())
    x, labels = torch.randn(7, sizes[0], generator=gen(2), dtype=torch.float64), torch.arange(7) % 3
    images = x.to(device).requires_grad_()
    F.cross_entropy(net(images), labels.to(device)).backward()

    weights, biases, feedback = (
        [getattr(layer, name).detach().cpu().numpy() for layer in layers] for name in ("weight", "bias", "feedback")
    )
    hidden = [x.detach().numpy()]
    for i in range(3):
        a = hidden[-1] @ weights[i].T + biases[i]
        hidden.append(np.maximum(a, 0) if i < 2 else a)
    delta = np.exp(hidden[3]) / np.exp(hidden[3]).sum(1, keepdims=True)
    delta[np.arange(7), labels.numpy()] -= 1
    delta /= 7
    for i in (2, 1, 0):
        np.testing.assert_allclose(layers[i].weight.grad.cpu(), delta.T @ hidden[i], rtol=0, atol=1e-15)
        np.testing.assert_allclose(layers[i].bias.grad.cpu(), delta.sum(0), rtol=0, atol=1e-15)
        delta = delta @ feedback[i]
        if i:
            delta = delta * (hidden[i] > 0)
    np.testing.assert_allclose(images.grad.cpu(), delta, rtol=0, atol=1e-15)


# ---- references of one's own: in float64, with plain autograd ----


def explicit(plain, converted):
    """A copy in which the output of each layer is W h, and its derivative by h is the B of the converted model."""
    reference = copy.deepcopy(plain).double()
    for name, layer in feedback_layers(converted).items():
        own = reference.get_submodule(name)
        back = copy.deepcopy(own)
        back.weight = nn.Parameter(layer.feedback.cpu().double(), requires_grad=False)

        def forward(h, own=own, back=back):
            return type(own).forward(own, h.detach()) + back(h) - back(h).detach()

        own.forward = forward
    return reference


class Layers(nn.Module):
    """What users have beyond the nets of the grid: groups, no bias, a shared weight, padding modes, tokens."""

    def __init__(self):
        super().__init__()
        self.circular = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="circular")
        self.grouped = nn.Conv2d(8, 8, 3, padding="same", groups=2, bias=False)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="reflect", bias=False)
        self.second.weight = self.first.weight
        self.tokens = nn.Linear(8, 6, bias=False)
        self.head = nn.Linear(6 * 8 * 8, 10)

    def forward(self, x):
        for convolution in (self.circular, self.grouped, self.first, self.second):
            x = torch.relu(convolution(x))
        return self.head(torch.relu(self.tokens(x.flatten(2).mT)).flatten(1))


@pytest.fixture
def either(build):
    """A function from a name to a net: `layers`, or one of the grid, as in `cnn batch`."""

    def make(name):
        architecture, _, normalization = name.partition(" ")
        if name == "layers":
            return models.initialize(Layers(), gen())
        return build(architecture, normalization or "none", width=8)

    return make


def assert_feedback_alignment(found, plain, converted, x, delta, tolerance=None):
    """Gradients by name beside those of `explicit`: all within `tolerance`, a share of their norm, if it is given.

    Cosine and norm are held to bounds that the gradients of backpropagation miss, in all layers but the last, to which
    both rules send the same error.
    """
    x, delta = x.cpu().double(), delta.cpu().double()
    expected = gradients(explicit(plain, converted), x, delta)
    exact = gradients(copy.deepcopy(plain).double(), x, delta)
    last = list(feedback_layers(converted))[-1]
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.isfinite().all(), name
        a, b, bp = (v.cpu().double().flatten() for v in (value, expected[name], exact[name]))
        if tolerance:
            assert float((a - b).norm()) <= tolerance * float(b.norm()), name
        if name.endswith("weight") and value.dim() > 1 and not name.startswith(last):
            assert torch.cosine_similarity(a, b, dim=0) > 0.97, name
            assert abs(float(a.norm() / b.norm()) - 1) < 0.06, name
            assert torch.cosine_similarity(bp, b, dim=0) < 0.8, f"{name}: backpropagation would pass"


@pytest.mark.parametrize("name", ["cnn", "cnn batch", "resnet18", "layers"])
def test_in_bfloat16_and_channels_last_gradients_are_those_of_the_reference(either, name, device):
    plain = either(name)
    net = convert(copy.deepcopy(plain), "fa", gen(1), models.init_weight)
    net.to(device, memory_format=torch.channels_last)
    x, delta = torch.randn(16, *SHAPE, generator=gen(4)), torch.randn(16, 10, generator=gen(5))

    def call(images):
        with torch.autocast(device, torch.bfloat16):
            return net(images)

    images = x.to(device, memory_format=torch.channels_last)
    assert call(images).dtype == torch.bfloat16
    found = gradients(net, images, delta.to(device, torch.bfloat16), call)
    assert_feedback_alignment(found, plain, net, x, delta)


COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


@pytest.mark.parametrize(
    ("name", "backend", "precision"),
    [
        pytest.param(
            "cnn batch", "inductor", torch.float32, marks=pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
        ),
        ("cnn", "aot_eager", torch.bfloat16),
        ("resnet18 batch", "aot_eager", torch.float32),
        ("layers", "aot_eager", torch.float32),
    ],
)
def test_compiled_gradients_are_those_of_the_reference(either, name, backend, precision, device):
    torch.compiler.reset()
    plain = either(name)
    net = convert(copy.deepcopy(plain), "fa", gen(1), models.init_weight).to(device)
    x, delta = torch.randn(8, *SHAPE, generator=gen(4)), torch.randn(8, 10, generator=gen(5))
    compiled = torch.compile(net, fullgraph=True, backend=backend)

    def call(images):
        with torch.autocast(device, torch.bfloat16, enabled=precision == torch.bfloat16):
            return compiled(images)

    found = gradients(net, x.to(device), delta.to(device, precision), call)
    exact = device == "cpu" and precision == torch.float32  # a GPU's products are in TF32
    assert_feedback_alignment(found, plain, net, x, delta, 1e-2 if exact else None)  # rounding may turn a ReLU over


# ---- B in memory ----


def sent_back(model, x):
    with torch.autocast(x.device.type, torch.bfloat16):
        y = model(x)
    return torch.autograd.grad(y.float().sum(), x)[0]


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv2d(3, 4, 3)], ids=["linear", "convolution"])
def test_exact_feedback_is_that_of_w_as_a_fused_optimizer_leaves_it(layer, device):
    """It changes W without telling the version counter."""
    x = torch.randn(2, *([5] if isinstance(layer, nn.Linear) else [3, 6, 6])).to(device).requires_grad_()
    model = convert(nn.Sequential(copy.deepcopy(layer)).to(device), "fa", gen(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    with exact_feedback(model):
        once = sent_back(model, x)
        model[0].weight.grad = -model[0].weight.detach()
        optimizer.step()
        assert torch.equal(sent_back(model, x), 2 * once)


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv2d(3, 4, 3)], ids=["linear", "convolution"])
def test_a_b_that_is_loaded_or_written_or_assigned_counts_from_the_next_pass(layer, device):
    x = torch.randn(2, *([5] if isinstance(layer, nn.Linear) else [3, 6, 6])).to(device).requires_grad_()
    model = convert(nn.Sequential(copy.deepcopy(layer)).to(device), "fa", gen(0))
    layer = model[0]
    layer.feedback.copy_(torch.randint(-2, 3, layer.feedback.shape, generator=gen(1)))  # sums are exact in any order
    once = sent_back(model, x)
    model.load_state_dict({**model.state_dict(), "0.feedback": 2 * layer.feedback})
    assert torch.equal(sent_back(model, x), 2 * once)
    layer.feedback.mul_(2)
    assert torch.equal(sent_back(model, x), 4 * once)
    other = 2 * layer.feedback  # in another order in memory
    layer.feedback = other.t().contiguous().t() if other.dim() == 2 else other.to(memory_format=torch.channels_last)
    assert layer.feedback.stride() != other.stride()
    assert torch.equal(sent_back(model, x), 8 * once)
    layer.feedback = other
    assert torch.equal(sent_back(model, x), 8 * once)
    with contextlib.suppress(KeyError), exact_feedback(model):
        assert not torch.equal(sent_back(model, x), 8 * once)
        raise KeyError
    assert layer.feedback is other, "even after an error"
    assert torch.equal(sent_back(model, x), 8 * once)
    assert torch.equal(copy.deepcopy(model)[0].feedback, layer.feedback)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
@pytest.mark.parametrize("writes", range(4))
def test_a_copy_does_not_go_on_with_the_bs_of_its_original(duplicate, device, writes):
    """Not even where it was cast for autocast, and where as many writes have passed since as at the original."""
    x, model = (
        torch.randn(2, 5).to(device).requires_grad_(),
        convert(nn.Sequential(nn.Linear(5, 4)).to(device), "fa", gen()),
    )
    for _ in range(writes):
        model[0].feedback.mul_(1)
    once = sent_back(model, x)
    for more in range(1, 4):
        other = duplicate(model)
        for _ in range(more):
            other[0].feedback.mul_(2)
        assert torch.equal(sent_back(other, x), 2**more * once), more


# ---- ways to run a model that must not change its rule ----


def in_another_memory(call, x):
    """What is saved for the backward pass comes back at another address."""
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        return call(x)


@pytest.mark.parametrize(
    ("change", "call"),
    [
        (lambda m: m, lambda m, x: checkpoint(m, x, use_reentrant=False)),
        (lambda m: m, lambda m, x: checkpoint(m, x, use_reentrant=True)),
        (lambda m: m, in_another_memory),
        (copy.deepcopy, lambda m, x: m(x)),
    ],
    ids=["checkpoint", "checkpoint, reentrant", "saved-tensor hooks", "deepcopy"],
)
def test_gradients_are_those_of_the_reference_however_the_model_runs(change, call, device):
    """The first outputs are changed in place; there are more dimensions than two."""
    layers = nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)
    plain = models.initialize(nn.Sequential(*layers), gen()).double()
    net = change(convert(copy.deepcopy(plain), "fa", gen(1)).to(device))
    x, delta = (torch.randn(3, 2, n, generator=gen(n), dtype=torch.float64).to(device) for n in (5, 3))
    found = gradients(net, x, delta, lambda h: call(net, h))
    assert_feedback_alignment(found, plain, net, x, delta, 1e-12)


# ---- ways that would be backpropagation, and so raise ----


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: torch.vmap(m)(x),
        lambda m, x: torch.func.jacrev(m)(x),
        lambda m, x: torch.func.grad(lambda p: torch.func.functional_call(m, p, x).sum())(dict(m.named_parameters())),
        lambda m, x: torch.export.export(m, (x,)),
        lambda m, x: torch.jit.trace(m, x),
        lambda m, x: torch.autograd.grad(
            torch.autograd.grad(m(x).square().sum(), x, create_graph=True)[0].sum(), list(m.parameters())
        ),
    ],
    ids=["vmap", "func.jacrev", "func.grad", "export", "jit.trace", "double backward"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_would_go_around_b_raises(use):
    plain = models.initialize(nn.Sequential(nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, 3, bias=False)), gen())
    x = torch.randn(2, 4, generator=gen(2), requires_grad=True)
    use(plain, x)
    net = convert(plain, "fa", gen(1))
    with pytest.raises(RuntimeError):
        use(net, x)
    net(x).sum().backward()  # and afterwards it trains as before


class Bypass(nn.Module):
    """Hands the weight of `middle` to a function, without calling the layer. `also`: calls the layer as well."""

    def __init__(self, also=False):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.middle, self.last, self.also = nn.Linear(4, 4), nn.Linear(4, 2), also

    def forward(self, x):
        h = torch.tanh(self.norm(self.first(x)))
        return self.last(F.linear(h, self.middle.weight) + (self.middle(h) if self.also else 0))


# A frozen weight has no gradient to tell by, and compiled code no hook: there `check` alone names the layer.
@pytest.mark.parametrize(
    ("rule", "compiled"), [("fa", False), ("fa", True), ("kp", False), ("kp", True), ("frozen-fa", False)]
)
def test_a_weight_used_without_calling_its_layer_raises_at_the_backward_pass(rule, compiled):
    torch.compiler.reset()
    net = convert(Bypass(), rule, gen(1))
    x = torch.randn(3, 4)
    with torch.no_grad():
        net(x)  # no pass of training
    run = torch.compile(net, backend="aot_eager") if compiled else net
    for _ in range(2):
        with pytest.raises(RuntimeError, match="'middle' was never called"):
            run(x).sum().backward()
    assert check(net, x) == ["middle: it was not called"]


@pytest.mark.parametrize("rule", ["fa", "frozen-fa"])
def test_check_names_a_layer_whose_weight_is_used_outside_of_it_as_well(rule):
    found = check(convert(Bypass(also=True), rule, gen(1)), torch.randn(3, 4))
    assert [line.split(":")[0] for line in found] == ["middle"]
    assert "outside" in found[0]


# ---- check ----


@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize("architecture", NETS)
def test_check_finds_nothing_wrong_with_the_nets_of_the_grid(build, architecture, normalization, device):
    for rule in ("fa", "kp", "frozen-fa"):
        net = convert(build(architecture, normalization), rule, gen(1), models.init_weight)
        net.to(device, memory_format=torch.channels_last)
        assert check(net, torch.randn(4, *SHAPE, generator=gen(2)).to(device)) == []


@pytest.mark.parametrize("make", [Layers, torchvision.models.resnet18, torchvision.models.mobilenet_v3_small])
def test_check_finds_nothing_wrong_with_other_nets(make):
    assert check(convert(make(), "fa", gen(1)), torch.randn(2, *SHAPE)) == []


def test_check_finds_nothing_wrong_with_a_weight_that_is_an_embedding_as_well():
    tied = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    tied[2].weight = tied[0].weight
    assert check(convert(tied, "fa", gen(1)), torch.arange(5)) == []


def test_check_takes_models_of_several_inputs_and_outputs():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.a, self.b = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, batch, scale):
            h = torch.tanh(self.a(self.embedding(batch["tokens"]) * scale[0]))
            return {"logits": self.b(h), "states": [h, batch["tokens"], None]}

    net = convert(Model(), "fa", gen(1))
    inputs = {"tokens": torch.tensor([1, 4, 2])}, [torch.tensor(0.5)]
    assert check(net, *inputs) == []
    net.b.forward = nn.Linear.forward.__get__(net.b)
    assert {line.split(":")[0] for line in check(net, *inputs)} == {"embedding", "a"}


def test_check_takes_a_part_that_learns_by_dfa_and_is_called_twice_in_a_model_that_learns_by_another_rule():
    part = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6))
    convert(part, "dfa", gen(1), example=torch.zeros(2, 6))
    top = convert(nn.Sequential(nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), "fa", gen(2))
    net, x = nn.Sequential(part, part, top), torch.randn(5, 6, generator=gen(3))
    assert check(net, x) == []
    part[2].forward = nn.Linear.forward.__get__(part[2])
    assert {line.split(":")[0] for line in check(net, x)} == {"0.0"}


def test_check_names_the_layers_below_one_that_goes_around_its_b():
    """Sabotaged in its forward pass, a layer learns as it should; those below get BP's error."""
    first, second, third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
    net = convert(nn.Sequential(first, nn.Tanh(), second, third).double(), "fa", gen(1))
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    assert check(net, x) == []
    net[2].forward = nn.Conv2d.forward.__get__(net[2])
    assert check(net, x) == [f"0: the gradient of its {kind} is not that of its rule" for kind in ("weight", "bias")]
    with pytest.raises(RuntimeError, match="'2' was never called"):
        net(x).sum().backward()


@pytest.mark.parametrize("training", [True, False])
def test_check_leaves_the_model_and_the_random_state_as_they_were(global_random_state, training):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2))
    convert(net, "kp", gen(1)).train(training)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    values = {n: v.clone() for n, v in net.state_dict().items()}
    held = {n: (v.data_ptr(), v.dtype) for n, v in net.state_dict().items()}
    state = global_random_state()
    assert check(net, x) == []
    assert global_random_state() == state
    assert_same_bits(net.state_dict(), values)
    assert {n: (v.data_ptr(), v.dtype) for n, v in net.state_dict().items()} == held
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert all(p.grad is None for p in [x, *net.parameters()] if p is not net[0].weight)
    assert {m.training for m in net.modules()} == {training}
    assert not any(layer.called for layer in feedback_layers(net).values())  # the guard waits for a pass of its own


@pytest.mark.parametrize("rule", ["bp", "frozen", "frozen-bp"])
def test_check_refuses_a_model_without_feedback_weights(rule, refused):
    net = convert(nn.Sequential(nn.Linear(2, 2)), rule)
    refused(lambda: check(net, torch.randn(1, 2)), "no feedback weights", error=ValueError)
