"""4. Ranks under Muon and normalisation.

Layer by layer at the end of training: of errors pooled over training, of activations of one probe batch, and of the
update of one step. All rules but BP, and BP under SGD for reference; a strip per study and data set.
"""

import drawing
from analysis import PANEL, Tables, last
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from pandas import DataFrame

SHOWN = "not intervention and (rule != 'bp' or optimizer == 'sgd')"
MEASURE = "entropy_s2"
HEADS = {("error", "pooled"): "errors, pooled", ("activation", "batch"): "activations", ("update", "step"): "updates"}
TICKS = 5  # layers named on an axis


def data(tables: Tables) -> DataFrame:
    """The last rank of every run, quantity and layer."""
    ranks = tables["ranks"]
    heads = [HEADS.get(pair) for pair in zip(ranks["quantity"], ranks["scope"], strict=True)]
    return last(ranks.assign(head=heads).dropna(subset="head"), MEASURE, ["head", "layer"])


def rank_scale(axes: Axes, zero: bool) -> None:
    """A logarithmic y axis with plain numbers; it goes down to 0, the rank of a matrix of zeros, where there is one."""
    axes.set_yscale(**{"value": "symlog", "linthresh": 1, "linscale": 0.5} if zero else {"value": "log"})
    axes.set_ylim(bottom=0 if zero else None)
    axes.yaxis.set_major_locator(FixedLocator([0, 1, 3, 10, 30, 100, 300, 1000]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def name_layers(axes: Axes, layers: list[str]) -> None:
    """Some of them: conv 1, 2, 3, 4, classifier."""
    ticks = drawing.evenly([*range(len(layers))], TICKS)
    names = [drawing.layer_name(layers[place].split(".")[0]) for place in ticks]
    kinds = ["", *(name.split(" ")[0] for name in names)]
    axes.set_xticks(ticks, [name.removeprefix(f"{kind} ") for kind, name in zip(kinds, names, strict=False)])


def draw(table: DataFrame, runs: DataFrame, looks: dict) -> Figure:
    layers = {panel: drawing.layers(part) for panel, part in table.groupby(PANEL)}
    table = table.assign(place=[layers[s, d].index(layer) for s, d, layer in table[[*PANEL, "layer"]].to_numpy()])
    table = drawing.strips(table, lambda panel: [*HEADS.values()])
    grid = drawing.facets(table)
    zero = (table[MEASURE] == 0).any()
    drawing.lines(grid, table, "place", MEASURE, looks, limit=lambda axes: rank_scale(axes, zero))
    for axes, part in drawing.cells(grid, table):
        name_layers(axes, layers[tuple(part[PANEL].iloc[0])])
    grid.set(xlabel="layer", xmargin=0.1, ylabel=f"effective rank,\n{drawing.MEASURES[MEASURE]}")
    return drawing.finish(grid, runs, looks, height=0.95)


def caption(table: DataFrame, runs: DataFrame, looks: dict) -> str:
    here = drawing.first(table)
    layer = drawing.layers(here)[-2:][0]
    means = here[here["layer"] == layer].pivot_table(MEASURE, "arm", "head", sort=False)
    numbers = means.map("{:.3g}".format, na_action="ignore").fillna("–")
    parts = [f"{head} {' / '.join(numbers[head])}" for head in HEADS.values() if head in means]
    return (
        f"Effective rank ({drawing.MEASURES[MEASURE]}, logarithmic axis) at the end of training. Means in "
        f"{drawing.layer_name(layer)} of the {drawing.panel_name(here, looks)}, for "
        f"{' / '.join(looks['label'][arm] for arm in means.index)}: {'; '.join(parts)}"
    )


if __name__ == "__main__":
    drawing.main(__doc__, SHOWN, data, draw, caption)
