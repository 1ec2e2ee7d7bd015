"""From run folders to tidy tables, a row per run, epoch, spectrum, cosine and norm: python collect.py results/PRESET

The tables of a run were written when it was trained: here their lines are strung together, run by run, whatever the
number of runs. A planned run without a folder, or with one of another identity, has the outcome `missing`.
"""

import gzip
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import pandas as pd
from analysis import KEYS, run, write

from rankcollapse import config, files, folder, grid, seals
from rankcollapse.errors import InputError
from rankcollapse.spectra import read_spectra

UNTOLD = ("files", "measures")  # of run.json, no columns of runs.csv


def result(planned: dict, name: str, there: Path) -> dict | None:
    """run.json of a planned run; None if it is not there, or is that of another identity."""
    chosen = planned["choice"] is None or Path(planned["choice"]).exists()
    if not chosen or not (there / "run.json").exists():
        return None
    found, wanted = seals.read(there / "run.json"), grid.resolved(planned, name)
    return wanted.model_dump() | found if found["identity"] == grid.identity(wanted) else None


def content(there: Path, name: str, found: dict) -> str:
    """A table of a run without its head. Raises InputError if it is not as run.json seals it."""
    if name == "ranks" and found["measures"] != folder.measures_code():
        spectra = whole(there / "spectra.npz", found) and read_spectra(there / "spectra.npz")
        return folder.rank_table(spectra).partition("\n")[2]
    return whole(there / folder.TABLES[name], found).decode("utf-8").partition("\n")[2]


def whole(path: Path, found: dict) -> bytes:
    """The bytes of a file of a run. Raises InputError if they are not those that its run.json names."""
    made = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(made).hexdigest() != found["files"][path.name]:
        raise InputError(f"{path} is damaged (not as run.json seals it): run the same command again to train it anew")
    return made


def collect(plan: dict, folders: Path, out: Path) -> None:
    """Write the five tidy tables, in the order of the plan. Raises InputError for damage, and if no run is there."""
    rows, there = [], False
    with ExitStack() as stack:
        tables = {name: stack.enter_context(_table(out, name)) for name in folder.TABLES}
        for name, planned in plan["runs"].items():
            row = {key: planned[key] for key in ("study", "arm", "rate")} | planned["config"]
            found = result(planned, name, folders / name)
            row |= found or {"identity": None, "outcome": "missing"}
            rows.append({**dict.fromkeys(KEYS), **{key: row[key] for key in row if key not in UNTOLD}})
            if not found:
                continue
            there, keys = True, ",".join(str(row[key]) for key in KEYS)
            for table, file in tables.items():
                lines = content(folders / name, table, found).splitlines()
                file.write("".join(f"{keys},{line}\n" for line in lines).encode())
        if not there:
            raise InputError(f"{folders} has no run of the plan yet: there is nothing to tabulate")
    write(out / "runs.csv", pd.DataFrame(rows).convert_dtypes(), digits=6)  # whole numbers stay whole beside gaps


@contextmanager
def _table(out: Path, name: str) -> Iterator[BinaryIO]:
    """A file of a table, with its head, to write lines to; compressed, but for the smallest."""
    packed = name != "epochs"
    with (
        files.writing(out / f"{name}.csv{'.gz' if packed else ''}") as temporary,
        open(temporary, "wb") as raw,
        # No time stamp or file name inside, so that equal is equal.
        gzip.GzipFile("", "wb", 6, raw, mtime=0) if packed else nullcontext(raw) as file,
    ):
        file.write((",".join([*KEYS, *folder.HEADS[name]]) + "\n").encode())
        yield file


def main(results: str) -> None:
    collect(config.read(f"{results}/plan.json"), Path(results, "runs"), Path(results, "tables"))


if __name__ == "__main__":
    run(main)
