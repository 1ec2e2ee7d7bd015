"""11. Where depth breaks FA."""

from rankcollapse.experiment.datasets import SETS
from rankcollapse.render import drawing
from rankcollapse.render.tables import ended, select
from rankcollapse.render.text import over

SHOWN = (
    "schedule == 'cosine' and not intervention and algorithm in ('fa', 'fa+bn', 'fa+muon', 'fa+both', 'bp', 'frozen')"
)
SPREAD = "bars"
OVER = ended
USUAL = {"mlp": 3, "cnn": 4}  # the depth of a net for which none is set
HEADS = {"test accuracy, %": "test_accuracy", "effective rank of the gradients": "whole_gradient_rank"}


def data(tables):
    """The runs of architectures of several depths, for each of HEADS."""
    runs = drawing.measured(tables, HEADS)
    runs["panel"] = runs["architecture"].map(drawing.NETS) + ", " + runs["dataset"].map(lambda name: SETS[name].label)
    runs["at"] = runs["depth"].astype(float).fillna(runs["architecture"].map(USUAL))
    return runs[runs.groupby("panel")["at"].transform("nunique") > 1]


def draw(table, looks):
    grid = drawing.facets(table, 1.6)
    for axes, part in drawing.cells(grid):
        for arm, mine in part.groupby("arm", sort=False):
            look = {"color": looks["palette"][arm], "dashes": looks["dashes"][arm] or (None, None)}
            drawing.join(axes, mine, **look)
        drawing.dots(axes, part, looks)
        axes.set(xticks=sorted(part["at"].unique()), ylim=(0, 1.1 * part["value"].max()))  # intervals may leave it
    drawing.chance(grid, head="test accuracy, %")
    drawing.legend(grid, looks)
    return grid.set_axis_labels("hidden layers", "")


def caption(table):
    fa = select(ended(table), algorithm="fa", head="test accuracy, %")
    said = [
        f"{panel}: " + ", ".join(f"{over(values)} with {depth:.0f}" for depth, values in part.groupby("at")["value"])
        for panel, part in fa.groupby("panel", sort=False)
    ]
    what = (
        f"Test accuracy, and the effective rank ({drawing.MEASURES['entropy_s2']}) of the gradients of the whole net, "
        f"over the number of hidden layers. Dotted is chance; an interval may leave the axes."
    )
    return what, f"the accuracy of FA in %: {'; '.join(said)}."
