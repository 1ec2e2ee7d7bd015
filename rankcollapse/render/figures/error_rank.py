"""12. Error-signal effective rank."""

from pandas import concat

from rankcollapse.experiment.datasets import SETS
from rankcollapse.render import drawing
from rankcollapse.render.tables import last, select

SHOWN = "shown and not (intervention or ladder or control)"
SPREAD = "bands"
MEASURE = "entropy_s"
POOLED = "classifier input"


def data(tables):
    """Of hidden layers, up to four; `ceiling`: the images, or under FA the errors of a softmax, whose sum is 0."""
    errors = drawing.by_layer(select(tables["ranks"], quantity="error", scope="batch").query("layer != 'head'"), most=4)
    pooled = select(tables["ranks"], quantity="classifier_input_error", scope="pooled")
    table = concat([errors.assign(head=errors["name"], ceiling=errors["rows"]), pooled.assign(head=POOLED)])
    return table.assign(ceiling=table["ceiling"].fillna(table["dataset"].map(lambda name: SETS[name].classes - 1)))


def draw(table, looks):
    grid = drawing.facets(table, 1.4)
    drawing.share(grid, "panel")
    for axes, part in drawing.cells(grid):  # before the lines, which settle the limits
        axes.axhline(part["ceiling"].max(), **drawing.DOTTED)
    drawing.lines(grid, "epoch", MEASURE, looks, xlim=(0, None), ylim=(0, None))
    return grid.set_axis_labels("epoch", f"effective rank,\n{drawing.MEASURES[MEASURE]}")


def caption(table):
    ends = last(drawing.first(table), MEASURE, ["quantity", "layer"])
    lowest, pooled = select(ends, place=0), select(ends, head=POOLED)
    what = (
        f"Effective rank ({drawing.MEASURES[MEASURE]}) of the error signal of {lowest['rows'].iloc[0]} probe images "
        f"in hidden layers, and of the errors at the classifier's input pooled over the probes so far. Dotted: the "
        f"most that it can be, the number of images, and at the classifier's input under FA the number of classes "
        f"less one. By s, as effective rank was defined, and not by s², which sees the few largest directions alone."
    )
    return what, (
        f"{lowest['panel'].iloc[0]}, after training: {drawing.under(lowest, MEASURE)} in the first layer, "
        f"{drawing.under(pooled, MEASURE)} for the pooled errors, by s² {drawing.under(pooled, 'entropy_s2')}."
    )
