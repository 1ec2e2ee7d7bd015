"""The updates against torch's own optimisers, numpy and scipy, and what each optimiser of a run takes."""

import copy

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankcollapse import RULES
from rankcollapse.errors import InputError
from rankcollapse.library import models
from rankcollapse.library import updates as optim
from rankcollapse.library.updates import MomentumSGD, Muon, flatten, full_rank, orthogonalise, top_r

MUON = {"lr": 0.05, "momentum": 0.9, "ns_steps": 5}


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


def weights(layout=torch.contiguous_format, device="cpu"):
    """A tall and a wide matrix, and convolutions of odd shapes, 1x1 and one input channel among them."""
    shapes = [(12, 5), (4, 9), (8, 3, 3, 3), (4, 6, 1, 1), (6, 1, 3, 3), (2, 5, 2, 3)]
    found = [nn.Parameter(torch.randn(shape, generator=gen(i)).to(device)) for i, shape in enumerate(shapes)]
    return [nn.Parameter(w.detach().to(memory_format=layout)) if w.dim() == 4 else w for w in found]


def gradients(step, params):
    """Gradients drawn in logical order, whatever the layout, and laid out as the parameters are."""
    drawn = [torch.randn(p.shape, generator=gen(100 * step + i)) for i, p in enumerate(params)]
    return [torch.empty_like(p).copy_(g) for p, g in zip(params, drawn, strict=True)]


def in_channels_last(tensor):
    return tensor.dim() == 4 and not tensor.is_contiguous()


def as_columns(tensor, last):
    """[out, everything else], in the order of columns of channels_last memory or of contiguous memory."""
    return tensor.permute(0, 2, 3, 1).reshape(len(tensor), -1) if last else tensor.reshape(len(tensor), -1)


def run_muon(params, steps=4, **options):
    optimizer = Muon(params, **MUON, **options)
    for step in range(steps):
        for p, g in zip(params, gradients(step, params), strict=True):
            p.grad = g
        optimizer.step()


def run_reference(params, orders, steps=4, *, shape_factor, weight_decay):
    """torch's Muon on matrices of their own; `orders` says which have their columns in channels_last order."""
    flat = [nn.Parameter(as_columns(p.detach(), last).clone()) for p, last in zip(params, orders, strict=True)]
    optimizer = torch.optim.Muon(flat, **MUON, adjust_lr_fn=shape_factor, weight_decay=weight_decay)
    for step in range(steps):
        for m, g, last in zip(flat, gradients(step, params), orders, strict=True):
            m.grad = as_columns(g, last).contiguous()
        optimizer.step()
    return [m.detach() for m in flat]


# ---- Muon ----


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("shape_factor", ["original", "match_rms_adamw"])
@LAYOUTS
def test_muon_is_torch_muon_on_flattened_matrices(shape_factor, weight_decay, layout, device, monkeypatch):
    """But for how the Newton-Schulz steps are computed, which is held to account below: here torch takes ours."""
    params = weights(layout, device)
    orders = [in_channels_last(p) for p in params]
    assert any(orders) == (layout == torch.channels_last)
    ours = lambda matrix, coefficients, steps, eps: orthogonalise(matrix, steps)  # noqa: E731
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", ours)
    expected = run_reference(params, orders, shape_factor=shape_factor, weight_decay=weight_decay)
    run_muon(params, shape_factor=shape_factor, weight_decay=weight_decay)
    for p, m, order in zip(params, expected, orders, strict=True):
        torch.testing.assert_close(as_columns(p.detach(), order), m, rtol=1e-5, atol=1e-6)


