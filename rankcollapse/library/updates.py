"""The updates: momentum SGD, Muon, what either may make of its momentum, and AdamW.

All take weights of any shape and memory layout, seen as matrices [out, everything else], and all decouple weight
decay from the gradient: W ← (1 - lr * decay) W before the step.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankcollapse.errors import InputError
from rankcollapse.library import processor, spectra


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


# ---- interventions on the momentum, matrix by matrix: under SGD, of its size ----


def top_r(update: Tensor, rank: int) -> Tensor:
    """The update [m, n] cut to its `rank` largest singular directions (arXiv:2606.11123, fig. 3)."""
    return _regained(update, lambda s, kept, peak: peak * _largest(s, rank))


def full_rank(update: Tensor, norm: str) -> Tensor:
    """The polar factor U Vᵀ of the update [m, n], scaled to keep its Frobenius or its spectral norm.

    Keeping the spectral norm lets the Frobenius norm grow, by up to √min(m, n): the convention matters. Directions of
    less than ε √max(m, n) of the largest singular value, ε of the update's type, become zero: there is rounding, of 0.2
    to 1.6 ε in float32 products and momenta of rank 9, and not to be lifted. The others keep the norm. For float64 the
    bound is √(ε max(m, n)): below it a Gram matrix tells nothing from zero.
    """
    if norm not in ("frobenius", "spectral"):
        raise InputError(f"norm is {norm!r}, but it must be 'frobenius' or 'spectral'")

    def gain(s: Tensor, kept: Tensor, peak: Tensor) -> Tensor:
        scale = s[-1:] if norm == "spectral" else (s.square().sum() / kept.sum()).sqrt()
        return torch.where(kept, peak * scale / s, 0.0)

    return _regained(update, gain)


# ---- under Muon, in the place of Newton-Schulz: of the polar factor's size, or of the momentum's directions ----


def polar(update: Tensor, rank: int | None = None, norm: str = "frobenius", spread: bool = False) -> Tensor:
    """The polar factor U Vᵀ of the update U S Vᵀ [m, n], exactly: what Newton-Schulz is a way to.

    Directions that are rounding alone, by the bound of `full_rank`, become zero, all others get the singular value 1.
    With `rank` = r only the r largest stay, U_r V_rᵀ, or with `spread` r that are spread evenly over the spectrum.
    Under norm `spectral` these keep the singular value 1; under `frobenius` they share one that keeps the Frobenius
    norm of the whole, √(directions kept): the rank moves and that size does not. Of parameters in bfloat16 the bound is
    wide, a fifth of the largest value at 576 columns.

    >>> polar(torch.tensor([[0.0, 4.0], [1.0, 0.0]]))
    tensor([[0., 1.],
            [1., 0.]])
    """

    def gain(s: Tensor, kept: Tensor, peak: Tensor) -> Tensor:
        chosen = kept if rank is None else kept & (_spread(kept, rank) if spread else _largest(s, rank))
        size = (kept.sum() / chosen.sum()).sqrt() if norm == "frobenius" else 1.0
        return torch.where(chosen, size / s, 0.0)

    return _regained(update, gain)


def within(update: Tensor, rank: int, norm: str = "frobenius", seed: int | None = None) -> Tensor:
    """Muon's step within `rank` random directions of the outputs: Q polar(Qᵀ M), with orthonormal Q [m, rank].

    By a seed Q is the same at every step, and for all matrices of as many rows: all steps of a training lie within
    these directions. Without one the bits of the update draw it, in whatever order, so that each step has others, of
    equal rank and size. The singular values are 1 under norm `spectral`, and √(min(m, n) / rank) under `frobenius`.
    """
    rank = min(rank, *update.shape)
    seed = int(update.float().contiguous().view(torch.int32).sum()) if seed is None else seed
    drawn = torch.randn(len(update), rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    directions = torch.linalg.qr(drawn).Q.to(update)
    size = (min(update.shape) / max(1, rank)) ** 0.5 if norm == "frobenius" else 1.0
    return size * directions @ polar(directions.mT @ update)


def frobenius(update: Tensor) -> Tensor:
    """The update [m, n] itself, scaled to the Frobenius norm of a polar factor of full rank, √min(m, n).

    Where directions are empty `polar` is smaller: of a classifier one is, as the errors of its classes sum to zero.
    """
    matrix, _ = spectra.scaled(update)
    unit = matrix / matrix.norm().clamp(min=torch.finfo(matrix.dtype).tiny)
    return (min(matrix.shape) ** 0.5 * unit).to(update.dtype)


def spectral(update: Tensor) -> Tensor:
    """The update [m, n] itself, scaled to the spectral norm of a polar factor, 1."""
    matrix, _ = spectra.scaled(update)
    largest = spectra.singular_values(matrix).max(initial=torch.finfo(matrix.dtype).tiny)
    return (matrix / float(largest)).to(update.dtype)


def sign(update: Tensor) -> Tensor:
    """The signs of the update [m, n], scaled as by `frobenius`. Unlike that it changes the singular directions too."""
    return frobenius(torch.where(update.isfinite(), update.sign(), torch.nan))


def _regained(update: Tensor, gain: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """U diag(gain) Uᵀ M: a matrix M = U S Vᵀ [m, n], over its largest entry, with other singular values.

    `gain(s, kept, peak)` gets S, ascending, which of it is more than rounding, see `full_rank`, and that entry. In
    float64, by the Gram matrix, much faster than an SVD. NaN all through of a diverged update, so that the loss shows
    it and the run is recorded as diverged.
    """
    if update.shape[0] > update.shape[1]:
        return _regained(update.t(), gain).t()
    matrix, peak = spectra.scaled(update)
    squares, left = spectra.eigen(matrix @ matrix.t())
    s = squares.clamp(min=0).sqrt()
    kept = s > s[-1:] * max(torch.finfo(update.dtype).eps, torch.finfo(s.dtype).eps ** 0.5) * update.shape[1] ** 0.5
    return ((left * gain(s, kept, peak)) @ left.t() @ matrix).to(update.dtype)


def _largest(s: Tensor, rank: int) -> Tensor:
    """Which of ascending values are the `rank` largest."""
    return torch.arange(len(s), 0, -1, device=s.device) <= rank


def _spread(kept: Tensor, rank: int) -> Tensor:
    """Which of ascending values: `rank` of those that are kept, in the middle of as many equal parts of them."""
    places, count = torch.arange(len(kept), device=kept.device) - (~kept).sum(), kept.sum()
    middles = (2 * torch.arange(rank, device=kept.device) + 1) * count // (2 * rank)
    return (places[:, None] == middles).any(-1)


# ---- the optimisers ----


class MomentumSGD(torch.optim.Optimizer):
    """Heavy-ball SGD, M ← momentum M + G, W ← (1 - lr decay) W - lr f(M), with an intervention f on matrices.

    `torch.optim.SGD` couples weight decay to the gradient and has no place for f; without either this gives its bits,
    in float32. `intervention` sees each parameter of two or more dimensions as a matrix, see `flatten`, but for those
    that it `spares`, the classifier's weight for one.

    >>> w = nn.Parameter(torch.ones(2, 3))
    >>> (2 * w).sum().backward()
    >>> MomentumSGD([w], lr=0.25, intervention=lambda update: update / 2).step()
    >>> w.detach()
    tensor([[0.7500, 0.7500, 0.7500],
            [0.7500, 0.7500, 0.7500]])
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        intervention: Callable[[Tensor], Tensor] | None = None,
        spares: Iterable[Tensor] = (),
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.intervention, self.spared = intervention, {*spares}

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
        return flatten(self._directions([weight], _group(self, weight)["momentum"])[0], weight)

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
        changed = [p.dim() > 1 and p not in self.spared for p in params]
        parts = zip(params, found, changed, strict=True)
        return [unflatten(self.intervention(flatten(m, p)), p) if change else m for p, m, change in parts]


