"""The updates against torch's own optimisers, numpy and scipy, and what each optimiser of a run takes."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankcollapse.errors import InputError
from rankcollapse.experiment import network, training
from rankcollapse.library import models, ranks, rules, signals, spectra, trajectory
from rankcollapse.library.updates import MomentumSGD, Muon, full_rank, orthogonalise, top_r, unflatten

INTERVENTIONS = [lambda m: top_r(m, 2), lambda m: full_rank(m, "frobenius"), lambda m: full_rank(m, "spectral")]
A, B, C = 3.4445, -4.7750, 2.0315
zeropower = torch.optim._muon._zeropower_via_newtonschulz  # torch's own, before a test puts ours in its place
SHAPES = [(12, 5), (4, 9), (8, 3, 3, 3), (4, 6, 1, 1), (6, 1, 3, 3), (2, 5, 2, 3), (7,), (4, 3, 5), (3, 4, 2, 3, 2)]
MUON = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "ns_steps": 5, "shape_factor": "original"}
STEPS = {
    "sgd": partial(MomentumSGD, lr=0.1, weight_decay=0.5, momentum=0.9),
    "sgd without momentum": partial(MomentumSGD, lr=0.1),
    "top_r": partial(MomentumSGD, lr=0.1, momentum=0.9, weight_decay=0.5, intervention=lambda m: top_r(m, 1)),
    "full_rank": partial(MomentumSGD, lr=0.1, momentum=0.9, intervention=INTERVENTIONS[2]),
    "muon": partial(Muon, **{**MUON, "weight_decay": 0.5}),
    "muon, match_rms_adamw": partial(Muon, **{**MUON, "shape_factor": "match_rms_adamw", "ns_steps": 2}),
}


def channels_last(tensor):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))


def swapped(tensor, first, second):
    """Two dimensions, modulo their number, have changed places in memory."""
    first, second = first % tensor.dim(), second % tensor.dim()
    return tensor.transpose(first, second).contiguous().transpose(first, second)


LAYOUTS = {
    "contiguous": torch.clone,
    "channels_last": channels_last,
    "transposed": lambda t: swapped(t, 0, -1),
    "transposed channels": lambda t: swapped(t, 0, 1),
    "sliced": lambda t: t.new_full([2 * n for n in t.shape], torch.nan)[(slice(None, None, 2),) * t.dim()].copy_(t),
}


make = pytest.fixture(params=STEPS.values(), ids=STEPS)(lambda request: request.param)
layout = pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)(lambda request: request.param)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(layout=torch.clone, device="cpu", dtype=torch.float32, shapes=SHAPES):
    drawn = (torch.randn(shape, generator=gen(i)) for i, shape in enumerate(shapes))
    return [nn.Parameter(layout(value.to(device, dtype))) for value in drawn]


def run(optimizer, params, steps=3, start=0):
    """With gradients drawn in logical order, whatever the layout."""
    for step in range(start, start + steps):
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=gen(100 * step + i)).to(p)
        optimizer.step()


def distance(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("shape_factor", "decay"), [("original", 0.1), ("match_rms_adamw", 0.0)])
def test_muon_is_torch_muon_on_flattened_matrices(shape_factor, decay, layout, device, monkeypatch):
    """In any layout, in place, to the rounding of bfloat16 above 64 rows. Newton-Schulz is below: torch takes ours."""
    params = weights(layout, device, shapes=[*SHAPES, (80, 16, 3, 3), (80, 10, 2, 3, 3)])
    before = [(p.data_ptr(), p.stride(), p.detach().clone()) for p in params]
    flat = [nn.Parameter(p.detach().reshape(len(p), -1).clone()) for p in params]
    ours = lambda matrix, coefficients, steps, eps: orthogonalise(matrix, steps)  # noqa: E731
    monkeypatch.setattr(torch.optim._muon, zeropower.__name__, ours)
    theirs = torch.optim.Muon(flat, lr=0.05, momentum=0.9, weight_decay=decay, adjust_lr_fn=shape_factor)
    ours = Muon(params, **{**MUON, "weight_decay": decay, "shape_factor": shape_factor})
    for step in range(3):
        run(ours, params, 1, step)
        for m, p in zip(flat, params, strict=True):
            m.grad = p.grad.reshape(m.shape).clone()
        theirs.step()
    for p, m, (pointer, stride, value) in zip(params, flat, before, strict=True):
        moved, expected = p.detach() - value, m.detach().view(p.shape) - value
        assert distance(moved, expected) < (0.02 if len(p) > 64 else 1e-4)
        assert (p.data_ptr(), p.stride()) == (pointer, stride)


def newton_schulz(matrix, steps):
    """The definition of Jordan et al., in float64."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(steps):
        gram = x @ x.t()
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


