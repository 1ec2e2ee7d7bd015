"""2. Gradient-trajectory effective rank.

Of the whole net: of the first T minibatch gradients (upper row) and of the latest ones in a window of fixed length
(lower row), against T. All arms; a panel per study and data set.
"""

import drawing
from analysis import KEYS, Tables, last, select
from matplotlib.figure import Figure
from pandas import DataFrame

SHOWN = "not intervention"
MEASURE = "entropy_s2"  # the one that gives the paper's picture


def data(tables: Tables) -> DataFrame:
    """Both scopes, with T: how many gradients had been kept by then."""
    whole = select(tables["ranks"], quantity="gradient_trajectory", layer="all")
    kept = select(whole, scope="cumulative").set_index([*KEYS, "step"])["rows"]
    return whole.join(kept.rename("T"), on=[*KEYS, "step"])


def windows(table: DataFrame) -> str:
    return " or ".join(map(str, sorted(select(table, scope="window")["rows"].unique()))) or "–"


def draw(table: DataFrame, runs: DataFrame, looks: dict) -> Figure:
    table = drawing.stacks(table, (table["scope"] == "window").astype(int))
    grid = drawing.facets(table, share=["scope"])
    drawing.lines(grid, table, "T", MEASURE, looks, limit=lambda axes: axes.set_ylim(bottom=0))
    for axes, part in drawing.cells(grid, table):
        upper = part["scope"].iloc[0] == "cumulative"
        axes.set(xlim=(0, 1.03 * part["T"].max()), xlabel="T, gradients kept")
        axes.set_ylabel("effective rank,\n" + ("first T gradients" if upper else f"latest {windows(table)}"))
        axes.tick_params(labelbottom=not upper)
    return drawing.finish(grid, runs, looks, height=1.3)


def caption(table: DataFrame, runs: DataFrame, looks: dict) -> str:
    ends = last(select(drawing.first(table), scope="cumulative"), MEASURE)
    return (
        f"Effective rank ({drawing.MEASURES[MEASURE]}) of the minibatch gradients of the whole net: of the first T "
        f"(top) and of the latest {windows(table)} (bottom). {drawing.panel_name(ends, looks)}, T = {ends['T'].max()}: "
        f"{drawing.under(ends, MEASURE, runs, looks)}"
    )


if __name__ == "__main__":
    drawing.main(__doc__, SHOWN, data, draw, caption)
