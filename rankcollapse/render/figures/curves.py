"""17. Training curves."""

from rankcollapse.render import drawing
from rankcollapse.render.tables import last, select

SHOWN = "shown and not (intervention or ladder or control)"
SPREAD = "bands"
HEADS = {"train_loss": "training loss", "validation_accuracy": "accuracy, %"}


def data(tables):
    epochs = tables["epochs"].rename(columns=HEADS)
    return epochs.melt(epochs.columns.difference([*HEADS.values()]), [*HEADS.values()], "head")


def draw(table, looks):
    grid = drawing.facets(table, 1.7)
    drawing.share(grid, "dataset", "head")
    drawing.lines(grid, "epoch", "value", looks, xlim=(0, None), ylim=(0, None))
    drawing.chance(grid, head=HEADS["validation_accuracy"])
    return grid.set_axis_labels("epoch", "")


def caption(table):
    ends = last(select(drawing.first(table), head=HEADS["train_loss"]), "value")
    after = f"{ends['panel'].iloc[0]}, after {ends['epoch'].max()} epochs"
    what = "Training loss, in nats, and validation accuracy (dotted: chance)."
    return what, f"{after}: training loss {drawing.under(ends, 'value')}."
