"""Pages for people who browse: the READMEs of a preset's tables and figures, and a summary as HTML.

Columns have their meanings in workflow/report/columns.yaml, settings of a run in rankcollapse/config.py.
"""

import argparse
import html
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from analysis import read

from rankcollapse import files
from rankcollapse.config import Settings
from rankcollapse.errors import InputError

ABOUT = yaml.safe_load((Path(__file__).parents[1] / "report" / "columns.yaml").read_text(encoding="utf-8"))
STYLE = """body { font: 14px sans-serif } table { border-collapse: collapse } dt { font-weight: bold }
th, td { text-align: left; vertical-align: top; padding: .2em .8em; border-bottom: 1px solid #ddd }
th { position: sticky; top: 0; background: white }"""


def meaning(column: str) -> str:
    """Meaning and unit of a column of any table. Raises InputError for one that has none."""
    if column in ABOUT["columns"]:
        return ABOUT["columns"][column]
    if column in Settings.model_fields:
        return Settings.model_fields[column].description
    for ending, over in {"_mean": "mean", "_std": "standard deviation"}.items():
        if column.endswith(ending):
            return f"{meaning(column.removesuffix(ending))}; {over} over n seeds"
    raise InputError(f"column {column!r} has no meaning: add it to workflow/report/columns.yaml")


def tables(results: Path, title: str, labels: dict) -> str:
    """README of results/<preset>: every CSV, its rows and its columns."""
    lines = [f"# Tables: {title}", "", "Generated. An empty field is a value that there is not.", ""]
    for name, about in ABOUT["files"].items():
        table = read(results / name)
        lines += [f"## [{name}]({name})", "", f"{about} {len(table)} rows.", "", "| column | meaning |", "|---|---|"]
        lines += [*(f"| `{column}` | {meaning(column)} |" for column in table), ""]
    return "\n".join(lines)


def figures(folder: Path, title: str, labels: dict) -> str:
    """README of figures/<preset>: every figure with its caption; labels: figure -> its title, in order."""
    lines = [f"# Figures: {title}", "", "Generated, each with its caption.", ""]
    for name, heading in labels.items():
        caption = (folder / f"{name}.txt").read_text(encoding="utf-8").strip()
        lines += [f"## {heading}", "", f"![{heading}]({name}.svg)", "", caption, ""]
    return "\n".join(lines)


def number(value: float) -> str:
    return "–" if np.isnan(value) else np.format_float_positional(value, precision=4, fractional=False, trim="-")


def summary(path: Path, title: str, labels: dict) -> str:
    """A summary as a page of its own, HTML; labels: study, dataset and arm -> name -> label."""
    table, shown = read(path), {}
    for column in table:
        base, ending = column.removesuffix("_mean"), column[-4:]
        if pd.api.types.is_numeric_dtype(table[column]) and ending != "_std":
            shown[column] = table[column].map(number)
            if f"{base}_std" in table:
                shown[base] = shown.pop(column) + " ± " + table[f"{base}_std"].map(number)
        elif ending != "_std":
            names = labels.get("arm" if column in ("left", "right") else column, {})
            shown[column] = table[column].fillna("–").map(lambda name, names=names: names.get(name, name))
    rows = pd.DataFrame(shown).to_html(index=False, border=0, justify="left")
    columns = "".join(f"<dt>{column}<dd>{html.escape(meaning(column))}" for column in shown)
    page = f"<title>{html.escape(title)}</title><style>{STYLE}</style>{rows}<dl>{columns}</dl>"
    return f'<!DOCTYPE html><html lang="en"><meta charset="utf-8">{page}</html>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    pages = parser.add_subparsers(required=True)
    for make in (tables, figures, summary):
        page = pages.add_parser(make.__name__, description=make.__doc__)
        page.add_argument("source", type=Path, help="folder of the preset, or the summary")
        page.add_argument("--title", required=True)
        page.add_argument("--labels", type=json.loads, default={}, help="JSON: what names are shown as")
        page.add_argument("--out", type=Path, required=True)
        page.set_defaults(make=make)
    args = parser.parse_args()
    try:
        files.write_text(args.out, args.make(args.source, args.title, args.labels))
    except InputError as error:
        sys.exit(f"{args.source}: {error}")


if __name__ == "__main__":
    main()
