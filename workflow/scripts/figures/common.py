"""What the figures share: style, tables, panels, lines over seeds, marks of runs that failed, captions, saving.

A figure's script has draw(tables, grid) and caption(tables, grid) and ends in main(__doc__, draw, caption). `tables`
are those of collect.py, cut to the arms and studies of `grid`, which also says how an arm looks:
{"arms": {arm: {"label", "colour", "marker", "line"}}, "studies": {study: title}}, both in drawing order.
"""

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from rankcollapse import files

Tables = dict[str, pd.DataFrame]
Panel = tuple[str, str]  # study, dataset

WIDTH = 6.9  # inches: the text width of the paper, so that type is printed in the size given here
PAGE = 8.2  # inches: what a page holds above a caption
SMALL = 7  # points: the smallest type
GREY = "#666666"
WARNING = "#a50026"
DATASETS = {"cifar10": ("CIFAR-10", 10), "cifar100": ("CIFAR-100", 1), "digits": ("digits", 10)}  # name, chance in %
MEASURES = {"entropy_s": "exp H(s)", "entropy_s2": "exp H(s²)"}

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: equal letters everywhere
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.6,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "xtick.color": "#999999",
    "ytick.color": "#999999",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "lines.markeredgewidth": 0,
    "svg.fonttype": "path",  # letters as outlines: the same picture in every viewer
    "svg.hashsalt": "rankcollapse",  # and no random ids: equal data, equal bytes
    "pdf.fonttype": 42,
}


# ---- tables ----


def load(folder: Path, grid: dict) -> Tables:
    """The tables, cut to the grid, accuracies in %. A row has its run's `outcome`, and `epoch` where it has `step`."""
    tables = {path.name.split(".")[0]: pd.read_csv(path) for path in sorted(folder.glob("*.csv*"))}
    runs, epochs_ = tables["runs"], tables["epochs"]
    run, arm = ["study", "dataset", "arm", "seed"], ["study", "dataset", "arm"]
    per_epoch = epochs_.assign(per_epoch=epochs_["step"] / epochs_["epoch"]).groupby(arm)["per_epoch"].first()
    for name, table in tables.items():
        if name != "runs":
            table = table.merge(runs[[*run, "outcome"]], on=run, how="left")
        if "step" in table and "epoch" not in table:
            table = table.join(per_epoch, on=arm)
            table["epoch"] = table["step"] / table.pop("per_epoch")
        accuracies = [column for column in table if column.endswith("_accuracy")]
        table[accuracies] *= 100
        tables[name] = cut(table, grid)
    return tables


def cut(table: pd.DataFrame, grid: dict) -> pd.DataFrame:
    return table[table["arm"].isin(grid["arms"]) & table["study"].isin(grid["studies"])]


def finished(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["outcome"] == "finished"]


def of(table: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    return table[(table["study"] == panel[0]) & (table["dataset"] == panel[1])]


def panels(table: pd.DataFrame, grid: dict) -> list[Panel]:
    """The pairs of study and dataset that the table has rows of, in the order of the grid."""
    found = table[["study", "dataset"]].drop_duplicates().itertuples(index=False, name=None)
    return sorted(found, key=lambda panel: list(grid["studies"]).index(panel[0]))


def arms_in(table: pd.DataFrame, grid: dict) -> dict[str, dict]:
    """The arms of the grid that the table has rows of."""
    present = set(table["arm"])
    return {arm: look for arm, look in grid["arms"].items() if arm in present}


def last(table: pd.DataFrame, value: str, by: Iterable[str] = ()) -> pd.DataFrame:
    """The last row with a finite value of every run, or of every run and `by`."""
    keys = ["study", "dataset", "arm", "seed", *by]
    return table[np.isfinite(table[value])].sort_values("step", kind="stable").groupby(keys, sort=False).tail(1)


# ---- words ----


def dataset_name(dataset: str) -> str:
    return DATASETS.get(dataset, (dataset,))[0]


def panel_name(panel: Panel, grid: dict) -> str:
    return f"{grid['studies'][panel[0]]}, {dataset_name(panel[1])}"


def layer_name(layer: str) -> str:
    """`block3.residual.conv1` is block 3, conv 1; `head` is the classifier."""
    layer = layer.replace(".residual.", ", ").replace(".shortcut.conv", ", shortcut").replace("head", "classifier")
    return re.sub(r"([a-z])(\d)", r"\1 \2", layer)


def evenly(names: list[str], most: int) -> list[str]:
    """At most `most` of the names: the first, the last, and others evenly between."""
    return [names[i] for i in np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)]


