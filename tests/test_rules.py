"""Learning rules: what they add to a model, what learns under them, and what they refuse."""

import contextlib
import copy
import math
import typing

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from rankcollapse import RULES, convert, exact_feedback
from rankcollapse.experiment.config import Settings
from rankcollapse.library import models
from rankcollapse.library import updates as optim
from rankcollapse.library.feedback import feedback_layers

DIGITS = (1, 8, 8)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def build(tiny, architecture, normalization="none", seed=0, **options):
    """A small net of the grid for digits."""
    config = tiny(architecture=architecture, normalization=normalization, width=4, **options)
    return models.build(config, gen(seed))


def ruled(tiny, rule, architecture="cnn4", normalization="batch", **options):
    """A net of the grid that learns by `rule`, as a run makes it: the same W and B for every rule."""
    net = build(tiny, architecture, normalization, **options)
    RULES[rule].attach(net, gen(1), models.init_weight)
    return net


def gradients(net, seed=2):
    """The gradients of a batch; no others are left in the parameters."""
    net.zero_grad()
    x = torch.randn(8, *DIGITS, generator=gen(seed)).to(net.head.weight.device)
    net(x).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def copied(tensors):
    return {name: value.detach().clone() for name, value in tensors}


def train(net, config, rates, seed=0):
    """Steps as training takes them, with the rates given; the optimisers."""
    optimizers = optim.build(net, config)
    for step, rate in enumerate(rates):
        gradients(net, seed + step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        RULES[config.rule].after_step(net, 1 - rate * config.weight_decay)
    return optimizers


def test_the_rules_are_those_that_a_config_may_ask_for():
    assert typing.get_args(Settings.model_fields["rule"].annotation) == tuple(RULES)


# ---- Kolen-Pollack ----

RATES = [0.1, 0.05, 0.02, 0.0]


@pytest.mark.parametrize("decay", [0.0, 2.0])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_under_kolen_pollack_the_distance_of_b_from_w_shrinks_by_the_decay_alone(tiny, optimizer, decay, device):
    options = {"optimizer": optimizer, "weight_decay": decay}
    config = tiny(architecture="cnn4", normalization="batch", width=4, rule="kp", **options)
    net = ruled(tiny, "kp").to(device, memory_format=torch.channels_last)
    layers = feedback_layers(net)
    start = copied((name, layer.feedback - layer.weight) for name, layer in layers.items())
    first = copied((name, layer.feedback) for name, layer in layers.items())
    train(net, config, RATES)
    left = (1 - 0.1 * decay) * (1 - 0.05 * decay) * (1 - 0.02 * decay)
    assert left == pytest.approx(0.8 * 0.9 * 0.96 if decay else 1)
    assert len(layers) == 5
    for name, layer in layers.items():
        torch.testing.assert_close(layer.feedback - layer.weight, left * start[name], rtol=0, atol=2e-6, msg=name)
        assert (layer.feedback - first[name]).norm() > 0.01 * first[name].norm(), f"B of {name} has not moved"


def test_the_update_of_b_is_that_of_w(tiny):
    config = tiny(architecture="cnn4", normalization="batch", width=4, rule="kp", weight_decay=2.0)
    net = ruled(tiny, "kp")
    before = copied(net.state_dict().items())
    train(net, config, [0.1])
    for name, layer in feedback_layers(net).items():
        w, b = (now.detach() - 0.8 * before[f"{name}.{key}"] for key, now in
                (("weight", layer.weight), ("feedback", layer.feedback)))  # fmt: skip
        assert w.abs().max() > 1e-3
        torch.testing.assert_close(b, w, rtol=0, atol=1e-6, msg=name)


def test_kolen_pollack_sends_the_error_back_through_b_as_it_is_now(tiny):
    """A net by rule fa with the same W and B has the same gradients, to the bit, which backpropagation has not."""
    config = tiny(architecture="cnn4", normalization="batch", width=4, rule="kp", weight_decay=0.5)
    net, fixed = ruled(tiny, "kp"), ruled(tiny, "fa")
    train(net, config, RATES)
    fixed.load_state_dict({name: v for name, v in net.state_dict().items() if not name.endswith("before")})
    found, expected = gradients(net), gradients(fixed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with exact_feedback(fixed):
        assert not torch.equal(gradients(fixed)["conv1.weight"], found["conv1.weight"])


def test_kolen_pollack_goes_on_from_a_state_dict_to_the_same_bits(tiny):
    config = tiny(architecture="cnn4", normalization="batch", width=4, rule="kp", weight_decay=0.5, momentum=0.0)
    net, other = ruled(tiny, "kp"), ruled(tiny, "kp", seed=9)
    train(net, config, RATES)
    other.load_state_dict(copied(net.state_dict().items()))
    for each in (net, other):
        train(each, config, RATES, seed=7)
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


# ---- frozen weights ----


@pytest.mark.parametrize("architecture", ["mlp", "cnn4", "resnet18"])
@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize("rule", ["frozen", "frozen-fa", "frozen-bp"])
def test_frozen_parameters_keep_their_bits_and_the_others_move(tiny, rule, normalization, architecture):
    net = ruled(tiny, rule, architecture, normalization)
    options = {"architecture": architecture, "normalization": normalization}
    before = copied(net.state_dict().items())
    train(net, tiny(width=4, rule=rule, weight_decay=0.5, **options), RATES)
    moved = {name for name, p in net.named_parameters() if not torch.equal(p.detach(), before[name])}
    norms = {f"{n}.{key}" for n, m in net.named_modules() if isinstance(m, models.NORMS) for key in ("weight", "bias")}
    assert bool(norms) == (normalization == "batch")
    assert moved == {"head.weight", "head.bias"} | (set() if rule == "frozen" else norms)
    for name, layer in feedback_layers(net).items():
        assert torch.equal(layer.feedback, before[f"{name}.feedback"]), name


@pytest.mark.parametrize("architecture", ["mlp", "cnn4", "resnet18"])
@pytest.mark.parametrize(("rule", "like", "unlike"), [("frozen-fa", "fa", "bp"), ("frozen-bp", "bp", "fa")])
def test_norm_parameters_of_frozen_nets_learn_by_the_errors_of_their_rule(tiny, architecture, rule, like, unlike):
    """To the bit as in a net of the same weights that learns as a whole."""
    found, expected, other = (gradients(ruled(tiny, name, architecture)) for name in (rule, like, unlike))
    norms = [name for name in found if not name.startswith("head")]
    assert len(norms) >= 4
    for name in (*norms, "head.weight", "head.bias"):
        assert torch.equal(found[name], expected[name]), name
    for name in norms:
        assert not torch.equal(found[name], other[name]), name


# ---- what a rule says of itself ----


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_tells_its_feedback_weights_and_gives_exact_gradients_on_request(tiny, rule):
    net = ruled(tiny, rule)
    layers = feedback_layers(net)
    feedback = RULES[rule].feedback(net)
    assert list(feedback) == (list(models.matrices(net)) if rule in ("fa", "kp", "frozen-fa") else [])
    assert all(feedback[name] is layer.feedback for name, layer in layers.items())
    expected, own = gradients(ruled(tiny, "bp")), gradients(net)
    with RULES[rule].exact(net):
        found = gradients(net)
    assert {"1.weight", "head.weight"} <= found.keys() or rule == "frozen"
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    for name, value in gradients(net).items():
        assert torch.equal(value, own[name]), name


# ---- the weights that feedback alignment adds ----


def test_convert_and_build_leave_global_random_state_alone(tiny, global_random_state):
    before = global_random_state()
    net = build(tiny, "resnet18", "batch")
    convert(copy.deepcopy(net), "fa", gen(1))
    convert(net, "fa", gen(1), models.init_weight)
    assert global_random_state() == before


def test_b_is_in_the_state_dict_and_not_among_the_parameters(tiny):
    net = convert(build(tiny, "cnn4"), "fa", gen(1))
    keys = {f"{name}.feedback" for name in models.matrices(net)}
    assert len(keys) == 5
    assert keys <= net.state_dict().keys()
    assert not any("feedback" in name for name, _ in net.named_parameters())
    other = convert(build(tiny, "cnn4", seed=5), "fa", gen(2))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.head.feedback, net.head.feedback)


def test_parameters_stay_the_same_objects(tiny):
    net = build(tiny, "cnn4")
    before = dict(net.named_parameters())
    assert convert(net, "fa", gen(1)) is net
    after = dict(net.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is p for name, p in before.items())


@pytest.mark.parametrize("init", [None, models.init_weight], ids=["entries of W", "init"])
def test_b_follows_the_generator(tiny, init):
    first, again, other = (convert(build(tiny, "cnn4"), "fa", gen(s), init).state_dict() for s in (1, 1, 2))
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
    net = convert(build(tiny, "resnet18"), "fa", gen(1), init)
    layers = feedback_layers(net)
    assert list(layers) == list(models.matrices(net))
    assert {"head", "stem", "block3.shortcut.conv", "block5.shortcut.conv", "block7.shortcut.conv"} <= layers.keys()
    assert len({layer.feedback.data_ptr() for layer in layers.values()}) == len(layers) == 21
    for name, layer in layers.items():
        same_shape = [m for n, m in layers.items() if n != name and m.feedback.shape == layer.feedback.shape]
        assert not any(torch.equal(m.feedback, layer.feedback) for m in same_shape), name
        assert not torch.equal(layer.feedback, layer.weight), name


def test_b_does_not_move_with_w(tiny):
    net = convert(build(tiny, "cnn4"), "fa", gen(1))
    before = {name: layer.feedback.clone() for name, layer in feedback_layers(net).items()}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    assert all(torch.equal(layer.feedback, before[name]) for name, layer in feedback_layers(net).items())


def test_exact_feedback_puts_b_back_even_after_an_error(tiny):
    net = convert(build(tiny, "cnn4"), "fa", gen(1))
    before = {name: layer.feedback for name, layer in feedback_layers(net).items()}
    with contextlib.suppress(KeyError), exact_feedback(net):
        assert torch.equal(net.head.feedback, net.head.weight)
        raise KeyError
    assert all(layer.feedback is before[name] for name, layer in feedback_layers(net).items())


@pytest.mark.parametrize("rule", ["fa", "kp", "frozen-fa"])
def test_every_rule_with_feedback_draws_the_same_b(tiny, rule):
    """What the seed says, whatever else the rule does: arms of one seed differ in their rule alone."""
    expected = ruled(tiny, "fa").state_dict()
    found = ruled(tiny, rule).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_rule_bp_leaves_the_model_as_it_is(tiny):
    net = build(tiny, "cnn4")
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
    one_sentence(caught.value, "only nn.Linear and nn.Conv2d")
    assert type(net[0]) is nn.Linear, "a refused model is left as it was"
    convert(net, "bp")  # backpropagation is what it would do anyway


def test_a_bare_matrix_parameter_is_refused(one_sentence):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing = nn.Parameter(torch.eye(3))

    with pytest.raises(ValueError, match="layer 'model' is a Net") as caught:
        convert(Net(), "fa", gen())
    one_sentence(caught.value, "only nn.Linear and nn.Conv2d")


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
