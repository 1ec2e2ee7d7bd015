"""11. Intervention on the rank of updates."""

import numpy as np

from rankcollapse.render import drawing
from rankcollapse.render.tables import ended, finished, select
from rankcollapse.render.text import number, over

SHOWN = "shown and intervention and not ladder"
SPREAD = "bars"
OVER = ended


def data(tables):
    """The runs, `at` the log of the rank of their arm's updates."""
    runs = drawing.measured(tables, {"": "test_accuracy"}).drop(columns="head")
    return runs.assign(at=np.log2(runs.groupby(["panel", "arm"])["update_rank"].transform("mean")))


def settings(part):
    """The learning rate of an arm, and the size of its steps where it was measured."""
    size = finished(part)["relative_update"].mean()
    return f"lr {part['lr'].iloc[0]:g}" + f", ‖ΔW‖/‖W‖ {number(size)}" * int(size > 0)


def draw(table, looks):
    grid = drawing.facets(table, 2.4)
    for axes, part in drawing.cells(grid):
        drawing.join(axes, select(part, rule="bp"))
        drawing.dots(axes, part, looks)
        drawing.doubling(axes.xaxis)
    words = {arm: f" ({settings(part)})" for arm, part in ended(table).groupby("arm")}
    drawing.legend(grid, looks, words=words, linewidth=0)
    return grid.set_axis_labels(f"effective rank of an update, {drawing.MEASURES['entropy_s']}", "test accuracy, %")


def caption(table):
    arms = drawing.first(table, OVER).groupby("arm", sort=False)
    values = [
        f"{arm} {over(part['value'])} at rank {number(2 ** part['at'].iloc[0])} ({settings(part)})"
        for arm, part in arms
    ]
    return (
        f"Test accuracy over the effective rank of an update at the end of training, geometric mean over hidden "
        f"layers, logarithmic axis; grey joins BP and what is cut from it; a cross is a run that diverged. "
        f"{drawing.first(table, OVER)['panel'].iloc[0]}, %: {'; '.join(values)}."
    )