def newton_schulz(matrix, steps):
    """The definition of Jordan et al., in float64."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(steps):
        gram = x @ x.t()
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def spectrum(kind, k):
    if kind == "flat":
        return torch.ones(k)
    return torch.arange(1.0, k + 1) ** -1 if kind == "slow" else torch.logspace(0, -3, k)


def with_spectrum(shape, kind):
    """A matrix with random singular vectors; `normal` for one of normal entries."""
    if kind == "normal":
        return torch.randn(shape, generator=gen())
    k = min(shape)
    u, v = (torch.linalg.qr(torch.randn(n, k, generator=gen(n)))[0] for n in shape)
    return (u * spectrum(kind, k)) @ v.t()


def distance(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


SHAPES = [(1, 7), (10, 256), (64, 576), (64, 64), (96, 96), (96, 130), (80, 720), (128, 1152), (720, 80), (256, 3072)]


@pytest.mark.parametrize("kind", ["normal", "flat", "slow", "fast"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonalise_is_as_near_to_exact_newton_schulz_as_bfloat16_allows(shape, kind, device):
    """torch's own steps round to bfloat16 too: ours are no further away, or within 0.05 of the norm."""
    matrix = with_spectrum(shape, kind)
    expected = newton_schulz(matrix, 5)
    found = orthogonalise(matrix.to(device), 5).cpu()
    theirs = torch.optim._muon._zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    assert distance(found, expected) < max(1.1 * distance(theirs, expected), 0.05)
    assert torch.cosine_similarity(found.double().flatten(), expected.flatten(), dim=0) > 0.99
    s, exact = (torch.linalg.svdvals(m.double()) for m in (found, expected))
    assert float((s - exact).abs().max()) < 0.06


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 10])
@pytest.mark.parametrize("shape", [(8, 20), (80, 720), (80, 90)], ids=str)
def test_orthogonalise_takes_as_many_steps_as_it_is_told(shape, steps):
    matrix = with_spectrum(shape, "slow")
    found = orthogonalise(matrix, steps)
    to = {n: distance(found, newton_schulz(matrix, n)) for n in range(1, 12)}
    assert min(to, key=to.get) == steps
    assert to[steps] < 0.1


@pytest.mark.parametrize("shape", [(8, 20), (80, 720), (80, 90), (720, 80)], ids=str)
def test_several_matrices_at_once_are_orthogonalised_as_one_by_one(shape, device):
    several = torch.randn(3, *shape, generator=gen()).to(device)
    for found, matrix in zip(orthogonalise(several, 5), several, strict=True):
        assert distance(found, orthogonalise(matrix, 5).double()) < 0.02


def test_orthogonalise_leaves_zeros_and_passes_nan_on():
    for shape in ((8, 20), (80, 90)):
        assert torch.equal(orthogonalise(torch.zeros(shape), 5).float(), torch.zeros(shape))
        assert orthogonalise(torch.full(shape, torch.nan), 5).isnan().all()


@pytest.mark.parametrize("shape_factor", ["original", "match_rms_adamw"])
def test_muon_updates_in_both_layouts_agree_to_bfloat16_rounding(shape_factor):
    """Newton-Schulz rounds to bfloat16, so the order of columns shows in the last bits of the update, no more."""
    plain, last = weights(), weights(torch.channels_last)
    start = [p.detach().clone() for p in plain]
    for params in (plain, last):
        run_muon(params, steps=1, shape_factor=shape_factor, weight_decay=0.0)
    for before, p, q in zip(start, plain, last, strict=True):
        a, b = ((w.detach() - before).flatten() for w in (p, q))
        assert torch.cosine_similarity(a, b, dim=0) > 0.999
        assert abs(float(b.norm() / a.norm()) - 1) < 1e-2


def test_muon_trains_the_weights_in_place_and_keeps_their_layout():
    params = weights(torch.channels_last)
    before = [(p.data_ptr(), p.stride(), p.detach().clone()) for p in params]
    run_muon(params, steps=1, shape_factor="original", weight_decay=0.0)
    for p, (pointer, stride, value) in zip(params, before, strict=True):
        assert (p.data_ptr(), p.stride()) == (pointer, stride)
        assert not torch.equal(p.detach(), value)


def test_muon_leaves_a_weight_without_gradient_alone_and_clears_gradients():
    params = weights()
    kept = params[1].detach().clone()
    optimizer = Muon(params, **MUON, weight_decay=0.1, shape_factor="original")
    for i, p in enumerate(params):
        p.grad = None if i == 1 else torch.ones_like(p)
    optimizer.step()
    assert torch.equal(params[1].detach(), kept)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


