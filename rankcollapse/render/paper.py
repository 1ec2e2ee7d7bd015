"""The report, compiled by typst from text, tables of text, captions and pictures: it reads no file itself."""

import json
from pathlib import Path

import pandas as pd
import typst

from rankcollapse.experiment import config, files
from rankcollapse.experiment.collect import read
from rankcollapse.render.evidence import evidence
from rankcollapse.render.figures import NUMBERS, SCRIPT, drawn
from rankcollapse.render.findings import NOTHING, depth_table, findings, read_findings
from rankcollapse.render.overview import CAPTION, overview
from rankcollapse.render.tables import published
from rankcollapse.render.text import NONE, shown
from rankcollapse.render.text import number as told

FIRST = {
    "headline": "full",
    "summary": "why",
    "accuracy_vs_rank": "why",
    "interaction": "why",
}  # whose figure the text has; else of the first


def settings(runs: pd.DataFrame, tuned: pd.DataFrame, names: dict) -> list[dict[str, str]]:
    """What each study that has runs was trained with, a row each."""
    rows, runs = [], runs[runs["outcome"] != "missing"]
    tuned = tuned.merge(runs[["study", "dataset", "arm"]].drop_duplicates())
    for (study, dataset), part in runs.groupby(["study", "dataset"], sort=False):
        first, scored = part.iloc[0], tuned[(tuned["study"] == study) & (tuned["dataset"] == dataset)]
        tried = scored.groupby("arm").size()
        cropped = f"flips, crops of {first['crop']:.0f}" if first["crop"] else "flips"
        rows.append({
            "study": names["studies"].get(study, study),
            "dataset": names["datasets"].get(dataset, dataset),
            "images": "all" if pd.isna(first["train_images"]) else f"{first['train_images']:,.0f}",
            "epochs": told(part["epochs"].max()),
            "batch": told(first["batch_size"]),
            "augmented": cropped if first["flip"] else "no",
            "precision": ", ".join(sorted(part["precision"].dropna().unique())),
            "candidates": " or ".join(map(str, sorted(tried.unique()))) or NONE,
            "drawn": " or ".join(map(told, sorted(scored["n"].unique()))) or NONE,
            "seeds": " to ".join(map(str, sorted({*part.groupby("arm")["seed"].nunique().agg(["min", "max"])}))),
        })  # fmt: skip
    return rows


def tables(results: Path, names: dict) -> dict[str, object]:
    """What the report has of a preset."""
    summary, tuned, about = results / "summary", read(Path(names["tuned"])), config.read(results / "provenance.json")
    claims, accuracy, cost = (shown(read(summary / f"{name}.csv"), names) for name in ("claims", "accuracy", "cost"))
    devices = [about["device"]] if isinstance(about["device"], str) else about["device"]
    return {
        "title": names["title"],
        "claims": claims.to_dict("records"),
        "depth": depth_table(claims),
        "accuracy": accuracy.assign(seconds=cost["seconds"]).to_dict("records"),
        "tuned": shown(tuned, names).to_dict("records"),
        "settings": settings(read(results / "tables" / "runs.csv"), tuned, names),
        "machine": f"{'; '.join(devices)}, in {about['run_seconds'] / 3600:.1f} hours of training jobs",
        "finished": about["finished"][:10],
    }


def pictures(presets: dict[str, dict], folder: Path = Path("figures")) -> dict[str, list[dict[str, str]]]:
    """Each figure of all presets that have it, by name, that of the text first; its caption without its numbers."""
    found = {}
    for preset, names in presets.items():
        for name in drawn(folder / preset):
            picture, words = (
                (folder / preset / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("svg", "txt")
            )
            caption = " ".join(line for line in words.splitlines() if not line.startswith((NUMBERS, SCRIPT)))
            about = {"name": name, "picture": picture, "caption": caption, "title": names["title"]}
            some = found.setdefault(name, [])
            some.insert(0 if FIRST.get(name) == preset else len(some), about)
    return found


def inputs(texts: Path, presets: dict[str, dict], results: Path) -> dict[str, str]:
    """What the report is made of, as JSON, by name."""
    labels = next(iter(presets.values()))["labels"]
    theirs = published(texts)
    parts = {preset: tables(results / preset, names) for preset, names in presets.items()}
    made = {
        "title": parts[next(iter(parts))]["title"] if len(parts) == 1 else "All committed results",
        "finished": max(part["finished"] for part in parts.values()),
        "nothing": NOTHING,
        "said": findings(read_findings(texts / "findings.yaml"), evidence({name: results / name for name in presets})),
        "presets": parts,
        "overview": {"rows": overview(presets, results), "caption": CAPTION},
        "figures": pictures(presets),
        "published": theirs.assign(arm=theirs["arm"].replace(labels)).astype(str).to_dict("records"),
    }
    return {"made": json.dumps(made)}


def paper(texts: Path, presets: dict[str, dict], results: Path, out: Path) -> None:
    """Write the report: `presets` has of each what things are called in it."""
    # Without tags, which make it twice as large: the pages beside it have its tables as HTML.
    how = {"sys_inputs": inputs(texts, presets, results), "ignore_system_fonts": True, "pdf_tags": False}
    files.write_bytes(out, typst.compile(str(texts / "paper.typ"), **how))
