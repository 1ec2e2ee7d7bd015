"""What rank costs: test accuracy of BP with its updates cut to the top r singular directions, and of FA plain and with
its updates made full rank. A point per run, a bar at the mean; below each arm its learning rate.
"""

import common
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

UPDATES = ("top_r", "full", "full_rank")
GAP = 0.8  # between BP and FA, in arms


def order(runs: pd.DataFrame, grid: dict) -> pd.DataFrame:
    """A row per arm: rule by rule as in the grid; in each the cut updates by rank, the plain, those made full rank."""
    arms = runs.drop_duplicates("arm").copy()
    arms["place"] = [list(grid["arms"]).index(arm) for arm in arms["arm"]]
    arms["group"] = arms.groupby("rule")["place"].transform("min")
    arms["kind"] = [UPDATES.index(update) for update in arms["update"]]
    return arms.sort_values(["group", "kind", "rank", "norm", "place"]).reset_index(drop=True)


def update_name(arm: pd.Series) -> str:
    if arm["update"] == "top_r":
        return f"top {arm['rank']:.0f}"
    return "unchanged" if arm["update"] == "full" else f"full rank ({arm['norm']})".replace("(frob", "(Frob")


def column(axes: Axes, x: float, mine: pd.DataFrame, look: dict) -> None:
    """The runs of one arm at x: points, the mean as a bar with its number."""
    values = common.finished(mine)["test_accuracy"]
    spread = x + 0.09 * (np.arange(len(values)) - (len(values) - 1) / 2)
    axes.plot(spread, values, color=look["colour"], marker=look["marker"], markersize=4, linestyle="")
    for value in mine.loc[mine["outcome"] == "diverged", "test_accuracy"]:
        axes.add_line(common.cross(x, value, look["colour"]))
    above = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    if len(values):
        axes.plot([x - 0.3, x + 0.3], [values.mean()] * 2, color=look["colour"], linewidth=1)
        axes.annotate(common.mean_std(values, 1), (x, values.max()), **above)
    else:
        axes.annotate(" and ".join(mine["outcome"].unique()), (x, 0), color=common.WARNING, **above)


def panel_of(axes: Axes, runs: pd.DataFrame, grid: dict) -> None:
    arms = order(runs, grid)
    xs = arms.index + GAP * (arms["group"] != arms["group"].iloc[0])
    for x, arm in zip(xs, arms["arm"], strict=True):
        column(axes, x, runs[runs["arm"] == arm], grid["arms"][arm])
    names = [update_name(arm).replace(" (", "\n(") + f"\nlr {arm['lr']:g}" for _, arm in arms.iterrows()]
    axes.set_xticks(xs, names)
    axes.tick_params(axis="x", length=0)
    for _, place in xs.groupby(arms["group"]):
        rule = grid["arms"][arms.loc[place.index[arms.loc[place.index, "update"].eq("full").argmax()], "arm"]]["label"]
        below = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "ha": "center", "va": "top"}
        axes.annotate(f"updates of {rule}", (place.mean(), 0), xytext=(0, -34), fontweight="bold", **below)


def draw(tables: common.Tables, grid: dict) -> Figure:
    runs = tables["runs"]
    found = common.panels(runs.dropna(subset="test_accuracy"), grid)
    made, stacks = common.blocks(found, ["test accuracy, %"], height=2.2, most=1, share_y=lambda panel: panel[1])
    for panel, (axes,) in zip(found, stacks, strict=True):
        panel_of(axes, common.of(runs, panel), grid)
        common.chance(axes, panel)
        axes.set_ylim(0, 1.15 * runs.loc[runs["dataset"] == panel[1], "test_accuracy"].max())
    common.titles(made, [axes for (axes,) in stacks], found, tables, grid)
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    runs = tables["runs"]
    found = common.panels(common.finished(runs), grid)
    if not found:
        return f"Interventions on the rank of updates: {common.standing(runs, grid)}."
    here = common.of(runs, found[0])
    values = common.finished(here).groupby("arm")["test_accuracy"].agg(lambda v: common.mean_std(v, 1))
    parts = []
    for _, group in order(here, grid).groupby("group"):
        named = [f"{update_name(arm)} {values.get(arm['arm'], 'none')}" for _, arm in group.iterrows()]
        parts.append(f"{group['rule'].iloc[0].upper()}: {', '.join(named)}")
    return (
        f"Test accuracy against the rank of the updates, {common.panel_name(found[0], grid)}, %. "
        f"{'; '.join(parts)}. A point is a run; bars: means; dotted: chance; "
        f"{common.standing(runs, grid, '±: 1 standard deviation over seeds')}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
