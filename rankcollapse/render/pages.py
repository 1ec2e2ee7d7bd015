"""READMEs of tables and figures, and summaries as HTML. Columns have their meanings in columns.yaml, settings in config.py."""

import html
from pathlib import Path

import yaml

from rankcollapse.errors import InputError
from rankcollapse.experiment import files
from rankcollapse.experiment.collect import read
from rankcollapse.experiment.config import Settings
from rankcollapse.render.text import NONE, shown

ABOUT = yaml.safe_load(Path(__file__).with_name("columns.yaml").read_text(encoding="utf-8"))
OVER = {"mean": "mean over n seeds", "std": "standard deviation over n seeds", "finished": "of finished runs alone"}
STYLE = "* { font: 14px sans-serif; text-align: left; border-color: #ddd } dt { font-weight: bold }"


def meaning(column: str) -> str:
    """Meaning and unit of a column of any table. Raises InputError for one that has none."""
    if column in ABOUT["columns"]:
        return ABOUT["columns"][column]
    if column in Settings.model_fields:
        return Settings.model_fields[column].description
    base, _, ending = column.rpartition("_")
    if ending in OVER:
        return f"{meaning(base)}; {OVER[ending]}"
    raise InputError(f"column {column!r} has no meaning: add it to {Path('rankcollapse/render/columns.yaml')}")


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


def summary(path: Path, names: dict) -> str:
    """A summary as a page of its own, HTML, as `shown` has it; columns without a value are left out."""
    table = shown(read(path), names)
    table = table.loc[:, (table != NONE).any()]
    if "verdict" in table:  # what is looked for first
        table.insert(0, "verdict", table.pop("verdict"))
    columns = "".join(f"<dt>{column}<dd>{html.escape(meaning(column))}" for column in table)
    head = f'<!DOCTYPE html><meta charset="utf-8"><title>{path.stem}</title><style>{STYLE}</style>'
    return f"{head}{table.to_html(index=False)}<dl>{columns}</dl>\n"


def pages(results: Path, folder: Path, tuned: Path, names: dict) -> None:
    files.write_text(results / "README.md", tables(results, tuned, names))
    files.write_text(folder / "README.md", figures(folder, names))
    for path in [tuned, *(results / "summary").glob("*.csv")]:
        name = "tuned" if path == tuned else path.stem
        files.write_text(results / "pages" / f"{name}.html", summary(path, names))
