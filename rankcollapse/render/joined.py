"""By how much, how sure, and does rank go with it? Accuracy beside rank, alignment and size of step: by run, by gain.

And whether any of these tells the accuracy of a net of another architecture than those that it was fitted on.
"""

import itertools

import numpy as np
import pandas as pd

from rankcollapse.render import tables as tidy
from rankcollapse.render.claims import reading
from rankcollapse.render.tables import ARM, KEYS, Tables, select

PLAIN = {"normalization": "none", "optimizer": "sgd", "update": "full", "feedback": "same", "schedule": "cosine"}
PLAIN |= {"error": "full"}
# By name: the rows of ranks.csv, and the measure. Unless a layer is named it is the mean log over hidden layers.
RANKS = {
    "gradient_rank": ({"quantity": "gradient_trajectory", "scope": "cumulative"}, "entropy_s2"),
    "whole_gradient_rank": ({"quantity": "gradient_trajectory", "layer": "all", "scope": "cumulative"}, "entropy_s2"),
    "recent_gradient_rank": ({"quantity": "gradient_trajectory", "layer": "all", "scope": "window"}, "entropy_s2"),
    "error_rank": ({"quantity": "error", "scope": "pooled"}, "entropy_s"),
    "batch_error_rank": ({"quantity": "error", "scope": "batch"}, "entropy_s"),
    "activation_rank": ({"quantity": "activation", "scope": "batch"}, "entropy_s"),
    "update_rank": ({"quantity": "update", "scope": "step"}, "entropy_s"),
}
PREDICTORS = [*RANKS, "relative_update", "alignment", "train_loss"]
LOGS = [*RANKS, "relative_update"]  # of these a ratio is told, of the others a difference


def joined(tables: Tables) -> pd.DataFrame:
    """A row per run that ended: its accuracy, and of a finished one what is measured beside it.

    Ranks, the loss and the cosine are those of the end; ‖ΔW‖/‖W‖ is a mean over probes, since at the end of a cosine
    schedule a step has no size, of the geometric mean over hidden layers.
    """
    runs = tidy.ended(tables["runs"])
    made = runs.set_index(KEYS)[["outcome", "test_accuracy", "train_loss"]]
    found = {name: _rank(tables["ranks"], where, measure) for name, (where, measure) in RANKS.items()}
    steps = select(tables["norms"], quantity="relative_update")
    steps = _mean_log(steps[steps["layer"] != "head"], "value", [*KEYS, "step"])
    found["relative_update"] = steps.groupby(KEYS).mean()
    cosines = select(tables["alignment"], quantity="gradient", layer="all")
    found["alignment"] = tidy.last(cosines).set_index(KEYS)["value"]
    made = made.join(pd.DataFrame(found))
    itself = (runs["rule"] == "bp") & (runs["error"].isin(["full"]) if "error" in runs else True)
    made["alignment"] = made["alignment"].mask(itself.to_numpy(), 1.0)
    made.loc[made["outcome"] != "finished", PREDICTORS] = np.nan
    return made.rename(columns={"test_accuracy": "test_percent"}).reset_index()


def _rank(ranks: pd.DataFrame, where: dict, measure: str) -> pd.Series:
    rows = tidy.last(select(ranks, **where), by=["layer"])
    return _mean_log(rows if "layer" in where else rows[~rows["layer"].isin(["head", "all"])], measure)


def _mean_log(rows: pd.DataFrame, value: str, by: list[str] = KEYS) -> pd.Series:
    """By run, or as said, the geometric mean of what is above 0."""
    return np.exp(np.log(rows[value].where(rows[value] > 0)).groupby([rows[key] for key in by]).mean())


def bases(runs: pd.DataFrame) -> pd.Series:
    """By ARM the plain arm of its study and rule: momentum SGD, no normalisation, B of W's law, errors as they come, a
    cosine schedule.

    That arm itself, one whose rule has no plain arm in its study, and one of which some blocks alone learn have none.
    """
    arms = runs[runs["learning_blocks"].isna()].drop_duplicates(ARM)
    plain = [(arms[key] == value) | arms[key].isna() for key, value in PLAIN.items() if key in arms]
    plain = arms[np.all(plain, axis=0) & ~arms["rate"].eq("fixed")].drop_duplicates([*ARM[:-1], "rule"])
    both = arms.merge(plain[[*ARM, "rule"]].rename(columns={"arm": "base"}), on=[*ARM[:-1], "rule"])
    return both[both["arm"] != both["base"]].set_index(ARM)["base"]


