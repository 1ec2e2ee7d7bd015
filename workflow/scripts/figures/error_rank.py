"""Effective rank of the error signal over training: a strip per study, with a panel per layer (δ = ∂L/∂a of one probe
batch) and, last, the errors at the classifier's input, pooled over all probes so far. Arms: BP and FA.
"""

import common
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

MEASURE = "entropy_s"  # Roy and Vetterli's own; with squares the pooled errors hardly differ between arms
LAYERS = 5  # panels of layers in a strip: the first, the last, and others evenly between


def batch_errors(ranks: pd.DataFrame) -> pd.DataFrame:
    return ranks[(ranks["quantity"] == "error") & (ranks["scope"] == "batch")]


def pooled_input(ranks: pd.DataFrame) -> pd.DataFrame:
    return ranks[(ranks["quantity"] == "classifier_input_error") & (ranks["scope"] == "pooled")]


def chosen(layers: list[str]) -> list[str]:
    picks = np.linspace(0, len(layers) - 1, min(LAYERS, len(layers))).round().astype(int)
    return [layers[i] for i in picks]


def draw(tables: common.Tables, grid: dict) -> Figure:
    errors, pooled = batch_errors(tables["ranks"]), pooled_input(tables["ranks"])
    found = common.panels(errors, grid)
    if not found:
        return common.nothing("error signals")
    layers = [chosen(list(common.of(errors, panel)["layer"].unique())) for panel in found]
    made, strips = common.strips(found, [len(names) + 1 for names in layers], tables, grid)
    drawn = []
    for panel, names, strip in zip(found, layers, strips, strict=True):
        here = common.of(errors, panel)
        parts = [here[here["layer"] == name] for name in names] + [common.of(pooled, panel)]
        titles = [common.layer_name(name) for name in names] + ["classifier input,\npooled"]
        for axes, part, title in zip(strip, parts, titles, strict=True):
            axes.set_title(title, loc="center", fontsize=7.5)
            axes.set_xlabel("epoch")
            drawn.append((axes, part))
            axes.sharey(strips[0][0]) if axes is not strips[0][0] else None
            axes.tick_params(labelleft=axes is strip[0])
        strip[0].set_ylabel(f"effective rank,\n{common.MEASURES[MEASURE]}")
    common.lines(drawn, "epoch", MEASURE, grid)
    strips[0][0].set_ylim(bottom=0)
    common.legend(made, common.arms_in(errors, grid).values())
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    runs, ranks = tables["runs"], tables["ranks"]
    errors = batch_errors(ranks)
    found = common.panels(common.finished(errors), grid)
    if not found:
        return f"Effective rank of the error signal: {common.standing(runs)}."
    panel = found[0]
    arms = common.references(common.of(runs, panel), grid)
    first = errors[errors["layer"] == common.of(errors, panel)["layer"].iloc[0]]

    def at_end(table):
        ends = common.last(common.finished(common.of(table, panel)), MEASURE)
        return common.under({arm: ends.loc[ends["arm"] == arm, MEASURE] for arm in arms}, grid)

    return (
        f"Effective rank ({common.MEASURES[MEASURE]}) of the error signal of {errors['rows'].iloc[0]} probe images, layer by "
        f"layer, and of the errors at the classifier's input pooled over the probes so far. {common.panel_name(panel, grid)}, "
        f"after training: {at_end(first)} in the first layer, {at_end(pooled_input(ranks))} for the pooled errors. "
        f"{common.SPREAD}; {common.standing(runs)}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
