"""15. Ranks under Muon and normalisation."""

import numpy as np
from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.tables import last, select
from rankcollapse.render.text import interval

SHOWN = "shown and rule == 'fa' and not (intervention or ladder)"
SPREAD = "bars"
MEASURE = "entropy_s2"
HEADS = {"errors, pooled": ("error", "pooled"), "activations": ("activation", "batch"), "updates": ("update", "step")}


def data(tables):
    """A row per run, matrix and layer of the first net: the log of its rank over that of plain FA with its seed."""
    parts = [select(tables["ranks"], quantity=q, scope=scope).assign(head=head) for head, (q, scope) in HEADS.items()]
    ends = drawing.first(drawing.by_layer(last(concat(parts), MEASURE, ["head", "layer"]), most=5))
    ends = ends.assign(value=np.log2(ends[MEASURE].where(ends[MEASURE] > 0)))
    layers, arms = [part for _, part in ends.groupby(["head", "place"], sort=False)], [*ends["algorithm"].unique()]
    if not {*arms} - {"fa"}:
        return ends[:0]
    table = concat(drawing.paired(part, arm, "fa") for part in layers for arm in arms if arm != "fa")
    beside = table["algorithm"].map(arms.index) / len(arms) - 0.5  # no arm hides another
    return table.assign(at=table["place"].rank(method="dense") + 0.6 * beside)


def draw(table, looks):
    grid = drawing.facets(table, 1.9)
    drawing.share(grid, "panel")
    for axes, part in drawing.cells(grid):
        drawing.dots(axes, part, looks)
        names = part.groupby(part["at"].round())["name"].first()
        axes.set_xticks(names.index, names.str.replace(" ", "\n"))
        axes.axhline(0, **drawing.DOTTED)
        drawing.doubling(axes.yaxis)
    drawing.legend(grid, looks, linewidth=0)
    return grid.set_axis_labels("", "rank over that under FA")


def caption(table):
    layer = table[table["place"].rank(method="dense", ascending=False) == 2]  # the one before the classifier
    ends = layer.groupby(["head", "arm"], sort=False)["value"]
    parts = [
        f"{head}, {arm} {drawing.sure(values, lambda *logs: interval(*np.exp2(logs)))}" for (head, arm), values in ends
    ]
    what = (
        f"Effective rank ({drawing.MEASURES[MEASURE]}) after training over that of plain FA with the same seed, of "
        f"errors pooled over training, activations of a probe batch, and the update of one step. Means are geometric."
    )
    return what, f"{layer['panel'].iloc[0]}, {layer['name'].iloc[0]}: {'; '.join(parts)}."