# ---- momentum SGD ----


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@LAYOUTS
def test_momentum_sgd_without_decay_gives_the_bits_of_torch_sgd(momentum, layout, device):
    ours = [*weights(layout, device), nn.Parameter(torch.randn(7, generator=gen()).to(device))]
    theirs = copy.deepcopy(ours)
    pairs = [(ours, MomentumSGD(ours, lr=0.1, momentum=momentum)), (theirs, torch.optim.SGD(theirs, 0.1, momentum))]
    for params, optimizer in pairs:
        for step in range(5):
            for p, g in zip(params, gradients(step, params), strict=True):
                p.grad = g
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_decay_is_decoupled_from_the_gradient_and_momentum():
    p = nn.Parameter(torch.tensor([[4.0]], dtype=torch.float64))
    optimizer = MomentumSGD([p], lr=0.5, momentum=0.5, weight_decay=0.25)
    p.grad = torch.full_like(p, 2.0)
    optimizer.step()  # M = 2, W = (1 - 0.125) 4 - 0.5 * 2
    assert p.item() == 2.5
    p.grad = torch.full_like(p, -1.0)
    optimizer.step()  # M = 1 - 1 = 0, W = 0.875 * 2.5
    assert p.item() == 2.1875


def test_a_parameter_without_gradient_is_not_decayed():
    p = nn.Parameter(torch.ones(2, 2))
    MomentumSGD([p], lr=0.5, weight_decay=0.5).step()
    assert torch.equal(p, torch.ones(2, 2))


@LAYOUTS
def test_an_intervention_sees_matrices_of_momentum_and_leaves_vectors_alone(layout, device):
    """Cutting to rank 1, against numpy on the momentum worked out here."""
    params = [*weights(layout, device), nn.Parameter(torch.randn(7, generator=gen()).to(device))]
    expected = [p.detach().double().cpu().numpy().reshape(len(p), -1) for p in params]
    momentum = [0.0] * len(params)
    optimizer = MomentumSGD(params, lr=0.1, momentum=0.9, intervention=lambda m: top_r(m, 1))
    for step in range(3):
        for i, (p, g) in enumerate(zip(params, gradients(step, params), strict=True)):
            p.grad = g
            momentum[i] = 0.9 * momentum[i] + g.double().cpu().numpy().reshape(len(p), -1)
            update = momentum[i]
            if p.dim() > 1:
                u, s, v = np.linalg.svd(update, full_matrices=False)
                update = s[0] * np.outer(u[:, 0], v[0])
            expected[i] = expected[i] - 0.1 * update
        optimizer.step()
    atol = 2e-6 if device == "cpu" else 1e-4  # a GPU finds singular vectors by sweeps that end sooner
    for p, value in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().cpu().reshape(len(p), -1), value, rtol=0, atol=atol)


# ---- the direction of the last step ----


def sgd(**options):
    return lambda params: MomentumSGD(params, lr=0.1, **options)


def muon(**options):
    return lambda params: Muon(params, **{**MUON, "lr": 0.1, "weight_decay": 0.0, **options})


STEPS = {
    "sgd": sgd(momentum=0.9),
    "sgd, decay": sgd(momentum=0.9, weight_decay=0.5),
    "sgd without momentum": sgd(weight_decay=0.5),
    "top_r": sgd(momentum=0.9, weight_decay=0.5, intervention=lambda m: top_r(m, 1)),
    "full_rank": sgd(momentum=0.9, intervention=lambda m: full_rank(m, "spectral")),
    "full_rank without momentum": sgd(intervention=lambda m: full_rank(m, "frobenius")),
    "muon": muon(shape_factor="original"),
    "muon, decay": muon(shape_factor="original", weight_decay=0.5, momentum=0.5),
    "muon, match_rms_adamw": muon(shape_factor="match_rms_adamw", weight_decay=0.5, ns_steps=2),
}


