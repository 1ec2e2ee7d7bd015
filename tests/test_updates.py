"""The updates against torch's own optimisers, numpy and scipy, and what each optimiser of a run takes."""

import copy
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankcollapse.errors import InputError
from rankcollapse.experiment import network, training
from rankcollapse.library import models, ranks, spectra
from rankcollapse.library.rules import RULES
from rankcollapse.library.signals import Signals
from rankcollapse.library.trajectory import Trajectory
from rankcollapse.library.updates import MomentumSGD, Muon, flatten, full_rank, orthogonalise, top_r, unflatten

MUON = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "ns_steps": 5, "shape_factor": "original"}
NS = "_zeropower_via_newtonschulz"
SHAPES = [(12, 5), (4, 9), (8, 3, 3, 3), (4, 6, 1, 1), (6, 1, 3, 3), (2, 5, 2, 3), (7,), (4, 3, 5), (3, 4, 2, 3, 2)]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def channels_last(tensor):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))


def with_swapped(first, second):
    """Two dimensions, modulo their number, have changed places in memory."""
    swap = lambda t: t.transpose(first % t.dim(), second % t.dim())  # noqa: E731
    return lambda tensor: swap(swap(tensor).contiguous())


def sliced(tensor):
    """Every second value of a larger tensor, along each dimension."""
    there = tensor.new_full([2 * n for n in tensor.shape], torch.nan)[(slice(None, None, 2),) * tensor.dim()]
    return there.copy_(tensor)


LAYOUTS = [torch.clone, channels_last, with_swapped(0, -1), with_swapped(0, 1), with_swapped(1, -1), sliced]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def weights(layout=torch.clone, device="cpu", dtype=torch.float32, shapes=SHAPES):
    drawn = [torch.randn(shape, generator=gen(i)).to(device, dtype) for i, shape in enumerate(shapes)]
    return [nn.Parameter(layout(value)) for value in drawn]


def give_gradients(step, params):
    """Drawn in logical order, whatever the layout."""
    for i, p in enumerate(params):
        p.grad = torch.randn(p.shape, generator=gen(100 * step + i)).to(p)


def run(optimizer, params, steps=3, start=0):
    for step in range(start, start + steps):
        give_gradients(step, params)
        optimizer.step()


# ---- Muon ----


@pytest.mark.parametrize(("shape_factor", "decay"), [("original", 0.1), ("match_rms_adamw", 0.0)])
@layouts
def test_muon_is_torch_muon_on_flattened_matrices(shape_factor, decay, layout, device, monkeypatch):
    """In any layout, in place; but for how the Newton-Schulz steps are computed, see below: here torch takes ours."""
    params = weights(layout, device)
    before = [(p.data_ptr(), p.stride(), p.detach().clone()) for p in params]
    flat = [nn.Parameter(p.detach().reshape(len(p), -1).clone()) for p in params]
    monkeypatch.setattr(torch.optim._muon, NS, lambda matrix, coefficients, steps, eps: orthogonalise(matrix, steps))
    theirs = torch.optim.Muon(flat, lr=0.05, momentum=0.9, weight_decay=decay, adjust_lr_fn=shape_factor)
    for step in range(4):
        give_gradients(step, params)
        for m, p in zip(flat, params, strict=True):
            m.grad = p.grad.reshape(m.shape).clone()
        theirs.step()
    run(Muon(params, **{**MUON, "weight_decay": decay, "shape_factor": shape_factor}), params, steps=4)
    for p, m, (pointer, stride, value) in zip(params, flat, before, strict=True):
        torch.testing.assert_close(p.detach().reshape(m.shape), m.detach(), rtol=1e-5, atol=2e-6)
        assert (p.data_ptr(), p.stride()) == (pointer, stride)
        assert not torch.equal(p.detach(), value)


@layouts
def test_muon_in_any_layout_agrees_to_the_rounding_of_bfloat16(layout):
    """A weight of so many rows goes through bfloat16: the order of columns shows in the last bits, no more."""
    moved = []
    for place in (torch.clone, layout):
        params = weights(place, shapes=[(80, 16, 3, 3), (80, 10, 2, 3, 3)])
        start = [p.detach().clone() for p in params]
        run(Muon(params, **MUON), params, steps=1)
        moved.append([p.detach() - before for p, before in zip(params, start, strict=True)])
    for plain, other in zip(*moved, strict=True):
        assert distance(other, plain) < 0.02


def test_a_fast_layout_is_never_copied():
    for layout in (torch.clone, channels_last):
        for p in (w.detach() for w in weights(layout)):
            matrix = flatten(p, p)
            assert matrix.shape == (len(p), p[0].numel())
            assert matrix.data_ptr() == unflatten(matrix, p).data_ptr() == p.data_ptr()
            assert matrix.is_contiguous()
            assert torch.equal(unflatten(matrix, p), p)


