"""Test accuracy by arm, architecture and data set: a point per run, mean and standard deviation; dotted: chance."""

import common
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def row(axes: Axes, y: int, mine: pd.DataFrame, look: dict) -> None:
    """The runs of one arm at height y: points, mean (tick) and deviation (bar), and both as numbers at the right."""
    values, colour = common.finished(mine)["test_accuracy"], look["colour"]
    if len(values):
        axes.plot([values.mean()] * 2, [y - 0.33, y + 0.33], color=colour, linewidth=1, alpha=0.6)
    if len(values) > 1:
        axes.plot(values.mean() + values.std() * np.array([-1, 1]), [y, y], color=colour, linewidth=1, alpha=0.6)
    heights = y + 0.22 * np.linspace(-1, 1, len(values)) if len(values) > 1 else [y] * len(values)
    axes.plot(values, heights, color=colour, marker=look["marker"], markersize=3, linestyle="")
    for value in mine.loc[mine["outcome"] == "diverged", "test_accuracy"]:
        axes.add_line(common.cross(value, y, colour))
    text = common.mean_std(values, 1) if len(values) else " and ".join(mine["outcome"].unique()) or "–"
    where = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": common.SMALL}
    axes.text(1.03, y, text, color="black" if len(values) else common.GREY, **where)


def draw(tables: common.Tables, grid: dict) -> Figure:
    runs = tables["runs"]
    found, arms = common.panels(runs.dropna(subset="test_accuracy"), grid), common.arms_in(runs, grid)
    made, stacks = common.blocks(found, [""], height=0.16 * len(arms) + 0.3)
    for panel, (axes,) in zip(found, stacks, strict=True):
        here = common.of(runs, panel)
        for y, (arm, look) in enumerate(arms.items()):
            row(axes, y, here[here["arm"] == arm], look)
        axes.set_yticks(range(len(arms)), [look["label"] for look in arms.values()])
        axes.set_xlabel("test accuracy, %")
        common.chance(axes, panel, across=False)
        axes.set_xlim(0, 1.05 * runs.loc[runs["dataset"] == panel[1], "test_accuracy"].max())
    common.titles(made, [axes for (axes,) in stacks], found, tables, grid)
    stacks[0][0].set_ylim(len(arms) - 0.5, -0.5)
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    runs = tables["runs"]
    parts = []
    for panel in common.panels(common.finished(runs), grid)[:3]:
        here = common.finished(common.of(runs, panel))
        values = {arm: here.loc[here["arm"] == arm, "test_accuracy"] for arm in common.references(here, grid)}
        parts.append(f"{common.panel_name(panel, grid)}: {common.under(values, grid, 1)}")
    return (
        f"Test accuracy, in %. {'; '.join(parts)}. A point is a run; dotted: chance; –: not in "
        f"the study; {common.standing(runs, grid, 'bars: mean ± 1 standard deviation over seeds')}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
