"""The updates against torch's own optimisers, numpy and scipy, and what each optimiser of a run takes."""

import copy
import io
import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rankcollapse
from rankcollapse.errors import InputError
from rankcollapse.experiment import network, training
from rankcollapse.experiment.config import CUTS, UPDATES
from rankcollapse.library import models, ranks, rules, signals, spectra, trajectory, updates
from rankcollapse.library.updates import AdamW, MomentumSGD, Muon, full_rank, orthogonalise, split, top_r, unflatten

DIALS = {
    "polar": updates.polar,
    "polar, r": partial(updates.polar, rank=1),
    "polar, r spread": partial(updates.polar, rank=2, spread=True),
    "within r, fixed": partial(updates.within, rank=2, seed=0),
    "within r, drawn": partial(updates.within, rank=2),
    "frobenius": updates.frobenius,
    "spectral": updates.spectral,
    "sign": updates.sign,
}
INTERVENTIONS = {
    "top_r": lambda m: top_r(m, 2),
    "full_rank, frobenius": lambda m: full_rank(m, "frobenius"),
    "full_rank, spectral": lambda m: full_rank(m, "spectral"),
    **DIALS,
}
A, B, C = 3.4445, -4.7750, 2.0315
zeropower = torch.optim._muon._zeropower_via_newtonschulz  # torch's own, before a test puts ours in its place
SHAPES = [(12, 5), (4, 9), (8, 3, 3, 3), (4, 6, 1, 1), (6, 1, 3, 3), (2, 5, 2, 3), (7,), (4, 3, 5), (3, 4, 2, 3, 2)]
MUON = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "ns_steps": 5, "shape_factor": "original"}
STEPS = {
    "sgd": partial(MomentumSGD, lr=0.1, weight_decay=0.5, momentum=0.9),
    "sgd without momentum": partial(MomentumSGD, lr=0.1),
    "top_r": partial(MomentumSGD, lr=0.1, momentum=0.9, weight_decay=0.5, intervention=lambda m: top_r(m, 1)),
    "full_rank": partial(MomentumSGD, lr=0.1, momentum=0.9, intervention=INTERVENTIONS["full_rank, spectral"]),
    "muon": partial(Muon, **{**MUON, "weight_decay": 0.5}),
    "muon, match_rms_adamw": partial(Muon, **{**MUON, "shape_factor": "match_rms_adamw", "ns_steps": 2}),
    "muon, float32": partial(Muon, **{**MUON, "ns_precision": torch.float32}),
    **{f"muon, {name}": partial(Muon, lr=0.1, weight_decay=0.5, intervention=f) for name, f in DIALS.items()},
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


@pytest.mark.parametrize("shape", [(96, 864), (96, 100), (200, 80)], ids=str)
def test_rounded_float32_is_as_near_to_exact_steps_as_products_of_bfloat16(shape, monkeypatch):
    """On a CPU without those, of which torch takes such products by rounding more often."""
    matrix = with_spectrum(shape, "slow")
    expected, found = newton_schulz(matrix, 5), {}
    for multiplies in (True, False):
        monkeypatch.setattr(updates, "MULTIPLIES_BFLOAT16", multiplies)
        found[multiplies] = orthogonalise(matrix, 5)
        assert found[multiplies].dtype == torch.bfloat16
    assert 1e-3 < distance(found[False], expected) < 1.2 * distance(found[True], expected)


def test_empty_directions_fill_by_the_rounding_of_the_matrix_alone():
    """The figures of the docstring: float32 keeps rank 5; bfloat16 fills as exact steps on the rounded matrix do."""
    rank = lambda matrix: ranks.entropy_s(spectra.singular_values(matrix))  # noqa: E731
    small, large = (torch.randn(m, 5, generator=gen(m)) @ torch.randn(5, 576, generator=gen()) for m in (64, 128))
    assert rank(orthogonalise(small, 5)) == pytest.approx(4.95, abs=0.06)
    assert rank(newton_schulz(large, 5)) == pytest.approx(4.95, abs=0.06)
    rounded = (large / large.norm()).bfloat16()
    assert rank(orthogonalise(large, 5)) == pytest.approx(rank(newton_schulz(rounded, 5)), rel=0.1)
    assert 55 < rank(orthogonalise(large, 5)) < rank(zeropower(large, (A, B, C), 5, 1e-7)) - 10
    assert rank(orthogonalise(large, 5, torch.float32)) == pytest.approx(4.94, abs=0.06)
    assert rank(newton_schulz(large, 10)) == pytest.approx(5.9, abs=0.1)
    assert rank(orthogonalise(large, 10, torch.float32)) == pytest.approx(7.7, abs=0.5)


@pytest.mark.parametrize("steps", [1, 3, 5, 10])
@pytest.mark.parametrize("kind", ["normal", "flat", "slow", "fast"])
@pytest.mark.parametrize("shape", [(8, 20), (96, 96), (128, 1152), (720, 80)], ids=str)
def test_newton_schulz_in_float32_is_exact_to_a_thousandth_and_in_bfloat16_is_not(shape, kind, steps, device):
    """In X five steps make 3e-5 of float32's 6e-8, and in the Gram matrix about ten times as much."""
    matrix = with_spectrum(shape, kind)
    expected, one = newton_schulz(matrix, steps), orthogonalise(matrix.to(device), steps, torch.float32).cpu()
    for found in (one, *orthogonalise(torch.stack([matrix, 1e-30 * matrix]).to(device), steps, torch.float32).cpu()):
        assert found.dtype == torch.float32
        assert distance(found, expected) < 1e-3
        assert float((found - expected).abs().max()) < 1e-3
    if min(shape) > updates.SMALL:  # of a flat spectrum bfloat16 too is nearly exact
        assert distance(orthogonalise(matrix.to(device), steps).cpu(), expected) > (1e-4 if kind == "flat" else 1e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 10])
