"""The updates: momentum SGD with its interventions, and Muon.

Both take weights of any shape and memory layout, seen as matrices [out, everything else], and both decouple weight
decay from the gradient: W ← (1 - lr * decay) W before the step.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from rankcollapse.errors import InputError
from rankcollapse.library import spectra


def _order(weight: Tensor) -> list[int]:
    """The dimensions of a weight, the first first, the others as they lie in its memory, outermost first."""
    return sorted(range(weight.dim()), key=lambda d: (d > 0, -weight.stride(d)))


def flatten(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor as a matrix, [out, everything else], to be read alone: it shares memory only where the layout lets it.

    Its columns come as they lie in memory of the weight `like`, so channels_last needs no copy either; no rank, norm or
    polar factor depends on their order. A vector is a matrix of one column.
    """
    return torch.atleast_1d(tensor.permute(_order(like))).unsqueeze(-1).flatten(1)


def unflatten(matrix: Tensor, like: Tensor) -> Tensor:
    """What `flatten` made a matrix of, in the shape of the weight `like`, without a copy."""
    order = _order(like)
    return matrix.reshape([like.shape[d] for d in order]).permute([order.index(d) for d in range(like.dim())])


# ---- interventions on the momentum update, matrix by matrix ----


def top_r(update: Tensor, rank: int) -> Tensor:
    """The update [m, n] cut to its `rank` largest singular directions (arXiv:2606.11123, fig. 3)."""
    if update.shape[0] > update.shape[1]:
        return top_r(update.t(), rank).t()
    _, left = _left(update)
    left = left[:, max(len(left) - rank, 0) :]
    return (left @ left.t() @ update.double()).to(update.dtype)


def full_rank(update: Tensor, norm: str) -> Tensor:
    """The polar factor U Vᵀ of the update [m, n], scaled to keep its Frobenius or its spectral norm.

    Keeping the spectral norm lets the Frobenius norm grow, by up to √min(m, n): the convention matters. Directions of
    less than ε √max(m, n) of the largest singular value, ε of the update's type, become zero: there is rounding, of 0.2
    to 1.6 ε in float32 products and momenta of rank 9, and not to be lifted. The others keep the norm. For float64 the
    bound is √(ε max(m, n)): below it a Gram matrix tells nothing from zero.
    """
    if norm not in ("frobenius", "spectral"):
        raise InputError(f"norm is {norm!r}, but it must be 'frobenius' or 'spectral'")
    if update.shape[0] > update.shape[1]:
        return full_rank(update.t(), norm).t()
    s, left = _left(update)
    kept = s > s[-1:] * max(torch.finfo(update.dtype).eps, torch.finfo(s.dtype).eps ** 0.5) * update.shape[1] ** 0.5
    scale = s[-1:] if norm == "spectral" else (s.square().sum() / kept.sum()).sqrt()
    gain = torch.where(kept, scale / s, 0.0)
    return ((left * gain) @ left.t() @ update.double()).to(update.dtype)


