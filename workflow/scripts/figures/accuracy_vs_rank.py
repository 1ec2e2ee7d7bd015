"""7. Accuracy against effective rank.

Test accuracy against the effective rank of the gradient trajectory over all of training: all arms of all studies, a
point per run; a panel per study and data set, with Spearman's correlation.
"""

import drawing
import numpy as np
from analysis import KEYS, PANEL, Tables, finished, last, select
from matplotlib.figure import Figure
from pandas import DataFrame

SHOWN = "intervention or not intervention"
MEASURE = "entropy_s2"


def data(tables: Tables) -> DataFrame:
    """A row per run: its accuracy, its final rank, its outcome."""
    whole = select(tables["ranks"], quantity="gradient_trajectory", layer="all", scope="cumulative")
    return tables["runs"].merge(last(whole, MEASURE)[[*KEYS, MEASURE]], on=KEYS)


def correlation(table: DataFrame) -> tuple[float, int]:
    """Spearman's over the finished runs, and how many they are."""
    done = finished(table)
    return done[MEASURE].corr(done["test_accuracy"], method="spearman"), len(done)


def draw(table: DataFrame, runs: DataFrame, looks: dict) -> Figure:
    table = drawing.stacks(table)
    most = table[MEASURE].where(table["outcome"] == "finished").groupby([table[key] for key in PANEL]).transform("max")
    table[MEASURE] = table[MEASURE].clip(upper=most.fillna(np.inf))  # diverged runs stay where the others are
    grid = drawing.facets(table, share=["dataset"])
    drawing.points(grid, table, MEASURE, "test_accuracy", looks)
    drawing.chance(grid, table)
    for axes, part in drawing.cells(grid, table):
        rho, n = correlation(part)
        axes.set_title(f"ρ = {rho:.2f}, {n} runs" if n > 2 else "")
    grid.set(xlabel="effective rank", ylabel="test accuracy, %", xlim=(0, None), ylim=(0, None))
    return drawing.finish(grid, runs, looks, height=1.65, legend="points")


def caption(table: DataFrame, runs: DataFrame, looks: dict) -> str:
    rhos = [(*correlation(part), drawing.panel_name(part, looks)) for _, part in table.groupby(PANEL)]
    ends = [f"{rho:.2f} ({name}, n = {n})" for rho, n, name in sorted(rhos) if n > 2]
    words = f"from {ends[0]} to {ends[-1]}" if len(ends) > 1 else "".join(ends) or "too few runs"
    return (
        f"Test accuracy against the effective rank ({drawing.MEASURES[MEASURE]}) of all gradients kept from a run, "
        f"whole net; a point is a run; dotted: chance. Spearman's ρ over the finished runs of all arms: {words}"
    )


if __name__ == "__main__":
    drawing.main(__doc__, SHOWN, data, draw, caption, "")
