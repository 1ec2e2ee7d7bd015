"""Test accuracy by arm, architecture and data set: a point per seed, mean and standard deviation; dotted: chance."""

import common
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


def rows(axes: Axes, runs, arms: dict, grid: dict) -> None:
    """A row per arm, from the top: seeds as points, mean and deviation as a bar, both in figures at the right."""
    for row, arm in enumerate(arms):
        mine, look = runs[runs["arm"] == arm], grid["arms"][arm]
        values = common.finished(mine)["test_accuracy"]
        axes.plot(
            values, np.full(len(values), row), color=look["colour"], marker=look["marker"], linestyle="", alpha=0.6
        )
        if len(values):
            axes.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=look["colour"], linewidth=1.5)
        if len(values) > 1:
            axes.plot(values.mean() + values.std() * np.array([-1, 1]), [row, row], color=look["colour"], linewidth=0.8)
        for value in mine.loc[mine["outcome"] == "diverged", "test_accuracy"]:
            axes.add_line(common.cross(value, row, look["colour"]))
        text = (
            common.mean_std(100 * values, 1) if len(values) else "not in this study" if mine.empty else "none finished"
        )
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=common.SMALL)


def draw(tables: common.Tables, grid: dict) -> Figure:
    runs = tables["runs"]
    found, arms = common.panels(runs, grid), common.arms_in(runs, grid)
    made, stacks = common.blocks(found, height=0.16 * len(arms) + 0.25)
    for panel, (axes,) in zip(found, stacks, strict=True):
        common.title(axes, panel, tables, grid)
        rows(axes, common.of(runs, panel), arms, grid)
        axes.set_yticks(range(len(arms)), [look["label"] for look in arms.values()])
        axes.set_xlabel("test accuracy")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        common.chance(axes, panel, across=False)
        axes.autoscale_view()
        axes.set_xlim(left=0)
    stacks[0][0].set_ylim(len(arms) - 0.5, -0.5)
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    runs = tables["runs"]
    found = common.panels(common.finished(runs), grid)
    parts = []
    for panel in found[:3]:
        here = common.finished(common.of(runs, panel))
        arms = common.references(here, grid)
        values = {arm: 100 * here.loc[here["arm"] == arm, "test_accuracy"] for arm in arms}
        parts.append(f"{common.under(values, grid, 1)} ({common.panel_name(panel, grid)})")
    return (
        f"Test accuracy, %: {'; '.join(parts)}. A point is a run; bars: mean ± 1 standard deviation over seeds; dotted: chance; "
        f"{common.standing(runs)}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
