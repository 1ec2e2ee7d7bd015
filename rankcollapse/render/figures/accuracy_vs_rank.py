"""7. Accuracy against effective rank."""

from rankcollapse.render import drawing
from rankcollapse.render.tables import KEYS, finished, last, select
from rankcollapse.render.text import number

SHOWN = "not (ladder or control)"
SPREAD = ""
MEASURE = "entropy_s2"


def data(tables):
    whole = select(tables["ranks"], quantity="gradient_trajectory", layer="all", scope="cumulative")
    return tables["runs"].merge(last(whole, MEASURE)[[*KEYS, MEASURE]], on=KEYS)


def draw(table, looks):
    grid = drawing.facets(table, 2.1, sharey=False)
    drawing.share(grid, "dataset")
    drawing.points(grid, MEASURE, "test_accuracy", looks, xlim=(0, None), ylim=(0, None))
    drawing.chance(grid)
    drawing.legend(grid, looks, linewidth=0)
    return grid.set_axis_labels("effective rank", "test accuracy, %")


def caption(table):
    panels = finished(table).groupby("panel", sort=False)
    rhos = [(panel, part[MEASURE].corr(part["test_accuracy"], "spearman"), len(part)) for panel, part in panels]
    words = ", ".join(f"{number(rho)} ({panel}, n = {n})" for panel, rho, n in rhos if n > 2) or "too few runs"
    return (
        f"Test accuracy against the effective rank ({drawing.MEASURES[MEASURE]}) of all gradients kept from a run, "
        f"whole net; {drawing.MARKED}; dotted: chance. Spearman's ρ over the finished runs: {words}."
    )
