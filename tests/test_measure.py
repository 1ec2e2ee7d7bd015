"""Measuring one's own training: tables against NumPy, known ranks, nothing left behind, models of other libraries."""

import doctest
import importlib
import itertools
import math
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rankcollapse
from rankcollapse.library import feedback, measure, models, rules, signals

RANKS = [*rankcollapse.MEASURES]
NULL = ["null_mean", "null_min", "null_q1", "null_median", "null_q3", "null_max"]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def values(*args, **options):
    """The table, as a dict by layer, quantity and measure."""
    table = rankcollapse.measure(*args, **options)
    assert [*table.columns] == ["layer", "quantity", "measure", "value"]
    assert not table.duplicated(["layer", "quantity", "measure"]).any()
    return table.set_index(["layer", "quantity", "measure"])["value"].to_dict()


def random(model, seed=0):
    """The model with weights that are drawn from a seed."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=gen(seed + p.numel()), dtype=p.dtype) / max(p[0].numel(), 1) ** 0.5)
    return model


def perceptron(*sizes, relu=nn.ReLU, rule=None, dtype=torch.float32):
    layers = [part for i, o in itertools.pairwise(sizes) for part in (nn.Linear(i, o), relu())][:-1]
    net = random(nn.Sequential(*layers).to(dtype))
    return rankcollapse.convert(net, rule, generator=gen(1)) if rule else net


def batch_of(n, features, classes, seed=2, dtype=torch.float32):
    return torch.randn(n, features, generator=gen(seed), dtype=dtype), torch.arange(n) % classes


def ranks(matrix):
    """The four measures of a matrix, by NumPy's SVD and written out."""
    s = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    p, q = (w[w > 0] / w.sum() for w in (s, s**2))
    entropies = (np.exp(-(each * np.log(each)).sum()) for each in (p, q))
    return dict(zip(RANKS, [*entropies, (s**2).sum() ** 2 / (s**4).sum(), (s**2).sum() / s.max() ** 2], strict=True))


# ---- numbers ----


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_ranks_and_cosines_are_numpys_of_a_net_worked_by_hand(rule):
    net, batch = perceptron(7, 6, 5, 4, rule=rule, dtype=torch.float64), batch_of(9, 7, 4, dtype=torch.float64)
    found = values(net, F.cross_entropy, batch, gen())
    names = ["0", "2", "4"]
    w = [net.get_submodule(name).weight.detach().numpy() for name in names]
    h = [batch[0].numpy()]
    for name, weight in zip(names, w, strict=True):
        a = h[-1] @ weight.T + net.get_submodule(name).bias.detach().numpy()
        h.append(np.maximum(a, 0) if name != "4" else a)
    top = np.exp(h[3]) / np.exp(h[3]).sum(1, keepdims=True)
    top[np.arange(9), batch[1]] -= 1

    def backward(back):
        middle = top / 9 @ back[2] * (h[2] > 0)
        errors = [middle @ back[1] * (h[1] > 0), middle, top / 9]
        return errors, [error.T @ x for error, x in zip(errors, h, strict=False)]

    b = [net.get_submodule(name).feedback.numpy() for name in names] if rule == "fa" else w
    (errors, gradients), (_, exact) = backward(b), backward(w)
    expected = {}
    for i, name in enumerate(names):
        for quantity, matrix in (("error", errors[i]), ("activation", h[i]), ("gradient", gradients[i])):
            expected |= {(name, quantity, key): value for key, value in ranks(matrix).items()}
    pairs = {("all", "gradient"): [np.concatenate([g.ravel() for g in each[:2]]) for each in (gradients, exact)]}
    pairs |= {(name, "gradient"): pair for name, *pair in zip(names, gradients, exact, strict=True)}
    pairs |= {(name, "weight"): pair for name, *pair in zip(names, w, b, strict=True)} if rule == "fa" else {}
    for key, (x, y) in pairs.items():
        expected[(*key, "cosine")] = float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    nulls = {key for key in found if key[2].startswith("null")}
    assert {key: value for key, value in found.items() if key not in nulls} == pytest.approx(expected, rel=1e-6)
    assert nulls == ({(*key, each) for key in pairs for each in NULL} if rule == "fa" else set())


