"""READMEs of tables and figures, summaries as HTML: python pages.py results/PRESET figures/PRESET TUNED NAMES

Columns have their meanings in workflow/report/columns.yaml, settings in rankcollapse/config.py. NAMES is JSON.
"""

import html
import json
from pathlib import Path

import numpy as np
import yaml

from rankcollapse.errors import InputError
from rankcollapse.experiment import files
from rankcollapse.experiment.config import Settings
from rankcollapse.render.tables import read, run

ABOUT = yaml.safe_load((Path(__file__).parents[1] / "report" / "columns.yaml").read_text(encoding="utf-8"))
INTERVALS = [("difference", "low", "high"), ("control_difference", "control_low", "control_high")]
INTERVALS += [("rest", "rest_low", "rest_high")]
OVER = {"mean": "mean", "std": "standard deviation"}
STYLE = "* { font: 14px sans-serif; text-align: left; border-color: #ddd } dt { font-weight: bold }"


def meaning(column: str) -> str:
    """Meaning and unit of a column of any table. Raises InputError for one that has none."""
    if column in ABOUT["columns"]:
        return ABOUT["columns"][column]
    if column in Settings.model_fields:
        return Settings.model_fields[column].description
    base, _, ending = column.rpartition("_")
    if ending in OVER:
        return f"{meaning(base)}; {OVER[ending]} over n seeds"
    raise InputError(f"column {column!r} has no meaning: add it to workflow/report/columns.yaml")


def tables(results: Path, tuned: Path, names: dict) -> str:
    """README of results/<preset>: every CSV, its rows and its columns."""
    lines = [f"# Tables: {names['title']}", "", "Generated. An empty field is a value that there is not.", ""]
    for name, about in ABOUT["files"].items():
        table = read(tuned if name == "tuned.csv" else results / name)
        lines += [f"## [{name}]({name})", "", f"{about} {len(table)} rows.", "", "| column | meaning |", "|---|---|"]
        lines += [*(f"| `{column}` | {meaning(column)} |" for column in table), ""]
    return "\n".join(lines)


def figures(folder: Path, names: dict) -> str:
    """README of figures/<preset>: every figure with its caption."""
    lines = [f"# Figures: {names['title']}", "", "Generated, each with its caption.", ""]
    for name in names["figures"]:
        title, caption = names["titles"][name], (folder / f"{name}.txt").read_text(encoding="utf-8").strip()
        lines += [f"## {title}", "", f"![{title}]({name}.svg)", "", caption, ""]
    return "\n".join(lines)


def number(value: float) -> str:
    return "–" if np.isnan(value) else np.format_float_positional(value, precision=4, fractional=False, trim="-")


def summary(path: Path, names: dict) -> str:
    """A summary as a page of its own, HTML, with labels for names, and mean ± standard deviation, or a difference and
    its interval, in one column; columns without a value are left out.
    """
    arms = dict.fromkeys(["arm", "left", "right", "control_left", "control_right", "reference"], names["labels"])
    table = read(path).replace({"study": names["studies"], "dataset": names["datasets"], **arms})
    for std in table.columns[table.columns.str.endswith("_std")]:
        base = std.removesuffix("_std")
        table[f"{base}_mean"] = table[f"{base}_mean"].map(number) + " ± " + table.pop(std).map(number)
        table = table.rename(columns={f"{base}_mean": base})
    for mean, low, high in INTERVALS:
        if mean in table:
            ends = "[" + table.pop(low).map(number) + ", " + table.pop(high).map(number) + "]"
            table[mean] = (table[mean].map(number) + " " + ends).where(table[mean].notna())
    table = table.dropna(axis="columns", how="all")
    if "verdict" in table:  # what is looked for first
        table.insert(0, "verdict", table.pop("verdict"))
    rows = table.to_html(index=False, na_rep="–", float_format=number)
    columns = "".join(f"<dt>{column}<dd>{html.escape(meaning(column))}" for column in table)
    head = f'<!DOCTYPE html><meta charset="utf-8"><title>{path.stem}</title><style>{STYLE}</style>'
    return f"{head}{rows}<dl>{columns}</dl>\n"


def main(results: str, folder: str, tuned: str, names: str) -> None:
    words = json.loads(names)
    files.write_text(f"{results}/README.md", tables(Path(results), Path(tuned), words))
    files.write_text(f"{folder}/README.md", figures(Path(folder), words))
    pages = {"tuned": Path(tuned), **{path.stem: path for path in Path(results, "summary").glob("*.csv")}}
    for name, path in pages.items():
        files.write_text(f"{results}/pages/{name}.html", summary(path, words))


if __name__ == "__main__":
    run(main)
