"""What figures share: panels, lines over seeds, dots, marks of runs that diverged, words of captions, saving.

What a figure's module is, says figures/__init__.py. `looks`: {"palette": {arm: colour}, "markers": ..., "dashes": ...}.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame, Series, concat
from seaborn import FacetGrid

from rankcollapse.experiment import files
from rankcollapse.experiment.config import RunConfig
from rankcollapse.experiment.datasets import SETS
from rankcollapse.render.claims import reading
from rankcollapse.render.figures import NOTHING, NUMBERS, SCRIPT, titles
from rankcollapse.render.joined import joined
from rankcollapse.render.tables import ARM, KEYS, Tables, ended, finished, load, published, select
from rankcollapse.render.text import interval, number
from rankcollapse.render.text import over as told

TEXTS = Path(__file__).parents[2] / "paper"
WIDTH = 6.9  # inches: the text width of the paper, so that type is printed in the size given here
PAGE = 8.2  # inches: what a page holds above a caption
SMALL = 7  # points: the smallest type
GREY = "#666666"
CROSS = {"marker": "x", "s": 22, "linewidth": 1.3, "clip_on": False, "zorder": 5}
PAPER = {"color": "black", "marker": "D", "fillstyle": "none", "markersize": 4.5, "linewidth": 0, "zorder": 4}
PAPER |= {"label": "the paper's, by an unverified note"}
DOTTED = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 0}
TITLE = {"loc": "left", "fontsize": SMALL, "fontweight": "bold", "linespacing": 1.6}
MANY = 6  # arms, for a caption to name them
FROZEN, OTHERS = "hidden weights frozen", "other methods"
GROUPS = {FROZEN: ("#b8860b", "P", ""), OTHERS: ("#cccccc", "o", "")}  # colour, marker and dashes of arms in one
NETS = {"mlp": "MLP", "cnn": "CNN", "cnn4": "CNN", "resnet18": "ResNet-18"}  # architectures, as people call them
SPREADS = {"bands": "± 1 standard deviation", "bars": "95 % intervals by Student's t"}
# What a SHOWN may name, beside the keys of a run.
SAID = ["algorithm", "panel", "rule", "optimizer", "normalization", "update", "rate", "schedule", "shown", "in_view"]
SAID += ["intervention", "aligned", "ladder", "laddered", "control"]
MEASURES = {"entropy_s": "exp H(s)", "entropy_s2": "exp H(s²)"}
# Matplotlib's own, as seaborn wants them.
DASHES = {"-": "", "--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}
STYLE = {"axes.linewidth": 0.6, "lines.markersize": 3, "legend.frameon": False, "axes.edgecolor": "0.6"}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
STYLE |= {f"{axis}tick.{key}": value for axis in "xy" for key, value in {"major.width": 0.6, "major.size": 2.5}.items()}
# Letters as outlines, the same picture in every viewer; and no random ids: equal data, equal bytes.
STYLE |= {"svg.fonttype": "path", "svg.hashsalt": "rankcollapse"}


def labelled(folder: Path, tuned: Path, arms: dict, studies: dict, shown: dict) -> Tables:
    """The tables of tables.load, in the order of `studies` and `arms`, with arms by their labels.

    A row has what its arm is and its `panel`, and a run on all training images the paper's accuracy. A SHOWN may name
    too the arm as the grid calls it (`algorithm`), whether the study shows it (`shown`), or any arm (`in_view`), or one
    of changed updates (`intervention`), and whether the rule has a B (`aligned`), some blocks alone learn (`ladder`),
    or do in an arm of the run's optimizer and normalization (`laddered`), and hidden weights stay as initialised
    (`control`). A knob that the tables lack has its default, which is what runs did before it.
    """
    tables = load(folder, tuned)
    runs, order = tables["runs"], {"study": [*studies], "arm": [*arms]}
    runs = runs.assign(**{key: value for key, value in RunConfig().model_dump().items() if key not in runs})
    runs = runs.merge(published(TEXTS), how="left", on=["dataset", "architecture", "arm"]).assign(algorithm=runs["arm"])
    runs["paper_percent"] = runs["paper_percent"].where(runs["train_images"].isna())
    runs["shown"] = [arm in shown.get(study, []) for study, arm in zip(runs["study"], runs["arm"], strict=True)]
    runs["in_view"] = runs.groupby("study")["shown"].transform("any")
    changed = runs.loc[runs["shown"] & (runs["update"] != "full"), "study"]
    aligned = runs.loc[runs["arm"].isin(select(tables["alignment"], quantity="gradient")["arm"]), "rule"]
    runs = runs.assign(intervention=runs["study"].isin(changed), aligned=runs["rule"].isin(aligned))
    runs = runs.assign(ladder=runs["learning_blocks"].notna(), control=runs["rule"].str.startswith("frozen"))
    kinds = runs.groupby(["study", "dataset", "optimizer", "normalization"])
    runs = runs.assign(laddered=kinds["ladder"].transform("any"))
    runs = runs.sort_values([*order], key=lambda names: names.map(order[names.name].index), kind="stable")
    runs["panel"] = runs["study"].map(studies) + ", " + runs["dataset"].map({name: SETS[name].label for name in SETS})
    labels = {arm: look["label"] for arm, look in arms.items()}

    def joint(table: DataFrame) -> DataFrame:
        by_arm = [key for key in KEYS if key not in table]  # choices have neither a seed nor an architecture
        rows = runs[[*KEYS, *SAID]].drop(columns=by_arm).drop_duplicates()
        return rows.merge(table).assign(arm=lambda t: t["arm"].map(labels))

    return {name: joint(table) for name, table in {**tables, "runs": runs}.items()}


def only(tables: Tables, wanted: str) -> Tables:
    """The rows of all tables that a SHOWN wants."""
    return {name: table.query(wanted) for name, table in tables.items()}


def measured(tables: Tables, heads: dict[str, str]) -> DataFrame:
    """The runs, with as `value` what of joined.joined a head names, for each head."""
    runs = tables["runs"].merge(joined(tables).drop(columns=["outcome", "train_loss"]), how="left", on=KEYS)
    return concat([runs.assign(head=head, value=runs[column]) for head, column in heads.items()], ignore_index=True)


def grouped(table: DataFrame) -> DataFrame:
    """Frozen nets as one arm, and as another those that no study names; `own` is the arm of a run itself."""
    named = table["arm"].where(table["shown"], OTHERS).mask(table["control"], FROZEN)
    return table.assign(arm=named, own=table["arm"])


def looking(looks: dict, more: dict[str, tuple]) -> dict:
    """The looks, and more of them: colour, marker and dashes by label."""
    return {by: {**looks[by], **{name: look[i] for name, look in more.items()}} for i, by in enumerate(looks)}


def paired(table: DataFrame, arm: str, base: str) -> DataFrame:
    """The runs of an arm, less those of another with the same seed: their `value`, and `theirs` if they have it."""
    one, other = (select(ended(table), algorithm=each).set_index("seed") for each in (arm, base))
    columns = [column for column in ("value", "theirs") if column in table]
    return one.assign(**(one[columns] - other[columns])).dropna(subset="value").reset_index()


def sure(values: Series, tell: Callable = interval) -> str:
    """The mean with its 95 % interval, in words."""
    return tell(*reading(values.dropna())[1:])


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
    """`; 2 diverged (FA; FA + BN); 1 missing (BP)`, or nothing; of more than MANY arms their number."""
    parts = [(outcome, select(runs, outcome=outcome)["arm"]) for outcome in ("diverged", "missing")]
    return "".join(f"; {len(arms)} {outcome} ({_listed(arms.unique())})" for outcome, arms in parts if len(arms))


def _listed(arms: list[str]) -> str:
    return "; ".join(arms) if len(arms) <= MANY else f"of {len(arms)} arms"


def standing(runs: DataFrame, spread: str, over: Callable) -> str:
    """How many runs a figure's means are over, what became of the others, and how the spread over seeds is shown."""
    counts = over(runs).groupby(ARM)["seed"].count().reindex(runs[ARM].drop_duplicates(), fill_value=0)
    n = " to ".join(map(str, sorted({counts.min(), counts.max()}))) if counts.min() else f"up to {counts.max()}"
    kind = "Finished runs" if over is finished else "Runs, a diverged one with the accuracy that it ended with"
    band = f"; {spread}: {SPREADS.get(spread)} over seeds" * bool(spread and counts.max() > 1)
    return f"{kind}: n = {n} an arm, {counts.sum()} in all{lost(runs)}{band}."