def test_an_error_of_known_spectrum_has_its_ranks_and_goes_through_orthogonal_weights_with_them():
    """Of the loss Σ outputs targets the error is the targets: s of 3, 2, 2, 1, as in test_ranks."""
    q, _ = torch.linalg.qr(torch.randn(8, 8, generator=gen(), dtype=torch.float64))
    targets = q[:, :4] @ torch.diag(torch.tensor([3.0, 2, 2, 1], dtype=torch.float64))
    net = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 4)).double()
    with torch.no_grad():
        net[1].weight.copy_(q[:4])
    found = values(net, lambda outputs, targets: (outputs * targets).sum(), (torch.ones(8, 5).double(), targets))
    hand = [8 / (27 * 16) ** (1 / 8), 18 / (9**9 * 4**8) ** (1 / 18), 18**2 / (81 + 16 + 16 + 1), 2]
    for layer in "01":
        assert [found[layer, "error", key] for key in RANKS] == pytest.approx(hand)
        assert found[layer, "error", "stable_rank"] == pytest.approx(2)
    assert [found["0", "activation", key] for key in RANKS] == pytest.approx([1] * 4, abs=1e-5), "eight equal rows"


@settings(max_examples=20)
@given(st.integers(2, 9), st.integers(2, 6), st.sampled_from(["bp", "fa"]))
def test_no_error_of_a_linear_net_has_more_rank_than_samples_or_classes_less_one(n, classes, rule):
    net = perceptron(7, 12, 12, classes, relu=nn.Identity, rule=rule, dtype=torch.float64)
    found = values(net, F.cross_entropy, batch_of(n, 7, classes, dtype=torch.float64))
    for layer in "024":
        for key in RANKS:
            assert 1 <= found[layer, "error", key] + 1e-6 <= min(n, classes - 1) + 1e-4


@pytest.mark.parametrize("arm", [{}, {"architecture": "resnet18", "normalization": "batch", "width": 8}], ids=str)
def test_it_measures_to_the_bit_what_the_probes_of_the_grid_measure(tiny, new_state, arm):
    state = new_state(tiny(**arm, rule="fa", signals_every=1))
    state.signals.measure(0)
    found = values(state.model, F.cross_entropy, state.signals.batch)
    for s in state.signals.spectra:
        if s.quantity != "classifier_input_error":
            assert {key: found[s.layer, s.quantity, key] for key in RANKS} == rankcollapse.measures(s.values)
    cosines = [row for row in state.signals.alignment if not row[0].endswith("null")]
    assert len(cosines) > 4
    for quantity, layer, _, value in cosines:
        assert found[layer, quantity, "cosine"] == value


# ---- alignment ----


@pytest.mark.parametrize("rule", [None, "bp", "fa"])
def test_the_cosine_of_backpropagation_is_one_whatever_dropout_draws(rule):
    net = perceptron(7, 16, 16, 4, relu=lambda: nn.Dropout(0.5), rule=rule)
    with rules.exact_feedback(net):
        found = values(net, F.cross_entropy, batch_of(9, 7, 4))
    layers = ["0", "2", "4", "all"]
    assert [found[layer, "gradient", "cosine"] for layer in layers] == pytest.approx([1] * 4, abs=1e-12)
    weights = {key[0]: value for key, value in found.items() if key[1:] == ("weight", "cosine")}
    assert weights == pytest.approx(dict.fromkeys("024", 1) if rule == "fa" else {})


