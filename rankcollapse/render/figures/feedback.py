"""6. The rank of B."""

from rankcollapse.render import drawing
from rankcollapse.render.figures.updates import RANKS
from rankcollapse.render.tables import ended

SHOWN = f"algorithm in {['fa', 'fa-orthogonal', *(f'fa-rank{r}' for r in RANKS)]}"
SPREAD = "bars"
OVER = ended
LAWS = {"random B": ("#d55e00", "o", ""), "orthogonal B": ("#661100", "s", "")}
HEADS = {"test accuracy, %": "test_accuracy", "effective rank of the error": "error_rank"}


def data(tables):
    """The runs of studies with a B of low rank, for each of HEADS."""
    runs = drawing.measured(tables, HEADS)
    law = runs["feedback"].eq("orthogonal")
    at = runs["feedback_rank"].map(RANKS).fillna(len(RANKS)) + 0.12 * law  # neither hides the other
    runs = runs.assign(at=at, arm=law.map(dict(zip((False, True), LAWS, strict=True))))
    return runs[runs.groupby("study")["feedback_rank"].transform("count") > 0]


def draw(table, looks):
    grid, looks = drawing.facets(table, 2), drawing.looking(looks, LAWS)
    for axes, part in drawing.cells(grid):
        drawing.join(axes, part[part["feedback"] != "orthogonal"])
        drawing.dots(axes, part, looks)
        axes.set_xticks(range(len(RANKS) + 1), [*RANKS, "full"])
    drawing.legend(grid, looks, linewidth=0)
    return grid.set_axis_labels("rank of B", "")


def caption(table):
    here = drawing.first(table, OVER)
    heads = here.groupby("head", sort=False)
    less = [f"{head} {drawing.sure(drawing.paired(part, 'fa-rank1', 'fa')['value'])}" for head, part in heads]
    what = (
        f"Test accuracy of FA, and the effective rank ({drawing.MEASURES['entropy_s']}) of its errors pooled over "
        f"training, a geometric mean over hidden layers, by the rank of B, at one norm."
    )
    return what, f"{here['panel'].iloc[0]}, rank 1 less full rank: {', '.join(less)}."