@LAYOUTS
@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_direction_is_what_the_last_step_subtracted_per_rate_decay_aside(make, layout, device):
    params = weights(layout, device)
    optimizer = make(params)
    decay = optimizer.param_groups[0]["weight_decay"]
    for step, rate in enumerate((0.1, 0.3, 0.2)):
        optimizer.param_groups[0]["lr"] = rate
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, gradients(step, params), strict=True):
            p.grad = g
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 7.0  # of the step to come, as a schedule sets it
        after = [p.detach().clone() for p in params]
        for p, w, v in zip(params, before, after, strict=True):
            expected = as_columns((w.double() * (1 - rate * decay) - v.double()) / rate, in_channels_last(p))
            found = optimizer.direction(p)
            assert found.shape == (len(p), p[0].numel())
            assert found.norm() > 0.1
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(p.detach(), v) for p, v in zip(params, after, strict=True)), (
            "to ask is to change nothing"
        )


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_to_ask_for_the_direction_does_not_change_the_next_step(make, device):
    asked, plain = weights(device=device), weights(device=device)
    for params in (asked, plain):
        optimizer = make(params)
        for step in range(3):
            for p, g in zip(params, gradients(step, params), strict=True):
                p.grad = g
            optimizer.step()
            if params is asked:
                for p in params:
                    optimizer.direction(p)
    assert all(torch.equal(p, q) for p, q in zip(asked, plain, strict=True))


# ---- interventions ----

matrices = st.builds(
    lambda m, n, seed: torch.randn(m, n, generator=gen(seed), dtype=torch.float64),
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 99),
)  # fmt: skip


@given(matrices, st.data())
def test_top_r_is_the_truncated_svd_of_numpy(update, data):
    rank = data.draw(st.integers(1, min(update.shape)))
    u, s, v = np.linalg.svd(update.numpy(), full_matrices=False)
    found = top_r(update, rank)
    np.testing.assert_allclose(found, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-10)
    assert np.linalg.matrix_rank(found.numpy(), tol=1e-9) == rank


@given(matrices)
def test_top_r_at_full_rank_gives_the_update_back(update):
    torch.testing.assert_close(top_r(update, min(update.shape)), update, rtol=0, atol=1e-12)


@given(matrices)
def test_full_rank_has_equal_singular_values_and_keeps_the_norm_asked_for(update):
    for norm, order in (("frobenius", "fro"), ("spectral", 2)):
        found = full_rank(update, norm).numpy()
        s = np.linalg.svd(found, compute_uv=False)
        np.testing.assert_allclose(s, s[0], rtol=1e-10)
        np.testing.assert_allclose(np.linalg.norm(found, order), np.linalg.norm(update.numpy(), order), rtol=1e-10)


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_full_rank_is_the_polar_factor_of_scipy(shape):
    rng = np.random.default_rng(0)
    k = min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((n, k)))[0] for n in shape)
    update = (u * np.linspace(1, 3, k)) @ v.T
    unitary, _ = scipy.linalg.polar(update, side="right" if shape[0] >= shape[1] else "left")
    np.testing.assert_allclose(full_rank(torch.from_numpy(update), "spectral"), 3 * unitary, atol=1e-12)