def newton_schulz(matrix, steps, x=None):
    """The definition of Jordan et al., in float64."""
    x = matrix.double() / matrix.double().norm() if x is None else x.double()
    for _ in range(steps):
        gram = x @ x.t()
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def with_spectrum(shape, kind):
    """A matrix with random singular vectors; `normal` for one of normal entries."""
    if kind == "normal":
        return torch.randn(shape, generator=gen())
    k = min(shape)
    s = {"flat": torch.ones(k), "slow": torch.arange(1.0, k + 1) ** -1, "fast": torch.logspace(0, -3, k)}[kind]
    u, v = (torch.linalg.qr(torch.randn(n, k, generator=gen(n)))[0] for n in shape)
    return (u * s) @ v.t()


def distance(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def theirs(matrix):
    return getattr(torch.optim._muon, NS)(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)


@pytest.mark.parametrize("kind", ["normal", "flat", "slow", "fast"])
@pytest.mark.parametrize("shape", [(1, 7), (64, 576), (96, 96), (96, 130), (128, 1152), (720, 80)], ids=str)
def test_orthogonalise_is_as_near_to_exact_newton_schulz_as_bfloat16_allows(shape, kind, device):
    """torch's own steps round to bfloat16 too: ours are no further away, or within 0.05 of the norm."""
    matrix = with_spectrum(shape, kind)
    expected = newton_schulz(matrix, 5)
    found = orthogonalise(matrix.to(device), 5).cpu()
    assert distance(found, expected) < max(1.1 * distance(theirs(matrix), expected), 0.05)
    assert torch.cosine_similarity(found.double().flatten(), expected.flatten(), dim=0) > 0.99
    s, exact = (torch.linalg.svdvals(m.double()) for m in (found, expected))
    assert float((s - exact).abs().max()) < 0.06


def test_empty_directions_fill_by_the_rounding_of_the_matrix_alone():
    """The figures of the docstring: float32 keeps rank 5; bfloat16 fills as exact steps on the rounded matrix do."""
    rank = lambda matrix: ranks.entropy_s(spectra.singular_values(matrix))  # noqa: E731
    small, large = (torch.randn(m, 5, generator=gen(m)) @ torch.randn(5, 576, generator=gen()) for m in (64, 128))
    assert rank(orthogonalise(small, 5)) == pytest.approx(4.95, abs=0.06)
    assert rank(newton_schulz(large, 5)) == pytest.approx(4.95, abs=0.06)
    rounded = (large / large.norm()).bfloat16()
    assert rank(orthogonalise(large, 5)) == pytest.approx(rank(newton_schulz(large, 5, rounded)), rel=0.1)
    assert 55 < rank(orthogonalise(large, 5)) < rank(theirs(large)) - 10


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
    small = orthogonalise(
        (1e-12 if dtype != torch.float16 else 1) * torch.randn(128, 256, generator=gen()).to(dtype), 5
    )
    assert float(small.double().norm()) == pytest.approx(9.9, abs=0.1)
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


@pytest.mark.parametrize("shape", [(8, 20), (80, 720), (80, 90), (720, 80)], ids=str)
def test_several_matrices_at_once_are_orthogonalised_as_one_by_one(shape, device):
    several = torch.randn(3, *shape, generator=gen()).to(device) * torch.tensor([1, 1e-30, 1e30]).view(3, 1, 1).to(
        device
    )
    for found, matrix in zip(orthogonalise(several, 5), several, strict=True):
        assert distance(found, orthogonalise(matrix, 5)) < 0.02


# ---- momentum SGD ----


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@layouts
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
    p, unused = nn.Parameter(torch.tensor([[4.0]], dtype=torch.float64)), nn.Parameter(torch.ones(2, 2))
    optimizer = MomentumSGD([p, unused], lr=0.5, momentum=0.5, weight_decay=0.25)
    p.grad = torch.full_like(p, 2.0)
    optimizer.step()  # M = 2, W = (1 - 0.125) 4 - 0.5 * 2
    assert p.item() == 2.5
    p.grad = torch.full_like(p, -1.0)
    optimizer.step()  # M = 1 - 1 = 0, W = 0.875 * 2.5
    assert p.item() == 2.1875
    assert torch.equal(unused, torch.ones(2, 2)), "a parameter without gradient is not decayed"


@layouts
def test_an_intervention_sees_matrices_of_momentum_and_leaves_vectors_alone(layout, device):
    """Cutting to rank 1, against numpy on the momentum worked out here."""
    params = weights(layout, device)
    expected = [p.detach().double().cpu().numpy().reshape(len(p), -1) for p in params]
    momentum = [0.0] * len(params)
    optimizer = MomentumSGD(params, lr=0.1, momentum=0.9, intervention=lambda m: top_r(m, 1))
    for step in range(3):
        run(optimizer, params, 1, step)
        for i, p in enumerate(params):
            momentum[i] = 0.9 * momentum[i] + p.grad.double().cpu().numpy().reshape(len(p), -1)
            u, s, v = np.linalg.svd(momentum[i], full_matrices=False)
            expected[i] = expected[i] - 0.1 * (s[0] * np.outer(u[:, 0], v[0]) if p.dim() > 1 else momentum[i])
    atol = 2e-6 if device == "cpu" else 1e-4  # a GPU finds singular vectors by sweeps that end sooner
    for p, value in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().cpu().reshape(len(p), -1), value, rtol=0, atol=atol)


