"""Effective rank of the gradient trajectory of the whole net: of the first T minibatch gradients (upper row), and of the
latest ones in a window of fixed length (lower row), against T. All arms, a panel per study and data set.
"""

import common
import pandas as pd
from matplotlib.figure import Figure

MEASURE = "entropy_s2"  # the one that gives the paper's picture


def trajectory(ranks: pd.DataFrame, scope: str) -> pd.DataFrame:
    """The whole net's rows of one scope, with T: how many gradients had been kept by then."""
    whole = ranks[(ranks["quantity"] == "gradient_trajectory") & (ranks["layer"] == "all")]
    run = ["study", "dataset", "arm", "seed", "step"]
    so_far = whole[whole["scope"] == "cumulative"].set_index(run)["rows"].rename("T")
    return whole[whole["scope"] == scope].join(so_far, on=run)


def draw(tables: common.Tables, grid: dict) -> Figure:
    both = [trajectory(tables["ranks"], scope) for scope in ("cumulative", "window")]
    found = common.panels(both[0], grid)
    if not found:
        return common.nothing("gradient trajectories")
    made, stacks = common.blocks(found, rows=2, height=1.35)
    window = sorted(both[1]["rows"].unique())
    names = ["first T gradients", f"latest {' or '.join(map(str, window))}"]
    for panel, (upper, lower) in zip(found, stacks, strict=True):
        common.title(upper, panel, tables, grid)
        lower.set_xlabel("T, gradients kept")
        for axes, name in ((upper, names[0]), (lower, names[1])):
            if axes.yaxis.get_tick_params()["labelleft"]:
                axes.set_ylabel(f"effective rank,\n{name}")
    for row, table in enumerate(both):
        common.lines([(s[row], common.of(table, p)) for p, s in zip(found, stacks, strict=True)], "T", MEASURE, grid)
        stacks[0][row].set_ylim(bottom=0)
    common.legend(made, common.arms_in(both[0], grid).values())
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    runs = tables["runs"]
    kept = trajectory(tables["ranks"], "cumulative")
    found = common.panels(common.finished(kept), grid)
    if not found:
        return f"Effective rank of the gradient trajectory: {common.standing(runs)}."
    panel = found[0]
    ends = common.last(common.finished(common.of(kept, panel)), MEASURE)
    arms = common.references(common.of(runs, panel), grid)
    values = common.under({arm: ends.loc[ends["arm"] == arm, MEASURE] for arm in arms}, grid)
    windows = " or ".join(map(str, sorted(trajectory(tables["ranks"], "window")["rows"].unique())))
    return (
        f"Effective rank ({common.MEASURES[MEASURE]}) of the minibatch gradients of the whole net: of the first T (top) and of "
        f"the latest {windows} (bottom). {common.panel_name(panel, grid)}, T = {ends['T'].max()}: {values}. "
        f"{common.SPREAD}; {common.standing(runs)}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
