"""What a tidy table of collect.py means: its keys, which runs finished, the end of a run, accuracies in %.

KEYS name a run, ARM what its seeds have in common. Every script reads tables by this module, and starts by `run`.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from rankcollapse import files, ranks
from rankcollapse.errors import InputError

KEYS = ["study", "dataset", "architecture", "arm", "seed"]
ARM = KEYS[:-1]
SPECTRUM = ["quantity", "layer", "scope"]
MEASURES = list(ranks.MEASURES)

Tables = dict[str, pd.DataFrame]


def read(path: Path | str) -> pd.DataFrame:
    """A tidy table or a summary. Names are text, whatever they look like, and only an empty field is missing."""
    return pd.read_csv(path, dtype=dict.fromkeys([*ARM, *SPECTRUM], str), keep_default_na=False, na_values=[""])


def write(path: Path | str, table: pd.DataFrame, digits: int) -> None:
    files.write(path, partial(table.to_csv, index=False, encoding="utf-8", float_format=f"%.{digits}g"))


def load(folder: Path) -> Tables:
    """All, by name. Accuracies are in %; a row has its run's `outcome`, and where it has a `step` the `epoch`."""
    tables = {path.name.split(".")[0]: read(path) for path in sorted(Path(folder).glob("*.csv*"))}
    runs, epochs = tables["runs"], tables["epochs"]
    per_epoch = (epochs["step"] / epochs["epoch"]).groupby([epochs[key] for key in ARM]).first().rename("per_epoch")
    for name, table in tables.items():
        if name != "runs":
            table = table.merge(runs[[*KEYS, "outcome"]], on=KEYS, how="left")
        if "step" in table and "epoch" not in table:
            table = table.join(per_epoch, on=ARM)
            table["epoch"] = table["step"] / table.pop("per_epoch")
        accuracies = [column for column in table if column.endswith("_accuracy")]
        tables[name] = table.assign(**{column: 100 * table[column] for column in accuracies})
    return tables


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of finished runs: diverged and missing ones are counted beside, and are in no mean."""
    return table[table["outcome"] == "finished"]


def last(table: pd.DataFrame, value: str | None = None, by: list[str] | None = None) -> pd.DataFrame:
    """The rows at the end of each run (or run and `by`): at its last step, or the last at which `value` is finite."""
    if value is not None:
        table = table[np.isfinite(table[value])]
    return table[table["step"] == table.groupby([*KEYS, *(by or [])])["step"].transform("max")]


def select(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """The rows whose columns have these values: select(ranks, quantity="error", scope="batch")."""
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def run(main: Callable) -> None:
    """Call a script's main with the words of its command line; of bad input it says one sentence."""
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))
