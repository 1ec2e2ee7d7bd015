"""5. The rank of updates at equal size."""

import numpy as np
from matplotlib.lines import Line2D
from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.claims import reading
from rankcollapse.render.tables import ended, select

RANKS = {1: 0, 2: 1, 5: 2, 10: 3}  # and their places on the axis, before that of full rank
DIALS = {"rate tuned": "-", "Muon's rate": ":", "the same, no larger for it": "--"}
ARMS = [f"fa+{each}{end}" for each in (*(f"top{r}" for r in RANKS), "polar", "frobenius") for end in ("", "-same")]
SHOWN = f"algorithm in {[*ARMS, *(f'fa+top{r}-unit' for r in RANKS)]}"
SPREAD = "bars"
OVER = ended


def data(tables):
    """The runs of studies that cut updates, by `dial`: whose rate they have, and whether what is left is enlarged."""
    runs = tables["runs"]
    same, unit = runs["rate"] == "as fa+muon", runs["norm"] == "spectral"
    runs = runs.assign(dial=np.select([~same, ~unit], [*DIALS][:2], [*DIALS][2]), value=runs["test_accuracy"])
    runs = runs.assign(at=runs["rank"].map(RANKS).fillna(len(RANKS)))
    return runs[runs.groupby("study")["rank"].transform("count") > 0]


def panel(axes, table, looks):
    """Accuracy over r on each dial; horizontal: SGD's direction at the size of Muon's steps."""
    whole, cut = select(table, update="frobenius"), table[table["update"] != "frobenius"]
    for (dial, arm), part in ended(whole).groupby(["dial", "arm"]):
        _, mean, low, high = reading(part["value"])
        axes.axhline(mean, color=looks["palette"][arm], linewidth=1, linestyle=DIALS[dial])
        axes.axhspan(low, high, color=looks["palette"][arm], alpha=0.12, linewidth=0)
    whole_at_muons = select(cut, algorithm="fa+polar-same")  # the end of both dials at its rate
    for dial, part in cut.groupby("dial"):
        ended_in = whole_at_muons if dial == [*DIALS][2] else None
        drawing.join(axes, concat([part, ended_in]), linestyle=DIALS[dial])
    drawing.dots(axes, cut, looks)
    axes.set_xticks(range(len(RANKS) + 1), [*RANKS, "all"])
    axes.set(xlabel="r, directions of an update that are kept", ylabel="test accuracy, %")


def handles(table, looks):
    """Of a legend: lines, and what has no r."""
    lines = {dial: ("0.5", line) for dial, line in DIALS.items()}
    whole = select(table, update="frobenius")[["arm", "dial"]].drop_duplicates()
    lines |= {arm: (looks["palette"][arm], DIALS[dial]) for arm, dial in whole.itertuples(index=False)}
    made = [Line2D([], [], color=colour, linestyle=line, label=name) for name, (colour, line) in lines.items()]
    return made + drawing.handles(select(table, update="polar"), looks, linewidth=0)


def draw(table, looks):
    grid = drawing.facets(table, 2.3)
    for axes, part in drawing.cells(grid):
        panel(axes, part, looks)
    drawing.explain(grid.figure, handles(table, looks), table)
    grid.figure.suptitle(finding(drawing.first(table, OVER)), fontsize=8)
    return grid


def finding(table):
    pairs = {"its own rate": ("fa+top1", "fa+polar"), "Muon's": ("fa+top1-same", "fa+polar-same")}
    pairs["Muon's and no larger for it"] = ("fa+top1-unit", "fa+polar-same")
    gains = {rate: drawing.paired(table, *pair)["value"] for rate, pair in pairs.items()}
    said = [f"{drawing.sure(gain)} at {rate}" for rate, gain in gains.items() if len(gain)]
    return f"Cut to one direction, in points: {', '.join(said)}"


def caption(table):
    here = drawing.first(table, OVER)
    at_size = drawing.sure(drawing.paired(here, "fa+polar", "fa+frobenius")["value"])
    return (
        f"Test accuracy of FA whose updates of hidden layers are Muon's cut to their r largest singular directions: at "
        f"the Frobenius norm of all, each at its own rate or at Muon's, and at Muon's with the singular values of all; "
        f"up to all of them, the exact polar factor; horizontal: momentum's own direction at that norm; a cross is a "
        f"run that diverged. {here['panel'].iloc[0]}. {finding(here)}. "
        f"The polar factor less momentum's own direction: {at_size}."
    )
