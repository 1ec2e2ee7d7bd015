"""Hold each claim of paper/claims.yaml against the tidy tables; the rule for a verdict stands at its head."""

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import yaml
from analysis import MEASURES, SPECTRUM, Tables, finished, last, load, select, write
from pydantic import BeforeValidator, Field, model_validator
from scipy import stats

from rankcollapse.config import Strict, checked
from rankcollapse.errors import InputError

NEEDS = {"runs": [], "ranks": [*SPECTRUM, "measure"], "alignment": ["quantity", "layer"]}  # keys of a quantity


class Quantity(Strict):
    """What is compared at the end of training: test accuracy (table runs), a rank, or a cosine."""

    table: Literal["runs", "ranks", "alignment"]
    quantity: str | None = None
    layer: str | None = None
    scope: str | None = None
    measure: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Quantity":
        if self.model_fields_set != {"table", *NEEDS[self.table]}:
            raise ValueError(f"beside table {self.table!r} it must have {', '.join(NEEDS[self.table]) or 'nothing'}")
        return self

    @property
    def where(self) -> dict[str, str]:
        """The columns and values that pick its rows."""
        return self.model_dump(include=set(SPECTRUM), exclude_none=True)

    @property
    def column_unit(self) -> tuple[str, str]:
        return {"runs": ("test_accuracy", "%"), "alignment": ("value", "cosine")}.get(self.table, (self.measure,) * 2)


class Claim(Strict):
    id: str
    statement: str
    source: Literal["abstract", "summary", "ours"]
    study: str
    dataset: str
    quantity: Annotated[Quantity, BeforeValidator(lambda q: {"table": "runs"} if q == "accuracy" else q)] = Field(
        description="accuracy, or the table, quantity and layer of a rank or a cosine"
    )
    left: str
    relation: Literal["less", "greater"]
    right: str | int | float = Field(description="an arm or a number")
    paper: int | float | None = None

    @property
    def arms(self) -> list[str]:
        return [arm for arm in (self.left, self.right) if isinstance(arm, str)]

    def rows(self, table: pd.DataFrame, arm: str) -> pd.DataFrame:
        """The rows of its study and data set in one arm."""
        return select(table, study=self.study, dataset=self.dataset, arm=arm)


def read_claims(path: Path) -> list[Claim]:
    """Raises InputError, one sentence, for a file that is not a list of claims."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, list) or not all(isinstance(claim, dict) for claim in found):
        raise InputError(f"{path} must be a list of claims, each a mapping of keys to values")
    return [checked(Claim, claim, f"{path}: claim {claim.get('id')!r}") for claim in found]


def check(claim: Claim, names: dict[str, list[str]], tables: Tables) -> None:
    """Raises InputError for a name that no config knows, or that finished runs of the claim's arms do not have."""

    def known(what: str, value: str, options: list[str], where: str = "") -> None:
        if value not in options:
            near = difflib.get_close_matches(value, options, n=1)
            right = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(options) or 'none'}"
            raise InputError(f"claim {claim.id!r}: {what} {value!r} is unknown{where}; {right}")

    known("study", claim.study, names["studies"])
    known("data set", claim.dataset, names["datasets"])
    if claim.quantity.measure is not None:
        known("measure", claim.quantity.measure, MEASURES)
    for arm in claim.arms:
        known("arm", arm, names["arms"])
        rows = finished(claim.rows(tables[claim.quantity.table], arm))
        if not finished(claim.rows(tables["runs"], arm)).empty:
            for column, value in claim.quantity.where.items():
                where = f" among the {claim.quantity.table} of {claim.study}, {claim.dataset}, {arm}"
                known(column, value, list(rows[column].unique()), where)
                rows = select(rows, **{column: value})


def per_seed(claim: Claim, arm: str, tables: Tables) -> pd.Series:
    """The claim's quantity in one arm, a value per seed that finished; empty where there are no such runs."""
    rows = finished(select(claim.rows(tables[claim.quantity.table], arm), **claim.quantity.where))
    rows = last(rows) if "step" in rows else rows
    return rows.set_index("seed")[claim.quantity.column_unit[0]].dropna()


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean by Student's t; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


def verdict(relation: str, n: int, diverged: int, low: float, high: float) -> str:
    if n == 0 and not diverged:
        return "not tested"
    if n < 2 or diverged or low <= 0 <= high:
        return "inconclusive"
    return "reproduced" if (high < 0) == (relation == "less") else "not reproduced"


def settle(claim: Claim, tables: Tables) -> dict:
    """One row of claims.csv."""
    left, number = per_seed(claim, claim.left, tables), not isinstance(claim.right, str)
    right = pd.Series(float(claim.right), index=left.index) if number else per_seed(claim, claim.right, tables)
    difference = (left - right).dropna()
    low, high = interval(difference.to_numpy())
    diverged = sum((claim.rows(tables["runs"], arm)["outcome"] == "diverged").sum() for arm in claim.arms)
    return {
        **claim.model_dump(include={"id", "statement", "source", "study", "dataset"}),
        **{"quantity": "accuracy", "layer": None, "scope": None, **claim.quantity.where},
        "measure": claim.quantity.column_unit[1],
        **claim.model_dump(include={"left", "relation", "right"}),
        "n": len(difference),
        "diverged": diverged,
        "left_mean": left[difference.index].mean(),
        "right_mean": right[difference.index].mean(),
        "difference": difference.mean(),
        "low": low,
        "high": high,
        "paper": claim.paper,
        "paper_is": "" if claim.paper is None else "left" if number else "difference",
        "verdict": verdict(claim.relation, len(difference), diverged, low, high),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--claims", type=Path, required=True)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tidy tables")
    parser.add_argument("--names", type=json.loads, required=True, help="JSON: all known studies, arms and datasets")
    parser.add_argument("--out", type=Path, required=True, help="claims.csv to write")
    args = parser.parse_args()
    tables = load(args.tables)
    try:
        claims = read_claims(args.claims)
        for claim in claims:
            check(claim, args.names, tables)
    except InputError as error:
        sys.exit(str(error))
    write(args.out, pd.DataFrame([settle(claim, tables) for claim in claims]), digits=4)


if __name__ == "__main__":
    main()
