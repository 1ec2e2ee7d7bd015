"""What figures share: looks, panels, lines over seeds, points, marks of runs that failed, words of captions, saving.

A figure's script hands four things to main: SHOWN, the runs it shows, as a query on runs.csv; data(tables), the tidy
table that it is drawn from; draw(table, runs, looks); caption(table, runs, looks). Tables and runs are those of
analysis.load, cut to the runs shown and in drawing order. `looks` has what arms and studies are drawn with and called:
{"label": {arm: label}, "colour": ..., "marker": ..., "line": ..., "studies": {study: title}}.
"""

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from analysis import ARM, KEYS, PANEL, finished, load, select
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame, Series, concat
from seaborn import FacetGrid

from rankcollapse import files
from rankcollapse.datasets import SETS

WIDTH = 6.9  # inches: the text width of the paper, so that type is printed in the size given here
PAGE = 8.2  # inches: what a page holds above a caption
SMALL = 7  # points: the smallest type
GREY = "#666666"
WARNING = "#a50026"
BANDS = "bands: ± 1 standard deviation over seeds"
BARS = "bars: mean ± 1 standard deviation over seeds"
MEASURES = {"entropy_s": "exp H(s)", "entropy_s2": "exp H(s²)"}
# matplotlib's own, as seaborn wants them
DASHES = {"-": "", "--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}
TICKS = {"color": "0.6", "labelcolor": "black", "major.width": 0.6, "major.size": 2.5, "major.pad": 3}
STYLE = {f"{axis}tick.{key}": value for axis in "xy" for key, value in TICKS.items()}
STYLE |= {"axes.edgecolor": "0.6", "axes.linewidth": 0.6, "lines.markersize": 3, "legend.frameon": False}
# Letters as outlines, the same picture in every viewer; and no random ids: equal data, equal bytes.
STYLE |= {"svg.fonttype": "path", "svg.hashsalt": "rankcollapse"}


# ---- rows ----


def first(table: DataFrame) -> DataFrame:
    """The finished rows of the first panel that has any: what a caption gives numbers of."""
    return select(finished(table), **finished(table)[PANEL].iloc[0])


def layers(table: DataFrame) -> list[str]:
    """In the order of the net, as the arm has them that has most, since a frozen one has few; `all` is no layer."""
    named = table[table["layer"] != "all"].groupby("arm", sort=False)["layer"]
    return max(([*names.unique()] for _, names in named), key=len, default=[])


def evenly(names: list, most: int) -> list:
    """At most `most` of the names: the first, the last, and others evenly between."""
    return [names[i] for i in np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)]


def diverged(table: DataFrame, *values: str) -> DataFrame:
    """The rows of diverged runs in which all `values` are finite."""
    return table[(table["outcome"] == "diverged") & np.isfinite(table[[*values]]).all(axis=1)]


# ---- words ----


def panel_name(table: DataFrame, looks: dict) -> str:
    return f"{looks['studies'][table['study'].iloc[0]]}, {SETS[table['dataset'].iloc[0]].label}"


def layer_name(layer: str) -> str:
    """`block3.residual.conv1` is block 3, conv 1; `head` is the classifier."""
    layer = layer.replace(".residual.", ", ").replace(".shortcut.conv", ", shortcut").replace("head", "classifier")
    return re.sub(r"([a-z])(\d)", r"\1 \2", layer)


def mean_std(values: Series, digits: int | None = None) -> str:
    """`43.6 ± 1.1`, without the deviation for a single value. By default whole numbers from 100, two digits below 1."""
    if not values.count():
        return "none"
    mean = values.mean()
    digits = digits if digits is not None else 0 if abs(mean) >= 100 else 1 if abs(mean) >= 1 else 2
    return f"{mean:.{digits}f}" + (f" ± {values.std():.{digits}f}" if values.count() > 1 else "")


def under(ends: DataFrame, value: str, runs: DataFrame, looks: dict, digits: int | None = None) -> str:
    """`150 ± 3 under BP and 23 ± 1 under FA`: the arms of reference, under plain SGD and without normalisation."""
    plain = select(runs, optimizer="sgd", normalization="none", update="full")
    plain = plain[plain["arm"].isin(ends["arm"])]
    arms = [arm for rule in ("bp", "fa") for arm in select(plain, rule=rule)["arm"].unique()[:1]]
    words = [f"{mean_std(select(ends, arm=arm)[value], digits)} under {looks['label'][arm]}" for arm in arms]
    return " and ".join(words) or "neither plain BP nor plain FA finished"


