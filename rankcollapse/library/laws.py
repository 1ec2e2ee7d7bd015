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
    """Every entry times `factor`.

    >>> b = torch.empty(1, 2)
    >>> scaled(lambda tensor, generator: tensor.fill_(1), 3)(b, torch.Generator())
    >>> b
    tensor([[3., 3.]])
    """

    def init(tensor: Tensor, generator: Generator) -> None:
        law(tensor, generator)
        tensor.detach().mul_(factor)

    return init


def orthogonal(law: Init) -> Init:
    """Uniform among the matrices whose singular values are all alike (Saxe et al. 2014, arXiv:1312.6120).

    >>> b = torch.empty(2, 3)
    >>> orthogonal(lambda tensor, generator: tensor.fill_(1))(b, torch.Generator().manual_seed(0))
    >>> (b @ b.T).allclose(3 * torch.eye(2), atol=1e-5)
    True
    """

    def change(drawn: Tensor, generator: Generator) -> Tensor:
        q, r = torch.linalg.qr(torch.randn(max(drawn.shape), min(drawn.shape), generator=generator, dtype=drawn.dtype))
        q = q * r.diagonal().sign()  # it would not be uniform without
        return q if len(q) == len(drawn) else q.t()

    return _structured(law, change)


def low_rank(law: Init, rank: int) -> Init:
    """A product of normal factors [out, rank] and [rank, rest]. It raises InputError for a rank beyond a matrix.

    >>> b = torch.empty(4, 5)
    >>> low_rank(lambda tensor, generator: tensor.fill_(1), 2)(b, torch.Generator().manual_seed(0))
    >>> int(torch.linalg.matrix_rank(b))
    2
    """

    def change(drawn: Tensor, generator: Generator) -> Tensor:
        if not 1 <= rank <= min(drawn.shape):
            raise InputError(f"feedback_rank is {rank}; of a B of {[*drawn.shape]} it must be 1 to {min(drawn.shape)}")
        left, right = (torch.randn(n, rank, generator=generator, dtype=drawn.dtype) for n in drawn.shape)
        return left @ right.t()

    return _structured(law, change)


def _structured(law: Init, change: Callable[[Tensor, Generator], Tensor]) -> Init:
    def init(tensor: Tensor, generator: Generator) -> None:
        law(tensor, generator)
        drawn = tensor.detach().flatten(1)
        matrix = change(drawn, generator)
        tensor.detach().copy_((matrix * (drawn.norm() / matrix.norm())).view(tensor.shape))

    return init
