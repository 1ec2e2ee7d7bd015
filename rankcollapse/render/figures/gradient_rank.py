"""2. Gradient-trajectory effective rank.

Of the whole net: of the first T minibatch gradients and of the latest ones in a window of fixed length, against T. All
arms but the ladder and the frozen nets; a panel per study and data set.
"""

from pandas import DataFrame
from seaborn import FacetGrid

from rankcollapse.render import drawing
from rankcollapse.render.tables import KEYS, Tables, last, select

SHOWN = "not (intervention or ladder or control)"
SPREAD = "bands"
HEADS = {"cumulative": "first T gradients", "window": "latest gradients"}
MEASURE = "entropy_s2"  # the one that gives the paper's picture


def data(tables: Tables) -> DataFrame:
    """Both scopes, with T: how many gradients had been kept by then."""
    whole = select(tables["ranks"], quantity="gradient_trajectory", layer="all")
    kept = select(whole, scope="cumulative").set_index([*KEYS, "step"])["rows"]
    whole = whole.assign(head=whole["scope"].map(HEADS)).sort_values("scope", kind="stable")
    return whole.join(kept.rename("T"), on=[*KEYS, "step"])


def draw(table: DataFrame, looks: dict) -> FacetGrid:
    grid = drawing.facets(table, 1.7, sharey="row")
    drawing.lines(grid, "T", MEASURE, looks, xlim=(0, None), ylim=(0, None))
    return grid.set_axis_labels("T, gradients", f"effective rank,\n{drawing.MEASURES[MEASURE]}")


def caption(table: DataFrame) -> str:
    ends = last(select(drawing.first(table), scope="cumulative"), MEASURE)
    windows = " or ".join(f"{rows}" for rows in sorted(select(table, scope="window")["rows"].unique()))
    return (
        f"Effective rank ({drawing.MEASURES[MEASURE]}) of the minibatch gradients of the whole net: of the first T, "
        f"and of the latest {windows or '–'}. {ends['panel'].iloc[0]}, T = {ends['T'].max()}: "
        f"{drawing.under(ends, MEASURE)}."
    )
