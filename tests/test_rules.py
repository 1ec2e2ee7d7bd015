"""Learning rules: what they add to a model, what learns under them, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from rankcollapse import RULES, convert, exact_feedback
from rankcollapse.experiment import network
from rankcollapse.library import models
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
        RULES[rule].attach(net, gen(1), models.init_weight)
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
    assert list(feedback) == (list(models.matrices(net)) if rule in ("fa", "kp", "frozen-fa") else [])
    assert all(torch.equal(b, ruled("fa").get_buffer(f"{name}.feedback")) for name, b in feedback.items())
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


# ---- refusals ----


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixing = nn.Parameter(torch.eye(3))


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        (lambda: nn.Linear(2, 2), ("dfa", gen()), ["rule is 'dfa'", "bp", "fa"]),
        (lambda: nn.Linear(2, 2), ("fa",), ["pass generator="]),
        (lambda: convert(nn.Sequential(nn.Linear(2, 2)), "fa", gen()), ("fa", gen()), ["layer '0'", "already"]),
        (Bare, ("fa", gen()), ["layer 'model' is a Bare", "only nn.Linear and nn.Conv2d"]),
        (lambda: nn.Sequential(nn.Linear(2, 2, device="meta")), ("fa", gen()), ["layer '0' has no weights yet"]),
        (lambda: nn.Sequential(nn.LazyLinear(2)), ("fa", gen()), ["layer '0' has no weights yet"]),
    ],
    ids=["rule", "generator", "twice", "bare", "meta", "lazy"],
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
