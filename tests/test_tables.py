"""The scripts between the runs and the paper: summaries, claims and the README's block, on tables written by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"
sys.path.insert(0, str(SCRIPTS))

import claims  # noqa: E402
import readme  # noqa: E402
import summarise  # noqa: E402

KEYS = {"study": "cnn4", "dataset": "cifar10", "architecture": "cnn4"}


def runs(**accuracies: list[float]) -> pd.DataFrame:
    """A row per run from arm=[accuracy of seed 0, 1, ...]; NaN is a missing run, 0.1 one that diverged."""
    outcome = {0.1: "diverged"}
    return pd.DataFrame(
        {
            **KEYS, "arm": arm, "seed": seed, "test_accuracy": a, "validation_accuracy": a, "lr": 0.1,
            "weight_decay": 0.0, "width": 8, "outcome": "missing" if np.isnan(a) else outcome.get(a, "finished"),
        }
        for arm, values in accuracies.items()
        for seed, a in enumerate(values)
    )  # fmt: skip


def claim(**changes) -> dict:
    made = {
        "id": "x",
        "statement": "x",
        "source": "ours",
        "study": "cnn4",
        "dataset": "cifar10",
        "quantity": "accuracy",
    }
    return {**made, "left": "fa", "relation": "less", "right": "bp", **changes}


def settle(table: pd.DataFrame, **changes) -> dict:
    return claims.settle(claim(**changes), {"runs": table.assign(test_percent=100 * table["test_accuracy"])})


def test_accuracy_is_that_of_the_finished_runs_and_counts_the_others():
    table = summarise.accuracy(runs(fa=[0.4, 0.5, float("nan"), 0.1]), []).iloc[0]
    assert (table["n"], table["planned"], table["diverged"], table["missing"]) == (2, 4, 1, 1)
    assert table["test_percent_mean"] == pytest.approx(45)
    assert table["test_percent_std"] == pytest.approx(np.std([40, 50], ddof=1))


def test_an_arm_that_always_diverges_has_no_mean_and_is_in_the_table():
    table = summarise.accuracy(runs(fa=[0.1, 0.1]), []).iloc[0]
    assert (table["n"], table["diverged"]) == (0, 2)
    assert np.isnan(table["test_percent_mean"])


def test_rows_of_runs_that_did_not_finish_stay_out_of_the_means():
    tidy = pd.DataFrame([{**KEYS, "arm": "fa", "seed": seed, "value": seed} for seed in range(3)])
    assert summarise.finished(runs(fa=[0.4, 0.1, 0.5]), tidy)["seed"].tolist() == [0, 2]


def test_the_papers_numbers_stand_beside_ours_only_where_it_gives_one():
    theirs = [
        {"dataset": "cifar10", "architecture": "cnn4", "arm": "fa", "paper_percent": 1.4, "paper_source": "summary"}
    ]
    table = summarise.accuracy(runs(bp=[0.6], fa=[0.4]), theirs).set_index("arm")
    assert table.loc["fa", "paper_percent"] == 1.4
    assert np.isnan(table.loc["bp", "paper_percent"])


def test_ranks_are_those_of_the_last_step_of_each_run():
    rows = [{**KEYS, "arm": "fa", "seed": s, "quantity": "error", "layer": "a", "scope": "batch", "step": t, "rows": 8,
             "entropy_s": v} for s, t, v in [(0, 5, 1.0), (0, 9, 2.0), (1, 5, 3.0), (1, 9, 6.0)]]  # fmt: skip
    table = summarise.ranks(pd.DataFrame(rows)).iloc[0]
    assert (table["n"], table["entropy_s_mean"]) == (2, 4.0)


def test_the_interval_is_that_of_a_paired_t_test():
    left, right = [0.40, 0.43, 0.41], [0.60, 0.61, 0.66]
    row = settle(runs(fa=left, bp=right))
    expected = stats.ttest_rel(np.array(left) * 100, np.array(right) * 100).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert row["difference"] == pytest.approx(np.mean(left) * 100 - np.mean(right) * 100)


@pytest.mark.parametrize(
    ("left", "right", "relation", "verdict"),
    [
        ([0.40, 0.41, 0.42], [0.60, 0.62, 0.61], "less", "reproduced"),
        ([0.40, 0.41, 0.42], [0.60, 0.62, 0.61], "greater", "not reproduced"),
        ([0.60, 0.62, 0.61], [0.40, 0.41, 0.42], "greater", "reproduced"),
        ([0.60, 0.62, 0.61], [0.40, 0.41, 0.42], "less", "not reproduced"),
        ([0.40, 0.60, 0.50], [0.50, 0.51, 0.49], "less", "inconclusive"),
        ([0.40], [0.60], "less", "inconclusive"),
        ([], [0.60, 0.61], "less", "not tested"),
    ],
)
def test_verdicts(left, right, relation, verdict):
    assert settle(runs(fa=left, bp=right), relation=relation)["verdict"] == verdict


def test_only_seeds_that_both_arms_have_are_paired():
    row = settle(runs(fa=[0.4, 0.5, float("nan")], bp=[0.6, float("nan"), 0.7]))
    assert (row["n"], row["left_mean"], row["right_mean"]) == (1, 40.0, 60.0)


@pytest.mark.parametrize("left", [[0.40, 0.41, 0.42, 0.1], [0.1, 0.1]])
def test_a_claim_that_lost_a_run_to_divergence_is_inconclusive(left):
    row = settle(runs(fa=left, bp=[0.60, 0.62, 0.61, 0.63]))
    assert (row["n"], row["diverged"], row["verdict"]) == (left.count(0.1) % 2 * 3, left.count(0.1), "inconclusive")


def test_a_claim_on_a_number_compares_with_the_number():
    row = settle(runs(fa=[0.40, 0.41, 0.42]), right=50, relation="less")
    assert row["verdict"] == "reproduced"
    assert row["difference"] == pytest.approx(-9)


def test_the_projects_own_claims_are_well_formed_and_named_once():
    found = claims.read_claims(SCRIPTS.parents[1] / "paper" / "claims.yaml")
    names = [c["id"] for c in found]
    assert len(names) == len(set(names))


def test_a_claim_with_a_misspelt_key_stops(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text("- {id: a, statment: b}\n")
    with pytest.raises(SystemExit, match="claim 'a' has wrong or missing keys"):
        claims.read_claims(path)


def test_the_readme_block_follows_the_claims_and_check_notices_a_change(tmp_path):
    table = pd.DataFrame([settle(runs(fa=[0.40, 0.41, 0.42], bp=[0.60, 0.62, 0.61])), settle(runs(fa=[], bp=[0.6]))])
    (tmp_path / "summary").mkdir()
    table.to_csv(tmp_path / "summary" / "claims.csv", index=False)
    (tmp_path / "provenance.json").write_text('{"device": "CPU", "finished": "2026-01-02T03:04:05Z"}')
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    call = [sys.executable, SCRIPTS / "readme.py", "--readme", page, "--results", tmp_path]
    assert subprocess.run([*call, "--check"], capture_output=True).returncode == 1
    subprocess.run(call, check=True)
    text = page.read_text()
    assert "1 statements, tested" in text
    assert "1 reproduced, 0 not reproduced, 0 inconclusive" in text
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert subprocess.run([*call, "--check"], capture_output=True).returncode == 0
