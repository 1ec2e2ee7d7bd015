"""Learning rules: what they add to a model, what learns under them, and what they refuse."""

import copy
import math
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.utils.checkpoint import checkpoint

from rankcollapse import RULES, WeightMirror, check, convert, exact_feedback, low_rank, orthogonal, scaled
from rankcollapse.errors import InputError
from rankcollapse.experiment import data, network
from rankcollapse.experiment.config import run_config
from rankcollapse.experiment.training import fit
from rankcollapse.library import models, rules, updates
from rankcollapse.library.feedback import feedback_layers

NETS = ["mlp", "cnn", "resnet18"]
RATES = [0.1, 0.05, 0.02, 0.0]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def ruled(plain):
    """A function from a rule to a net of the grid that learns by it, as a run makes it: the same W and B for all."""

    def make(rule, architecture="cnn", normalization="batch", seed=0):
        net = plain(seed, architecture=architecture, normalization=normalization)
        RULES[rule].attach(net, gen(1), models.init_weight, torch.zeros(2, 1, 8, 8))
        return net

    return make


@pytest.fixture
def kp(tiny):
    """A function from overrides to the config of a net by Kolen-Pollack."""
    return lambda **more: tiny(**{"architecture": "cnn", "normalization": "batch", "width": 4, "rule": "kp", **more})


def gradients(net, seed=2):
    """The gradients of a batch; no others are left in the parameters."""
    net.zero_grad()
    x = torch.randn(8, 1, 8, 8, generator=gen(seed)).to(net.head.weight.device)
    net(x).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def copied(tensors):
    return {name: value.detach().clone() for name, value in tensors}