def gains(joined: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """A row per arm and predictor: the gain in accuracy over the plain arm of its rule, and the predictor's change.

    Paired by seed, with 95 % intervals by Student's t; the change of a rank or of a size is a ratio. `carried` are the
    points that go with the change: the change of the log times the slope of accuracy within the arms of a study, with
    an interval of the first order (Sobel 1982).
    """
    logs = _logs(joined)
    places = dict([*logs.groupby(ARM[:-1])])
    slopes = {(place, name): _slope(part, name) for place, part in places.items() for name in PREDICTORS}
    by_arm = {arm: part.set_index("seed")[["test_percent", *PREDICTORS]] for arm, part in logs.groupby(ARM)}
    rows = []
    for arm, base in bases(runs).items():
        if arm in by_arm and (*arm[:-1], base) in by_arm:
            changes = by_arm[arm] - by_arm[*arm[:-1], base]
            about = dict(
                zip([*ARM, "base", *_named("gain", "n")], [*arm, base, *_read(changes["test_percent"])], strict=True)
            )
            rows += [about | _carried(name, changes[name], slopes[arm[:-1], name]) for name in PREDICTORS]
    columns = [*ARM, "base", *_named("gain", "n"), "predictor", *_named("change", "pairs"), *_named("carried")]
    return pd.DataFrame(rows, columns=columns)


def _named(value: str, *first: str) -> list[str]:
    return [*first, value, f"{value}_low", f"{value}_high"]


def _read(differences: pd.Series) -> list[float]:
    """As claims.reading, of those that there are."""
    return reading(differences.dropna())


def _carried(name: str, change: pd.Series, slope: tuple[float, float]) -> dict:
    n, *told = _read(change)
    points, half = slope[0] * told[0], 1.96 * np.hypot(slope[1] * told[0], slope[0] * change.sem())
    told = [*np.exp(told)] if name in LOGS else told
    names = [*_named("change", "pairs"), *_named("carried")]
    return {"predictor": name} | dict(zip(names, [n, *told, points, points - half, points + half], strict=True))


def _logs(joined: pd.DataFrame) -> pd.DataFrame:
    return joined.assign(**np.log(joined[LOGS]))


def _slope(part: pd.DataFrame, name: str) -> tuple[float, float]:
    """Points of accuracy by one unit of a predictor, of runs less the mean of their arm, and its standard error."""
    part = part.loc[np.isfinite(part[name]) & part["test_percent"].notna(), [*ARM, name, "test_percent"]]
    less = part[[name, "test_percent"]] - part.groupby(ARM)[[name, "test_percent"]].transform("mean")
    x, y = less[name], less["test_percent"]
    free, width = len(part) - part["arm"].nunique() - 1, (x**2).sum()
    if free < 1 or width == 0:
        return np.nan, np.nan
    slope = (x * y).sum() / width
    return slope, np.sqrt(((y - slope * x) ** 2).sum() / free / width)


def heldout(joined: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """A row per predictor and architecture: how well it tells that one's accuracies, fitted on the others alone.

    A point is an arm that has all predictors, by the means of its finished runs: the log of its accuracy over that of
    FA in its study, and the predictor's change. One slope, through FA, to which each architecture adds as much. `r2` is
    1 where all is told, 0 where nothing is, and below where a guess of no gain is better; `correlation` is Spearman's,
    over the arms of the architecture.
    """
    joined = joined[joined["outcome"] == "finished"]
    means = _logs(joined).groupby(ARM)[["test_percent", *PREDICTORS]].mean()
    means["test_percent"] = np.log(means["test_percent"])
    rules = runs.drop_duplicates(ARM).set_index(ARM)["rule"]
    plain = {
        arm[:-1]: base for arm, base in bases(runs).items() if rules[arm] == "fa" and (*arm[:-1], base) in means.index
    }
    points = [
        (means.loc[place] - means.loc[(*place, fa)]).drop(fa).assign(architecture=place[-1])
        for place, fa in plain.items()
    ]
    points, rows = pd.concat(points) if points else pd.DataFrame(columns=["architecture"]), []
    measured = [name for name in PREDICTORS if len(points) and points[name].notna().any()]
    points = points.dropna(subset=[*measured, "test_percent"] if len(points) else [])
    for name, held in itertools.product(measured, points["architecture"].unique()):
        rest, own = (points[points["architecture"].eq(held) == mine] for mine in (False, True))
        if len(rest) > 1 and len(own) > 2:
            weight = 1 / rest.groupby("architecture")[name].transform("size")
            slope = (weight * rest[name] * rest["test_percent"]).sum() / (weight * rest[name] ** 2).sum()
            left = ((own["test_percent"] - slope * own[name]) ** 2).sum() / (own["test_percent"] ** 2).sum()
            alike = own[[name, "test_percent"]].corr("spearman").iloc[0, 1]
            rows.append([name, held, len(rest), len(own), slope, 1 - left, alike])
    return pd.DataFrame(rows, columns=["predictor", "architecture", "fitted", "arms", "slope", "r2", "correlation"])
