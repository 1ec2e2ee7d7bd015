"""From run folders to the tables that the next stage reads.

`candidates` makes a row per candidate of the tuning. `runs` makes five tidy tables, a row per run, epoch, spectrum,
cosine and norm; those of a run were written when it was trained, and are strung together here, run by run, whatever
their number. A planned run without a folder of its identity has the outcome `missing`. `keep` is a folder of tables as
they were: a run that stands in them under its identity has the rows that it has there.
"""

import gzip
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from rankcollapse.errors import InputError
from rankcollapse.experiment import files, folder, plan
from rankcollapse.experiment.identity import MEASURES, code

KEYS = ["study", "dataset", "architecture", "arm", "seed"]  # of a run in every table
TEXT = ["candidate", "quantity", "layer", "scope", "edge", "identity"]  # columns of names, whatever those look like
UNTOLD = ("files", "measures")  # of run.json, no columns of runs.csv
KNOBS = [*plan.SHORT]
HEADS = {name: ",".join([*KEYS, *columns]) + "\n" for name, columns in folder.HEADS.items()}
CANDIDATE = [*KEYS, "candidate", *KNOBS, "epochs", "identity", "outcome", "validation_accuracy"]


def read(path: Path | str) -> pd.DataFrame:
    """A table or a summary. Names are text, whatever they look like, and only an empty field is missing."""
    return pd.read_csv(path, dtype=dict.fromkeys([*KEYS[:-1], *TEXT], str), keep_default_na=False, na_values=[""])


def write(path: Path | str, table: pd.DataFrame, digits: int) -> None:
    """A .gz is compressed, with no time stamp or file name inside, so that equal is equal."""
    text = table.to_csv(index=False, float_format=f"%.{digits}g").encode("utf-8")
    files.write_bytes(path, gzip.compress(text, mtime=0) if str(path).endswith(".gz") else text)


def candidates(planned: dict[str, dict], folders: Path, out: Path, keep: Path | None = None) -> pd.DataFrame:
    """candidates.csv: a row per candidate and seed that is there, in the order of the plan."""
    old, rows = _kept(keep and keep / out.name, planned), []
    for name, entry in planned.items():
        found = result(entry, folders / name) or old.get(name)
        rows += [{**_about(entry), **entry["config"], **found}] if found else []
    table = pd.DataFrame(rows, columns=CANDIDATE)
    write(out, table, digits=6)
    return table


def runs(planned: dict[str, dict], folders: Path, out: Path, keep: Path | None = None) -> None:
    """Write the five tidy tables, in the order of the plan. Raises InputError for damage, and if no run is there."""
    old, rows, there = _kept(keep and keep / "runs.csv", planned), [], False
    lines = {name: _lines(_path(keep, name)) if old else {} for name in folder.TABLES}
    with ExitStack() as stack:
        tables = {name: stack.enter_context(_table(out, name)) for name in folder.TABLES}
        for name, entry in planned.items():
            found = result(entry, folders / name)
            known, about = found or old.get(name) or {"identity": None, "outcome": "missing"}, _about(entry)
            # The run knows its precision, `auto` in the grid; the plan whence a rate is, of old rows too.
            own = json.loads(_sealed(folders / name / "config.json", found)) if found else {}
            row = {**about, **entry["config"], **own, **known, **about}
            rows.append({key: row[key] for key in dict.fromkeys([*KEYS, *row]) if key not in UNTOLD})
            keys = ",".join(str(row[key]) for key in KEYS) + ","
            for table, file in tables.items():
                if found:
                    made = "".join(f"{keys}{line}\n" for line in content(folders / name, table, found).splitlines())
                else:
                    made = lines[table].get(keys, "") if name in old else ""
                file.write(made.encode("utf-8"))
            there = there or row["outcome"] != "missing"
        if not there:
            raise InputError(f"{folders} has no run of the plan yet: there is nothing to tabulate")
    write(out / "runs.csv", pd.DataFrame(rows).convert_dtypes(), digits=6)  # whole numbers stay whole beside gaps


def result(entry: dict, there: Path) -> dict | None:
    """run.json of a planned run; None if it is not there, or is that of another identity."""
    if not (there / folder.RESULT).exists():
        return None
    found = files.sealed(there / folder.RESULT)
    return found if found["identity"] == entry["identity"] else None


def content(there: Path, name: str, found: dict) -> str:
    """A table of a run without its head. Raises InputError if it is not as run.json seals it."""
    if name == "ranks" and found["measures"] != code(MEASURES):
        spectra = _sealed(there / "spectra.npz", found) and folder.read_spectra(there / "spectra.npz")
        return folder.rank_table(spectra).partition("\n")[2]
    return _sealed(there / folder.TABLES[name], found).decode("utf-8").partition("\n")[2]


def _sealed(path: Path, found: dict) -> bytes:
    """The bytes of a file of a run. Raises InputError if they are not those that its run.json names."""
    made = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(made).hexdigest() != found["files"][path.name]:
        raise InputError(f"{path} is damaged (not as run.json seals it): run the same command again to train it anew")
    return made


def _about(entry: dict) -> dict:
    return {key: entry[key] for key in ("study", "arm", "candidate", "rate") if key in entry}


def _kept(table: Path | None, planned: dict[str, dict]) -> dict[str, dict]:
    """The rows of a table that stand there under the identity of the plan, by name."""
    if not (table and table.exists()):
        return {}
    rows = read(table).astype(object)
    rows = rows[rows["outcome"] != "missing"].where(rows.notna(), None).to_dict("records")
    old = {(plan.CANDIDATE if "candidate" in row else plan.NAME).format(**row): row for row in rows}
    return {name: old[name] for name in old.keys() & planned if old[name]["identity"] == planned[name]["identity"]}


def _lines(path: Path) -> dict[str, str]:
    """The lines of a table by the keys of their run. Raises InputError for a table with other columns than now."""
    found: dict[str, list[str]] = {}
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        head = next(file, "")
        if head != HEADS[path.name.split(".")[0]]:
            raise InputError(f"{path} has other columns than this version writes: call again without keep")
        for line in file:
            found.setdefault(",".join(line.split(",", len(KEYS))[: len(KEYS)]) + ",", []).append(line)
    return {keys: "".join(lines) for keys, lines in found.items()}


def _path(out: Path, name: str) -> Path:
    """Compressed, but for the smallest."""
    return out / f"{name}.csv{'' if name == 'epochs' else '.gz'}"


@contextmanager
def _table(out: Path, name: str) -> Iterator[BinaryIO]:
    """A file of a table, with its head, to write lines to."""
    path = _path(out, name)
    with (
        files.writing(path) as temporary,
        open(temporary, "wb") as raw,
        # No time stamp or file name inside, so that equal is equal.
        gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.suffix == ".gz" else nullcontext(raw) as file,
    ):
        file.write(HEADS[name].encode())
        yield file
