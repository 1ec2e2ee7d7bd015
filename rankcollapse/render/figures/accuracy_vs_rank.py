"""4. Accuracy against effective rank."""

import numpy as np

from rankcollapse.render import drawing
from rankcollapse.render.mediation import correlations
from rankcollapse.render.tables import KEYS, finished, last, select
from rankcollapse.render.text import interval

SHOWN = "in_view and not ladder"
SPREAD = ""
MEASURE = "entropy_s2"
# By the sign of a correlation whose interval excludes 0, and by 0 for one whose does not.
SAID = {
    "between": {1: "goes with rank", 0: "does not go with rank", -1: "goes against rank"},
    "within": {1: "does", 0: "does not", -1: "goes against it"},
}


def data(tables):
    whole = select(tables["ranks"], quantity="gradient_trajectory", layer="all", scope="cumulative")
    table = tables["runs"].merge(last(whole, MEASURE)[[*KEYS, MEASURE]], on=KEYS)
    return table.assign(log_rank=np.log2(table[MEASURE].where(table[MEASURE] > 0)))


def found(table):
    """By panel what mediation.correlations says, of arms in the order that they have there."""
    panels = finished(table).assign(arm=finished(table)["algorithm"]).groupby("panel", sort=False)
    return {panel: told for panel, part in panels if (told := correlations(part))}


def finding(table):
    """What holds by all correlations whose intervals exclude 0, or in how many nets."""
    parts, nets = [], found(table).values()
    for side, words in SAID.items():
        told = [[each[side + end] for end in ("", "_low", "_high")] for each in nets]
        signs = [int(np.sign(low)) if low * high > 0 else 0 for _, low, high in told]
        some = [f"{words[sign]} in {signs.count(sign)} of {len(signs)} nets" for sign in (1, -1) if sign in signs]
        verdict = words[signs[0]] if len({*signs}) == 1 else " and ".join(some)
        parts.append(f"{verdict} (ρ = {', '.join(drawing.shortly(*each) for each in told)})")
    return f"Between arms accuracy {parts[0]},\nwithin arms it {parts[1]}" if nets else "Too few arms"


def panel(axes, table, looks):
    """A point for each run, and through those of an arm the line of least squares."""
    drawing.scatter(axes, table, "log_rank", "test_accuracy", looks)
    for arm, part in finished(table).dropna(subset="log_rank").groupby("arm", sort=False):
        x, y = part["log_rank"], part["test_accuracy"]
        if len(x) > 2 and np.ptp(x) > 0:
            ends = np.array([x.min(), x.max()])
            axes.plot(ends, np.polyval(np.polyfit(x, y, 1), ends), color=looks["palette"][arm], linewidth=1)
    drawing.doubling(axes.xaxis)
    axes.set(xlabel="effective rank of the gradients", ylabel="test accuracy, %")


def handles(table, looks):
    return drawing.handles(select(table, shown=True), looks, linewidth=0)


def draw(table, looks):
    grid = drawing.facets(table, 2.1)
    drawing.share(grid, "dataset")
    for axes, part in drawing.cells(grid):
        panel(axes, part, looks)
    drawing.diverged(grid, "log_rank", "test_accuracy", looks, ylim=(0, None))
    drawing.chance(grid)
    drawing.explain(grid.figure, handles(table, looks), table)
    grid.figure.suptitle(finding(table), fontsize=8)
    return grid


def caption(table):
    said = [
        f"{panel}, {side} {interval(told[side], told[f'{side}_low'], told[f'{side}_high'])}"
        for panel, told in found(table).items()
        for side in SAID
    ]
    return (
        f"Test accuracy against the effective rank ({drawing.MEASURES[MEASURE]}, logarithmic axis) of all gradients "
        f"kept from a run, whole net, of all arms, also those without a place in other figures, which are not named; "
        f"{drawing.MARKED}, a line the slope within an arm; dotted: chance. ρ: Pearson's, with the log of the rank, "
        f"of means of arms or of runs less these, with 95 % intervals of a bootstrap: "
        f"{'; '.join(said) or 'too few arms'}."
    )
