"""3. Intervention on the rank of updates.

What rank costs: test accuracy with updates cut to their top r singular directions, unchanged, and made full rank. A
strip per study and data set with a panel per rule; below each arm its learning rate.
"""

import drawing
import numpy as np
from analysis import PANEL, Tables, finished, select
from matplotlib.figure import Figure
from pandas import DataFrame, Series

SHOWN = "intervention"
UPDATES = ["top_r", "full", "full_rank"]


def data(tables: Tables) -> DataFrame:
    """A row per run, with `place`: of its arm among those of its rule, by kind of update and by rank."""
    runs = tables["runs"].assign(head="updates of " + tables["runs"]["rule"].str.upper())
    kind = [runs["update"].map(UPDATES.index), runs["rank"], runs["norm"], runs["arm"]]
    order = runs.groupby(kind, dropna=False).ngroup()
    return runs.assign(place=order.groupby([runs[key] for key in [*PANEL, "head"]]).rank("dense") - 1)


def update_name(arm: Series) -> str:
    if arm["update"] == "top_r":
        return f"top {arm['rank']:.0f}"
    return "unchanged" if arm["update"] == "full" else f"full rank ({arm['norm']})".replace("(frob", "(Frob")


def draw(table: DataFrame, runs: DataFrame, looks: dict) -> Figure:
    table = drawing.strips(table, lambda panel: [*panel["head"].unique()])
    table = table.assign(x=table["place"] + 0.3 * drawing.beside(table))
    wide = table.groupby("across")["place"].max() + 1
    grid = drawing.facets(table, share=["dataset"], gridspec_kws={"width_ratios": wide})
    drawing.means(grid, table, "place", "test_accuracy", looks, "x")
    drawing.points(grid, table, "x", "test_accuracy", looks)
    drawing.chance(grid, table)
    for axes, part in drawing.cells(grid, table):
        top = select(table, dataset=part["dataset"].iloc[0])["test_accuracy"].max()
        axes.set(xlim=(-0.5, wide[part["across"].iloc[0]] - 0.5), ylim=(0, 1.2 * top))
        arms = part.drop_duplicates("place").sort_values("place")
        names = [update_name(arm).replace(" (", "\n(") + f"\nlr {arm['lr']:g}" for _, arm in arms.iterrows()]
        axes.set_xticks(arms["place"], names)
        for place, mine in part.groupby("place"):
            values = finished(mine)["test_accuracy"]
            text = drawing.mean_std(values, 1) if len(values) else " and ".join(mine["outcome"].unique())
            high = np.nanmax([0, values.max(), values.mean() + values.std()])
            colour = "black" if len(values) else drawing.WARNING
            axes.annotate(text, (place, high), xytext=(0, 5), textcoords="offset points", ha="center", color=colour)
    grid.set(xlabel="", ylabel="test accuracy, %")
    return drawing.finish(grid, runs, looks, height=1.6, legend="none")


def caption(table: DataFrame, runs: DataFrame, looks: dict) -> str:
    here = select(table, **drawing.first(table)[PANEL].iloc[0])
    parts = []
    for head, group in here.groupby("head", sort=False):
        arms = [(update_name(arm.iloc[0]), finished(arm)["test_accuracy"]) for _, arm in group.groupby("place")]
        parts.append(f"{head}: {', '.join(f'{name} {drawing.mean_std(values, 1)}' for name, values in arms)}")
    return (
        f"Test accuracy against the rank of the updates, {drawing.panel_name(here, looks)}, %; {'; '.join(parts)}. "
        f"A point is a run; dotted: chance"
    )


if __name__ == "__main__":
    drawing.main(__doc__, SHOWN, data, draw, caption, drawing.BARS)
