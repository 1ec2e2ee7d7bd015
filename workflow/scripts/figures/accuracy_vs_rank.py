"""Test accuracy against the effective rank of the gradient trajectory over all of training: a point per run, a panel
per study and data set, with Spearman's correlation.
"""

import common
import pandas as pd
from gradient_rank import MEASURE, trajectory
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def points(tables: common.Tables) -> pd.DataFrame:
    """A row per run: its accuracy, its final rank, its outcome."""
    ends = common.last(trajectory(tables["ranks"], "cumulative"), MEASURE)
    run = ["study", "dataset", "arm", "seed"]
    return tables["runs"].merge(ends[[*run, MEASURE]], on=run)


def correlation(runs: pd.DataFrame) -> tuple[float, int]:
    """Spearman's over the finished runs, and how many they are."""
    done = common.finished(runs)
    return done[MEASURE].corr(done["test_accuracy"], method="spearman"), len(done)


def scatter(axes: Axes, runs: pd.DataFrame, grid: dict) -> None:
    for arm, look in common.arms_in(runs, grid).items():
        mine = runs[runs["arm"] == arm]
        done, lost = common.finished(mine), mine[mine["outcome"] == "diverged"]
        style = {"color": look["colour"], "marker": look["marker"], "markersize": 4, "linestyle": ""}
        axes.plot(done[MEASURE], done["test_accuracy"], **style)
        for x, y in zip(lost[MEASURE], lost["test_accuracy"], strict=True):
            axes.add_line(common.cross(x, y, look["colour"]))
    axes.autoscale_view()
    rho, n = correlation(runs)
    axes.set_xlabel("effective rank" + (f"\nρ = {rho:.2f}, {n} runs" if n > 2 else ""))


def draw(tables: common.Tables, grid: dict) -> Figure:
    runs = points(tables)
    found = common.panels(runs, grid)
    if not found:
        return common.nothing("gradient trajectories")
    made, stacks = common.blocks(found, ["test accuracy, %"], height=1.7, share_y=lambda panel: panel[1])
    for panel, (axes,) in zip(found, stacks, strict=True):
        scatter(axes, common.of(runs, panel), grid)
        common.chance(axes, panel)
    for (axes,) in stacks:
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    common.titles(made, [axes for (axes,) in stacks], found, tables, grid)
    common.legend(made, common.arms_in(runs, grid).values(), joined=False)
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    runs = points(tables)
    rhos = {panel: correlation(common.of(runs, panel)) for panel in common.panels(runs, grid)}
    known = sorted((rho, common.panel_name(panel, grid)) for panel, (rho, n) in rhos.items() if n > 2)
    ends = [f"{rho:.2f} ({name})" for rho, name in known]
    range_ = f"from {ends[0]} to {ends[-1]}" if len(ends) > 1 else "".join(ends) or "too few runs"
    return (
        f"Test accuracy against the effective rank ({common.MEASURES[MEASURE]}) of all gradients kept from a run, "
        f"whole net; a point is a run; dotted: chance. Spearman's ρ over the finished runs of all arms: {range_}; "
        f"{common.standing(tables['runs'], grid, '')}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
