"""8. Training curves.

Training loss (upper row) and validation accuracy (lower row) over epochs. All arms; a panel per study and data set.
"""

import drawing
from analysis import Tables, last, select
from matplotlib.figure import Figure
from pandas import DataFrame

SHOWN = "not intervention"
CURVES = {"train_loss": "training loss, nats", "validation_accuracy": "validation\naccuracy, %"}


def data(tables: Tables) -> DataFrame:
    """A row per epoch and curve: `curve` is the column that `value` is from."""
    others = [column for column in tables["epochs"] if column not in CURVES]
    return tables["epochs"].melt(others, [*CURVES], "curve")


def draw(table: DataFrame, runs: DataFrame, looks: dict) -> Figure:
    table = drawing.stacks(table, table["curve"].map([*CURVES].index))
    grid = drawing.facets(table, share=["dataset", "curve"])
    losses, accuracies = (select(table, curve=curve) for curve in CURVES)
    drawing.lines(grid, losses, "epoch", "value", looks)
    drawing.lines(grid, accuracies, "epoch", "value", looks, limit=lambda axes: axes.set_ylim(bottom=0))
    drawing.chance(grid, accuracies)
    drawing.epochs(grid)
    for axes, part in drawing.cells(grid, table):
        axes.set_ylabel(CURVES[part["curve"].iloc[0]])
    for axes, _ in drawing.cells(grid, losses):
        axes.tick_params(labelbottom=False)
    return drawing.finish(grid, runs, looks, height=1.3)


def caption(table: DataFrame, runs: DataFrame, looks: dict) -> str:
    ends = last(select(drawing.first(table), curve="train_loss"), "value")
    return (
        f"Training loss (top) and validation accuracy (bottom; dotted: chance). {drawing.panel_name(ends, looks)}, "
        f"after {ends['epoch'].max()} epochs: training loss {drawing.under(ends, 'value', runs, looks, 2)}"
    )


if __name__ == "__main__":
    drawing.main(__doc__, SHOWN, data, draw, caption)