def train(net, config, rates, seed=0):
    """Steps as training takes them, with the rates given."""
    optimizers = network.optimizers(net, config)
    for step, rate in enumerate(rates):
        gradients(net, seed + step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        RULES[config.rule].after_step(net, 1 - rate * config.weight_decay)


# ---- Kolen-Pollack ----


@pytest.mark.parametrize("decay", [0.0, 2.0])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_under_kolen_pollack_the_distance_of_b_from_w_shrinks_by_the_decay_alone(ruled, kp, optimizer, decay, device):
    net = ruled("kp").to(device, memory_format=torch.channels_last)
    layers = feedback_layers(net)
    start = copied((name, layer.feedback - layer.weight) for name, layer in layers.items())
    first = copied((name, layer.feedback) for name, layer in layers.items())
    train(net, kp(optimizer=optimizer, weight_decay=decay), RATES)
    left = 0.8 * 0.9 * 0.96 if decay else 1
    assert len(layers) == 5
    for name, layer in layers.items():
        torch.testing.assert_close(layer.feedback - layer.weight, left * start[name], rtol=0, atol=2e-6, msg=name)
        assert (layer.feedback - first[name]).norm() > 0.01 * first[name].norm(), f"B of {name} has not moved"


def test_kolen_pollack_sends_the_error_back_through_b_as_it_is_now(ruled, kp):
    """A net by rule fa with the same W and B has the same gradients, to the bit, which backpropagation has not."""
    net, fixed = ruled("kp"), ruled("fa")
    train(net, kp(weight_decay=0.5), RATES)
    fixed.load_state_dict({name: v for name, v in net.state_dict().items() if not name.endswith("before")})
    found, expected = gradients(net), gradients(fixed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with exact_feedback(fixed):
        assert not torch.equal(gradients(fixed)["conv1.weight"], found["conv1.weight"])


# ---- frozen weights ----


@pytest.mark.parametrize("architecture", NETS)
@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize("rule", ["frozen", "frozen-fa", "frozen-bp"])
def test_frozen_parameters_keep_their_bits_and_the_others_move(tiny, ruled, rule, normalization, architecture):
    net = ruled(rule, architecture, normalization)
    options = {"architecture": architecture, "normalization": normalization}
    before = copied(net.state_dict().items())
    train(net, tiny(width=4, rule=rule, weight_decay=0.5, **options), RATES[:2])
    moved = {name for name, p in net.named_parameters() if not torch.equal(p.detach(), before[name])}
    norms = {f"{n}.{key}" for n, m in net.named_modules() if isinstance(m, models.NORMS) for key in ("weight", "bias")}
    assert bool(norms) == (normalization == "batch")
    assert moved == {"head.weight", "head.bias"} | (set() if rule == "frozen" else norms)
    for name, layer in feedback_layers(net).items():
        assert torch.equal(layer.feedback, before[f"{name}.feedback"]), name


@pytest.mark.parametrize("architecture", NETS)
@pytest.mark.parametrize(("rule", "like", "unlike"), [("frozen-fa", "fa", "bp"), ("frozen-bp", "bp", "fa")])
def test_norm_parameters_of_frozen_nets_learn_by_the_errors_of_their_rule(ruled, architecture, rule, like, unlike):
    """To the bit as in a net of the same weights that learns as a whole."""
    found, expected, other = (gradients(ruled(name, architecture)) for name in (rule, like, unlike))
    norms = [name for name in found if not name.startswith("head")]
    assert len(norms) >= 4
    for name in (*norms, "head.weight", "head.bias"):
        assert torch.equal(found[name], expected[name]), name
    for name in norms:
        assert not torch.equal(found[name], other[name]), name


# ---- what a rule says of itself ----


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_tells_its_feedback_weights_and_gives_exact_gradients_on_request(ruled, rule):
    """B is what the seed says, whatever else the rule does: arms of one seed differ in their rule alone."""
    net = ruled(rule)
    layers = feedback_layers(net)
    feedback = {name: layer.feedback for name, layer in layers.items()}
    assert list(feedback) == ([] if rule in ("bp", "frozen", "frozen-bp") else list(models.matrices(net)))
    for name, b in feedback.items():
        drawn = ruled("fa").get_buffer(f"{name}.feedback")
        if rule in ("brsf", "frsf"):
            drawn = drawn.copysign(layers[name].weight)
        elif rule == "usf":
            drawn = drawn.square().mean().sqrt() * layers[name].weight.sign()
        assert rule == "dfa" or torch.equal(b, drawn), name
    expected, own = gradients(ruled("bp")), gradients(net)
    with exact_feedback(net):
        found = gradients(net)
    assert {"1.weight", "head.weight"} <= found.keys() or rule == "frozen"
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    for name, value in gradients(net).items():
        assert torch.equal(value, own[name]), name


# ---- the weights that feedback alignment adds ----


def test_conversion_leaves_parameters_and_the_global_random_state_alone(plain, global_random_state):
    before, net = global_random_state(), plain(architecture="cnn")
    parameters = dict(net.named_parameters())
    assert convert(net, "bp") is net
    assert feedback_layers(net) == {}
    assert type(net.head) is nn.Linear
    assert convert(net, "fa", gen(1)) is net
    convert(plain(architecture="cnn"), "fa", gen(1), models.init_weight)
    assert global_random_state() == before
    after = dict(net.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is p for name, p in parameters.items())
    assert net.state_dict().keys() - after.keys() == {f"{name}.feedback" for name in models.matrices(net)}


@pytest.mark.parametrize("init", [None, models.init_weight], ids=["entries of W", "init"])
def test_every_layer_has_a_b_of_its_own_that_follows_the_generator(plain, init):
    net, again, other = (convert(plain(architecture="resnet18"), "fa", gen(s), init) for s in (1, 1, 2))
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, other.state_dict()[name]) == (not name.endswith("feedback")), name
    layers = feedback_layers(net)
    assert list(layers) == list(models.matrices(net))
    assert {"head", "stem", "block3.shortcut.conv", "block5.shortcut.conv", "block7.shortcut.conv"} <= layers.keys()
    assert len({layer.feedback.data_ptr() for layer in layers.values()}) == len(layers) == 21
    for name, layer in layers.items():
        same_shape = [m for n, m in layers.items() if n != name and m.feedback.shape == layer.feedback.shape]
        assert not any(torch.equal(m.feedback, layer.feedback) for m in same_shape), name
        assert not torch.equal(layer.feedback, layer.weight), name


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
    assert abs(np.corrcoef(layer.feedback.flatten(), weight.flatten())[0, 1]) < 4 / math.sqrt(weight.numel())


# ---- references of one's own, in float64 ----


def explicit(net, x, delta, feedback):
    """The gradients of `net` (a copy, converted or not) for the error `delta` of its output, layer by layer.

    Every input is cut off. From the last layer down: autograd takes the error through what lies between two layers, and
    below a layer, to what its input was made of, goes `feedback(layer, its input, the error of its output, delta)`.
    """
    net = copy.deepcopy(net).double()
    net._forward_hooks.clear()
    net._forward_pre_hooks.clear()
    cut, layers = [], [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    def forward(layer):
        def run(h):
            leaf = h.detach().requires_grad_()
            plain = nn.Linear.forward if isinstance(layer, nn.Linear) else nn.Conv2d.forward
            y = plain(layer, leaf)
            cut.append((layer, h, leaf, y))
            return y

        return run

    for layer in layers:
        layer.forward = forward(layer)
    output = net(x.double())
    errors, tensors = [delta.double()], [output]
    # Calls in the order of the pass: each output's error is whole once all that come after it have sent theirs.
    for layer, h, leaf, y in reversed(cut):
        (error,) = torch.autograd.grad(tensors, [y], errors, retain_graph=True)
        if h.requires_grad:
            tensors.append(h)
            errors.append(feedback(layer, leaf, error, delta.double()))
    torch.autograd.backward(tensors, errors)
    return {name: p.grad for name, p in net.named_parameters()}


def by_layer(layer, h, error, delta):
    """Bᵀ δ, as autograd has it of the layer with B in the place of W."""
    with torch.enable_grad():
        h = h.detach().requires_grad_()
        b = layer.feedback.double()
        geometry = [getattr(layer, key, None) for key in ("stride", "padding", "dilation", "groups")]
        y = F.linear(h, b) if isinstance(layer, nn.Linear) else F.conv2d(h, b, None, *geometry)
        return torch.autograd.grad(y, h, error)[0]


def directly(layer, h, error, delta):
    """B e, written out."""
    return torch.einsum("no,o...->n...", delta, layer.feedback.double())


ALL = ["fa", "dfa", "kp", "usf", "brsf", "frsf", "wm"]


@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize("architecture", NETS)
@pytest.mark.parametrize("rule", ALL)
def test_gradients_are_those_of_an_explicit_reference_and_not_those_of_backpropagation(
    ruled, rule, architecture, normalization, device
):
    """After a rule has acted three times: of the net, a copy, an unpickled one, and one in channels_last."""
    net = ruled(rule, architecture, normalization).double()
    for layer in feedback_layers(net).values():  # as a step does
        layer.weight.data.add_(0.1 * torch.randn(layer.weight.shape, generator=gen(4), dtype=torch.float64))
    for _ in range(3):
        RULES[rule].after_step(net, 0.9)
    x = torch.randn(4, 1, 8, 8, generator=gen(2), dtype=torch.float64)
    delta = torch.randn(4, 10, generator=gen(3), dtype=torch.float64)
    expected = explicit(net, x, delta, directly if rule == "dfa" else by_layer)
    with exact_feedback(net):
        net(x).backward(delta)
    exact = {name: p.grad.clone() for name, p in net.named_parameters()}
    for other in (
        net,
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        copy.deepcopy(net).to(memory_format=torch.channels_last),
    ):
        other = other.to(device)
        other.zero_grad()
        other(x.to(device)).backward(delta.to(device))
        for name, p in other.named_parameters():
            error = (p.grad.cpu() - expected[name]).norm()
            assert error <= 1e-10 * expected[name].norm() + 1e-12, name
    first = next(iter(models.matrices(net)))
    difference = (expected[f"{first}.weight"] - exact[f"{first}.weight"]).norm()
    assert difference > (0.05 if rule == "wm" else 0.2) * exact[f"{first}.weight"].norm(), "B is another than W"
    assert check(net.cpu(), x) == []


def test_a_deep_linear_net_by_dfa_is_that_worked_by_hand():
    """One unit a layer: y = w₃ w₂ w₁ x with x = 2, w = (3, 5, 7), and b₂ = 11 and b₃ = 13 for the error e = y - t = 10.

    h₁ = 6, h₂ = 30, y = 210. To w₃ goes e h₂ = 300; to w₂, e b₃ h₁ = 780; to w₁, e b₂ x = 220; to the input, e b₁.
    """
    net = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(3)))
    convert(net, "dfa", gen(), example=torch.ones(1, 1))
    for layer, w, b in zip(net, (3.0, 5.0, 7.0), (17.0, 11.0, 13.0), strict=True):
        layer.weight.data.fill_(w)
        layer.feedback.fill_(b)
    x = torch.tensor([[2.0]], requires_grad=True)
    y = net(x)
    assert y.item() == 210
    (0.5 * (y - 200).square()).sum().backward()
    assert [layer.weight.grad.item() for layer in net] == [220, 780, 300]
    assert x.grad.item() == 170


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_direct_feedback_of_one_hidden_layer_is_feedback_alignment_with_the_same_b_to_the_bit(kind, precision, device):
    hidden = nn.Linear(6, 5) if kind == "linear" else nn.Conv2d(2, 5, 3)
    rest = [nn.Flatten(), nn.Linear(5 if kind == "linear" else 80, 3)]
    plain = models.initialize(nn.Sequential(hidden, nn.ReLU(inplace=True), *rest), gen())
    x = torch.randn(7, *([6] if kind == "linear" else [2, 6, 6]), generator=gen(2)).to(device)
    fa, dfa = (convert(copy.deepcopy(plain).to(device), rule, gen(1), example=x) for rule in ("fa", "dfa"))
    dfa[3].feedback.copy_(fa[3].feedback)
    for net in (fa, dfa):
        with torch.autocast(device, torch.bfloat16, enabled=precision == torch.bfloat16):
            y = net(x)
        F.cross_entropy(y.float(), torch.arange(7).to(device) % 3).backward()
    for (name, a), b in zip(fa.named_parameters(), dfa.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("rule", ALL)
def test_in_bfloat16_gradients_are_near_those_of_float32_and_b_counts_as_it_is_after_each_step(ruled, rule, device):
    """A B that was cast for autocast is cast anew once the rule has written it."""
    net, x = ruled(rule, "cnn").to(device), torch.randn(16, 1, 8, 8, generator=gen(2)).to(device)
    for _ in range(2):
        found = {}
        for precision in (torch.bfloat16, torch.float32):
            net.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=precision == torch.bfloat16):
                y = net(x)
            y.float().square().sum().backward()
            found[precision] = net.conv1.weight.grad.flatten().clone()
        assert torch.cosine_similarity(found[torch.bfloat16], found[torch.float32], dim=0) > 0.97
        for layer in feedback_layers(net).values():
            layer.weight.data.neg_()
            layer.feedback.neg_() if rule == "dfa" else None
        RULES[rule].after_step(net, 0.5)


COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


@pytest.mark.parametrize("rule", ["dfa", "brsf"])
def test_compiled_gradients_are_those_of_the_eager_net_before_and_after_a_step(ruled, rule):
    torch.compiler.reset()
    net = ruled(rule, "cnn")
    run = torch.compile(net, fullgraph=True, backend="inductor" if COMPILER else "aot_eager")
    x = torch.randn(8, 1, 8, 8, generator=gen(2))
    for _ in range(2):
        found = []
        for call in (net, run):
            net.zero_grad()
            call(x).square().sum().backward()
            found.append({name: p.grad.clone() for name, p in net.named_parameters()})
        for name, value in found[0].items():
            assert (found[1][name] - value).norm() <= 1e-4 * value.norm() + 1e-6, name
        RULES[rule].after_step(net, 1.0)


# ---- direct feedback ----


def test_direct_feedback_learns_the_shapes_from_a_pass_that_leaves_no_trace(plain, global_random_state):
    net = plain(architecture="resnet18", normalization="batch").train()
    net.block1.eval()
    net.block2.register_forward_hook(lambda block, args, y: y + torch.rand(()))  # draws in any mode
    before, state = copied(net.state_dict().items()), global_random_state()
    convert(net, "dfa", gen(1), models.init_weight, example=torch.randn(3, 1, 8, 8, generator=gen()))
    assert global_random_state() == state
    assert net.training
    assert not net.block1.training
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert all(not layer._forward_pre_hooks and not layer.called for layer in feedback_layers(net).values())
    assert net.stem.feedback.shape == (10, 1, 8, 8)
    assert net.block3.residual.conv2.feedback.shape == (10, 8, 4, 4)
    assert net.head.feedback.shape == net.head.weight.shape


