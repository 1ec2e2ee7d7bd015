"""Does accuracy go with rank? Correlations over the runs of a study, frozen nets included.

If a remedy helps through the rank, then arms of a higher rank are more accurate (`between`), runs of one arm are too
(`within`), and arms that have learnt equally much still are (`given_loss`: less what the final training loss tells).
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from rankcollapse.render import tables as tidy
from rankcollapse.render.tables import ARM, KEYS, MEASURES, SPECTRUM, Tables

DRAWS = 500  # of the bootstrap
LEAST = 4  # arms, for a correlation of them
PLACE = ARM[:-1]
LEARNING = [
    f"{rule}{more}" for rule in ("fa", "dfa", "usf", "brsf", "frsf", "kp", "wm") for more in ("", "+bn", "+muon")
]
RIVALS = {"whole_gradient_rank": "alignment", "alignment": "whole_gradient_rank"}  # each given the other


def mediation(tables: Tables) -> pd.DataFrame:
    """A row per study, matrix and measure: correlations of test accuracy with the log of the rank, both at the end.

    The layer `hidden` is the mean of the logs over all layers but the last; a rank of 0 has none. With 95 % intervals
    of a bootstrap over arms, and over seeds within them. Of finished runs; nets of which some blocks alone learn are
    left out.
    """
    runs = tidy.finished(tables["runs"])
    runs = runs[runs["learning_blocks"].isna()][[*KEYS, "test_accuracy", "train_loss"]]
    ranks = tidy.last(tidy.finished(tables["ranks"]), by=SPECTRUM)
    with np.errstate(divide="ignore"):
        logs = ranks[[*KEYS, *SPECTRUM]].join(np.log(ranks[MEASURES]))
    logs = pd.concat([_hidden(logs), logs]).merge(runs, on=KEYS)
    rows = []
    for key, part in logs.groupby([*PLACE, *SPECTRUM], sort=False):
        for measure in MEASURES:
            found = correlations(part.rename(columns={measure: "log_rank"}))
            if found:
                rows.append({**dict(zip([*PLACE, *SPECTRUM], key, strict=True)), "measure": measure, **found})
    columns = [*PLACE, *SPECTRUM, "measure", "arms", "n"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def rules(joined: pd.DataFrame) -> pd.DataFrame:
    """Rank or alignment? A row per study and predictor of joined.joined: correlations over the learning rules with a B.

    Plain, with normalisation and with Muon, of finished runs: of test accuracy with the log of the rank of all
    gradients, and with the cosine of the gradient with BP's; `given_other` is less what the other of them tells. The
    bootstrap is over rules, each with its arms, which are alike.
    """
    runs = tidy.finished(joined)
    runs = runs[runs["arm"].isin(LEARNING)].rename(columns={"test_percent": "test_accuracy"})
    runs = runs.assign(whole_gradient_rank=np.log(runs["whole_gradient_rank"]))
    rows = []
    for place, part in runs.groupby(PLACE, sort=False):
        for name, other in RIVALS.items():
            part = part.assign(log_rank=part[name], train_loss=part[other], together=part["arm"].str.split("+").str[0])
            found = correlations(part)
            found = {key.replace("given_loss", "given_other"): value for key, value in found.items()}
            rows += [{**dict(zip(PLACE, place, strict=True)), "predictor": name, **found}] * bool(found)
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*PLACE, "predictor", "arms", "n"])


def _hidden(logs: pd.DataFrame) -> pd.DataFrame:
    """The mean over the layers but the last, of quantities that several layers have."""
    inner = logs[(logs["layer"] != "head") & (logs["layer"] != "all")]
    several = inner.groupby(["quantity", "scope"])["layer"].transform("nunique") > 1
    by = [*KEYS, "quantity", "scope"]
    return inner[several].groupby(by, sort=False)[MEASURES].mean().reset_index().assign(layer="hidden")


def correlations(part: pd.DataFrame) -> dict[str, float]:
    """`between`, `within` and `given_loss` with their intervals, of runs [arm, seed] with log_rank, test_accuracy and
    train_loss; nothing for fewer than LEAST arms. Arms that share a value of `together`, if there is that column, are
    drawn together.
    """
    part = part[np.isfinite(part[["log_rank", "test_accuracy", "train_loss"]]).all(axis=1)]
    wide = [part.pivot(index="arm", columns="seed", values=v) for v in ("log_rank", "test_accuracy", "train_loss")]
    values = np.stack([table.to_numpy(float) for table in wide])  # [3, arms, seeds], NaN where there is no run
    if values.shape[1] < LEAST:
        return {}
    found = {"arms": values.shape[1], "n": int(np.isfinite(values[0]).sum())}
    names = part.groupby("arm")["together"].first() if "together" in part else pd.Series(wide[0].index, wide[0].index)
    drawn = _drawn(values, [np.flatnonzero(names == name) for name in names.unique()])
    for name, statistic in (("between", _between), ("within", _within), ("given_loss", _given_loss)):
        low, high = _interval(statistic, drawn)
        found |= {name: float(statistic(values[None])[0]), f"{name}_low": low, f"{name}_high": high}
    return found


def _drawn(values: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Groups of arms drawn with replacement, and of each arm its runs [draws, 3, arms, seeds]; the rest is NaN."""
    generator = np.random.Generator(np.random.PCG64(0))
    values = np.concatenate([values, np.full_like(values[:, :1], np.nan)], axis=1)  # -1: an arm that there is not
    table = np.full((len(groups), max(map(len, groups))), -1)
    for row, arms in zip(table, groups, strict=True):
        row[: len(arms)] = arms
    which = table[generator.integers(len(groups), size=(DRAWS, len(groups)))].reshape(DRAWS, -1)
    seeds = values.shape[-1]
    runs = generator.random((*which.shape, seeds))
    there = np.isfinite(values[0])
    order = np.argsort(~there, axis=1, kind="stable")  # an arm's runs first
    place = np.take_along_axis(order[which], (runs * there.sum(1)[which][..., None]).astype(int), axis=2)
    place = np.where(np.arange(seeds) < there.sum(1)[which][..., None], place, -1)
    drawn = values[:, which[..., None], place]  # [3, draws, arms, seeds]
    return np.moveaxis(np.where(place < 0, np.nan, drawn), 0, 1)