def with_spectrum(shape, kind):
    """A matrix with random singular vectors; `normal` for one of normal entries."""
    k = min(shape)
    s = {"flat": torch.ones(k), "slow": torch.arange(1.0, k + 1) ** -1, "fast": torch.logspace(0, -3, k)}
    u, v = (torch.linalg.qr(torch.randn(n, k, generator=gen(n)))[0] for n in shape)
    return (u * s[kind]) @ v.t() if kind in s else torch.randn(shape, generator=gen())


@pytest.mark.parametrize("kind", ["normal", "flat", "slow", "fast"])
@pytest.mark.parametrize("shape", [(1, 7), (64, 576), (96, 96), (128, 1152), (720, 80)], ids=str)
def test_orthogonalise_is_as_near_to_exact_newton_schulz_as_bfloat16_allows(shape, kind, device):
    """torch's own steps round to bfloat16 too: ours are no further away, or within 0.05 of the norm; several too."""
    matrix = with_spectrum(shape, kind)
    expected, one = newton_schulz(matrix, 5), orthogonalise(matrix.to(device), 5).cpu()
    for found in (one, *orthogonalise(torch.stack([matrix, 1e-30 * matrix]).to(device), 5).cpu()):
        assert distance(found, expected) < max(1.1 * distance(zeropower(matrix, (A, B, C), 5, 1e-7), expected), 0.05)
        s, exact = (torch.linalg.svdvals(m.double()) for m in (found, expected))
        assert float((s - exact).abs().max()) < 0.06


