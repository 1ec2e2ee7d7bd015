"""Spectra as records and as a file, spectra.npz."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankcollapse import files
from rankcollapse.errors import InputError

COLUMNS = ("quantity", "layer", "scope", "step", "rows")


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one measured matrix, after `step` steps of training. The quantities and their scopes:

    gradient_trajectory, cumulative | window: [T, P], minibatch gradients of the weights at T steps of training
    error, batch | pooled: [samples, features], δ = ∂L/∂a of a layer, of one probe, or of all probes so far
    classifier_input_error, batch | pooled: [samples, features], ∂L/∂h of the classifier's input, pooled at each probe
    activation, batch: [samples, features], the input h of a layer
    update, step: [out, in * kh * kw], what the last step added to W per unit of rate, decay aside
    """

    quantity: str
    layer: str
    scope: str
    step: int
    rows: int
    values: np.ndarray


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
