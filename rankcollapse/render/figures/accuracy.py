"""3. Test accuracy beside that of frozen nets."""

from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.tables import ARM, ended, select

SHOWN = "shown and not (intervention or ladder)"
SPREAD = "bars"
OVER = ended
KIND = [*ARM[:-1], "optimizer", "normalization"]


def data(tables):
    """A row per run and `row`, the learning arm that it is or belongs to: of the nets that are frozen under an arm's
    conditions the one whose classifier alone learns, or else the norm parameters too.
    """
    runs = tables["runs"].assign(value=tables["runs"]["test_accuracy"], row=tables["runs"]["arm"])
    learning, frozen = (runs[runs["control"] == control] for control in (False, True))
    frozen = drawing.grouped(frozen).sort_values("rule", kind="stable").drop(columns="row")
    frozen = frozen[frozen["rule"] == frozen.groupby(KIND)["rule"].transform("first")]
    pairs = concat([learning, learning[[*KIND, "row"]].drop_duplicates().merge(frozen, on=KIND)], ignore_index=True)
    pairs["shift"] = pairs["control"].map({False: -0.18, True: 0.18})
    at = pairs["row"].map([*learning["row"].unique()].index) + pairs["shift"]
    return pairs.assign(at=at, theirs=pairs["paper_percent"])


def draw(table, looks):
    grid = drawing.facets(table, 0.6 + 0.19 * table["row"].nunique())
    drawing.share(grid, "dataset", axis="x")
    for axes, part in drawing.cells(grid):
        drawing.rows(axes, part, looks, [*table["row"].unique()], sorted(table["shift"].unique()))
    for axes, _ in drawing.cells(grid):  # once all are drawn: panels of one data set share the axis
        axes.set_xlim(0, min(axes.get_xlim()[1], 102))  # intervals over two seeds may reach beyond all that there is
    drawing.chance(grid, "axvline")
    frozen, words = table[table["control"]], {drawing.FROZEN: " (second number)"}
    drawing.explain(grid.figure, drawing.handles(frozen, looks, words, linewidth=0), table)
    return grid.set_axis_labels("test accuracy, %", "")


def caption(table):
    panels = ended(table).groupby("panel", sort=False)
    parts = [f"{panel}: {drawing.under(part, 'test_accuracy')}" for panel, part in panels]
    norms = select(table, control=True).query("rule != 'frozen'")["row"].unique()
    but = f" (in that of {', '.join(norms)} norm parameters too)" * (len(norms) > 0)
    what = (
        f"Mean test accuracy of each arm, and below it that of the same net with its hidden weights frozen, whose "
        f"classifier alone learns{but}. Both are in numbers, – where there is no run. Dotted is chance."
    )
    return what, f"{'; '.join(parts)}."