@pytest.mark.parametrize("shape", [(8, 20), (80, 720), (80, 90)], ids=str)
def test_orthogonalise_takes_as_many_steps_as_it_is_told(shape, steps):
    matrix = with_spectrum(shape, "slow")
    found = orthogonalise(matrix, steps)
    to = {n: distance(found, newton_schulz(matrix, n)) for n in range(1, 12)}
    assert min(to, key=to.get) == steps
    assert to[steps] < 0.1


@pytest.mark.parametrize("steps", [6, 10, 20])
@pytest.mark.parametrize("decades", [2, 3, 4, 6])
@pytest.mark.parametrize("shape", [(64, 288), (128, 576)], ids=str)
def test_more_steps_than_five_stay_bounded_on_a_steep_spectrum(shape, decades, steps):
    """Singular values fall over decades, as those of FA's momenta do: three bfloat16 steps at a time made infinity."""
    draw = lambda rows, seed: torch.linalg.qr(torch.randn(rows, shape[0], generator=gen(seed)))[0]  # noqa: E731
    values = 10.0 ** (-decades * torch.arange(shape[0]) / shape[0])
    found = torch.linalg.svdvals(orthogonalise((draw(shape[0], 0) * values) @ draw(shape[1], 1).T, steps).float())
    assert found.max() < 1.4
    assert found[: shape[0] // 4].min() > 0.6


@pytest.mark.parametrize("shape", [(5, 40), (70, 630), (40, 5)])
def test_columns_of_zeros_stay_zeros_and_the_others_are_as_without_them(shape):
    """As batches do, which leave none out; what is not finite is no zero."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    live = torch.rand(shape[1], generator=torch.Generator().manual_seed(1)) > 0.6
    matrix[:, ~live] = 0
    made = orthogonalise(matrix, 5)
    assert (made[:, ~live] == 0).all()
    torch.testing.assert_close(made[:, live], orthogonalise(matrix[:, live], 5))
    torch.testing.assert_close(made.float(), orthogonalise(matrix[None], 5)[0].float(), atol=0.02, rtol=0)
    matrix[0, 0] = torch.nan
    assert orthogonalise(matrix, 5)[:, live].isnan().all()


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


@pytest.mark.parametrize("make", [make for name, make in STEPS.items() if "drawn" not in name])  # by its very bits
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
    for asked in (optimizer, make(net.parameters()), AdamW(net.parameters(), lr=0.1)):
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
    for work, word in (
        (lambda: Muon(weights(), **bad), "shape_factor is 'orignal'"),
        (lambda: Muon(weights(), lr=0.1, ns_precision=torch.float16), "ns_precision is torch.float16"),
        (lambda: full_rank(torch.eye(2), "orignal"), "norm is 'orignal'"),
    ):
        with pytest.raises(InputError) as caught:
            work()
        one_sentence(caught.value, word, "must be")


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.data())
def test_interventions_are_the_truncated_svd_of_numpy_and_the_polar_factor_of_scipy(m, n, seed, data):
    update, rank = torch.randn(m, n, generator=gen(seed), dtype=torch.float64), data.draw(st.integers(0, min(m, n)))
    u, s, v = np.linalg.svd(update.numpy(), full_matrices=False)
    np.testing.assert_allclose(top_r(update, rank), (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-10)
    unitary, _ = scipy.linalg.polar(update, side="right" if m >= n else "left")
    for norm, scale in (("frobenius", np.linalg.norm(s) / len(s) ** 0.5), ("spectral", s[0])):
        np.testing.assert_allclose(full_rank(update, norm), scale * unitary, atol=1e-9)


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_polar_is_numpys_and_top_r_of_it_has_its_norm_in_r_directions(m, n, data):
    """Of matrices of any rank k, in both types: U_k V_kᵀ, and U_r V_rᵀ √(k / r); more than k there are not to keep."""
    k, r = data.draw(st.integers(0, min(m, n))), data.draw(st.integers(1, min(m, n)))
    dtype, scale = (
        data.draw(st.sampled_from([torch.float32, torch.float64])),
        data.draw(st.sampled_from([1e-20, 1, 1e9])),
    )
    left, right = (np.linalg.qr(np.random.default_rng(size).normal(size=(size, size)))[0] for size in (m, n))
    update = torch.from_numpy((left[:, :k] * np.linspace(2, 1, k)) @ right[:k] * scale).to(dtype)
    u, _, v = np.linalg.svd(update.double().numpy(), full_matrices=False)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    found = updates.polar(update)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, u[:, :k] @ v[:k], atol=tolerance)
    found, kept = updates.polar(update, r), min(r, k)
    expected = (u[:, :kept] @ v[:kept]) * (k / max(kept, 1)) ** 0.5
    np.testing.assert_allclose(found, expected, atol=tolerance)
    assert np.linalg.matrix_rank(found.numpy(), tol=1e-3) == kept
    assert np.linalg.norm(found) == pytest.approx(k**0.5, rel=1e-5)
    np.testing.assert_allclose(updates.polar(update, r, "spectral"), u[:, :kept] @ v[:kept], atol=tolerance)


@pytest.mark.parametrize(
    ("kept", "rank", "chosen"),
    [(9, 1, [4]), (9, 3, [1, 4, 7]), (4, 2, [1, 3]), (4, 4, [0, 1, 2, 3]), (2, 5, [0, 1]), (0, 2, [])],
)
def test_polar_spread_has_directions_from_the_middle_of_equal_parts_of_those_that_are_kept(kept, rank, chosen):
    """Of a 9 x 12 matrix of rank `kept`, counted from the smallest; they have the Frobenius norm of all together."""
    left, right = (np.linalg.qr(np.random.default_rng(size).normal(size=(size, size)))[0] for size in (9, 12))
    u, v = left[:, :kept], right[:kept]
    update = torch.from_numpy((u * np.linspace(1, 2, kept)) @ v)
    expected = u[:, chosen] @ v[chosen] * (kept / max(1, len(chosen))) ** 0.5
    np.testing.assert_allclose(updates.polar(update, rank, spread=True), expected, atol=1e-9)
    np.testing.assert_allclose(
        updates.polar(update, rank, "spectral", spread=True), u[:, chosen] @ v[chosen], atol=1e-9
    )


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_within_random_directions_the_step_is_orthogonal_and_they_are_fixed_or_of_this_step(m, n, data):
    r = data.draw(st.integers(1, min(m, n)))
    first, second = (torch.from_numpy(np.random.default_rng(seed).normal(size=(m, n))) for seed in (1, 2))
    for norm, size in (("frobenius", (min(m, n) / r) ** 0.5), ("spectral", 1.0)):
        for seed in (None, 7):
            found = updates.within(first, r, norm, seed)
            np.testing.assert_allclose(np.linalg.svd(found)[1][:r], size, rtol=1e-6)
            assert np.linalg.matrix_rank(found.numpy(), tol=1e-6) == r
            assert torch.equal(found, updates.within(first.clone(), r, norm, seed))
    both = [torch.cat([updates.within(m, r, seed=seed) for m in (first, second)], 1) for seed in (7, None)]
    assert np.linalg.matrix_rank(both[0].numpy(), tol=1e-6) == r, "of the outputs the same directions at every step"
    if 2 * r <= m:
        assert np.linalg.matrix_rank(both[1].numpy(), tol=1e-6) == 2 * r, "and others at each"
    aligned = (updates.within(first, r, "spectral", 7) * first).sum()
    others = (updates.within(second, r, "spectral", 7) * first).sum()
    assert aligned >= others - 1e-9, "of all orthogonal steps within them it has the largest inner product"


def test_the_scaled_updates_worked_by_hand():
    """3 and 4 make 5; of a polar factor of 2 x 2 the Frobenius norm is √2, of one row 1."""
    root = 2**0.5
    cases = {
        updates.frobenius: ([[0.0, -0.6 * root], [0.8 * root, 0.0]], [[-0.6, 0.0, 0.8, 0.0]]),
        updates.spectral: ([[0.0, -0.75], [1.0, 0.0]], [[-0.6, 0.0, 0.8, 0.0]]),
        updates.sign: ([[0.0, -1.0], [1.0, 0.0]], [[-1 / root, 0.0, 1 / root, 0.0]]),
    }
    for scaled, expected in cases.items():
        for update, values in zip(([[0.0, -3.0], [4.0, 0.0]], [[-3.0, 0.0, 4.0, 0.0]]), expected, strict=True):
            for scale in (1.0, 1e-30, 1e30):
                found = scaled(scale * torch.tensor(update))
                torch.testing.assert_close(found, torch.tensor(values), rtol=1e-6, atol=0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from([torch.float32, torch.float64]))
def test_scaled_updates_keep_directions_and_have_a_polar_factors_size(m, n, seed, dtype):
    """The rank of the momentum and the size of its polar factor; of the signs the entries are all of one size."""
    update = torch.randn(m, n, generator=gen(seed), dtype=dtype)
    size = np.linalg.norm(updates.polar(update))
    assert size == pytest.approx(min(m, n) ** 0.5, rel=1e-5)
    found = {name: DIALS[name](update) for name in ("frobenius", "spectral", "sign")}
    for name in ("frobenius", "sign"):
        assert np.linalg.norm(found[name]) == pytest.approx(size, rel=1e-5)
    assert np.linalg.norm(found["spectral"], 2) == pytest.approx(1, rel=1e-5)
    for name in ("frobenius", "spectral"):
        ratio = (found[name] / update).numpy()
        np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-5)
        assert ratio.flat[0] > 0
    np.testing.assert_array_equal(found["sign"].sign(), update.sign())
    np.testing.assert_allclose(found["sign"].abs(), (min(m, n) / (m * n)) ** 0.5, rtol=1e-6)


@pytest.mark.parametrize("shape_factor", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("dial", DIALS)
def test_muon_subtracts_its_shape_factor_times_what_a_dial_makes_of_the_nesterov_momentum(dial, shape_factor, layout):
    """Written out on matrices [out, rest] in float64, and so to 1e-9: weights of that type are nowhere rounded."""
    params = weights(layout, dtype=torch.float64)
    optimizer = Muon(
        params, lr=0.1, momentum=0.8, weight_decay=0.5, shape_factor=shape_factor, intervention=DIALS[dial]
    )
    expected = [p.detach().reshape(len(p), -1).clone() for p in params]
    momenta = [torch.zeros_like(w) for w in expected]
    for step in range(3):
        run(optimizer, params, 1, step)
        for p, w, m in zip(params, expected, momenta, strict=True):
            gradient, (rows, columns) = p.grad.reshape(w.shape), w.shape
            m.copy_(0.8 * m + 0.2 * gradient)
            made = DIALS[dial](0.8 * m + 0.2 * gradient)
            factor = max(1, rows / columns) ** 0.5 if shape_factor == "original" else 0.2 * max(rows, columns) ** 0.5
            w.copy_((1 - 0.1 * 0.5) * w - 0.1 * factor * made)
    for p, w in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().reshape(w.shape), w, rtol=0, atol=1e-9)


def test_adamw_gives_the_bits_of_torchs_and_tells_its_direction(layout, device):
    """With decay of one group alone; the direction is what it subtracted per unit of rate, decay aside."""
    ours, theirs = (weights(layout, device) for _ in range(2))
    groups = [[{"params": some[:4]}, {"params": some[4:], "weight_decay": 0.0}] for some in (ours, theirs)]
    optimizer = AdamW(groups[0], lr=0.1, momentum=0.8, weight_decay=0.5)
    reference = torch.optim.AdamW(groups[1], lr=0.1, betas=(0.8, 0.999), weight_decay=0.5)
    for step, rate in enumerate((0.1, 0.3, 0.02)):
        before = [p.detach().double() for p in ours]
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = rate
        for each, params in ((optimizer, ours), (reference, theirs)):
            run(each, params, 1, step)
        for i, (p, q, w) in enumerate(zip(ours, theirs, before, strict=True)):
            assert torch.equal(p, q)
            found = optimizer.direction(p)
            assert found.shape == (len(p), p[0].numel())
            expected = (w * (1 - rate * (0.5 if i < 4 else 0.0)) - p.detach().double()) / rate
            torch.testing.assert_close(unflatten(found, p).double(), expected, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("kind", [*STEPS, "adamw"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_run_goes_on_from_a_state_that_was_written_to_the_same_bits(kind, dtype, layout, device):
    """With groups of their own rate, momentum and decay, which are in the state too."""

    def optimizer(params, rate):
        make = STEPS.get(kind, partial(AdamW, lr=0.1))
        own = {"betas": (rate, 0.99)} if kind == "adamw" else {"momentum": rate}
        return make([{"params": params[:3]}, {"params": params[3:], "lr": rate, "weight_decay": rate, **own}])

    whole = weights(layout, device, dtype)
    first = optimizer(whole, 0.3)
    run(first, whole, 2)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    again = [nn.Parameter(layout(p.detach())) for p in whole]
    second = optimizer(again, 0.9)
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for each, params in ((first, whole), (second, again)):
        run(each, params, 2, start=2)
    assert all(torch.equal(p, q) for p, q in zip(whole, again, strict=True))
    assert all(torch.equal(first.direction(p), second.direction(q)) for p, q in zip(whole, again, strict=True))
    assert all(p.isfinite().all() for p in whole)


def test_the_defaults_of_muon_are_those_of_its_author():
    ours, theirs = (weights() for _ in range(2))
    run(Muon(ours, lr=0.1), ours)
    run(Muon(theirs, 0.1, 0.95, 0.0, 5, "original", torch.bfloat16, None), theirs)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


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


@pytest.mark.parametrize("intervention", INTERVENTIONS.values(), ids=INTERVENTIONS)
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
    spectral = [f for name, f in INTERVENTIONS.items() if name not in ("frobenius", "sign")]
    works = [spectra.singular_values, *(lambda m, f=f: f(m).numpy() for f in spectral)]
    expected = [work(matrix) for work in works]
    for name in ("eigh", "eigvalsh", "svd"):
        monkeypatch.setattr(torch.linalg, name, fails)
        for work, value in zip(works, expected, strict=True):
            np.testing.assert_allclose(work(matrix), value if name != "svd" else np.full_like(value, np.nan), atol=1e-6)
    state = new_state(tiny(update="top_r", rank=2, epochs=3))
    assert (training.fit(state), len(state.epochs)) == ("diverged", 1)


# ---- what goes to Muon ----


def named(net, params):
    by_id = {id(p): name for name, p in net.named_parameters()}
    return [by_id[id(p)] for p in params]


def assert_is_a_split(net, found):
    """Each parameter that learns, exactly once, in the order of the model."""
    learning = [name for name, p in net.named_parameters() if p.requires_grad]
    parts = [named(net, part) for part in found]
    assert sorted([*parts[0], *parts[1]]) == sorted(learning)
    assert all(part == [name for name in learning if name in part] for part in parts)


def test_of_a_resnet_all_convolutions_go_to_muon_and_of_a_mobilenet_those_that_mix_channels():
    for make, count, apart in ((torchvision.models.resnet18, 20, 0), (torchvision.models.mobilenet_v2, 35, 17)):
        with torch.device("meta"):
            net = make()
        convolutions = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
        mixing = [f"{name}.weight" for name, m in convolutions.items() if m.groups == 1]
        assert (len(mixing), len(convolutions) - len(mixing)) == (count, apart)
        head = next(name for name, m in net.named_modules() if isinstance(m, nn.Linear))
        for with_head, expected in ((False, mixing), (True, [*mixing, f"{head}.weight"])):
            found = split(net, head=with_head)
            assert_is_a_split(net, found)
            assert named(net, found.muon) == expected


class Tied(nn.Module):
    """A small language model: the embedding is the head's matrix as well, and two blocks share an inner layer."""

    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(11, 6), nn.Parameter(torch.zeros(5, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.up, self.down, self.norm = nn.Linear(6, 8), nn.Linear(8, 6), nn.LayerNorm(6)
        self.again = nn.Linear(8, 6, bias=False)
        self.again.weight = self.down.weight
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_go_where_the_stricter_of_their_layers_does():
    """With the head too: an embedding is none. in_proj_weight is three matrices in one, and no Linear layer's."""
    net = Tied()
    for head in (False, True):
        found = split(net, head=head)
        assert_is_a_split(net, found)
        assert named(net, found.muon) == ["attention.out_proj.weight", "up.weight", "down.weight"]
    net.again.weight = nn.Parameter(torch.zeros(6, 8))
    net.head.weight = net.down.weight  # a hidden weight that is the head's as well
    assert named(net, split(net).muon) == ["attention.out_proj.weight", "up.weight", "again.weight"]
    assert "down.weight" in named(net, split(net, head=True).muon)


@pytest.mark.parametrize("rule", ["bp", "fa", "kp"])
def test_converted_layers_go_where_plain_ones_do_and_what_is_frozen_nowhere(rule):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1))
    net.extend([nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.LazyLinear(9), nn.Linear(9, 3)])
    net(torch.zeros(2, 1, 8, 8))
    rules.convert(net, rule, gen())
    found = split(net)
    assert_is_a_split(net, found)
    assert named(net, found.muon) == ["0.weight", "3.weight", "6.weight"]
    net[0].requires_grad_(False)
    assert_is_a_split(net, split(net))
    assert named(net, split(net, head=True).muon) == ["3.weight", "6.weight", "7.weight"]
    assert split(nn.ReLU()) == ([], [])
    assert rankcollapse.split is split


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_of_the_networks_of_the_grid_the_forward_weights_are_what_muon_takes(tiny, architecture):
    net = network.skeleton(tiny(architecture=architecture, normalization="batch", width=4))
    found = split(net, head=True)
    assert_is_a_split(net, found)
    assert named(net, found.muon) == [f"{name}.weight" for name in models.matrices(net)]


def test_a_split_trains_a_model_of_ones_own(global_random_state):
    net = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    models.initialize(net, gen())
    inputs, before = torch.randn(64, 5, generator=gen(1)), global_random_state()
    labels, losses = inputs[:, :3].argmax(1), []
    muon, other = split(net)
    optimizers = [Muon(muon, lr=0.02), torch.optim.AdamW(other, lr=0.01)]
    for _ in range(40):
        losses.append(nn.functional.cross_entropy(net(inputs), labels))
        for each in optimizers:
            each.zero_grad()
        losses[-1].backward()
        for each in optimizers:
            each.step()
    assert losses[-1] < 0.3 * losses[0]
    assert global_random_state() == before


# ---- the optimisers of a run ----


def make_run(tiny, **options):
    config = tiny(**{"architecture": "cnn", "normalization": "batch", "width": 4, **options})
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
    precision = lambda **knob: make_run(tiny, optimizer="muon", **knob)[1][0].ns_precision  # noqa: E731
    assert (precision(), precision(ns_precision="float32")) == (torch.bfloat16, torch.float32)
    net, (adam,) = make_run(tiny, optimizer="adam", lr=0.02, weight_decay=0.1, momentum=0.8)
    knobs = [(names(net, g["params"]), g["lr"], g["weight_decay"], g["betas"]) for g in adam.param_groups]
    assert knobs == [(matrices, 0.02, 0.1, (0.8, 0.999)), (rest, 0.02, 0.0, (0.8, 0.999))]
    assert type(adam) is AdamW


@pytest.mark.parametrize("optimizer", UPDATES)
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
    made = partial(made, optimizer="muon")
    assert made(update="full") is None
    for norm in ("frobenius", "spectral"):
        assert torch.equal(made(update="top_r", rank=3, norm=norm)(update), updates.polar(update, 3, norm))
        assert torch.equal(made(update="spread_r", rank=3, norm=norm)(update), updates.polar(update, 3, norm, True))
        assert torch.equal(made(update="drawn_r", rank=3, norm=norm)(update), updates.within(update, 3, norm))
        mine, again, other = (made(update="fixed_r", rank=3, norm=norm, seed=seed)(update) for seed in (0, 0, 1))
        assert torch.equal(mine, again)
        assert not torch.equal(mine, other)
    for name in ("polar", "frobenius", "spectral", "sign"):
        assert torch.equal(made(update=name)(update), getattr(updates, name)(update))
    muon = {"optimizer": "muon", "norm": "spectral"}
    for options in ({"update": "top_r"}, *({"update": cut, **muon} for cut in CUTS)):
        make_run(tiny, rank=4, **options)  # conv1 is 4 x 9
        with pytest.raises(InputError) as caught:
            make_run(tiny, rank=5, **options)
        one_sentence(caught.value, "rank is 5", "4 x 9", "'conv1'")
    with pytest.raises(InputError, match="10 x 64"):
        network.check(tiny(architecture="mlp", width=64, update="top_r", rank=11))
    network.check(tiny(architecture="mlp", width=64, update="top_r", rank=11, update_head=False))


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_run_may_spare_the_classifier_an_intervention_and_changes_the_rest_alike(tiny, optimizer):
    options = {"update": "top_r", "rank": 1, "optimizer": optimizer} | (
        {"norm": "frobenius"} if optimizer == "muon" else {}
    )
    moved = {}
    for case, more in {"plain": {}, "all": options, "spared": {**options, "update_head": False}}.items():
        model, (first, *_) = make_run(tiny, **{"optimizer": optimizer, **more})
        before = {name: w.detach().clone() for name, w in models.matrices(model).items()}
        for w in before:
            models.matrices(model)[w].grad = torch.randn(before[w].shape, generator=gen())
        first.step()
        moved[case] = {name: w.detach() - before[name] for name, w in models.matrices(model).items()}
    assert torch.equal(moved["spared"]["head"], moved["plain"]["head"])
    assert not torch.allclose(moved["all"]["head"], moved["plain"]["head"], rtol=1e-2)
    for name in moved["all"].keys() - {"head"}:
        assert torch.equal(moved["spared"][name], moved["all"][name])


RUNS = {f"{optimizer}, {name}": (optimizer, name, {}) for optimizer, some in UPDATES.items() for name in some}
RUNS |= {f"muon, {n} steps": ("muon", "full", {"ns_steps": n, "ns_precision": "float32"}) for n in (1, 3, 10)}


@pytest.mark.parametrize("rule", ["bp", "fa"])
@pytest.mark.parametrize("case", RUNS)
def test_every_update_trains_the_digits_and_goes_on_to_the_same_bits(tiny, new_state, case, rule, device):
    """The loss falls by a quarter in four epochs of 19 steps; a second run takes over midway in the fourth."""
    optimizer, update, options = RUNS[case]
    options = {**options, "train_images": None, "signals_every": 1}
    options |= {"rank": 2} if update == "top_r" else {"rank": 4, "update_head": False} if update in CUTS else {}
    options |= {"norm": "frobenius"} if update == "full_rank" or (optimizer == "muon" and update in CUTS) else {}
    rate = {"sgd": 0.1, "muon": 0.05, "adam": 0.01}[optimizer]
    config = tiny(optimizer=optimizer, update=update, lr=rate, rule=rule, epochs=4, **options)
    state, kept = new_state(config, device), []

    def report(step, note):
        if step == 65 and not note:
            kept.append(copy.deepcopy(state.state_dict()))

    assert training.fit(state, report) == "finished"
    assert state.epochs[-1]["train_loss"] < 0.75 * state.epochs[0]["train_loss"]
    again = new_state(config, device)
    again.load_state_dict(kept[0])
    training.fit(again)
    assert again.epochs == state.epochs
    found, expected = (s.model.state_dict() for s in (again, state))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    ranks_of = lambda s: [each.values for each in s.signals.spectra if each.quantity == "update"]  # noqa: E731
    assert len(ranks_of(again)) == 4 * 3
    np.testing.assert_equal(ranks_of(again), ranks_of(state))
