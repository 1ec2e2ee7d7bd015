"""What the figures share: style, tables, panels, lines over seeds, marks of runs that failed, captions, saving.

A figure's script has draw(tables, grid) and caption(tables, grid) and ends in main(__doc__, draw, caption). `tables` are
those of collect.py, cut to the arms and studies of `grid`, which also says how an arm looks:
{"arms": {arm: {"label", "colour", "marker", "line"}}, "studies": {study: title}}, both in drawing order.
"""

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rankcollapse import files

Tables = dict[str, pd.DataFrame]
Panel = tuple[str, str]  # study, dataset

WIDTH = 6.9  # inches: the text width of the paper, so that type is printed in the size given here
SMALL = 7  # points: the smallest type
NO_BREAK = "\u00a0"
GREY = "#666666"
WARNING = "#a50026"
DATASETS = {"cifar10": ("CIFAR-10", 10), "cifar100": ("CIFAR-100", 1), "digits": ("digits", 10)}  # name, chance in %
MEASURES = {"entropy_s": "exp H(s)", "entropy_s2": "exp H(s²)"}
SPREAD = "Bands: ± 1 standard deviation over seeds"

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
    """The tables, cut to the grid, accuracies in %. Every row has its run's `outcome`, and `epoch` wherever it has `step`."""
    tables = {path.name.split(".")[0]: pd.read_csv(path) for path in sorted(folder.glob("*.csv*"))}
    runs = tables["runs"]
    run, arm = ["study", "dataset", "arm", "seed"], ["study", "dataset", "arm"]
    per_epoch = (
        (tables["epochs"]["step"] / tables["epochs"]["epoch"]).groupby([tables["epochs"][k] for k in arm]).first()
    )
    for name, table in tables.items():
        if name != "runs":
            table = table.merge(runs[[*run, "outcome"]], on=run, how="left")
        if "step" in table and "epoch" not in table:
            table = table.join(per_epoch.rename("per_epoch"), on=arm)
            table["epoch"] = table["step"] / table.pop("per_epoch")
        accuracies = [column for column in table if column.endswith("_accuracy")]
        table[accuracies] *= 100
        tables[name] = table[table["arm"].isin(grid["arms"]) & table["study"].isin(grid["studies"])]
    return tables


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


def mean_std(values: pd.Series, digits: int | None = None) -> str:
    """`43.6 ± 1.1`; without the deviation for a single value. By default three digits of the mean."""
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


def standing(runs: pd.DataFrame) -> str:
    """How many runs a figure stands on, and what became of the others."""
    counts = (runs["outcome"] == "finished").groupby([runs[k] for k in ("study", "dataset", "arm")]).sum()
    if not counts.any():
        return f"none of {len(runs)} runs finished"
    n = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    lost = [f"{(runs['outcome'] == o).sum()} {o}" for o in ("diverged", "missing") if (runs["outcome"] == o).any()]
    return f"n = {n} runs an arm, {counts.sum()} in all" + (f" ({', '.join(lost)} besides)" if lost else "")