def _group(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict:
    """The parameter group of a weight. Raises InputError for a weight that the last step did not move."""
    if weight.grad is None or not optimizer.state.get(weight):
        mend = "it must have been in a step of this optimizer and still have the gradient of that step"
        raise InputError(f"a weight of shape {[*weight.shape]} has no direction: {mend}")
    return next(group for group in optimizer.param_groups if any(weight is p for p in group["params"]))


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, to the bit, with β₁ = momentum and β₂ = 0.999, which can tell what its last step was."""

    def __init__(self, params, lr: float, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(params, lr, betas=(momentum, 0.999), weight_decay=weight_decay)

    @torch.no_grad()
    def direction(self, weight: Tensor) -> Tensor:
        """As that of MomentumSGD: m̂ / (√v̂ + ε) of Kingma & Ba (arXiv:1412.6980), as a matrix [out, rest]."""
        group, state = _group(self, weight), self.state[weight]
        first, second = (1 - beta ** float(state["step"]) for beta in group["betas"])
        root = (state["exp_avg_sq"].sqrt() / second**0.5).add_(group["eps"])
        return flatten(state["exp_avg"] / first / root, weight)


# ---- Muon ----

A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic step of Jordan et al. (2024): X ← A X + (B G + C G²) X, G = X Xᵀ
MULTIPLIES_BFLOAT16 = processor.multiplies_bfloat16()
SMALL = 64  # up to this many rows float32 is the faster type on a CPU, too, and more exact


def orthogonalise(matrices: Tensor, steps: int, precision: torch.dtype = torch.bfloat16) -> Tensor:
    """Newton-Schulz steps on one matrix [m, n], or on several at once [k, m, n], each scaled to a Frobenius norm of 1.

    They drive the singular values towards 1, to within about 0.3. `torch.optim.Muon` takes each step on X. Here up to
    three go on the smaller Gram matrix, where P = A + B G + C G² gives the next one, P G P, and the product of all P is
    multiplied by X once: 4 m² n + O(m³) in place of 12 m² n. More at once would lift the rounding of G, by A² for each,
    above the small singular values; in float32 five do no harm. Of more than five in bfloat16 each is on X, or that
    rounding would grow without end where the spectrum is steep.

    Above SMALL rows X is rounded to `precision`. In bfloat16, which is torch's, that puts about 1e-4 into each empty
    direction, which five steps multiply by A⁵ = 485: of random 128 x 576 matrices of rank 5, exp H(s) is 4.9 by exact
    steps, 65 here, 85 by torch's, and 4.9 in float32, which takes 1.7 times as long. In float32 five steps leave 1e-5
    in an empty direction; ten leave 5e-3, and exp H(s) is 7.7, where it is 5.9 by exact steps.

    A CPU without products of bfloat16 takes them in float32 and rounds each: the same up to rounding, in a ninth to a
    third of the time of torch's own (128 to 512 rows, one thread, AVX512).

    Columns of zeros stay zeros, and a CPU leaves them out: those of the taps that see only padding, 8 of 9 in the last
    layers of a ResNet-18 with ImageNet's stem on images of 32 x 32.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalise(matrices.mT, steps, precision).mT
    if not matrices.numel():
        return matrices
    rows, columns = matrices.shape[-2:]
    precision = torch.float32 if rows <= SMALL else precision
    together = 3 if precision == torch.bfloat16 else 5
    if (rows > SMALL and columns <= 1.5 * rows) or (precision == torch.bfloat16 and steps > 5):
        together = 1
    add = torch.addmm if matrices.dim() == 2 else torch.baddbmm
    x = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    largest = x.abs().amax(-2)
    if x.dim() == 2 and not x.is_cuda and not (live := largest != 0).all():
        made = orthogonalise(matrices[:, live], steps, precision)
        found = made.new_zeros(matrices.shape)
        found[:, live] = made
        return found
    tiny = torch.finfo(x.dtype).tiny  # keeps zeros; the largest entry becomes 1 first, lest a square leave the type
    x = x / largest.amax(-1)[..., None, None].clamp(min=tiny)
    x = x.div_(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=tiny))
    emulated = precision == torch.bfloat16 and not x.is_cuda and not MULTIPLIES_BFLOAT16

    def rounded(product: Tensor) -> Tensor:
        return product.to(precision).float() if emulated else product

    x = rounded(x.to(precision))
    for done in range(0, steps, together):
        gram, product = rounded(x @ x.mT), None
        for left in range(min(together, steps - done), 0, -1):
            factor = rounded(add(gram, gram, gram, beta=B, alpha=C))
            factor.diagonal(dim1=-2, dim2=-1).add_(A)
            factor = rounded(factor)
            product = factor if product is None else rounded(factor @ product)
            if left > 1:
                gram = rounded(factor @ rounded(gram @ factor))
        x = rounded(product @ x)
    return x.to(precision)


