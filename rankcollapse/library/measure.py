"""One's own training, measured: ranks of errors, activations and gradients, and alignment, as a tidy table."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from rankcollapse.library import rules
from rankcollapse.library.feedback import feedback_layers
from rankcollapse.library.ranks import measures
from rankcollapse.library.signals import Loss, Pass, cosines, passes
from rankcollapse.library.spectra import singular_values

NULL = {"min": 0, "q1": 0.25, "median": 0.5, "q3": 0.75, "max": 1}  # quantiles of the null


@torch.inference_mode(False)  # with autograd, wherever it is called
def measure(
    model: nn.Module, loss: Loss, batch: tuple, generator: torch.Generator | None = None, draws: int = 9
) -> pd.DataFrame:
    """What `model` learns from on one batch, by Linear and Conv2d layer: columns layer, quantity, measure and value.

    `batch` is (inputs, targets); inputs are a tensor, a tuple of arguments or a dict of keywords. `loss(outputs,
    targets)` gets what the model returns, and returns one number. The quantities are matrices:

        error [rows, features]               ∂L/∂a of the layer's output a
        activation [rows, features]          its input
        gradient [out, in * kh * kw]         ∂L/∂W
        weight [out, in * kh * kw]           W itself, for its cosine with the layer's feedback weights B

    Rows are images, flattened, of a convolution, and samples of a Linear layer, or tokens if it has sequences [n,
    tokens, features]. A layer that is called several times has the rows of all calls, one call after the other; one
    that is not called is not in the table; one that the loss does not depend on has zeros, of rank 0.

    The measures are those of `rankcollapse.MEASURES`: exp of the entropy of s and of s² (Roy & Vetterli 2007),
    participation ratio, stable rank; and `cosine`, of the gradient and that of backpropagation on this batch, 1 where
    no error comes through a B (layer `all`: all but the last, as one vector), or of W and B. With a generator each
    cosine has its null beside it: `null_mean`, `null_min`, `null_q1`, `null_median`, `null_q3` and `null_max` of the
    cosine with an untrained B, over `draws` of them, each the entries of B in random order. An untrained B's own cosine
    lies from `null_min` to `null_max` in (draws - 1) of (draws + 1) cases.

    Passes are those of training, and reach frozen weights: in training mode, but where the model is in it with parts
    that are not; dropout is the same in each. Model, gradients, modes, buffers and torch's random state are left as
    they were, to the bit. Give the model itself, not a compiled one. Raises ValueError if no layer is called, if the
    loss is not one number, or if a convolution is called on images of several sizes.

    >>> import rankcollapse
    >>> generator = torch.Generator().manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    >>> net = rankcollapse.convert(net, rule="fa", generator=generator)
    >>> batch = torch.randn(32, 8, generator=generator), torch.arange(32) % 3
    >>> table = rankcollapse.measure(net, nn.functional.cross_entropy, batch, generator)
    >>> found = table.set_index(["layer", "quantity", "measure"])["value"]
    >>> bool(1 < found["2", "error", "entropy_s"] < 2.001)  # each row of a softmax's error sums to 0: rank 2
    True
    >>> bool(-1 < found["0", "gradient", "cosine"] < found["2", "gradient", "cosine"])
    True
    """
    own = passes(model, loss, batch)
    gradients = {name: gradient.flatten(1) for name, gradient in own.gradients.items()}
    matrices = {"error": own.errors, "activation": own.activations, "gradient": gradients}
    spectra = ((name, key, singular_values(each)) for key, of in matrices.items() for name, each in of.items())
    rows = [(*about, *each) for *about, s in spectra for each in measures(s).items()]
    b, null = {name: layer.feedback for name, layer in feedback_layers(model).items()}, []
    with rules.exact_feedback(model):
        exact = passes(model, loss, batch) if b else own
    for _ in range(draws if b and generator else 0):
        fresh = {name: _shuffled(each, generator) for name, each in b.items()}
        with rules.through(model, fresh):
            null.append(_aligned(model, fresh, passes(model, loss, batch), exact))
    for about, cosine in _aligned(model, b, own, exact).items():
        rows.append((*about, "cosine", cosine))
        if null:
            values = [each[about] for each in null]
            rows.append((*about, "null_mean", float(np.mean(values))))
            rows += [(*about, f"null_{name}", float(np.quantile(values, q))) for name, q in NULL.items()]
    return pd.DataFrame(rows, columns=["layer", "quantity", "measure", "value"])


def _aligned(model: nn.Module, b: dict[str, Tensor], found: Pass, exact: Pass) -> dict[tuple[str, str], float]:
    """By layer and quantity the cosines of a pass and the exact one, and of W and B where they have one shape."""
    pairs = {name: (gradient, exact.gradients[name]) for name, gradient in found.gradients.items()}
    weights = {name: (model.get_submodule(name).weight, b[name]) for name in pairs if name in b}
    weights = {name: (w, each) for name, (w, each) in weights.items() if w.shape == each.shape}
    both = {"gradient": cosines(pairs, pooled=[*pairs][:-1]), "weight": cosines(weights)}
    return {(layer, quantity): cosine for quantity, of in both.items() for layer, cosine in of.items()}


def _shuffled(b: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(b.numel(), generator=generator, device=generator.device)
    return b.flatten()[order.to(b.device)].view(b.shape)