def test_the_null_holds_an_untrained_bs_own_cosine_in_nine_minus_one_of_nine_plus_one_cases():
    """Of 200 nets: 160 ± 3 deviations of 5.7, in each layer; and the mean and quartiles are in order."""
    inside = dict.fromkeys((("0", "gradient"), ("2", "gradient"), ("all", "gradient"), ("2", "weight")), 0)
    for seed in range(200):
        net = random(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), seed)
        rankcollapse.convert(net, "fa", generator=gen(seed + 1000))
        found = values(net, F.cross_entropy, batch_of(12, 6, 3, seed), gen(seed + 5000))
        for key in inside:
            low, q1, median, q3, high = (found[(*key, name)] for name in ["null_min", *NULL[2:]])
            assert low <= q1 <= median <= q3 <= high
            assert low <= found[(*key, "null_mean")] <= high
            inside[key] += low <= found[(*key, "cosine")] <= high
    assert all(abs(count - 160) < 3 * math.sqrt(200 * 0.8 * 0.2) for count in inside.values()), inside


def test_the_null_is_of_as_many_draws_as_asked_from_the_generator_alone_and_only_with_one():
    net, batch = perceptron(7, 6, 5, 4, rule="fa"), batch_of(9, 7, 4)
    first, again, other = (values(net, F.cross_entropy, batch, gen(seed), draws=4) for seed in (0, 0, 1))
    assert first == again
    assert first.keys() == other.keys()
    assert {key for key in first if first[key] != other[key]} == {
        (layer, quantity, name)
        for layer, quantity in [*((x, "weight") for x in "024"), *((x, "gradient") for x in ("0", "2", "all"))]
        for name in NULL
    }, "the last gradient is always exact"
    drawn, taken = [], signals.passes

    def watched(model, *args):
        drawn.append([layer.feedback.flatten().sort().values for layer in feedback.feedback_layers(model).values()])
        return taken(model, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "passes", watched)
        assert not any(key[2].startswith("null") for key in values(net, F.cross_entropy, batch))
        assert len(drawn) == 2
        values(net, F.cross_entropy, batch, gen(), draws=4)
    assert len(drawn) == 2 + 2 + 4
    for fresh in drawn[4:]:
        assert all(torch.equal(a, b) for a, b in zip(fresh, drawn[0], strict=True)), "B's entries in another order"


def test_a_model_of_which_a_part_is_converted_is_compared_whole():
    net = perceptron(7, 6, 5, 4)
    rankcollapse.convert(net[2], "fa", generator=gen(3))
    found = values(net, F.cross_entropy, batch_of(9, 7, 4), gen())
    assert {key[0] for key in found if key[1] == "weight"} == {"2"}
    cosines = [found[layer, "gradient", "cosine"] for layer in "024"]
    assert cosines[1:] == pytest.approx([1, 1])
    assert cosines[0] < 0.9


# ---- nothing is left behind ----


