"""4. Ranks under Muon and normalisation."""

from matplotlib.scale import SymmetricalLogScale
from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.tables import last, select

SHOWN = "not (intervention or ladder or control) and (rule != 'bp' or optimizer == 'sgd')"
SPREAD = "bands"
MEASURE = "entropy_s2"
HEADS = {"errors, pooled": ("error", "pooled"), "activations": ("activation", "batch"), "updates": ("update", "step")}


def data(tables):
    parts = [select(tables["ranks"], quantity=q, scope=scope).assign(head=head) for head, (q, scope) in HEADS.items()]
    return drawing.by_layer(last(concat(parts), MEASURE, ["head", "layer"]))


def draw(table, looks):
    grid = drawing.facets(table, 1.6)
    scale = SymmetricalLogScale(None, linthresh=1, linscale=0.3)  # down to 0, the rank of a matrix of zeros
    drawing.lines(grid, "place", MEASURE, looks, yscale=scale, ylim=(0, None))
    for axes, part in drawing.cells(grid):
        names = part.groupby("place")["name"].first()
        some = names.iloc[[0, len(names) // 2, -1]]
        axes.set_xticks(some.index, some)
        axes.yaxis.set_major_formatter("{x:g}")
    grid.set(xmargin=0.1)
    return grid.set_axis_labels("layer", f"effective rank,\n{drawing.MEASURES[MEASURE]}")


def caption(table):
    here = drawing.first(table)
    layer = select(here, place=max(here["place"].max() - 1, 0))
    parts = [f"{head} {drawing.under(part, MEASURE)}" for head, part in layer.groupby("head", sort=False)]
    return (
        f"Effective rank ({drawing.MEASURES[MEASURE]}, logarithmic axis) at the end of training, of errors pooled over "
        f"training, of activations of one probe batch, and of the update of one step. {layer['panel'].iloc[0]}, "
        f"{layer['name'].iloc[0]}: {'; '.join(parts)}."
    )
