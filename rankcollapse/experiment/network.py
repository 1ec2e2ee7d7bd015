"""From a RunConfig to its network, with feedback weights, and to the optimisers that train it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rankcollapse.errors import InputError
from rankcollapse.experiment import data, datasets
from rankcollapse.experiment.config import CUTS, RunConfig
from rankcollapse.library import error_signal, laws, models, updates
from rankcollapse.library.feedback import feedback_layers
from rankcollapse.library.rules import RULES


def skeleton(config: RunConfig) -> nn.Module:
    """The network of a run on the meta device: shapes without memory or randomness."""
    record = datasets.SETS[config.dataset]
    return models.skeleton(shape=record.shape, classes=record.classes, **config.model_dump())


def make_model(config: RunConfig, device: torch.device | str = "cpu") -> nn.Module:
    """The network of a run as it is before the first step, on `device`, with its feedback weights."""
    model = models.initialize(skeleton(config).to_empty(device="cpu"), data.generator(config.seed, "weights"))
    example = torch.zeros(2, *datasets.SETS[config.dataset].shape)
    generator = data.generator(config.seed, "feedback")
    RULES[config.rule].attach(model, generator, feedback_law(config), example)
    shape_feedback([layer.feedback for layer in feedback_layers(model).values()], config, generator)
    models.freeze(model, config.learning_blocks)
    if change := error_change(config):
        error_signal.change_errors([model.get_submodule(name) for name in [*models.matrices(model)][:-1]], change)
    return model.to(device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)


def error_change(config: RunConfig) -> error_signal.Change | None:
    """What a run makes of the errors of hidden layers; None: nothing."""
    if config.error == "full":
        return None
    options = {} if config.error_directions is None else {"rank": config.error_directions}
    if config.error == "fixed_r":
        options["seed"] = data.generator(config.seed, "directions of errors").initial_seed()
    return partial(getattr(error_signal, config.error), **options)


def feedback_law(config: RunConfig) -> laws.Init:
    """What every B of a run is drawn from, before that of hidden layers gets a law of its own."""
    return models.init_weight if config.feedback_scale == 1 else laws.scaled(models.init_weight, config.feedback_scale)


def shape_feedback(drawn: list[Tensor], config: RunConfig, generator: torch.Generator) -> None:
    """Give the B of hidden layers, all but the last of `drawn`, the law of `feedback`, in place.

    The classifier's has a row a class, and its rank would be theirs.
    """
    if config.feedback == "same":
        return

    def as_it_is(tensor: Tensor, generator: torch.Generator) -> None:
        """A law that changes nothing."""

    law = (
        laws.orthogonal(as_it_is) if config.feedback == "orthogonal" else laws.low_rank(as_it_is, config.feedback_rank)
    )
    for b in drawn[:-1]:
        law(b, generator)


def redraw_feedback(tensors: list[Tensor], config: RunConfig, generator: torch.Generator) -> None:
    """Fill the B of all layers, in their order, as those of a run are drawn."""
    for b in tensors:
        feedback_law(config)(b, generator)
    shape_feedback(tensors, config, generator)


def optimizers(model: nn.Module, config: RunConfig) -> list[torch.optim.Optimizer]:
    """The optimisers of a run, for what its rule lets learn: the first takes the forward weights, the classifier's too.

    Under SGD and Adam it takes all parameters; decay and interventions touch the forward weights alone. Under Muon a
    second, AdamW, takes biases and norm parameters.
    """
    weights = [w for w in models.matrices(model).values() if w.requires_grad]
    rest = [p for p in model.parameters() if p.requires_grad and all(p is not w for w in weights)]
    rates, change = (config.lr, config.momentum, config.weight_decay), intervention(model, config)
    spares = [] if config.update_head else [*models.matrices(model).values()][-1:]
    if config.optimizer == "muon":
        newton_schulz = {"ns_steps": config.ns_steps, "ns_precision": getattr(torch, config.ns_precision)}
        muon = updates.Muon(
            weights, *rates, shape_factor=config.shape_factor, intervention=change, spares=spares, **newton_schulz
        )
        return [muon, torch.optim.AdamW(rest, lr=config.auxiliary_lr, weight_decay=0.0)]
    groups = [{"params": weights}, {"params": rest, "weight_decay": 0.0}]
    if config.optimizer == "adam":
        return [updates.AdamW(groups, *rates)]
    return [updates.MomentumSGD(groups, *rates, change, spares)]


def intervention(model: nn.Module, config: RunConfig) -> Callable[[Tensor], Tensor] | None:
    """What a run makes of the momentum of its matrices; None: nothing under SGD and Adam, Newton-Schulz under Muon.

    Raises InputError for a rank beyond a matrix.
    """
    if config.update in CUTS:
        for name, weight in [*models.matrices(model).items()][: None if config.update_head else -1]:
            rows, columns = weight.flatten(1).shape
            if config.rank > min(rows, columns):
                what = f"the {rows} x {columns} matrix of layer {name!r} of {config.architecture}"
                raise InputError(f"rank is {config.rank}, beyond {what}; it must be {min(rows, columns)} or less")
        if config.optimizer == "sgd":
            return partial(updates.top_r, rank=config.rank)
        if config.update == "fixed_r":
            seed = data.generator(config.seed, "directions of updates").initial_seed()
            return partial(updates.within, rank=config.rank, norm=config.norm, seed=seed)
        if config.update == "drawn_r":
            return partial(updates.within, rank=config.rank, norm=config.norm)
        return partial(updates.polar, rank=config.rank, norm=config.norm, spread=config.update == "spread_r")
    if config.update == "full_rank":
        return partial(updates.full_rank, norm=config.norm)
    return None if config.update == "full" else getattr(updates, config.update)


def check(config: RunConfig) -> None:
    """Raise InputError if the network or the update of a run cannot be made."""
    net = skeleton(config)
    models.freeze(net, config.learning_blocks)
    intervention(net, config)
    if config.feedback == "rank":
        make_model(config)  # draws every B
