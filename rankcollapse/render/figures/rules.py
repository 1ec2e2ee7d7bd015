"""7. Rank or alignment, by learning rule."""

import numpy as np

from rankcollapse.render import drawing
from rankcollapse.render.mediation import correlations
from rankcollapse.render.tables import finished
from rankcollapse.render.text import interval

RULES = ["bp", "fa", "dfa", "usf", "brsf", "frsf", "kp", "wm"]
DECAYED = [f"{arm}-decay" for arm in ("bp", "bp+muon", "fa", "fa+muon")]  # beside KP, which decays
SHOWN = f"algorithm in {[*(rule + remedy for rule in RULES for remedy in ('', '+bn', '+muon')), *DECAYED]}"
SPREAD = ""
HEADS = {"effective rank of the gradients": "whole_gradient_rank", "cosine of the gradient with BP's": "alignment"}
RANK = next(iter(HEADS))


def data(tables):
    """The runs of studies of three rules with a B or more, for each of HEADS; `x` is its value, of a rank the log."""
    runs = drawing.measured(tables, HEADS)
    rules = runs["rule"].where(runs["aligned"]).groupby(runs["study"]).transform("nunique")
    logs = np.log2(runs["value"].where(runs["value"] > 0))
    return runs.assign(x=logs.where(runs["head"] == RANK, runs["value"]))[rules > 2]


def told(table, tell):
    """The correlation between the methods that have a B with the value of each head, in words."""
    said = []
    for head, part in finished(table[table["aligned"]]).groupby("head", sort=False):
        if found := correlations(part.rename(columns={"x": "log_rank"})):
            said.append(f"{tell(*(found['between' + end] for end in ('', '_low', '_high')))} with the {head}")
    return said


def draw(table, looks):
    grid = drawing.facets(table, 2.3)
    drawing.points(grid, "x", "test_accuracy", looks)
    for axes, part in drawing.cells(grid):
        axes.set(xlabel=part["head"].iloc[0], ylabel="test accuracy, %")
    for axes, _ in drawing.cells(grid, head=RANK):
        drawing.doubling(axes.xaxis)
    drawing.legend(grid, looks, linewidth=0)
    grid.figure.suptitle("Between methods ρ = " + ", ".join(told(drawing.first(table), drawing.shortly)), fontsize=8)
    return grid


def caption(table):
    here = drawing.first(table)
    return (
        f"Test accuracy of learning rules, plain, with normalisation and with Muon, over the effective rank "
        f"({drawing.MEASURES['entropy_s2']}, logarithmic axis) of all gradients of a run, and over the cosine of the "
        f"gradient of hidden layers with BP's after training, which is 1 for BP itself. A point is a run. "
        f"{here['panel'].iloc[0]}: between methods that have a B, the correlation of accuracy is "
        f"{' and '.join(told(here, interval)) or 'unknown'}, with 95 % intervals of a bootstrap."
    )