class Odd(nn.Module):
    """Batch norm in two modes, dropout, a frozen layer, a buffer that every pass replaces, and inputs written over."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(7, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.norm, self.still, self.drop = nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        x = self.drop(torch.relu_(self.norm(self.one(x.mul_(2)))))
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.three(torch.relu(self.still(self.two(x - self.mean))))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_measurement_leaves_everything_as_it_was_to_the_bit(global_random_state, training, fails):
    net = rankcollapse.convert(random(Odd()), "kp", generator=gen(1)).train(training)
    net.still.eval()
    net.two.weight.requires_grad_(False)
    batch = batch_of(9, 7, 4)
    F.cross_entropy(net(batch[0].clone()), batch[1]).backward()
    gradients = {name: (p.grad, None if p.grad is None else p.grad.clone()) for name, p in net.named_parameters()}
    state = {name: (value, value.clone()) for name, value in net.state_dict(keep_vars=True).items()}
    modes, learns = ([getattr(x, key) for x in each] for each, key in (
        ([*net.modules()], "training"), ([*net.parameters()], "requires_grad"),
    ))  # fmt: skip
    hooks, before = [len(m._forward_hooks) for m in net.modules()], global_random_state()

    def loss(outputs, labels):
        return outputs if fails else F.cross_entropy(outputs, labels)

    with torch.inference_mode():  # as in a validation loop
        if fails:
            with pytest.raises(ValueError, match="one number"):
                rankcollapse.measure(net, loss, batch, gen())
        else:
            rankcollapse.measure(net, loss, batch, gen())
    assert global_random_state() == before
    assert torch.equal(batch[0], batch_of(9, 7, 4)[0])
    for name, value in net.state_dict(keep_vars=True).items():
        assert value is state[name][0]
        assert torch.equal(value, state[name][1])
    for name, p in net.named_parameters():
        assert p.grad is gradients[name][0]
        assert p.grad is None or torch.equal(p.grad, gradients[name][1])
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == learns
    assert [len(m._forward_hooks) for m in net.modules()] == hooks


def test_batch_norm_has_the_statistics_of_training_unless_it_is_frozen_in_a_model_that_trains():
    net, batch = nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)), batch_of(9, 7, 4)
    random(net)[1].running_mean.fill_(-3)
    seen = {}
    for name, modes in {"training": (True, True), "evaluation": (False, False), "frozen": (True, False)}.items():
        net.train(modes[0])
        net[1].train(modes[1])
        seen[name] = values(net, F.cross_entropy, batch)
    assert seen["training"] == seen["evaluation"]
    key = "3", "activation", "entropy_s"
    assert seen["frozen"][key] != pytest.approx(seen["training"][key])


def test_frozen_layers_are_measured_as_if_they_learnt():
    net, batch = perceptron(7, 6, 5, 4, rule="fa"), batch_of(9, 7, 4)
    learning = values(net, F.cross_entropy, batch, gen())
    assert values(net.requires_grad_(False), F.cross_entropy, batch, gen()) == learning
    assert {key[0] for key in learning} == {"0", "2", "4", "all"}


# ---- any model ----


class Named(nn.Module):
    """Of two named inputs, and returns an object."""

    def __init__(self):
        super().__init__()
        self.net = perceptron(7, 6, 5, 4)

    def forward(self, x, scale):
        return SimpleNamespace(logits=self.net(x * scale))


def test_inputs_are_a_tensor_or_a_tuple_or_a_dict_and_the_loss_gets_what_the_model_returns():
    (x, labels), scale = batch_of(9, 7, 4), torch.tensor(2.0)
    expected = values(perceptron(7, 6, 5, 4), F.cross_entropy, (2 * x, labels))
    for inputs in ((x, scale), [x, scale], {"scale": scale, "x": x}):
        found = values(Named(), lambda out, labels: F.cross_entropy(out.logits, labels), (inputs, labels))
        assert {(key[0].removeprefix("net."), *key[1:]): value for key, value in found.items()} == expected


def test_rows_of_a_linear_layer_on_sequences_are_tokens_and_those_of_a_convolution_images():
    net = perceptron(7, 6, 5, 4, relu=nn.Tanh, rule="fa", dtype=torch.float64)
    x, _ = batch_of(15, 7, 4, dtype=torch.float64)
    expected = values(net, lambda y, _: y.square().sum(), (x, None), gen())
    assert values(net, lambda y, _: y.square().sum(), (x.view(5, 3, 7), None), gen()) == pytest.approx(expected)
    assert expected["0", "activation", "entropy_s"] == pytest.approx(ranks(x)["entropy_s"])
    one = values(net, lambda y, _: y.square().sum(), (x[0], None))
    assert [one[layer, "error", key] for layer in "024" for key in RANKS] == pytest.approx([1] * 12), "one sample"

    conv = random(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 2, 2)).double())
    images = torch.randn(6, 3, 7, 7, generator=gen(), dtype=torch.float64)
    found = values(conv, lambda y, _: y.pow(3).sum(), (images, None))
    hidden = conv[:2](images)
    outputs = conv[2](hidden)
    (error,) = torch.autograd.grad(outputs.pow(3).sum(), outputs)
    for key, matrix in {("0", "activation"): images, ("2", "activation"): hidden, ("2", "error"): error}.items():
        expected = ranks(matrix.detach().flatten(1))
        assert {name: found[(*key, name)] for name in RANKS} == pytest.approx(expected, rel=1e-6)
    alone, first = (values(conv, lambda y, _: y.pow(3).sum(), (x, None)) for x in (images[0], images[:1]))
    assert alone == pytest.approx(first), "one image without a batch"


class Calls(nn.Module):
    """`twice` is called twice, `idle` never, `aside` to no effect on the loss, and `hidden` without autograd."""

    def __init__(self):
        super().__init__()
        self.twice, self.idle, self.aside, self.hidden = (nn.Linear(6, 6, bias=False) for _ in range(4))

    def forward(self, x):
        with torch.no_grad():
            x = self.hidden(x)
        self.aside(x)
        return self.twice(torch.tanh(self.twice(input=x)))


def test_a_layer_called_twice_has_the_rows_of_both_calls_and_an_idle_one_none_and_one_without_effect_zeros():
    net, (x, _) = random(Calls().double()), batch_of(4, 6, 1, dtype=torch.float64)
    found = values(net, lambda y, _: y.pow(3).sum(), (x, None))
    assert {key[0] for key in found} == {"twice", "aside", "all"}
    assert [found["aside", quantity, key] for quantity in ("error", "gradient") for key in RANKS] == [0] * 8
    assert math.isnan(found["aside", "gradient", "cosine"])
    w, h = (t.detach().numpy() for t in (net.twice.weight, net.hidden(x)))
    middle = np.tanh(h @ w.T)
    late = 3 * (middle @ w.T) ** 2
    early = late @ w * (1 - middle**2)
    both = {"error": [early, late], "activation": [h, middle]}
    expected = {key: ranks(np.concatenate(parts)) for key, parts in both.items()}
    expected["gradient"] = ranks(early.T @ h + late.T @ middle)
    for quantity, each in expected.items():
        assert {key: found["twice", quantity, key] for key in RANKS} == pytest.approx(each, rel=1e-6)


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_a_relu_in_place_behind_a_layer_changes_nothing(rule):
    nets = (perceptron(7, 6, 5, 4, relu=make, rule=rule) for make in (nn.ReLU, partial(nn.ReLU, inplace=True)))
    plain, in_place = (values(net, F.cross_entropy, batch_of(9, 7, 4)) for net in nets)
    assert plain == in_place


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_under_a_checkpoint_which_calls_layers_again_going_back_the_table_is_the_same(rule):
    net, batch = perceptron(7, 6, 5, 4, rule=rule), batch_of(9, 7, 4)

    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)

    plain, saved = values(net, F.cross_entropy, batch), values(Saving(), F.cross_entropy, batch)
    assert {(key[0].removeprefix("net."), *key[1:]): value for key, value in saved.items()} == plain


def test_what_cannot_be_measured_is_refused_in_one_sentence(refused):
    net, batch = perceptron(7, 6, 4), batch_of(9, 7, 4)
    vector = lambda outputs, _: outputs.sum(1)  # noqa: E731
    refused(lambda: rankcollapse.measure(net, vector, batch), "shape [9]", "one number", error=ValueError)
    refused(lambda: rankcollapse.measure(net, lambda *_: 0.5, batch), "a float", "one number", error=ValueError)
    refused(lambda: rankcollapse.measure(nn.ReLU(), F.cross_entropy, batch), "Linear or Conv2d", error=ValueError)
    conv = nn.Conv2d(1, 1, 1)
    pyramid = nn.Sequential(conv, nn.AvgPool2d(2), conv)
    call = lambda: rankcollapse.measure(pyramid, lambda y, _: y.sum(), (torch.ones(2, 1, 4, 4), None))  # noqa: E731
    refused(call, "'0'", "several sizes", error=ValueError)


# ---- the trajectory ----


def steps(net, count, add=None, seed=0):
    """The gradients of that many steps of SGD, by layer, [steps, parameters]."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = []
    if add:
        optimizer.register_step_pre_hook(lambda *_: add())
    for step in range(count):
        optimizer.zero_grad()
        x, labels = batch_of(16, 7, 4, seed=100 * seed + step)
        F.cross_entropy(net(x), labels).backward()
        found.append({name: w.grad.flatten().numpy().copy() for name, w in models.matrices(net).items()})
        optimizer.step()
    return {name: np.stack([each[name] for each in found]) for name in found[0]}


