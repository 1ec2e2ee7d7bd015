"""16. Blocks that learn."""

from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.tables import ended, select
from rankcollapse.render.text import over

SHOWN = "shown and laddered and not intervention"
SPREAD = "bands"
OVER = ended
KIND = ["panel", "optimizer", "normalization"]  # what the frozen net that is k = 0 shares with a ladder


def data(tables):
    """A row per run and ladder that it is on, with k, and as its arm that in which all blocks of the ladder learn."""
    runs, layers = tables["runs"], tables["norms"]
    blocks = layers["layer"].str.split(".").str[0].groupby(layers["panel"]).nunique() - 1  # the classifier is none
    runs = runs.assign(blocks=runs["panel"].map(blocks))
    runs["k"] = runs["learning_blocks"].fillna(runs["blocks"]).mask(runs["control"])
    learning, frozen = runs[~runs["control"]], select(runs, rule="frozen").assign(k=0)
    tops = learning[~learning["ladder"]].drop_duplicates([*KIND, "rule"])[[*KIND, "rule", "arm"]]
    ladders = learning[learning["ladder"] | learning["arm"].isin(tops["arm"])].drop(columns="arm").merge(tops)
    frozen = frozen.drop(columns=["arm", "rule"]).merge(tops)
    return concat([ladders, frozen, runs[runs["control"] & (runs["rule"] != "frozen")]], ignore_index=True)


def draw(table, looks):
    grid = drawing.facets(table, 2.1)
    drawing.share(grid, "dataset")
    for axes, part in drawing.cells(grid):  # before the lines, which settle the limits
        for arm, mine in ended(part[part["k"].isna()]).groupby("arm", sort=False)["test_accuracy"]:
            look = {"color": looks["palette"][arm], "dashes": looks["dashes"][arm] or (None, None)}
            axes.axhline(mine.mean(), linewidth=1, zorder=1, **look)
    drawing.lines(grid, "k", "test_accuracy", looks, OVER)
    for axes, part in drawing.cells(grid):
        ticks = sorted(part["k"].dropna().unique())
        axes.set_xticks(ticks, ["all" if k == part["blocks"].iloc[0] else f"{k:.0f}" for k in ticks])
    return grid.set_axis_labels("blocks that learn", "test accuracy, %")


def caption(table):
    parts = []
    for arm, mine in drawing.first(table, OVER).groupby("arm", sort=False):
        values = [f"{over(values)} with {k:.0f}" for k, values in mine.groupby("k")["test_accuracy"]]
        parts.append(f"{arm} {', '.join(values) or over(mine['test_accuracy'])}")
    what = (
        "Test accuracy over the number of blocks that learn, from the classifier alone (0) up. Horizontal: no hidden "
        "weight learns, but norm parameters do."
    )
    return what, f"{drawing.first(table, OVER)['panel'].iloc[0]}: {'; '.join(parts)}."
