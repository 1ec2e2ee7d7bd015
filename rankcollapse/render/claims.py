"""Each claim of paper/claims.yaml, held against the tidy tables by the rule for a verdict at the head of that file."""

import difflib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field, model_validator
from scipy import stats
from typing_extensions import TypedDict

from rankcollapse.errors import InputError
from rankcollapse.experiment import config, datasets
from rankcollapse.experiment.collect import KEYS
from rankcollapse.render.tables import MEASURES, SPECTRUM, Tables, at_steps, ended, finished, last, lowest_loss, select
from rankcollapse.render.tables import steps_at

SOURCES = {"%": ("runs", "test_accuracy"), "cosine": ("alignment", "value"), **{m: ("ranks", m) for m in MEASURES}}
LEVEL = 0.05  # of a test; intervals are 1 - LEVEL
# By family: what a difference on the claimed side is called, and one on the other.
WORDS = {"statement": ("reproduced", "not reproduced"), "depth utility": ("better", "worse")}


class Quantity(TypedDict):
    """What is compared, as columns of claims.csv; `rows` is the T of a trajectory, None for all that was measured."""

    quantity: str
    layer: str | None
    scope: str | None
    rows: int | None
    measure: str


def quantity(given: object) -> Quantity:
    match given:
        case "accuracy":
            return {"quantity": "accuracy", "layer": None, "scope": None, "rows": None, "measure": "%"}
        case {"table": "ranks", "measure": measure, **rows} if measure in MEASURES and {*SPECTRUM} <= rows.keys() <= {
            *SPECTRUM,
            "rows",
        }:
            return {**{key: rows[key] for key in SPECTRUM}, "rows": rows.get("rows"), "measure": measure}
        case {"table": "alignment", **rows} if rows.keys() == {"quantity", "layer"}:
            return {**rows, "scope": None, "rows": None, "measure": "cosine"}
    rank = f"table: ranks, quantity, layer, scope and measure ({', '.join(MEASURES)}), and rows if it is one T"
    raise ValueError(f"it must be accuracy, or {rank}, or table: alignment, quantity and layer")


class Claim(config.Strict):
    id: str
    family: Literal["statement", "depth utility"] = "statement"
    statement: str
    source: Literal["abstract", "summary", "ours"]
    study: str
    dataset: str
    quantity: Annotated[Quantity, BeforeValidator(quantity)]
    at: Literal["end", "equal loss"] = "end"
    left: str
    relation: Literal["less", "greater"]
    right: str | int | float
    frozen: str | None = None  # depth utility: what learns in the frozen net
    paper: int | float | None = None
    control: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    structural: str | None = None  # why the rule itself makes it so

    @model_validator(mode="after")
    def _along_the_way(self) -> "Claim":
        if self.at == "equal loss" and self.quantity["measure"] == "%":
            raise ValueError("accuracy is that of the end; at equal loss there are ranks and cosines")
        return self


@functools.cache
def base() -> dict:
    """The paper's grid, which has studies and arms that a preset may lack."""
    return config.read(Path(__file__).parents[2] / "config.yaml")


def label(arm: str) -> str:
    return base()["arms"].get(arm, {"label": arm})["label"]


class DepthUtility(config.Strict):
    places: dict[str, str]  # study: data set
    frozen: dict[str, dict[str, str]]  # what learns in the frozen net: {arm: frozen arm}

    def claims(self) -> list[dict]:
        """One for each pair in each place: the arm is more accurate than the frozen one."""
        return [
            {
                "id": f"{study}-{left}-over-{right}",
                "family": "depth utility",
                "statement": f"{label(left)} is more accurate than {label(right)} in {study}",
                "source": "ours",
                "study": study,
                "dataset": dataset,
                "quantity": "accuracy",
                "left": left,
                "relation": "greater",
                "right": right,
                "frozen": learns,
            }
            for study, dataset in self.places.items()
            for learns, pairs in self.frozen.items()
            for left, right in pairs.items()
        ]


