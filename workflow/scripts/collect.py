"""From run folders to tidy tables: a row per run, per epoch, per spectrum and per cosine.

A planned run without a complete folder, or with the folder of another identity, has the outcome `missing`.
"""

import argparse
import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from analysis import KEYS, MEASURES, SPECTRUM, Tables, write

from rankcollapse import config, files
from rankcollapse.errors import InputError
from rankcollapse.ranks import measures
from rankcollapse.spectra import read_spectra

METRICS = ["epoch", "step", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
COSINES = ["quantity", "layer", "step", "value"]
MATRIX = [*SPECTRUM, "step", "rows"]
NOT_FLOAT = {"epoch": int, "step": int, "quantity": str, "layer": str}


def readable(path: Path, read: Callable, *how: Any) -> Any:
    """read(path, *how). Raises InputError, one sentence, for a file that is absent, cut off or otherwise damaged."""
    try:
        return read(path, *how)
    except Exception as error:  # a garbled archive alone raises seven kinds
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())
        remedy = f"delete its run folder, {path.parent}, and run the same command again"
        raise InputError(f"{path} is damaged ({reason}): {remedy}") from error


def from_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def result(path: Path) -> dict:
    found = from_json(path)
    needed = {key: found[key] for key in ("identity", "outcome", "epochs")}
    return needed | {key: value for key, value in found.items() if key not in ("study", "arm")}


def knobs(path: Path) -> dict:
    """All of them: one that is younger than the run has its default, which is what the run did."""
    return config.run_config(from_json(path)).model_dump()


def rows(path: Path, columns: list[str], count: int | None = None) -> pd.DataFrame:
    text = path.read_text(encoding="utf-8")
    table = pd.read_csv(io.StringIO(text), dtype={column: NOT_FLOAT.get(column, float) for column in columns})
    if not text.endswith("\n") or list(table) != columns or count not in (None, len(table)):
        raise ValueError(f"{len(table)} rows of {', '.join(table)}, the last perhaps cut off")
    return table


def rank_rows(path: Path) -> pd.DataFrame:
    found = [{**{key: getattr(s, key) for key in MATRIX}, **measures(s.values)} for s in read_spectra(path)]
    return pd.DataFrame(found, columns=[*MATRIX, *MEASURES]).round(dict.fromkeys(MEASURES, 4))


def collect(plan: dict, runs: Path) -> Tables:
    """The four tidy tables, in the order of the plan. Raises InputError for damaged files, and if no run is there."""
    tables: dict[str, list] = {"runs": [], "epochs": [], "ranks": [], "alignment": []}
    for name, planned in plan["runs"].items():
        folder, place = runs / name, {"study": planned["study"], "arm": planned["arm"]}
        found = readable(folder / "run.json", result) if (folder / "run.json").exists() else {"identity": None}
        there = found["identity"] == planned["identity"]
        row = place | (readable(folder / "config.json", knobs) if there else planned["config"])
        keys = {key: row[key] for key in KEYS}
        tables["runs"].append(keys | row | (found if there else {"identity": None, "outcome": "missing"}))
        if there:
            metrics = readable(folder / "metrics.csv", rows, METRICS, found["epochs"])
            cosines = readable(folder / "alignment.csv", rows, COSINES)
            parts = {"epochs": metrics, "ranks": readable(folder / "spectra.npz", rank_rows), "alignment": cosines}
            for table, part in parts.items():
                tables[table].append(pd.DataFrame(keys, index=part.index).join(part))
    if not tables["epochs"]:
        raise InputError(f"{runs} has no run of the plan yet: there is nothing to tabulate")
    # Whole numbers stay whole beside the gaps of missing runs.
    whole = pd.DataFrame(tables.pop("runs")).convert_dtypes()
    return {"runs": whole, **{name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="plan.json")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    args = parser.parse_args()
    try:
        tables = collect(config.read(args.plan), args.runs)
    except InputError as error:
        sys.exit(str(error))
    # A hundred times the others: compressed, with no time stamp or file name inside, so that equal is equal.
    packed = gzip.compress(tables.pop("ranks").to_csv(index=False).encode("utf-8"), mtime=0)
    files.write(args.out / "ranks.csv.gz", lambda path: path.write_bytes(packed))
    for name, table in tables.items():
        write(args.out / f"{name}.csv", table, digits=6)


if __name__ == "__main__":
    main()
