"""7. Gains under FA beside those under BP."""

from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.tables import ended

GAINS = {"muon": "Muon", "bn": "normalisation", "both": "both"}
ARMS = ["fa", "bp", *(f"{rule}+{each}" for rule in ("fa", "bp") for each in GAINS)]
SHOWN = f"in_view and algorithm in {ARMS}"
SPREAD = "bars"
OVER = ended


def data(tables):
    """A row per run of an arm with a remedy, its `value` the gain over the plain arm of its rule with its seed."""
    runs = tables["runs"].assign(value=tables["runs"]["test_accuracy"])
    return concat(
        drawing.paired(part, f"{rule}+{each}", rule).assign(at=row + shift)
        for _, part in runs.groupby("panel", sort=False)
        for row, each in enumerate(GAINS)
        for rule, shift in (("fa", -0.15), ("bp", 0.15))
    )


def draw(table, looks):
    grid = drawing.facets(table, 1.5)
    for axes, part in drawing.cells(grid):
        drawing.rows(axes, part, looks, [*GAINS.values()])
        axes.axvline(0, **drawing.DOTTED)
    drawing.legend(grid, looks, linewidth=0)
    return grid.set_axis_labels("gain, points", "")


def caption(table):
    arms = {panel: part.groupby("arm", sort=False)["value"] for panel, part in table.groupby("panel", sort=False)}
    said = [f"{panel}: {', '.join(f'{a} {drawing.sure(v)}' for a, v in gains)}" for panel, gains in arms.items()]
    return (
        f"What Muon, normalisation and both add to the test accuracy of plain FA, and below each what they add to "
        f"that of plain BP, in points, paired by seed; dotted: nothing. {'; '.join(said)}."
    )
