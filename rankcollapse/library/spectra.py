"""Singular values by Gram matrices, all in float64."""

import math

import numpy as np
import torch
from torch import Tensor

SLICE = 2**13  # columns of a long matrix that are in memory at a time


def singular_values(matrix: Tensor) -> np.ndarray:
    """Singular values of an [m, n] matrix, descending, float64 [min(m, n)]; NaN all through if an entry is not finite.

    By the eigenvalues of the smaller Gram matrix: values below about 1e-8 of the largest are noise.

    >>> singular_values(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]))
    array([4., 3.])
    """
    matrix, peak = scaled(matrix)
    return from_gram(matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix) * float(peak)


def scaled(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix, float64, over its largest entry, and that entry: no square of the quotient is out of range."""
    matrix = matrix.double()
    peak = matrix.abs().max().clamp(min=torch.finfo(matrix.dtype).tiny) if matrix.numel() else matrix.new_ones(())
    return matrix / peak, peak


def from_gram(gram: Tensor) -> np.ndarray:
    """Singular values of A, descending, float64 [n], from its Gram matrix A Aᵀ [n, n]."""
    squares, _ = eigen(gram, vectors=False)
    return squares.flip(0).clamp(min=0).sqrt().cpu().numpy()


def eigen(gram: Tensor, vectors: bool = True) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix [n, n], ascending, float64 [n], and its eigenvectors [n, n], or nothing of use.

    The divide and conquer of LAPACK and cuSOLVER fails to converge on some matrices, at every attempt: those are solved
    as an SVD. NaN all through for a matrix that is not finite, or that the SVD fails on too, so that the loss or the
    rank made of it shows it.
    """
    gram = gram.double()
    if bool(torch.isfinite(gram).all()):
        for solve in (torch.linalg.eigh if vectors else lambda gram: (torch.linalg.eigvalsh(gram), gram), _by_svd):
            try:
                return solve(gram)
            except torch.linalg.LinAlgError:
                continue
    return torch.full_like(gram[0], math.nan), torch.full_like(gram, math.nan)


def _by_svd(gram: Tensor) -> tuple[Tensor, Tensor]:
    left, values, _ = torch.linalg.svd(gram)
    return values.flip(0), left.flip(1)


def gram(rows: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """A Aᵀ, float32 [T, T] on `device`, of rows [T, P] of any type; by slices: A may be a file larger than memory.

    Float32 holds no squares of a row whose norm is below 1e-19 or above 1e19: it counts as zeros, or as not finite.
    """
    total, block = len(rows), -(-len(rows) // 3)
    products = torch.zeros(total, total, device=device)
    buffer = torch.empty(total, SLICE, device=device)
    for part in rows.split(SLICE, dim=1):
        columns = buffer[:, : part.shape[1]].copy_(part)
        for i in range(0, total, block):  # only at and below the diagonal: two thirds of the work
            products[i:, i : i + block].addmm_(columns[i:], columns[i : i + block].t())
    return products.tril() + products.tril(-1).t()
