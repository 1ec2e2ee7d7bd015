"""10. Gains under FA beside those under BP."""

from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.tables import ended

GAINS = {"muon": "Muon", "bn": "batch norm", "both": "both"}
RULES = {"FA (first number)": ("#d55e00", "o", ""), "BP (second number)": ("#000000", "s", "")}
SHIFTS = (-0.15, 0.15)
ARMS = ["fa", "bp", *(f"{rule}+{each}" for rule in ("fa", "bp") for each in GAINS)]
SHOWN = f"in_view and algorithm in {ARMS}"
SPREAD = "bars"
OVER = ended


def data(tables):
    """A row per run of an arm with a remedy, its `value` the gain over the plain arm of its rule with its seed."""
    runs = tables["runs"].assign(value=tables["runs"]["test_accuracy"], own=tables["runs"]["arm"])
    return concat(
        drawing.paired(part, f"{rule}+{each}", rule).assign(at=row + shift, shift=shift, arm=arm)
        for _, part in runs.groupby("panel", sort=False)
        for row, each in enumerate(GAINS)
        for rule, shift, arm in zip(("fa", "bp"), SHIFTS, RULES, strict=True)
    )


def draw(table, looks):
    grid, looks = drawing.facets(table, 1.5), drawing.looking(looks, RULES)
    for axes, part in drawing.cells(grid):
        drawing.rows(axes, part, looks, [*GAINS.values()], SHIFTS)
        axes.axvline(0, **drawing.DOTTED)
    drawing.legend(grid, looks, linewidth=0)
    return grid.set_axis_labels("gain, points", "")


def caption(table):
    arms = {panel: part.groupby("own", sort=False)["value"] for panel, part in table.groupby("panel", sort=False)}
    said = [f"{panel}: {', '.join(f'{a} {drawing.sure(v)}' for a, v in gains)}" for panel, gains in arms.items()]
    what = "What each adds to the test accuracy of plain FA, and below of plain BP, paired by seed."
    return what, f"{'; '.join(said)}."