def standing(runs: DataFrame, looks: dict, spread: str) -> str:
    """How many runs a figure stands on, what became of the others, and how the spread over seeds is shown."""
    counts = (runs["outcome"] == "finished").groupby([runs[key] for key in ARM]).sum()
    if not counts.any():
        return f"none of {len(runs)} runs finished" if len(runs) else "no such run in this grid"
    n = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    words = f"n = {n} finished {'runs' if counts.max() > 1 else 'run'} an arm, {counts.sum()} in all"
    gone = runs["outcome"].value_counts().reindex(["diverged", "missing"]).dropna()
    words += ", besides " * (len(gone) > 0) + " and ".join(
        f"{number:.0f} {outcome}" for outcome, number in gone.items()
    )
    empty = [panel_name(part, looks) for _, part in runs.groupby(PANEL, sort=False) if finished(part).empty]
    words += f" (all of {'; '.join(empty)})" if empty else ""
    return words + (f"; {spread}" if spread and counts.max() > 1 else "")


def failures(runs: DataFrame, looks: dict) -> list[str]:
    """`× 1 of 3 diverged: FA · FA + BN`, `3 of 3 missing: BP`, for the runs of one panel; `FA + BN` never breaks."""
    found: dict[str, list[str]] = {}
    for outcome, sign in (("diverged", "× "), ("missing", "")):
        for arm, outcomes in runs.groupby("arm", sort=False)["outcome"]:
            if n := (outcomes == outcome).sum():
                found.setdefault(f"{sign}{n} of {len(outcomes)} {outcome}", []).append(looks["label"][arm])
    texts = [f"{what}: {' · '.join(arms)}" for what, arms in found.items()]
    return [re.sub(r" (?=[+·])|(?<=[+×]) ", "\u00a0", text) for text in texts]


# ---- panels: a table's columns `down` and `across` say in which axes a row is drawn ----


def strips(table: DataFrame, heads: Callable[[DataFrame], list[str]]) -> DataFrame:
    """A strip of axes for each panel, one for each of heads(panel's rows); a row belongs to the one in its `head`."""
    parts = []
    for down, (_, part) in enumerate(table.groupby(PANEL, sort=False)):
        across = part["head"].map({head: i for i, head in enumerate(heads(part))})
        parts.append(part.assign(down=down, across=across).dropna(subset="across"))
    return concat(parts)


