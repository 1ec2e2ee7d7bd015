"""The nets of the grid, their depth, and the normalisation of their activities, against explicit references."""

import copy
import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankcollapse import RULES, check, convert
from rankcollapse.experiment import network
from rankcollapse.experiment.training import deterministic, fit
from rankcollapse.library import models, norms, signals
from rankcollapse.library.feedback import feedback_layers

NETS = ["mlp", "cnn", "resnet18"]
KINDS = ["batch", "layer", "group", "rms", "whiten"]
PROBES = {"gradient_every": 1, "signals_every": 1, "gradient_stride": 4, "gradient_window": 8}


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=gen(seed), dtype=torch.float64)


@pytest.fixture
def build(plain):
    """A function from an architecture to a small net of the grid for CIFAR's images."""
    return lambda architecture, normalization="none", width=4, **more: plain(
        dataset="cifar10",
        architecture=architecture,
        normalization=normalization,
        width=width,
        **{"depth": None, **more},
    )


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


# ---- the nets ----


def test_cnn_has_the_parameters_counted_by_hand(build):
    """Convolutions of 27, 288, 576 and 576 entries per output, their norms, and a classifier of 128 x 2 x 2 inputs."""
    expected = 27 * 32 + 288 * 64 + 576 * 64 + 576 * 128 + 2 * (32 + 64 + 64 + 128) + 512 * 10 + 10
    assert sum(p.numel() for p in build("cnn", "batch", width=32).parameters()) == expected


@pytest.mark.parametrize("stem", ["cifar", "cifar2", "imagenet"])
def test_resnet18_computes_what_torchvisions_computes_with_the_same_stem(plain, stem):
    """Weights carried over in order: the two nets list their layers alike. ImageNet's stem is torchvision's own."""
    theirs = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=10)
    if stem != "imagenet":
        stride = 2 if stem == "cifar2" else 1
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, stride, padding=1, bias=False), nn.Identity()
    ours = plain(dataset="cifar10", architecture="resnet18", normalization="batch", width=64, stem=stem)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 32, 32, generator=gen(1))
    torch.testing.assert_close(ours(x), theirs(x))
    if stem != "imagenet":
        assert sum(p.numel() for p in ours.parameters()) == 11_173_962, "as every CIFAR ResNet-18 has"


@pytest.mark.parametrize("layer", [nn.PReLU(), nn.Conv1d(2, 2, 3)], ids=lambda m: type(m).__name__)
def test_initialize_refuses_a_layer_whose_values_it_does_not_know(layer, refused):
    net = nn.Sequential(nn.Linear(2, 2), layer)
    refused(lambda: models.initialize(net, gen()), f"layer '1' is a {type(layer).__name__}", error=ValueError)


def test_nets_that_differ_in_biases_alone_start_with_the_same_weights():
    nets = [nn.Sequential(nn.Linear(3, 4, bias=bias), nn.Linear(4, 5, bias=bias)) for bias in (True, False)]
    plain, bare = (models.initialize(net, gen()) for net in nets)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(plain, bare, strict=True))
    assert 0.2 < plain[0].bias.abs().max() < 3**-0.5


def test_initialize_leaves_nothing_of_what_the_memory_held():
    """NaN all through, then two fills from one seed: equal, finite, and norms at their constants."""
    others = [nn.GroupNorm(2, 4), nn.LayerNorm((4, 6, 6)), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True)]
    others += [nn.RMSNorm((4, 6, 6)), norms.RMSNorm(4), norms.Whitening(4)]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), *others, nn.Flatten(), nn.Linear(144, 2, bias=False))
    filled = []
    for _ in range(2):
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.detach().fill_(torch.nan if tensor.is_floating_point() else 7)
        filled.append({n: v.clone() for n, v in models.initialize(net, gen()).state_dict().items()})
    assert_same_bits(*filled)
    for name, value in net.state_dict().items():
        if name.endswith("running_matrix"):
            assert torch.equal(value, torch.eye(4)[None]), name
        elif name[0] in "1234567":
            one = name.endswith(("weight", "running_var"))
            assert torch.equal(value, torch.full_like(value, one)), name
        else:
            assert len(value.unique()) > len(value) / 2, name


