"""5. Alignment.

Over training: the cosine of W and B, layer by layer, and of a rule's gradient and the BP gradient of the same batch, in
the last hidden layer and in the whole net below the classifier. The rules that have such rows; a strip per study and
data set.
"""

import drawing
from analysis import Tables, last, select
from matplotlib.figure import Figure
from pandas import DataFrame

SHOWN = "not intervention and aligned"
LAYERS = 4  # panels of W and B in a strip
NAMES = {"weight": "cos(W, B)", "gradient": "cos(∇, ∇BP)"}


def head(quantity: str, layer: str) -> str:
    return f"{NAMES[quantity]}\n{'whole net' if layer == 'all' else drawing.layer_name(layer)}"


def data(tables: Tables) -> DataFrame:
    cosines = tables["alignment"]
    return cosines.assign(head=[head(*pair) for pair in zip(cosines["quantity"], cosines["layer"], strict=True)])


def heads(panel: DataFrame) -> list[str]:
    weights, gradients = (drawing.layers(select(panel, quantity=quantity)) for quantity in NAMES)
    of_weights = [head("weight", layer) for layer in drawing.evenly(weights, LAYERS)]
    return of_weights + [head("gradient", layer) for layer in [*gradients[-1:], "all"]]


def draw(table: DataFrame, runs: DataFrame, looks: dict) -> Figure:
    table = drawing.strips(table, heads)
    grid = drawing.facets(table)
    drawing.lines(grid, table, "epoch", "value", looks)
    grid.refline(y=0, color=drawing.GREY, linewidth=0.5, linestyle="-", zorder=0)
    drawing.epochs(grid)
    grid.set(ylabel="cosine")
    return drawing.finish(grid, runs, looks, height=0.75)


def caption(table: DataFrame, runs: DataFrame, looks: dict) -> str:
    here = drawing.first(table)
    ends = last(select(here, quantity="gradient", layer="all"), "value").groupby("arm", sort=False)["value"]
    values = [f"{looks['label'][arm]} {drawing.mean_std(mine, 2)}" for arm, mine in ends]
    return (
        f"Cosine of forward and feedback weights (W, B), and of an arm's gradient and the BP gradient of one batch (∇, "
        f"∇BP), the classifier left out. {drawing.panel_name(here, looks)}, gradients of the whole net after training: "
        f"{', '.join(values) or 'none'}"
    )


if __name__ == "__main__":
    drawing.main(__doc__, SHOWN, data, draw, caption)