def stacks(table: DataFrame, row: Series | int = 0, most: int = 4) -> DataFrame:
    """A stack of axes for each panel, a row of the table in the `row`th of them; at most `most` stacks side by side."""
    panel = table.groupby(PANEL, sort=False).ngroup()
    n = panel.max() + 1
    columns = n if n <= most else min((most, most - 1), key=lambda c: -n % c)
    return table.assign(down=panel // columns * (np.max(row) + 1) + row, across=panel % columns)


def facets(table: DataFrame, share: list[str] | None = None, **more: object) -> FacetGrid:
    """Axes for every pair of `down` and `across`, under its `head`. Those that agree in `share` (all: None) share y."""
    more = {"height": 4, "aspect": WIDTH / 4 / table["across"].nunique(), "sharex": False, "sharey": not share, **more}
    grid = FacetGrid(table, row="down", col="across", **more).set_titles("")
    places = {*zip(table["down"], table["across"], strict=True)}
    for place in {*grid.axes_dict} - places:
        grid.axes_dict[place].set_visible(False)
    for axes, part in cells(grid, table):
        axes.set_title(part["head"].iloc[0] if "head" in part else "")
    for _, part in table.groupby(share) if share else ():
        first, *others = sorted({*zip(part["down"], part["across"], strict=True)})
        for down, across in others:
            grid.axes_dict[down, across].sharey(grid.axes_dict[first])
            grid.axes_dict[down, across].tick_params(labelleft=(down, across - 1) not in [first, *others])
    return grid


def cells(grid: FacetGrid, table: DataFrame) -> Iterator[tuple[Axes, DataFrame]]:
    """The axes that the table has rows for, each with its rows."""
    for place, part in table.groupby(["down", "across"]):
        yield grid.axes_dict[place], part


def name_panels(grid: FacetGrid, runs: DataFrame, looks: dict) -> None:
    """Over each panel its name and the runs that it lacks, over the titles of its axes."""
    tops = []
    for panel, part in grid.data.groupby(PANEL, sort=False):
        letters = int(15 * WIDTH * part["across"].nunique() / grid.axes.shape[1]) - 3
        lacks = failures(select(runs, **dict(zip(PANEL, panel, strict=True))), looks)
        notes = [line for text in lacks for line in textwrap.wrap(text, letters)]
        tops.append((*min(zip(part["down"], part["across"], strict=True)), part, letters, notes))
    for down, across, part, letters, notes in tops:
        axes = grid.axes_dict[down, across]
        study, data = panel_name(part, looks).rsplit(", ", 1)
        name = f"{study}, {data}" if letters > 50 else f"{textwrap.fill(study, int(0.9 * letters))}\n{data}"
        below = len(axes.get_title().splitlines()) * "\n"
        most = max(len(others) for row, *_, others in tops if row == down)  # names in a row stand at one height
        axes.set_title(name + most * "\n" + below, loc="left", fontweight="bold", linespacing=1.5)
        notes = "\n".join(notes) + (most - len(notes)) * "\n" + below
        axes.set_title(notes, loc="right", x=0, ha="left", fontsize=SMALL, color=WARNING, linespacing=1.6)


def legend_below(grid: FacetGrid, looks: dict, joined: bool) -> None:
    """One legend for all panels, below them, read row by row: in rows of even length, as few as fit."""
    arms, length = grid.data["arm"].unique(), 2.4 if joined else 1.0
    most = int(WIDTH / (0.055 * max(len(looks["label"][arm]) for arm in arms) + 0.1 * length + 0.2))
    columns = -(-len(arms) // -(-len(arms) // most))
    by_row = [arm for column in range(columns) for arm in arms[column::columns]]
    keys = {"color": "colour", "marker": "marker", "label": "label", "linestyle": "line"}
    handles = [Line2D([], [], **{key: looks[look][arm] for key, look in keys.items()}) for arm in by_row]
    for handle in handles if not joined else ():
        handle.set_linestyle("")
    spaces = {"ncols": columns, "handlelength": length, "columnspacing": 1.2}
    grid.figure.legend(handles=handles, loc="outside lower center", **spaces)


def finish(grid: FacetGrid, runs: DataFrame, looks: dict, height: float, legend: str = "lines") -> Figure:
    """Names, legend (lines, points or none), no label said twice, and `height` inches for axes, whatever is around."""
    name_panels(grid, runs, looks)
    if legend != "none":
        legend_below(grid, looks, joined=legend == "lines")
    for row, below in zip(grid.axes[:-1], grid.axes[1:], strict=True):
        said = {axes.get_xlabel() for axes in below if axes.get_visible()}
        for axes in row:
            axes.set_xlabel("" if axes.get_xlabel() in said else axes.get_xlabel())
    for axes in grid.axes[:, 1:].flat:
        axes.set_ylabel("")
    grid.figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.05, wspace=0.02, hspace=0.02)
    for _ in range(2):  # the second time for what the first has moved
        grid.figure.draw_without_rendering()
        more = height - grid.axes[0, 0].get_window_extent().height / grid.figure.dpi
        grid.figure.set_figheight(min(PAGE, grid.figure.get_figheight() + len(grid.axes) * more))
    return grid.figure


def epochs(grid: FacetGrid) -> None:
    """x axes in whole epochs from 0; when all lines are drawn."""
    grid.set(xlabel="epoch", xlim=(0, None))
    for axes in grid.axes.flat:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))


# ---- marks ----


def semantics(looks: dict) -> dict:
    """What tells arms apart, as seaborn wants it."""
    return {"hue": "arm", "style": "arm", "palette": looks["colour"], "markers": looks["marker"], "legend": False}


def crosses(axes: Axes, table: DataFrame, x: str, y: str, looks: dict) -> None:
    """The marks of diverged runs."""
    mark = {"marker": "x", "s": 22, "linewidth": 1.3, "clip_on": False, "zorder": 5}
    sns.scatterplot(table, x=x, y=y, ax=axes, hue="arm", palette=looks["colour"], legend=False, **mark)


def lines(grid: FacetGrid, table: DataFrame, x: str, y: str, looks: dict, limit: Callable | None = None) -> None:
    """Each arm's mean over the finished runs, with a band, and every diverged run, thin, up to its cross.

    The diverged runs come last: they are held within the limits that the finished ones and limit(axes) have set.
    """
    look = semantics(looks) | {"dashes": {arm: DASHES[line] for arm, line in looks["line"].items()}}
    band = {"errorbar": "sd", "err_kws": {"alpha": 0.18, "linewidth": 0}, "markeredgewidth": 0, "markevery": 0.25}
    drawn = [*cells(grid, finished(table)[np.isfinite(finished(table)[y])])]
    for axes, part in drawn:
        sns.lineplot(part, x=x, y=y, ax=axes, **band, **look)
    for axes, _ in drawn:
        if limit:
            limit(axes)
        axes.set_ylim(axes.get_ylim())
    for axes, part in cells(grid, diverged(table, y).sort_values(x, kind="stable")):
        if not axes.get_autoscaley_on():
            part = part.assign(**{y: part[y].clip(*axes.get_ylim())})
        thin = {"units": "seed", "estimator": None, "linewidth": 0.7, "alpha": 0.7, "markersize": 0}
        sns.lineplot(part, x=x, y=y, ax=axes, **thin, **look)
        crosses(axes, part.groupby(["arm", "seed"]).tail(1), x, y, looks)


