"""4. Accuracy against effective rank."""

import numpy as np

from rankcollapse.render import drawing
from rankcollapse.render.mediation import correlations
from rankcollapse.render.tables import KEYS, finished, last, select
from rankcollapse.render.text import interval

SHOWN = "in_view and not ladder"
SPREAD = ""
MEASURE, XY = "entropy_s2", ["log_rank", "test_accuracy"]
# By the sign of a correlation whose interval excludes 0, and by 0 for one whose does not.
SAID = {
    "between": {1: "goes with rank", 0: "is not shown to go with rank", -1: "goes against rank"},
    "within": {1: "it does so too", 0: "no link is shown", -1: "it goes against it"},
}


def data(tables):
    whole = select(tables["ranks"], quantity="gradient_trajectory", layer="all", scope="cumulative")
    table = drawing.grouped(tables["runs"].merge(last(whole, MEASURE)[[*KEYS, MEASURE]], on=KEYS))
    table = table.assign(log_rank=np.log2(table[MEASURE].where(table[MEASURE] > 0)))
    heads = told(table, drawing.shortly)
    return table.assign(head=[heads.get(panel, "") for panel in table["panel"]])


def found(table):
    """By panel what mediation.correlations says, of arms in the order that they have there."""
    panels = finished(table).assign(arm=finished(table)["algorithm"]).groupby("panel", sort=False)
    return {panel: values for panel, part in panels if (values := correlations(part))}


def told(table, tell):
    """By panel both correlations in words, or that between methods alone, where each has one run."""
    return {
        panel: "ρ = "
        + ", ".join(
            f"{tell(*(net[side + end] for end in ('', '_low', '_high')))} {side}"
            for side in SAID
            if np.isfinite(net[side])
        )
        for panel, net in found(table).items()
    }


def finding(table):
    """What holds by all correlations whose intervals exclude 0, or in how many nets."""
    parts, nets = [], found(table).values()
    for side, words in SAID.items():
        signs = [int(net[f"{side}_low"] > 0) - int(net[f"{side}_high"] < 0) for net in nets if np.isfinite(net[side])]
        some = [f"{words[sign]} in {signs.count(sign)} of {len(signs)} nets" for sign in (1, -1) if sign in signs]
        parts += [words[signs[0]] if len({*signs}) == 1 else " and ".join(some)] * (len(signs) > 0)
    return f"Between methods accuracy {', within one '.join(parts)}" if parts else "Too few methods"


def panel(axes, table, looks):
    """A point for each run, and through those of an arm the line of least squares; what a legend has."""
    drawing.points([(axes, table)], *XY, looks)
    for (arm, _), part in finished(table).dropna(subset="log_rank").groupby(["arm", "own"], sort=False):
        x, y = part[XY].to_numpy().T
        if len(x) > 2 and np.ptp(x) > 0:
            ends, look = np.array([x.min(), x.max()]), {"color": looks["palette"][arm], "linewidth": 1}
            axes.plot(ends, np.polyval(np.polyfit(x, y, 1), ends), zorder=1 + (arm != drawing.OTHERS), **look)
    drawing.doubling(axes.xaxis)
    axes.set(xlabel="effective rank of the gradients", ylabel="test accuracy, %")
    return drawing.handles(table, looks, linewidth=0)


def draw(table, looks):
    grid = drawing.facets(table, 2.1)
    drawing.share(grid, "dataset")
    for axes, part in drawing.cells(grid):
        panel(axes, part, looks)
    drawing.legend(grid, looks, linewidth=0)
    grid.figure.suptitle(finding(table), fontsize=8)
    return grid


def caption(table):
    nets = "; ".join(f"{panel}, {both}" for panel, both in told(table, interval).items())
    what = (
        f"Test accuracy over the effective rank ({drawing.MEASURES[MEASURE]}, logarithmic axis) of all gradients of a "
        f"run. A point is a run, a line the slope within a method. ρ is Pearson's, of means of methods or "
        f"within them, with 95 % intervals of a bootstrap. Nets with frozen weights have no such rank."
    )
    return what, f"{nets or 'There are too few methods'}."
