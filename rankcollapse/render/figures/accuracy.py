"""6. Test accuracy."""

from rankcollapse.render import drawing
from rankcollapse.render.tables import ended

SHOWN = "not (intervention or ladder)"
SPREAD = "bars"
OVER = ended


def data(tables):
    """A row per run, with arms of a kind one below the other: FA beside the nets frozen under its conditions."""
    kinds = tables["runs"].groupby(["optimizer", "normalization"], sort=False).ngroup()
    return tables["runs"].iloc[kinds.argsort(kind="stable")]


def draw(table, looks):
    return drawing.accuracies(table, looks, "arm")


def caption(table):
    panels = ended(table).groupby("panel", sort=False)
    parts = [f"{panel}: {drawing.under(part, 'test_accuracy')}" for panel, part in panels]
    return f"Test accuracy, in %; {drawing.MARKED}; dotted: chance; –: no run. {'; '.join(parts)}."