def mean_std(values: pd.Series, digits: int | None = None) -> str:
    """`43.6 ± 1.1`, without the deviation for a single value. By default whole numbers from 100, two digits below 1."""
    values = values[np.isfinite(values)]
    if values.empty:
        return "none"
    mean = values.mean()
    digits = digits if digits is not None else 0 if abs(mean) >= 100 else 1 if abs(mean) >= 1 else 2
    return f"{mean:.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")


def references(runs: pd.DataFrame, grid: dict) -> list[str]:
    """The first arm of each rule that has a finished run: the two that a caption compares."""
    done = finished(runs)
    rules = {arm: done.loc[done["arm"] == arm, "rule"].iloc[0] for arm in arms_in(done, grid)}
    return [arm for i, (arm, rule) in enumerate(rules.items()) if rule not in list(rules.values())[:i]]


def under(values: dict[str, pd.Series], grid: dict, digits: int | None = None) -> str:
    """`150 ± 3 under BP and 23 ± 1 under FA`."""
    return " and ".join(f"{mean_std(v, digits)} under {grid['arms'][arm]['label']}" for arm, v in values.items())


def standing(runs: pd.DataFrame, grid: dict, spread: str = "bands: ± 1 standard deviation over seeds") -> str:
    """How many runs a figure stands on, what became of the others, and how the spread over seeds is shown."""
    counts = (runs["outcome"] == "finished").groupby([runs[k] for k in ("study", "dataset", "arm")]).sum()
    if not counts.any():
        return f"none of {len(runs)} runs finished" if len(runs) else "no such run in this grid"
    n = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    lost = [f"{(runs['outcome'] == o).sum()} {o}" for o in ("diverged", "missing") if (runs["outcome"] == o).any()]
    empty = [panel_name(panel, grid) for panel in panels(runs, grid) if finished(of(runs, panel)).empty]
    return (
        f"n = {n} finished {'runs' if counts.max() > 1 else 'run'} an arm, {counts.sum()} in all"
        + (f", besides {' and '.join(lost)}" if lost else "")
        + (f" (all of {'; '.join(empty)})" if empty else "")
        + (f"; {spread}" if spread and counts.max() > 1 else "")
    )


def failures(runs: pd.DataFrame, grid: dict) -> list[str]:
    """`× 1 of 3 diverged: FA · FA + BN`, `3 of 3 missing: BP`, for the runs of one panel; `FA + BN` never breaks."""
    found: dict[str, list[str]] = {}
    for outcome, sign in (("diverged", "× "), ("missing", "")):
        for arm, look in arms_in(runs, grid).items():
            outcomes = runs.loc[runs["arm"] == arm, "outcome"]
            if (outcomes == outcome).any():
                what = f"{sign}{(outcomes == outcome).sum()} of {len(outcomes)} {outcome}"
                found.setdefault(what, []).append(look["label"])
    texts = [f"{what}: {' · '.join(arms)}" for what, arms in found.items()]
    return [re.sub(r" (?=[+·])|(?<=[+×]) ", "\u00a0", text) for text in texts]


# ---- panels ----


def figure(height: float) -> Figure:
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    made.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.03)
    return made


def nothing(what: str) -> Figure:
    """A figure that says that there is none: the file is still expected."""
    empty = figure(0.5)
    empty.text(0.5, 0.5, f"No finished run in this grid has {what}.", ha="center", va="center", color=GREY)
    return empty


