"""1. Error-signal effective rank."""

from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.tables import last, select

SHOWN = "not (intervention or ladder or control) and optimizer != 'muon'"
SPREAD = "bands"
MEASURE = "entropy_s"  # Roy and Vetterli's own; with squares the pooled errors hardly differ between arms


def data(tables):
    errors = drawing.by_layer(select(tables["ranks"], quantity="error", scope="batch"), most=5)
    pooled = select(tables["ranks"], quantity="classifier_input_error", scope="pooled")
    return concat([errors.assign(head=errors["name"]), pooled.assign(head="classifier input")])


def draw(table, looks):
    grid = drawing.facets(table, 1.4)
    drawing.lines(grid, "epoch", MEASURE, looks, xlim=(0, None), ylim=(0, None))
    return grid.set_axis_labels("epoch", f"effective rank,\n{drawing.MEASURES[MEASURE]}")


def caption(table):
    ends = last(drawing.first(table), MEASURE, ["quantity", "layer"])
    lowest, pooled = select(ends, quantity="error", place=0), select(ends, quantity="classifier_input_error")
    return (
        f"Effective rank ({drawing.MEASURES[MEASURE]}) of the error signal of {lowest['rows'].iloc[0]} probe images, "
        f"layer by layer, and of the errors at the classifier's input pooled over the probes so far. "
        f"{lowest['panel'].iloc[0]}, after training: {drawing.under(lowest, MEASURE)} in the first layer, "
        f"{drawing.under(pooled, MEASURE)} for the pooled errors."
    )