def failures(runs: pd.DataFrame, grid: dict) -> str:
    """`× 1 of 3 diverged: FA · FA + BN; 3 of 3 missing: BP`, for the runs of one panel; a name never breaks over lines."""
    found: dict[str, list[str]] = {}
    for arm, look in arms_in(runs, grid).items():
        outcomes = runs.loc[runs["arm"] == arm, "outcome"]
        for outcome, sign in (("diverged", "× "), ("missing", "")):
            if (outcomes == outcome).any():
                what = f"{sign}{(outcomes == outcome).sum()} of {len(outcomes)} {outcome}"
                found.setdefault(what, []).append(look["label"])
    return "; ".join(f"{what}: {' · '.join(arm.replace(' ', NO_BREAK) for arm in arms)}" for what, arms in found.items())


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
    found: list[Panel], rows: int = 1, height: float = 1.5, share_y: Callable[[Panel], object] = lambda panel: "all"
) -> tuple[Figure, list[list[Axes]]]:
    """A stack of `rows` axes for each panel, up to four stacks side by side; [panel][row].

    A row of axes has one y axis in common for all panels with the same share_y(panel); a stack shares its x axis.
    """
    columns = min(len(found), 4) if len(found) < 5 else min((4, 3), key=lambda c: -len(found) % c)
    down = -(-len(found) // columns)
    made = figure(down * (rows * height + 0.3) + 0.5)
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
            stack.append(axes)
        stacks.append(stack)
    return made, stacks


def strips(
    found: list[Panel], counts: list[int], tables: Tables, grid: dict, height: float = 1.25
) -> tuple[Figure, list[list[Axes]]]:
    """A strip of counts[i] axes side by side, under a common title, for each panel; [panel][column]."""
    notes = [textwrap.wrap(failures(of(tables["runs"], panel), grid), 105) for panel in found]
    heights = [height + 0.25 + 0.13 * len(lines) for lines in notes]
    made = figure(sum(heights) + 0.35)
    parts = np.atleast_1d(made.subfigures(len(found), 1, height_ratios=heights))
    strips = []
    for part, panel, count, lines in zip(parts, found, counts, notes, strict=True):
        part.suptitle(panel_name(panel, grid), x=0.005, ha="left", fontsize=8, fontweight="bold")
        strips.append(list(part.subplots(1, count, squeeze=False)[0]))
        if lines:
            part.supxlabel("\n".join(lines), x=0.005, ha="left", fontsize=SMALL, color=WARNING)
    return made, strips


def title(axes: Axes, panel: Panel, tables: Tables, grid: dict) -> None:
    """The panel's name and, in a smaller line below it, the runs that it lacks."""
    columns = axes.get_subplotspec().get_gridspec().ncols
    letters = int(WIDTH / columns * 16) - 3
    notes = textwrap.wrap(failures(of(tables["runs"], panel), grid), letters)
    name = textwrap.fill(panel_name(panel, grid), int(letters * 0.8))
    axes.set_title(name, fontweight="bold", pad=4 + 9.5 * len(notes))
    above = {"xycoords": "axes fraction", "xytext": (0, 3), "textcoords": "offset points", "va": "bottom"}
    axes.annotate("\n".join(notes), (0, 1), fontsize=SMALL, color=WARNING, **above)


def legend(made: Figure, looks: Iterable[dict], lines: bool = True) -> None:
    """One legend for all panels, below them, read row by row."""
    handles = [
        Line2D([], [], color=k["colour"], marker=k["marker"], linestyle=k["line"] if lines else "", label=k["label"])
        for k in looks
    ]
    longest = max(len(handle.get_label()) for handle in handles)
    most = int(WIDTH / (0.065 * longest + 0.45))
    columns = -(-len(handles) // -(-len(handles) // most))
    by_row = [handle for column in range(columns) for handle in handles[column::columns]]
    made.legend(handles=by_row, loc="outside lower center", ncols=columns, handlelength=2.6, columnspacing=1.4)


# ---- lines ----


def lines(drawn: list[tuple[Axes, pd.DataFrame]], x: str, y: str, grid: dict) -> None:
    """In each of the axes its table's arms: mean over the finished runs, band, and every diverged run up to its cross.

    The diverged runs come last, when the finished ones have set the limits of axes that may be shared.
    """
    for axes, table in drawn:
        for arm, look in arms_in(table, grid).items():
            _line(axes, finished(table[table["arm"] == arm]), x, y, look)
    for axes, table in drawn:
        lost = table[table["outcome"] == "diverged"]
        add = axes.add_artist if axes.lines else axes.add_line  # an artist leaves the limits alone
        for (arm, _), run in lost.groupby(["arm", "seed"]):
            for artist in _diverged(axes, run[np.isfinite(run[y])].sort_values(x), x, y, grid["arms"][arm]):
                add(artist)
        axes.autoscale_view()


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


def _diverged(axes: Axes, run: pd.DataFrame, x: str, y: str, look: dict) -> list[Line2D]:
    if run.empty:
        return []
    low, high = axes.get_ylim() if axes.lines else (-np.inf, np.inf)
    end = min(max(run[y].iloc[-1], low), high)
    path = Line2D(run[x], run[y], color=look["colour"], linewidth=0.7, linestyle=look["line"], alpha=0.7)
    return [path, cross(run[x].iloc[-1], end, look["colour"])]


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
    tables = load(args.tables, args.grid)
    save(draw(tables, args.grid), caption(tables, args.grid), args.out)
