"""9. Rank and accuracy as the rate changes."""

import numpy as np
from pandas import DataFrame

from rankcollapse.render import drawing
from rankcollapse.render.tables import finished, select
from rankcollapse.render.text import number

METHODS = ["fa", "fa+bn", "fa+muon", "fa+both", "bp", "bp+muon", "bp+both"]
RATES = ["-slow", "", "-fast"]
SHOWN = f"algorithm in {[method + rate for method in METHODS for rate in RATES]}"
SPREAD = ""
LEAST = 3  # methods with a second rate, for a panel
PATH = ["panel", "head", "arm"]
XY = ["log_rank", "test_accuracy"]
HEADS = {"gradients of the whole run": "whole_gradient_rank", "latest gradients": "recent_gradient_rank"}


def data(tables):
    """The runs of methods that have two rates or more, in studies with LEAST of them, for each of HEADS.

    `arm` is the method.
    """
    runs = drawing.measured(tables, HEADS)
    runs = runs.assign(method=runs["algorithm"].str.removesuffix(RATES[0]).str.removesuffix(RATES[-1]))
    labels = runs[runs["algorithm"] == runs["method"]].drop_duplicates("method").set_index("method")["arm"]
    runs = runs.assign(arm=runs["method"].map(labels), log_rank=np.log2(runs["value"].where(runs["value"] > 0)))
    runs = runs[runs.groupby(["panel", "method"])["lr"].transform("nunique") > 1]
    return runs[runs.groupby("panel")["method"].transform("nunique") >= LEAST]


def means(table: DataFrame) -> DataFrame:
    """By panel, head, arm and rate, in the order of the rates, the means of XY over finished runs that have a rank."""
    there = finished(table).dropna(subset="log_rank")
    return there.groupby([*PATH, "lr"], sort=False)[XY].mean().reset_index().sort_values("lr", kind="stable")


def steps(table: DataFrame) -> DataFrame:
    """From each rate to the next higher one of a method, what rank (in doublings) and accuracy change by."""
    ends = means(table)
    return ends[PATH].join(ends.groupby(PATH)[XY].diff()).dropna(subset=XY)


def finding(table: DataFrame) -> str:
    """In how many of these steps the means rise or fall together, however little: claims have what is sure of it."""
    changes = select(steps(table), head=next(iter(HEADS)))
    together = (changes["log_rank"] * changes["test_accuracy"] > 0).sum()
    return f"As the rate rises, mean rank and accuracy move the same way in {together} of {len(changes)} steps"


def draw(table, looks):
    grid = drawing.facets(table, 2.8)
    for axes, part in drawing.cells(grid):
        done = finished(part)
        axes.scatter(*XY, 6, data=done, color=[looks["palette"][arm] for arm in done["arm"]], alpha=0.5)
        for arm, path in means(part).groupby("arm", sort=False):
            look = {"color": looks["palette"][arm], "marker": looks["markers"][arm], "zorder": 3}
            axes.plot(*XY, data=path, linewidth=1, markersize=0, color=look["color"], zorder=2)
            axes.scatter(*XY, 14 * 2.2 ** np.arange(len(path)), data=path, linewidth=0, **look)
        drawing.doubling(axes.xaxis)
    drawing.legend(grid, looks, linewidth=0)
    grid.figure.suptitle(finding(table), fontsize=8)
    return grid.set_axis_labels("effective rank", "test accuracy, %")


def caption(table):
    told = []
    for head, changes in steps(table).groupby("head", sort=False):
        least, most = (number(2**end, 0.1) for end in (changes["log_rank"].min(), changes["log_rank"].max()))
        told.append(f"that of the {head} by {least} to {most}")
    what = (
        f"Test accuracy over the effective rank ({drawing.MEASURES['entropy_s2']}, logarithmic axis) of the "
        f"minibatch gradients of a run, all or the latest, for methods at two or three learning rates. A small point "
        f"is a run, a large one the mean at a rate, the larger the higher the rate; lines join the rates of a method."
    )
    return what, f"{finding(table)}. One step multiplies the rank, {' and '.join(told)}." * bool(told)
