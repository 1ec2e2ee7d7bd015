"""6. Test accuracy.

All arms: a point per run, mean and standard deviation; a panel per study and data set.
"""

from operator import itemgetter

import drawing
from analysis import PANEL, finished, select
from matplotlib.figure import Figure
from pandas import DataFrame

SHOWN = "not intervention"
data = itemgetter("runs")


def draw(table: DataFrame, runs: DataFrame, looks: dict) -> Figure:
    arms = [*runs["arm"].unique()]
    table = drawing.stacks(table).assign(place=table["arm"].map(arms.index))
    table["y"] = table["place"] + 0.5 * drawing.beside(table)
    grid = drawing.facets(table)
    drawing.means(grid, table, "test_accuracy", "place", looks, "y")
    drawing.points(grid, table, "test_accuracy", "y", looks)
    drawing.chance(grid, table, upright=True)
    for axes, part in drawing.cells(grid, table):
        for place, arm in enumerate(arms):
            mine = select(part, arm=arm)
            values = finished(mine)["test_accuracy"]
            text = drawing.mean_std(values, 1) if len(values) else " and ".join(mine["outcome"].unique()) or "–"
            look = {"color": "black" if len(values) else drawing.GREY, "va": "center", "fontsize": drawing.SMALL}
            axes.text(1.03, place, text, transform=axes.get_yaxis_transform(), **look)
        most = select(table, dataset=part["dataset"].iloc[0])["test_accuracy"].max()
        axes.set(xlabel="test accuracy, %", ylabel="", xlim=(0, 1.05 * most), ylim=(len(arms) - 0.5, -0.5))
        axes.set_yticks(range(len(arms)), [looks["label"][arm] for arm in arms])
    return drawing.finish(grid, runs, looks, height=0.16 * len(arms), legend="none")


def caption(table: DataFrame, runs: DataFrame, looks: dict) -> str:
    parts = [
        f"{drawing.panel_name(here, looks)}: {drawing.under(here, 'test_accuracy', runs, looks, 1)}"
        for _, here in finished(table).groupby(PANEL, sort=False)
    ]
    return f"Test accuracy, in %. {'; '.join(parts[:3])}. A point is a run; dotted: chance; –: not in the study"


if __name__ == "__main__":
    drawing.main(__doc__, SHOWN, data, draw, caption, drawing.BARS)
