"""Effective rank of the error signal over training: a strip per study, with a panel per layer (δ = ∂L/∂a of one probe
batch) and, last, the errors at the classifier's input, pooled over all probes so far. Arms: BP and FA.
"""

import common
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

MEASURE = "entropy_s"  # Roy and Vetterli's own; with squares the pooled errors hardly differ between arms
LAYERS = 5  # panels of layers in a strip


def batch_errors(ranks: pd.DataFrame) -> pd.DataFrame:
    return ranks[(ranks["quantity"] == "error") & (ranks["scope"] == "batch")]


def pooled_input(ranks: pd.DataFrame) -> pd.DataFrame:
    return ranks[(ranks["quantity"] == "classifier_input_error") & (ranks["scope"] == "pooled")]


def draw(tables: common.Tables, grid: dict) -> Figure:
    errors, pooled = batch_errors(tables["ranks"]), pooled_input(tables["ranks"])
    found = common.panels(errors, grid)
    if not found:
        return common.nothing("error signals")
    layers = [common.evenly(list(common.of(errors, panel)["layer"].unique()), LAYERS) for panel in found]
    heads = [[*map(common.layer_name, names), "classifier input"] for names in layers]
    made, strips = common.strips(found, heads, f"effective rank,\n{common.MEASURES[MEASURE]}", tables, grid)
    drawn = []
    for panel, names, strip in zip(found, layers, strips, strict=True):
        here = common.of(errors, panel)
        parts = [here[here["layer"] == name] for name in names] + [common.of(pooled, panel)]
        drawn += zip(strip, parts, strict=True)
    common.lines(drawn, "epoch", MEASURE, grid, bottom=0)
    for strip in strips:
        for axes in strip:
            common.epochs(axes)
        strip[-1].set_xlabel("epochs pooled")
    strips[0][0].yaxis.set_major_locator(MaxNLocator(4))
    common.legend(made, common.arms_in(errors, grid).values())
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    runs, errors = tables["runs"], batch_errors(tables["ranks"])
    found = common.panels(common.finished(errors), grid)
    if not found:
        return f"Effective rank of the error signal: {common.standing(runs, grid)}."
    panel = found[0]
    arms = common.references(common.of(runs, panel), grid)
    first = errors[errors["layer"] == common.of(errors, panel)["layer"].iloc[0]]

    def at_end(table: pd.DataFrame) -> str:
        ends = common.last(common.finished(common.of(table, panel)), MEASURE)
        return common.under({arm: ends.loc[ends["arm"] == arm, MEASURE] for arm in arms}, grid)

    return (
        f"Effective rank ({common.MEASURES[MEASURE]}) of the error signal of {errors['rows'].iloc[0]} probe images, "
        f"layer by layer, and of the errors at the classifier's input pooled over the probes so far. "
        f"{common.panel_name(panel, grid)}, after training: {at_end(first)} in the first layer, "
        f"{at_end(pooled_input(tables['ranks']))} for the pooled errors; "
        f"{common.standing(runs, grid)}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
