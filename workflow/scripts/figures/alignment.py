"""5. Alignment.

Over training: the cosine of W and B, layer by layer, and of a rule's gradient and the BP gradient of the same batch, in
the last hidden layer and in the whole net below the classifier. The rules that have such rows; a strip per study and
data set.
"""

import drawing
from analysis import Tables, last, select
from pandas import DataFrame, concat
from seaborn import FacetGrid

SHOWN = "not intervention and aligned"
LAYERS = 4  # panels of W and B in a strip
NAMES = {"weight": "cos(W, B)", "gradient": "cos(∇, ∇BP)"}


def data(tables: Tables) -> DataFrame:
    weights, gradients = (select(tables["alignment"], quantity=quantity) for quantity in NAMES)
    whole = select(gradients, layer="all").assign(name="whole net")
    table = concat([drawing.by_layer(weights, LAYERS), drawing.by_layer(gradients, 1), whole])
    return table.assign(head=table["quantity"].map(NAMES) + "\n" + table["name"])


def draw(table: DataFrame, looks: dict) -> FacetGrid:
    grid = drawing.facets(table, 1.45)
    drawing.lines(grid, "epoch", "value", looks, xlim=(0, None))
    grid.refline(y=0, color=drawing.GREY, linewidth=0.5, linestyle="-", zorder=0)
    return grid.set_axis_labels("epoch", "cosine")


def caption(table: DataFrame) -> str:
    ends = last(select(drawing.first(table), quantity="gradient", layer="all"), "value")
    values = [f"{arm} {drawing.mean_std(mine, 2)}" for arm, mine in ends.groupby("arm", sort=False)["value"]]
    return (
        f"Cosine of forward and feedback weights (W, B), and of an arm's gradient and the BP gradient of one batch (∇, "
        f"∇BP), the classifier left out. {drawing.first(table)['panel'].iloc[0]}, gradients of the whole net after "
        f"training: {', '.join(values) or 'none'}."
    )


if __name__ == "__main__":
    drawing.main(__doc__, SHOWN, data, draw, caption)