@pytest.mark.parametrize("every", [1, 3])
def test_a_trajectorys_table_is_numpys_of_the_gradients_of_every_kth_step(every):
    net = perceptron(7, 6, 5, 4)
    kept = rankcollapse.Trajectory(net, every)
    assert kept.table().empty
    rows = {name: matrix[::every] for name, matrix in steps(net, 13, kept.add).items()}
    rows["all"] = np.concatenate([*rows.values()], axis=1)
    taken = [*range(0, 13, every)]
    table = kept.table(stride=2, window=3)
    assert {*table["measure"]} == {*RANKS}
    assert {*table["layer"]} == {"0", "2", "4", "all"}
    lengths = sorted({*range(2, len(taken), 2), len(taken)})
    for (layer, scope), part in table.groupby(["layer", "scope"]):
        wide = part.pivot(index="step", columns="measure", values="value")
        ends = [t for t in lengths if scope == "cumulative" or t >= 3]
        assert [*wide.index] == [taken[t - 1] for t in ends]
        for t in ends:
            mine = rows[layer][:t] if scope == "cumulative" else rows[layer][t - 3 : t]
            assert {*part[part["step"] == taken[t - 1]]["rows"]} == {len(mine)}
            assert wide.loc[taken[t - 1]].to_dict() == pytest.approx(ranks(mine), rel=1e-3)
    last = kept.table()
    assert {*last["scope"]} == {"cumulative"}
    assert {*last["rows"]} == {len(taken)}


