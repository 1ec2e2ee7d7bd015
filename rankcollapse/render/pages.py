"""READMEs of tables and figures, and summaries as HTML."""

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
    (base, _, ending), (of, _, rest) = column.rpartition("_"), column.partition("_")
    if column in ABOUT["columns"]:
        return ABOUT["columns"][column]
    if column in Settings.model_fields:
        return Settings.model_fields[column].description
    if ending in ("low", "high"):
        return f"{ending}er end of a 95 % interval"
    if of in ("control", "reference") and rest:
        return f"of the {of}: {meaning(rest)}"
    if ending in OVER:
        return f"{meaning(base)}; {OVER[ending]}"
    raise InputError(f"column {column!r} has no meaning: add it to rankcollapse/render/columns.yaml")


def of_tables(results: Path, tuned: Path, names: dict) -> str:
    """README of results/<preset>: every CSV, its rows and its columns."""
    lines = [f"# Tables: {names['title']}\n\nGenerated. An empty field is a value that there is not.\n"]
    for name, about in ABOUT["files"].items():
        table = read(tuned if name == "tuned.csv" else results / name)
        lines.append(f"## [{name}]({name})\n\n{about} {len(table)} rows.\n\n| column | meaning |\n|---|---|")
        lines += [*(f"| `{column}` | {meaning(column)} |" for column in table), ""]
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


def pages(results: Path, figures: Path, tuned: Path, names: dict) -> None:
    files.write_text(results / "README.md", of_tables(results, tuned, names))
    lines = [f"# Figures: {names['title']}\n\nGenerated, each with its caption.\n"]
    for name, title in ((name, names["titles"][name]) for name in names["figures"]):
        caption = (figures / f"{name}.txt").read_text(encoding="utf-8")
        lines.append(f"## {title}\n\n![{title}]({name}.svg)\n\n{caption}")
    files.write_text(figures / "README.md", "\n".join(lines))
    for name, path in {"tuned": tuned, **{path.stem: path for path in (results / "summary").glob("*.csv")}}.items():
        files.write_text(results / "pages" / f"{name}.html", summary(path, names))
