"""The updates: momentum SGD with its interventions, and Muon.

Both take forward weights (matrices, convolutions seen as [out, in * kh * kw]) and both decouple weight decay from the
gradient: W ← (1 - lr * decay) W before the step.
"""

import torch
from torch import Tensor

from rankcollapse.library import spectra


def flatten(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """A weight as a matrix, [out, everything else], sharing its memory; its columns in the order of those of `like`.

    In channels_last memory they come in another order. No rank, norm or polar factor depends on it.
    """
    like = tensor if like is None else like
    return (tensor.permute(0, 2, 3, 1) if like.dim() == 4 and not like.is_contiguous() else tensor).flatten(1)


# ---- interventions on the momentum update, matrix by matrix ----


def top_r(update: Tensor, rank: int) -> Tensor:
    """The update [m, n] cut to its `rank` largest singular directions (arXiv:2606.11123, fig. 3)."""
    if update.shape[0] > update.shape[1]:
        return top_r(update.t(), rank).t()
    _, left = _left(update)
    left = left[:, -rank:]
    return (left @ left.t() @ update.double()).to(update.dtype)


def full_rank(update: Tensor, norm: str) -> Tensor:
    """The polar factor U Vᵀ of the update [m, n], exact, scaled to keep its Frobenius or its spectral norm.

    Keeping the spectral norm lets the Frobenius norm grow, by up to √min(m, n): the convention matters. Directions
    below 1e-8 of the largest singular value, beyond what float32 holds, stay as they are: of a row of zeros, zeros.
    """
    if update.shape[0] > update.shape[1]:
        return full_rank(update.t(), norm).t()
    s, left = _left(update)
    scale = s[-1] if norm == "spectral" else s.norm() / len(s) ** 0.5
    gain = torch.where(s > 1e-8 * s[-1], scale / s, torch.ones_like(s))
    return ((left * gain) @ left.t() @ update.double()).to(update.dtype)


def _left(update: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values of a matrix [m, n], m ≤ n, ascending, and its left singular vectors [m, m], both float64.

    By the Gram matrix, much faster than an SVD. Of a diverged update NaN all through, so that the loss shows it and the
    run is recorded as diverged.
    """
    matrix = update.double()
    squares, left = spectra.eigen(matrix @ matrix.t())
    return squares.clamp(min=0).sqrt(), left


def _learning(optimizer: torch.optim.Optimizer, group: dict) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of a group that have a gradient, and their momenta, zeros at first."""
    params = [p for p in group["params"] if p.grad is not None]
    for p in params:
        if not optimizer.state[p]:
            optimizer.state[p]["momentum"] = torch.zeros_like(p)
    return params, [optimizer.state[p]["momentum"] for p in params]


class MomentumSGD(torch.optim.Optimizer):
    """Heavy-ball SGD, M ← momentum M + G, W ← (1 - lr decay) W - lr f(M), with an intervention f on matrices.

    `torch.optim.SGD` couples weight decay to the gradient and has no place for f; without either this gives its bits.
    `intervention` sees each parameter of two or more dimensions as a matrix, see `flatten`; others take M as it is.
    """

    def __init__(self, params, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, intervention=None):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.intervention = intervention

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params, updates = _learning(self, group)
            if not params:
                continue
            torch._foreach_mul_(updates, group["momentum"])
            torch._foreach_add_(updates, [p.grad for p in params])
            if self.intervention is not None:
                updates = [self._intervene(p, m) if p.dim() > 1 else m for p, m in zip(params, updates, strict=True)]
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"])

    def direction(self, weight: Tensor) -> Tensor:
        """What the last step subtracted from a weight, per unit of rate and decay aside, as a matrix [out, rest]."""
        update = self.state[weight]["momentum"]
        return flatten(update if self.intervention is None else self._intervene(weight, update))

    def _intervene(self, weight: Tensor, update: Tensor) -> Tensor:
        changed = torch.empty_like(weight)
        flatten(changed).copy_(self.intervention(flatten(update, weight)))
        return changed


# ---- Muon ----

A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic step of Jordan et al. (2024): X ← A X + (B G + C G²) X, G = X Xᵀ
SMALL = 64  # up to this many rows float32 is the faster type on a CPU, too, and more exact


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """Newton-Schulz steps on one matrix [m, n], or on several at once [k, m, n], each scaled to a Frobenius norm of 1.

    They drive the singular values towards 1, to within about 0.3. `torch.optim.Muon` takes each step on X. Here up to
    three go on the smaller Gram matrix, where P = A + B G + C G² gives the next one, P G P, and the product of all P is
    multiplied by X once: 4 m² n + O(m³) in place of 12 m² n. More steps at once would lift the rounding of G, by A² for
    each, above the small singular values; in float32 five do no harm.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalise(matrices.mT, steps).mT
    rows, columns = matrices.shape[-2:]
    small = rows <= SMALL
    together = 5 if small else 3 if columns > 1.5 * rows else 1
    add = torch.addmm if matrices.dim() == 2 else torch.baddbmm
    x = matrices.to(torch.float32 if small else torch.bfloat16)
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
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
    for shape in dict.fromkeys(matrix.shape for matrix in matrices):
        which = [i for i, matrix in enumerate(matrices) if matrix.shape == shape]
        for i, made in zip(which, orthogonalise(torch.stack([matrices[i] for i in which]), steps), strict=True):
            found[i] = made
    return found


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices and convolutions: W ← (1 - lr decay) W - lr factor orthogonalise(N).

    N is the Nesterov momentum of the flattened weight. The shape factor is taken from the flattened matrix too:
    `original` is √max(1, out / in), `match_rms_adamw` 0.2 √max(out, in). `torch.optim.Muon` takes
    matrices alone; on flattened weights it does the same, to bfloat16's rounding.
    """

    def __init__(self, weights, lr: float, momentum: float, weight_decay: float, ns_steps: int, shape_factor: str):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.ns_steps, self.shape_factor = ns_steps, shape_factor

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params, momenta = _learning(self, group)
            if not params:
                continue
            torch._foreach_lerp_(momenta, [p.grad for p in params], 1 - group["momentum"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            for p, direction in zip(params, self._directions(params, group["momentum"]), strict=True):
                flatten(p).add_(direction, alpha=-group["lr"])

    def direction(self, weight: Tensor) -> Tensor:
        """As in MomentumSGD, from the momentum and the gradient of the last step, which must still be there."""
        return self._directions([weight], self.param_groups[0]["momentum"])[0]

    def _directions(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        """What is subtracted per unit of rate, as matrices."""
        momenta = [self.state[p]["momentum"] for p in params]
        nesterov = torch._foreach_lerp([p.grad for p in params], momenta, momentum)
        matrices = [flatten(n, p) for n, p in zip(nesterov, params, strict=True)]
        return [self._factor(m) * m for m in orthogonalise_all(matrices, self.ns_steps)]

    def _factor(self, matrix: Tensor) -> float:
        rows, columns = matrix.shape
        return max(1, rows / columns) ** 0.5 if self.shape_factor == "original" else 0.2 * max(rows, columns) ** 0.5