def _left(update: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values of a matrix [m, n], m ≤ n, ascending, over its largest entry, and left singular vectors [m, m].

    In float64, by the Gram matrix, much faster than an SVD. NaN all through of a diverged update, so that the loss
    shows it and the run is recorded as diverged.
    """
    matrix, _ = spectra.scaled(update)
    squares, left = spectra.eigen(matrix @ matrix.t())
    return squares.clamp(min=0).sqrt(), left


# ---- the optimisers ----


class MomentumSGD(torch.optim.Optimizer):
    """Heavy-ball SGD, M ← momentum M + G, W ← (1 - lr decay) W - lr f(M), with an intervention f on matrices.

    `torch.optim.SGD` couples weight decay to the gradient and has no place for f; without either this gives its bits,
    in float32. `intervention` sees each parameter of two or more dimensions as a matrix, see `flatten`.
    """

    def __init__(self, params, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, intervention=None):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.intervention = intervention

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        found = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        for p in itertools.chain(*(params for _, params in found)):
            self._prepare(p)
        for group, params in found:
            if params:
                self._accumulate(self._momenta(params), [p.grad for p in params], group["momentum"])
                directions = self._directions(params, group["momentum"])
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, directions, alpha=-group["lr"])
        return loss

    @torch.no_grad()
    def direction(self, weight: Tensor) -> Tensor:
        """What the last step subtracted from a weight, per unit of rate and decay aside, as a matrix [out, rest].

        Raises InputError for a weight that the last step did not move.
        """
        if weight.grad is None or not self.state.get(weight):
            mend = "it must have been in a step of this optimizer and still have the gradient of that step"
            raise InputError(f"a weight of shape {[*weight.shape]} has no direction: {mend}")
        group = next(group for group in self.param_groups if any(weight is p for p in group["params"]))
        return flatten(self._directions([weight], group["momentum"])[0], weight)

    def _prepare(self, p: Tensor) -> None:
        """Momentum, zeros at first. Raises InputError for what the updates here do not take."""
        if p.is_complex() or p.grad.layout != torch.strided:
            what = f"a parameter of shape {[*p.shape]} {'is complex' if p.is_complex() else 'has a sparse gradient'}"
            raise InputError(f"{what}, but {type(self).__name__} takes real parameters with dense gradients alone")
        if not self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p)

    def _momenta(self, params: list[Tensor]) -> list[Tensor]:
        return [self.state[p]["momentum"] for p in params]

    def _accumulate(self, momenta: list[Tensor], gradients: list[Tensor], momentum: float) -> None:
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, gradients)

    def _directions(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        """What is subtracted per unit of rate, in the shapes of the parameters."""
        found = self._momenta(params)
        if self.intervention is None:
            return found
        pairs = zip(params, found, strict=True)
        return [unflatten(self.intervention(flatten(m, p)), p) if p.dim() > 1 else m for p, m in pairs]


# ---- Muon ----

A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic step of Jordan et al. (2024): X ← A X + (B G + C G²) X, G = X Xᵀ
SMALL = 64  # up to this many rows float32 is the faster type on a CPU, too, and more exact


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """Newton-Schulz steps on one matrix [m, n], or on several at once [k, m, n], each scaled to a Frobenius norm of 1.

    They drive the singular values towards 1, to within about 0.3. `torch.optim.Muon` takes each step on X. Here up to
    three go on the smaller Gram matrix, where P = A + B G + C G² gives the next one, P G P, and the product of all P is
    multiplied by X once: 4 m² n + O(m³) in place of 12 m² n. More at once would lift the rounding of G, by A² for each,
    above the small singular values; in float32 five do no harm.

    Above SMALL rows X is rounded to bfloat16. That puts about 1e-4 into each empty direction, which five steps multiply
    by A⁵ = 485: of random 128 x 576 matrices of rank 5, exp H(s) is 4.9 by exact steps, 65 here, 85 by torch's, and 5.0
    with X alone in float32, which takes 1.7 times as long.

    Columns of zeros stay zeros, and a CPU leaves them out: those of the taps that see only padding, 8 of 9 in the last
    layers of a ResNet-18 with ImageNet's stem on images of 32 x 32.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalise(matrices.mT, steps).mT
    if not matrices.numel():
        return matrices
    rows, columns = matrices.shape[-2:]
    small = rows <= SMALL
    together = 5 if small else 3 if columns > 1.5 * rows else 1
    add = torch.addmm if matrices.dim() == 2 else torch.baddbmm
    x = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    largest = x.abs().amax(-2)
    if x.dim() == 2 and not x.is_cuda and not (live := largest != 0).all():
        made = orthogonalise(matrices[:, live], steps)
        found = made.new_zeros(matrices.shape)
        found[:, live] = made
        return found
    tiny = torch.finfo(x.dtype).tiny  # keeps zeros; the largest entry becomes 1 first, lest a square leave the type
    x = x / largest.amax(-1)[..., None, None].clamp(min=tiny)
    x = x.div_(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=tiny))
    x = x.to(torch.float32 if small else torch.bfloat16)
    for done in range(0, steps, together):
        gram, product = x @ x.mT, None
        for left in range(min(together, steps - done), 0, -1):
            factor = add(gram, gram, gram, beta=B, alpha=C)
            factor.diagonal(dim1=-2, dim2=-1).add_(A)
            product = factor if product is None else factor @ product
            if left > 1:
                gram = factor @ (gram @ factor)
        x = product @ x
    return x


def orthogonalise_all(matrices: list[Tensor], steps: int) -> list[Tensor]:
    """Each of several matrices; on a GPU those of one shape together, which on a CPU is slower."""
    if not matrices[0].is_cuda:
        return [orthogonalise(matrix, steps) for matrix in matrices]
    found = list(matrices)
    kinds = [(matrix.shape, matrix.dtype, matrix.device) for matrix in matrices]
    for kind in dict.fromkeys(kinds):
        which = [i for i, other in enumerate(kinds) if other == kind]
        for i, made in zip(which, orthogonalise(torch.stack([matrices[i] for i in which]), steps), strict=True):
            found[i] = made
    return found


class Muon(MomentumSGD):
    """Muon (Jordan et al. 2024) for matrices and convolutions: W ← (1 - lr decay) W - lr factor orthogonalise(N).

    N is the Nesterov momentum of the flattened weight. The shape factor is taken from the flattened matrix too:
    `original` is √max(1, out / in), `match_rms_adamw` 0.2 √max(out, in). `torch.optim.Muon` takes matrices alone; on
    flattened weights it does the same, to bfloat16's rounding.
    """

    def __init__(self, weights, lr: float, momentum: float, weight_decay: float, ns_steps: int, shape_factor: str):
        if shape_factor not in ("original", "match_rms_adamw"):
            raise InputError(f"shape_factor is {shape_factor!r}, but it must be 'original' or 'match_rms_adamw'")
        super().__init__(weights, lr, momentum, weight_decay)
        self.ns_steps, self.shape_factor = ns_steps, shape_factor

    def _accumulate(self, momenta: list[Tensor], gradients: list[Tensor], momentum: float) -> None:
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)

    def _directions(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        nesterov = torch._foreach_lerp([p.grad for p in params], self._momenta(params), momentum)
        matrices = [flatten(n, p) for n, p in zip(nesterov, params, strict=True)]
        made = orthogonalise_all(matrices, self.ns_steps)
        return [unflatten(self._factor(m) * m, p) for m, p in zip(made, params, strict=True)]

    def _factor(self, matrix: Tensor) -> float:
        rows, columns = matrix.shape
        if self.shape_factor == "original":
            return max(1, rows / max(1, columns)) ** 0.5
        return 0.2 * max(rows, columns) ** 0.5
