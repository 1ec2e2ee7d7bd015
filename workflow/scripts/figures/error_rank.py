"""1. Error-signal effective rank.

Over training, without Muon: a strip per study and data set, with a panel per layer (δ = ∂L/∂a of one probe batch) and,
last, the errors at the classifier's input, pooled over all probes so far.
"""

import drawing
from analysis import Tables, last, select
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame, concat

SHOWN = "not intervention and optimizer != 'muon'"
MEASURE = "entropy_s"  # Roy and Vetterli's own; with squares the pooled errors hardly differ between arms
LAYERS = 5  # panels of layers in a strip
POOLED = "classifier input"


def data(tables: Tables) -> DataFrame:
    errors = select(tables["ranks"], quantity="error", scope="batch")
    pooled = select(tables["ranks"], quantity="classifier_input_error", scope="pooled")
    return concat([errors.assign(head=errors["layer"].map(drawing.layer_name)), pooled.assign(head=POOLED)])


def heads(panel: DataFrame) -> list[str]:
    layers = drawing.layers(select(panel, quantity="error"))
    return [*map(drawing.layer_name, drawing.evenly(layers, LAYERS)), POOLED]


def draw(table: DataFrame, runs: DataFrame, looks: dict) -> Figure:
    table = drawing.strips(table, heads)
    grid = drawing.facets(table)
    drawing.lines(grid, table, "epoch", MEASURE, looks, limit=lambda axes: axes.set_ylim(bottom=0))
    drawing.epochs(grid)
    for axes, _ in drawing.cells(grid, select(table, head=POOLED)):
        axes.set_xlabel("epochs pooled")
    grid.set(ylabel=f"effective rank,\n{drawing.MEASURES[MEASURE]}")
    grid.axes[0, 0].yaxis.set_major_locator(MaxNLocator(4))
    return drawing.finish(grid, runs, looks, height=0.8)


def caption(table: DataFrame, runs: DataFrame, looks: dict) -> str:
    here = drawing.first(table)
    errors, pooled = select(here, quantity="error"), last(select(here, head=POOLED), MEASURE)
    lowest = last(select(errors, layer=drawing.layers(errors)[0]), MEASURE)
    return (
        f"Effective rank ({drawing.MEASURES[MEASURE]}) of the error signal of {errors['rows'].iloc[0]} probe images, "
        f"layer by layer, and of the errors at the classifier's input pooled over the probes so far. "
        f"{drawing.panel_name(here, looks)}, after training: {drawing.under(lowest, MEASURE, runs, looks)} in the "
        f"first layer, {drawing.under(pooled, MEASURE, runs, looks)} for the pooled errors"
    )


if __name__ == "__main__":
    drawing.main(__doc__, SHOWN, data, draw, caption)