# ---- depth ----


def old_cnn(normalization, width=4):
    """The net as it was written before it had a depth: four convolutions, one after the other."""
    sizes, net = [3, width, 2 * width, 2 * width, 4 * width], nn.Sequential()
    for i in range(4):
        bias = normalization == "none"
        net.add_module(f"conv{i + 1}", nn.Conv2d(sizes[i], sizes[i + 1], 3, stride=2, padding=1, bias=bias))
        net.extend([] if bias else [nn.BatchNorm2d(sizes[i + 1])])
        net.append(nn.ReLU())
    net.append(nn.Flatten())
    net.add_module("head", nn.Linear(4 * width * 2 * 2, 10))
    return models.initialize(net, gen())


def old_mlp(normalization, width=4):
    bias, sizes = normalization == "none", [3 * 32 * 32, width, width, width]
    net = nn.Sequential(nn.Flatten())
    for i in range(3):
        net.add_module(f"hidden{i + 1}", nn.Linear(sizes[i], sizes[i + 1], bias=bias))
        net.extend([] if bias else [nn.BatchNorm1d(sizes[i + 1])])
        net.append(nn.ReLU())
    net.add_module("head", nn.Linear(width, 10))
    return models.initialize(net, gen())


@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize(("architecture", "old", "depth"), [("cnn", old_cnn, 4), ("mlp", old_mlp, 3)])
def test_nets_of_the_depth_that_they_had_are_to_the_bit_what_they_were(build, architecture, old, depth, normalization):
    x, expected = torch.randn(8, 3, 32, 32, generator=gen(1)), old(normalization)
    output = expected(x)
    for given_depth in (None, depth):
        net = build(architecture, normalization, depth=given_depth)
        assert str(net) == str(expected)
        assert torch.equal(net(x), output)
        assert_same_bits(net.state_dict(), expected.state_dict())


# By hand, of each convolution: its channels, in multiples of the width, and its stride.
DEEP = {
    2: [(1, 4), (4, 4)],
    3: [(1, 2), (2, 2), (4, 4)],
    4: [(1, 2), (2, 2), (2, 2), (4, 2)],
    5: [(1, 2), (2, 2), (2, 2), (4, 2), (4, 1)],
    6: [(1, 2), (2, 2), (2, 2), (2, 1), (4, 2), (4, 1)],
    7: [(1, 2), (2, 2), (2, 1), (2, 2), (2, 1), (4, 2), (4, 1)],
    8: [(1, 2), (1, 1), (2, 2), (2, 1), (2, 2), (2, 1), (4, 2), (4, 1)],
    12: [(1, 2), (1, 1), (1, 1), (2, 2), (2, 1), (2, 1), (2, 2), (2, 1), (2, 1), (4, 2), (4, 1), (4, 1)],
}


@pytest.mark.parametrize("depth", DEEP)
def test_a_cnn_of_any_depth_has_the_stages_written_out_by_hand(build, depth):
    net = build("cnn", "batch", width=3, depth=depth)
    convolutions = [(name, m) for name, m in net.named_children() if isinstance(m, nn.Conv2d)]
    assert [name for name, _ in convolutions] == [f"conv{i}" for i in range(1, depth + 1)]
    assert [(m.out_channels, m.stride[0]) for _, m in convolutions] == [(3 * c, s) for c, s in DEEP[depth]]
    assert [m.kernel_size for _, m in convolutions] == [(3, 3)] * depth


def test_a_cnn_of_less_than_two_convolutions_is_refused(refused):
    for depth in (0, 1):
        call = lambda depth=depth: models.cnn((3, 32, 32), 10, width=4, depth=depth, normalization="none")  # noqa: E731
        refused(call, f"depth is {depth}", "two convolutions or more", error=ValueError)


