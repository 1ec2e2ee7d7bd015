"""Alignment over training, FA arms: the cosine of W and B, layer by layer, and the cosine of the FA gradient and the BP
gradient of the same batch, in the last hidden layer and in the whole net below the classifier. A strip per study and
data set.
"""

import common
import pandas as pd
from matplotlib.figure import Figure

LAYERS = 4  # panels of W and B in a strip
NAMES = {"weight": "cos(W, B)", "gradient": "cos(∇FA, ∇BP)"}


def chosen(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The (quantity, layer) of a strip's panels."""
    weights, gradients = (list(table.loc[table["quantity"] == q, "layer"].unique()) for q in NAMES)
    hidden = [layer for layer in gradients if layer != "all"][-1:]
    whole = [layer for layer in gradients if layer == "all"]
    of_weights = [("weight", layer) for layer in common.evenly(weights, LAYERS)]
    return of_weights + [("gradient", layer) for layer in hidden + whole]


def head(quantity: str, layer: str) -> str:
    return f"{NAMES[quantity]}\n{'whole net' if layer == 'all' else common.layer_name(layer)}"


def draw(tables: common.Tables, grid: dict) -> Figure:
    cosines = tables["alignment"]
    found = common.panels(cosines, grid)
    if not found:
        return common.nothing("feedback weights")
    pairs = [chosen(common.of(cosines, panel)) for panel in found]
    heads = [[head(*pair) for pair in strip] for strip in pairs]
    made, strips = common.strips(found, heads, "cosine", tables, grid, 1.35)
    drawn = []
    for panel, wanted, strip in zip(found, pairs, strips, strict=True):
        here = common.of(cosines, panel)
        for axes, (quantity, layer) in zip(strip, wanted, strict=True):
            drawn.append((axes, here[(here["quantity"] == quantity) & (here["layer"] == layer)]))
    common.lines(drawn, "epoch", "value", grid)
    for axes, _ in drawn:
        axes.axhline(0, color=common.GREY, linewidth=0.5, zorder=0)
        common.epochs(axes)
    common.legend(made, common.arms_in(cosines, grid).values())
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    cosines, runs = tables["alignment"], tables["runs"]
    runs = runs[runs["rule"] != "bp"]
    found = common.panels(common.finished(cosines), grid)
    if not found:
        return f"Alignment of feedback and forward weights: {common.standing(runs, grid)}."
    here = common.finished(common.of(cosines, found[0]))
    whole = here[(here["quantity"] == "gradient") & (here["layer"] == "all")]
    ends = common.last(whole, "value").groupby("arm")["value"]
    arms = common.arms_in(whole, grid)
    values = [f"{look['label']} {common.mean_std(ends.get_group(arm), 2)}" for arm, look in arms.items()]
    return (
        f"Cosine of forward and feedback weights (W, B) and of the FA and BP gradients of one batch, the classifier "
        f"left out. {common.panel_name(found[0], grid)}, gradients of the whole net after training: "
        f"{', '.join(values)}; {common.standing(runs, grid)}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
