"""14. Intervention on the rank of updates."""

import numpy as np

from rankcollapse.render import drawing
from rankcollapse.render.tables import ended, finished, select
from rankcollapse.render.text import number, over

SHOWN = "shown and intervention and not ladder"
SPREAD = "bars"
OVER = ended


def data(tables):
    """The runs, `log` that of the rank of their arm's updates, `at` the same, or beside an arm of like rank."""
    runs = drawing.measured(tables, {"": "test_accuracy"}).drop(columns="head")
    runs["log"] = np.log2(runs.groupby(["panel", "arm"])["update_rank"].transform("mean"))
    like = runs.groupby(["panel", (4 * runs["log"]).round()])["arm"].transform(lambda arms: arms.factorize()[0])
    return runs.assign(at=runs["log"] + 0.12 * like)


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
        axes.set_ylim(*np.clip(axes.get_ylim(), 0, 100))
    words = {arm: f" ({settings(part)})" for arm, part in ended(table).groupby("arm")}
    drawing.legend(grid, looks, words=words, linewidth=0)
    return grid.set_axis_labels(f"effective rank of an update, {drawing.MEASURES['entropy_s']}", "test accuracy, %")


def caption(table):
    arms = drawing.first(table, OVER).groupby("arm", sort=False)
    values = [
        f"{arm} {over(part['value'])} at rank {number(2 ** part['log'].iloc[0])} ({settings(part)})"
        for arm, part in arms
    ]
    what = (
        "Test accuracy over the effective rank of an update after training, geometric mean over hidden layers. Grey "
        "joins BP and cuts of it."
    )
    return what, f"{drawing.first(table, OVER)['panel'].iloc[0]}, in %: {'; '.join(values)}."
