"""The scripts between the runs and the paper: tidy tables, summaries, claims, pages, provenance and the README's block.

On tables and run folders made by hand, and on the committed tables of results/quick against arithmetic done here.
"""

import csv
import gzip
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from rankcollapse.experiment import folder as folders
from rankcollapse.experiment import seals
from rankcollapse.experiment.config import InputError, RunConfig, Settings, read
from rankcollapse.experiment.grid import grid as grid_of
from rankcollapse.experiment.grid import identity, overlay, plan
from rankcollapse.library.spectra import Spectrum, save_spectra

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow" / "scripts"
QUICK = ROOT / "results" / "quick"
sys.path.insert(0, str(SCRIPTS))

import analysis  # noqa: E402
import choose  # noqa: E402
import claims  # noqa: E402
import collect  # noqa: E402
import findings  # noqa: E402
import pages  # noqa: E402
import readme  # noqa: E402
import summarise  # noqa: E402

KEYS = {"study": "cnn4", "dataset": "cifar10", "architecture": "cnn4"}


def script(name: str, *words: object, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPTS / f"{name}.py", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env, cwd=cwd)


def run_script(name: str, *words: object, **how: object) -> None:
    done = script(name, *words, **how)
    assert done.returncode == 0, done.stderr


def one_line(error: BaseException | str, *words: str) -> None:
    text = str(error).strip()
    assert "\n" not in text
    assert "Traceback" not in text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


# ---- summaries, on tables made by hand ----


def runs(accuracies: dict | None = None, **more: list[float]) -> pd.DataFrame:
    """A row per run from arm=[accuracy in % of seed 0, 1, ...]; NaN is a missing run, 10 one that diverged."""
    return pd.DataFrame(
        {
            **KEYS, "arm": arm, "seed": seed, "test_accuracy": a, "validation_accuracy": a, "lr": 0.1,
            "weight_decay": 0.0, "width": 8, "rule": "fa", "normalization": "none", "optimizer": "sgd",
            "update": "full", "rate": "tuned", "learning_blocks": np.nan,
            "outcome": "missing" if np.isnan(a) else {10: "diverged"}.get(a, "finished"),
        }
        for arm, values in {**(accuracies or {}), **more}.items()
        for seed, a in enumerate(values)
    )  # fmt: skip


def spectra(outcomes: list[str], values: list[list[float]], arm: str = "fa", apart: int = 1) -> pd.DataFrame:
    """A spectrum per seed and step of one arm, all measures equal; its steps are so far `apart`."""
    return pd.DataFrame(
        {
            **KEYS, "arm": arm, "seed": seed, "quantity": "error", "layer": "conv4", "scope": "batch",
            "step": apart * step, "rows": 8, "outcome": outcome, **dict.fromkeys(analysis.MEASURES, value),
        }
        for seed, (outcome, row) in enumerate(zip(outcomes, values, strict=True))
        for step, value in enumerate(row)
    )  # fmt: skip


def ends(ranks: pd.DataFrame) -> pd.DataFrame:
    return summarise.ends(ranks, analysis.SPECTRUM, analysis.MEASURES)


def test_accuracy_is_that_of_the_finished_runs_and_counts_the_others():
    made = runs(fa=[40, 50, float("nan"), 10]).assign(rate="as bp", learning_blocks=2)
    table = summarise.accuracy(made, []).iloc[0]
    assert (table["rate"], table["learning_blocks"]) == ("as bp", 2)
    assert (table["n"], table["planned"], table["diverged"], table["missing"]) == (2, 4, 1, 1)
    assert table["test_percent_mean"] == pytest.approx(45)
    assert table["test_percent_std"] == pytest.approx(np.std([40, 50], ddof=1))


def test_an_arm_that_always_diverges_has_no_mean_and_is_in_every_table():
    made = runs(fa=[10, 10]).assign(seconds=1.0, images_per_second=1.0, memory_mb=1, probe_seconds=0.1, train_seconds=1)
    cosines = spectra(["diverged"] * 2, [[1], [2]]).assign(value=0.5)
    for table, mean in (
        (summarise.accuracy(made, []), "test_percent_mean"),
        (summarise.cost(made.assign(device="CPU")), "seconds_mean"),
        (ends(spectra(["diverged"] * 2, [[1], [2]])), "entropy_s_mean"),
        (summarise.ends(cosines, ["quantity", "layer"], ["value"]), "value_mean"),
    ):
        assert table["n"].tolist() == [0]
        assert np.isnan(table.loc[0, mean])


def test_ranks_are_those_of_the_last_step_of_each_finished_run():
    table = ends(spectra(["finished", "diverged", "finished"], [[1, 2], [9], [3, 6]])).iloc[0]
    assert (table["n"], table["entropy_s_mean"]) == (2, 4.0)


def test_the_papers_numbers_stand_beside_ours_only_where_it_gives_one():
    theirs = [
        {"dataset": "cifar10", "architecture": "cnn4", "arm": "fa", "paper_percent": 1.4, "paper_source": "summary"}
    ]
    table = summarise.accuracy(runs(bp=[60], fa=[40]), theirs).set_index("arm")
    assert table.loc["fa", "paper_percent"] == 1.4
    assert np.isnan(table.loc["bp", "paper_percent"])


# ---- claims, on tables made by hand ----

CLAIM = {"id": "x", "statement": "x", "source": "ours", "study": "cnn4", "dataset": "cifar10", "quantity": "accuracy",
         "left": "fa", "relation": "less", "right": "bp"}  # fmt: skip
DEPTH = {
    "places": {"cnn4": "cifar10", "resnet18": "cifar100"},
    "frozen": {"classifier": {"fa": "frozen", "fa+bn": "frozen+bn"}, "norm": {"fa+bn": "frozen-fa+bn"}},
}
RANK = {"table": "ranks", "quantity": "error", "layer": "conv4", "scope": "batch", "measure": "entropy_s"}


def settled(tables: dict[str, pd.DataFrame], *changes: dict) -> pd.DataFrame:
    """claims.csv of a claim for each set of changes to CLAIM."""
    return claims.settled([claims.Claim(**{**CLAIM, **change}) for change in changes], tables)


def settle(table: pd.DataFrame, **changes) -> pd.Series:
    return settled({"runs": table}, changes).iloc[0]


def test_the_interval_is_that_of_a_paired_t_test():
    left, right = [40, 43, 41], [60, 61, 66]
    row = settle(runs(fa=left, bp=right))
    expected = stats.ttest_rel(left, right).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert row["difference"] == pytest.approx(np.mean(left) - np.mean(right))


@pytest.mark.parametrize(
    ("left", "right", "relation", "verdict"),
    [
        ([40, 41, 42], [60, 62, 61], "less", "reproduced"),
        ([40, 41, 42], [60, 62, 61], "greater", "not reproduced"),
        ([60, 62, 61], [40, 41, 42], "greater", "reproduced"),
        ([60, 62, 61], [40, 41, 42], "less", "not reproduced"),
        ([40, 60, 50], [50, 51, 49], "less", "inconclusive"),
        ([40], [60], "less", "inconclusive"),
        ([], [60, 61], "less", "not tested"),
    ],
)
def test_verdicts(left, right, relation, verdict):
    assert settle(runs(fa=left, bp=right), relation=relation)["verdict"] == verdict


def test_only_seeds_that_both_arms_have_are_paired():
    row = settle(runs(fa=[40, 50, float("nan")], bp=[60, float("nan"), 70]))
    assert (row["n"], row["left_mean"], row["right_mean"]) == (1, 40.0, 60.0)


@pytest.mark.parametrize("left", [[40, 41, 42, 10], [10, 10]])
def test_a_claim_that_lost_a_run_to_divergence_is_inconclusive(left):
    row = settle(runs(fa=left, bp=[60, 62, 61, 63]))
    assert (row["n"], row["diverged"], row["verdict"]) == (len(left) - left.count(10), left.count(10), "inconclusive")


