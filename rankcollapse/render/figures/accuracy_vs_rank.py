"""7. Accuracy against effective rank.

Test accuracy against the effective rank of the gradient trajectory over all of training: all arms of all studies but
the ladder and the frozen nets, a point per run; a panel per study and data set, with Spearman's correlation.
"""

from pandas import DataFrame
from seaborn import FacetGrid

from rankcollapse.render import drawing
from rankcollapse.render.tables import KEYS, Tables, finished, last, select
from rankcollapse.render.text import number

SHOWN = "not (ladder or control)"
SPREAD = ""
MEASURE = "entropy_s2"


def data(tables: Tables) -> DataFrame:
    """A row per run: its accuracy, its final rank, its outcome."""
    whole = select(tables["ranks"], quantity="gradient_trajectory", layer="all", scope="cumulative")
    return tables["runs"].merge(last(whole, MEASURE)[[*KEYS, MEASURE]], on=KEYS)


def draw(table: DataFrame, looks: dict) -> FacetGrid:
    grid = drawing.facets(table, 2.1, sharey=False)
    drawing.share(grid, "dataset")
    drawing.points(grid, MEASURE, "test_accuracy", looks, xlim=(0, None), ylim=(0, None))
    drawing.chance(grid)
    drawing.legend(grid, looks, linewidth=0)
    return grid.set_axis_labels("effective rank", "test accuracy, %")


def caption(table: DataFrame) -> str:
    panels = finished(table).groupby("panel", sort=False)
    rhos = [(panel, part[MEASURE].corr(part["test_accuracy"], "spearman"), len(part)) for panel, part in panels]
    words = [f"{number(rho)} ({panel}, n = {n})" for panel, rho, n in rhos if n > 2]
    return (
        f"Test accuracy against the effective rank ({drawing.MEASURES[MEASURE]}) of all gradients kept from a run, "
        f"whole net; {drawing.MARKED}, which counts not here; dotted: chance. Spearman's ρ over these runs: "
        f"{', '.join(words) or 'too few runs'}."
    )
