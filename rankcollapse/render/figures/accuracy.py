"""6. Test accuracy.

All arms but the ladder's: a point per run, mean and standard deviation; a panel per study and data set.
"""

from pandas import DataFrame
from seaborn import FacetGrid

from rankcollapse.render import drawing
from rankcollapse.render.tables import Tables, ended

SHOWN = "not (intervention or ladder)"
SPREAD = "bars"
OVER = ended


def data(tables: Tables) -> DataFrame:
    """A row per run, with arms of a kind one below the other: FA beside the nets frozen under its conditions."""
    runs = tables["runs"]
    kinds = runs.groupby(["optimizer", "normalization"], sort=False).ngroup()
    return runs.iloc[kinds.argsort(kind="stable")]


def draw(table: DataFrame, looks: dict) -> FacetGrid:
    return drawing.accuracies(table, looks, "arm")


def caption(table: DataFrame) -> str:
    panels = ended(table).groupby("panel", sort=False)
    parts = [f"{panel}: {drawing.under(part, 'test_accuracy')}" for panel, part in panels]
    return f"Test accuracy, in %; {drawing.MARKED}; dotted: chance; –: no run. {'; '.join(parts)}."
