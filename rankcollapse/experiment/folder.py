"""The folder of a run: what is in it, whether it is whole, and what the run goes on from while it is trained.

    config.json      the resolved config                checkpoint.pt    weights, feedback weights, config
    metrics.csv      loss and accuracy of each epoch    spectra.npz      singular values of all that was probed
    ranks.csv        the measures of each spectrum      alignment.csv    cosines
    norms.csv        of activations, weights, gradients and updates
    run.json         outcome, accuracy, cost, versions, and the seal of the others; written last
    .run.json        its copy: Snakemake deletes run.json if the process is killed between writing it and its own end
    .lock            held by the process that writes the folder
    state/KEY/       only while it is trained, see Saves

A folder with a run.json whose seal holds is a result; any other is not. A candidate of the tuning leaves config.json,
metrics.csv and run.json alone, and its run.json has no test accuracy.
"""

import hashlib
import io
import math
import os
import shutil
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rankcollapse.errors import InputError
from rankcollapse.experiment import files
from rankcollapse.experiment.config import RunConfig, read
from rankcollapse.library.ranks import COLUMNS, MEASURES, Spectrum, measures

RESULT, COPY, LOCK = "run.json", ".run.json", ".lock"
CANDIDATE = ("config.json", "metrics.csv")
RUN = (*CANDIDATE, "checkpoint.pt", "spectra.npz", "ranks.csv", "alignment.csv", "norms.csv")
METRICS = ("epoch", "step", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
SCALARS = ("quantity", "layer", "step", "value")
TABLES = {"epochs": "metrics.csv", "ranks": "ranks.csv", "alignment": "alignment.csv", "norms": "norms.csv"}
HEADS = {"epochs": METRICS, "ranks": (*COLUMNS, *MEASURES), "alignment": SCALARS, "norms": SCALARS}

# ---- results ----


def finished(out: Path, identity: str, tell: files.Tell) -> dict | None:
    """What run.json says if the folder is whole, and of this identity; `tell` names what is damaged.

    A run.json that is gone or damaged is made again from its copy.
    """
    wrong: dict[Path, str] = {}
    for path in filter(Path.exists, (out / RESULT, out / COPY)):
        damage = dict(files.damage(path, out))
        wrong |= damage
        if not damage and (found := files.sealed(path))["identity"] == identity:
            if path.name == COPY:
                tell(f"{out / RESULT} is made again from its copy")
                files.write_bytes(out / RESULT, path.read_bytes())
            return found
    for path, what in wrong.items():
        tell(f"{path} is {what}: the run is trained anew")
    return None


def claim(out: Path, config: RunConfig, replace: bool) -> None:
    """Make the folder this config's. Raises InputError if it is another's; with `replace` that one's result goes."""
    there, here = out / "config.json", config.model_dump()
    if there.exists() and not replace:
        found = {**RunConfig().model_dump(), **read(there)}  # a knob that is newer than the folder was at its default
        for key in sorted({*found, *here}):
            if found.get(key) != here.get(key):
                other = f"another config ({key} is {found.get(key)!r} there, {here.get(key)!r} here)"
                raise InputError(f"{out} holds the run of {other}: choose another folder, or delete that one")
    for name in (RESULT, COPY, *RUN[1:]):  # those first: without them nothing here is a result
        (out / name).unlink(missing_ok=True)
    files.write_json(there, here)  # it is never missing: what is saved beside it has a name, whenever this is killed


# ---- tables and spectra ----


def table(columns: Iterable[str], rows: Iterable[Iterable]) -> str:
    """CSV as it is in the tables of a preset: six digits, and an empty field for what there is not."""
    return "".join(",".join(map(_field, row)) + "\n" for row in [columns, *rows])


def _field(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def rank_table(spectra: Iterable[Spectrum]) -> str:
    """ranks.csv: the measures of each spectrum, to four decimals."""
    rows = ([*(getattr(s, key) for key in COLUMNS), *measures(s.values).values()] for s in spectra)
    return table(HEADS["ranks"], ([round(v, 4) if isinstance(v, float) else v for v in row] for row in rows))


def save_spectra(path: Path | str, spectra: list[Spectrum]) -> None:
    """All spectra of a run in one file of plain arrays, the values end to end in float32."""
    columns = {key: np.array([getattr(s, key) for s in spectra]) for key in COLUMNS}
    lengths = np.array([len(s.values) for s in spectra], dtype=np.int64)
    values = np.concatenate([np.empty(0), *(s.values for s in spectra)]).astype(np.float32)
    files.write(path, lambda temporary: np.savez_compressed(temporary, **columns, length=lengths, values=values))


def read_spectra(path: Path | str) -> list[Spectrum]:
    """Raises InputError for a file that is not one of `save_spectra`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = np.split(file["values"].astype(np.float64), np.cumsum(file["length"])[:-1])
            columns = [file[key].tolist() for key in COLUMNS]
            return [Spectrum(*row, values) for *row, values in zip(*columns, parts, strict=False)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        mend = "delete its run folder and run the same command again"
        raise InputError(f"{path} is not a readable spectra file ({error}): {mend}") from error


# ---- what a run goes on from ----

KEPT = 2  # states: where the last one is damaged, the one before serves


class Saves:
    """All that a run is so far, kept in state/KEY, so that one that is stopped goes on, to the same bits.

        step00000120.pt   sha256 of the rest, then the state between two steps, as torch saves it
        gradients.bin     the rows of the gradient trajectory, which only grow

    KEY is the identity of the resolved config: state of another config or code is named, and never taken.
    """

    def __init__(self, out: Path, key: str):
        self.key, self.folder = key, out / "state" / key
        self.gradients = self.folder / "gradients.bin"
        self.started, self.resumed = now(), 0
        self._rows, self._hashed = hashlib.sha256(), 0  # of the gradients: their first bytes, and how many
        self._saved = self._clock = time.monotonic()

    def age(self) -> float:
        """Seconds since the last save, or the start."""
        return time.monotonic() - self._saved

    def elapsed(self) -> float:
        """Seconds of work that led here, in all processes."""
        return time.monotonic() - self._clock

    def save(self, state) -> None:
        """Write all that a training.State is, atomically; older states but one go. Not counted as training."""
        import torch  # here: tables are made where there is none

        state.lap("train")
        size, values = state.trajectory.size, {"state": state.state_dict(), "key": self.key, "started": self.started}
        values |= {"elapsed": self.elapsed(), "resumed": self.resumed, "size": size, "rows": self._hash(size)}
        packed = io.BytesIO()
        torch.save(values, packed)
        digest = hashlib.sha256(packed.getbuffer()).hexdigest().encode()
        files.write_bytes(self.folder / f"step{state.step:08}.pt", digest + packed.getbuffer())
        for old in self._found()[KEPT:]:
            old.unlink(missing_ok=True)
        self._saved = time.monotonic()
        state.lap(None)

    def restore(self, state, tell: files.Tell) -> None:
        """Bring a training.State to the latest saved one that is sound, if any; `tell` says which, and which not."""
        for other in sorted({*self.folder.parent.glob("*")} - {self.folder}):
            tell(f"{other} is the state of another config or code, and is not taken")
        for path in self._found():
            values = self._sound(path)
            if values is None:
                tell(f"{path} is damaged, or its gradient rows are: it is not taken")
                path.unlink()
                continue
            state.load_state_dict(values["state"])
            self.started, self.resumed = values["started"], values["resumed"] + 1
            self._clock -= values["elapsed"]
            tell(f"resumed at step {state.step} of {state.steps}")
            break
        else:
            self._rows, self._hashed = hashlib.sha256(), 0
        os.truncate(self.gradients, self._hashed)  # rows after it come again, and are added

    def _found(self) -> list[Path]:
        """Latest first."""
        return sorted(self.folder.glob("step*.pt"), reverse=True)

    def _sound(self, path: Path) -> dict | None:
        """The content of a state, if it and its gradient rows are as they were written."""
        import torch

        text = memoryview(path.read_bytes())
        if hashlib.sha256(text[64:]).hexdigest().encode() != text[:64]:
            return None
        values = torch.load(io.BytesIO(text[64:]), weights_only=True, map_location="cpu")
        self._rows, self._hashed = hashlib.sha256(), 0
        return values if values["key"] == self.key and self._hash(values["size"]) == values["rows"] else None

    def _hash(self, size: int) -> str:
        """sha256 of the first `size` bytes of gradients, reading those that were not read yet."""
        with open(self.gradients, "rb") as file:
            file.seek(self._hashed)
            while self._hashed < size and (part := file.read(min(2**24, size - self._hashed))):
                self._rows.update(part)
                self._hashed += len(part)
        return self._rows.hexdigest()


def drop(out: Path) -> None:
    """Forget what was saved of a run."""
    shutil.rmtree(out / "state", ignore_errors=True)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