# ---- both optimisers ----


def sgd(**options):
    return lambda params: MomentumSGD(params, **{"lr": 0.1, **options})


def muon(**options):
    return lambda params: Muon(params, **{**MUON, **options})


STEPS = {
    "sgd": sgd(weight_decay=0.5, momentum=0.9),
    "sgd without momentum": sgd(),
    "top_r": sgd(momentum=0.9, weight_decay=0.5, intervention=lambda m: top_r(m, 1)),
    "full_rank": sgd(momentum=0.9, intervention=lambda m: full_rank(m, "spectral")),
    "muon": muon(weight_decay=0.5),
    "muon, match_rms_adamw": muon(shape_factor="match_rms_adamw", ns_steps=2),
}
every_step = pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)


@layouts
@every_step
def test_direction_is_what_the_last_step_subtracted_per_rate_decay_aside(make, layout, device):
    """In each group with its own momentum; and the next step is as if nobody had asked."""
    params, plain = weights(layout, device), weights(layout, device)
    optimizer, other = (make([{"params": ps[:4]}, {"params": ps[4:], "momentum": 0.3}]) for ps in (params, plain))
    decay = optimizer.param_groups[0]["weight_decay"]
    for step, rate in enumerate((0.1, 0.3)):
        before = [p.detach().clone() for p in params]
        for group in (*optimizer.param_groups, *other.param_groups):
            group["lr"] = rate
        run(optimizer, params, 1, step)
        run(other, plain, 1, step)
        optimizer.param_groups[0]["lr"] = 7.0  # of the step to come, as a schedule sets it
        for p, w in zip(params, before, strict=True):
            found = optimizer.direction(p)
            assert found.shape == (len(p), p[0].numel())
            assert found.norm() > 0.1
            expected = (w.double() * (1 - rate * decay) - p.detach().double()) / rate
            torch.testing.assert_close(unflatten(found, p).double(), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p, q) for p, q in zip(params, plain, strict=True))


@every_step
def test_a_step_takes_a_closure_as_torchs_do(make):
    loss_of = lambda p: (p.square() * torch.arange(12.0).view(3, 4)).sum()  # noqa: E731
    p, q = (nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    ours, other = make([p]), make([q])

    def closure():
        ours.zero_grad()
        loss = loss_of(p)
        loss.backward()
        return loss

    for _ in range(2):
        other.zero_grad()
        expected = loss_of(q)
        expected.backward()
        assert other.step() is None
        assert torch.equal(ours.step(closure), expected)
    assert torch.equal(p, q)
    assert not torch.equal(p, torch.ones(3, 4))


@every_step
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
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-5)
        found, expected = (unflatten(o.direction(w), w) for o, w in ((other, q), (optimizer, p)))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_step
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_step
def test_half_precision_steps_as_float32_to_its_rounding(make, dtype):
    half, single = weights(dtype=dtype), weights()
    for params in (half, single):
        run(make(params), params, steps=1)
    for p, q in zip(half, single, strict=True):
        assert p.dtype == dtype
        assert distance(p.detach(), q.detach()) < 8 * torch.finfo(dtype).eps


@every_step
def test_a_weight_frozen_midway_stays_and_has_no_direction(make, one_sentence):
    params = weights()
    optimizer = make(params)
    with pytest.raises(InputError, match="must have been in a step"):
        optimizer.direction(params[0])
    run(optimizer, params)
    optimizer.zero_grad()
    kept = params[2].detach().clone()
    run(optimizer, [*params[:2], *params[3:]])
    assert torch.equal(params[2].detach(), kept)
    with pytest.raises(InputError) as caught:
        optimizer.direction(params[2])
    one_sentence(caught.value, "[8, 3, 3, 3]", "gradient of that step")