def test_a_claim_on_a_number_compares_with_the_number():
    row = settle(runs(fa=[40, 41, 42]), right=50, relation="less")
    assert row["verdict"] == "reproduced"
    assert row["difference"] == pytest.approx(-9)


def test_the_projects_own_claims_are_well_formed_and_named_once():
    names = [claim.id for claim in claims.read_claims(ROOT / "paper" / "claims.yaml")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"statment": "b"}, ["unknown key 'statment'", "did you mean 'statement'"]),
        ({"left": None}, ["left is None"]),
        ({"relation": "below"}, ["relation is 'below'", "'less' or 'greater'"]),
        ({"paper": "12"}, ["paper"]),
        ({"layer": "conv4"}, ["unknown key 'layer'"]),
        ({"quantity": "acuracy"}, ["quantity is 'acuracy'", "it must be accuracy, or table: ranks"]),
        ({"quantity": {**RANK, "layr": "conv4"}}, ["quantity is {", "'layr'", "quantity, layer, scope and measure"]),
        ({"quantity": {**RANK, "layer": 4}}, ["layer is 4"]),
        ({"quantity": {**RANK, "measure": "entropy"}}, ["'entropy'", "measure (entropy_s, entropy_s2,"]),
        ({"quantity": {"table": "ranks", "quantity": "error"}}, ["table: ranks, quantity, layer, scope and measure"]),
        ({"quantity": {**RANK, "table": "alignment"}}, ["table: alignment, quantity and layer"]),
        ({"quantity": {**RANK, "table": "rank"}}, ["'table': 'rank'", "table: ranks, quantity"]),
        ({"at": "the end"}, ["at is 'the end'", "'end' or 'equal loss'"]),
        ({"quantity": {**RANK, "rows": "200"}}, ["rows is '200'"]),
        ({"control": ["frozen"]}, ["control is ['frozen']", "2 items"]),
        ({"at": "equal loss"}, ["accuracy", "at equal loss there are ranks and cosines"]),
    ],
)
def test_a_claim_that_is_not_well_formed_is_refused_in_one_sentence(tmp_path, change, words):
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps({"statements": [{**CLAIM, **change}], "depth_utility": DEPTH}), encoding="utf-8")
    with pytest.raises(InputError) as error:
        claims.read_claims(path)
    one_line(error.value, "claim 'x'", *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- [", []),
        ("- a", []),
        ("statements: []", ["must hold statements", "depth_utility"]),
        ("{statements: [a], depth_utility: {places: {}, frozen: {}}}", ["each a mapping"]),
        ("{statements: [], depth_utility: {places: {}}}", ["depth_utility", "frozen"]),
        ("{statements: [], depth_utility: {places: [mlp], frozen: {}}}", ["depth_utility", "places"]),
        ("{statements: [], depth_utility: {places: {}, frozen: {}, more: 1}}", ["depth_utility", "'more'"]),
        ("{statements: [], depth_utility: {places: {}, frozen: {norm: [fa]}}}", ["depth_utility", "frozen"]),
    ],
)
def test_a_file_that_holds_no_claims_is_refused_in_one_sentence(tmp_path, text, words):
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        claims.read_claims(path)
    one_line(error.value, "claims.yaml", *words)


def test_depth_utility_is_a_claim_for_each_pair_in_each_place(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps({"statements": [CLAIM], "depth_utility": DEPTH}), encoding="utf-8")
    first, *found = claims.read_claims(path)
    assert (first.id, first.family) == ("x", "statement")
    pairs = [("classifier", "fa", "frozen"), ("classifier", "fa+bn", "frozen+bn"), ("norm", "fa+bn", "frozen-fa+bn")]
    wanted = [(*place, *pair) for place in (("cnn4", "cifar10"), ("resnet18", "cifar100")) for pair in pairs]
    assert [(c.study, c.dataset, c.frozen, c.left, c.right) for c in found] == wanted
    assert {(c.family, c.relation, c.quantity["measure"], c.at) for c in found} == {
        ("depth utility", "greater", "%", "end")
    }
    assert len({c.id for c in found}) == 6
    labels = {arm: about["label"] for arm, about in read(ROOT / "config.yaml")["arms"].items()}
    assert found[5].statement == f"{labels['fa+bn']} is more accurate than {labels['frozen-fa+bn']} in resnet18"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"study": "cnn"}, ["study 'cnn'", "did you mean 'cnn4'?"]),
        ({"dataset": "svhn"}, ["dataset 'svhn'", "known: cifar10, cifar100, digits"]),
        ({"left": "fb"}, ["arm 'fb'"]),
        ({"right": "bpp"}, ["arm 'bpp'", "did you mean 'bp'?"]),
        ({"quantity": {**RANK, "quantity": "errors"}}, ["quantity 'errors'", "did you mean 'error'?"]),
        ({"quantity": {**RANK, "layer": "conv5"}}, ["layer 'conv5'", "cnn4, cifar10, fa", "did you mean 'conv4'?"]),
        ({"quantity": {**RANK, "scope": "step"}}, ["scope 'step'", "known: batch"]),
    ],
)
def test_a_claim_on_what_is_not_there_is_refused_in_one_sentence(change, words):
    tables = {"runs": runs(fa=[40]), "ranks": spectra(["finished"], [[1, 2]])}
    with pytest.raises(InputError) as error:
        claims.settle(claims.Claim(**{**CLAIM, **change}), tables)
    one_line(error.value, "claim 'x'", *words)


@pytest.mark.parametrize("change", [{}, {"study": "mlp"}, {"dataset": "cifar100"}, {"left": "bp", "right": 3}])
def test_a_claim_on_what_this_preset_leaves_out_is_not_tested(change):
    tables = {"runs": runs(fa=[40]), "ranks": spectra(["finished"], [[1, 2]])}
    assert settled(tables, {"quantity": RANK, **change})["verdict"].tolist() == ["not tested"]


def test_rows_picks_the_length_of_a_trajectory():
    ranks = spectra(["finished"] * 2, [[2, 6, 8], [4, 8, 10]]).assign(rows=[100, 200, 300] * 2)
    lengths = [{"quantity": {**RANK, "rows": rows}, "right": 20} for rows in (100, 200, None, 250)]
    table = settled({"runs": runs(fa=[40, 41]), "ranks": ranks}, *lengths)
    assert table["left_mean"].tolist()[:3] == [3, 7, 9]
    assert (table["verdict"] == "not tested").tolist() == [False, False, False, True]
    assert table["rows"].tolist()[:2] == [100, 200]


# By hand, with epochs of 10 steps, whose losses stand at 5, 15, 25, and ranks that are the step, of bp twice the step.
CURVES = {
    "falling": ([4, 3, 2], [4, 2, 1], 2, (25, 30)),
    "between epochs": ([4, 3, 2], [4, 3, 1], 2, (25, 40)),
    "of the other": ([4, 3, 1], [4, 3, 2], 2, (20, 50)),
    "rises again, or stays": ([4, 2, 3], [4, 2, 2], 2, (15, 30)),
    "falls below a rise": ([4, 3, 3.5], [4, 5, 2], 3, (15, 2 * (15 + 10 * 2 / 3))),
    "reached before it is known": ([4, 3, 2], [6, 5, 4.5], 4.5, None),
    "reached at the start": ([4, 5, 5], [6, 4, 2], 4, (5, 30)),
}


