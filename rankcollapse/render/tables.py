"""What a tidy table of collect.py means: which of its runs count, the end of a run, accuracies in %.

KEYS name a run, ARM what its seeds have in common. One rule of divergence for all that is shown: a test accuracy counts
with the value that the run ended with, be it about chance; all else that was measured in a diverged run counts nowhere.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from rankcollapse.errors import InputError
from rankcollapse.experiment.collect import KEYS, read
from rankcollapse.library import ranks

ARM = KEYS[:-1]
SPECTRUM = ["quantity", "layer", "scope"]
MEASURES = list(ranks.MEASURES)

# A BP gradient that is smaller, beside its weights, than float32 tells apart is no reference for a cosine.
FLOOR = 2.0**-23
ENDED = ["finished", "diverged"]  # the others are missing

Tables = dict[str, pd.DataFrame]


def load(folder: Path, tuned: Path | str | None = None) -> Tables:
    """All, by name, and the table of choices. Accuracies are in %; a row has its run's `outcome`, and where it has a
    `step` the `epoch`. Cosines are as `strike` leaves them.
    """
    tables = {path.name.split(".")[0]: read(path) for path in sorted(Path(folder).glob("*.csv*"))}
    lacking = sorted({"runs", "epochs", "ranks", "alignment", "norms"} - tables.keys())
    if lacking:
        raise InputError(f"{folder} lacks the table of {lacking[0]}: it must be the folder of tables of a preset")
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
    tables["alignment"] = strike(tables["alignment"], tables["norms"])
    return tables if tuned is None else {**tables, "tuned": read(tuned).assign(edge=lambda t: t["edge"].fillna(""))}


def strike(alignment: pd.DataFrame, norms: pd.DataFrame) -> pd.DataFrame:
    """Cosines of gradients whose reference is at the numerical FLOOR are `struck`, and have no value."""
    by = [*KEYS, "layer", "step"]
    squares = norms.pivot(index=by, columns="quantity", values="value").reindex(columns=["reference", "weight"])
    squares = (squares**2).reset_index()
    hidden = squares[squares["layer"] != "head"]  # whose gradient is always exact
    whole = hidden.groupby([*KEYS, "step"])[["reference", "weight"]].sum().reset_index().assign(layer="all")
    low = pd.concat([squares, whole]).set_index(by)
    low = (low["reference"] < FLOOR**2 * low["weight"]).rename("struck")
    struck = alignment[by].join(low, on=by)["struck"].eq(True) & alignment["quantity"].str.startswith("gradient")
    return alignment.assign(struck=struck, value=alignment["value"].mask(struck))


def steps_at(epochs: pd.DataFrame, losses: pd.Series) -> pd.Series:
    """The step at which each run's training loss first reached its loss in `losses`, both by KEYS; NaN if never."""
    curves = dict([*epochs.groupby(KEYS)])
    found = [loss_step(curves[key], loss) if key in curves else np.nan for key, loss in losses.items()]
    return pd.Series(found, index=losses.index, dtype=float)


def at_steps(table: pd.DataFrame, value: str, steps: pd.Series) -> pd.Series:
    """`value` of each run at its step in `steps`, by KEYS, interpolated linearly; NaN beyond what was measured."""
    curves, found = dict([*table[np.isfinite(table[value])].groupby(KEYS)]), []
    for key, step in steps.items():
        at, values = curves[key][["step", value]].to_numpy().T if key in curves else ([-1.0], [np.nan])
        found.append(np.interp(step, at, values, left=np.nan, right=np.nan))
    return pd.Series(found, index=steps.index, dtype=float, name=value)


def lowest_loss(epochs: pd.DataFrame) -> pd.Series:
    """The lowest training loss that each run reaches, by KEYS."""
    return epochs.groupby(KEYS)["train_loss"].min()


def loss_step(curve: pd.DataFrame, loss: float) -> float:
    """The step at which a run's training loss first reached `loss`, interpolated linearly; NaN if it never did.

    The loss of an epoch is the mean over its steps, and stands at its middle: nothing is known before the first's.
    """
    steps = curve["step"].to_numpy() * (1 - 0.5 / curve["epoch"].to_numpy())
    losses = curve["train_loss"].to_numpy()
    if not (losses <= loss).any():
        return np.nan
    first = np.argmax(losses <= loss)
    there = slice(max(first - 1, 0), first + 1)
    return float(np.interp(-loss, -losses[there], steps[there], left=np.nan))


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of finished runs."""
    return table[table["outcome"] == "finished"]


def ended(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of finished and of diverged runs: whose accuracies count."""
    return table[table["outcome"].isin(ENDED)]


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
