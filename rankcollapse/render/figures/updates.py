"""5. The rank of updates at equal size."""

import numpy as np
from matplotlib.lines import Line2D
from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.claims import reading
from rankcollapse.render.tables import ended, select
from rankcollapse.render.text import interval

RANKS = {1: 0, 2: 1, 5: 2, 10: 3}  # and their places on the axis, before that of full rank
DIALS = {  # colour, marker and dashes, how far from its place, and its arms: of r directions, and of all
    "largest, enlarged, rate tuned": ("#1b7837", "o", "", -0.07, "fa+top{}", "fa+polar"),
    "largest, enlarged, Muon's rate": ("#762a83", "s", (1, 1.65), 0, "fa+top{}-same", "fa+polar-same"),
    "largest alone, Muon's rate": ("#bf812d", "^", (3.7, 1.6), 0.07, "fa+top{}-unit", "fa+polar-same"),
    "over the spectrum, enlarged, tuned": ("#2166ac", "D", (3.7, 1.6), 0, "fa+spread{}", "fa+polar"),
    "random, anew at each step, tuned": ("#4393c3", "v", (1, 1.65), 0.07, "fa+drawn{}", "fa+polar"),
    "random, fixed, tuned": ("#d6604d", "P", (6, 1.5, 1, 1.5), 0.14, "fa+fixed{}", "fa+polar"),
}
NAMES = [*DIALS]
HEADS = {"The largest directions": NAMES[:3], "Which directions?": [NAMES[0], *NAMES[3:]]}
DIAL = {look[4].format(r): name for name, look in DIALS.items() for r in RANKS}
DIAL |= {f"fa+{whole}{end}": NAMES[bool(end)] for whole in ("polar", "frobenius") for end in ("", "-same")}
SHOWN = f"algorithm in {['fa', *DIAL]}"
SPREAD = "bars"
OVER = ended


def data(tables):
    """The runs of studies that cut updates, as `arm` the dial, under each of HEADS that has it, and those of FA."""
    runs = tables["runs"]
    runs = runs.assign(arm=runs["algorithm"].map(DIAL).fillna(runs["arm"]), value=runs["test_accuracy"])
    shift = runs["arm"].map({name: look[3] for name, look in DIALS.items()})
    runs["at"] = runs["rank"].map(RANKS).fillna(len(RANKS)) + shift
    runs = runs[runs.groupby("study")["rank"].transform("count") > 0]
    parts = [
        runs[runs["arm"].isin(names) | (runs["algorithm"] == "fa")].assign(head=head) for head, names in HEADS.items()
    ]
    cut = [part for part in parts if ended(part[part["rank"].notna()])["arm"].nunique() > 1]  # is there a choice?
    return concat(cut or parts[:1])


def panel(axes, table, looks):
    """Accuracy over r on each dial, SGD's step at the size of Muon's, and FA; what a legend has."""
    table = table[table["outcome"] != "missing"]
    sgd, dials = select(table, algorithm="fa"), table[table["algorithm"] != "fa"]
    whole, cut = select(dials, update="frobenius"), dials[dials["update"] != "frobenius"]
    for arm, part in ended(sgd).groupby("arm"):
        axes.axhline(part["value"].mean(), color=looks["palette"][arm], linewidth=0.8)
    for dial, part in ended(whole).groupby("arm"):
        _, mean, low, high = reading(part["value"])
        axes.axhline(mean, color=DIALS[dial][0], linewidth=0.8, dashes=DIALS[dial][2] or (None, None))
        axes.axhspan(low, high, color=DIALS[dial][0], alpha=0.1, linewidth=0)
    for dial, part in cut.groupby("arm"):
        line = concat([part[part["rank"].notna()], select(cut, algorithm=DIALS[dial][5])])
        drawing.join(axes, line, color=DIALS[dial][0], dashes=DIALS[dial][2] or (None, None))
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


def _gains(table, r, names, tell=interval):
    """Of r directions in place of all on each dial, in points, where there are runs."""
    table = table.drop_duplicates(["algorithm", "seed"])
    gains = {name: drawing.paired(table, DIALS[name][4].format(r), DIALS[name][5])["value"] for name in names}
    return {dial: drawing.sure(gain, tell) for dial, gain in gains.items() if len(gain)}


def title(table):
    marks, most = dict(zip(DIALS, "●■▲◆▼✚", strict=True)), table["rank"].max()
    gains = _gains(table, f"{most:.0f}", [NAMES[0], *NAMES[3:]], drawing.shortly)
    said = ", ".join(f"{marks[dial]} {gain}" for dial, gain in gains.items())
    return f"{most:.0f} directions in place of all: {said} points"


def finding(table):
    parts = [f"{gain} points ({dial})" for dial, gain in _gains(table, 1, DIALS).items()]
    return f"with one direction in place of all accuracy changes by {', '.join(parts)}"


def caption(table):
    here = drawing.first(table, OVER)
    one_each = here.drop_duplicates(["algorithm", "seed"])
    at_size = drawing.sure(drawing.paired(one_each, "fa+polar", "fa+frobenius")["value"])
    what = (
        "Test accuracy of FA whose updates of hidden layers are Muon's in r directions: the largest singular ones, "
        "some spread evenly over the spectrum, or random ones of the outputs, drawn anew at each step or always the "
        "same. Enlarged, they have the Frobenius norm of the whole step. Flat are SGD's own step at that norm, and FA "
        "under SGD."
    )
    return what, (
        f"{here['panel'].iloc[0]}, paired by seed: {finding(here)}. At that norm all of Muon's directions are "
        f"{at_size} points above SGD's own step."
    )