def at_loss_tables(measured: int = 30) -> dict[str, pd.DataFrame]:
    """A seed for each of CURVES; ranks are measured at each step that 10 divides, up to `measured`."""
    made = runs(fa=[40] * len(CURVES), bp=[60] * len(CURVES))
    losses = {"fa": [curve[0] for curve in CURVES.values()], "bp": [curve[1] for curve in CURVES.values()]}
    rows = [
        {**KEYS, "arm": arm, "seed": seed, "epoch": epoch, "step": 10 * epoch, "train_loss": loss}
        for arm, curves in losses.items() for seed, curve in enumerate(curves) for epoch, loss in enumerate(curve, 1)
    ]  # fmt: skip
    steps, finished = [*range(0, measured + 1, 10)], ["finished"] * len(CURVES)
    ranks = [spectra(finished, [[k * s for s in steps]] * len(CURVES), arm, 10) for k, arm in ((1, "fa"), (2, "bp"))]
    made["rule"] = made["arm"]
    return {"runs": made, "epochs": pd.DataFrame(rows), "ranks": pd.concat(ranks)}


def test_ranks_at_equal_loss_are_those_where_both_first_reach_the_lowest_loss_that_both_reach():
    tables = at_loss_tables()
    claim = claims.Claim(**{**CLAIM, "quantity": RANK, "at": "equal loss"})
    found = claims.pairs(claim, "fa", "bp", tables)
    wanted = {seed: ranks for seed, (*_, ranks) in enumerate(CURVES.values()) if ranks}
    assert found.index.tolist() == [*wanted]
    assert found.to_numpy() == pytest.approx(np.array([*wanted.values()]))
    assert claims.pairs(claim, "fa", 3, tables)["left"].tolist() == [25, 25, 25, 15, 15, 25, 5]
    end = claims.pairs(claims.Claim(**{**CLAIM, "quantity": RANK}), "fa", "bp", tables)
    assert end.to_numpy().tolist() == [[30, 60]] * len(CURVES)


def test_at_equal_loss_nothing_is_said_beyond_what_was_measured_and_of_runs_without_their_like():
    claim = claims.Claim(**{**CLAIM, "quantity": RANK, "at": "equal loss"})
    tables = at_loss_tables(measured=20)
    assert claims.pairs(claim, "fa", "bp", tables).index.tolist() == [3, 6]  # of the others one is beyond step 20
    tables["ranks"] = tables["ranks"].query("seed != 3 or arm == 'fa'")
    assert claims.pairs(claim, "fa", "bp", tables).index.tolist() == [6]


def test_the_progress_is_that_of_an_arm_and_of_bp_at_equal_loss():
    tables = at_loss_tables()
    others = {"frozen": {"rule": "frozen"}, "last": {"learning_blocks": 2}, "cut": {"update": "top_r"}}
    others["fa+bn"] = {"normalization": "batch"}  # without a BP of that kind
    for table in ("runs", "epochs", "ranks"):
        mine = tables[table][tables[table]["arm"] == "fa"]
        more = [mine.assign(arm=arm, **(knobs if table == "runs" else {})) for arm, knobs in others.items()]
        tables[table] = pd.concat([tables[table], *more])
    pooled = tables["ranks"].assign(scope="pooled")  # whose rows are another number at any moment
    tables["ranks"] = pd.concat([tables["ranks"], pooled], ignore_index=True)
    table = summarise.progress(tables)
    assert table[["arm", "reference", "scope", "n"]].to_numpy().tolist() == [["fa", "bp", "batch", 6]]
    row, found = table.iloc[0], [(loss, *ranks) for _, _, loss, ranks in CURVES.values() if ranks]
    for name, values in zip(("loss", "entropy_s", "reference_entropy_s"), zip(*found, strict=True), strict=True):
        assert row[f"{name}_mean"] == pytest.approx(statistics.fmean(values))
        if name != "loss":
            assert row[f"{name}_std"] == pytest.approx(statistics.stdev(values))
            assert row[f"{name.replace('_s', '_s2')}_mean"] == row[f"{name}_mean"]
    for column in table:
        assert pages.meaning(column)


# ---- verdicts: a family of claims, their controls, what could have been seen ----


def test_holm_is_that_worked_by_hand():
    nan = float("nan")
    for p, corrected in (
        ([0.01, 0.04, nan, 0.03, 0.005], [0.03, 0.06, nan, 0.06, 0.02]),  # 2 × .03 is above 1 × .04
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.6, 0.7, 0.001], [1, 1, 0.003]),
        ([0.03], [0.03]),
        ([nan, nan], [nan, nan]),
    ):
        assert claims.holm(pd.Series(p)).tolist() == pytest.approx(corrected, nan_ok=True)


def test_claims_are_corrected_within_their_family_and_without_the_structural_and_the_untested():
    base = np.array([50, 51, 49, 50, 52])
    made = runs(bp=base, a=base - [1, 3, 2, 4, 0.2], b=base - [2, 5, 4, 5, 1], c=base - [20, 21, 20, 22, 19])
    depth = {"family": "depth utility", "relation": "greater", "left": "bp", "right": "a", "frozen": "norm"}
    changes = [{"left": "a"}, {"left": "b"}, {"left": "c", "structural": True}, {"left": "fa"}, depth]
    table = settled({"runs": made}, *changes)
    p = [stats.ttest_1samp(d, 0).pvalue for d in ([1, 3, 2, 4, 0.2], [2, 5, 4, 5, 1])]
    assert p[1] < 0.025 < p[0] < 0.05, "so that the correction and its order are seen"
    assert table["p_holm"].tolist() == pytest.approx([p[0], 2 * p[1], np.nan, np.nan, p[0]], nan_ok=True)
    assert table["verdict"].tolist() == ["reproduced", "reproduced", "by construction", "not tested", "better"]
    both = settled({"runs": made}, {"left": "a"}, {"left": "a", "id": "y"})
    assert both["p_holm"].tolist() == pytest.approx([2 * p[0]] * 2)
    assert both["verdict"].tolist() == ["inconclusive"] * 2, "which it would not be alone"


BASE = np.array([50.0, 51, 49, 50, 52])
GAIN = np.array([10, 11, 9, 10, 10])


@pytest.mark.parametrize("relation", ["greater", "less"])
@pytest.mark.parametrize(
    ("control", "verdict"),
    [
        ([10, 9, 11, 10, 10], "explained by the control"),  # as much
        ([20, 21, 19, 20, 20], "explained by the control"),  # more
        ([9, 8, 10, 10, 9], "explained by the control"),  # less, and the rest is not told from 0
        ([0, 1, -1, 0.5, -0.5], "reproduced"),  # nothing
        ([4, 5, 3, 4, 4], "reproduced"),  # some, and the rest is above 0
        ([12, -11, 30, 14, -5], "reproduced"),  # nothing that is told from 0, though the rest is not either
        ([-10, -9, -11, -10, -10], "reproduced"),  # the other way
        ([10, np.nan, np.nan, np.nan, np.nan], "reproduced"),  # one seed tells nothing
    ],
)
def test_a_gain_is_explained_by_the_control_if_that_gains_and_no_more_is_left(relation, control, verdict):
    sign = 1 if relation == "greater" else -1
    theirs = {"frozen+muon": 70 + sign * np.array(control), "frozen": [70] * 5}
    made = runs({"fa+muon": BASE + sign * GAIN, "fa": BASE, **theirs})
    claim = {"left": "fa+muon", "relation": relation, "right": "fa", "control": ["frozen+muon", "frozen"]}
    row, other = settle(made, **claim), settle(made, **{**claim, "relation": "less" if sign > 0 else "greater"})
    assert (row["verdict"], other["verdict"]) == (verdict, "not reproduced")
    assert settle(made, **{**claim, "control": None})["verdict"] == "reproduced"


