"""Singular values by Gram matrices against NumPy's, the measures of a spectrum by hand, and the file of spectra."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rankcollapse.experiment.folder import read_spectra, save_spectra
from rankcollapse.library.ranks import COLUMNS, MEASURES, Spectrum, measures
from rankcollapse.library.spectra import from_gram, gram, singular_values

spectra = hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1e6)).filter(lambda s: s.max() > 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (12, 12), (1, 5), (5, 1)])
def test_singular_values_are_those_of_numpy(shape, dtype, tolerance, device):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    found = singular_values(matrix.to(device))
    assert found.dtype == np.float64
    assert (np.diff(found) <= 0).all()
    np.testing.assert_allclose(found, np.linalg.svd(matrix.numpy(), compute_uv=False), rtol=tolerance)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(width=32, min_value=-(2.0**99), max_value=2.0**99),
    )
)
def test_singular_values_of_any_matrix_are_numpys_to_the_resolution_of_a_gram_matrix(matrix):
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(singular_values(torch.from_numpy(matrix)), expected, rtol=1e-7, atol=1e-7 * expected[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_has_nan_singular_values_and_nan_ranks(bad):
    matrix = torch.ones(3, 5)
    matrix[1, 2] = bad
    found = singular_values(matrix)
    assert found.shape == (3,)
    assert np.isnan(found).all()
    ranks = measures(np.array([1.0, bad]))
    assert ranks.keys() == MEASURES.keys()
    assert np.isnan([*ranks.values()]).all()


def test_from_gram_takes_rounding_below_zero_as_zero():
    assert from_gram(torch.diag(torch.tensor([4.0, -1e-9]))).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("shape", [(1, 3), (2, 5), (7, 4), (9, 2**13), (10, 2**14 + 3), (50, 2**13 + 1), (5, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gram_is_the_product_of_the_rows_with_themselves(shape, dtype, device):
    """By slices and blocks, on either side of their borders; products and sums in float32."""
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = gram(rows, device).cpu()
    exact = rows.double().numpy() @ rows.double().numpy().T
    assert found.dtype == torch.float32
    assert torch.equal(found, found.t())
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * shape[1])


# ---- measures ----


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        *(([0.3] * n, [n] * 4) for n in (1, 2, 5, 64)),
        ([7, 0, 0], [1] * 4),
        ([0, 0, 0], [0] * 4),
        # p = 2/3, 1/3: (3/2)^(2/3) 3^(1/3); p = 4/5, 1/5: (5/4)^(4/5) 5^(1/5); (4 + 1)² / (16 + 1); (4 + 1) / 4
        ([2, 1], [3 / 2 ** (2 / 3), 5 / 4 ** (4 / 5), 25 / 17, 5 / 4]),
        # p = 3/8, 2/8, 2/8, 1/8: Π p^-p = 8 / (3³ 2² 2²)^(1/8); p = 9, 4, 4, 1 over 18
        ([3, 2, 2, 1], [8 / (27 * 16) ** (1 / 8), 18 / (9**9 * 4**8) ** (1 / 18), 18**2 / (81 + 16 + 16 + 1), 2]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_measures_are_those_worked_by_hand(s, expected):
    names = ["entropy_s", "entropy_s2", "participation_ratio", "stable_rank"]
    assert measures(np.array(s, dtype=float)) == pytest.approx(dict(zip(names, expected, strict=True)))


@given(spectra, st.floats(1e-140, 1e140), st.randoms(use_true_random=False))
def test_measures_depend_neither_on_scale_nor_on_order_nor_on_zeros(s, scale, random):
    shuffled = np.array(random.sample([*s, 0.0, 0.0], len(s) + 2))
    assert measures(scale * shuffled) == pytest.approx(measures(s), rel=1e-9)


@given(spectra)
def test_measures_are_ordered_as_renyi_entropies_are_between_one_and_the_number_of_values(s):
    found = measures(s)
    order = [len(s), *(found[key] for key in ("entropy_s", "entropy_s2", "participation_ratio", "stable_rank")), 1]
    assert all(larger >= smaller - 1e-9 for larger, smaller in pairwise(order))


# ---- the file ----


def test_spectra_come_back_from_their_file_as_they_were_in_float32(tmp_path):
    values = [[3.0, 1e-3, 0.0], [np.nan] * 2, [0.1]]
    kept = [Spectrum("error", f"layer{i}", "batch", 10 * i, 64, np.array(v)) for i, v in enumerate(values)]
    save_spectra(tmp_path / "spectra.npz", kept)
    for a, b in zip(read_spectra(tmp_path / "spectra.npz"), kept, strict=True):
        assert [getattr(a, key) for key in COLUMNS] == [getattr(b, key) for key in COLUMNS]
        assert a.values.dtype == np.float64
        np.testing.assert_array_equal(a.values, b.values.astype(np.float32))
    save_spectra(tmp_path / "none.npz", [])
    assert read_spectra(tmp_path / "none.npz") == []


@pytest.mark.parametrize("content", [b"", b"no archive", None], ids=["empty", "text", "cut off"])
def test_a_file_that_holds_no_spectra_is_refused(tmp_path, content, refused):
    path = tmp_path / "spectra.npz"
    save_spectra(path, [Spectrum("error", "head", "batch", 0, 4, np.ones(3))])
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    refused(lambda: read_spectra(path), str(path), "not a readable spectra file")