def orthogonalise_all(matrices: list[Tensor], steps: int, precision: torch.dtype) -> list[Tensor]:
    """Each of several matrices; on a GPU those of one shape together, which on a CPU is slower."""
    if not any(matrix.is_cuda for matrix in matrices):
        return [orthogonalise(matrix, steps, precision) for matrix in matrices]
    found = list(matrices)
    kinds = [(matrix.shape, matrix.dtype, matrix.device) for matrix in matrices]
    for kind in dict.fromkeys(kinds):
        which = [i for i, other in enumerate(kinds) if other == kind]
        stacked = torch.stack([matrices[i] for i in which])
        for i, made in zip(which, orthogonalise(stacked, steps, precision), strict=True):
            found[i] = made
    return found


class Muon(MomentumSGD):
    """Muon (Jordan et al. 2024) for matrices and convolutions: W ← (1 - lr decay) W - lr factor orthogonalise(N).

    N is the Nesterov momentum of the flattened weight. The shape factor is taken from the flattened matrix too:
    `original` is √max(1, out / in), `match_rms_adamw` 0.2 √max(out, in). `torch.optim.Muon` takes matrices alone; on
    flattened weights it does the same, to bfloat16's rounding. `ns_precision` is that of `orthogonalise`. With an
    `intervention`, such as `polar` or `frobenius`, that function from a matrix to a matrix of its shape takes the place
    of `orthogonalise`. See `split` for the parameters to give it; groups may have lr, momentum and weight_decay of
    their own. Raises InputError for an unknown shape factor or precision.

    >>> weight = nn.Parameter(torch.zeros(1, 2))
    >>> weight.grad = torch.tensor([[3.0, 4.0]])
    >>> Muon([weight], lr=0.5, intervention=polar).step()
    >>> weight.data
    tensor([[-0.3000, -0.4000]])
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        shape_factor: str = "original",
        ns_precision: torch.dtype = torch.bfloat16,
        intervention: Callable[[Tensor], Tensor] | None = None,
        spares: Iterable[Tensor] = (),
    ):
        if shape_factor not in ("original", "match_rms_adamw"):
            raise InputError(f"shape_factor is {shape_factor!r}, but it must be 'original' or 'match_rms_adamw'")
        if ns_precision not in (torch.bfloat16, torch.float32):
            raise InputError(f"ns_precision is {ns_precision!r}, but it must be torch.bfloat16 or torch.float32")
        super().__init__(params, lr, momentum, weight_decay, intervention, spares)
        self.ns_steps, self.shape_factor, self.ns_precision = ns_steps, shape_factor, ns_precision

    def _accumulate(self, momenta: list[Tensor], gradients: list[Tensor], momentum: float) -> None:
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)

    def _directions(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        nesterov = torch._foreach_lerp([p.grad for p in params], self._momenta(params), momentum)
        matrices = [flatten(n, p) for n, p in zip(nesterov, params, strict=True)]
        plain = [self.intervention is None or p in self.spared for p in params]
        whole = [*itertools.compress(matrices, plain)]
        whole = iter(orthogonalise_all(whole, self.ns_steps, self.ns_precision))
        made = [next(whole) if each else self.intervention(m) for m, each in zip(matrices, plain, strict=True)]
        return [unflatten(self._factor(m) * m, p) for m, p in zip(made, params, strict=True)]

    def _factor(self, matrix: Tensor) -> float:
        rows, columns = matrix.shape
        if self.shape_factor == "original":
            return max(1, rows / max(1, columns)) ** 0.5
        return 0.2 * max(rows, columns) ** 0.5


class Split(NamedTuple):
    """The parameters of a model that learn, each once, in the order of `model.parameters()`."""

    muon: list[nn.Parameter]
    other: list[nn.Parameter]


def split(model: nn.Module, head: bool = False) -> Split:
    """What of a model Muon should take, and what another optimiser, AdamW say.

    Muon is for maps from hidden activities to hidden activities: the weights of Linear and Conv2d layers, converted or
    not. The last of these layers in the order of `model.modules()` is taken for the head, and goes to the other unless
    `head` is set. So do all embeddings, norm layers, biases and whatever no Linear or Conv2d layer holds. So does a
    weight that layers share if any of them would send it there, as an embedding that is tied to the head. And so do
    depthwise convolutions, and grouped ones: rows of different groups have no input in common, so their flattened
    weight is not the matrix of any map, and orthogonalising it would mix what never meets.

    >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 9))
    >>> [tuple(weight.shape) for weight in split(net).muon]
    [(8, 4)]
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    takes = {m for m in (layers if head else layers[:-1]) if getattr(m, "groups", 1) == 1}
    suits: dict[nn.Parameter, bool] = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            suits[p] = suits.get(p, True) and module in takes and name == "weight"
    learning = [p for p in model.parameters() if p.requires_grad]
    return Split([p for p in learning if suits[p]], [p for p in learning if not suits[p]])
