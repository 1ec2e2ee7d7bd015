"""Errors whose rank is set: against NumPy's SVD, and against a backward pass that is written out."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankcollapse import convert, exact_feedback
from rankcollapse.errors import InputError
from rankcollapse.experiment import network
from rankcollapse.experiment.config import run_config
from rankcollapse.library import error_signal, models
from rankcollapse.library.error_signal import change_errors, fixed_r, full_rank, top_r, unchanged_errors
from rankcollapse.library.signals import passes

SMALL = {"architecture": "cnn", "dataset": "cifar10", "width": 4, "batch_size": 16, "train_images": 64}


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def svd(matrix):
    return np.linalg.svd(matrix.double().numpy(), full_matrices=False)


def close(found, wanted, tolerance=1e-4):
    scale = max(1e-30, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found.double().numpy() / scale, wanted / scale, atol=tolerance)


def steep(rows, columns, seed, decay=0.7):
    """A matrix whose singular values fall by a factor each."""
    u, _, v = svd(torch.randn(rows, columns, generator=gen(seed)))
    return torch.from_numpy(u * decay ** np.arange(min(rows, columns)) @ v).float()


# ---- each change, by NumPy ----


@given(st.integers(2, 12), st.integers(2, 40), st.integers(0, 99), st.floats(-12, 12))
def test_full_rank_makes_all_singular_values_equal_at_the_frobenius_norm(rows, columns, seed, power):
    delta = steep(rows, columns, seed) * 10**power
    u, s, v = svd(delta)
    close(full_rank(delta), np.sqrt((s**2).mean()) * u @ v, 1e-2)


@given(st.integers(2, 12), st.integers(2, 40), st.integers(1, 12), st.integers(0, 99), st.floats(-12, 12))
def test_top_r_keeps_the_largest_directions_at_the_frobenius_norm(rows, columns, rank, seed, power):
    delta = steep(rows, columns, seed) * 10**power
    u, s, v = svd(delta)
    cut = np.where(np.arange(len(s)) < rank, s, 0)
    close(top_r(delta, rank), np.sqrt((s**2).sum() / (cut**2).sum()) * (u * cut) @ v)


def test_fixed_r_confines_all_batches_to_the_same_directions_at_each_ones_norm():
    batches = [torch.randn(8, 50, generator=gen(seed)) for seed in range(6)]
    changed = [fixed_r(delta, 3, seed=5) for delta in batches]
    assert np.linalg.matrix_rank(torch.cat(changed).numpy(), tol=1e-3) == 3
    for delta, made in zip(batches, changed, strict=True):
        assert made.norm() == pytest.approx(float(delta.norm()), rel=1e-5)
    q = error_signal._directions(50, 3, 5)
    close(changed[0] / changed[0].norm(), (p := batches[0] @ q @ q.t()).numpy() / float(p.norm()))
    other = torch.cat([changed[0], fixed_r(batches[0], 3, seed=6)])
    assert np.linalg.matrix_rank(other.numpy(), tol=1e-3) == 6, "another seed has other directions"


@pytest.mark.parametrize("change", [full_rank, lambda d: top_r(d, 2), lambda d: fixed_r(d, 2, 0)])
def test_errors_of_zero_stay_zero_keep_their_type_and_a_diverged_one_shows(change):
    assert torch.equal(change(torch.zeros(4, 6)), torch.zeros(4, 6))
    assert change(torch.randn(4, 6, generator=gen()).bfloat16()).dtype == torch.bfloat16
    delta = torch.randn(4, 6, generator=gen())
    delta[1, 2] = torch.inf
    assert change(delta).isnan().any()


# ---- in a network ----


def test_a_layer_learns_from_the_changed_error_and_sends_it_on():
    """Two layers by hand: δ₂ = change(∂L/∂a₂), δ₁ = change((δ₂ B₂) ∘ φ'(a₁)), and dW = δᵀ h."""
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    convert(net, "fa", gen(1))
    layers = [net[0], net[2], net[4]]
    change_errors(layers[:2], lambda delta: top_r(delta, 2))
    x, y = torch.randn(7, 5, generator=gen(2)), torch.arange(7) % 3
    F.cross_entropy(net(x), y).backward()
    with torch.no_grad():
        h1 = torch.tanh(layers[0](x))
        h2 = torch.tanh(layers[1](h1))
        error = (F.softmax(layers[2](h2), dim=1) - F.one_hot(y)) / 7
        two = top_r(error @ layers[2].feedback * (1 - h2**2), 2)
        one = top_r(two @ layers[1].feedback * (1 - h1**2), 2)
    for layer, delta, h in zip(layers, (one, two, error), (x, h1, h2), strict=True):
        torch.testing.assert_close(layer.weight.grad, delta.t() @ h)
        torch.testing.assert_close(layer.bias.grad, delta.sum(0))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_of_a_convolution_a_row_is_an_image_in_either_layout(layout):
    layer = nn.Conv2d(3, 4, 3).to(memory_format=layout)
    change_errors([layer], lambda delta: top_r(delta, 1))
    x = torch.randn(6, 3, 5, 5, generator=gen()).to(memory_format=layout)
    sent = torch.randn(6, 4, 3, 3, generator=gen(1)).to(memory_format=layout)
    layer(x).backward(sent)
    wanted = top_r(sent.flatten(1), 1).view_as(sent)
    torch.testing.assert_close(layer.bias.grad, wanted.sum((0, 2, 3)))
    torch.testing.assert_close(layer.weight.grad, F.grad.conv2d_weight(x, layer.weight.shape, wanted))


def test_a_run_changes_its_hidden_layers_alone_and_probes_see_it():
    x, y = torch.randn(16, 3, 32, 32, generator=gen()), torch.arange(16) % 10
    for rule in ("fa", "bp"):
        model = network.make_model(run_config({**SMALL, "rule": rule, "error": "top_r", "error_directions": 2}))
        plain = network.make_model(run_config({**SMALL, "rule": rule}))
        found, was = (passes(net, F.cross_entropy, (x, y)) for net in (model, plain))
        ranks = [np.linalg.matrix_rank(delta.double().numpy(), tol=1e-6) for delta in found.errors.values()]
        *hidden, head = found.errors
        assert ranks[:-1] == [2] * len(hidden)
        assert torch.equal(found.errors[head], was.errors[head])
        torch.testing.assert_close(found.errors[hidden[-1]].norm(), was.errors[hidden[-1]].norm())
        again = passes(copy.deepcopy(model), F.cross_entropy, (x, y))
        assert all(torch.equal(again.gradients[name], each) for name, each in found.gradients.items())


def test_over_a_training_fixed_directions_are_those_of_the_run_and_not_of_another_seed():
    x, y = torch.randn(16, 3, 32, 32, generator=gen()), torch.arange(16) % 10
    pooled = []
    for seed in (0, 0, 1):
        model = network.make_model(
            run_config({**SMALL, "rule": "fa", "error": "fixed_r", "error_directions": 3, "seed": seed})
        )
        pooled.append(passes(model, F.cross_entropy, (x + len(pooled), y)).errors["conv2"])

    def rank(parts):
        return np.linalg.matrix_rank(torch.cat([part / part.norm() for part in parts]).double().numpy(), tol=1e-4)

    assert rank(pooled[:1]) == rank(pooled[:2]) == 3
    assert rank(pooled) == 6


def test_exact_feedback_is_backpropagation_of_errors_as_they_come():
    x, y = torch.randn(16, 3, 32, 32, generator=gen()), torch.arange(16) % 10
    model = network.make_model(run_config({**SMALL, "rule": "fa", "error": "full_rank"}))
    plain = network.make_model(run_config({**SMALL, "rule": "fa"}))
    with exact_feedback(model), exact_feedback(plain):
        found, wanted = (passes(net, F.cross_entropy, (x, y)).gradients for net in (model, plain))
    assert all(torch.equal(found[name], each) for name, each in wanted.items())
    with unchanged_errors(model):
        unchanged = passes(model, F.cross_entropy, (x, y)).gradients
    own = passes(plain, F.cross_entropy, (x, y)).gradients
    assert all(torch.equal(unchanged[name], each) for name, each in own.items())
    assert not torch.equal(passes(model, F.cross_entropy, (x, y)).gradients["conv1"], own["conv1"]), "it is put back"


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"error": "top_r"}, "error_directions is None; error 'top_r' and 'fixed_r' need it, and no other"),
        ({"error_directions": 2}, "error_directions is 2; error 'top_r' and 'fixed_r' need it, and no other"),
        (
            {"error": "full_rank", "error_directions": 2},
            "error_directions is 2; error 'top_r' and 'fixed_r' need it, and no other",
        ),
        (
            {"error": "top_r", "error_directions": 17},
            "error_directions is 17, beyond the 16 images of a batch; it must be 16 or less",
        ),
        ({"error": "full_rank", "compile": True}, "error is 'full_rank', but compile is true; it must be 'full'"),
        (
            {"error": "full_rank", "rule": "frozen"},
            "error is 'full_rank', but under rule 'frozen' no hidden weight learns from it; it must be 'full'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(knobs, sentence):
    with pytest.raises(InputError, match=r"^run config: ") as refused:
        run_config({**SMALL, "rule": "fa", **knobs})
    assert str(refused.value).endswith(sentence)


def test_the_layers_of_a_net_that_are_changed_are_all_but_the_last():
    model = network.make_model(run_config({**SMALL, "rule": "bp", "error": "full_rank"}))
    changed = [name for name, module in model.named_modules() if hasattr(module, "error_change")]
    assert changed == [*models.matrices(model)][:-1]
