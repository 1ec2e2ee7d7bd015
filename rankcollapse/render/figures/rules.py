"""7. Rank or alignment, by learning rule."""

import numpy as np

from rankcollapse.render import drawing
from rankcollapse.render.mediation import LEARNING, rules
from rankcollapse.render.tables import KEYS, finished
from rankcollapse.render.text import interval

DECAYED = [f"{arm}-decay" for arm in ("bp", "bp+muon", "fa", "fa+muon")]  # beside KP, which decays
SHOWN = f"algorithm in {['bp', 'bp+bn', 'bp+muon', *LEARNING, *DECAYED]}"
SPREAD = ""
HEADS = {"effective rank of the gradients": "whole_gradient_rank", "cosine of the gradient with BP's": "alignment"}
RANK = next(iter(HEADS))


def data(tables):
    """The runs of studies of three rules with a B or more, for each of HEADS; `x` is its value, of a rank the log."""
    runs = drawing.measured(tables, HEADS)
    rules = runs["rule"].where(runs["aligned"]).groupby(runs["study"]).transform("nunique")
    logs = np.log2(runs["value"].where(runs["value"] > 0))
    return runs.assign(x=logs.where(runs["head"] == RANK, runs["value"]))[rules > 2]


def told(table):
    """By head the correlation of accuracy with its value, between methods that have a B, and given the other head's."""
    runs = finished(table).assign(arm=lambda t: t["algorithm"])
    wide = runs.pivot(index=[*KEYS, "outcome", "test_accuracy"], columns="head", values="value").rename(columns=HEADS)
    found = rules(wide.reset_index().rename(columns={"test_accuracy": "test_percent"})).set_index("predictor")
    told = [[name, f"{name}_low", f"{name}_high"] for name in ("between", "given_other")]
    return {head: [found.loc[name, ends] for ends in told] for head, name in HEADS.items() if name in found.index}


def draw(table, looks):
    grid = drawing.facets(table, 2.3)
    drawing.points(grid, "x", "test_accuracy", looks)
    for axes, part in drawing.cells(grid):
        axes.set(xlabel=part["head"].iloc[0], ylabel="test accuracy, %")
    for axes, _ in drawing.cells(grid, head=RANK):
        drawing.doubling(axes.xaxis)
    drawing.legend(grid, looks, linewidth=0)
    said = told(drawing.first(table))
    alone = [f"{drawing.shortly(*ends[0])} with the {head}" for head, ends in said.items()]
    if said:
        grid.figure.suptitle(f"Between methods ρ = {', '.join(alone)}", fontsize=8)
    return grid


def caption(table):
    here = drawing.first(table)
    said = [
        f"{interval(*alone)} with the {head} ({interval(*given)} given the other)"
        for head, (alone, given) in told(here).items()
    ]
    return (
        f"Test accuracy of learning rules, plain, with normalisation and with Muon, over the effective rank "
        f"({drawing.MEASURES['entropy_s2']}, logarithmic axis) of all gradients of a run, and over the cosine of the "
        f"gradient of hidden layers with BP's after training, which is 1 for BP itself. A point is a run. "
        f"{here['panel'].iloc[0]}: the correlation of accuracy between methods that have a B is "
        f"{' and '.join(said) or 'unknown'}, with 95 % intervals of a bootstrap."
    )