def facets(table: DataFrame, height: float, **more: object) -> FacetGrid:
    """Axes, `height` inches high, for each panel, and each `head` in it if the table has such; more: of FacetGrid.

    Panels with more than two heads are rows, those with two columns, if titles of one line fit; others are up to four.
    """
    across = table.groupby("panel")["head"].transform(lambda heads: heads.factorize()[0]) if "head" in table else 0
    n, heads, most = table["panel"].nunique(), np.max(across) + 1, 14 * WIDTH // table["panel"].str.len().max()
    rowwise = heads > 2 or (heads == 2 and not 1 < n <= most)
    columns = heads if rowwise else n if heads == 2 else -(-n // -(-n // int(max(min(most, 4), 1))))
    rows = n * heads // columns if heads > 1 else -(-n // columns)
    places = {"row": "panel", "col": "across"} if rowwise else {"row": "across", "col": "panel"}
    places = places if heads > 1 else {"col": "panel", "col_wrap": columns}
    height = min(height, (PAGE - 1.3) / rows)
    more = {"height": height, "aspect": WIDTH / columns / height, "sharex": False, "sharey": False, **more}
    grid = FacetGrid(table.assign(across=across), **places, **more).set_titles("")
    grid.figure.set_figwidth(WIDTH)  # to the last bit
    for axes in {*grid.axes.flat} - {axes for axes, _ in cells(grid)}:
        axes.set_visible(False)
    for axes, part in cells(grid):
        head = part["head"].iloc[0] if "head" in part else ""
        axes.set_title(head)
        if part["across"].iloc[0] == 0:
            axes.set_title(part["panel"].iloc[0] + "\n" * len(head.splitlines()), **TITLE)
    return grid


def cells(grid: FacetGrid, **wanted: object) -> Iterator[tuple[Axes, DataFrame]]:
    """The axes that the grid's table has such rows for, as select has them, each with these rows."""
    for (row, column, _), rows in grid.facet_data():
        part = select(rows, **wanted)
        if len(part):
            yield grid.facet_axis(row, column), part


def share(grid: FacetGrid, *columns: str, axis: str = "y") -> None:
    """One axis for all axes whose rows agree in these columns: another data set has another range."""
    found: dict[tuple, Axes] = {}
    for axes, part in cells(grid):
        other = found.setdefault(tuple(part[[*columns]].iloc[0]), axes)
        if other is not axes:
            getattr(axes, f"share{axis}")(other)


def legend(grid: FacetGrid, looks: dict, **more: object) -> None:
    """One of all arms, for all panels; more: see handles."""
    explain(grid.figure, handles(grid.data, looks, **more), grid.data)


def handles(table: DataFrame, looks: dict, words: dict | None = None, **more: object) -> list[Line2D]:
    """Of a legend: the arms of a table; words: more on an arm; more: of its lines."""
    keys, arms = {"color": "palette", "marker": "markers", "dashes": "dashes"}, {*table["arm"]}
    look = {arm: {key: looks[by][arm] for key, by in keys.items()} for arm in looks["palette"] if arm in arms}
    return [Line2D([], [], **{**look[arm], "label": arm + (words or {}).get(arm, ""), **more}) for arm in look]


def explain(made: Figure | SubFigure, handles: list[Line2D], table: DataFrame, width: float = WIDTH) -> None:
    """A legend below all axes, in as few rows as fit, with marks that the rows of the table have."""
    cross = {"color": GREY, "marker": "x", "markeredgewidth": 1.3, "linewidth": 0, "label": "diverged"}
    handles = handles + [Line2D([], [], **cross)] * int((table["outcome"] == "diverged").any())
    handles += [Line2D([], [], **PAPER)] * int("theirs" in table and table["theirs"].notna().any())
    if not handles:
        return
    widths = [0.055 * len(each.get_label()) + 0.55 for each in handles]  # inches
    fits = [n for n in range(2, len(widths) + 1) if sum(map(max, np.array_split(widths, n))) <= width]
    rows = -(-len(widths) // max(fits, default=1))
    made.legend(handles=handles, loc="outside lower center", ncols=-(-len(widths) // rows), handlelength=2.6)
    if isinstance(made, Figure):
        made.set_figheight(made.get_figheight() + 0.15 + 0.15 * rows)


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


def points(grid: FacetGrid | list[tuple[Axes, DataFrame]], x: str, y: str, looks: dict) -> None:
    """A point for each finished run, and a cross for each that diverged, on a grid or on axes, each with its rows."""
    for axes, rows in cells(grid) if isinstance(grid, FacetGrid) else grid:
        for arm, part in rows.groupby("arm", sort=False):
            look = {"color": looks["palette"][arm], "zorder": 1 + (arm != OTHERS)}
            axes.scatter(x, y, 16, data=finished(part), marker=looks["markers"][arm], linewidth=0, **look)
            axes.scatter(x, y, data=select(part, outcome="diverged"), **look | CROSS)


def diverged(grid: FacetGrid, x: str, y: str, looks: dict, **limits: object) -> None:
    """Every diverged run, thin, up to its cross, held within the limits that the finished runs and Axes.set give."""
    thin = {"units": "seed", "estimator": None, "linewidth": 0.7, "alpha": 0.7, "markersize": 0, "style": "arm"}
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
        sns.scatterplot(part.groupby(["arm", "seed"]).tail(1), **look, **CROSS, palette=looks["palette"])


def dots(axes: Axes, table: DataFrame, looks: dict, across: bool = False) -> None:
    """Of each arm at each `at`, across on the y axis, the mean `value` of all that ended, its interval, and crosses."""
    for (arm, at), part in table.groupby(["arm", "at"], sort=False):
        _, mean, low, high = reading(ended(part)["value"].dropna())
        (x, y), way = ((mean, at), "xerr") if across else ((at, mean), "yerr")
        look = {"color": looks["palette"][arm], "marker": looks["markers"][arm], "markersize": 5, "markeredgewidth": 0}
        axes.errorbar(x, y, **look, linewidth=1, **{way: None if np.isnan(low) else [[mean - low], [high - mean]]})
        lost = select(part, outcome="diverged").dropna(subset="value")
        xy = (lost["value"], lost["at"]) if across else (lost["at"], lost["value"])
        axes.scatter(*xy, color=look["color"], **CROSS)


def rows(axes: Axes, table: DataFrame, looks: dict, names: list[str], shifts: tuple = (0,)) -> None:
    """Dots in rows, each with its name, the paper's value if there is one, and in numbers what has each `shift`."""
    dots(axes, table, looks, across=True)
    for row in range(len(names)):
        here = table[table["at"].round() == row]
        said = [sure(select(ended(here), shift=shift)["value"], shortly) for shift in shifts]
        if "theirs" in here and here["theirs"].notna().any():
            axes.plot(here["theirs"].max(), here["at"].min(), **PAPER)
            said.append(f"({number(here['theirs'].max())})")
        axes.text(1.03, row, " | ".join(said), transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL)
    axes.set(yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5))
    axes.set_yticklabels(names if "head" in table or axes.get_subplotspec().is_first_col() else [])


def shortly(mean: float, low: float, high: float) -> str:
    """The mean alone, with as many digits as its interval lets it have."""
    return number(mean, (high - low) / 2)


def join(axes: Axes, table: DataFrame, **look: object) -> None:
    """A line through the means of all that ended."""
    means = ended(table).groupby("at")["value"].mean().dropna()
    axes.plot(means.index, means, **{"linewidth": 1, "zorder": 1, "color": "0.7", **look})


def doubling(axis: Axis) -> None:
    """Logarithms to base 2 in words."""
    axis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axis.set_major_formatter(lambda log, _: f"{2**log:.3g}")


def chance(grid: FacetGrid, line: str = "axhline", **wanted: object) -> None:
    """A dotted line at the accuracy of a guess."""
    for axes, part in cells(grid, **wanted):
        getattr(axes, line)(100 * SETS[part["dataset"].iloc[0]].chance, **DOTTED)


def save(figure: Figure, caption: list[str], out: Path) -> None:
    """OUT.svg, OUT.pdf and OUT.txt, without a date in them. The caption has a line for each part that is not empty."""
    files.write(f"{out}.svg", lambda path: figure.savefig(path, metadata={"Date": None}))
    files.write(f"{out}.pdf", lambda path: figure.savefig(path, metadata={"CreationDate": None}))
    files.write_text(f"{out}.txt", "".join(f"{line}\n" for line in caption if line))
    plt.close(figure)


def figure(name: str, results: Path, tuned: Path, looks: dict, out: Path) -> None:
    """Make a figure of the tables in `results`. looks: {"arms": {...}, "studies": {...}, "shown": {...}}."""
    module = importlib.import_module(f"rankcollapse.render.figures.{name}")
    plt.switch_backend("agg")
    sns.set_theme("paper", "ticks", font="DejaVu Sans", font_scale=0.8, rc=STYLE)  # a font that comes with matplotlib
    tables = labelled(results / "tables", tuned, **looks)
    tables = tables if module.SHOWN is None else only(tables, module.SHOWN)
    begun = [*ended(tables["runs"])["study"].unique()]  # a study of which nothing has run yet has no panel
    tables = only(tables, f"study in {begun}") if begun else tables
    arms = {arm["label"]: (arm["colour"], arm["marker"], DASHES[arm["line"]]) for arm in looks["arms"].values()}
    drawn = looking({"palette": {}, "markers": {}, "dashes": {}}, arms | GROUPS)
    runs = tables["runs"]
    table = module.data(tables) if len(finished(runs)) else runs  # without one tables may have no rows to work on
    if finished(table).empty:  # the files are still expected
        made, words = plt.figure(figsize=(WIDTH, 0.5)), [f"{titles()[name].partition('. ')[2]}: {NOTHING}."]
        made.text(0.5, 0.5, *words, ha="center", va="center", color=GREY)
    else:
        made = module.draw(table, drawn).figure
        made.set_layout_engine("constrained", w_pad=0.05, h_pad=0.05, wspace=0.02, hspace=0.02)
        said = module.caption(table)
        what, numbers, *rest = (said, "") if isinstance(said, str) else said
        words = [what, f"{NUMBERS}{numbers}" * bool(numbers), *rest]
        if module.SPREAD is not None:
            drawn_runs = runs[runs["study"].isin(table["study"])]
            words.append(standing(drawn_runs, module.SPREAD, getattr(module, "OVER", finished)))
    save(made, [*words, f"{SCRIPT}rankcollapse/render/figures/{name}.py."], out)
