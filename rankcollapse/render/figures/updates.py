"""5. The rank of updates at equal size."""

import numpy as np
from matplotlib.lines import Line2D
from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.claims import reading
from rankcollapse.render.tables import ended, select

RANKS = {1: 0, 2: 1, 5: 2, 10: 3}  # and their places on the axis, before that of full rank
DIALS = {  # colour, marker and dashes, and how far from its place
    "cut and enlarged, rate tuned": ("#1b7837", "o", "", -0.07),
    "cut and enlarged, Muon's rate": ("#762a83", "s", (1, 1.65), 0),
    "cut alone, Muon's rate": ("#bf812d", "^", (3.7, 1.6), 0.07),
    "spread over the spectrum, enlarged, rate tuned": ("#4393c3", "D", (1, 1), 0.14),
}
ENDS = {[*DIALS][2]: "fa+polar-same", [*DIALS][3]: "fa+polar"}  # all of the directions, on a dial that shares them
ARMS = [f"fa+{each}{end}" for each in (*(f"top{r}" for r in RANKS), "polar", "frobenius") for end in ("", "-same")]
SHOWN = f"algorithm in {['fa', *ARMS, *(f'fa+{each}' for r in RANKS for each in (f'top{r}-unit', f'spread{r}'))]}"
SPREAD = "bars"
OVER = ended


def data(tables):
    """The runs of studies that cut updates, as `arm` the dial: its rate, is what is left enlarged? And those of FA."""
    runs = tables["runs"]
    same, unit = runs["rate"] == "as fa+muon", runs["norm"] == "spectral"
    plain, spread = runs["algorithm"] == "fa", runs["update"] == "spread_r"
    dials = np.select([plain, spread, ~same, ~unit], [runs["arm"], [*DIALS][3], *[*DIALS][:2]], [*DIALS][2])
    runs = runs.assign(arm=dials, value=runs["test_accuracy"])
    runs["at"] = runs["rank"].map(RANKS).fillna(len(RANKS)) + runs["arm"].map({arm: DIALS[arm][-1] for arm in DIALS})
    return runs[runs.groupby("study")["rank"].transform("count") > 0]


def panel(axes, table, looks):
    """Accuracy over r on each dial, SGD's direction at the size of Muon's steps, and FA; what a legend has."""
    sgd, dials = select(table, algorithm="fa"), table[table["algorithm"] != "fa"]
    whole, cut = select(dials, update="frobenius"), dials[dials["update"] != "frobenius"]
    for arm, part in ended(sgd).groupby("arm"):
        axes.axhline(part["value"].mean(), color=looks["palette"][arm], linewidth=0.8)
    for dial, part in ended(whole).groupby("arm"):
        _, mean, low, high = reading(part["value"])
        axes.axhline(mean, color=DIALS[dial][0], linewidth=0.8, dashes=DIALS[dial][2] or (None, None))
        axes.axhspan(low, high, color=DIALS[dial][0], alpha=0.1, linewidth=0)
    for dial, part in cut.groupby("arm"):
        ended_in = select(cut, algorithm=ENDS[dial]) if dial in ENDS else None
        drawing.join(axes, concat([part, ended_in]), color=DIALS[dial][0], dashes=DIALS[dial][2] or (None, None))
    drawing.dots(axes, cut, drawing.looking(looks, DIALS))
    axes.set_ylim(*np.clip(axes.get_ylim(), 0, 100))
    axes.set_xticks(range(len(RANKS) + 1), [*RANKS, "all"])
    axes.set(xlabel="r, directions of an update that are kept", ylabel="test accuracy, %")
    level = Line2D(
        [], [], color=drawing.GREY, linewidth=0.8, label="flat in a band of that colour: SGD's own step, enlarged"
    )
    sgd = drawing.handles(sgd, looks, marker="")
    return drawing.handles(dials, drawing.looking(looks, DIALS)) + sgd + [level] * (len(whole) > 0)


def draw(table, looks):
    grid = drawing.facets(table, 2.3)
    named = {each.get_label(): each for axes, part in drawing.cells(grid) for each in panel(axes, part, looks)}
    drawing.explain(grid.figure, [*named.values()], table)
    grid.figure.suptitle(title(drawing.first(table, OVER)), fontsize=8)
    return grid


def _gains(table):
    """Of one direction in place of all on each dial, in points, where there are runs."""
    pairs = [("fa+top1", "fa+polar"), ("fa+top1-same", "fa+polar-same"), ("fa+top1-unit", "fa+polar-same")]
    pairs += [("fa+spread1", "fa+polar")]
    gains = {dial: drawing.paired(table, *pair)["value"] for dial, pair in zip(DIALS, pairs, strict=True)}
    return {dial: drawing.sure(gain) for dial, gain in gains.items() if len(gain)}


def title(table):
    marks = dict(zip(DIALS, "●■▲◆", strict=True))
    return f"Cut to one direction: {', '.join(f'{marks[dial]} {gain}' for dial, gain in _gains(table).items())} points"


def finding(table):
    parts = [f"{gain} points ({dial})" for dial, gain in _gains(table).items()]
    return f"with one direction in place of all accuracy changes by {', '.join(parts)}"


def caption(table):
    here = drawing.first(table, OVER)
    at_size = drawing.sure(drawing.paired(here, "fa+polar", "fa+frobenius")["value"])
    return (
        f"Test accuracy of FA whose updates of hidden layers are Muon's, cut to their r largest singular directions "
        f"or to r spread over the spectrum, and enlarged to the Frobenius norm of all, or not. Horizontal is SGD's own "
        f"step at that norm, and FA under SGD. {here['panel'].iloc[0]}, paired by seed: {finding(here)}. At that norm "
        f"all of Muon's directions are {at_size} points above SGD's own step."
    )
