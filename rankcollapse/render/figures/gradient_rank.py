"""13. Gradient-trajectory effective rank."""

from rankcollapse.render import drawing
from rankcollapse.render.tables import KEYS, last, select

SHOWN = "shown and not (intervention or ladder or control)"
SPREAD = "bands"
HEADS = {"cumulative": "first T gradients", "window": "latest gradients"}
MEASURE = "entropy_s2"  # the one that gives the paper's picture


def data(tables):
    whole = select(tables["ranks"], quantity="gradient_trajectory", layer="all")
    kept = select(whole, scope="cumulative").set_index([*KEYS, "step"])["rows"]
    whole = whole.assign(head=whole["scope"].map(HEADS)).sort_values("scope", kind="stable")
    return whole.join(kept.rename("T"), on=[*KEYS, "step"])


def draw(table, looks):
    grid = drawing.facets(table, 1.7)
    drawing.share(grid, "dataset", "head")
    drawing.lines(grid, "T", MEASURE, looks, xlim=(0, None), ylim=(0, None))
    return grid.set_axis_labels("T, gradients", f"effective rank,\n{drawing.MEASURES[MEASURE]}")


def caption(table):
    ends = last(select(drawing.first(table), scope="cumulative"), MEASURE)
    windows = " or ".join(f"{rows}" for rows in sorted(select(table, scope="window")["rows"].unique()))
    what = (
        f"Effective rank ({drawing.MEASURES[MEASURE]}) of the minibatch gradients of the whole net: of the first T, "
        f"and of the latest {windows or '–'}."
    )
    return what, f"{ends['panel'].iloc[0]}, T = {ends['T'].max()}: {drawing.under(ends, MEASURE)}."
