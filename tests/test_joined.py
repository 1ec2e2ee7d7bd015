"""Accuracy beside rank, by run and by gain, and what tells it elsewhere: on tables whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankcollapse.render import joined as joining
from rankcollapse.render.joined import bases, gains, heldout, joined
from rankcollapse.render.tables import ARM, KEYS

RNG = np.random.Generator(np.random.PCG64(3))
PLACE = {"study": "cnn", "dataset": "cifar10", "architecture": "cnn"}
PLAIN = {"rule": "fa", "normalization": "none", "optimizer": "sgd", "update": "full", "feedback": "same",
         "schedule": "cosine", "rate": "tuned", "learning_blocks": np.nan}  # fmt: skip


def runs(arms: dict[str, dict], seeds: int = 3) -> pd.DataFrame:
    rows = [
        {**PLACE, "arm": arm, "seed": seed, **PLAIN, **about} for arm, about in arms.items() for seed in range(seeds)
    ]
    return pd.DataFrame(rows).assign(outcome="finished")


def measured(rows: list[tuple], what: list[str], **more) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=[*what, "step", "value"])
    return table.assign(**PLACE, arm="fa", seed=0, outcome="finished", **more)


def test_a_run_is_joined_with_what_was_measured_at_its_end_or_through_it():
    made = runs({"fa": {}, "bp": {"rule": "bp"}}, seeds=1).assign(test_accuracy=[40.0, 60.0], train_loss=[1.5, 1.0])
    spectra = [  # two hidden layers: the geometric mean, at the last step
        ("error", "a", "pooled", 0, 99.0), ("error", "a", "pooled", 9, 4.0), ("error", "b", "pooled", 9, 9.0),
        ("error", "head", "pooled", 9, 99.0), ("gradient_trajectory", "all", "cumulative", 9, 20.0),
        ("gradient_trajectory", "a", "cumulative", 9, 8.0), ("gradient_trajectory", "head", "cumulative", 9, 99.0),
        ("gradient_trajectory", "all", "window", 9, 99.0), ("update", "a", "step", 9, 3.0),
        ("update", "b", "step", 9, 0.0),
    ]  # fmt: skip
    ranks = measured(spectra, ["quantity", "layer", "scope"])
    ranks = ranks.assign(entropy_s=ranks["value"], entropy_s2=ranks["value"] / 2)
    steps = [("relative_update", layer, step, value) for layer, step, value in
             [("a", 0, 0.1), ("a", 9, 0.001), ("b", 0, 0.4), ("b", 9, 0.001), ("head", 0, 5.0)]]  # fmt: skip
    cosines = [("gradient", "all", 0, 0.0), ("gradient", "all", 9, 0.3), ("gradient", "a", 9, 0.9)]
    tables = {"runs": made, "ranks": ranks, "norms": measured(steps, ["quantity", "layer"])}
    tables["alignment"] = measured(cosines, ["quantity", "layer"])
    fa, bp = joined(tables).to_dict("records")
    wanted = {
        "test_percent": 40,
        "train_loss": 1.5,
        "error_rank": 6,
        "whole_gradient_rank": 10,
        "recent_gradient_rank": 49.5,
        "gradient_rank": 4,
        "update_rank": 3,
    }
    assert {key: fa[key] for key in wanted} == pytest.approx(wanted)
    assert (fa["relative_update"], fa["alignment"]) == pytest.approx((0.1005, 0.3))
    assert np.isnan(fa["batch_error_rank"])
    assert (bp["alignment"], bp["test_percent"]) == (1, 60)
    changed = joined({**tables, "runs": made.assign(error=["full", "top_r"])})
    assert np.isnan(changed["alignment"].iloc[1]), "the gradient of a net whose errors are changed is not that of BP"
    diverged = joined({**tables, "runs": made.assign(outcome="diverged")})
    assert diverged[joining.PREDICTORS].isna().all(axis=None)
    assert diverged["test_percent"].tolist() == [40, 60]


def test_the_base_of_an_arm_is_the_plain_arm_of_its_rule():
    arms = {"fa": {}, "fa+bn": {"normalization": "batch"}, "fa-rank2": {"feedback": "rank"}, "bp": {"rule": "bp"},
            "fa-last": {"learning_blocks": 1}, "slow": {"rule": "bp", "rate": "fixed"},
            "kp+muon": {"rule": "kp", "optimizer": "muon"}, "bp-error": {"rule": "bp", "error": "top_r"}}  # fmt: skip
    made = runs(arms)
    found = bases(made.assign(error=made["error"].fillna("full"))).reset_index()
    wanted = {"fa+bn": "fa", "fa-rank2": "fa", "slow": "bp", "bp-error": "bp"}
    assert dict(zip(found["arm"], found["base"], strict=True)) == wanted


def beside(made: pd.DataFrame, accuracy, rank) -> pd.DataFrame:
    """As joined.joined gives it, with one rank, and no other predictor."""
    empty = dict.fromkeys(joining.PREDICTORS, np.nan)
    return made[[*KEYS, "outcome"]].assign(**{**empty, "test_percent": accuracy, "gradient_rank": rank})


def test_a_gain_is_paired_by_seed_and_carried_by_the_slope_with_arms_held_fixed():
    made = runs({"fa": {}, "fa+bn": {"normalization": "batch"}, "fa+muon": {"optimizer": "muon"}}, seeds=5)
    logs = RNG.normal(size=15) + np.repeat([0, 2, 1], 5)
    accuracy = 40 + 3 * logs + np.repeat([0, 1, 8], 5) + 0.1 * RNG.normal(size=15)
    table = gains(beside(made, accuracy, np.exp(logs)), made)
    row = table[(table["arm"] == "fa+bn") & (table["predictor"] == "gradient_rank")].iloc[0]
    change = logs[5:10] - logs[:5]
    for names, values, back in (
        (["gain", "gain_low", "gain_high"], accuracy[5:10] - accuracy[:5], np.asarray),
        (["change", "change_low", "change_high"], change, np.exp),
    ):
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert row[names].tolist() == pytest.approx(list(back([values.mean(), *interval])))
    dummies = np.column_stack([logs, np.repeat(np.eye(3), 5, axis=0)])
    (slope, *_), (left,), *_ = np.linalg.lstsq(dummies, accuracy)
    width = ((logs - np.repeat(logs.reshape(3, 5).mean(1), 5)) ** 2).sum()
    half = 1.96 * np.hypot(change.mean() * np.sqrt(left / 11 / width), slope * stats.sem(change))
    assert row["carried"] == pytest.approx(slope * change.mean())
    assert row["carried_high"] - row["carried"] == pytest.approx(half)
    assert row["carried"] == pytest.approx(3 * change.mean(), rel=0.1)
    assert (row["n"], row["pairs"], row["base"]) == (5, 5, "fa")
    other = table[(table["arm"] == "fa+bn") & (table["predictor"] == "alignment")].iloc[0]
    assert other[["change", "carried"]].isna().all()
    assert other["pairs"] == 0


@pytest.mark.parametrize("power", [0.5, -0.5])
def test_what_holds_in_all_architectures_tells_that_which_was_held_out_and_what_turns_does_not(power):
    """Accuracy is FA's times a power of the rank's ratio: 0.5 in two architectures, and `power` in the third."""
    parts = []
    for name, base, exponent in (("cnn", 40, 0.5), ("mlp", 30, 0.5), ("resnet18", 5, power)):
        arms = {"fa": {}} | {f"fa{i}": {"normalization": "batch"} for i in range(4)}
        made = runs(arms, seeds=2).assign(study=name, architecture=name)
        ranks = np.repeat([10.0, 20, 15, 40, 5], 2)
        parts.append((made, beside(made, base * (ranks / 10) ** exponent, ranks)))
    made, table = (pd.concat(each, ignore_index=True) for each in zip(*parts, strict=True))
    found = heldout(table, made)
    found = found[found["predictor"] == "gradient_rank"].set_index("architecture")
    assert found["arms"].tolist() == [4] * 3
    assert found["fitted"].tolist() == [8] * 3
    told = found.loc["resnet18", ["slope", "r2", "correlation"]].tolist()
    assert told == pytest.approx([0.5, 1, 1] if power > 0 else [0.5, -3, -1])
    alone = heldout(table[table["architecture"] == "cnn"], made[made["architecture"] == "cnn"])
    assert alone.empty
    assert [*alone] == [
        *found.reset_index()[["predictor", "architecture"]],
        "fitted",
        "arms",
        "slope",
        "r2",
        "correlation",
    ]
    assert gains(table[:0], made).empty
    assert [*gains(table[:0], made)][:4] == ARM
