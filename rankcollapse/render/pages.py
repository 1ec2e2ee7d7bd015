"""READMEs of tables and figures; for the HTML report a page of what holds, and one of each summary."""

import base64
import html
from pathlib import Path

import pandas as pd
import yaml

from rankcollapse.errors import InputError
from rankcollapse.experiment import files
from rankcollapse.experiment.collect import read
from rankcollapse.experiment.config import Settings
from rankcollapse.render.questions import questions
from rankcollapse.render.text import NONE, markdown, shown

ABOUT = yaml.safe_load(Path(__file__).with_name("columns.yaml").read_text(encoding="utf-8"))
OVER = {"mean": "mean over n seeds", "std": "standard deviation over n seeds", "finished": "of finished runs alone"}
STYLE = Path(__file__).with_name("pages.css").read_text(encoding="utf-8")


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


def of_tables(results: Path, tuned: Path, asked: dict, names: dict) -> str:
    """README of results/<preset>: every question and its claims, then every CSV, its rows and its columns."""
    lines = [f"# What holds: {names['title']}\n\nGenerated.\n", *[f"{words}\n" for words in ABOUT["claims"]]]
    lines += [line for name, rows in asked.items() for line in (f"## {name}\n", *markdown(rows), "")]
    lines.append("# Tables\n\nAn empty field is a value that there is not.\n")
    for name, about in ABOUT["files"].items():
        table = read(tuned if name == "tuned.csv" else results / name)
        rows = [["column", "meaning"], *([f"`{column}`", meaning(column)] for column in table)]
        lines += [f"## [{name}]({name})\n\n{about} {len(table)} rows.\n", *markdown(rows), ""]
    return "\n".join(lines)


def of_figures(figures: Path, names: dict) -> str:
    """README of figures/<preset>: every figure that was drawn, with its caption, which names its script."""
    lines = [f"# Figures: {names['title']}\n\nGenerated.\n", *[f"{words}\n" for words in ABOUT["figures"]]]
    for name, title in ((name, names["titles"][name]) for name in names["figures"]):
        script = f"rankcollapse/render/figures/{name}.py"
        caption = (figures / f"{name}.txt").read_text(encoding="utf-8").replace(script, f"[{script}](../../{script})")
        lines.append(f"## {title}\n\n![{title}]({name}.svg)\n\n{caption}")
    return "\n".join(lines)


def page(title: str, body: str) -> str:
    """As a file of its own, or within another page, which its style leaves as it is."""
    head = f'<!DOCTYPE html><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'{head}<div class="ours">{body}</div>\n'


def holds(results: Path, figures: Path, asked: dict, names: dict) -> str:
    """What the HTML report opens on: what holds in sentences, the first figure that was drawn, and every question."""
    said = (results / "summary" / "findings.txt").read_text(encoding="utf-8").splitlines()
    body = f"<ul>{''.join(f'<li>{html.escape(sentence)}' for sentence in said)}</ul>"
    for name in names["figures"][:1]:
        picture = base64.b64encode((figures / f"{name}.svg").read_bytes()).decode()
        caption = html.escape((figures / f"{name}.txt").read_text(encoding="utf-8"))
        title = html.escape(names["titles"][name])
        body += f'<img alt="{title}" src="data:image/svg+xml;base64,{picture}"><p><b>{title}</b> {caption}'
    body += "".join(f"<p>{html.escape(words)}" for words in ABOUT["claims"])
    for name, (head, *rows) in asked.items():
        body += f"<h2>{html.escape(name)}</h2>{pd.DataFrame(rows, columns=head).to_html(index=False)}"
    return page("What holds", body)


def summary(path: Path, names: dict) -> str:
    """A summary as a page of its own, HTML, as `shown` has it; columns without a value are left out."""
    table = shown(read(path), names)
    table = table.loc[:, (table != NONE).any()]
    if "verdict" in table:  # what is looked for first
        table.insert(0, "verdict", table.pop("verdict"))
    columns = "".join(f"<dt>{column}<dd>{html.escape(meaning(column))}" for column in table)
    return page(path.stem, f"{table.to_html(index=False)}<dl>{columns}</dl>")


def pages(results: Path, figures: Path, tuned: Path, names: dict) -> None:
    asked = questions(shown(read(results / "summary" / "claims.csv"), names))
    files.write_text(results / "README.md", of_tables(results, tuned, asked, names))
    files.write_text(figures / "README.md", of_figures(figures, names))
    files.write_text(results / "pages" / "holds.html", holds(results, figures, asked, names))
    for name, path in {"tuned": tuned, **{path.stem: path for path in (results / "summary").glob("*.csv")}}.items():
        files.write_text(results / "pages" / f"{name}.html", summary(path, names))