@pytest.mark.parametrize("init", [None, models.init_weight], ids=["entries of W", "init"])
def test_the_b_of_direct_feedback_has_the_scale_of_a_layer_of_as_many_inputs(init):
    """Root mean square 1 / √(3 inputs), as PyTorch's law has it; of the classifier, without init, the entries of W."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 12 * 12, 20))
    convert(models.initialize(net, gen()), "dfa", gen(1), init, example=torch.zeros(2, 3, 16, 16))
    for layer, inputs in ((net[0], 3 * 16 * 16), (net[2], 8 * 14 * 14), (net[4], 8 * 12 * 12)):
        size = layer.feedback.square().mean().sqrt()
        assert len(layer.feedback) == 20
        assert float(size) == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.03 if layer.weight.numel() > 300 else 0.15)
    if init is None:
        assert torch.equal(net[4].feedback.flatten().sort().values, net[4].weight.detach().flatten().sort().values)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x, times=2):
        for _ in range(times):
            x = self.a(x)
        return x


class Checkpointed(nn.Sequential):
    def __init__(self, *layers, reentrant):
        super().__init__(*layers)
        self.reentrant = reentrant

    def forward(self, x):
        h = self[0](x)
        return self[2](checkpoint(self[1], h, use_reentrant=self.reentrant))


class Tokens(nn.Sequential):
    def forward(self, x):
        return self[0](x.flatten(0, 1)).view(len(x), -1)


@pytest.mark.parametrize(
    ("net", "x", "words"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3)), torch.zeros(2, 1, 4, 4), ["output is not a matrix"]),
        (nn.LSTM(3, 4), torch.zeros(2, 3), ["LSTM"]),
        (Twice(), torch.zeros(2, 4), ["layer 'a' has inputs [[2, 4], [2, 4]]", "takes one"]),
        (Tokens(nn.Linear(3, 3)), torch.zeros(2, 5, 3), ["layer '0' has inputs [[10, 3]] in a batch of 2"]),
    ],
    ids=["pixels", "lstm", "twice", "tokens in the batch"],
)
def test_what_direct_feedback_does_not_fit_is_refused(refused, net, x, words):
    refused(lambda: convert(net, "dfa", gen(), example=x), *words, error=ValueError)
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


def test_passes_that_direct_feedback_cannot_serve_raise_and_the_next_is_as_before(refused):
    """Another number of calls than in the example, a part without the whole, another shape, a checkpoint of a part."""
    net = Twice()
    x = torch.randn(2, 4)
    convert(net, "dfa", gen(), example=(x, 1))
    refused(lambda: net(x, 2), "called twice", error=RuntimeError)
    net(x, 1).sum().backward()
    refused(lambda: net.a(x), "outside of its model", error=RuntimeError)
    stack = convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), "dfa", gen(), example=x)
    refused(lambda: stack(x[0]), "input [4], but its B [2, 4]", error=RuntimeError)
    single = convert(nn.Linear(4, 2), "dfa", gen(), example=x)
    refused(lambda: single(x[0]), "not the matrix [4, 2]", error=RuntimeError)
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    convert(pooled, "dfa", gen(), example=torch.zeros(2, 1, 8, 8))
    refused(lambda: pooled(torch.zeros(2, 1, 9, 9)), "input [2, 2, 7, 7]", "its B [2, 2, 6, 6]", error=RuntimeError)
    refused(lambda: pooled(torch.zeros(2, 1, 3, 3)), "input [2, 2, 1, 1]", "its B [2, 2, 6, 6]", error=RuntimeError)

    for reentrant in (True, False):
        part = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        part = convert(Checkpointed(*part, reentrant=reentrant), "dfa", gen(), example=x)
        with pytest.raises(RuntimeError, match="checkpoint, the whole"):
            part(x).sum().backward()


def test_direct_feedback_goes_through_a_checkpoint_of_the_whole_and_reaches_what_learns_below(ruled):
    """An embedding under the first layer learns by e B; frozen layers get nothing, and pass nothing to the rest."""
    net, x = ruled("dfa"), torch.randn(8, 1, 8, 8, generator=gen(2))
    expected = gradients(net)
    net.zero_grad()
    checkpoint(net, x, use_reentrant=False).square().sum().backward()
    assert all(torch.equal(p.grad, expected[name]) for name, p in net.named_parameters())
    models.freeze(net, 2)
    found = gradients(net)
    assert list(found) == [*expected][[*expected].index("conv3.weight") :]
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    words = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 4), nn.Linear(4, 2))
    tokens = torch.tensor([[0, 1], [2, 1]])
    convert(words, "dfa", gen(), example=tokens)
    words(tokens).backward(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    sent = words[2].feedback[0].view(2, 3)
    assert torch.equal(words[0].weight.grad, torch.stack([sent[0], sent[1], *torch.zeros(3, 3)]))


# ---- sign-concordant feedback ----


def test_uniform_signs_of_a_w_of_one_magnitude_are_backpropagation_to_rounding(plain):
    net = plain(architecture="cnn", normalization="batch")
    for weight in models.matrices(net).values():
        weight.data.copy_(weight.data.sign() * 0.1)
    expected = gradients(net)
    found = gradients(convert(net, "usf", gen(1), optimizer=torch.optim.SGD(net.parameters(), 0.1)))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("rule", ["usf", "brsf", "frsf"])
def test_b_has_the_signs_of_w_after_each_step_and_the_magnitudes_of_its_rule(ruled, kp, rule):
    net, drawn = ruled(rule), ruled("fa")
    start = copied((name, layer.feedback.abs()) for name, layer in feedback_layers(net).items())
    seen = [start]
    for step in range(3):
        for layer in feedback_layers(net).values():
            layer.weight.data.mul_(torch.where(torch.rand(layer.weight.shape, generator=gen(step)) < 0.3, -1.0, 1.0))
        RULES[rule].after_step(net, 1.0)
        for name, layer in feedback_layers(net).items():
            assert torch.equal(layer.feedback.sign(), layer.weight.detach().sign()), name
        seen.append(copied((name, layer.feedback.abs()) for name, layer in feedback_layers(net).items()))
    for name, first in start.items():
        law = drawn.get_buffer(f"{name}.feedback").abs()
        if rule == "usf":
            assert len(first.unique()) == 1
            assert float(first.flatten()[0]) == pytest.approx(float(law.square().mean().sqrt()))
        else:
            assert torch.equal(first, law)
        others = [each[name] for each in seen[1:]]
        assert all(torch.equal(first, other) for other in others) == (rule != "brsf")
        if rule == "brsf":
            assert not any(torch.equal(a, b) for a in others for b in others if a is not b), "drawn anew"
            assert set(torch.cat(others).flatten().tolist()) <= set(law.flatten().tolist())
            if law.numel() > 200:
                assert stats.kstest(torch.cat(others).flatten(), law.flatten()).pvalue > 1e-3
                pair = np.corrcoef(others[0].flatten(), others[1].flatten())[0, 1]
                assert abs(pair) < 4 / math.sqrt(law.numel()), "and not the same in another order of steps"


# ---- the weight mirror ----


def test_a_weight_mirror_learns_the_direction_of_w_and_its_scale_from_noise_alone(ruled):
    """Cosine above 0.99, at rate / decay times W, and of an error as large as the noise of its average makes it."""
    for rate, decay in ((0.002, 0.002), (0.004, 0.002)):
        net = ruled("fa", "cnn")
        rule = WeightMirror(rate=rate, decay=decay, patches=64)
        rules._remember_draws(net, gen(5))
        starts = {name: cosine(layer.feedback, layer.weight) for name, layer in feedback_layers(net).items()}
        for _ in range(3000):
            rule.after_step(net, 1.0)
        for name, layer in feedback_layers(net).items():
            assert abs(starts[name]) < 0.6
            assert cosine(layer.feedback, layer.weight) > 0.99, name
            error = (layer.feedback - rate / decay * layer.weight).norm() / (rate / decay * layer.weight.norm())
            expected = math.sqrt(decay / 2 * (layer.weight[0].numel() + 1) / 64)
            assert error.item() == pytest.approx(expected, rel=0.5 if layer.weight.numel() > 100 else 0.9), name


def cosine(a, b):
    return float(torch.cosine_similarity(a.detach().flatten(), b.detach().flatten(), dim=0))


def test_one_step_of_a_mirror_is_that_worked_by_hand_in_any_memory_layout(ruled):
    """B' = (1 - decay) B + rate / patches Σ (W x) xᵀ with the x that the buffer's seed and count say."""
    found = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        net = ruled("wm", "cnn").double().to(memory_format=layout)
        before = copied((name, layer.feedback) for name, layer in feedback_layers(net).items())
        draws = net.draws.clone()
        RULES["wm"].after_step(net, 1.0)
        assert (net.draws - draws).tolist() == [0, 1]
        generator = gen(int(draws.sum()))
        for name, layer in feedback_layers(net).items():
            weight = updates.flatten(layer.weight.detach(), layer.weight)
            x = torch.randn(64, weight.shape[1], generator=generator, dtype=torch.float64)
            mean = sum(torch.outer(weight @ row, row) for row in x) / 64
            expected = 0.99 * updates.flatten(before[name], layer.weight) + 0.01 * mean
            torch.testing.assert_close(updates.flatten(layer.feedback, layer.weight), expected)
        found[layout] = copied(net.state_dict().items())
    assert not torch.equal(found[torch.contiguous_format]["conv2.feedback"], before["conv2"])


# ---- draws after steps, and what a checkpoint holds ----


@pytest.mark.parametrize("rule", ["kp", "usf", "brsf", "frsf", "wm"])
def test_a_state_dict_holds_all_that_a_rule_goes_on_with(ruled, tiny, rule, global_random_state):
    """Loaded into a net of another seed it gives the same bits, though other draws were made in between."""
    config = tiny(architecture="cnn", normalization="batch", width=4, rule=rule, weight_decay=0.5)
    net, other = ruled(rule), ruled(rule, seed=3)
    state = global_random_state()
    train(net, config, RATES[:2])
    train(other, config, RATES[:1], seed=9)
    other.load_state_dict(net.state_dict())
    for each in (net, other):
        optimizer = updates.MomentumSGD(each.parameters(), 0.1)
        for step in range(2):
            gradients(each, step)
            optimizer.step()
            RULES[rule].after_step(each, 0.9)
    assert global_random_state() == state
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


# ---- rules that follow an optimiser ----


def steps(net, optimizers, count=3, act=lambda: None):
    for step in range(count):
        gradients(net, step)
        for optimizer in optimizers:
            optimizer.step()
        act()


@pytest.mark.parametrize("rule", ["kp", "usf", "brsf", "frsf", "wm"])
def test_with_an_optimizer_a_rule_acts_in_anyones_loop_as_by_hand(plain, rule):
    found = []
    for by_hand in (True, False):
        net = plain(architecture="cnn", normalization="batch")
        optimizer = torch.optim.AdamW(net.parameters(), 0.01, weight_decay=0.5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            convert(net, rule, gen(1), optimizer=None if by_hand else optimizer)
        assert [str(w.message) for w in caught if "after_step(model, keep)" in str(w.message)] == (
            [str(caught[0].message)] if by_hand else []
        )
        act = (lambda net=net: RULES[rule].after_step(net, 1 - 0.01 * 0.5)) if by_hand else lambda: None
        steps(net, [optimizer], act=act)
        found.append(net.state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


KEEPS = [
    (lambda p: updates.MomentumSGD(p, 0.1, weight_decay=0.5), 0.95),
    (lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5), 0.95),
    (lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.5), 1.0),
    (lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.5), 1.0),
    (lambda p: torch.optim.NAdam(p, 0.1, weight_decay=0.5, decoupled_weight_decay=True), 0.95),
    (lambda p: torch.optim.Rprop(p, 0.1), 1.0),
    (lambda p: torch.optim.Muon(p, 0.1, weight_decay=0.5), 0.95),
    (lambda p: updates.Muon(p, 0.1, 0.9, 0.5, 5, "original"), 0.95),
]


@pytest.mark.parametrize(("make", "keep"), KEEPS, ids=[str(i) for i in range(len(KEEPS))])
def test_under_kp_b_minus_w_shrinks_by_the_decay_of_any_optimizer_that_is_apart_from_the_gradient(make, keep):
    net = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 4, bias=False)).double()
    optimizer = make(list(net.parameters()))
    convert(models.initialize(net, gen()), "kp", gen(1), optimizer=optimizer)
    start = [layer.feedback - layer.weight.detach() for layer in feedback_layers(net).values()]
    for step in range(3):
        net.zero_grad()
        net(torch.randn(8, 6, generator=gen(step), dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    for layer, first in zip(feedback_layers(net).values(), start, strict=True):
        torch.testing.assert_close(layer.feedback - layer.weight.detach(), keep**3 * first, rtol=1e-6, atol=1e-12)


def test_of_several_optimizers_the_last_that_holds_forward_weights_is_followed(refused):
    net = models.initialize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), gen())
    first, second = (torch.optim.AdamW([layer.weight], 0.1, weight_decay=0.5) for layer in net[:2])
    biases = torch.optim.SGD([layer.bias for layer in net], 0.1)
    convert(net, "kp", gen(1), optimizer=[first, second, biases])
    start = [layer.feedback - layer.weight.detach() for layer in net]
    for optimizer in (first, second, biases):
        net.zero_grad()
        net(torch.ones(2, 4)).sum().backward()
        before = net[0].feedback.clone()
        optimizer.step()
        assert torch.equal(net[0].feedback, before) == (optimizer is not second)
    for layer, distance in zip(net[:2], start, strict=False):
        torch.testing.assert_close(layer.feedback - layer.weight.detach(), 0.95 * distance, rtol=1e-4, atol=1e-6)
    first.param_groups[0]["lr"] = 0.2
    net(torch.ones(2, 4)).sum().backward()
    refused(second.step, "[0.9, 0.95]", "under kp it must be the same", error=ValueError)
    make = lambda: convert(nn.Sequential(nn.Linear(2, 2)), "usf", gen(), optimizer=biases)  # noqa: E731
    refused(make, "no optimizer holds a weight", error=ValueError)


# ---- laws of B ----


@given(
    shape=st.tuples(st.integers(2, 12), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    rank=st.integers(1, 2),
    seed=st.integers(0, 99),
    factor=st.floats(0.1, 10),
)
def test_structured_laws_have_their_singular_values_and_the_norm_of_the_law(shape, rank, seed, factor):
    least = min(shape[0], math.prod(shape[1:]))
    law, b = models.init_weight, torch.empty(shape)
    norm = law(torch.empty(shape), gen(seed)).norm()
    orthogonal(law)(b, gen(seed))
    values = torch.linalg.svdvals(b.flatten(1).double())
    torch.testing.assert_close(b.norm(), norm)
    torch.testing.assert_close(values, values.mean().expand(least), rtol=1e-4, atol=0)
    if rank <= least:
        low_rank(law, rank)(b, gen(seed))
        values = torch.linalg.svdvals(b.flatten(1).double())
        torch.testing.assert_close(b.norm(), norm)
        assert (values[rank:] < 1e-5 * values[0]).all()
        assert values[rank - 1] > 1e-5 * values[0]
    scaled(law, factor)(b, gen(seed))
    torch.testing.assert_close(b, factor * law(torch.empty(shape), gen(seed)))


def test_orthogonal_matrices_are_uniform(refused):
    """Of 2 x 2 ones: angles uniform, and reflections as often as rotations."""
    generator, b, angles, signs = gen(), torch.empty(2, 2), [], []
    for _ in range(600):
        orthogonal(models.init_weight)(b, generator)
        angles.append(math.atan2(b[1, 0], b[0, 0]))
        signs.append(float(torch.linalg.det(b)) > 0)
    assert stats.kstest(angles, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 0.01
    assert 0.42 < np.mean(signs) < 0.58
    for rank in (0, 3):
        refused(lambda rank=rank: low_rank(models.init_weight, rank)(b, generator), f"is {rank}", "[2, 2]", "1 to 2")


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"rule": "bp", "feedback": "orthogonal"}, ["feedback is 'orthogonal'", "rule 'bp'", "fa"]),
        ({"rule": "usf", "feedback": "orthogonal"}, ["feedback is 'orthogonal'", "rule 'usf'"]),
        ({"rule": "fa", "feedback": "rank"}, ["feedback_rank is None"]),
        ({"rule": "fa", "feedback_rank": 2}, ["feedback_rank is 2", "'rank' alone"]),
        ({"rule": "frozen", "feedback_scale": 2.0}, ["feedback_scale is 2.0", "rule 'frozen' has no B"]),
    ],
    ids=str,
)
def test_feedback_knobs_of_rules_without_such_a_b_are_refused(refused, knobs, words):
    refused(lambda: run_config(knobs), *words)


def test_feedback_knobs_of_a_run_make_its_b(tiny, refused):
    made = lambda **knobs: network.make_model(tiny(**{"rule": "fa", "depth": 1, **knobs})).hidden1.feedback  # noqa: E731
    plain = made()
    torch.testing.assert_close(made(feedback_scale=3.0), 3 * plain)
    values = torch.linalg.svdvals(made(feedback="orthogonal"))
    torch.testing.assert_close(values, (plain.norm() / 4).expand(16))
    assert torch.linalg.matrix_rank(made(feedback="rank", feedback_rank=3)) == 3
    assert float(made(rule="usf", feedback_scale=3.0).abs().max()) == pytest.approx(
        3 * float(plain.square().mean().sqrt())
    )
    heads = [network.make_model(tiny(rule="fa", depth=1, feedback=law, feedback_rank=rank)).head.feedback
             for law, rank in (("same", None), ("rank", 3), ("orthogonal", None))]  # fmt: skip
    for other in heads[1:]:
        assert torch.equal(heads[0], other), "the classifier's keeps W's law"
    network.check(tiny(rule="dfa", feedback="rank", feedback_rank=10))
    config = tiny(rule="fa", feedback="rank", feedback_rank=17)
    refused(lambda: network.check(config), "feedback_rank is 17", "[16, 64]", error=InputError)


def test_the_null_of_a_run_is_drawn_as_its_feedback_weights_are(tiny):
    config = tiny(rule="fa", feedback="rank", feedback_rank=3)
    made = [layer.feedback for layer in feedback_layers(network.make_model(config)).values()]
    drawn = [torch.empty(b.shape) for b in made]
    network.redraw_feedback(drawn, config, data.generator(config.seed, "feedback"))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(drawn, made, strict=True))


# ---- runs ----


@pytest.mark.parametrize("rule", ["dfa", "usf", "brsf", "frsf", "wm"])
@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_a_run_by_each_rule_learns_the_digits_and_resumes_to_the_bit(tiny, new_state, rule, architecture):
    """Through its probes, and a checkpoint in the middle of an epoch."""
    knobs = {"architecture": architecture, "normalization": "batch", "width": 16, "train_images": None, "epochs": 3}
    config = tiny(**knobs, rule=rule, lr=0.1, signals_every=1, gradient_every=5)
    state, kept = new_state(config), []

    def keep(step, note):
        if step == 25:
            kept.append(pickle.dumps(state.state_dict()))

    assert fit(state, keep) == "finished"
    losses = [row["train_loss"] for row in state.epochs]
    assert losses[-1] < 0.7 * losses[0]
    assert state.epochs[-1]["validation_accuracy"] > 0.5
    kinds = {quantity for quantity, *_ in state.signals.alignment}
    assert kinds == {"gradient", "gradient_null"} | (set() if rule == "dfa" else {"weight", "weight_null"})
    assert all(-1.0001 <= value <= 1.0001 for *_, value in state.signals.alignment)
    again = new_state(config)
    rows = again.trajectory.path
    rows.write_bytes(state.trajectory.path.read_bytes())
    again = new_state(config, gradients=rows)
    again.load_state_dict(pickle.loads(kept[0]))
    fit(again)
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert again.signals.alignment == state.signals.alignment


# ---- refusals ----


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixing = nn.Parameter(torch.eye(3))


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        (lambda: nn.Linear(2, 2), ("sfa", gen()), ["rule is 'sfa'", "bp", "fa"]),
        (lambda: nn.Linear(2, 2), ("dfa", gen()), ["pass example="]),
        (lambda: nn.Linear(2, 2), ("fa",), ["pass generator="]),
        (lambda: convert(nn.Sequential(nn.Linear(2, 2)), "fa", gen()), ("fa", gen()), ["layer '0'", "already"]),
        (Bare, ("fa", gen()), ["layer 'model' is a Bare", "only nn.Linear and nn.Conv2d"]),
        (lambda: nn.Sequential(nn.Linear(2, 2, device="meta")), ("fa", gen()), ["layer '0' has no weights yet"]),
        (lambda: nn.Sequential(nn.LazyLinear(2)), ("fa", gen()), ["layer '0' has no weights yet"]),
    ],
    ids=["rule", "example", "generator", "twice", "bare", "meta", "lazy"],
)
def test_what_cannot_be_converted_is_refused(refused, model, arguments, words):
    refused(lambda: convert(model(), *arguments), *words, error=ValueError)


UNREACHED = [nn.MultiheadAttention(4, 2), nn.ConvTranspose2d(2, 3, 3), nn.Conv1d(2, 3, 3), nn.Conv1d(1, 1, 3)]
UNREACHED += [nn.Conv3d(2, 3, 3), nn.LSTM(3, 4), nn.Bilinear(2, 3, 4)]


@pytest.mark.parametrize("layer", UNREACHED, ids=str)
def test_a_layer_that_would_go_on_with_backpropagation_is_refused(layer, refused):
    net = nn.Sequential(nn.Linear(2, 2), layer)
    words = f"layer '1' is a {type(layer).__name__}", "only nn.Linear and nn.Conv2d"
    refused(lambda: convert(net, "fa", gen()), *words, error=ValueError)
    assert type(net[0]) is nn.Linear, "a refused model is left as it was"
    convert(net, "bp")  # backpropagation is what it would do anyway


def test_embeddings_and_norms_are_let_through():
    net = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm((3, 4)), nn.Linear(4, 2))
    assert list(feedback_layers(convert(net, "fa", gen()))) == ["2"]
