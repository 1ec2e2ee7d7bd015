"""Interventions on the error signal of hidden layers: its rank is set, and its size stays.

The error signal δ = ∂L/∂a of a layer's output a is changed as the backward pass reaches it, as a matrix [images,
features] of the batch. The layer learns from what is made of it, and sends that on.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from rankcollapse.library import updates

Change = Callable[[Tensor], Tensor]  # from the errors of a batch [images, features] to others of that shape


def change_errors(layers: list[nn.Module], change: Change) -> None:
    """From now on `layers` learn from, and send on, what `change` makes of their errors; by a hook on each.

    A probe that is attached later, as `measure` is, sees the errors as they are changed.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> change_errors([layer], lambda delta: 3 * delta)
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> layer.weight.grad
    tensor([[3., 3.],
            [3., 3.]])
    """
    for layer in layers:
        layer.error_change = change
        layer.register_forward_hook(_on_output)


@contextmanager
def unchanged_errors(model: nn.Module) -> Iterator[None]:
    """Within this context the errors of all layers of `model` are as they come."""
    with ExitStack() as after:
        for module in model.modules():
            if hasattr(module, "error_change"):
                after.callback(setattr, module, "error_change", module.error_change)
                module.error_change = None
        yield


def top_r(delta: Tensor, rank: int) -> Tensor:
    """The errors cut to their `rank` largest singular directions, at the Frobenius norm of the whole.

    >>> top_r(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 1)
    tensor([[0., 0.],
            [0., 5.]])
    """
    return _sized(updates.top_r(delta.float(), rank), delta)


def fixed_r(delta: Tensor, rank: int, seed: int) -> Tensor:
    """The errors within `rank` random directions of the features, at the Frobenius norm of the whole.

    By `seed` they are the same in every batch, and in all layers of as many features: over a whole training the errors
    of a layer have no more than this rank.
    """
    directions = _directions(delta.shape[1], rank, seed).to(delta.device)
    return _sized(delta.float() @ directions @ directions.t(), delta)


def full_rank(delta: Tensor) -> Tensor:
    """The polar factor U Vᵀ of the errors U S Vᵀ, at the Frobenius norm of the whole: all directions are as large.

    >>> full_rank(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    tensor([[3.5355, 0.0000],
            [0.0000, 3.5355]])
    """
    return updates.full_rank(delta.float(), "frobenius").to(delta.dtype)


def _on_output(layer: nn.Module, args: tuple, output: Tensor) -> None:
    if output.requires_grad and layer.error_change:
        output.register_hook(functools.partial(_changed, layer.error_change))


def _changed(change: Change, delta: Tensor) -> Tensor:
    return updates.unflatten(change(updates.flatten(delta, delta)), delta)


def _sized(changed: Tensor, delta: Tensor) -> Tensor:
    """Changed errors at the Frobenius norm of those that they were; zeros stay zeros."""
    was, now = (torch.linalg.vector_norm(errors, dtype=torch.float64) for errors in (delta, changed))
    return (changed * (was / now.clamp(min=torch.finfo(now.dtype).tiny))).to(delta.dtype)


@functools.lru_cache(maxsize=32)
def _directions(features: int, rank: int, seed: int) -> Tensor:
    """Orthonormal columns [features, rank], float32."""
    drawn = torch.randn(features, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.float()
