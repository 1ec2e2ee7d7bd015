"""2. The paper's four accuracies beside ours."""

from pandas import concat

from rankcollapse.experiment.datasets import SETS
from rankcollapse.render import drawing
from rankcollapse.render.tables import ended, select
from rankcollapse.render.text import number

ADDS = {"Normalisation adds": ("fa+bn", "fa"), "Muon adds": ("fa+muon", "fa"), "Muon on top adds": ("fa+both", "fa+bn")}
SHOWN = "study == 'resnet18' and dataset == 'cifar100' and algorithm in ('fa', 'fa+bn', 'fa+muon', 'fa+both')"
SPREAD = "bars"
OVER = ended
HEADS = ["test accuracy, %", "difference, points"]


def data(tables):
    """The runs that the paper has a number for, by arm, and their differences, paired by seed."""
    runs, chance = tables["runs"], 100 * SETS["cifar100"].chance
    runs = runs[runs["paper_percent"].notna()]
    runs = runs.assign(value=runs["test_accuracy"], theirs=runs["paper_percent"], row=runs["arm"])
    fa = select(runs, algorithm="fa")
    less = [fa.assign(value=fa["value"] - chance, theirs=fa["theirs"] - chance, row="FA is above chance")]
    less += [drawing.paired(runs, *pair).assign(row=words) for words, pair in ADDS.items()]
    table = concat([part.assign(head=head) for head, part in zip(HEADS, (runs, concat(less)), strict=True)])
    return table.assign(shift=0, at=table.groupby("head")["row"].transform(lambda rows: rows.factorize()[0]))


def panel(axes, table, looks):
    """The first head alone, without a legend, since rows have names."""
    part = select(table, head=HEADS[0])
    drawing.rows(axes, part, looks, [*part["row"].unique()])
    axes.set_xlabel(HEADS[0])
    return []


def draw(table, looks):
    grid = drawing.facets(table, 1.6)
    for axes, part in drawing.cells(grid):
        drawing.rows(axes, part, looks, [*part["row"].unique()])
    drawing.chance(grid, "axvline", head=HEADS[0])
    drawing.explain(grid.figure, [], table)
    return grid.set_axis_labels("", "")


def finding(table):
    rows = select(ended(table), head=HEADS[1]).groupby("row", sort=False)
    less = [f"{row} {drawing.sure(part['value'])} ({number(part['theirs'].max())})" for row, part in rows]
    return f"In points, with the paper's in brackets: {', '.join(less)}"


def caption(table):
    what = (
        f"Test accuracy of {table['panel'].iloc[0]}, and differences paired by seed. The paper's, of full width, are "
        f"as an unverified note quotes them, the last also as in its abstract. Dotted is chance."
    )
    return what, f"{finding(table)}."
