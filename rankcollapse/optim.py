"""The updates: momentum SGD with its interventions, and Muon.

Both take forward weights (matrices, convolutions seen as [out, in * kh * kw]) and both decouple weight decay from the
gradient: W ← (1 - lr * decay) W before the step.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rankcollapse import models
from rankcollapse.config import RunConfig
from rankcollapse.errors import InputError


def flatten(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """A weight as a matrix, [out, everything else], sharing its memory; its columns in the order of those of `like`.

    In channels_last memory they come in another order. No rank, norm or polar factor depends on it.
    """
    like = tensor if like is None else like
    return (tensor.permute(0, 2, 3, 1) if like.dim() == 4 and not like.is_contiguous() else tensor).flatten(1)


# ---- interventions on the momentum update, matrix by matrix ----


def top_r(update: Tensor, rank: int) -> Tensor:
    """The update [m, n] cut to its `rank` largest singular directions (arXiv:2606.11123, fig. 3)."""
    u, s, v = _svd(update)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def full_rank(update: Tensor, norm: str) -> Tensor:
    """The polar factor U Vᵀ of the update [m, n], exact, scaled to keep its Frobenius or its spectral norm.

    Keeping the spectral norm lets the Frobenius norm grow, by up to √min(m, n): the convention matters.
    """
    u, s, v = _svd(update)
    scale = s[0] if norm == "spectral" else s.norm() / len(s) ** 0.5
    return scale * (u @ v)


def _svd(update: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD; of a diverged update NaN all through, so that the loss shows it and the run is recorded as diverged."""
    if not bool(torch.isfinite(update).all()):
        update, k = torch.full_like(update, float("nan")), min(update.shape)
        return update[:, :k], update.flatten()[:k], update[:k]
    return torch.linalg.svd(update, full_matrices=False)


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
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            updates = [self.state[p]["momentum"] for p in params]
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


class FlatMuon(torch.optim.Muon):
    """`torch.optim.Muon` for matrices and convolutions: it is given 2-D views that share the weights' memory.

    Muon (Jordan et al. 2024) orthogonalises the Nesterov momentum of each matrix by Newton-Schulz iterations. The
    shape factor is taken from the flattened matrix: `original` is √max(1, out / in), `match_rms_adamw` 0.2 √max(out,
    in). Make it when the model is where it will train: a later `model.to(...)` may leave the views behind.
    """

    def __init__(self, weights, lr: float, momentum: float, weight_decay: float, ns_steps: int, shape_factor: str):
        self.weights = list(weights)
        views = [nn.Parameter(flatten(w.detach())) for w in self.weights]
        super().__init__(views, lr, weight_decay, momentum, ns_steps=ns_steps, adjust_lr_fn=shape_factor)

    def step(self):
        for weight, view in zip(self.weights, self.param_groups[0]["params"], strict=True):
            view.grad = None if weight.grad is None else flatten(weight.grad, weight)
        super().step()

    def direction(self, weight: Tensor) -> Tensor:
        """As in MomentumSGD: a step of Muon itself, of rate 1, on zeros, with the Nesterov momentum for a gradient."""
        group = self.param_groups[0]
        view = group["params"][[w is weight for w in self.weights].index(True)]
        zeros = nn.Parameter(torch.zeros_like(view))
        zeros.grad = view.grad.lerp(self.state[view]["momentum_buffer"], group["momentum"])
        settings = {key: group[key] for key in ("ns_steps", "adjust_lr_fn")}
        torch.optim.Muon([zeros], lr=1.0, weight_decay=0.0, momentum=0.0, **settings).step()
        return -zeros.detach()

    def zero_grad(self, set_to_none: bool = True):
        for weight in self.weights:
            weight.grad = None
        super().zero_grad(set_to_none)


def build(model: nn.Module, config: RunConfig) -> list[torch.optim.Optimizer]:
    """The optimisers of a run, for what its rule lets learn: the first takes the forward weights, the classifier's too.

    Under SGD it takes all parameters; decay and interventions touch the forward weights alone. Under Muon a second,
    AdamW, takes biases and norm parameters.
    """
    weights = [w for w in models.matrices(model).values() if w.requires_grad]
    rest = [p for p in model.parameters() if p.requires_grad and all(p is not w for w in weights)]
    if config.optimizer == "muon":
        muon = FlatMuon(weights, config.lr, config.momentum, config.weight_decay, config.ns_steps, config.shape_factor)
        return [muon, torch.optim.AdamW(rest, lr=config.auxiliary_lr, weight_decay=0.0)]
    groups = [{"params": weights}, {"params": rest, "weight_decay": 0.0}]
    return [MomentumSGD(groups, config.lr, config.momentum, config.weight_decay, intervention(model, config))]


def intervention(model: nn.Module, config: RunConfig) -> Callable[[Tensor], Tensor] | None:
    """The intervention of a RunConfig on matrices, or None. Raises InputError for a rank beyond a matrix."""
    if config.update == "top_r":
        for name, weight in models.matrices(model).items():
            rows, columns = flatten(weight).shape
            if config.rank > min(rows, columns):
                what = f"the {rows} x {columns} matrix of layer {name!r} of {config.architecture}"
                raise InputError(f"rank is {config.rank}, beyond {what}; it must be {min(rows, columns)} or less")
        return lambda update: top_r(update, config.rank)
    if config.update == "full_rank":
        return lambda update: full_rank(update, config.norm)
    return None