def test_a_trajectory_keeps_what_learns_in_a_temporary_file_that_goes_with_it(refused):
    net = perceptron(7, 6, 5, 4)
    net[2].requires_grad_(False)
    kept = rankcollapse.Trajectory(net, every=2)
    path = kept.path
    for step in range(4):
        net[4](net[3](torch.ones(2, 5))).sum().backward()  # the first layer has no gradient
        kept.add(step)
    assert kept.steps == [0, 2]
    table = kept.table()
    assert path.stat().st_size == kept.size == 2 * 4 * (6 * 7 + 4 * 5)
    assert {*table["layer"]} == {"0", "4", "all"}
    assert {*table[table["layer"] == "0"]["value"]} == {0}
    kept.close()
    assert not path.exists()
    net.requires_grad_(False)
    refused(lambda: rankcollapse.Trajectory(net, every=1), "no Linear or Conv2d", error=ValueError)


def test_a_trajectory_goes_on_from_its_state_and_its_file(tmp_path):
    nets = perceptron(7, 6, 4), perceptron(7, 6, 4)
    whole, first = (rankcollapse.Trajectory(n, 2, tmp_path / f) for n, f in zip(nets, ("whole", "part"), strict=True))
    for kept, net in zip((whole, first), nets, strict=True):
        steps(net, 5, kept.add, seed=1)
    state = first.state_dict()
    first.add()  # is lost: the state is from before
    first.close()
    again = rankcollapse.Trajectory(nets[1], 2, tmp_path / "part")
    again.load_state_dict(state)
    for kept, net in ((whole, nets[0]), (again, nets[1])):
        steps(net, 5, kept.add, seed=2)
        kept.state_dict()
    assert again.steps == whole.steps == [0, 2, 4, 6, 8]
    assert (tmp_path / "part").read_bytes()[: again.size] == (tmp_path / "whole").read_bytes()
    assert again.table().equals(whole.table())