def _interval(statistic: Callable[[np.ndarray], np.ndarray], drawn: np.ndarray) -> tuple[float, float]:
    found = statistic(drawn)
    found = found[np.isfinite(found)]
    return tuple(np.percentile(found, [2.5, 97.5])) if len(found) else (np.nan, np.nan)


def _between(values: np.ndarray) -> np.ndarray:
    """Of the means of arms [draws, 3, arms, seeds]."""
    rank, accuracy, _ = np.moveaxis(_mean(values)[..., 0], 1, 0)
    return _correlation(rank, accuracy)


def _within(values: np.ndarray) -> np.ndarray:
    """Of runs, less the mean of their arm."""
    rank, accuracy, _ = np.moveaxis(values - _mean(values), 1, 0)
    return _correlation(rank.reshape(len(rank), -1), accuracy.reshape(len(rank), -1))


def _given_loss(values: np.ndarray) -> np.ndarray:
    """Of the means of arms, less what a line through their training losses tells: a partial correlation."""
    rank, accuracy, loss = np.moveaxis(_mean(values)[..., 0], 1, 0)
    ra, rl, al = _correlation(rank, accuracy), _correlation(rank, loss), _correlation(accuracy, loss)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (ra - rl * al) / np.sqrt((1 - rl**2) * (1 - al**2))
    return np.where(np.maximum(rl**2, al**2) < 1 - 1e-9, found, np.nan)  # what is left of a line is rounding alone


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's, along the last axis, NaN left out; NaN where one does not vary."""
    a, b = (x - _mean(x) for x in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nansum(a * b, axis=-1) / np.sqrt(np.nansum(a**2, axis=-1) * np.nansum(b**2, axis=-1))


def _mean(values: np.ndarray) -> np.ndarray:
    """Along the last axis, which stays, NaN left out; of equal values that value, to the bit."""
    largest = np.fmax.reduce(values, axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return largest + np.nansum(values - largest, axis=-1, keepdims=True) / np.isfinite(values).sum(
            -1, keepdims=True
        )
