"""The folder of a run, without torch: what is in it, whether it is whole, and the tables in it as text.

    config.json      the resolved config                checkpoint.pt    weights, feedback weights, config
    metrics.csv      loss and accuracy of each epoch    spectra.npz      singular values of all that was probed
    ranks.csv        the measures of each spectrum      alignment.csv    cosines
    norms.csv        of activations, weights and BP gradients
    run.json         outcome, accuracy, cost, versions, and the seal of the others; written last
    .run.json        its copy: Snakemake deletes run.json if the process is killed between writing it and its own end
    state/           only while it is trained: all that the run is so far, see saves.py

A folder with a run.json whose seal holds is a result; any other is not. A candidate of the tuning leaves config.json,
metrics.csv and run.json alone, and its run.json has no test accuracy.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from rankcollapse import files, grid, ranks, seals
from rankcollapse.config import RunConfig, read
from rankcollapse.errors import InputError
from rankcollapse.spectra import COLUMNS, Spectrum

RESULT, COPY = "run.json", ".run.json"
CANDIDATE = ("config.json", "metrics.csv")
RUN = (*CANDIDATE, "checkpoint.pt", "spectra.npz", "ranks.csv", "alignment.csv", "norms.csv")
RANKS = (*COLUMNS, *ranks.MEASURES)
LOSSES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
METRICS = ("epoch", "step", *LOSSES)
SCALARS = ("quantity", "layer", "step", "value")
TABLES = {"epochs": "metrics.csv", "ranks": "ranks.csv", "alignment": "alignment.csv", "norms": "norms.csv"}
HEADS = {"epochs": METRICS, "ranks": RANKS, "alignment": SCALARS, "norms": SCALARS}


def finished(out: Path, config: RunConfig, tell: Callable[[str], object]) -> dict | None:
    """What run.json says if the folder is whole, and of this config and code; `tell` names what is damaged.

    A run.json that is gone or damaged is made again from its copy.
    """
    wrong: dict[Path, str] = {}
    for name in (RESULT, COPY):
        if (out / name).exists():
            damage = dict(seals.damage(out / name, out, seals.Digests(out / "none", fresh=True)))
            wrong |= damage
            found = seals.read(out / name) if not damage else {}
            if found.get("identity") == grid.identity(config):
                if name == COPY:
                    tell(f"{out / RESULT} is made again from its copy")
                    files.write(out / RESULT, lambda path: path.write_bytes((out / COPY).read_bytes()))
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
    for name in (RESULT, COPY, *RUN):  # those first: without them nothing here is a result
        (out / name).unlink(missing_ok=True)
    files.write_json(there, here)


def table(columns: Iterable[str], rows: Iterable[Iterable]) -> str:
    """CSV as it is in the tables of a preset: six digits, and an empty field for what there is not."""
    return "".join(",".join(map(_field, row)) + "\n" for row in [columns, *rows])


def rank_table(spectra: Iterable[Spectrum]) -> str:
    """ranks.csv: the measures of each spectrum, to four decimals."""
    rows = ([*(getattr(s, key) for key in COLUMNS), *ranks.measures(s.values).values()] for s in spectra)
    return table(RANKS, ([round(v, 4) if isinstance(v, float) else v for v in row] for row in rows))


def measures_code() -> str:
    """Hash of the code that ranks.csv stands on: of another hash it is made anew, without training."""
    return grid.code(("ranks",))


def _field(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)
