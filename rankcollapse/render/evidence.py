"""What the committed summaries of several presets say, under names that a sentence can use.

quick                              `there`, if the preset has summaries
quick/muon-cnn                     a claim: its verdict, and as text the difference with its interval
quick/muon-cnn.control_difference  any other column of claims.csv; .size is the difference without its sign
quick/cnn4/fa                      an arm of a study: its test accuracy; .lr, or any column of accuracy.csv
quick/heldout/train_loss/mlp       R² of a measure for .arms of an architecture that it was not fitted on: heldout.csv;
                                   .order is Spearman's correlation of it with their gains
quick/rank and accuracy/cnn4       their correlation between .arms; .within them, .given_loss; of mediation.csv
quick/rules/alignment/cnn          over learning rules that of accuracy with a predictor; .given_other_low; of rules.csv
quick/count/FAMILY/VERDICT         claims of a family with a verdict, or a source; FAMILY/all: but those by construction
quick/count/FAMILY/fa+bn/VERDICT   those of one left side
quick/runs/planned                 of provenance.json; also `core hours`
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from rankcollapse.experiment import config
from rankcollapse.experiment.collect import read
from rankcollapse.render.tables import select
from rankcollapse.render.text import interval, number, shown, unmarked

VERDICTS = ("reproduced", "not reproduced", "explained by the control", "inconclusive", "better", "worse")
TRAJECTORY = {"quantity": "gradient_trajectory", "layer": "all", "scope": "cumulative", "measure": "entropy_s2"}


@dataclass
class Evidence:
    """Of each name its value, by which a case is chosen, and the text that stands for it in a sentence."""

    values: dict[str, object] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: object, text: str | None = None) -> None:
        self.values[name], self.texts[name] = value, text or str(value)


def evidence(results: dict[str, Path]) -> Evidence:
    """Of the presets that have summaries, by name: results/<preset> each."""
    found = Evidence()
    for preset, folder in results.items():
        if (folder / "summary" / "claims.csv").exists():
            found.add(preset, "there")
            _claims(found, preset, read(folder / "summary" / "claims.csv"))
            _arms(found, preset, read(folder / "summary" / "accuracy.csv"))
            _predictors(found, preset, folder / "summary")
            _runs(found, preset, folder)
    return found


def _claims(found: Evidence, preset: str, claims: pd.DataFrame) -> None:
    claims = claims[claims["verdict"] != "not tested"]
    for raw, text in zip(claims.to_dict("records"), shown(claims, {}).to_dict("records"), strict=True):
        found.add(f"{preset}/{raw['id']}", raw["verdict"], text["difference"])
        ends = (raw["low"], raw["high"]) if raw["difference"] >= 0 else (-raw["high"], -raw["low"])
        found.add(f"{preset}/{raw['id']}.size", abs(raw["difference"]), interval(abs(raw["difference"]), *ends))
        for column, words in {**text, "verdict": unmarked(text["verdict"])}.items():
            found.add(f"{preset}/{raw['id']}.{column}", raw[column], words)
    for family, rows in claims[claims["structural"].isna()].groupby("family"):
        found.add(f"{preset}/count/{family}/all", len(rows))
        for source in ("abstract", "summary"):
            found.add(f"{preset}/count/{family}/{source}", int((rows["source"] == source).sum()))
        sides = {"": rows} | {f"/{left}": mine for left, mine in rows.groupby("left")}
        for (side, some), verdict in itertools.product(sides.items(), VERDICTS):
            found.add(f"{preset}/count/{family}{side}/{verdict}", int((some["verdict"] == verdict).sum()))


def _arms(found: Evidence, preset: str, accuracy: pd.DataFrame) -> None:
    accuracy = accuracy[accuracy["n"] > 0]
    for raw, text in zip(accuracy.to_dict("records"), shown(accuracy, {}).to_dict("records"), strict=True):
        name = f"{preset}/{raw['study']}/{raw['arm']}"
        found.add(name, raw["test_percent_mean"], text["test_percent"])
        for column, words in text.items():
            found.add(f"{name}.{column}", raw.get(f"{column}_mean", raw.get(column)), words)


def _predictors(found: Evidence, preset: str, summary: Path) -> None:
    for row in read(summary / "heldout.csv").itertuples():
        name = f"{preset}/heldout/{row.predictor}/{row.architecture}"
        found.add(name, row.r2, number(row.r2, 0.1))
        found.add(f"{name}.arms", row.arms)
        found.add(f"{name}.order", row.correlation, number(row.correlation, 0.1))
    for row in select(read(summary / "mediation.csv"), **TRAJECTORY).to_dict("records"):
        _correlations(found, f"{preset}/rank and accuracy/{row['study']}", row, ["within", "given_loss"])
    for row in read(summary / "rules.csv").to_dict("records"):
        _correlations(found, f"{preset}/rules/{row['predictor']}/{row['study']}", row, ["within", "given_other"])


def _correlations(found: Evidence, name: str, row: dict, others: list[str]) -> None:
    """`between`, under the name itself, and others."""
    found.add(f"{name}.arms", row["arms"])
    for key in ("between", *others):
        ends = [row[key + end] for end in ("", "_low", "_high")]
        own = name if key == "between" else f"{name}.{key}"
        found.add(own, ends[0], _correlation(*ends))
        for end, value in zip(("low", "high"), ends[1:], strict=True):
            found.add(f"{name}.{key}_{end}", value, number(value, 0.1))


def _correlation(value: float, low: float, high: float) -> str:
    return f"{number(value, 0.1)} [{number(low, 0.1)}, {number(high, 0.1)}]"


def _runs(found: Evidence, preset: str, folder: Path) -> None:
    about = config.read(folder / "provenance.json")
    for outcome, count in {"finished": 0, "diverged": 0, "missing": 0, **about["runs"]}.items():
        found.add(f"{preset}/runs/{outcome}", count)
    found.add(f"{preset}/runs/core hours", about["run_seconds"] / 3600, number(about["run_seconds"] / 3600))
    for key in ("device", "precision"):
        value = about.get(key, [])
        found.add(f"{preset}/runs/{key}", " and ".join([value] if isinstance(value, str) else value))