@given(depth=st.integers(2, 12), side=st.integers(1, 70), breadth=st.integers(1, 70))
def test_pictures_shrink_16_fold_at_any_depth(depth, side, breadth):
    knobs = {"width": 1, "depth": depth, "normalization": "none"}
    net = models.skeleton("cnn", (1, side, breadth), 3, **knobs).to_empty(device="cpu")
    assert net.head.in_features == 4 * math.ceil(side / 16) * math.ceil(breadth / 16)
    assert models.initialize(net, gen())(torch.zeros(2, 1, side, breadth)).shape == (2, 3)
    assert len(models.matrices(net)) == depth + 1


@pytest.mark.parametrize(("architecture", "depth"), [("mlp", 1), ("mlp", 12), ("cnn", 2), ("cnn", 12)])
def test_nets_of_the_least_and_the_greatest_depth_learn_by_their_rule(build, architecture, depth, device):
    net = build(architecture, "batch", depth=depth)
    name = "hidden" if architecture == "mlp" else "conv"
    assert list(models.matrices(net)) == [*(f"{name}{i}" for i in range(1, depth + 1)), "head"]
    convert(net, "fa", gen(1), models.init_weight)
    with deterministic():
        assert check(net.to(device), torch.randn(4, 3, 32, 32, generator=gen(2)).to(device)) == []


# ---- norms against their formulas ----


def shaped(values, x):
    return values.view(-1, *[1] * (x.dim() - 2))


def over(x, axes, shift=True):
    """x less its mean, over its standard deviation, with the eps of all norms; without a shift over the mean square."""
    x = x - x.mean(axes, keepdims=True) if shift else x
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + 1e-5)