def test_empty_directions_fill_by_the_rounding_of_the_matrix_alone():
    """The figures of the docstring: float32 keeps rank 5; bfloat16 fills as exact steps on the rounded matrix do."""
    rank = lambda matrix: ranks.entropy_s(spectra.singular_values(matrix))  # noqa: E731
    small, large = (torch.randn(m, 5, generator=gen(m)) @ torch.randn(5, 576, generator=gen()) for m in (64, 128))
    assert rank(orthogonalise(small, 5)) == pytest.approx(4.95, abs=0.06)
    assert rank(newton_schulz(large, 5)) == pytest.approx(4.95, abs=0.06)
    rounded = (large / large.norm()).bfloat16()
    assert rank(orthogonalise(large, 5)) == pytest.approx(rank(newton_schulz(rounded, 5)), rel=0.1)
    assert 55 < rank(orthogonalise(large, 5)) < rank(zeropower(large, (A, B, C), 5, 1e-7)) - 10


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 10])
@pytest.mark.parametrize("shape", [(8, 20), (80, 720), (80, 90)], ids=str)
def test_orthogonalise_takes_as_many_steps_as_it_is_told(shape, steps):
    matrix = with_spectrum(shape, "slow")
    found = orthogonalise(matrix, steps)
    to = {n: distance(found, newton_schulz(matrix, n)) for n in range(1, 12)}
    assert min(to, key=to.get) == steps
    assert to[steps] < 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_orthogonalise_knows_no_scale(dtype):
    """Powers of two over all of the type's range: to the bit; below its normal numbers as far as they hold digits."""
    info = torch.finfo(dtype)
    for shape in ((8, 20), (80, 720), (90, 80)):
        matrix = torch.randn(shape, generator=gen()).clamp(-3.9, 3.9).to(dtype)
        matrix = torch.where(matrix.abs() < 0.5, 0, matrix)
        tiniest = matrix * (256 * info.smallest_normal * info.eps)
        assert distance(orthogonalise(tiniest, 5), orthogonalise(matrix, 5)) < 0.02
        for scale in (2.0 ** (math.log2(info.max) // 1 - 2), 2.0**-12, 4 * info.tiny):
            assert torch.equal(orthogonalise(matrix * scale, 5), orthogonalise(matrix, 5))
        assert not orthogonalise(0 * matrix, 5).any()
        assert orthogonalise(matrix / 0, 5).isnan().all()
        assert orthogonalise(matrix[:, :0], 5).shape == (len(matrix), 0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_sgd_without_decay_gives_the_bits_of_torch_sgd(momentum, layout, device):
    """With groups of their own rate and momentum, one of them empty, and a rate that changes, to 0 at last."""
    ours = weights(layout, device)
    theirs = copy.deepcopy(ours)
    for params, kind in ((ours, MomentumSGD), (theirs, torch.optim.SGD)):
        groups = [{"params": params[:3]}, {"params": []}, {"params": params[3:], "lr": 0.03, "momentum": momentum / 2}]
        optimizer = kind(groups, lr=0.1, momentum=momentum)
        for step in range(4):
            optimizer.param_groups[0]["lr"] = 0.1 * (3 - step)
            run(optimizer, params, 1, step)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_decay_is_decoupled_from_the_gradient_and_momentum():
    p, unused = nn.Parameter(torch.tensor([[4.0]]).double()), nn.Parameter(torch.ones(2, 2))
    optimizer = MomentumSGD([p, unused], lr=0.5, momentum=0.5, weight_decay=0.25)
    for gradient, expected in ((2.0, 2.5), (-1.0, 2.1875)):  # M = 2, W = 0.875 * 4 - 0.5 * 2; M = 0, W = 0.875 * 2.5
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
        assert p.item() == expected
    assert torch.equal(unused, torch.ones(2, 2)), "a parameter without gradient is not decayed"


def test_an_intervention_sees_matrices_of_momentum_and_leaves_vectors_alone(layout, device):
    """Cutting to rank 1, against numpy. A GPU finds singular vectors by sweeps that end sooner."""
    params = weights(layout, device)
    before = [p.detach().cpu().reshape(len(p), -1).double().numpy() for p in params]
    run(MomentumSGD(params, lr=0.1, intervention=lambda m: top_r(m, 1)), params, steps=1)
    for p, value in zip(params, before, strict=True):
        u, s, v = np.linalg.svd(p.grad.cpu().reshape(len(p), -1).double().numpy(), full_matrices=False)
        expected = value - 0.1 * s[0] * np.outer(u[:, 0], v[0])  # of a vector the only direction is all of it
        found = p.detach().cpu().reshape(len(p), -1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 if device == "cpu" else 1e-4)


def test_direction_is_what_the_last_step_subtracted_per_rate_decay_aside(make, layout, device):
    """In each group with its own momentum; and however often one asks."""
    params = weights(layout, device)
    optimizer = make([{"params": params[:4]}, {"params": params[4:], "momentum": 0.3}])
    decay = optimizer.param_groups[0]["weight_decay"]
    for step, rate in enumerate((0.1, 0.3)):
        before = [p.detach().clone() for p in params]
        for group in optimizer.param_groups:
            group["lr"] = rate
        run(optimizer, params, 1, step)
        optimizer.param_groups[0]["lr"] = 7.0  # of the step to come, as a schedule sets it
        for p, w in zip(params, before, strict=True):
            found = optimizer.direction(p)
            assert found.shape == (len(p), p[0].numel())
            assert found.norm() > 0.1
            expected = (w.double() * (1 - rate * decay) - p.detach().double()) / rate
            torch.testing.assert_close(unflatten(found, p).double(), expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(optimizer.direction(p), found)


def test_a_step_takes_a_closure_as_torchs_do(make):
    p = nn.Parameter(torch.ones(3, 4))

    def loss_of():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert make([p]).step(loss_of).item() == 12
    assert not torch.equal(p, torch.ones(3, 4))


def test_a_state_goes_on_in_another_layout(make):
    """The momentum comes from contiguous weights, the weights are in channels_last memory."""
    plain = weights()
    optimizer = make(plain)
    run(optimizer, plain)
    moved = [nn.Parameter(channels_last(p.detach())) for p in plain]
    other = make(moved)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, plain, 1, start=5)
    run(other, moved, 1, start=5)
    for p, q in zip(plain, moved, strict=True):
        assert distance(q.detach(), p.detach()) < 1e-5
        assert distance(unflatten(other.direction(q), q), unflatten(optimizer.direction(p), p)) < 1e-4


def test_gradients_of_zero_and_rates_of_zero_and_weights_without_elements_move_nothing(make):
    params = weights(shapes=[*SHAPES, (), (0, 5), (4, 0, 3, 3), (0,)])
    before = [p.detach().clone() for p in params]
    optimizer = make([{"params": params, "weight_decay": 0.0}])
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    run(optimizer, params)
    assert all(torch.equal(p.detach(), b) for p, b in zip(params, before, strict=True))
    assert optimizer.direction(params[-2]).shape == (4, 0)


def test_half_precision_steps_as_float32_to_its_rounding(make):
    for dtype in (torch.float16, torch.bfloat16):
        half, single = weights(dtype=dtype), weights()
        for params in (half, single):
            run(make(params), params, steps=1)
        for p, q in zip(half, single, strict=True):
            assert p.dtype == dtype
            assert distance(p.detach(), q.detach()) < 8 * torch.finfo(dtype).eps


def test_a_weight_frozen_midway_stays_and_its_signals_and_gradients_are_zeros(make, tmp_path, one_sentence):
    net = models.initialize(nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 5, bias=False)), gen())
    probe = signals.Signals(net, (torch.randn(6, 5, generator=gen()), torch.arange(6) % 3), gen)
    rows = trajectory.Trajectory(net, 1, tmp_path / "rows")
    optimizer = make(net.parameters())
    for step in range(2):
        optimizer.zero_grad()
        net[0].requires_grad_(step == 0)
        net(probe.batch[0]).square().sum().backward()
        rows.add(step)
        before = net[0].weight.detach().clone()
        optimizer.step()
        assert torch.equal(net[0].weight, before) == (step == 1)
        probe.update(optimizer, step, rate=0.1)
    rows.close()
    gradients = torch.from_file(str(tmp_path / "rows"), size=80).view(4, 20)  # of both weights in each of two steps
    for found in (gradients, [spectrum.values for spectrum in probe.spectra]):
        assert [bool(each.any()) for each in found] == [True, True, False, True]
    assert [value > 0 for *_, value in probe.norms] == [True, True, False, True]
    for asked in (optimizer, make(net.parameters())):
        with pytest.raises(InputError) as caught:
            asked.direction(net[0].weight)
        one_sentence(caught.value, "[4, 5]", "must have been in a step", "gradient of that step")


def test_sparse_gradients_complex_parameters_and_unknown_names_are_refused(make, one_sentence):
    for bad, word in ((torch.ones(5, 3).to_sparse(), "sparse"), (torch.ones(5, 3, dtype=torch.complex64), "complex")):
        first, p = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(5, 3, dtype=bad.dtype))
        first.grad, p.grad = torch.ones(2, 2), bad
        with pytest.raises(InputError) as caught:
            make([{"params": [first]}, {"params": [p]}]).step()
        one_sentence(caught.value, "[5, 3]", word)
        assert torch.equal(first, torch.ones(2, 2)), "nothing moves before"
    bad = {**MUON, "shape_factor": "orignal"}
    for work in (lambda: Muon(weights(), **bad), lambda: full_rank(torch.eye(2), "orignal")):
        with pytest.raises(InputError) as caught:
            work()
        one_sentence(caught.value, "'orignal'", "must be")


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.data())
def test_interventions_are_the_truncated_svd_of_numpy_and_the_polar_factor_of_scipy(m, n, seed, data):
    update, rank = torch.randn(m, n, generator=gen(seed), dtype=torch.float64), data.draw(st.integers(0, min(m, n)))
    u, s, v = np.linalg.svd(update.numpy(), full_matrices=False)
    np.testing.assert_allclose(top_r(update, rank), (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-10)
    unitary, _ = scipy.linalg.polar(update, side="right" if m >= n else "left")
    for norm, scale in (("frobenius", np.linalg.norm(s) / len(s) ** 0.5), ("spectral", s[0])):
        np.testing.assert_allclose(full_rank(update, norm), scale * unitary, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_full_rank_lifts_what_is_there_and_not_the_rounding_at_any_scale(scale):
    """Of 4 x 9 the bound is 3 ε of the largest value: 3.6e-7 of it in float32, and 3 √ε, 4.5e-8, in float64."""
    for dtype, least in ((torch.float32, 4e-7), (torch.float64, 5e-8)):
        for below, kept in ((0.8 * least, 3), (least, 4)):
            update = torch.tensor([4.0, 4 * below, 2.0, 1.0], dtype=dtype).mul(scale).diag_embed(offset=5)[:4]
            for norm, size in (("spectral", 4.0), ("frobenius", (21 / kept) ** 0.5)):
                expected = size * torch.tensor([1.0, kept == 4, 1.0, 1.0], dtype=dtype)
                torch.testing.assert_close(full_rank(update, norm).diagonal(5) / scale, expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(spectra.singular_values(scale**10 * torch.eye(2, 3).double()) / scale**10, 1)
    product = torch.randn(128, 9, generator=gen()) @ torch.randn(9, 576, generator=gen(1))
    s = np.linalg.svd(full_rank(scale * product, "spectral").double(), compute_uv=False)
    np.testing.assert_allclose(s[:9], s[0], rtol=1e-5)
    assert s[9] < 1e-5 * s[0]


@pytest.mark.parametrize("intervention", INTERVENTIONS, ids=["top_r", "frobenius", "spectral"])
def test_an_update_that_is_not_finite_becomes_nan_all_through_and_zeros_stay(intervention):
    for shape in ((3, 5), (5, 3), (1, 1), (0, 3)):
        assert torch.equal(intervention(torch.zeros(shape)), torch.zeros(shape))
        for bad in (torch.nan, torch.inf):
            found = intervention(torch.eye(*shape).masked_fill(torch.eye(*shape) > 0, bad))
            torch.testing.assert_close(found, torch.full(shape, torch.nan), equal_nan=True)


def test_an_svd_is_taken_where_eigh_does_not_converge_and_without_it_a_run_diverges(tiny, new_state, monkeypatch):
    def fails(*args, **kwargs):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    matrix = torch.randn(4, 6, generator=gen())
    works = [spectra.singular_values, *(lambda m, f=f: f(m).numpy() for f in INTERVENTIONS)]
    expected = [work(matrix) for work in works]
    for name in ("eigh", "eigvalsh", "svd"):
        monkeypatch.setattr(torch.linalg, name, fails)
        for work, value in zip(works, expected, strict=True):
            np.testing.assert_allclose(work(matrix), value if name != "svd" else np.full_like(value, np.nan), atol=1e-6)
    state = new_state(tiny(update="top_r", rank=2, epochs=3))
    assert (training.fit(state), len(state.epochs)) == ("diverged", 1)


def make_run(tiny, **options):
    config = tiny(**{"architecture": "cnn4", "normalization": "batch", "width": 4, **options})
    net = network.make_model(config)
    return net, network.optimizers(net, config)


def names(net, params):
    by_id = {id(p): name for name, p in net.named_parameters()}
    return sorted(by_id[id(p)] for p in params)


def test_the_optimisers_of_a_run_take_what_they_should_with_its_knobs(tiny):
    net, (sgd,) = make_run(tiny, optimizer="sgd", weight_decay=0.1, momentum=0.8)
    matrices = [f"{name}.weight" for name in models.matrices(net)]
    rest = sorted({name for name, _ in net.named_parameters()} - {*matrices})
    assert type(sgd) is MomentumSGD
    knobs = [(names(net, g["params"]), g["weight_decay"], g["momentum"]) for g in sgd.param_groups]
    assert knobs == [(matrices, 0.1, 0.8), (rest, 0.0, 0.8)]
    options = {"lr": 0.02, "weight_decay": 0.1, "auxiliary_lr": 0.007, "ns_steps": 3}
    net, (muon, adamw) = make_run(tiny, optimizer="muon", shape_factor="match_rms_adamw", **options)
    assert (type(muon), muon.ns_steps, muon.shape_factor) == (Muon, 3, "match_rms_adamw")
    knobs = [(names(net, g["params"]), g["lr"], g["weight_decay"]) for o in (muon, adamw) for g in o.param_groups]
    assert [*knobs, type(adamw)] == [(matrices, 0.02, 0.1), (rest, 0.007, 0.0), torch.optim.AdamW]


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("rule", rules.RULES)
def test_one_step_of_a_run_moves_every_parameter_that_learns_and_no_other(tiny, rule, optimizer):
    """Frozen parameters are with no optimiser; a weight's direction can be asked for in every rule."""
    net, optimizers = make_run(tiny, rule=rule, optimizer=optimizer, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    learns = sorted(name for name, p in net.named_parameters() if p.requires_grad)
    weights = [name for name in learns if net.get_parameter(name).dim() > 1]
    assert len(weights) == (1 if rule.startswith("frozen") else 5)
    assert names(net, [p for o in optimizers for g in o.param_groups for p in g["params"]]) == learns
    net(torch.randn(8, 1, 8, 8, generator=gen())).square().sum().backward()
    for each in optimizers:
        each.step()
    assert sorted(name for name, p in net.named_parameters() if not torch.equal(p.detach(), before[name])) == learns
    assert all(optimizers[0].direction(net.get_parameter(name)).norm() > 0 for name in weights)


def test_interventions_of_a_run_are_those_of_its_config_and_a_rank_beyond_a_matrix_is_refused(tiny, one_sentence):
    update = torch.randn(16, 20, generator=gen())
    made = lambda **options: make_run(tiny, **options)[1][0].intervention  # noqa: E731
    assert made(update="full") is None
    assert torch.equal(made(update="top_r", rank=3)(update), top_r(update, 3))
    for norm in ("frobenius", "spectral"):
        assert torch.equal(made(update="full_rank", norm=norm)(update), full_rank(update, norm))
    make_run(tiny, update="top_r", rank=4)  # conv1 is 4 x 9
    with pytest.raises(InputError) as caught:
        make_run(tiny, update="top_r", rank=5)
    one_sentence(caught.value, "rank is 5", "4 x 9", "'conv1'")
