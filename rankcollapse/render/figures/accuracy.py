"""3. Test accuracy beside that of frozen nets."""

from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.tables import ARM, ended

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
    frozen = frozen.sort_values("rule", kind="stable").drop(columns="row")
    frozen = frozen[frozen["rule"] == frozen.groupby(KIND)["rule"].transform("first")]
    pairs = concat([learning, learning[[*KIND, "row"]].drop_duplicates().merge(frozen, on=KIND)], ignore_index=True)
    at = pairs["row"].map([*learning["row"].unique()].index) + pairs["control"].map({False: -0.18, True: 0.18})
    return pairs.assign(at=at, theirs=pairs["paper_percent"])


def draw(table, looks):
    grid = drawing.facets(table, 0.6 + 0.19 * table["row"].nunique())
    drawing.share(grid, "dataset", axis="x")
    for axes, part in drawing.cells(grid):
        drawing.rows(axes, part, looks, [*table["row"].unique()])
        axes.set_xlim(0, None)
    drawing.chance(grid, "axvline")
    drawing.explain(grid.figure, drawing.handles(table[table["control"]], looks, linewidth=0), table)
    return grid.set_axis_labels("test accuracy, %", "")


def caption(table):
    panels = ended(table).groupby("panel", sort=False)
    parts = [f"{panel}: {drawing.under(part, 'test_accuracy')}" for panel, part in panels]
    return (
        f"Test accuracy, in %: means of arms, below each that of the net frozen under the same conditions, and both "
        f"in numbers; open, in brackets: the paper's, of full width, as quoted in an unverified note; a cross is a "
        f"run that diverged; dotted: chance; –: no run. {'; '.join(parts)}."
    )
