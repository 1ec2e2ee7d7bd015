"""7. The error's rank, set directly."""

from rankcollapse.render import drawing
from rankcollapse.render.tables import ended

PLACES = {"fixed10": "10, fixed", "top2": "2", "top10": "10", "top25": "25", "": "as it is", "full": "full"}
RULES = {"FA": ("#d55e00", "o", ""), "BP": ("#000000", "s", (1, 1.65))}
ARMS = {f"{rule.lower()}{f'-error-{name}' * bool(name)}": name for rule in RULES for name in PLACES}
SHOWN = f"algorithm in {[*ARMS]}"
SPREAD = "bars"
OVER = ended
HEADS = {
    "test accuracy, %": "test_accuracy",
    "rank of the error in a batch": "batch_error_rank",
    "the same over the training": "error_rank",
}


def data(tables):
    """The runs of studies that change errors, for each of HEADS; `arm` is the rule, `at` the place of the change."""
    runs = drawing.measured(tables, HEADS)
    rule = runs["rule"].str.upper()
    at = runs["algorithm"].map(ARMS).map([*PLACES].index) + 0.12 * (rule == "BP")  # neither hides the other
    runs = runs.assign(at=at, arm=rule)
    return runs[(runs["error"] != "full").groupby(runs["study"]).transform("any")]


def draw(table, looks):
    grid, looks = drawing.facets(table, 2), drawing.looking(looks, RULES)
    for axes, part in drawing.cells(grid):
        for rule, rows in part[part["error"] != "fixed_r"].groupby("arm"):
            drawing.join(axes, rows, color=RULES[rule][0], dashes=RULES[rule][2] or (None, None), alpha=0.5)
        drawing.dots(axes, part, looks)
        axes.axvline(0.55, **drawing.DOTTED)
        axes.set_xticks(range(len(PLACES)), PLACES.values())
    drawing.legend(grid, looks, linewidth=0)
    return grid.set_axis_labels("directions of the error", "")


def caption(table):
    here = drawing.first(table[table["head"] == next(iter(HEADS))], OVER)
    told = []
    for arm, name in ARMS.items():
        change = drawing.paired(here, arm, arm.split("-")[0])["value"]
        told += [f"{arm[:2].upper()} {PLACES[name]} {drawing.sure(change)}"] * bool(name and len(change))
    what = (
        f"Test accuracy, and the effective rank ({drawing.MEASURES['entropy_s']}, a geometric mean over hidden layers) "
        f"of the error signal, whose rank in hidden layers is set at its own Frobenius norm: within ten random "
        f"directions of the features that stay the same, in the two, ten or 25 largest directions of each batch, as it "
        f"is, or with all directions of a batch as large as each other. Rates are tuned for each."
    )
    return what, f"{here['panel'].iloc[0]}, test accuracy less that with the error as it is: {', '.join(told)} points."