def test_the_columns_of_the_control_are_paired_by_seed():
    theirs = {"frozen+muon": [30, 33, 31, np.nan], "frozen": [28, 29, 30, 31]}
    made = runs({"fa+muon": [47, 49, 46, 55], "fa": [40, 41, 43, 42], **theirs})
    row = settle(made, left="fa+muon", right="fa", relation="greater", control=["frozen+muon", "frozen"])
    gains, theirs = np.array([7, 8, 3, 13]), np.array([2, 4, 1])
    for names, values in (
        (("difference", "low", "high"), gains),
        (("control_difference", "control_low", "control_high"), theirs),
        (("rest", "rest_low", "rest_high"), gains[:3] - theirs),
    ):
        found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert row[[*names]].tolist() == pytest.approx([values.mean(), found.low, found.high])
    assert (row["n"], row["control_left"], row["control_right"]) == (4, "frozen+muon", "frozen")
    assert row["control_percent"] == pytest.approx(100 * theirs.mean() / gains.mean())
    assert row["p"] == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)


def test_what_is_detectable_is_what_four_of_five_repetitions_show():
    row = settle(runs(fa=np.add(BASE, [1, 4, 2, 2, 3]), bp=BASE))
    sem = np.std([1, 4, 2, 2, 3], ddof=1) / np.sqrt(5)
    assert row["detectable"] == pytest.approx((2.776445 + 0.940965) * sem)  # tables of Student's t with 4 degrees
    often = np.random.default_rng(0).normal(row["detectable"], sem * np.sqrt(5), (20_000, 5))
    assert np.mean(stats.ttest_1samp(often, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)


def test_depth_utility_has_its_own_words_and_both_rates_are_told():
    made = runs(fa=BASE, frozen=BASE - GAIN)
    made.loc[made["arm"] == "frozen", "rate"] = "as fa"
    depth = {"family": "depth utility", "relation": "greater"}
    pairs = [{"left": "fa", "right": "frozen"}, {"left": "frozen", "right": "fa"}]
    assert settled({"runs": made}, *({**depth, **pair} for pair in pairs))["verdict"].tolist() == ["better", "worse"]
    assert settle(made, **depth, right="frozen")["rates"] == "tuned; as fa"
    few = runs(fa=[40, 41, 10], frozen=[20, 21, 22])
    assert settle(few, **depth, right="frozen")["verdict"] == "inconclusive"


def test_the_findings_count_and_name_what_was_settled():
    def row(verdict, statement="", left="fa+muon", gain=3.21, control=np.nan, frozen=None, measure="%"):
        about = {"statement": statement, "left": left, "right": "fa", "study": "cnn4", "measure": measure}
        family = "depth utility" if frozen else "statement"
        return {"family": family, "verdict": verdict, "structural": verdict == "by construction", "difference": gain,
                "control_difference": control, "frozen": frozen, **about}  # fmt: skip

    table = pd.DataFrame([
        row("reproduced", "A", control=1.14), row("reproduced", "B", control=7.7, measure="entropy_s"),
        row("not reproduced", "C", gain=-3.0, control=9.9),
        row("explained by the control", "D", left="fa+bn", control=-4.0),
        row("inconclusive", "E"), row("by construction", "F"), row("not tested", "G"),
        row("better", frozen="one", left="fa+bn"), row("worse", frozen="one", left="fa", gain=-2.34),
        row("inconclusive", frozen="norm"),
    ])  # fmt: skip
    first, depth, shares, left_open = findings.findings(table)
    labels = {arm: about["label"] for arm, about in read(ROOT / "config.yaml")["arms"].items()}
    for said, *words in (
        (first, "Of 5 statements", "2 reproduced", "1 not reproduced", "1 explained by the control", "“C”"),
        (depth, "one 1 of 2 times", f"not {labels['fa']} in cnn4 −2.3, which loses to it", "norm 0 of 1 times"),
        (
            shares,
            f"{labels['fa+muon']} over {labels['fa']} in cnn4 +3.2 and +1.1;",
            f"{labels['fa+bn']} over",
            "−4.0 (exp",
        ),
        (left_open, "1 statement: “E”", "1 comparison with"),
    ):
        one_line(said, *words)
        assert said.endswith(".")
    assert not [letter for letter in "ABDEFG" if f"“{letter}”" in first]
    assert not re.search(r"7\.7|9\.9", shares), "a rank, and a gain that there is not"
    assert labels["fa+bn"] not in depth
    assert findings.findings(table[table["verdict"] == "not tested"]) == []
    plain = table[table["family"] == "statement"].assign(control_difference=np.nan)
    assert [said.split()[0] for said in findings.findings(plain)] == ["Of", "Open:"]


# ---- cosines at the numerical floor ----


def test_a_cosine_of_gradients_without_a_reference_is_struck_and_no_other():
    floor = 2.0**-23
    keys = {**KEYS, "arm": "fa", "seed": 0, "outcome": "finished"}
    norms = [  # at step 0 the whole net, the head aside, has 2.1 of the √2 floors that it needs, at step 1 only 0.5
        {**keys, "step": step, "layer": layer, "quantity": quantity, "value": value}
        for step, references in enumerate([(0.5, 2, 0.1), (0, 0.5, 100)])
        for layer, reference, weight in zip(("a", "b", "head"), references, (1, 1, 0.1), strict=True)
        for quantity, value in (("activation", 0), ("weight", weight), ("reference", reference * floor))
    ]
    cosines = pd.DataFrame(
        {**keys, "seed": seed, "step": step, "layer": layer, "quantity": quantity, "value": 0.5}
        for seed in (0, 1) for step in (0, 1) for layer in ("a", "b", "all")
        for quantity in ("weight", "weight_null", "gradient", "gradient_null")
    )  # fmt: skip
    made = analysis.strike(cosines, pd.DataFrame(norms))
    low = [(0, "a"), (1, "a"), (1, "b"), (1, "all")]
    wanted = {(0, *place, quantity) for place in low for quantity in ("gradient", "gradient_null")}
    by = ["seed", "step", "layer", "quantity"]
    assert {*made.loc[made["struck"], by].itertuples(index=False, name=None)} == wanted
    assert made["value"].isna().equals(made["struck"])
    assert made["value"].dropna().eq(0.5).all()
    twice = pd.concat([made, made.assign(seed=made["seed"] + 2)])
    ends = summarise.ends(twice, ["quantity", "layer"], ["value"]).set_index(["quantity", "layer"])
    assert ends.loc[("gradient", "a"), ["n", "struck"]].tolist() == [2, 2]  # the others have no norms
    assert ends.loc[("weight", "a"), ["n", "struck"]].tolist() == [4, 0]
    assert not analysis.strike(cosines, pd.DataFrame(norms)[:0])["struck"].any()


# ---- collect, on run folders made by hand ----


def planned(arm: str, seed: int = 0, study: str = "cnn4", **knobs) -> dict:
    """A run of a plan, whose rate is fixed; `identity` is that which training would give it."""
    config = RunConfig(**{"epochs": 2, "seed": seed, **knobs})
    place = {"study": study, "dataset": config.dataset, "arm": arm, "seed": seed, "rate": "fixed", "choice": None}
    return {**place, "identity": identity(config), "config": config.model_dump()}


def name(run: dict) -> str:
    return "{study}/{dataset}/{arm}/seed{seed}".format(**run)


def write_run(runs: Path, run: dict, **result) -> Path:
    """A run folder as training leaves it; its spectra are flat, so that all ranks are the number of values."""
    folder = runs / name(run)
    flat = [Spectrum("error", "conv4", "batch", step, 64, np.full(step + 1, 3.0)) for step in (1, 2)]
    save_spectra(folder / "spectra.npz", flat)
    (folder / "config.json").write_text(json.dumps(run["config"]), encoding="utf-8")
    (folder / "checkpoint.pt").write_bytes(b"weights")
    steps = (0, 20) if run["config"]["rule"] == "fa" else ()
    tables = {
        "metrics.csv": folders.table(
            folders.METRICS, [(1, 10, 2.5, 0.125, 2.25, 0.15), (2, 20, 1.5, 0.25, 1.25, 0.35)]
        ),
        "ranks.csv": folders.rank_table(flat),
        "alignment.csv": folders.table(
            folders.SCALARS, [("weight", f"conv{i}", step, 0.123456789) for step in steps for i in (1, 2)]
        ),
        "norms.csv": folders.table(folders.SCALARS, [("weight", "conv1", 0, 2.0), ("reference", "conv1", 0, 0.5)]),
    }
    for file, text in tables.items():
        (folder / file).write_text(text, encoding="utf-8")
    found = {
        "study": run["study"], "arm": run["arm"], "identity": run["identity"], "outcome": "finished", "epochs": 2,
        "test_accuracy": 0.5, "test_loss": 1.0, "validation_accuracy": 0.35, "train_loss": 1.5, "parameters": 11173962,
        "seconds": 3.0, "train_seconds": 2.0, "probe_seconds": 0.5, "images_per_second": 100.0, "memory_mb": 512,
        "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:00:03Z", "device": "Prüfgerät, 2 Kerne",
        "threads": 1, "python": "3.11", "rankcollapse": "0", "torch": "2", "code": "c", "resumed": 0,
        "measures": folders.measures_code(), **result,
    }  # fmt: skip
    seals.write(folder / "run.json", found, folders.RUN, folder)
    return folder


@pytest.fixture
def grid(tmp_path):
    """plan.json and run folders: finished, without cosines, diverged, stale, absent."""
    changed, bp, diverged = planned("fa", rule="fa", lr=0.5), planned("bp"), planned("fa", 1, rule="fa")
    stale, absent = planned("1"), planned("nan", lr=0.2)
    write_run(tmp_path / "runs", changed)
    write_run(tmp_path / "runs", bp)
    write_run(tmp_path / "runs", diverged, outcome="diverged", test_loss=float("nan"))
    write_run(tmp_path / "runs", stale, identity="of another time")
    plan = {"preset": "p", "title": "Größe", "runs": {name(run): run for run in (changed, bp, diverged, stale, absent)}}
    (tmp_path / "plan.json").write_text(json.dumps(plan, ensure_ascii=False), encoding="utf-8")
    return tmp_path


def collected(grid: Path, **env: str) -> dict[str, pd.DataFrame]:
    run_script("collect", grid, **env)
    return analysis.load(grid / "tables")


def test_a_run_has_its_own_settings_and_a_missing_one_those_planned(grid):
    runs = collected(grid)["runs"]
    assert list(runs)[:5] == analysis.KEYS
    assert set(Settings.model_fields) <= set(runs)
    assert runs["arm"].tolist() == ["fa", "bp", "fa", "1", "nan"]
    assert runs["outcome"].tolist() == ["finished", "finished", "diverged", "missing", "missing"]
    assert runs["lr"].tolist() == [0.5, 0.03, 0.03, 0.03, 0.2]
    assert runs["test_accuracy"].dropna().tolist() == [50, 50, 50]
    assert runs["flip"].tolist() == [False] * 5
    assert runs["rate"].tolist() == ["fixed"] * 5
    assert "11173962," in (grid / "tables" / "runs.csv").read_text(encoding="utf-8")


def test_what_was_measured_is_in_the_tidy_tables_with_its_outcome(grid):
    tables = collected(grid)
    ranks = tables["ranks"]
    assert ranks["outcome"].tolist() == ["finished"] * 4 + ["diverged"] * 2
    assert ranks["epoch"].tolist() == [0.1, 0.2] * 3
    assert ranks[analysis.MEASURES].to_numpy() == pytest.approx(np.tile([[2.0], [3.0]] * 3, 4))
    assert tables["epochs"]["validation_accuracy"].tolist() == [15, 35] * 3
    assert tables["norms"]["value"].tolist() == [2, 0.5] * 3
    assert tables["norms"]["outcome"].tolist() == ["finished"] * 4 + ["diverged"] * 2
    assert len(tables["alignment"]) == 8
    assert tables["alignment"]["arm"].unique().tolist() == ["fa"]
    packed = (grid / "tables" / "alignment.csv.gz").read_bytes()
    assert gzip.decompress(packed).decode("utf-8").splitlines()[1].endswith(",0.123457")


def test_equal_runs_give_equal_files(grid):
    collected(grid)
    before = {path.name: path.read_bytes() for path in (grid / "tables").iterdir()}
    os.utime(grid / "plan.json", (0, 0))
    collected(grid)
    assert {path.name: path.read_bytes() for path in (grid / "tables").iterdir()} == before


def test_a_run_is_missing_once_its_choice_is_another(tmp_path):
    choice, fixed, run = tmp_path / "choice.json", planned("bp"), planned("fa", rule="fa", lr=0.5)
    write_run(tmp_path, fixed)
    write_run(tmp_path, run)
    waiting = {**run, "rate": "tuned", "choice": str(choice), "identity": "without its rate"}
    waiting["config"] = {key: value for key, value in run["config"].items() if key != "lr"}
    for lr, outcome in ((0.5, "finished"), (0.1, "missing")):
        choice.write_text(json.dumps({"lr": lr}), encoding="utf-8")
        collect.collect({"runs": {name(each): each for each in (fixed, waiting)}}, tmp_path, tmp_path / "tables")
        made = {table: analysis.read(tmp_path / "tables" / f"{table}.csv") for table in ("runs", "epochs")}
        row = made["runs"].set_index("arm").loc["fa"]
        assert (row["rate"], row["outcome"], row.dropna().get("lr")) == ("tuned", outcome, {0.5: 0.5}.get(lr))
        assert len(made["epochs"]) == (4 if outcome == "finished" else 2)


def test_without_any_run_there_is_nothing_to_tabulate(grid):
    shutil.rmtree(grid / "runs")
    done = script("collect", grid)
    assert done.returncode == 1
    one_line(done.stderr, "nothing to tabulate")
    assert not [*(grid / "tables").iterdir()]


def cut(blob: bytes) -> bytes:
    return blob[: len(blob) // 2]


FILES = ["metrics.csv", "ranks.csv", "alignment.csv", "norms.csv"]  # what collect.py reads beside run.json
DAMAGES = {
    "cut": cut,
    "empty": lambda blob: b"",
    "garbled": lambda blob: bytes(byte ^ 0x55 for byte in blob),
    "another": lambda blob: b"[1, 2]\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["run.json", *FILES])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, file, damage):
    run = planned("fa", rule="fa")
    path = write_run(tmp_path, run) / file
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(InputError) as error:
        collect.collect({"runs": {name(run): run}}, tmp_path, tmp_path / "tables")
    one_line(error.value, str(path), "run the same command again")
    assert not [*(tmp_path / "tables").iterdir()]


@pytest.mark.parametrize("file", FILES)
def test_an_absent_file_of_a_complete_run_is_named(tmp_path, file):
    run = planned("fa", rule="fa")
    path = write_run(tmp_path, run) / file
    path.unlink()
    with pytest.raises(InputError) as error:
        collect.collect({"runs": {name(run): run}}, tmp_path, tmp_path / "tables")
    one_line(error.value, str(path), "run the same command again")


def test_spectra_are_tabulated_anew_by_a_new_measure_and_only_if_they_are_whole(tmp_path, monkeypatch):
    run = planned("fa", rule="fa")
    folder, plan = write_run(tmp_path, run, measures="of before"), {"runs": {name(run): run}}
    (folder / "ranks.csv").write_text("of before", encoding="utf-8")  # not looked at
    collect.collect(plan, tmp_path, tmp_path / "tables")
    assert analysis.read(tmp_path / "tables" / "ranks.csv.gz")["entropy_s"].tolist() == [2, 3]
    (folder / "spectra.npz").write_bytes((folder / "spectra.npz").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"spectra\.npz"):
        collect.collect(plan, tmp_path, tmp_path / "tables")


def test_an_epoch_that_is_cut_off_with_its_whole_line_is_noticed(tmp_path):
    run = planned("bp")
    path = write_run(tmp_path, run) / "metrics.csv"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.csv"):
        collect.collect({"runs": {name(run): run}}, tmp_path, tmp_path / "tables")


# ---- pages, provenance, README ----

SUMMARIES = ["accuracy", "ranks", "alignment", "norms", "progress", "cost", "claims"]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


PAGE_NAMES = {"title": "Größe", "figures": ["b", "a"], "titles": {"b": "1. First", "a": "2. Second"}, "studies": {},
              "labels": {"fa": "FA"}, "datasets": {}}  # fmt: skip


CHECKS = {
    "faults": "kind,target,injected,survived,mended,by_hand,lost,silent\nSIGKILL,training,3,1,2,0,0,0\n"
    "SIGKILL,tables,1,1,0,0,0,0\nfull disk,training,1,0,1,0,0,0\n",
    "slurm": "fault,seconds,outcome\nnone,60,as a local run\nscancel,70,tables differ\n",
    "scale": "what,runs,cpu_seconds,seconds,memory_mb\ntables alone,100,0.4,1,80\ntables alone,1000,0.75,1.2,89\n",
}


BENCHMARK = """device,what,unit,target,measured,low,high,noise,n,bound,verdict
"A, B",products,GFLOP/s,,190.12,189,191,0,7,,
"A, B",FA / BP,ratio,≤ 1.02,1.0112,1.001,1.021,0.0312,7,bound not shown,met
"A, B",a start,s,≤ 2.5,4.8123,4.7,4.9,0,7,import torch 1.8 s,NOT MET
"A, B",a minute,min,≤ 25,31.5,31.5,31.5,0,1,two cores,NOT MET
"A, B",images,images/s,≥ 45000,nan,nan,nan,0,0,make bench-gpu,not measured
"""


def blocks(folder: Path) -> str:
    """The generated blocks of a README, still empty; and the tables that the second and the third are made from."""
    (folder / "results" / "checks").mkdir(parents=True)
    for name, text in CHECKS.items():
        (folder / "results" / "checks" / f"{name}.csv").write_text(text, encoding="utf-8")
    benchmark = folder / "results" / "benchmarks" / "a-b" / "bench.csv"
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text(BENCHMARK, encoding="utf-8")
    ends = [(readme.BEGIN.format(name), readme.END.format(name)) for name in ("claims", "checks", "speed")]
    return "".join(f"{begin}\nold\n{end}\n" for begin, end in ends)


def test_every_page_and_table_is_written_in_utf_8_whatever_the_locale(grid):
    tables = collected(grid, **C_LOCALE)
    assert "Prüfgerät, 2 Kerne" in set(tables["runs"]["device"])
    shutil.copytree(ROOT / "paper", grid / "paper")
    stated = {"statements": [{**CLAIM, "statement": "Größer", "dataset": "digits"}], "depth_utility": DEPTH}
    (grid / "paper" / "claims.yaml").write_text(yaml.safe_dump(stated, allow_unicode=True), encoding="utf-8")
    run_script("summarise", grid, grid / "paper", **C_LOCALE)
    assert json.loads((grid / "provenance.json").read_text(encoding="utf-8"))["title"] == "Größe"
    (grid / "results").mkdir()
    (grid / "results" / "quick").symlink_to(grid)
    page = grid / "README.md"
    page.write_text(f"vorher ü\n{blocks(grid)}", encoding="utf-8")
    run_script("readme", cwd=grid, **C_LOCALE)
    text = page.read_text(encoding="utf-8")
    assert "vorher ü" in text
    assert "| Größer (ours) |" in text
    assert "Prüfgerät" in text
    names = {**PAGE_NAMES, "figures": ["a"], "labels": {"fa": "Rückkopplung"}}
    (grid / "figures").mkdir()
    (grid / "figures" / "a.txt").write_text("Größe, ±.", encoding="utf-8")
    pd.DataFrame([dict.fromkeys(choose.COLUMNS, 1) | {"arm": "fa"}]).to_csv(grid / "mine.csv", index=False)
    run_script("pages", grid, grid / "figures", grid / "mine.csv", json.dumps(names), **C_LOCALE)
    assert "<td>Rückkopplung</td>" in (grid / "pages" / "cost.html").read_text(encoding="utf-8")
    assert "Größe, ±." in (grid / "figures" / "README.md").read_text(encoding="utf-8")
    assert "<td>Rückkopplung</td>" in (grid / "pages" / "tuned.html").read_text(encoding="utf-8")
    assert {path.stem for path in (grid / "pages").iterdir()} == {*SUMMARIES, "tuned"}
    text = page.read_text(encoding="utf-8")
    assert "# Tables: Größe" in text
    assert "`entropy_s_mean` | effective rank exp H(p), p = s / Σs; mean over n seeds" in text
    assert "`reference_entropy_s2_std` | " in text


def test_every_column_of_the_committed_tables_has_a_meaning():
    page = pages.tables(QUICK, QUICK / "tuned.csv", PAGE_NAMES)
    for path in [*(QUICK / "tables").iterdir(), *(QUICK / "summary").glob("*.csv"), QUICK / "tuned.csv"]:
        assert f"]({path.relative_to(QUICK).as_posix()})" in page
    assert f"{len(rows_of(QUICK / 'tables' / 'runs.csv'))} rows." in page


def test_a_column_without_a_meaning_is_an_error():
    with pytest.raises(InputError, match="'nonsense' has no meaning"):
        pages.meaning("nonsense_mean")


def test_the_page_of_the_figures_has_each_with_its_caption_in_order(tmp_path):
    for figure in ("b", "a"):
        (tmp_path / f"{figure}.txt").write_text(f"Caption of {figure}, ±.\n", encoding="utf-8")
    page = pages.figures(tmp_path, PAGE_NAMES)
    places = [page.index(t) for t in ("(b.svg)", "Caption of b, ±.", "## 2. Second", "(a.svg)", "Caption of a, ±.")]
    assert places == sorted(places)


def test_a_summary_as_html_has_labels_and_readable_numbers(tmp_path):
    table = pd.DataFrame([{"arm": "fa", "n": 3, "seconds_mean": 12345.678, "seconds_std": 0.01234, "device": "<GPU>"}])
    table.to_csv(tmp_path / "cost.csv", index=False)
    page = pages.summary(tmp_path / "cost.csv", PAGE_NAMES)
    cells = re.findall("<td>(.*?)</td>", page)
    assert cells[:2] == ["FA", "3"]
    assert "12350 ± 0.01234" in cells
    assert "&lt;GPU&gt;" in cells


def test_provenance_tells_the_planned_configs_apart_and_not_their_order(grid):
    runs, plan = collected(grid)["runs"], json.loads((grid / "plan.json").read_text(encoding="utf-8"))
    made = summarise.provenance(runs, plan)
    assert (made["preset"], made["title"]) == ("p", "Größe")
    assert made["runs"] == {"planned": 5, "finished": 2, "diverged": 1, "missing": 2}
    assert (made["device"], made["code"], made["run_seconds"]) == ("Prüfgerät, 2 Kerne", "c", 9)
    turned = {**plan, "runs": dict(reversed(plan["runs"].items()))}
    assert summarise.provenance(runs, turned)["config_sha256"] == made["config_sha256"]
    turned["runs"]["cnn4/digits/nan/seed0"]["config"]["lr"] = 0.3
    assert summarise.provenance(runs, turned)["config_sha256"] != made["config_sha256"]


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_commit_is_marked_dirty_by_code_and_not_by_results(tmp_path):
    assert summarise.commit(tmp_path) is None
    for path in ("code.py", "README.md", "results/quick/a.csv", "paper/quick/a.pdf", "paper/paper.typ"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("1", encoding="utf-8")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    head = summarise.commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", head)
    for path in ("README.md", "results/quick/a.csv", "paper/quick/a.pdf", "new.py"):
        (tmp_path / path).write_text("2", encoding="utf-8")
    assert summarise.commit(tmp_path) == head
    (tmp_path / "paper" / "paper.typ").write_text("2", encoding="utf-8")
    assert summarise.commit(tmp_path) == f"{head}-dirty"


def test_the_readme_block_follows_the_claims_and_check_notices_a_change(tmp_path):
    depth = {"family": "depth utility", "relation": "greater"}
    changes = [
        {}, {"left": "kp"}, {"control": ["fa", "bp"], "statement": "y"}, {"structural": True}, {"relation": "greater"},
        {**depth, "right": "frozen", "frozen": "one"}, {**depth, "right": "bp", "frozen": "two"},
        {**depth, "right": "frozen+bn", "frozen": "one", "left": "fa+bn"},
    ]  # fmt: skip
    made = runs({"frozen+bn": [60, 10]}, fa=[40, 41, 42], bp=[60, 62, 61], frozen=[11, 13, 12])
    table = settled({"runs": pd.concat([made, runs({"fa+bn": [70, 71]})])}, *changes)
    quick, page = tmp_path / "results" / "quick", tmp_path / "README.md"
    analysis.write(quick / "summary" / "claims.csv", table, 4)
    (quick / "summary" / "findings.txt").write_text("One, ü.\nTwo.\n", encoding="utf-8")
    (quick / "provenance.json").write_text('{"device": "CPU", "finished": "2026-01-02T03:04:05Z"}', encoding="utf-8")
    page.write_text(f"before\n{blocks(tmp_path)}after\n", encoding="utf-8")
    assert script("readme", "--check", cwd=tmp_path).returncode == 1
    run_script("readme", cwd=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{readme.BEGIN.format('claims')}\nOne, ü. Two.\n")
    assert text.endswith(f"{readme.END.format('speed')}\nafter\n")
    text, _, checks = text.partition(readme.BEGIN.format("checks"))
    checks, _, speed = checks.partition(readme.BEGIN.format("speed"))
    assert speed.startswith("\n**A, B**: products 190 GFLOP/s.\n\n![")
    assert "](results/benchmarks/a-b/bench.svg)" in speed
    assert [line for line in speed.splitlines() if line[:2] == "| "][1:] == [
        "| FA / BP | ≤ 1.02 | 1.01 [1, 1.02] | 0.031 | 7 | ✓ |  |",
        "| a start | ≤ 2.5 s | 4.81 [4.7, 4.9] s | – | 7 | ✗ **not met** | import torch 1.8 s |",
        "| a minute | ≤ 25 min | 31.5 min | – | 1 | ✗ **not met** | two cores |",
        "| images | ≥ 45000 images/s | – | – | – | not measured | make bench-gpu |",
    ]
    assert (
        "5 faults on digits: 2 nothing was to be done; 3 named and made again by the same command; 0 by hand" in checks
    )
    assert "| SIGKILL | 4 | 2 | 2 | 0 | 0 | 0 |\n| full disk | 1 | 0 | 1 | 0 | 0 | 0 |" in checks
    assert "1 of 2 calls end with the checksums of a local run (none; scancel)" in checks
    assert "`make bench-scale`, 1,000 runs: tables alone 0.75 CPU-s, 89 MB.\n" in checks
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    label = {arm: about["label"] for arm, about in read(ROOT / "config.yaml")["arms"].items()}
    gain, p, four = "-20 [-22.5, -17.5]", 0.00083, 0.0025  # t = -20 √3 with 2 degrees of freedom; three are corrected
    assert stats.t.sf(20 * np.sqrt(3), 2) * 2 == pytest.approx(p, abs=5e-6)
    assert lines[1:5] == [
        ["x (ours)", gain, "–", "3", "tuned", f"{p}, {four}", "✓ reproduced"],
        ["y (ours)", gain, gain, "3", "tuned", f"{p}, {four}", "○ **explained by the control**"],
        ["x (ours)", gain, "–", "3", "tuned", f"{p}, –", "by construction, not counted"],
        ["x (ours)", gain, "–", "3", "tuned", f"{p}, {four}", "✗ **not reproduced**"],
    ]
    assert lines[5:] == [
        ["trained net", "frozen: one", "frozen: two"],
        [f"{label['fa']}, cnn4", "29 [26.5, 31.5] ✓", "-20 [-22.5, -17.5] ✗"],
        [f"{label['fa+bn']}, cnn4", "10 ~", "–"],
    ]
    assert script("readme", "--check", cwd=tmp_path).returncode == 0
    analysis.write(quick / "summary" / "claims.csv", table.assign(p=0.5), 4)
    done = script("readme", "--check", cwd=tmp_path)
    assert done.returncode == 1
    one_line(done.stderr, "run `make readme`")


def test_a_figure_that_the_text_does_not_name_is_in_the_paper(committed, tmp_path):
    typst = pytest.importorskip("typst")
    shutil.copytree(ROOT / "paper", tmp_path / "paper")
    shutil.copytree(committed / "summary", tmp_path / "results" / "quick" / "summary")
    shutil.copy(QUICK / "tuned.csv", tmp_path / "results" / "quick")
    known = {"commit": None, "started": "2026-01-01", "finished": "2026-01-02", "run_seconds": 60, "title": "t",
             "config_sha256": "0" * 64, "runs": {"planned": 1}, "device": ["CPU", "GPU"]}  # fmt: skip
    known |= dict.fromkeys(("python", "rankcollapse", "torch", "code"), "1")
    (tmp_path / "results" / "quick" / "provenance.json").write_text(json.dumps(known), encoding="utf-8")
    figures = ["accuracy", "brand_new"]
    for figure in figures:
        svg, text = (tmp_path / "figures" / "quick" / f"{figure}.{kind}" for kind in ("svg", "txt"))
        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', encoding="utf-8")
        text.write_text(f"Caption of {figure}.", encoding="utf-8")
    inputs = {"preset": "quick", "tuned": "results/quick/tuned.csv", "figures": json.dumps(figures)}
    inputs |= dict.fromkeys(("labels", "studies", "datasets"), "{}")
    benchmark = tmp_path / "results" / "benchmarks" / "a-b" / "bench.csv"
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text(BENCHMARK, encoding="utf-8")
    inputs["benchmarks"] = json.dumps(["results/benchmarks/a-b/bench.csv"])
    text = str(tmp_path / "paper" / "paper.typ")
    found = typst.query(
        text, "figure.where(kind: image)", root=str(tmp_path), sys_inputs=inputs, ignore_system_fonts=True
    )
    for figure in figures:
        assert found.count(f"Caption of {figure}.") == 1
    tables = typst.query(
        text, "figure.where(kind: table)", root=str(tmp_path), sys_inputs=inputs, ignore_system_fonts=True
    )
    assert "import torch 1.8 s" in tables
    assert "bound not shown" not in tables


# ---- the committed tables, against arithmetic done here ----


def rows_of(path: Path) -> list[dict[str, str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def key(row: dict, *columns: str) -> tuple[str, ...]:
    return tuple(row[column] for column in columns)


ARM = ("study", "dataset", "architecture", "arm")


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """Summaries and claims, made anew from the committed tidy tables."""
    out = tmp_path_factory.mktemp("project") / "results" / "quick"
    out.mkdir(parents=True)
    (out / "tables").symlink_to(QUICK / "tables")
    config = overlay(read(ROOT / "config.yaml"), read(ROOT / "presets" / "quick.yaml"))
    (out / "plan.json").write_text(json.dumps(plan(grid_of(config))), encoding="utf-8")
    run_script("summarise", out, ROOT / "paper")
    return out


@pytest.fixture(scope="module")
def tidy():
    """The tidy tables, rows of text, without the cosines whose reference is at the numerical floor."""
    found = {path.name.split(".")[0]: rows_of(path) for path in (QUICK / "tables").iterdir()}
    sizes = defaultdict(dict)
    for row in found["norms"]:
        sizes[key(row, *ARM, "seed", "step")][row["quantity"], row["layer"]] = float(row["value"] or "nan")
    for row in found["alignment"]:
        here = sizes[key(row, *ARM, "seed", "step")]
        layers = {layer for _, layer in here} - {"head"} if row["layer"] == "all" else {row["layer"]}
        reference, weight = (math.hypot(*(here[what, layer] for layer in layers)) for what in ("reference", "weight"))
        row["struck"] = int(row["quantity"].startswith("gradient") and reference < 2**-23 * weight)
        row["value"] = "" if row["struck"] else row["value"]
    return found


@pytest.fixture(scope="module")
def good(tidy):
    """The finished runs."""
    return {key(row, *ARM, "seed") for row in tidy["runs"] if row["outcome"] == "finished"}


def last_by_seed(rows: list[dict], good: set, column: str, /, **where: str) -> dict[str, float]:
    """By seed the value at the last step, of finished runs, of the rows that fit."""
    fitting = [row for row in rows if all(row[k] == v for k, v in where.items()) and key(row, *ARM, "seed") in good]
    latest = {}
    for row in fitting:
        if row["seed"] not in latest or int(row["step"]) > int(latest[row["seed"]]["step"]):
            latest[row["seed"]] = row
    return {seed: float(row[column]) for seed, row in latest.items() if row[column] not in ("", None)}


def agrees(row: dict, column: str, values: list[float]) -> None:
    """Mean, standard deviation and n of a summary's row, which has four digits, are those of the values."""
    assert int(row["n"]) == len(values)
    for ending, least, of in (("mean", 1, statistics.fmean), ("std", 2, statistics.stdev)):
        shown = row[f"{column}_{ending}"]
        assert (shown == "") == (len(values) < least)
        if shown:
            assert float(shown) == pytest.approx(of(values), rel=6e-4, abs=1e-9)


def test_the_accuracies_and_costs_are_those_of_the_committed_runs(committed, tidy):
    accuracy, cost = (rows_of(committed / "summary" / f"{name}.csv") for name in ("accuracy", "cost"))
    assert len(accuracy) == len(cost) == len({key(row, *ARM) for row in tidy["runs"]})
    for percent, spent in zip(accuracy, cost, strict=True):
        mine = [row for row in tidy["runs"] if key(row, *ARM) == key(percent, *ARM)]
        assert int(percent["planned"]) == len(mine)
        for outcome in ("diverged", "missing"):
            assert int(percent[outcome]) == sum(row["outcome"] == outcome for row in mine)
        done = [row for row in mine if row["outcome"] == "finished"]
        agrees(percent, "test_percent", [100 * float(row["test_accuracy"]) for row in done])
        agrees(spent, "seconds", [float(row["seconds"]) for row in done])
        shares = [100 * float(row["probe_seconds"]) / float(row["train_seconds"]) for row in done]
        agrees(spent, "probe_percent", shares)


@pytest.mark.parametrize(
    ("table", "by", "columns", "every"),
    [
        ("ranks", ("quantity", "layer", "scope"), ("entropy_s", "entropy_s2", "stable_rank"), 41),
        ("alignment", ("quantity", "layer"), ("value",), 7),
        ("norms", ("quantity", "layer"), ("value",), 17),
    ],
)
def test_the_ends_are_those_of_the_committed_spectra_and_cosines(committed, tidy, good, table, by, columns, every):
    summary = rows_of(committed / "summary" / f"{table}.csv")
    assert len(summary) == len({key(row, *ARM, *by) for row in tidy[table]})
    for row in summary[::every]:
        where = {column: row[column] for column in (*ARM, *by)}
        for column in columns:
            agrees(row, column, list(last_by_seed(tidy[table], good, column, **where).values()))
        if table == "alignment":
            every_run = {key(run, *ARM, "seed") for run in tidy["runs"]}
            assert int(row["struck"]) == sum(last_by_seed(tidy[table], every_run, "struck", **where).values())


def gains(claim: dict, left: str, right: str | float, tidy: dict, good: set) -> list[float]:
    """Left less right at the end, paired by seed, in the unit of the claim."""
    what = claim["quantity"] if claim["quantity"] != "accuracy" else {"table": "runs", "measure": "test_accuracy"}
    column, scale = what.get("measure", "value"), 100 if what["table"] == "runs" else 1
    where = {"study": claim["study"], "dataset": claim["dataset"]}
    where |= {k: str(what[k]) for k in ("quantity", "layer", "scope", "rows") if k in what}
    mine = last_by_seed(tidy[what["table"]], good, column, **where, arm=left)
    theirs = dict.fromkeys(mine, right)
    if isinstance(right, str):
        theirs = last_by_seed(tidy[what["table"]], good, column, **where, arm=right)
    return [scale * (mine[seed] - theirs[seed]) for seed in sorted({*mine} & {*theirs})]


def test_the_claims_are_t_tests_on_the_committed_tables(committed, tidy, good):
    rows = {row["id"]: row for row in rows_of(committed / "summary" / "claims.csv")}
    stated = yaml.safe_load((ROOT / "paper" / "claims.yaml").read_text(encoding="utf-8"))["statements"]
    assert [*rows][: len(stated)] == [claim["id"] for claim in stated]
    for claim, row in zip(stated, rows.values(), strict=False):
        for before, sides in (("", (claim["left"], claim["right"])), ("control_", claim.get("control"))):
            if sides and claim.get("at") != "equal loss":
                found = gains(claim, *sides, tidy, good)
                interval = stats.ttest_1samp(found, 0).confidence_interval(0.95) if len(found) > 1 else ()
                shown = [row[before + column] for column in ("difference", "low", "high")]
                wanted = [np.mean(found), *interval] if found else []
                assert [float(number) for number in shown if number] == pytest.approx(wanted, rel=6e-4, abs=1e-9)
                assert before or int(row["n"]) == len(found)
    for family in ("statement", "depth utility"):
        mine = [row for row in rows.values() if row["family"] == family and row["structural"] == "False" and row["p"]]
        worst = 0.0
        for i, row in enumerate(sorted(mine, key=lambda row: float(row["p"]))):
            worst = max(worst, min(1, (len(mine) - i) * float(row["p"])))
            assert float(row["p_holm"]) == pytest.approx(worst, rel=2e-3)
        assert len(mine) > 2
    lost = {key(row, "study", "dataset", "arm") for row in tidy["runs"] if row["outcome"] == "diverged"}
    for row in rows.values():
        sign = 1 if row["relation"] == "greater" else -1
        above = {c: min(sign * float(row[f"{c}{end}"] or "nan") for end in ("low", "high")) > 0
                 for c in ("", "control_", "rest_")}  # fmt: skip
        verdict = (
            ("better" if above[""] else "worse") if row["frozen"] else "reproduced" if above[""] else "not reproduced"
        )
        if above["control_"] and above[""] and not above["rest_"]:
            verdict = "explained by the control"
        diverged = lost & {(row["study"], row["dataset"], row[side]) for side in ("left", "right")}
        if diverged or not float(row["p_holm"] or 1) < 0.05:
            verdict = "inconclusive"
        verdict = "by construction" if row["structural"] == "True" else verdict
        assert row["verdict"] == ("not tested" if row["n"] == "0" and not diverged else verdict)
