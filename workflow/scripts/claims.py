"""Each claim of paper/claims.yaml, held against the tidy tables by the rule for a verdict at the head of that file."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import yaml
from analysis import MEASURES, SPECTRUM, Tables, finished, last, select
from pydantic import BeforeValidator
from scipy import stats

from rankcollapse import config, datasets
from rankcollapse.errors import InputError

BASE = config.read(Path(__file__).parents[2] / "config.yaml")  # has studies and arms that a preset may lack
SOURCES = {"%": ("runs", "test_accuracy"), "cosine": ("alignment", "value"), **{m: ("ranks", m) for m in MEASURES}}


def quantity(given: object) -> dict[str, str | None]:
    """What is compared at the end of training, as columns of claims.csv."""
    match given:
        case "accuracy":
            return {"quantity": "accuracy", "layer": None, "scope": None, "measure": "%"}
        case {"table": "ranks", "measure": measure, **rows} if measure in MEASURES and rows.keys() == {*SPECTRUM}:
            return {**rows, "measure": measure}
        case {"table": "alignment", **rows} if rows.keys() == {"quantity", "layer"}:
            return {**rows, "scope": None, "measure": "cosine"}
    rank = f"table: ranks, quantity, layer, scope and measure ({', '.join(MEASURES)})"
    raise ValueError(f"it must be accuracy, or {rank}, or table: alignment, quantity and layer")


class Claim(config.Strict):
    id: str
    statement: str
    source: Literal["abstract", "summary", "ours"]
    study: str
    dataset: str
    quantity: Annotated[dict[str, str | None], BeforeValidator(quantity)]
    left: str
    relation: Literal["less", "greater"]
    right: str | int | float
    paper: int | float | None = None


def read_claims(path: Path) -> list[Claim]:
    """Raises InputError, one sentence, for a file that is not a list of claims."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [config.checked(Claim, claim, f"{path}: claim {claim.get('id')!r}") for claim in found]
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise InputError(f"{path} must be a list of claims, each a mapping ({' '.join(str(error).split())})") from error


def per_seed(claim: Claim, arm: str, tables: Tables) -> pd.Series:
    """The claim's quantity in one arm, a value per finished seed. Raises InputError for a name that is not there."""
    runs, (table, column_of_values) = tables["runs"], SOURCES[claim.quantity["measure"]]
    known = {
        "study": {*runs["study"], *(study["name"] for study in BASE["studies"])},
        "dataset": {*datasets.SETS},
        "arm": {*runs["arm"], *BASE["arms"]},
    }
    place = {"study": claim.study, "dataset": claim.dataset, "arm": arm}
    tested, rows, here = not finished(select(runs, **place)).empty, finished(tables[table]), ", ".join(place.values())
    for column, name in {**place, **claim.quantity}.items():
        if column not in rows:
            continue
        options = known[column] if column in known else rows[column].unique()
        if name not in options and (tested or column in known):
            near = difflib.get_close_matches(name, options, n=1)
            right = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(options)) or 'none'}"
            raise InputError(f"claim {claim.id!r}: {column} {name!r} is unknown in {here}; {right}")
        rows = select(rows, **{column: name})
    return (last(rows) if "step" in rows else rows).set_index("seed")[column_of_values].dropna()


def verdict(relation: str, n: int, diverged: int, low: float, high: float) -> str:
    if n == 0 and not diverged:
        return "not tested"
    if n < 2 or diverged or low <= 0 <= high:
        return "inconclusive"
    return "reproduced" if (high < 0) == (relation == "less") else "not reproduced"


def settle(claim: Claim, tables: Tables) -> dict:
    """One row of claims.csv. Raises InputError, one sentence, for a claim on what is not there."""
    left, number = per_seed(claim, claim.left, tables), not isinstance(claim.right, str)
    right = pd.Series(float(claim.right), index=left.index) if number else per_seed(claim, claim.right, tables)
    difference = (left - right).dropna()
    n, mean = len(difference), difference.mean()
    half = stats.t.ppf(0.975, n - 1) * difference.sem()  # of the 95 % interval; NaN for n < 2
    runs = select(tables["runs"], study=claim.study, dataset=claim.dataset, outcome="diverged")
    diverged = runs["arm"].isin([claim.left, claim.right]).sum()
    return {
        **claim.model_dump(include={"id", "statement", "source", "study", "dataset"}),
        **claim.quantity,
        **claim.model_dump(include={"left", "relation", "right"}),
        "n": n,
        "diverged": diverged,
        "left_mean": left[difference.index].mean(),
        "right_mean": right[difference.index].mean(),
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
        "paper": claim.paper,
        "paper_is": "" if claim.paper is None else "left" if number else "difference",
        "verdict": verdict(claim.relation, n, diverged, mean - half, mean + half),
    }
