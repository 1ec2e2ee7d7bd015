"""8. Rank and accuracy as the rate changes."""

import numpy as np
from pandas import DataFrame

from rankcollapse.render import drawing
from rankcollapse.render.tables import finished
from rankcollapse.render.text import number

METHODS = ["fa", "fa+bn", "fa+muon", "fa+both", "bp", "bp+muon", "bp+both"]
RATES = ["-slow", "", "-fast"]
SHOWN = f"algorithm in {[method + rate for method in METHODS for rate in RATES]}"
SPREAD = ""
LEAST = 3  # methods with a second rate, for a panel
XY = ["log_rank", "test_accuracy"]


def data(tables):
    """The runs of methods that have two rates or more, in studies with LEAST of them; `arm` is the method."""
    runs = drawing.measured(tables, {"": "whole_gradient_rank"}).drop(columns="head")
    runs = runs.assign(method=runs["algorithm"].str.removesuffix(RATES[0]).str.removesuffix(RATES[-1]))
    labels = runs[runs["algorithm"] == runs["method"]].drop_duplicates("method").set_index("method")["arm"]
    runs = runs.assign(arm=runs["method"].map(labels), log_rank=np.log2(runs["value"].where(runs["value"] > 0)))
    runs = runs[runs.groupby(["panel", "method"])["lr"].transform("nunique") > 1]
    return runs[runs.groupby("panel")["method"].transform("nunique") >= LEAST]


def means(table: DataFrame) -> DataFrame:
    """By panel, arm and rate, in the order of the rates, the means of XY over finished runs that have a rank."""
    there = finished(table).dropna(subset="log_rank")
    return there.groupby(["panel", "arm", "lr"], sort=False)[XY].mean().reset_index().sort_values("lr", kind="stable")


def steps(table: DataFrame) -> DataFrame:
    """From each rate to the next higher one of a method, what rank (in doublings) and accuracy change by."""
    ends = means(table)
    return ends[["panel", "arm"]].join(ends.groupby(["panel", "arm"])[XY].diff()).dropna(subset=XY)


def finding(table: DataFrame) -> str:
    """In how many of these steps rank and accuracy rise or fall together."""
    changes = steps(table)
    together = (changes["log_rank"] * changes["test_accuracy"] > 0).sum()
    return f"As the rate rises, rank and accuracy move the same way in {together} of {len(changes)} steps"


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
    return grid.set_axis_labels("effective rank of the gradients", "test accuracy, %")


def caption(table):
    changes = steps(table).sort_values("log_rank").iloc[[0, -1]] if len(steps(table)) else steps(table)
    told = [
        f"{row.arm} multiplies its rank by {number(2**row.log_rank, 0.1)} and changes its accuracy by "
        f"{number(row.test_accuracy, 0.1)} points"
        for row in changes.itertuples()
    ]
    what = (
        f"Test accuracy over the effective rank ({drawing.MEASURES['entropy_s2']}, logarithmic axis) of all gradients "
        f"of a run, for methods at two or three learning rates. A small point is a run, a large one the mean at a "
        f"rate, the larger the higher the rate; lines join the rates of a method."
    )
    return what, f"{finding(table)}. From one rate to the next {' and '.join(told)}." * bool(told)
