"""Laws of B other than W's own: from a law, a function that fills a tensor [out, ...] from a generator, to another.

    convert(model, "fa", generator, laws.low_rank(models.init_weight, 4))

Those that make a matrix make the flattened B [out, everything else], of the Frobenius norm of what the law draws.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from rankcollapse.errors import InputError

Init = Callable[[Tensor, Generator], object]


def scaled(law: Init, factor: float) -> Init:
    """Every entry times `factor`."""
    return _changed(law, lambda drawn, generator: factor * drawn)


def orthogonal(law: Init) -> Init:
    """Uniform among the matrices whose singular values are all alike (Saxe et al. 2014, arXiv:1312.6120)."""

    def change(drawn: Tensor, generator: Generator) -> Tensor:
        q, r = torch.linalg.qr(torch.randn(max(drawn.shape), min(drawn.shape), generator=generator))
        q = q * r.diagonal().sign()  # it would not be uniform without
        return _as_large(q if len(q) == len(drawn) else q.t(), drawn)

    return _changed(law, change)


def low_rank(law: Init, rank: int) -> Init:
    """A product of normal factors [out, rank] and [rank, rest]. It raises InputError for a rank beyond a matrix."""

    def change(drawn: Tensor, generator: Generator) -> Tensor:
        if rank > min(drawn.shape):
            raise InputError(f"feedback_rank is {rank}, beyond a B of {[*drawn.shape]}: {min(drawn.shape)} is its most")
        left, right = (torch.randn(n, rank, generator=generator) for n in drawn.shape)
        return _as_large(left @ right.t(), drawn)

    return _changed(law, change)


def _changed(law: Init, change: Callable[[Tensor, Generator], Tensor]) -> Init:
    def init(tensor: Tensor, generator: Generator) -> None:
        law(tensor, generator)
        tensor.detach().copy_(change(tensor.detach().flatten(1), generator).view(tensor.shape))

    return init


def _as_large(matrix: Tensor, like: Tensor) -> Tensor:
    return matrix * (like.norm() / matrix.norm())
