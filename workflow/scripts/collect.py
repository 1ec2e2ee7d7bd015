"""From run folders to tidy tables, a row per run, epoch, spectrum, cosine and norm: python collect.py results/PRESET

A planned run without a complete folder, or with the folder of another identity, has the outcome `missing`.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from analysis import KEYS, MEASURES, Tables, run, write

from rankcollapse import config, grid
from rankcollapse.errors import InputError
from rankcollapse.ranks import measures
from rankcollapse.spectra import COLUMNS, read_spectra

LOSSES = ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
METRICS = {"epoch": int, "step": int, **dict.fromkeys(LOSSES, float)}
SCALARS = {"quantity": str, "layer": str, "step": int, "value": float}


def readable(path: Path, read: Callable, *how: Any) -> Any:
    """read(path, *how). Raises InputError, one sentence, for a file that is absent, cut off or otherwise damaged."""
    try:
        return read(path, *how)
    except Exception as error:  # a garbled archive alone raises seven kinds
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())
        remedy = f"delete its run folder, {path.parent}, and run the same command again"
        raise InputError(f"{path} is damaged ({reason}): {remedy}") from error


def knobs(path: Path) -> dict:
    """All of them: one that is younger than the run has its default, which is what the run did."""
    return config.run_config(config.read(path)).model_dump()


def rows(path: Path, types: dict[str, type], count: int | None = None) -> pd.DataFrame:
    text = path.read_text(encoding="utf-8")
    table = pd.read_csv(io.StringIO(text), dtype=types)
    if not text.endswith("\n") or list(table) != list(types) or count not in (None, len(table)):
        raise ValueError(f"{len(table)} rows of {', '.join(table)}, the last perhaps cut off")
    return table


def rank_rows(path: Path) -> pd.DataFrame:
    found = [{**vars(spectrum), **measures(spectrum.values)} for spectrum in read_spectra(path)]
    return pd.DataFrame(found, columns=[*COLUMNS, *MEASURES]).round(dict.fromkeys(MEASURES, 4))


def collect(plan: dict, folders: Path) -> Tables:
    """The five tidy tables, in the order of the plan. Raises InputError for damaged files, and if no run is there."""
    runs, epochs, ranks, cosines, norms = [], {}, {}, {}, {}
    for name, planned in plan["runs"].items():
        row = {key: planned[key] for key in ("study", "arm", "rate")} | planned["config"]
        row |= {"identity": None, "outcome": "missing"}  # until its folder says otherwise
        folder, keys = folders / name, tuple(row[key] for key in KEYS)
        found = readable(folder / "run.json", config.read) if (folder / "run.json").exists() else {}
        chosen = planned["choice"] is None or Path(planned["choice"]).exists()
        if found and chosen and found.get("identity") == grid.identity(grid.resolved(planned, name)):
            row |= readable(folder / "config.json", knobs) | found
            epochs[keys] = readable(folder / "metrics.csv", rows, METRICS, found["epochs"])
            ranks[keys] = readable(folder / "spectra.npz", rank_rows)
            cosines[keys] = readable(folder / "alignment.csv", rows, SCALARS)
            norms[keys] = readable(folder / "norms.csv", rows, SCALARS)
        runs.append({**dict.fromkeys(KEYS), **row})
    if not epochs:
        raise InputError(f"{folders} has no run of the plan yet: there is nothing to tabulate")
    tables = {"epochs": epochs, "ranks": ranks, "alignment": cosines, "norms": norms}
    tables = {name: pd.concat(parts, names=KEYS).reset_index(KEYS) for name, parts in tables.items()}
    return {"runs": pd.DataFrame(runs).convert_dtypes(), **tables}  # whole numbers stay whole beside gaps


def main(results: str) -> None:
    tables, out = collect(config.read(f"{results}/plan.json"), Path(results, "runs")), Path(results, "tables")
    for name, table in tables.items():
        write(out / (f"{name}.csv" if name in ("runs", "epochs") else f"{name}.csv.gz"), table, digits=6)


if __name__ == "__main__":
    run(main)
