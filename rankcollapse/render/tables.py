"""What a tidy table of collect.py means: which of its runs count, the end of a run, accuracies in %.

KEYS name a run, ARM what its seeds have in common. One rule of divergence for all that is shown: a test accuracy counts
with the value that the run ended with, be it about chance; all else that was measured in a diverged run counts nowhere.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from rankcollapse.experiment.collect import KEYS, read
from rankcollapse.library import ranks

ARM = KEYS[:-1]
SPECTRUM = ["quantity", "layer", "scope"]
MEASURES = list(ranks.MEASURES)
FILES = ["runs.csv", "epochs.csv", "ranks.csv.gz", "alignment.csv.gz", "norms.csv.gz"]
ENDED = ["finished", "diverged"]  # the other outcome is missing
# A BP gradient that is smaller, beside its weights, than float32 tells apart is no reference for a cosine.
FLOOR = 2.0**-23

Tables = dict[str, pd.DataFrame]


def load(folder: Path, tuned: Path | None = None) -> Tables:
    """All, by name, and the choices. Accuracies are in %; a row has its run's outcome, and with a step its epoch.

    The gradients of a net of which a part is frozen are those of the rest, another matrix than the whole net's: their
    rank has no row for the layer `all`.
    """
    tables = {name.split(".")[0]: read(folder / name) for name in FILES}
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
    tables["ranks"] = of_whole_nets(tables["ranks"], runs)
    return tables if tuned is None else {**tables, "tuned": read(tuned).assign(edge=lambda t: t["edge"].fillna(""))}


def of_whole_nets(ranks: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Without the trajectories of the layer `all` of which some matrices have no part."""
    partial = runs["rule"].str.startswith("frozen") | runs["learning_blocks"].notna()
    arms = pd.MultiIndex.from_frame(runs.loc[partial, ARM].drop_duplicates())
    whole = ranks["layer"].eq("all") & ranks["quantity"].eq("gradient_trajectory")
    return ranks[~(whole & pd.MultiIndex.from_frame(ranks[ARM]).isin(arms))]


def published(texts: Path) -> pd.DataFrame:
    """The accuracies that are quoted of the paper, in %, with where they were read: paper/published.yaml."""
    found = yaml.safe_load((texts / "published.yaml").read_text(encoding="utf-8"))
    return pd.DataFrame(found, columns=[*ARM[1:], "paper_percent", "paper_source"])


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


def equal_loss(arms: list[pd.DataFrame], epochs: pd.DataFrame) -> tuple[dict, list[dict]]:
    """By seed the lowest training loss that the runs of all these arms reach, and for each arm the steps where."""
    curves = [dict([*rows[KEYS].drop_duplicates().merge(epochs, on=KEYS).groupby("seed")]) for rows in arms]
    seeds = sorted(set.intersection(*map(set, curves)))
    losses = {seed: max(mine[seed]["train_loss"].min() for mine in curves) for seed in seeds}
    return losses, [{seed: loss_step(mine[seed], loss) for seed, loss in losses.items()} for mine in curves]


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


def at_steps(rows: pd.DataFrame, value: str, steps: dict) -> pd.Series:
    """By seed `value` of an arm's runs at their `steps`, interpolated linearly; NaN beyond what was measured."""
    curves = dict([*rows[np.isfinite(rows[value])].groupby("seed")[["step", value]]])
    found = {seed: curves[seed].to_numpy().T for seed in steps if seed in curves}
    found = {seed: np.interp(steps[seed], *curve, left=np.nan, right=np.nan) for seed, curve in found.items()}
    return pd.Series(found, dtype=float)


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