def zca(x, groups):
    """Channels [n, c, ...] less their mean, times the inverse root of their covariance in each group, by eigh."""
    rows = np.moveaxis(x, 1, -1).reshape(-1, groups, x.shape[1] // groups)
    found = np.empty_like(rows)
    for g in range(groups):
        centred = rows[:, g] - rows[:, g].mean(0)
        values, vectors = np.linalg.eigh(centred.T @ centred / len(centred) + 1e-5 * np.eye(rows.shape[2]))
        found[:, g] = centred @ (vectors / np.sqrt(values)) @ vectors.T
    return np.moveaxis(found.reshape(np.moveaxis(x, 1, -1).shape), -1, 1)


def by_group(x):
    """24 channels: two groups of twelve."""
    return over(x.reshape(len(x), 2, -1), 2).reshape(x.shape)


FORMULAS = {
    "batch": lambda x: over(x, (0, *range(2, x.ndim))),
    "layer": lambda x: over(x, tuple(range(1, x.ndim))),
    "group": by_group,
    "rms": lambda x: over(x, tuple(range(1, x.ndim)), shift=False),
    "whiten": lambda x: zca(x, 2),
}


def make(kind, x, **more):
    """The norm for x as `initialize` leaves it, in the type of x."""
    made = norms.NORMALIZATIONS[kind](x.shape[1], x.dim() == 4)
    return models.initialize(nn.Sequential(made), gen())[0].to(x.dtype)


def correlated(*shape, seed=0):
    """Channels that depend on each other mildly, with means and scales of their own: covariances of condition ~ 30."""
    x, c = randn(*shape, seed=seed), shape[1]
    mix = torch.eye(c, dtype=torch.float64) + 0.3 * randn(c, c, seed=seed + 1) / math.sqrt(c)
    mixed = torch.einsum("ij,nj...->ni...", mix, x) * shaped(0.7 + torch.arange(c) % 3 / 3, x) + shaped(randn(c), x)
    return mixed.contiguous()


@pytest.mark.parametrize("shape", [(96, 24), (16, 24, 3, 5)], ids=["vectors", "pictures"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_is_its_formula_with_a_gain_and_a_shift_per_channel(kind, shape):
    x = correlated(*shape)
    norm, expected = make(kind, x), FORMULAS[kind](x.numpy())
    if kind == "whiten":
        norm.steps = 40
    torch.testing.assert_close(norm(x), torch.from_numpy(expected), rtol=0, atol=1e-9)
    gain, shift = randn(24, seed=5), randn(24, seed=6)
    assert [name for name, _ in norm.named_parameters()] == ["weight", "bias"][: 1 if kind == "rms" else 2]
    with torch.no_grad():
        for parameter, value in zip(norm.parameters(), (gain, shift), strict=False):
            parameter.copy_(value)
    shift = shift * (kind != "rms")
    expected = torch.from_numpy(expected) * shaped(gain, x) + shaped(shift, x)
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-8)


def test_groups_have_about_sixteen_channels_and_are_two_or_more_from_eight_on():
    for power in range(3, 10):
        norm = norms.group(2**power, convolutional=True)
        assert norm.num_groups == max(2, 2**power // 16)
    assert [norms.group(n, True).num_groups for n in (1, 4, 7, 17, 24, 40, 96, 300)] == [1, 1, 1, 1, 2, 2, 6, 20]


def test_whitening_takes_groups_that_divide_the_channels_sixteen_at_most():
    sizes = {8: 8, 16: 16, 24: 12, 17: 1, 100: 10, 512: 16, 96: 16}
    for channels, size in sizes.items():
        assert norms.Whitening(channels).running_matrix.shape == (channels // size, size, size)


# ---- whitening ----


def covariances(y, groups):
    rows = y.movedim(1, -1).reshape(-1, groups, y.shape[1] // groups).transpose(0, 1)
    return [np.cov(each.detach().numpy().T, bias=True).reshape(y.shape[1] // groups, -1) for each in rows]


@pytest.mark.parametrize("shape", [(200, 32), (16, 32, 4, 4)], ids=["vectors", "pictures"])
def test_whitened_channels_have_mean_zero_and_covariance_the_identity(shape):
    """By many steps to rounding and eps; by five to 0.1, where the variances of a group are nearly alike."""
    many, few = (norms.Whitening(32, steps).double() for steps in (40, 5))
    y = many(correlated(*shape))
    assert y.movedim(1, -1).reshape(-1, 32).mean(0).abs().max() < 1e-12
    for found in covariances(y, 2):
        assert np.abs(found - np.eye(16)).max() < 1e-3
    for found in covariances(few(randn(*shape)), 2):
        assert np.abs(found - np.eye(16)).max() < 0.1


@given(st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=8), st.integers(0, 8))
def test_each_eigenvalue_goes_the_way_of_the_scalar_iteration(values, steps):
    """The inverse root of Σ is a function of Σ: of each eigenvalue λ it is what the scalar Newton steps make of λ."""
    vectors = torch.linalg.qr(randn(len(values), len(values))).Q
    values = torch.tensor(values, dtype=torch.float64)
    shares = values / values.sum()
    scalar = torch.ones_like(shares)
    for _ in range(steps):
        scalar = scalar * (3 - shares * scalar**2) / 2
    found = norms.inverse_root((vectors * values) @ vectors.T, steps)
    torch.testing.assert_close(found, (vectors * scalar / values.sum().sqrt()) @ vectors.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(9, 4), (3, 4, 2, 2)], ids=["vectors", "pictures"])
@pytest.mark.parametrize("kind", ["rms", "whiten"])
def test_the_backward_pass_is_the_derivative(kind, shape):
    """Through the statistics too."""
    x, gain, shift = correlated(*shape).requires_grad_(), randn(4, seed=7), randn(4, seed=8)
    norm = make(kind, x)
    parameters = dict(zip(("weight", "bias"), (gain, shift), strict=True))
    given_ = [v.requires_grad_() for name, v in parameters.items() if hasattr(norm, name)]

    def call(x, *values):
        fresh = copy.deepcopy(norm)
        return torch.func.functional_call(fresh, dict(zip(parameters, values, strict=False)), (x,))

    assert torch.autograd.gradcheck(call, (x, *given_))


def test_running_statistics_come_to_what_training_takes_from_a_large_batch():
    x = correlated(64, 32, 4, 4)
    norm = norms.Whitening(32).double()
    first = norm(x)
    torch.testing.assert_close(norm.running_mean.flatten(), 0.1 * x.mean((0, 2, 3)))
    once = norm.running_matrix - 0.9 * torch.eye(
        16, dtype=x.dtype
    )  # a tenth of the batch's matrix, which makes `first` of x
    rows = (x - shaped(x.mean((0, 2, 3)), x)).movedim(1, -1).reshape(-1, 2, 16)
    made = torch.einsum("gij,ngj->ngi", 10 * once, rows)
    torch.testing.assert_close(made.reshape(64, 4, 4, 32).movedim(-1, 1), first)
    for _ in range(200):
        assert torch.equal(norm(x), first), "training takes nothing from the running statistics"
    norm.eval()
    torch.testing.assert_close(norm(x), first, rtol=0, atol=1e-6)
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    torch.testing.assert_close(norm(x[3:4]), first[3:4], rtol=0, atol=1e-6)
    assert_same_bits(norm.state_dict(), state)


def test_whitening_refuses_a_single_row_in_training(refused):
    norm = norms.Whitening(4)
    refused(lambda: norm(torch.randn(1, 4)), "given one row", "two or more", error=ValueError)
    assert norm.eval()(torch.ones(1, 4)).tolist() == [[1] * 4]


def test_a_constant_channel_is_whitened_to_zero_and_its_gradient_is_finite():
    x = randn(32, 16)
    x[:, 3] = 2
    x.requires_grad_()
    y = make("whiten", x)(x)
    y.square().sum().backward()
    assert y[:, 3].abs().max() < 1e-9
    assert x.grad.isfinite().all()


# ---- norms in nets ----


@pytest.mark.parametrize("kind", ["rms", "whiten"])
@pytest.mark.parametrize("shape", [(64, 32), (16, 32, 4, 4)], ids=["vectors", "pictures"])
def test_bfloat16_costs_the_input_and_the_output_alone_their_digits(kind, shape, device):
    """Statistics are in float32, under autocast and without: the output is that of float64, rounded once."""
    x = (100 + correlated(*shape)).to(device, torch.bfloat16)
    norm = make(kind, x.float()).to(device)
    expected = copy.deepcopy(norm).double()(x.double())
    for enabled in (True, False):
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            found = copy.deepcopy(norm)(x)
        assert found.dtype == torch.bfloat16
        assert torch.equal(copy.deepcopy(norm).bfloat16()(x), found), "with parameters in bfloat16, here 1 and 0, too"
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_and_contiguous_pictures_agree(kind, device):
    x = correlated(8, 32, 4, 4).float().to(device).requires_grad_()
    delta = randn(8, 32, 4, 4, seed=3).float().to(device)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    norm = make(kind, x).to(device)
    ours, theirs = copy.deepcopy(norm)(x), copy.deepcopy(norm)(last)
    assert ours.is_contiguous()
    assert theirs.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for y in (ours, theirs):
        y.backward(delta)
    torch.testing.assert_close(x.grad, last.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", NETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_hidden_layer_is_followed_by_the_norm_and_has_a_bias_where_that_has_no_shift(build, kind, architecture):
    net = build(architecture, kind, width=8)
    hidden = [net.get_submodule(name) for name in models.matrices(net)][:-1]
    expected = type(norms.NORMALIZATIONS[kind](8, architecture != "mlp"))
    found = [m for m in net.modules() if isinstance(m, models.NORMS)]
    assert [type(m) for m in found] == [expected] * len(hidden)
    assert [m.bias is None for m in hidden] == [kind != "rms"] * len(hidden)
    assert net.head.bias is not None
    kinds = [type(m) is expected for m in net.modules() if m in found or m in hidden]
    assert kinds == [False, True] * len(hidden)


@pytest.mark.parametrize("architecture", NETS)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_check_finds_nothing_wrong_with_nets_of_any_norm(build, kind, architecture, device):
    net = convert(build(architecture, kind, width=8), "fa", gen(1), models.init_weight).to(device)
    with deterministic():
        assert check(net, torch.randn(4, 3, 32, 32, generator=gen(2)).to(device)) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["frozen-fa", "frozen-bp"])
def test_of_a_frozen_net_the_norms_learn_and_no_bias_before_them(tiny, plain, kind, rule):
    options = {"architecture": "cnn", "normalization": kind, "width": 8}
    net = plain(**options)
    RULES[rule].attach(net, gen(1), models.init_weight)
    learn = {name for name, p in net.named_parameters() if p.requires_grad}
    own = {
        f"{n}.{key}" for n, m in net.named_modules() if isinstance(m, models.NORMS) for key, _ in m.named_parameters()
    }
    assert len(own) == (4 if kind == "rms" else 8)
    assert learn == own | {"head.weight", "head.bias"}
    optimizer = network.optimizers(net, tiny(**options, rule=rule))[0]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(net.get_parameter(n)) for n in learn}


def test_norms_of_other_peoples_models_are_let_through_filled_and_put_back():
    own = [nn.GroupNorm(2, 4), nn.LayerNorm((4, 2, 2)), nn.RMSNorm((4, 2, 2)), norms.RMSNorm(4), norms.Whitening(4)]
    net = models.initialize(nn.Sequential(nn.Conv2d(1, 4, 3), *own, nn.Flatten(), nn.Linear(16, 2)), gen())
    assert list(feedback_layers(convert(net, "fa", gen(1)))) == ["0", "7"]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batch = torch.randn(8, 1, 4, 4, generator=gen(2)), torch.arange(8) % 2
    measured = signals.Signals(net, batch, lambda step, tensors: [nn.init.normal_(b) for b in tensors])
    measured.measure(0)
    assert len(measured.spectra) > 0
    assert_same_bits(net.state_dict(), before)
    net(torch.randn(8, 1, 4, 4, generator=gen(2)))
    assert not torch.equal(net.state_dict()["5.running_matrix"], before["5.running_matrix"]), "training moves them"


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_a_run_with_any_norm_learns_and_gives_the_same_bits_twice(tiny, new_state, kind, architecture, device):
    config = tiny(architecture=architecture, normalization=kind, rule="fa", width=16, epochs=6, lr=0.1, **PROBES)
    with deterministic():
        first, second = (new_state(config, device) for _ in range(2))
        for state in (first, second):
            fit(state)
    losses = [row["train_loss"] for row in first.epochs]
    assert losses[-1] < 0.8 * losses[0]
    assert losses == [row["train_loss"] for row in second.epochs]
    assert_same_bits(second.model.state_dict(), first.model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", NETS)
def test_one_image_in_evaluation_gives_what_it_gives_among_others(build, kind, architecture):
    net, x = build(architecture, kind, width=8), torch.randn(8, 3, 32, 32, generator=gen(3))
    for _ in range(3):
        net(x)
    net.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    torch.testing.assert_close(net(x[2:3]), net(x)[2:3], rtol=1e-4, atol=1e-5)
    again = build(architecture, kind, width=8).eval()
    again.load_state_dict(state)
    assert torch.equal(again(x), net(x))


@pytest.mark.parametrize("kind", ["rms", "whiten"])
def test_compiled_norms_are_those_that_are_not(kind, device):
    torch.compiler.reset()
    x = correlated(16, 32, 3, 3).float().to(device)
    norm = make(kind, x).to(device)
    other = copy.deepcopy(norm)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x), norm(x))
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)