def points(grid: FacetGrid, table: DataFrame, x: str, y: str, looks: dict) -> None:
    """A point for each finished run, a cross for each diverged one."""
    for axes, part in cells(grid, finished(table)):
        sns.scatterplot(part, x=x, y=y, ax=axes, s=16, linewidth=0, **semantics(looks))
    for axes, part in cells(grid, diverged(table, x, y)):
        crosses(axes, part, x, y, looks)


def means(grid: FacetGrid, table: DataFrame, x: str, y: str, looks: dict, orient: str) -> None:
    """A tick at the mean of each arm's finished runs, and a bar of one standard deviation each way."""
    bar = {"err_kws": {"linewidth": 1}, "alpha": 0.6, "linestyle": "none", "markeredgewidth": 1}
    bar |= {"marker": "_", "markersize": 30} if orient == "x" else {"marker": "|", "markersize": 10}
    bar |= {"hue": "arm", "palette": looks["colour"], "legend": False}
    for axes, part in cells(grid, finished(table)):
        sns.pointplot(part, x=x, y=y, ax=axes, errorbar="sd", orient=orient, native_scale=True, **bar)


def beside(runs: DataFrame) -> Series:
    """A shift for each run of an arm, from -0.5 to 0.5, so that none hides another."""
    seeds = runs.groupby(ARM)["seed"]
    n = seeds.transform("size")
    return (seeds.cumcount() - (n - 1) / 2) / n


def chance(grid: FacetGrid, table: DataFrame, upright: bool = False) -> None:
    """A dotted line at the accuracy of a guess."""
    for axes, part in cells(grid, table):
        line = axes.axvline if upright else axes.axhline
        line(100 * SETS[part["dataset"].iloc[0]].chance, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)


# ---- files ----


def save(figure: Figure, caption: str, out: Path) -> None:
    """OUT.svg, OUT.pdf and OUT.txt, without a date in them."""
    files.write(f"{out}.svg", lambda path: figure.savefig(path, metadata={"Date": None}))
    files.write(f"{out}.pdf", lambda path: figure.savefig(path, metadata={"CreationDate": None}))
    files.write_text(f"{out}.txt", caption + "\n")
    plt.close(figure)


def main(doc: str, shown: str, data: Callable, draw: Callable, caption: Callable, spread: str = BANDS) -> None:
    """`shown` may name, besides columns of runs.csv, `intervention`, whether any run of the study has changed updates,
    and `aligned`, whether its rule has rows in alignment.csv.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--tables", type=Path, required=True, help="folder of runs.csv and the other tables")
    parser.add_argument("--looks", type=json.loads, required=True, help='JSON: {"arms": {...}, "studies": {...}}')
    parser.add_argument("--out", type=Path, required=True, help="path of the figure, without a suffix")
    args = parser.parse_args()
    plt.switch_backend("agg")
    sns.set_theme("paper", "ticks", font="DejaVu Sans", font_scale=0.8, rc=STYLE)  # a font that comes with matplotlib
    arms, studies = args.looks["arms"], args.looks["studies"]
    looks = {key: {arm: arms[arm][key] for arm in arms} for key in ("label", "colour", "marker", "line")}
    looks["studies"], order = studies, {"study": [*studies], "arm": [*arms]}
    tables = load(args.tables)
    runs, cosines = tables["runs"], tables["alignment"]
    changed, aligned = runs.loc[runs["update"] != "full", "study"], runs.loc[runs["arm"].isin(cosines["arm"]), "rule"]
    runs = runs.assign(intervention=runs["study"].isin(changed), aligned=runs["rule"].isin(aligned)).query(shown)
    runs = runs.sort_values([*order], key=lambda names: names.map(order[names.name].index), kind="stable")
    cut = {name: runs[KEYS].merge(table, on=KEYS) for name, table in tables.items()}
    table = data(cut) if len(finished(runs)) else runs  # without a finished run tables may have no rows to work on
    title, words = doc.split(".")[1].strip(), standing(runs, looks, spread)
    if finished(table).empty:  # the files are still expected
        figure = plt.figure(figsize=(WIDTH, 0.5))
        figure.text(0.5, 0.5, f"{title}: no finished run to show.", ha="center", va="center", color=GREY)
        save(figure, f"{title}: {words}.", args.out)
    else:
        save(draw(table, runs, looks), f"{caption(table, runs, looks)}; {words}.", args.out)