def read_claims(path: Path) -> list[Claim]:
    """The statements, then the depth utility. Raises InputError, one sentence, for a file that does not hold them."""
    found = config.read(path)
    try:
        claims = found["statements"]
        claims = claims + config.checked(DepthUtility, found["depth_utility"], f"{path}: depth_utility").claims()
        return [config.checked(Claim, claim, f"{path}: claim {claim.get('id')!r}") for claim in claims]
    except (KeyError, AttributeError, TypeError) as error:
        what = "must hold statements, a list of claims, each a mapping, and depth_utility"
        raise InputError(f"{path} {what} ({' '.join(str(error).split())})") from error


def counts(claim: Claim) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Which rows a claim's means and tests are over, by the rule of divergence in tables.py."""
    return ended if claim.quantity["measure"] == "%" else finished


def measured(claim: Claim, arm: str, tables: Tables, over: Callable) -> pd.DataFrame:
    """The rows of the claim's quantity in one arm's runs that count. Raises InputError for a name that is not there."""
    runs, (table, _) = tables["runs"], SOURCES[claim.quantity["measure"]]
    known = {
        "study": {*runs["study"], *(study["name"] for study in base()["studies"])},
        "dataset": {*datasets.SETS},
        "arm": {*runs["arm"], *base()["arms"]},
    }
    place = {"study": claim.study, "dataset": claim.dataset, "arm": arm}
    tested, rows, here = not over(select(runs, **place)).empty, over(tables[table]), ", ".join(place.values())
    for column, name in {**place, **claim.quantity}.items():
        if column not in rows or name is None:
            continue
        options = known[column] if column in known else rows[column].unique()
        if name not in options and column != "rows" and (tested or column in known):
            near = difflib.get_close_matches(str(name), map(str, options), n=1)
            names = ", ".join(sorted(map(str, options)))
            right = f"did you mean {near[0]!r}?" if near else f"known: {names or 'none'}"
            raise InputError(f"claim {claim.id!r}: {column} {name!r} is unknown in {here}; {right}")
        rows = select(rows, **{column: name})
    return rows


def pairs(claim: Claim, left: str, right: str | float, tables: Tables, over: Callable | None = None) -> pd.DataFrame:
    """Columns left and right, a row per seed that both have. over: which rows count, if not those of `counts`."""
    column, over = SOURCES[claim.quantity["measure"]][1], over or counts(claim)
    sides = [measured(claim, side, tables, over) for side in (left, right) if isinstance(side, str)]
    if claim.at == "equal loss":
        found = at_equal_loss(sides, column, tables["epochs"])
    else:
        ends = [last(rows) if "step" in rows else rows for rows in sides]
        found = [rows.set_index("seed")[column] for rows in ends]
    if not isinstance(right, str):
        found.append(pd.Series(float(right), index=found[0].index))
    return pd.concat(found, axis=1, keys=["left", "right"]).dropna()


def at_equal_loss(sides: list[pd.DataFrame], column: str, epochs: pd.DataFrame) -> list[pd.Series]:
    """`column` of both sides, by seed, at the lowest training loss that both runs of a seed reach."""
    runs = [rows[KEYS].drop_duplicates() for rows in sides]
    losses = [lowest_loss(mine.merge(epochs, on=KEYS)).droplevel(KEYS[:-1]) for mine in runs]
    common = pd.concat(losses, axis=1).max(axis=1, skipna=False)
    found = []
    for rows, mine in zip(sides, runs, strict=True):
        keys = pd.MultiIndex.from_frame(mine)
        wanted = pd.Series(common.reindex(keys.get_level_values("seed")).to_numpy(), index=keys)
        found.append(at_steps(rows, column, steps_at(epochs, wanted)).droplevel(KEYS[:-1]))
    return found


def interval(differences: pd.Series) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t; without ends for n < 2."""
    mean, n = differences.mean(), len(differences)
    half = stats.t.ppf(1 - LEVEL / 2, n - 1) * differences.sem() if n > 1 else np.nan
    return mean, mean - half, mean + half


def reading(differences: pd.Series) -> dict:
    """n pairs, their mean difference with its interval, and the p of Student's t."""
    mean, low, high = interval(differences)
    told = len(differences) > 1 and differences.sem() > 0
    p = stats.ttest_1samp(differences, 0).pvalue if told else np.nan
    return {"n": len(differences), "difference": mean, "low": low, "high": high, "p": p}


