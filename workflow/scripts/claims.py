"""Hold each claim of paper/claims.yaml against the tidy tables; the rule for a verdict stands at its head."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy import stats
from summarise import finished

from rankcollapse import files

KEYS = {"id", "statement", "source", "study", "dataset", "quantity", "left", "relation", "right"}


def read_claims(path: Path) -> list[dict]:
    claims = yaml.safe_load(path.read_text())
    for claim in claims:
        wrong = sorted((set(claim) - KEYS - {"paper"}) | (KEYS - set(claim)))
        if (
            wrong
            or claim["relation"] not in ("less", "greater")
            or claim["source"] not in ("abstract", "summary", "ours")
        ):
            raise SystemExit(f"{path}: claim {claim.get('id')!r} has wrong or missing keys or values: {wrong or claim}")
    return claims


def per_seed(claim: dict, arm: str, tables: dict[str, pd.DataFrame]) -> pd.Series:
    """The claim's quantity in one arm, a value per seed that finished; empty where there are no such runs."""
    quantity = claim["quantity"]
    table, column = (
        ("runs", "test_percent") if quantity == "accuracy" else (quantity["table"], quantity.get("measure", "value"))
    )
    rows = tables[table]
    rows = rows[(rows["study"] == claim["study"]) & (rows["dataset"] == claim["dataset"]) & (rows["arm"] == arm)]
    if quantity != "accuracy":
        for key in ("quantity", "layer", "scope"):
            if key in quantity:
                rows = rows[rows[key] == quantity[key]]
        rows = rows[rows["step"] == rows.groupby("seed")["step"].transform("max")]
    return finished(tables["runs"], rows).set_index("seed")[column].dropna()


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean by Student's t; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


def diverged(claim: dict, runs: pd.DataFrame) -> int:
    """How many runs of the claim's two arms diverged."""
    mine = (runs["study"] == claim["study"]) & (runs["dataset"] == claim["dataset"])
    mine &= runs["arm"].isin([claim["left"], claim["right"]])
    return int((runs.loc[mine, "outcome"] == "diverged").sum())


def verdict(relation: str, n: int, diverged: int, low: float, high: float) -> str:
    if n == 0 and not diverged:
        return "not tested"
    if n < 2 or diverged or low <= 0 <= high:
        return "inconclusive"
    return "reproduced" if (high < 0) == (relation == "less") else "not reproduced"


def settle(claim: dict, tables: dict[str, pd.DataFrame]) -> dict:
    """One row of claims.csv."""
    left = per_seed(claim, claim["left"], tables)
    number = isinstance(claim["right"], int | float)
    right = pd.Series(float(claim["right"]), index=left.index) if number else per_seed(claim, claim["right"], tables)
    difference = (left - right).dropna()
    low, high = interval(difference.to_numpy())
    paired, lost = difference.index, diverged(claim, tables["runs"])
    return {
        **{key: claim[key] for key in ("id", "statement", "source", "study", "dataset", "left", "relation", "right")},
        "n": len(difference),
        "diverged": lost,
        "left_mean": left[paired].mean(),
        "right_mean": right[paired].mean(),
        "difference": difference.mean(),
        "low": low,
        "high": high,
        "paper": claim.get("paper"),
        "paper_is": "" if "paper" not in claim else "left" if number else "difference",
        "verdict": verdict(claim["relation"], len(difference), lost, low, high),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--claims", type=Path, required=True)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tidy tables")
    parser.add_argument("--out", type=Path, required=True, help="claims.csv to write")
    args = parser.parse_args()
    runs = pd.read_csv(args.tables / "runs.csv")
    tables = {
        "runs": runs.assign(test_percent=100 * runs["test_accuracy"]),
        "ranks": pd.read_csv(args.tables / "ranks.csv.gz"),
        "alignment": pd.read_csv(args.tables / "alignment.csv"),
    }
    table = pd.DataFrame([settle(claim, tables) for claim in read_claims(args.claims)])
    files.write(args.out, lambda path: table.to_csv(path, index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
