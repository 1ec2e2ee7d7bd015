"""8. Rank or alignment, by learning rule."""

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
    """The runs of studies of three rules with a B or more, for each of HEADS; `x` is its value, of a rank the log.

    `group` is the arm if its study shows it, or other methods.
    """
    runs = drawing.measured(tables, HEADS)
    several = runs["rule"].where(runs["aligned"]).groupby(runs["study"]).transform("nunique")
    logs = np.log2(runs["value"].where(runs["value"] > 0))
    x, group = logs.where(runs["head"] == RANK, runs["value"]), drawing.grouped(runs)["arm"]
    return runs.assign(x=x, group=group)[several > 2]


def told(table):
    """By head the correlation of accuracy with its value, between methods that have a B, and given the other head's."""
    runs = finished(table).assign(arm=lambda t: t["algorithm"])
    wide = runs.pivot(index=[*KEYS, "outcome", "test_accuracy"], columns="head", values="value").rename(columns=HEADS)
    found = rules(wide.reset_index().rename(columns={"test_accuracy": "test_percent"})).set_index("predictor")
    told = [[name, f"{name}_low", f"{name}_high"] for name in ("between", "given_other")]
    return {head: [found.loc[name, ends] for ends in told] for head, name in HEADS.items() if name in found.index}


def panel(axes, table, looks):
    """The cosines alone, in the looks of methods that the study shows; what a legend has."""
    part = table[table["head"] != RANK].assign(arm=lambda t: t["group"])
    drawing.points([(axes, part)], "x", "test_accuracy", looks)
    axes.set(xlabel=part["head"].iloc[0], ylabel="test accuracy, %")
    return drawing.handles(part, looks, linewidth=0)


def draw(table, looks):
    grid = drawing.facets(table, 2.3)
    drawing.points(grid, "x", "test_accuracy", looks)
    for axes, part in drawing.cells(grid):
        axes.set(title="", xlabel=part["head"].iloc[0], ylabel="test accuracy, %")
    for axes, _ in drawing.cells(grid, head=RANK):
        drawing.doubling(axes.xaxis)
    drawing.legend(grid, looks, linewidth=0)
    grid.figure.suptitle(title(drawing.first(table)), fontsize=8)
    return grid


def title(table):
    """Both correlations of one study and each given the other, or nothing."""
    said = [[drawing.shortly(*ends) for ends in both] for both in told(table).values()]
    if not said:
        return ""
    (rank, rank_given), (cosine, cosine_given) = said
    both = f"ρ = {rank} with rank, {rank_given} given the cosine; {cosine} with the cosine, {cosine_given} given rank"
    return f"Between learning rules {both}"


def finding(table):
    said = [
        f"{interval(*alone)} with the {head} ({interval(*given)} given the other)"
        for head, (alone, given) in told(table).items()
    ]
    return f"over learning rules with a B accuracy correlates by {' and '.join(said) or '–'}"


def caption(table):
    here = drawing.first(table)
    what = (
        f"Test accuracy of learning rules, plain, with normalisation and with Muon, over the effective rank "
        f"({drawing.MEASURES['entropy_s2']}, logarithmic axis) of all gradients of a run, and over the cosine of the "
        f"gradient of hidden layers with BP's after training, which is 1 for BP itself. A point is a run. DFA: "
        f"direct feedback alignment; uSF, frSF, brSF: B has W's signs, and one magnitude, fixed or redrawn ones; KP: "
        f"Kolen and Pollack's rule."
    )
    return what, f"{here['panel'].iloc[0]}: {finding(here)}, with 95 % intervals of a bootstrap."
