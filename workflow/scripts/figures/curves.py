"""Training curves: training loss (upper row) and validation accuracy (lower row) over epochs. All arms, a panel per study
and data set.
"""

import common
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


def draw(tables: common.Tables, grid: dict) -> Figure:
    epochs = tables["epochs"]
    found = common.panels(epochs, grid)
    if not found:
        return common.nothing("training curves")
    made, stacks = common.blocks(found, rows=2, height=1.35, share_y=lambda panel: panel[1])
    for row, (column, name) in enumerate(
        [("train_loss", "training loss, nats"), ("validation_accuracy", "validation accuracy")]
    ):
        common.lines(
            [(s[row], common.of(epochs, p)) for p, s in zip(found, stacks, strict=True)], "epoch", column, grid
        )
        for stack in stacks:
            if stack[row].yaxis.get_tick_params()["labelleft"]:
                stack[row].set_ylabel(name)
            stack[row].set_ylim(bottom=0)
    for panel, (upper, lower) in zip(found, stacks, strict=True):
        common.title(upper, panel, tables, grid)
        lower.set_xlabel("epoch")
        lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        common.chance(lower, panel)
    common.legend(made, common.arms_in(epochs, grid).values())
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    runs, epochs = tables["runs"], tables["epochs"]
    found = common.panels(common.finished(epochs), grid)
    if not found:
        return f"Training curves: {common.standing(runs)}."
    here = common.finished(common.of(epochs, found[0]))
    ends = common.last(here, "train_loss")
    arms = common.references(common.of(runs, found[0]), grid)
    values = common.under({arm: ends.loc[ends["arm"] == arm, "train_loss"] for arm in arms}, grid)
    return (
        f"Training loss (top) and validation accuracy (bottom; dotted: chance). {common.panel_name(found[0], grid)}, after "
        f"{here['epoch'].max()} epochs: training loss {values}. {common.SPREAD}; {common.standing(runs)}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
