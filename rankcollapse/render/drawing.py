"""What figures share: panels, lines over seeds, points, marks of runs that diverged, words of captions, saving.

What a figure's module is, says figures/__init__.py. `looks`: {"palette": {arm: colour}, "markers": ..., "dashes": ...}.
"""

import importlib
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame
from seaborn import FacetGrid

from rankcollapse.experiment import files
from rankcollapse.experiment.datasets import SETS
from rankcollapse.render.figures import titles
from rankcollapse.render.tables import ARM, KEYS, Tables, ended, finished, load, select
from rankcollapse.render.text import over as told

WIDTH = 6.9  # inches: the text width of the paper, so that type is printed in the size given here
PAGE = 8.2  # inches: what a page holds above a caption
SMALL = 7  # points: the smallest type
GREY = "#666666"
DOTTED = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 0}
MARKED = "a point is a run, a cross one that diverged"
MEASURES = {"entropy_s": "exp H(s)", "entropy_s2": "exp H(s²)"}
# Matplotlib's own, as seaborn wants them.
DASHES = {"-": "", "--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}
STYLE = {"axes.linewidth": 0.6, "lines.markersize": 3, "legend.frameon": False, "axes.edgecolor": "0.6"}
STYLE |= {f"{axis}tick.{key}": value for axis in "xy" for key, value in {"major.width": 0.6, "major.size": 2.5}.items()}
# Letters as outlines, the same picture in every viewer; and no random ids: equal data, equal bytes.
STYLE |= {"svg.fonttype": "path", "svg.hashsalt": "rankcollapse"}


def shown_tables(folder: Path, tuned: Path, wanted: str, arms: dict, studies: dict, shown: dict) -> Tables:
    """The tables of tables.load cut to the shown arms of `studies`, in their order, with arms by their labels.

    A row has what its arm is, its `panel`, and the panel's `title`, which says too what runs it lacks. `wanted` may
    name columns of runs.csv, and whether any run of the study has changed updates (`intervention`), the rule has a B
    (`aligned`), some blocks alone learn (`ladder`), or do in an arm of the run's optimizer and normalization
    (`laddered`), and hidden weights stay as initialised (`control`).
    """
    tables = load(folder, tuned)
    runs, order = tables["runs"], {"study": [*studies], "arm": [*arms]}
    runs = runs[[arm in shown.get(study, []) for study, arm in zip(runs["study"], runs["arm"], strict=True)]]
    changed = runs.loc[runs["update"] != "full", "study"]
    aligned = runs.loc[runs["arm"].isin(select(tables["alignment"], quantity="gradient")["arm"]), "rule"]
    runs = runs.assign(intervention=runs["study"].isin(changed), aligned=runs["rule"].isin(aligned))
    runs = runs.assign(ladder=runs["learning_blocks"].notna(), control=runs["rule"].str.startswith("frozen"))
    kinds = runs.groupby(["study", "dataset", "optimizer", "normalization"])
    runs = runs.assign(laddered=kinds["ladder"].transform("any")).query(wanted)
    runs = runs.sort_values([*order], key=lambda names: names.map(order[names.name].index), kind="stable")
    runs["panel"] = runs["study"].map(studies) + ", " + runs["dataset"].map({name: SETS[name].label for name in SETS})
    labels = {arm: look["label"] for arm, look in arms.items()}
    titles = {panel: panel + lost(part.replace({"arm": labels})) for panel, part in runs.groupby("panel")}
    rows = runs[[*KEYS, "rule", "optimizer", "normalization", "update", "ladder", "control", "panel"]]
    rows = rows.assign(title=rows["panel"].map(titles))

    def cut(table: DataFrame) -> DataFrame:
        by_arm = [key for key in KEYS if key not in table]  # choices have neither a seed nor an architecture
        return rows.drop(columns=by_arm).drop_duplicates().merge(table).assign(arm=lambda t: t["arm"].map(labels))

    return {name: cut(table) for name, table in tables.items()}


def first(table: DataFrame, over: Callable = finished) -> DataFrame:
    """The rows that count of the first panel that has any: what a caption gives numbers of."""
    return select(over(table), panel=over(table)["panel"].iloc[0])


def by_layer(table: DataFrame, most: int | None = None) -> DataFrame:
    """The rows of each panel's layers in the order of the net, with `place` and `name`; `all` is no layer.

    The arm that has most layers gives the order, since a frozen one has few. Of more than `most` layers the last, the
    first, and others evenly between. `block3.residual.conv1` is named block 3, conv 1.
    """
    kept, words = [], {".residual.": ", ", ".shortcut.conv": ", shortcut", "head": "classifier"}
    for panel, part in table[table["layer"] != "all"].groupby("panel", sort=False):
        layers = max(part.groupby("arm")["layer"].unique(), key=len)
        places = np.linspace(len(layers) - 1, 0, min(most or len(layers), len(layers))).round().astype(int)
        kept += [(panel, layers[place], place) for place in places[::-1]]
    rows = DataFrame(kept, columns=["panel", "layer", "place"])
    rows["name"] = rows["layer"].replace({re.escape(part): word for part, word in words.items()}, regex=True)
    rows["name"] = rows["name"].str.replace(r"([a-z])(\d)", r"\1 \2", regex=True)
    return rows.merge(table, on=["panel", "layer"])


def last_hidden(table: DataFrame) -> DataFrame:
    """The rows of each panel's last layer before the classifier, as by_layer has them."""
    return by_layer(table[table["layer"] != "head"], 1)


def under(ends: DataFrame, value: str) -> str:
    """`150 ± 3 under BP and 23 ± 1 under FA`: the arms of reference, under plain SGD and without normalisation."""
    plain = select(ends, optimizer="sgd", normalization="none", update="full")
    arms = plain[plain["rule"].isin(["bp", "fa"])].groupby("rule")["arm"].first()
    words = [f"{told(select(plain, arm=arm)[value])} under {arm}" for arm in arms]
    return " and ".join(words) or "neither plain BP nor plain FA"


def lost(runs: DataFrame) -> str:
    """`; 2 diverged (FA, FA + BN); 1 missing (BP)`, or nothing."""
    parts = [(outcome, select(runs, outcome=outcome)["arm"]) for outcome in ("diverged", "missing")]
    return "".join(f"; {len(arms)} {outcome} ({', '.join(arms.unique())})" for outcome, arms in parts if len(arms))


def standing(runs: DataFrame, spread: str, over: Callable) -> str:
    """How many runs a figure's means are over, what became of the others, and how the spread over seeds is shown."""
    counts = over(runs).groupby(ARM)["seed"].count().reindex(runs[ARM].drop_duplicates(), fill_value=0)
    n = " to ".join(map(str, sorted({counts.min(), counts.max()})))
    kind = "Finished runs" if over is finished else "Runs, a diverged one with the accuracy that it ended with"
    band = f"; {spread}: ± 1 standard deviation over seeds" * bool(spread and counts.max() > 1)
    return f"{kind}: n = {n} an arm, {counts.sum()} in all{lost(runs)}{band}."


def facets(table: DataFrame, height: float, **more: object) -> FacetGrid:
    """Axes, `height` inches high, for each panel, and each `head` in it if the table has such; more: of FacetGrid.

    A panel with more than two heads is a row of axes, with two a column; panels with one are at most four in a row.
    """
    across = table.groupby("panel")["head"].transform(lambda heads: heads.factorize()[0]) if "head" in table else 0
    n, heads = table["panel"].nunique(), np.max(across) + 1
    columns = heads if heads > 2 else n if heads == 2 else -(-n // -(-n // 4))
    rows = n * heads // columns if heads > 1 else -(-n // columns)
    places = {"row": "panel", "col": "across"} if heads > 2 else {"row": "across", "col": "panel"}
    places = places if heads > 1 else {"col": "panel", "col_wrap": columns}
    letters = int((28 if heads > 2 else 13) * WIDTH / columns)  # that a title has room for
    titles = table["title"].map(textwrap.TextWrapper(letters, break_long_words=False).fill)
    height = min(height + 0.15 * titles.str.count("\n").max(), (PAGE - 0.7) / rows)
    more = {"height": height, "aspect": WIDTH / columns / height, "sharex": False, **more}
    grid = FacetGrid(table.assign(across=across, title=titles), **places, **more).set_titles("")
    grid.figure.set_figwidth(WIDTH)  # to the last bit
    for axes in {*grid.axes.flat} - {axes for axes, _ in cells(grid)}:
        axes.set_visible(False)
    for axes, part in cells(grid):
        head = part["head"].iloc[0] if "head" in part else ""
        axes.set_title(head)
        if part["across"].iloc[0] == 0:
            title = part["title"].iloc[0] + "\n" * len(head.splitlines())
            axes.set_title(title, loc="left", fontsize=SMALL, fontweight="bold", linespacing=1.6)
    return grid


def cells(grid: FacetGrid, **wanted: object) -> Iterator[tuple[Axes, DataFrame]]:
    """The axes that the grid's table has such rows for, as select has them, each with these rows."""
    for (row, column, _), rows in grid.facet_data():
        part = select(rows, **wanted)
        if len(part):
            yield grid.facet_axis(row, column), part


def share(grid: FacetGrid, *columns: str) -> None:
    """One y axis for all axes whose rows agree in these columns."""
    found: dict[tuple, Axes] = {}
    for axes, part in cells(grid):
        other = found.setdefault(tuple(part[[*columns]].iloc[0]), axes)
        if other is not axes:
            axes.sharey(other)


def legend(grid: FacetGrid, looks: dict, **more: object) -> None:
    """One for all panels, below them, in rows of even length, as few as fit; more: of its lines."""
    arms = [arm for arm in looks["palette"] if (grid.data["arm"] == arm).any()]
    rows = -(-len(arms) // int(WIDTH / (0.055 * max(map(len, arms)) + 0.4)))
    keys = {"color": "palette", "marker": "markers", "dashes": "dashes"}
    styles = [{"label": arm} | {key: looks[look][arm] for key, look in keys.items()} for arm in arms]
    handles = [Line2D([], [], **style, **more) for style in styles]
    grid.figure.legend(handles=handles, loc="outside lower center", ncols=-(-len(arms) // rows), handlelength=2.6)
    grid.figure.set_figheight(grid.figure.get_figheight() + 0.15 + 0.15 * rows)


def lines(grid: FacetGrid, x: str, y: str, looks: dict, over: Callable = finished, **limits: object) -> None:
    """Each arm's mean over the runs that count, with a band, diverged runs, and a legend. limits: see diverged."""
    band = {"errorbar": "sd", "err_kws": {"alpha": 0.18, "linewidth": 0}, "markeredgewidth": 0, "markevery": 0.25}
    for axes, part in cells(grid):
        part = over(part)[np.isfinite(over(part)[y])]
        if len(part):
            sns.lineplot(part, x=x, y=y, ax=axes, hue="arm", style="arm", legend=False, **band, **looks)
        axes.locator_params(axis="x", nbins=4, integer=True)
    diverged(grid, x, y, looks, **limits)
    legend(grid, looks)


def points(grid: FacetGrid, x: str, y: str, looks: dict, **limits: object) -> None:
    """A point for each finished run, and diverged runs. limits: see diverged."""
    look = {"hue": "arm", "style": "arm", "palette": looks["palette"], "markers": looks["markers"], "legend": False}
    for axes, part in cells(grid, outcome="finished"):
        sns.scatterplot(part, x=x, y=y, ax=axes, s=16, linewidth=0, **look)
    diverged(grid, x, y, looks, **limits)


def diverged(grid: FacetGrid, x: str, y: str, looks: dict, **limits: object) -> None:
    """Every diverged run, thin, up to its cross, held within the limits that the finished runs and Axes.set give."""
    thin = {"units": "seed", "estimator": None, "linewidth": 0.7, "alpha": 0.7, "markersize": 0, "style": "arm"}
    mark = {"marker": "x", "s": 22, "linewidth": 1.3, "clip_on": False, "zorder": 5}
    for axes, _ in cells(grid, outcome="finished"):
        axes.set(**limits)
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    for axes, part in cells(grid, outcome="diverged"):
        if not axes.get_autoscaley_on():
            spans = {x: sorted(axes.get_xlim()), y: sorted(axes.get_ylim())}
            part = part.assign(**{name: part[name].clip(*span) for name, span in spans.items()})
        part = part.dropna(subset=y)
        look = {"x": x, "y": y, "ax": axes, "hue": "arm", "legend": False}
        sns.lineplot(part, **look, **thin, **looks)
        sns.scatterplot(part.groupby(["arm", "seed"]).tail(1), **look, **mark, palette=looks["palette"])


def accuracies(table: DataFrame, looks: dict, name: str) -> FacetGrid:
    """Test accuracies in the order of the table, a line for each `name`: a point per run, mean and deviation of all."""
    names = [*table[name].unique()]
    shift = (table["seed"] + 0.5) / (table["seed"].max() + 1) - 0.5  # no run hides another
    place = table[name].map(names.index)
    grid = facets(table.assign(place=place, y=place + 0.5 * shift), 0.55 + 0.16 * len(names), sharex=True)
    bar = {"err_kws": {"linewidth": 1}, "alpha": 0.6, "linestyle": "none", "marker": "|", "markersize": 10}
    bar |= {"hue": "arm", "palette": looks["palette"], "legend": False, "orient": "y", "native_scale": True}
    for axes, part in cells(grid):
        sns.pointplot(ended(part), x="test_accuracy", y="place", ax=axes, errorbar="sd", markeredgewidth=1, **bar)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(labelleft=axes.get_subplotspec().is_first_col())
        for place, arm in enumerate(names):
            text = told(ended(select(part, **{name: arm}))["test_accuracy"])
            axes.text(1.03, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL)
    points(grid, "test_accuracy", "y", looks, xlim=(0, None), ylim=(len(names) - 0.5, -0.5))
    chance(grid, "axvline")
    return grid.set_axis_labels("test accuracy, %", "")


def chance(grid: FacetGrid, line: str = "axhline", **wanted: object) -> None:
    """A dotted line at the accuracy of a guess."""
    for axes, part in cells(grid, **wanted):
        getattr(axes, line)(100 * SETS[part["dataset"].iloc[0]].chance, **DOTTED)


def save(figure: Figure, caption: str, out: Path) -> None:
    """OUT.svg, OUT.pdf and OUT.txt, without a date in them."""
    files.write(f"{out}.svg", lambda path: figure.savefig(path, metadata={"Date": None}))
    files.write(f"{out}.pdf", lambda path: figure.savefig(path, metadata={"CreationDate": None}))
    files.write_text(f"{out}.txt", caption + "\n")
    plt.close(figure)


def figure(name: str, results: Path, tuned: Path, looks: dict, out: Path) -> None:
    """Make a figure of the tables in `results`. looks: {"arms": {...}, "studies": {...}, "shown": {...}}."""
    module = importlib.import_module(f"rankcollapse.render.figures.{name}")
    plt.switch_backend("agg")
    sns.set_theme("paper", "ticks", font="DejaVu Sans", font_scale=0.8, rc=STYLE)  # a font that comes with matplotlib
    tables = shown_tables(results / "tables", tuned, module.SHOWN, **looks)
    arms, keys = looks["arms"].values(), {"palette": "colour", "markers": "marker", "dashes": "line"}
    drawn = {by: {arm["label"]: DASHES.get(arm[key], arm[key]) for arm in arms} for by, key in keys.items()}
    runs = tables["runs"]
    table = module.data(tables) if len(finished(runs)) else runs  # without one tables may have no rows to work on
    if finished(table).empty:  # the files are still expected
        made = plt.figure(figsize=(WIDTH, 0.5))
        words = f"{titles()[name].partition('. ')[2]}: no finished run among {len(runs)} of this kind."
        made.text(0.5, 0.5, words, ha="center", va="center", color=GREY)
    else:
        made = module.draw(table, drawn).figure
        made.set_layout_engine("constrained", w_pad=0.05, h_pad=0.05, wspace=0.02, hspace=0.02)
        words = module.caption(table)
        if module.SPREAD is not None:
            words += " " + standing(runs, module.SPREAD, getattr(module, "OVER", finished))
    save(made, words, out)