def lost(claim: Claim, sides: list, tables: Tables) -> dict:
    """How many runs of these arms diverged, and how many are missing."""
    here = select(tables["runs"], study=claim.study, dataset=claim.dataset)
    outcomes = here.loc[here["arm"].isin(sides), "outcome"]
    return {what: (outcomes == what).sum() for what in ("diverged", "missing")}


def control(claim: Claim, differences: pd.Series, tables: Tables) -> dict:
    """What the frozen nets have of the same gain, and what is left of it above theirs, paired by seed."""
    columns = ["left", "right", "n", "diverged", "missing", "difference", "low", "high", "percent"]
    columns = [*(f"control_{column}" for column in columns), "rest", "rest_low", "rest_high"]
    if claim.control is None:
        return dict.fromkeys(columns)
    two = pairs(claim, *claim.control, tables)
    theirs = two["left"] - two["right"]
    gain = interval(theirs)
    percent = 100 * gain[0] / differences.mean() if differences.mean() else np.nan
    runs = len(theirs), *lost(claim, claim.control, tables).values()
    values = (*claim.control, *runs, *gain, percent, *interval((differences - theirs).dropna()))
    return dict(zip(columns, values, strict=True))


def settle(claim: Claim, tables: Tables) -> dict:
    """One row of claims.csv, without the verdict. Raises InputError, one sentence, for a claim on what is not there.

    Its columns ending in _finished are the other reading of what diverged: as if those runs were not there.
    """
    sides = [claim.left, claim.right]
    two, sound = (pairs(claim, *sides, tables, over) for over in (None, finished))
    difference = two["left"] - two["right"]
    n, here = len(difference), select(tables["runs"], study=claim.study, dataset=claim.dataset)
    power = stats.t.ppf(1 - LEVEL / 2, n - 1) + stats.t.ppf(0.8, n - 1) if n > 1 else np.nan
    theirs = {"abstract": "abstract", "summary": "unverified note"}  # where the paper's number is from
    return {
        **claim.model_dump(include={"id", "family", "statement", "source", "study", "dataset"}),
        **claim.quantity,
        **claim.model_dump(include={"at", "left", "relation", "right", "frozen"}),
        "rates": "; ".join(here.loc[here["arm"].isin(sides), "rate"].drop_duplicates()),
        "left_mean": two["left"].mean(),
        "right_mean": two["right"].mean(),
        **reading(difference),
        "detectable": power * difference.sem(),
        **lost(claim, sides, tables),
        **{f"{key}_finished": value for key, value in reading(sound["left"] - sound["right"]).items()},
        **control(claim, difference, tables),
        "paper": claim.paper,
        "paper_is": "" if claim.paper is None else "difference" if isinstance(claim.right, str) else "left",
        "paper_source": "" if claim.paper is None else theirs.get(claim.source),
        "structural": claim.structural,
    }


def holm(p: pd.Series) -> pd.Series:
    """p-values corrected for their number by Holm's step-down method (1979)."""
    ordered = p.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def verdict(row: pd.Series) -> str:
    """By the rule at the head of paper/claims.yaml."""
    claimed = 1 if row["relation"] == "greater" else -1
    if row["n"] == 0 and not row["diverged"]:
        return "not tested"
    if pd.notna(row["structural"]):
        return "by construction"
    if row["n"] < 2 or not row["p_holm"] < LEVEL:
        return "inconclusive"
    holds, fails = WORDS[row["family"]]
    if claimed * row["difference"] < 0:
        return fails
    gains = min(claimed * np.array([row["control_low"], row["control_high"]], dtype=float)) > 0
    left_over = min(claimed * np.array([row["rest_low"], row["rest_high"]], dtype=float)) > 0
    return "explained by the control" if gains and not left_over else holds


def settled(claims: list[Claim], tables: Tables) -> pd.DataFrame:
    """claims.csv: a row per claim, with p-values corrected over its family and the verdict."""
    table = pd.DataFrame([settle(claim, tables) for claim in claims])
    for reading_of in ("", "_finished"):
        counted = table[f"p{reading_of}"].mask(table["structural"].notna())
        corrected = counted.groupby(table["family"]).transform(holm)
        table.insert(table.columns.get_loc(f"p{reading_of}") + 1, f"p_holm{reading_of}", corrected)
    return table.assign(verdict=table.apply(verdict, axis=1))