# ---- examples, and other libraries ----


LIBRARY = sorted(path.stem for path in Path(measure.__file__).parent.glob("[!_]*.py"))


@pytest.mark.parametrize("module", LIBRARY)
def test_the_examples_in_the_docstrings_run(module):
    assert doctest.testmod(importlib.import_module(f"rankcollapse.library.{module}")).failed == 0


def test_every_public_function_and_class_of_the_library_has_an_example():
    public = {name: getattr(rankcollapse, name) for name in rankcollapse.__all__}
    mine = {
        name: each for name, each in public.items() if "library" in getattr(each, "__module__", "") and callable(each)
    }
    assert len(mine) > 15
    assert [name for name, each in mine.items() if ">>>" not in each.__doc__] == []


def test_the_example_of_the_readme_runs(capsys):
    """As it stands there: a table of a row per layer, of ranks between 1 and the number of rows."""
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 16
    found: dict = {}
    exec(example, found)
    wide = found["table"].query("measure == 'entropy_s'").pivot(index="layer", columns="quantity", values="value")
    assert len(wide) == 21
    assert wide["error"].between(1, 16).all()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == [*wide.index]
    cosine = found["table"].query("measure == 'cosine' and quantity == 'gradient'").set_index("layer")["value"]
    assert cosine["fc"] == pytest.approx(1)
    assert cosine.drop("fc").between(-1, 0.9).all()


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_a_lightning_module_is_measured_before_and_after_its_trainer_and_its_gradients_collected(rule, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = perceptron(7, 6, 5, 4, rule=rule)
            self.seen = None

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return F.cross_entropy(self(batch[0]), batch[1])

        def on_after_backward(self):
            self.trajectory.add()

        def validation_step(self, batch, _):
            self.seen = values(self, F.cross_entropy, tuple(batch), gen())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    module.trajectory = rankcollapse.Trajectory(module, every=2)
    x, labels = batch_of(64, 7, 4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=16)
    held = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=64)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=2, enable_model_summary=False, **options)
    trainer.fit(module, loader, held)
    assert module.seen == values(module, F.cross_entropy, (x, labels), gen())
    assert {key[0] for key in module.seen} == {"net.0", "net.2", "net.4", "all"}
    assert {*module.trajectory.table()["rows"]} == {4}


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_a_hugging_face_model_is_measured_by_tokens_and_by_sequences(rule):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "num_labels": 3}
    model = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**sizes))
    random(model)
    if rule == "fa":
        rankcollapse.convert(model, "fa", generator=gen(1))
    ids, labels = torch.randint(50, (6, 5), generator=gen()), torch.arange(6) % 3
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = values(model.train(), lambda out, y: F.cross_entropy(out.logits, y), (inputs, labels), gen(), draws=3)
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert {key[0] for key in found} == {*linear, "all"}
    assert len(linear) == 2 * 6 + 2
    own = values(model, lambda out, _: out.loss, ({**inputs, "labels": labels}, None), gen(), draws=3)
    assert own == pytest.approx(found, rel=1e-4, abs=1e-4)
    assert found["distilbert.transformer.layer.0.attention.q_lin", "activation", "entropy_s"] > 6, "30 tokens"
    assert found["classifier", "error", "entropy_s"] < 2.001, "6 sequences of 3 classes"
    cosine = found[linear[0], "gradient", "cosine"]
    assert cosine == pytest.approx(1) if rule == "bp" else cosine < 0.9
    assert found["classifier", "gradient", "cosine"] == pytest.approx(1)