def test_of_a_weight_frozen_midway_signals_and_gradients_are_zeros(tmp_path):
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    batch = torch.randn(6, 5, generator=gen()), torch.arange(6) % 3
    signals = Signals(net, "bp", batch, gen)
    trajectory = Trajectory(signals.learning, tmp_path / "rows")
    optimizer = MomentumSGD(net.parameters(), lr=0.1, momentum=0.9)
    for step in range(2):
        optimizer.zero_grad()
        net[0].requires_grad_(step == 0)
        net(batch[0]).square().sum().backward()
        trajectory.add(step)
        optimizer.step()
        signals.update(optimizer, step)
    trajectory.close()
    sums = torch.from_file(str(tmp_path / "rows"), size=64).view(2, 32).abs().split([20, 12], dim=1)
    moved = [[bool(part[step].sum() > 0) for part in sums] for step in range(2)]
    assert [bool(s.values.any()) for s in signals.spectra] == sum(moved, []) == [True, True, False, True]


@every_step
def test_sparse_gradients_complex_parameters_and_unknown_names_are_refused(make, one_sentence):
    for bad, word in ((torch.ones(5, 3).to_sparse(), "sparse"), (torch.ones(5, 3, dtype=torch.complex64), "complex")):
        first, p = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(5, 3, dtype=bad.dtype))
        first.grad, p.grad = torch.ones(2, 2), bad
        with pytest.raises(InputError) as caught:
            make([{"params": [first]}, {"params": [p]}]).step()
        one_sentence(caught.value, "[5, 3]", word)
        assert torch.equal(first, torch.ones(2, 2)), "nothing moves before"
    for work in (lambda: muon(shape_factor="orignal")(weights()), lambda: full_rank(torch.eye(2), "orignal")):
        with pytest.raises(InputError) as caught:
            work()
        one_sentence(caught.value, "'orignal'", "must be")


# ---- interventions ----

matrices = st.builds(
    lambda m, n, seed: torch.randn(m, n, generator=gen(seed), dtype=torch.float64),
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 99),
)  # fmt: skip


@given(matrices, st.data())
def test_top_r_is_the_truncated_svd_of_numpy(update, data):
    rank = data.draw(st.integers(0, min(update.shape)))
    u, s, v = np.linalg.svd(update.numpy(), full_matrices=False)
    found = top_r(update, rank)
    np.testing.assert_allclose(found, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-10)
    assert np.linalg.matrix_rank(found.numpy(), tol=1e-9) == rank


@given(matrices)
def test_full_rank_is_the_polar_factor_of_scipy_with_the_norm_asked_for(update):
    unitary, _ = scipy.linalg.polar(update, side="right" if update.shape[0] >= update.shape[1] else "left")
    for norm, order in (("frobenius", "fro"), ("spectral", 2)):
        scale = np.linalg.norm(update.numpy(), order) / np.linalg.norm(unitary, order)
        np.testing.assert_allclose(full_rank(update, norm), scale * unitary, atol=1e-9 * scale)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_full_rank_lifts_what_is_there_and_not_the_rounding(scale):
    """Of 4 x 9 the bound is 3 ε of the largest value: 3.6e-7 of it in float32, and 3 √ε, 4.5e-8, in float64."""
    for dtype, least in ((torch.float32, 4e-7), (torch.float64, 5e-8)):
        for below, kept in ((0.8 * least, 3), (least, 4)):
            update = torch.zeros(4, 9, dtype=dtype)
            update.diagonal().copy_(scale * torch.tensor([4.0, 4 * below, 2.0, 1.0]))
            for norm, size in (("spectral", 4.0), ("frobenius", (21 / kept) ** 0.5)):
                values = full_rank(update, norm).diagonal() / scale
                expected = size * torch.tensor([1.0, kept == 4, 1.0, 1.0], dtype=dtype)
                torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)
    product = torch.randn(128, 9, generator=gen()) @ torch.randn(9, 576, generator=gen(1))
    s = np.linalg.svd(full_rank(scale * product, "spectral").double(), compute_uv=False)
    np.testing.assert_allclose(s[:9], s[0], rtol=1e-5)
    assert s[9] < 1e-5 * s[0]


INTERVENTIONS = [lambda m: top_r(m, 2), lambda m: full_rank(m, "frobenius"), lambda m: full_rank(m, "spectral")]


