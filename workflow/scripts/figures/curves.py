"""Training curves: training loss (upper row) and validation accuracy (lower row) over epochs. All arms, a panel per
study and data set.
"""

import common
from matplotlib.figure import Figure

ROWS = [  # column, label, bottom of the axis
    ("train_loss", "training loss, nats", None),
    ("validation_accuracy", "validation\naccuracy, %", 0),
]


def draw(tables: common.Tables, grid: dict) -> Figure:
    epochs = tables["epochs"]
    found = common.panels(epochs, grid)
    if not found:
        return common.nothing("training curves")
    made, stacks = common.blocks(found, [label for _, label, _ in ROWS], share_y=lambda panel: panel[1])
    for row, (column, _, bottom) in enumerate(ROWS):
        drawn = [(stack[row], common.of(epochs, panel)) for panel, stack in zip(found, stacks, strict=True)]
        common.lines(drawn, "epoch", column, grid, bottom)
    common.titles(made, [upper for upper, _ in stacks], found, tables, grid)
    for panel, (_, lower) in zip(found, stacks, strict=True):
        common.epochs(lower)
        common.chance(lower, panel)
    common.legend(made, common.arms_in(epochs, grid).values())
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    runs, epochs = tables["runs"], tables["epochs"]
    found = common.panels(common.finished(epochs), grid)
    if not found:
        return f"Training curves: {common.standing(runs, grid)}."
    here = common.finished(common.of(epochs, found[0]))
    ends = common.last(here, "train_loss")
    arms = common.references(common.of(runs, found[0]), grid)
    values = common.under({arm: ends.loc[ends["arm"] == arm, "train_loss"] for arm in arms}, grid, 2)
    return (
        f"Training loss (top) and validation accuracy (bottom; dotted: chance). {common.panel_name(found[0], grid)}, "
        f"after {here['epoch'].max()} epochs: training loss {values}; {common.standing(runs, grid)}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
