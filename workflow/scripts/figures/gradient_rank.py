"""Effective rank of the gradient trajectory of the whole net: of the first T minibatch gradients (upper row), and of
the latest ones in a window of fixed length (lower row), against T. All arms, a panel per study and data set.
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


def windows(table: pd.DataFrame) -> str:
    return " or ".join(map(str, sorted(table["rows"].unique())))


def draw(tables: common.Tables, grid: dict) -> Figure:
    both = [trajectory(tables["ranks"], scope) for scope in ("cumulative", "window")]
    found = common.panels(both[0], grid)
    if not found:
        return common.nothing("gradient trajectories")
    labels = ["effective rank,\nfirst T gradients", f"effective rank,\nlatest {windows(both[1])}"]
    made, stacks = common.blocks(found, labels)
    common.titles(made, [upper for upper, _ in stacks], found, tables, grid)
    for row, table in enumerate(both):
        drawn = [(stack[row], common.of(table, panel)) for panel, stack in zip(found, stacks, strict=True)]
        common.lines(drawn, "T", MEASURE, grid, bottom=0)
    for _, lower in stacks:
        lower.set_xlim(left=0)
        lower.set_xlabel("T, gradients kept")
    common.legend(made, common.arms_in(both[0], grid).values())
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    runs = tables["runs"]
    kept = trajectory(tables["ranks"], "cumulative")
    found = common.panels(common.finished(kept), grid)
    if not found:
        return f"Effective rank of the gradient trajectory: {common.standing(runs, grid)}."
    panel = found[0]
    ends = common.last(common.finished(common.of(kept, panel)), MEASURE)
    arms = common.references(common.of(runs, panel), grid)
    window = windows(trajectory(tables["ranks"], "window"))
    values = common.under({arm: ends.loc[ends["arm"] == arm, MEASURE] for arm in arms}, grid)
    return (
        f"Effective rank ({common.MEASURES[MEASURE]}) of the minibatch gradients of the whole net: of the first T "
        f"(top) and of the latest {window} (bottom). {common.panel_name(panel, grid)}, T = {ends['T'].max()}: "
        f"{values}; {common.standing(runs, grid)}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
