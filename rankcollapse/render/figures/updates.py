"""5. The rank of updates at equal size."""

import numpy as np
from matplotlib.lines import Line2D

from rankcollapse.render import drawing
from rankcollapse.render.claims import reading
from rankcollapse.render.tables import ended, select

RANKS = {1: 0, 2: 1, 5: 2, 10: 3}  # and their places on the axis, before that of full rank
DIALS = {"rate tuned": "-", "Muon's rate": ":"}
ARMS = [f"fa+{each}{same}" for each in (*(f"top{r}" for r in RANKS), "frobenius") for same in ("", "-same")]
SHOWN = f"algorithm in {[*ARMS, 'fa+polar', 'fa+muon']}"
SPREAD = "bars"
OVER = ended


def data(tables):
    """The runs of studies that cut updates, with as `dial` whose rate they have."""
    runs = tables["runs"]
    same = (runs["rate"] == "as fa+muon") | (runs["algorithm"] == "fa+muon")
    runs = runs.assign(dial=np.where(same, "Muon's rate", "rate tuned"), value=runs["test_accuracy"])
    runs = runs.assign(at=runs["rank"].map(RANKS).fillna(len(RANKS)))
    return runs[runs.groupby("study")["rank"].transform("count") > 0]


def panel(axes, table, looks):
    """Accuracy over r on each dial; horizontal: SGD's direction at the size of Muon's steps."""
    whole, cut = select(table, update="frobenius"), table[table["update"] != "frobenius"]
    for (dial, arm), part in ended(whole).groupby(["dial", "arm"]):
        _, mean, low, high = reading(part["value"])
        axes.axhline(mean, color=looks["palette"][arm], linewidth=1, linestyle=DIALS[dial])
        axes.axhspan(low, high, color=looks["palette"][arm], alpha=0.12, linewidth=0)
    for dial, part in cut.groupby("dial"):
        drawing.join(axes, part, linestyle=DIALS[dial])
    drawing.dots(axes, cut, looks)
    axes.set_xticks(range(len(RANKS) + 1), [*RANKS, "all"])
    axes.set(xlabel="r, directions of an update that are kept", ylabel="test accuracy, %")


def handles(table, looks):
    """Of a legend: lines, and what has no r."""
    lines = {dial: ("0.5", line) for dial, line in DIALS.items()}
    whole = select(table, update="frobenius")[["arm", "dial"]].drop_duplicates()
    lines |= {arm: (looks["palette"][arm], DIALS[dial]) for arm, dial in whole.itertuples(index=False)}
    made = [Line2D([], [], color=colour, linestyle=line, label=name) for name, (colour, line) in lines.items()]
    return made + drawing.handles(table.query("update in ('full', 'polar')"), looks, linewidth=0)


def draw(table, looks):
    grid = drawing.facets(table, 2.3)
    for axes, part in drawing.cells(grid):
        panel(axes, part, looks)
    drawing.explain(grid.figure, handles(table, looks), table)
    grid.figure.suptitle(finding(drawing.first(table, OVER)), fontsize=8)
    return grid


def finding(table):
    pairs = {"its own rate": ("fa+top1", "fa+polar"), "Muon's": ("fa+top1-same", "fa+muon")}
    said = [f"{drawing.sure(drawing.paired(table, *pair)['value'])} at {rate}" for rate, pair in pairs.items()]
    return f"Cut to one direction, in points: {', '.join(said)}"


def caption(table):
    here = drawing.first(table, OVER)
    return (
        f"Test accuracy of FA whose updates are Muon's cut to their r largest singular directions, at the norm of "
        f"Muon's step: each at its own rate, up to the exact polar factor, and at Muon's, up to Muon; horizontal: "
        f"SGD's own update at that norm; a cross is a run that diverged. {here['panel'].iloc[0]}. {finding(here)}. "
        f"The polar factor less SGD's: {drawing.sure(drawing.paired(here, 'fa+polar', 'fa+frobenius')['value'])}."
    )
