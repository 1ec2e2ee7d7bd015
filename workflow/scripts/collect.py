"""From run folders to tidy tables: a row per run, per epoch, per spectrum and per cosine.

A run that is planned and not there has a row in runs.csv with the outcome `missing`.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from rankcollapse import files
from rankcollapse.probes import read_spectra
from rankcollapse.ranks import measures

KEYS = ["study", "dataset", "architecture", "arm", "seed"]
SETTINGS = ["width", "normalization", "rule", "optimizer", "update", "rank", "norm", "lr", "momentum", "weight_decay"]


def folder(runs: Path, row: dict) -> Path:
    return runs / row["study"] / row["dataset"] / row["arm"] / f"seed{row['seed']}"


def run_row(path: Path, row: dict) -> dict:
    kept = {key: row[key] for key in [*KEYS, *SETTINGS]}
    if not (path / "run.json").exists():
        return {**kept, "outcome": "missing"}
    return {**kept, **json.loads((path / "run.json").read_text())}


def rank_rows(path: Path) -> Iterator[dict]:
    for s in read_spectra(path / "spectra.npz"):
        row = {"quantity": s.quantity, "layer": s.layer, "scope": s.scope, "step": s.step, "rows": s.rows}
        yield {**row, **{name: round(value, 4) for name, value in measures(s.values).items()}}


def collect(plan: Path, runs: Path) -> dict[str, pd.DataFrame]:
    """The four tidy tables, in the order of the plan."""
    tables: dict[str, list] = {"runs": [], "epochs": [], "ranks": [], "alignment": []}
    for row in pd.read_csv(plan).to_dict("records"):
        path, keys = folder(runs, row), {key: row[key] for key in KEYS}
        found = run_row(path, row)
        tables["runs"].append(found)
        if found["outcome"] == "missing":
            continue
        tables["epochs"].append(pd.read_csv(path / "metrics.csv").assign(**keys))
        tables["ranks"].append(pd.DataFrame(rank_rows(path)).assign(**keys))
        tables["alignment"].append(pd.read_csv(path / "alignment.csv").assign(**keys))
    if not tables["epochs"]:
        raise SystemExit(f"{runs} has no finished run of {plan}: there is nothing to tabulate yet")
    collected = {"runs": pd.DataFrame(tables.pop("runs"))}
    for name, parts in tables.items():
        frame = pd.concat(parts, ignore_index=True)
        collected[name] = frame[KEYS + [c for c in frame if c not in KEYS]]
    return collected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    args = parser.parse_args()
    for name, table in collect(args.plan, args.runs).items():
        if name == "ranks":  # a hundred times the others: compressed, with no time stamp, so that equal is equal
            how = {"method": "gzip", "mtime": 0}
            files.write(
                args.out / "ranks.csv.gz", lambda path, t=table, h=how: t.to_csv(path, index=False, compression=h)
            )
        else:
            files.write(
                args.out / f"{name}.csv", lambda path, t=table: t.to_csv(path, index=False, float_format="%.6g")
            )


if __name__ == "__main__":
    main()