def blocks(
    found: list[Panel],
    labels: Sequence[str],
    height: float = 1.4,
    most: int = 4,
    share_y: Callable[[Panel], object] = lambda panel: "all",
) -> tuple[Figure, list[list[Axes]]]:
    """A stack of axes for each panel, with a row for each y label, and at most `most` side by side; [panel][row].

    A row of axes has one y axis in common for all panels with the same share_y(panel); a stack shares its x axis.
    """
    rows = len(labels)
    columns = min(len(found), most) if len(found) <= most else min((most, most - 1), key=lambda c: -len(found) % c)
    down = -(-len(found) // columns)
    made = figure(down * (rows * height + 0.5))
    cells = made.add_gridspec(down * rows, columns)
    stacks: list[list[Axes]] = []
    for i, panel in enumerate(found):
        twin = next((k for k in range(i) if share_y(found[k]) == share_y(panel)), None)
        beside = i % columns > 0 and share_y(found[i - 1]) == share_y(panel)
        stack: list[Axes] = []
        for row in range(rows):
            shared = {"sharex": stack[0] if stack else None, "sharey": stacks[twin][row] if twin is not None else None}
            axes = made.add_subplot(cells[i // columns * rows + row, i % columns], **shared)
            axes.tick_params(labelbottom=row == rows - 1, labelleft=not beside)
            axes.set_ylabel(labels[row] if i % columns == 0 else "")
            stack.append(axes)
        stacks.append(stack)
    return made, stacks


def strips(
    found: list[Panel], heads: list[list[str]], label: str, tables: Tables, grid: dict, height: float = 1.25
) -> tuple[Figure, list[list[Axes]]]:
    """A strip of axes for each panel, under its name; [panel][column]. `heads` are the columns' titles in every strip.

    One y axis for all. Below a strip stand the runs that it lacks.
    """
    notes = [textwrap.wrap("; ".join(failures(of(tables["runs"], panel), grid)), 105) for panel in found]
    height = min(height, PAGE / len(found) - 0.25)
    heights = [height + 0.25 + 0.13 * len(lines_) for lines_ in notes]
    made = figure(sum(heights))
    parts = np.atleast_1d(made.subfigures(len(found), 1, height_ratios=heights))
    rows: list[list[Axes]] = []
    for part, panel, names, lines_ in zip(parts, found, heads, notes, strict=True):
        part.suptitle(panel_name(panel, grid), x=0.005, ha="left", fontsize=8, fontweight="bold")
        strip = list(part.subplots(1, len(names), squeeze=False)[0])
        for axes, name in zip(strip, names, strict=True):
            axes.set_title(name, loc="center", fontsize=7.5)
            axes.tick_params(labelleft=axes is strip[0])
            if rows or axes is not strip[0]:
                axes.sharey(rows[0][0] if rows else strip[0])
        strip[0].set_ylabel(label)
        rows.append(strip)
        if lines_:
            part.supxlabel("\n".join(lines_), x=0.005, ha="left", fontsize=SMALL, color=WARNING)
    return made, rows


def titles(made: Figure, tops: list[Axes], found: list[Panel], tables: Tables, grid: dict) -> None:
    """Over each of the axes its panel's name and, in small type, the runs that it lacks; all at one height."""
    cells = tops[0].get_subplotspec().get_gridspec()
    letters = int(15 * WIDTH / cells.ncols) - 3
    lacks = [failures(of(tables["runs"], panel), grid) for panel in found]
    notes = [[line for text in texts for line in textwrap.wrap(text, letters)] for texts in lacks]
    names = [panel_name(panel, grid) for panel in found]
    bold = int(0.9 * letters)
    if max(map(len, names)) > bold:
        names = [f"{textwrap.fill(grid['studies'][study], bold)}\n{dataset_name(data)}" for study, data in found]
    below = max(map(len, notes))
    for axes, name, lines_ in zip(tops, names, notes, strict=True):
        axes.set_title(name, fontweight="bold", pad=5 + 9.5 * below)
        above = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
        axes.annotate("\n".join(lines_), (0, 1), xytext=(0, 2 + 9.5 * below), fontsize=SMALL, color=WARNING, **above)
    down = len({axes.get_subplotspec().rowspan.start for axes in tops})
    made.set_figheight(made.get_figheight() + down * (0.13 * (max(name.count("\n") for name in names) + below)))


def legend(made: Figure, looks: Iterable[dict], joined: bool = True) -> None:
    """One legend for all panels, below them, read row by row: in as few rows as fit, and those of even length."""
    handles = [
        Line2D([], [], color=k["colour"], marker=k["marker"], linestyle=k["line"] if joined else "", label=k["label"])
        for k in looks
    ]
    handle = 2.4 if joined else 1.0

    def width(columns: int) -> float:
        words = sum(max(0.062 * len(h.get_label()) for h in handles[c::columns]) for c in range(columns))
        return words + columns * (0.1 * handle + 0.3)

    most = max(c for c in range(1, len(handles) + 1) if c == 1 or width(c) < WIDTH)
    rows = -(-len(handles) // most)
    columns = next((c for c in range(1, most) if -(-len(handles) // c) == rows and width(c) < WIDTH), most)
    by_row = [h for column in range(columns) for h in handles[column::columns]]
    made.set_figheight(made.get_figheight() + 0.16 * rows + 0.05)
    spaces = {"borderpad": 0.4, "handlelength": handle, "columnspacing": 1.2}
    made.legend(handles=by_row, loc="outside lower center", ncols=columns, **spaces)


# ---- lines ----


def epochs(axes: Axes) -> None:
    """An x axis in whole epochs from 0; for axes whose lines are drawn."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlim(left=0)


def lines(drawn: list[tuple[Axes, pd.DataFrame]], x: str, y: str, grid: dict, bottom: float | None = None) -> None:
    """In each of the axes its table's arms: mean over the finished runs, band, and every diverged run up to its cross.

    The diverged runs come last: they are held within the limits that the finished ones and `bottom` have set.
    """
    for axes, table in drawn:
        for arm, look in arms_in(table, grid).items():
            _line(axes, finished(table[table["arm"] == arm]), x, y, look)
    # Axes that share their y axis share the fate: held if a finished run is in any of them, else free to grow.
    held = [any(other.lines for other in axes.get_shared_y_axes().get_siblings(axes)) for axes, _ in drawn]
    for (axes, _), hold in zip(drawn, held, strict=True):
        if hold:
            axes.set_ylim(bottom=bottom)
    for (axes, table), hold in zip(drawn, held, strict=True):
        lost = table[(table["outcome"] == "diverged") & np.isfinite(table[y])]
        low, high = axes.get_ylim() if hold else (-np.inf, np.inf)
        for (arm, _), run in lost.sort_values(x, kind="stable").groupby(["arm", "seed"]):
            xs, ys, look = run[x].to_numpy(), run[y].clip(low, high).to_numpy(), grid["arms"][arm]
            axes.add_line(Line2D(xs, ys, color=look["colour"], linewidth=0.7, linestyle=look["line"], alpha=0.7))
            axes.add_line(cross(xs[-1], ys[-1], look["colour"]))
        axes.autoscale_view()


def rank_scale(axes: Axes, ranks: pd.Series) -> None:
    """A logarithmic y axis with plain numbers; it goes down to 0, the rank of a matrix of zeros, where there is one."""
    if (ranks == 0).any():
        axes.set_yscale("symlog", linthresh=1, linscale=0.3)
    else:
        axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([0, 1, 3, 10, 30, 100, 300, 1000]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _line(axes: Axes, runs: pd.DataFrame, x: str, y: str, look: dict) -> None:
    over = runs[np.isfinite(runs[y])].groupby(x)[y].agg(["mean", "std"])
    if over.empty:
        return
    every = max(1, round(len(over) / 5))
    style = {"color": look["colour"], "linestyle": look["line"], "marker": look["marker"]}
    axes.plot(over.index, over["mean"], markevery=((len(over) - 1) % every, every), **style)
    low, high = over["mean"] - over["std"], over["mean"] + over["std"]
    if over["std"].notna().any():
        axes.fill_between(over.index, low, high, color=look["colour"], alpha=0.18, linewidth=0)


def cross(x: float, y: float, colour: str) -> Line2D:
    """The mark of a diverged run."""
    return Line2D(
        [x], [y], color=colour, marker="x", markersize=5, markeredgewidth=1.3, linestyle="", clip_on=False, zorder=5
    )


def chance(axes: Axes, panel: Panel, across: bool = True) -> None:
    """A dotted line at the accuracy of a guess, across the axes or upright."""
    if panel[1] in DATASETS:
        draw = axes.axhline if across else axes.axvline
        draw(DATASETS[panel[1]][1], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)


# ---- files ----


def save(made: Figure, caption: str, out: Path) -> None:
    """NAME.svg, NAME.pdf and NAME.txt, without a date in them."""
    files.write(f"{out}.svg", lambda path: made.savefig(path, metadata={"Date": None}))
    files.write(f"{out}.pdf", lambda path: made.savefig(path, metadata={"CreationDate": None}))
    files.write_text(f"{out}.txt", caption + "\n")


def main(about: str, draw: Callable[[Tables, dict], Figure], caption: Callable[[Tables, dict], str]) -> None:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--tables", type=Path, required=True, help="folder of runs.csv and the other tables")
    parser.add_argument("--grid", type=json.loads, required=True, help='JSON: {"arms": {...}, "studies": {...}}')
    parser.add_argument("--out", type=Path, required=True, help="path of the figure, without a suffix")
    args = parser.parse_args()
    mpl.rcParams.update(STYLE)
    runs = cut(pd.read_csv(args.tables / "runs.csv"), args.grid)
    if finished(runs).empty:
        save(nothing("anything to show"), f"{standing(runs, args.grid).capitalize()}.", args.out)
        return
    tables = load(args.tables, args.grid)
    save(draw(tables, args.grid), caption(tables, args.grid), args.out)