@pytest.mark.parametrize("intervention", INTERVENTIONS, ids=["top_r", "frobenius", "spectral"])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_an_update_that_is_not_finite_becomes_nan_all_through(intervention, shape):
    for bad in (torch.nan, torch.inf):
        update = torch.ones(shape)
        update[0, 1] = bad
        found = intervention(update)
        assert found.shape == shape
        assert found.isnan().all()
    assert torch.equal(intervention(torch.zeros(shape)), torch.zeros(shape))


# ---- eigenvalues ----


def fails(*args, **kwargs):
    raise torch.linalg.LinAlgError("the algorithm failed to converge")


def test_where_eigh_does_not_converge_an_svd_is_taken_and_nan_where_that_fails_too(monkeypatch):
    matrix = torch.randn(4, 6, generator=gen())
    works = [spectra.singular_values, *(lambda m, f=f: f(m).numpy() for f in INTERVENTIONS)]
    expected = [work(matrix) for work in works]
    for name in ("eigh", "eigvalsh"):
        monkeypatch.setattr(torch.linalg, name, fails)
    for work, value in zip(works, expected, strict=True):
        np.testing.assert_allclose(work(matrix), value, atol=1e-6)
    monkeypatch.setattr(torch.linalg, "svd", fails)
    for work, value in zip(works, expected, strict=True):
        found = work(matrix)
        assert (found.shape, found.dtype) == (value.shape, value.dtype)
        assert np.isnan(found).all()


def test_a_run_whose_updates_have_no_eigenvalues_ends_as_diverged(tiny, new_state, monkeypatch):
    for name in ("eigh", "eigvalsh", "svd"):
        monkeypatch.setattr(torch.linalg, name, fails)
    state = new_state(tiny(update="top_r", rank=2, epochs=3))
    assert training.fit(state) == "diverged"
    assert len(state.epochs) == 1


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200])
def test_singular_values_know_no_scale(scale):
    found = spectra.singular_values(scale * torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64))
    np.testing.assert_allclose(found / scale, [4, 3], rtol=1e-12)


# ---- the optimisers of a run ----


def make_run(tiny, **options):
    config = tiny(**{"architecture": "cnn4", "normalization": "batch", "width": 4, **options})
    net = network.make_model(config)
    return net, network.optimizers(net, config)


def names(net, params):
    by_id = {id(p): name for name, p in net.named_parameters()}
    return sorted(by_id[id(p)] for p in params)


def test_the_optimisers_of_a_run_take_what_they_should_with_its_knobs(tiny):
    net, (sgd,) = make_run(tiny, optimizer="sgd", weight_decay=0.1, momentum=0.8)
    matrices, every = [f"{name}.weight" for name in models.matrices(net)], sorted(dict(net.named_parameters()))
    assert type(sgd) is MomentumSGD
    knobs = [(names(net, g["params"]), g["weight_decay"], g["momentum"]) for g in sgd.param_groups]
    rest = sorted(set(every) - set(matrices))
    assert knobs == [(matrices, 0.1, 0.8), (rest, 0.0, 0.8)]
    options = {"lr": 0.02, "weight_decay": 0.1, "auxiliary_lr": 0.007, "ns_steps": 3}
    net, (muon, adamw) = make_run(tiny, optimizer="muon", shape_factor="match_rms_adamw", **options)
    assert (type(muon), muon.ns_steps, muon.shape_factor, type(adamw)) == (
        Muon,
        3,
        "match_rms_adamw",
        torch.optim.AdamW,
    )
    knobs = [(names(net, g["params"]), g["lr"], g["weight_decay"]) for o in (muon, adamw) for g in o.param_groups]
    assert knobs == [(matrices, 0.02, 0.1), (rest, 0.007, 0.0)]


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("rule", RULES)
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
    for name in weights:
        assert optimizers[0].direction(net.get_parameter(name)).norm() > 0


def test_interventions_of_a_run_are_those_of_its_config(tiny):
    update = torch.randn(16, 20, generator=gen())
    for options, expected in (
        ({"update": "top_r", "rank": 3}, top_r(update, 3)),
        ({"update": "full_rank", "norm": "frobenius"}, full_rank(update, "frobenius")),
        ({"update": "full_rank", "norm": "spectral"}, full_rank(update, "spectral")),
    ):
        _, (sgd,) = make_run(tiny, **options)
        assert torch.equal(sgd.intervention(update), expected)
    assert make_run(tiny, update="full")[1][0].intervention is None


def test_a_rank_beyond_a_matrix_is_refused_naming_the_layer(tiny, one_sentence):
    make_run(tiny, update="top_r", rank=4)  # conv1 is 4 x 9
    with pytest.raises(InputError) as caught:
        make_run(tiny, update="top_r", rank=5)
    one_sentence(caught.value, "rank is 5", "4 x 9", "'conv1'")