@pytest.mark.parametrize(
    "intervention",
    [lambda m: top_r(m, 2), lambda m: full_rank(m, "frobenius"), lambda m: full_rank(m, "spectral")],
    ids=["top_r", "frobenius", "spectral"],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_an_update_that_is_not_finite_becomes_nan_all_through(intervention, bad, shape):
    update = torch.ones(shape)
    update[0, 1] = bad
    found = intervention(update)
    assert found.shape == shape
    assert found.isnan().all()


def test_a_flattened_weight_shares_the_memory_of_the_weight():
    for layout in (torch.contiguous_format, torch.channels_last):
        for p in weights(layout):
            matrix = flatten(p.detach())
            assert matrix.shape == (len(p), p[0].numel())
            assert matrix.data_ptr() == p.data_ptr()


# ---- the optimisers of a run ----


def make(tiny, **options):
    config = tiny(**{"architecture": "cnn4", "normalization": "batch", "width": 4, **options})
    net = models.build(config, gen())
    RULES[config.rule].attach(net, gen(1), models.init_weight)
    return net, optim.build(net, config)


def names(net, params):
    by_id = {id(p): name for name, p in net.named_parameters()}
    return sorted(by_id[id(p)] for p in params)


def test_sgd_takes_every_parameter_and_decays_forward_weights_alone(tiny):
    net, (sgd,) = make(tiny, optimizer="sgd", weight_decay=0.1, momentum=0.8)
    decayed, rest = sgd.param_groups
    assert type(sgd) is MomentumSGD
    assert names(net, decayed["params"]) == [
        "conv1.weight",
        "conv2.weight",
        "conv3.weight",
        "conv4.weight",
        "head.weight",
    ]
    assert sorted(names(net, decayed["params"]) + names(net, rest["params"])) == sorted(dict(net.named_parameters()))
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert decayed["momentum"] == rest["momentum"] == 0.8


def test_muon_takes_forward_weights_and_adamw_the_rest(tiny):
    options = {"lr": 0.02, "weight_decay": 0.1, "auxiliary_lr": 0.007, "ns_steps": 3}
    net, (muon, adamw) = make(tiny, optimizer="muon", shape_factor="match_rms_adamw", **options)
    expected = ["conv1.weight", "conv2.weight", "conv3.weight", "conv4.weight", "head.weight"]
    assert names(net, muon.param_groups[0]["params"]) == expected
    assert names(net, adamw.param_groups[0]["params"]) == sorted(set(dict(net.named_parameters())) - set(expected))
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.param_groups[0]["lr"], adamw.param_groups[0]["weight_decay"]) == (0.007, 0.0)
    assert (muon.param_groups[0]["lr"], muon.param_groups[0]["weight_decay"]) == (0.02, 0.1)
    assert (muon.ns_steps, muon.shape_factor) == (3, "match_rms_adamw")


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("rule", RULES)
def test_one_step_of_a_run_moves_every_parameter_that_learns_and_no_other(tiny, rule, optimizer):
    """Frozen parameters are with no optimiser; a weight's direction can be asked for in every rule."""
    net, optimizers = make(tiny, rule=rule, optimizer=optimizer, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    learns = sorted(name for name, p in net.named_parameters() if p.requires_grad)
    weights = [name for name in learns if net.get_parameter(name).dim() > 1]
    assert len(weights) == (1 if rule.startswith("frozen") else 5)
    taken = [getattr(o, "weights", None) or [p for g in o.param_groups for p in g["params"]] for o in optimizers]
    assert names(net, [p for each in taken for p in each]) == learns
    net(torch.randn(8, 1, 8, 8, generator=gen())).square().sum().backward()
    for each in optimizers:
        each.step()
    assert sorted(name for name, p in net.named_parameters() if not torch.equal(p.detach(), before[name])) == learns
    for name in weights:
        assert optimizers[0].direction(net.get_parameter(name)).norm() > 0


def test_interventions_of_a_run_are_those_of_its_config(tiny):
    update = torch.randn(16, 20, generator=gen())
    for options, expected in (
        ({"update": "top_r", "rank": 3}, top_r(update, 3)),
        ({"update": "full_rank", "norm": "frobenius"}, full_rank(update, "frobenius")),
        ({"update": "full_rank", "norm": "spectral"}, full_rank(update, "spectral")),
    ):
        _, (sgd,) = make(tiny, **options)
        assert torch.equal(sgd.intervention(update), expected)
    assert make(tiny, update="full")[1][0].intervention is None


def test_a_rank_beyond_a_matrix_is_refused_naming_the_layer(tiny, one_sentence):
    make(tiny, update="top_r", rank=4)  # conv1 is 4 x 9
    with pytest.raises(InputError) as caught:
        make(tiny, update="top_r", rank=5)
    one_sentence(caught.value, "rank is 5", "4 x 9", "'conv1'")
