"""From run folders to tables, and from these to summaries, claims, provenance, pages, README and paper.

On tables and run folders made by hand, and on the committed tables of results/quick against arithmetic done here.
"""

import base64
import gzip
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from rankcollapse.errors import InputError
from rankcollapse.experiment import collect, files, folder
from rankcollapse.experiment.config import RunConfig, Settings, read
from rankcollapse.experiment.identity import MEASURES as MEASURING
from rankcollapse.experiment.identity import code, identity
from rankcollapse.library.ranks import Spectrum
from rankcollapse.render import claims, pages, paper, questions, readme, summaries, text
from rankcollapse.render import tables as tidy
from rankcollapse.render.__main__ import main

ROOT = Path(__file__).parents[1]
QUICK = ROOT / "results" / "quick"
KEYS = {"study": "cnn4", "dataset": "cifar10", "architecture": "cnn4"}
LABELS = {arm: about["label"] for arm, about in read(ROOT / "config.yaml")["arms"].items()}
TEXTS = ROOT / "paper"


# ---- numbers ----


def test_a_number_ends_at_the_second_digit_of_its_uncertainty():
    for value, uncertainty, shown in (
        (49.65, 0.5168, "49.65"), (-136.104, 6.04, "−136.1"), (153.9, 11.0, "154"), (0.02812, 0.0037, "0.0281"),
        (6066.2, 102.9, "6070"), (59.814, 0.99999, "59.8"), (-0.004, 0.1, "0.00"), (5.0, 0.096, "5.000"),
        (12345.678, math.nan, "12346"), (99.96, 0, "100"), (-2.0649, math.nan, "−2.06"), (math.nan, 1, "–"),
    ):  # fmt: skip
        assert text.number(value, uncertainty) == shown
    assert text.spread(43.72, 1.0523) == "43.7 ± 1.1"
    assert text.spread(43.72, math.nan) == "43.7"
    assert text.spread(13.285, 0.00707) == "13.29 ± 0.01"
    assert text.spread(-0.100053, 0.0003) == "−0.1001 ± 0.0003"
    assert text.spread(0.02, 0.5) == "0.02 ± 0.50"
    assert text.spread(1.0, 0.0) == "1 ± 0"
    assert text.interval(-2.0651, -5.4265, 1.2963) == "−2.1 [−5.4, 1.3]"
    assert text.interval(10, math.nan, math.nan) == "10"
    assert [text.chance(p) for p in (0.000099, 0.00025, 0.3, math.nan)] == ["< 0.0001", "0.00025", "0.30", "–"]
    assert [text.chance(p) for p in (0.0497, 0.0503, 0.051)] == ["0.0497", "0.0503", "0.051"]


def test_a_summary_is_text_with_labels_and_what_became_of_runs():
    table = pd.DataFrame([
        {"arm": "fa", "n": 4, "x_mean": 12345.678, "x_std": 123.4, "diverged": 1, "missing": 0, "verdict": "worse"},
        {"arm": "bp", "n": 0, "x_mean": np.nan, "x_std": np.nan, "diverged": 3, "missing": 2, "verdict": "not tested"},
    ])  # fmt: skip
    shown = text.shown(table.assign(rate="as fa"), {"labels": {"fa": "FA"}})
    assert shown[["arm", "n", "x", "verdict", "rate"]].to_numpy().tolist() == [
        ["FA", "4 (1 diverged)", "12350 ± 120", "✗ worse", "as FA"],
        ["bp", "0 (3 diverged)", "–", "not tested", "as FA"],
    ]


def test_a_question_that_the_paper_does_not_answer_is_not_reproduced_but_supported():
    verdicts = ["reproduced", "not reproduced", "inconclusive"]
    cases = [(source, verdict) for source in ("abstract", "summary", "ours") for verdict in verdicts]
    shown = text.shown(pd.DataFrame(cases, columns=["source", "verdict"]), {})["verdict"].tolist()
    assert [*map(text.unmarked, shown)] == [*verdicts, *verdicts, "supported", "contradicted", "inconclusive"]
    assert shown == ["✓ reproduced", "✗ not reproduced", "~ inconclusive"] * 2 + [
        "✓ supported", "✗ contradicted", "~ inconclusive",
    ]  # fmt: skip


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
            "step": apart * step, "rows": 8, "outcome": outcome, **dict.fromkeys(tidy.MEASURES, value),
        }
        for seed, (outcome, row) in enumerate(zip(outcomes, values, strict=True))
        for step, value in enumerate(row)
    )  # fmt: skip


def ends(ranks: pd.DataFrame) -> pd.DataFrame:
    return summaries.ends(ranks, tidy.SPECTRUM, tidy.MEASURES)


def test_a_diverged_run_counts_in_accuracies_and_those_of_the_finished_stand_beside():
    made = runs(fa=[40, 50, float("nan"), 10]).assign(rate="as bp", learning_blocks=2)
    theirs = {"dataset": "cifar10", "architecture": "cnn4", "arm": "fa", "paper_percent": 1.4, "paper_source": "note"}
    table, other = summaries.accuracy(pd.concat([made, runs(bp=[60])]), pd.DataFrame([theirs])).to_dict("records")
    assert (table["paper_percent"], np.isnan(other["paper_percent"])) == (1.4, True)
    assert (table["rate"], table["learning_blocks"]) == ("as bp", 2)
    assert (table["n"], table["planned"], table["diverged"], table["missing"]) == (3, 4, 1, 1)
    for columns, values in (("test_percent", [40, 50, 10]), ("test_percent_finished", [40, 50])):
        assert table[f"{columns}_mean"] == pytest.approx(np.mean(values))
        assert table[f"{columns}_std"] == pytest.approx(np.std(values, ddof=1))


# ---- claims, on tables made by hand ----

CLAIM = {"id": "x", "family": "question", "statement": "x", "source": "ours", "study": "cnn4", "dataset": "cifar10",
         "quantity": "accuracy", "left": "fa", "relation": "less", "right": "bp"}  # fmt: skip
RANK = {"table": "ranks", "quantity": "error", "layer": "conv4", "scope": "batch", "measure": "entropy_s"}


def settled(tables: dict[str, pd.DataFrame], *changes: dict) -> pd.DataFrame:
    """claims.csv of a claim for each set of changes to CLAIM."""
    return claims.settled([claims.Claim(**{**CLAIM, **change}) for change in changes], tables)


def settle(table: pd.DataFrame, **changes) -> pd.Series:
    return settled({"runs": table}, changes).iloc[0]


def test_the_interval_is_that_of_a_paired_t_test_over_seeds_that_both_have():
    row = settle(runs(fa=[40, 43, 41, 90], bp=[60, 61, 66, np.nan]))
    expected = stats.ttest_rel([40, 43, 41], [60, 61, 66]).confidence_interval(0.95)
    assert (row["n"], row["missing"]) == (3, 1)
    assert row[["left_mean", "right_mean"]].tolist() == pytest.approx([124 / 3, 187 / 3])
    assert row[["difference", "low", "high"]].tolist() == pytest.approx([-21, expected.low, expected.high])


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


def test_a_diverged_run_enters_a_claim_on_accuracy_and_the_other_reading_stands_beside():
    row = settle(runs(fa=[40, 41, 42, 10], bp=[60, 62, 61, 34]))
    with_it, without = [-20, -21, -19, -24], [-20, -21, -19]
    for ending, values in (("", with_it), ("_finished", without)):
        test = stats.ttest_1samp(values, 0)
        assert row[f"n{ending}"] == len(values)
        found = row[[f"{column}{ending}" for column in ("difference", "low", "high", "p", "p_holm")]].tolist()
        assert found == pytest.approx([np.mean(values), *test.confidence_interval(0.95), test.pvalue, test.pvalue])
    assert (row["diverged"], row["verdict"]) == (1, "reproduced")
    assert row["p"] < 0.05, "so that divergence alone does not settle it"
    far = settle(runs(fa=[58, 61, 59, 10], bp=[60, 62, 61, 63]))
    assert (far["p_finished"] < far["p"], far["verdict"]) == (True, "inconclusive")


def test_a_diverged_run_enters_no_claim_on_ranks():
    outcomes = ["finished", "finished", "finished", "diverged"]
    ranks = pd.concat([spectra(outcomes, [[2], [3], [4], [90]]), spectra(["finished"] * 4, [[8]] * 4, "bp")])
    row = settled({"runs": runs(fa=[40, 41, 42, 10], bp=[60] * 4), "ranks": ranks}, {"quantity": RANK}).iloc[0]
    assert (row["n"], row["n_finished"], row["diverged"], row["difference"]) == (3, 3, 1, -5)
    lost = settled({"runs": runs(fa=[10, 10], bp=[60] * 2), "ranks": ranks.query("arm == 'bp'")}, {"quantity": RANK})
    assert lost[["n", "diverged", "verdict"]].to_numpy().tolist() == [[0, 2, "inconclusive"]]


def test_a_claim_on_a_number_compares_with_the_number():
    row = settle(runs(fa=[40, 41, 42]), right=50, relation="less", paper=12, source="summary")
    assert row["difference"] == pytest.approx(-9)
    assert row[["verdict", "paper_is", "paper_source"]].tolist() == ["reproduced", "left", "unverified note"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"statment": "b"}, ["unknown key 'statment'", "did you mean 'statement'"]),
        ({"relation": "below"}, ["relation is 'below'", "'less' or 'greater'"]),
        ({"quantity": "acuracy"}, ["quantity is 'acuracy'", "it must be accuracy, or table: ranks"]),
        ({"quantity": {**RANK, "layr": "conv4"}}, ["quantity is {", "'layr'", "quantity, layer, scope and measure"]),
        ({"quantity": {**RANK, "rows": "200"}}, ["'rows': '200'"]),
        ({"at": "equal loss"}, ["accuracy", "at equal loss there are ranks and cosines"]),
        ({"left": "{pair[arm]}"}, ["must hold families of claims", "name what stands in their `each`", "'pair'"]),
        ({"each": ["fa"]}, ["must hold families of claims"]),
        (None, ["must hold families of claims"]),
    ],
)
def test_claims_that_are_not_well_formed_are_refused_in_one_sentence(tmp_path, one_sentence, change, words):
    path = tmp_path / "claims.yaml"
    plain = {key: value for key, value in CLAIM.items() if key != "family"}
    stated = [{**plain, **change}] if isinstance(change, dict) else [change]
    path.write_text(json.dumps({"a question?": stated}), encoding="utf-8")
    with pytest.raises(InputError) as error:
        claims.read_claims(path)
    one_sentence(error.value, "claims.yaml" if "families" in words[0] else "claim 'x'", *words)


def test_a_claim_with_each_is_one_for_every_combination_and_has_a_statement_of_its_own(tmp_path):
    """The values stand in every text, however deep; a family is what it stands under."""
    nets = [{"study": "cnn4", "set": "cifar10"}, {"study": "resnet18", "set": "cifar100"}]
    each = {"net": nets, "arm": ["fa", "fa+bn"]}
    about = {"id": "{net[study]}-{arm}", "study": "{net[study]}", "dataset": "{net[set]}", "left": "{arm}"}
    about |= {"relation": "greater", "right": "frozen", "control": ["{arm}+x", "frozen"], "each": each}
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps({"one": [about], "two": [{**about, "statement": "{arm}!"}]}), encoding="utf-8")
    found = claims.read_claims(path)
    wanted = [(net["study"], net["set"], arm, [f"{arm}+x", "frozen"]) for net in nets for arm in ("fa", "fa+bn")]
    assert [(c.study, c.dataset, c.left, c.control) for c in found] == wanted * 2
    assert [c.family for c in found] == ["one"] * 4 + ["two"] * 4
    assert found[3].statement == f"{LABELS['fa+bn']} is more accurate than {LABELS['frozen']} in resnet18"
    assert (found[3].source, found[3].quantity["measure"], found[4].statement) == ("ours", "%", "fa!")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"study": "cnn5"}, ["study 'cnn5'", "did you mean 'cnn"]),
        ({"dataset": "svhn"}, ["dataset 'svhn'", "known: cifar10, cifar100, digits"]),
        ({"right": "bpp"}, ["arm 'bpp'", "did you mean 'bp'?"]),
        ({"quantity": {**RANK, "layer": "conv5"}}, ["layer 'conv5'", "cnn4, cifar10, fa", "did you mean 'conv4'?"]),
        ({"quantity": {**RANK, "scope": "step"}}, ["scope 'step'", "known: batch"]),
    ],
)
def test_a_claim_on_what_is_not_there_is_refused_in_one_sentence(one_sentence, change, words):
    tables = {"runs": runs(fa=[40]), "ranks": spectra(["finished"], [[1, 2]])}
    with pytest.raises(InputError) as error:
        claims.settle(claims.Claim(**{**CLAIM, **change}), tables)
    one_sentence(error.value, "claim 'x'", *words)


def test_a_claim_on_an_arm_that_this_preset_leaves_out_is_not_tested_and_one_on_a_study_is_left_out():
    tables = {"runs": runs(fa=[40]), "ranks": spectra(["finished"], [[1, 2]])}
    changes = [{}, {"study": "mlp"}, {"dataset": "cifar100"}, {"left": "bp", "right": 3}]
    table = settled(tables, *({"quantity": RANK, **change} for change in changes))
    assert [*table["verdict"]] == ["not tested"] * 3
    assert [*table["study"]] == ["cnn4"] * 3
    lost = settle(runs(fa=[10, 40]), left="fa", right="bp")  # of which one diverged
    assert (lost["verdict"], lost["diverged"]) == ("not tested", 0)


def test_rows_picks_the_length_of_a_trajectory():
    ranks = spectra(["finished"] * 2, [[2, 6, 8], [4, 8, 10]]).assign(rows=[100, 200, 300] * 2)
    lengths = [
        {"quantity": {**RANK, **rows}, "right": 20} for rows in ({"rows": 100}, {"rows": 200}, {}, {"rows": 250})
    ]
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
    table = summaries.progress(tables)
    assert table[["arm", "reference", "scope", "n"]].to_numpy().tolist() == [["fa", "bp", "batch", 6]]
    row, found = table.iloc[0], [(loss, *ranks) for _, _, loss, ranks in CURVES.values() if ranks]
    for name, values in zip(("loss", "entropy_s", "reference_entropy_s"), zip(*found, strict=True), strict=True):
        assert row[f"{name}_mean"] == pytest.approx(np.mean(values))
        if name != "loss":
            assert row[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
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
    changes = [{"left": "a"}, {"left": "b"}, {"left": "c", "structural": "so"}, {"left": "fa"}, depth]
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


def test_a_claim_beyond_its_control_is_on_what_is_left_above_it():
    theirs = {"bp+muon": [70, 71, 69, np.nan, 72], "bp": [65, 65, 66, 66, 65]}
    made = runs({"fa+muon": BASE + GAIN, "fa": BASE, **theirs})
    claim = {"left": "fa+muon", "relation": "greater", "right": "fa", "control": ["bp+muon", "bp"], "beyond": True}
    row, left = settle(made, **claim), (GAIN - np.subtract(theirs["bp+muon"], theirs["bp"]))[[0, 1, 2, 4]]
    assert (row["n"], row["difference"], row["rest"]) == (4, left.mean(), left.mean())
    assert row["p"] == pytest.approx(stats.ttest_1samp(left, 0).pvalue)
    assert (row["verdict"], row["control_difference"]) == ("reproduced", 5.25)
    both = made.assign(test_accuracy=made["test_accuracy"].where(made["arm"] != "bp+muon", 75))
    assert settle(both, **claim)["verdict"] != "explained by the control", "whatever the control gains"
    with pytest.raises(ValueError, match="beyond is true, but there is no control"):
        claims.Claim(**{**CLAIM, "beyond": True})


def test_a_claim_since_a_seed_is_on_that_and_later_ones():
    made = runs({"fa+muon": BASE + GAIN, "fa": BASE})
    outcome = made["outcome"].mask((made["arm"] == "fa") & (made["seed"] == 0), "diverged")
    claim = {"left": "fa+muon", "relation": "greater", "right": "fa"}
    row = settle(made.assign(outcome=outcome), **claim, since=2)
    assert (row["n"], row["difference"], row["diverged"]) == (len(GAIN) - 2, GAIN[2:].mean(), 0)
    assert settle(made.assign(outcome=outcome), **claim)["diverged"] == 1
    assert settle(made, **claim, since=len(GAIN))["verdict"] == "not tested"


def test_the_columns_of_the_control_are_paired_by_seed():
    theirs = {"frozen+muon": [30, 33, 10, np.nan], "frozen": [28, 29, 30, 31]}
    made = runs({"fa+muon": [47, 49, 46, 55], "fa": [40, 41, 43, 42], **theirs})
    made.loc[made["arm"] == "fa", "rate"] = "as fa"
    row = settle(made, left="fa+muon", right="fa", relation="greater", control=["frozen+muon", "frozen"])
    gains, theirs = np.array([7, 8, 3, 13]), np.array([2, 4, -20])
    for names, values in (
        (("difference", "low", "high"), gains),
        (("control_difference", "control_low", "control_high"), theirs),
        (("rest", "rest_low", "rest_high"), gains[:3] - theirs),
    ):
        found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert row[[*names]].tolist() == pytest.approx([values.mean(), found.low, found.high])
    assert (row["n"], row["control_left"], row["control_right"]) == (4, "frozen+muon", "frozen")
    assert (row["control_n"], row["control_diverged"], row["control_missing"]) == (3, 1, 1)
    assert row["rates"] == "tuned; as fa"
    assert row["p"] == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)


def test_what_is_detectable_is_what_four_of_five_repetitions_show():
    row = settle(runs(fa=np.add(BASE, [1, 4, 2, 2, 3]), bp=BASE))
    sem = np.std([1, 4, 2, 2, 3], ddof=1) / np.sqrt(5)
    assert row["detectable"] == pytest.approx((2.776445 + 0.940965) * sem)  # tables of Student's t with 4 degrees
    often = np.random.default_rng(0).normal(row["detectable"], sem * np.sqrt(5), (20_000, 5))
    assert np.mean(stats.ttest_1samp(often, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)


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
    made = tidy.strike(cosines, pd.DataFrame(norms))
    low = [(0, "a"), (1, "a"), (1, "b"), (1, "all")]
    wanted = {(0, *place, quantity) for place in low for quantity in ("gradient", "gradient_null")}
    by = ["seed", "step", "layer", "quantity"]
    assert {*made.loc[made["struck"], by].itertuples(index=False, name=None)} == wanted
    assert made["value"].isna().equals(made["struck"])
    assert made["value"].dropna().eq(0.5).all()
    twice = pd.concat([made, made.assign(seed=made["seed"] + 2)])
    ends = summaries.ends(twice, ["quantity", "layer"], ["value"]).set_index(["quantity", "layer"])
    assert ends.loc[("gradient", "a"), ["n", "struck"]].tolist() == [2, 2]  # the others have no norms
    assert ends.loc[("weight", "a"), ["n", "struck"]].tolist() == [4, 0]
    assert not tidy.strike(cosines, pd.DataFrame(norms)[:0])["struck"].any()


# ---- collect, on run folders made by hand ----


def planned(arm: str, seed: int = 0, study: str = "cnn4", **knobs) -> dict:
    """A run of a plan, whose rate is fixed; `identity` is that which training would give it."""
    config = RunConfig(**{"epochs": 2, "seed": seed, **knobs})
    return {"study": study, "arm": arm, "rate": "fixed", "identity": identity(config), "config": config.model_dump()}


def name(run: dict) -> str:
    return f"{run['study']}/{run['config']['dataset']}/{run['arm']}/seed{run['config']['seed']}"


def write_run(there: Path, run: dict, **result) -> Path:
    """A run folder as training leaves it; its spectra are flat, so that all ranks are the number of values."""
    out = there / name(run)
    flat = [Spectrum("error", "conv4", "batch", step, 64, np.full(step + 1, 3.0)) for step in (1, 2)]
    steps = (0, 20) if run["config"]["rule"] == "fa" else ()
    cosines = [("weight", f"conv{i}", step, 0.123456789) for step in steps for i in (1, 2)]
    norms = [("weight", "conv1", 0, 2.0), ("reference", "conv1", 0, 0.5)]
    made = {
        "config.json": json.dumps(run["config"]), "checkpoint.pt": "weights", "ranks.csv": folder.rank_table(flat),
        "metrics.csv": folder.table(folder.METRICS, [(1, 10, 2.5, 0.125, 2.25, 0.15), (2, 20, 1.5, 0.25, 1.25, 0.35)]),
        "alignment.csv": folder.table(folder.SCALARS, cosines), "norms.csv": folder.table(folder.SCALARS, norms),
    }  # fmt: skip
    for file, content in made.items():
        files.write_text(out / file, content)
    folder.save_spectra(out / "spectra.npz", flat)
    found = {
        "study": run["study"], "arm": run["arm"], "identity": run["identity"], "outcome": "finished", "epochs": 2,
        "test_accuracy": 0.5, "test_loss": 1.0, "validation_accuracy": 0.35, "train_loss": 1.5, "parameters": 11173962,
        "seconds": 3.0, "train_seconds": 2.0, "probe_seconds": 0.5, "images_per_second": 100.0, "memory_mb": 512,
        "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:00:03Z", "device": "Prüfgerät, 2 Kerne",
        "threads": 1, "python": "3.11", "rankcollapse": "0", "torch": "2", "code": "c", "resumed": 0,
        "measures": code(MEASURING), **result,
    }  # fmt: skip
    files.seal(out / "run.json", found, folder.RUN, out)
    return out


@pytest.fixture
def grid(tmp_path):
    """A plan and run folders: finished, without cosines, diverged, stale, absent. Its tables are in tmp_path/p."""
    changed, bp, diverged = planned("fa", rule="fa", lr=0.5), planned("bp"), planned("fa", 1, rule="fa")
    stale, absent = planned("1"), planned("nan", lr=0.2)
    for run, result in ((changed, {}), (bp, {}), (diverged, {"outcome": "diverged"}), (stale, {"identity": "another"})):
        write_run(tmp_path, run, **result)
    return {name(run): run for run in (changed, bp, diverged, stale, absent)}


def collected(grid: dict, there: Path) -> dict[str, pd.DataFrame]:
    collect.runs(grid, there, there / "p" / "tables")
    return tidy.load(there / "p" / "tables")


def test_what_was_planned_and_measured_is_in_the_tidy_tables_with_its_outcome(grid, tmp_path):
    tables = collected(grid, tmp_path)
    runs, ranks = tables["runs"], tables["ranks"]
    assert list(runs)[:5] == tidy.KEYS
    assert set(Settings.model_fields) <= set(runs)
    assert runs["arm"].tolist() == ["fa", "bp", "fa", "1", "nan"]
    assert runs["outcome"].tolist() == ["finished", "finished", "diverged", "missing", "missing"]
    assert runs["lr"].tolist() == [0.5, 0.03, 0.03, 0.03, 0.2]
    assert runs["test_accuracy"].dropna().tolist() == [50, 50, 50]
    assert ranks["outcome"].tolist() == ["finished"] * 4 + ["diverged"] * 2
    assert ranks["epoch"].tolist() == [0.1, 0.2] * 3
    assert ranks[tidy.MEASURES].to_numpy() == pytest.approx(np.tile([[2.0], [3.0]] * 3, 4))
    assert tables["epochs"]["validation_accuracy"].tolist() == [15, 35] * 3
    assert tables["norms"]["value"].tolist() == [2, 0.5] * 3
    assert tables["alignment"]["arm"].tolist() == ["fa"] * 8
    before = {path.name: path.read_bytes() for path in (tmp_path / "p" / "tables").iterdir()}
    assert gzip.decompress(before["alignment.csv.gz"]).decode("utf-8").splitlines()[1].endswith(",0.123457")
    collected(grid, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "p" / "tables").iterdir()} == before


@pytest.mark.parametrize("damage", [lambda blob: blob[: len(blob) // 2], lambda blob: b"[1, 2]\n", None])
@pytest.mark.parametrize("file", ["run.json", "metrics.csv", "ranks.csv"])
def test_a_damaged_or_absent_file_is_named_with_the_remedy(tmp_path, one_sentence, file, damage):
    run = planned("fa", rule="fa")
    path = write_run(tmp_path, run) / file
    blob = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(blob))
    with pytest.raises(InputError) as error:
        collect.runs({name(run): run}, tmp_path, tmp_path / "tables")
    there = damage or file != "run.json"
    one_sentence(error.value, *([str(path), "run the same command again"] if there else ["nothing to tabulate"]))
    assert not [*(tmp_path / "tables").iterdir()]


def test_spectra_are_tabulated_anew_by_a_new_measure_and_only_if_they_are_whole(tmp_path):
    run = planned("fa", rule="fa")
    out, plan = write_run(tmp_path, run, measures="of before"), {name(run): run}
    (out / "ranks.csv").write_text("of before", encoding="utf-8")  # not looked at
    collect.runs(plan, tmp_path, tmp_path / "tables")
    assert tidy.read(tmp_path / "tables" / "ranks.csv.gz")["entropy_s"].tolist() == [2, 3]
    (out / "spectra.npz").write_bytes((out / "spectra.npz").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"spectra\.npz"):
        collect.runs(plan, tmp_path, tmp_path / "tables")


# ---- pages, provenance, README, paper ----

PAGE_NAMES = {"title": "Größe", "figures": ["b", "a"], "titles": {"b": "1. First", "a": "2. Second"}, "studies": {},
              "labels": {"fa": "Rückkopplung"}, "datasets": {}}  # fmt: skip
CHECKS = {
    "checks/faults": "kind,injected,survived,mended,by_hand,lost,silent\nSIGKILL,3,1,2,0,0,0\nSIGKILL,1,1,0,0,0,0\n",
    "checks/slurm": "fault,seconds,outcome\nnone,60,as a local run\nscancel,70,tables differ\n",
    "checks/scale": "what,runs,cpu_seconds,memory_mb\ntables alone,100,0.4,80\ntables alone,1000,0.75,89\n",
    "benchmarks/a-b/bench": """device,what,unit,target,measured,low,high,noise,n,bound,verdict
"A, B",products,GFLOP/s,,190.12,189,191,0,7,,
"A, B",FA / BP,ratio,≤ 1.02,1.0112,1.001,1.021,0.0312,7,bound not shown,met
"A, B",a start,s,≤ 2.5,4.8123,4.7,4.9,0,7,import torch 1.8 s,NOT MET
""",
}


def blocks(there: Path, *names: str) -> str:
    """These generated blocks, still empty; and the tables that the second and the third are made from."""
    for name, content in CHECKS.items():
        files.write_text(there / "results" / f"{name}.csv", content)
    ends = [(readme.BEGIN.format(name), readme.END.format(name)) for name in names]
    return "".join(f"{begin}\nold\n{end}\n" for begin, end in ends)


def test_every_column_of_the_committed_tables_has_a_meaning(committed):
    for path in [*(QUICK / "tables").iterdir(), *(committed / "summary").glob("*.csv"), QUICK / "tuned.csv"]:
        assert all(pages.meaning(column) for column in tidy.read(path))
    with pytest.raises(InputError, match="'nonsense' has no meaning"):
        pages.meaning("nonsense_mean")


def test_the_readme_of_tables_opens_on_every_tested_claim_of_every_question(committed):
    names, table = {**PAGE_NAMES, "labels": LABELS}, pd.read_csv(committed / "summary" / "claims.csv")
    table = table[table["verdict"] != "not tested"]
    asked = questions.questions(text.shown(tidy.read(committed / "summary" / "claims.csv"), names))
    content = pages.of_tables(committed, QUICK / "tuned.csv", asked, names)
    head, rest = content.split("\n# Tables\n")
    assert head.startswith("# What holds: Größe\n")
    assert {"## [tables/runs.csv](tables/runs.csv)", "| `step` | optimiser steps done |"} <= {*rest.splitlines()}
    sections = dict(part.split("\n", 1) for part in head.split("\n## ")[1:])
    assert [*sections] == [*table.loc[table["family"] != claims.DEPTH, "family"].unique(), "Depth utility"]
    for family, rows in table[table["family"] != claims.DEPTH].groupby("family"):
        lines = [line.strip("| ").split(" | ") for line in sections[family].splitlines() if line][2:]
        assert [line[0] for line in lines] == [*(rows["statement"] + " (" + rows["source"] + ")")]
        assert [line[3].split()[0] for line in lines] == [*rows["n"].astype(str)]
        assert [line[-1].split(":")[0] for line in lines] == text.shown(rows, {})["verdict"].tolist()
    assert f"| {LABELS['fa']} | {LABELS['frozen']} |" in sections["Depth utility"]


def test_a_claim_is_shown_with_its_control_and_what_diverged_and_its_p_after_correction():
    table = runs(fa=[40, 41, 42, 10], bp=[60, 62, 61, 63], kp=[30, 31, 35, 10])
    asked = questions.questions(
        text.shown(settled({"runs": table}, {"control": ["kp", "bp"]}, {"structural": "so"}), {})
    )
    (_, row, sure), *others = asked.values()
    assert others == []
    theirs = stats.ttest_rel([30, 31, 35, 10], [60, 62, 61, 63])
    low, high = theirs.confidence_interval(0.95)
    assert row[2:4] == [f"{text.interval(-34.875 + -0.125, low, high)}, n = 4 (1 diverged)", "4 (1 diverged)"]
    assert row[1].endswith("; finished runs alone: −20.0 [−22.5, −17.5]")
    p = stats.ttest_rel([40, 41, 42, 10], [60, 62, 61, 63]).pvalue
    assert row[4] == f"{text.chance(p)} ({text.chance(p)})"
    assert sure[4:] == [f"{text.chance(p)} (–)", "by construction: so"]


def test_the_pages_have_figures_with_a_link_to_their_scripts_and_open_on_the_first(tmp_path):
    names = {**PAGE_NAMES, "figures": ["curves", "depth"], "titles": {"curves": "1. A < B", "depth": "2. Second"}}
    for name in names["figures"]:
        caption = f"{name} < all. Drawn by rankcollapse/render/figures/{name}.py."
        files.write_text(tmp_path / "figures" / f"{name}.txt", caption)
        files.write_text(tmp_path / "figures" / f"{name}.svg", f"<svg>{name}</svg>")
    files.write_text(tmp_path / "summary" / "findings.txt", "One < two.\nTwo.\n")
    gallery = pages.of_figures(tmp_path / "figures", names)
    for target in re.findall(r"Drawn by \[.*\]\((.*)\)\.", gallery):
        assert (ROOT / "figures" / "quick" / target).resolve().is_file()
    assert len(re.findall(r"Drawn by \[", gallery)) == 2
    page = pages.holds(tmp_path, tmp_path / "figures", {"Is it so?": [["statement"], ["a < b"]]}, names)
    assert "<li>One &lt; two.<li>Two.</ul>" in page
    assert base64.b64encode(b"<svg>curves</svg>").decode() in page
    assert base64.b64encode(b"<svg>depth</svg>").decode() not in page
    assert "<b>1. A &lt; B</b> curves &lt; all." in page
    assert page.index("Is it so?") < page.index("<td>a &lt; b</td>")


def test_the_report_leaves_out_the_numbers_and_the_script_of_a_caption(tmp_path):
    words = "What is drawn.\nIn numbers: 1.5 under FA.\nFinished runs: n = 3.\nDrawn by rankcollapse/a.py.\n"
    files.write_text(tmp_path / "quick" / "curves.txt", words)
    files.write_text(tmp_path / "quick" / "curves.svg", "<svg>curves</svg>")
    (found,) = paper.pictures({"quick": {"title": "Small"}}, tmp_path)["curves"]
    assert found["caption"] == "What is drawn. Finished runs: n = 3."
    assert (found["picture"], found["title"]) == ("<svg>curves</svg>", "Small")


def test_provenance_tells_grids_apart_and_not_their_order_or_outcomes(grid, tmp_path):
    runs = collected(grid, tmp_path)["runs"]
    made = summaries.provenance(runs, "p", "Größe")
    assert (made["preset"], made["title"]) == ("p", "Größe")
    assert made["runs"] == {"planned": 5, "finished": 2, "diverged": 1, "missing": 2}
    assert (made["device"], made["precision"], made["code"], made["run_seconds"]) == (
        "Prüfgerät, 2 Kerne", "float32", "c", 9,
    )  # fmt: skip
    both = runs.assign(precision=["float32", "bfloat16", *["float32"] * 3])
    assert summaries.provenance(both, "p", "")["precision"] == ["bfloat16", "float32"]
    early = runs.assign(epochs=runs["epochs"].mask(runs["outcome"] == "diverged", 1), outcome="finished")
    for same in (runs[::-1], early):
        assert summaries.grid_hash(same) == made["config_sha256"]
    for other in (runs.assign(lr=runs["lr"].replace(0.2, 0.3)), runs[1:], runs.assign(epochs=3)):
        assert summaries.grid_hash(other) != made["config_sha256"]


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_commit_is_marked_dirty_by_code_and_not_by_results(tmp_path):
    assert summaries.commit(tmp_path) is None
    for path in ("code.py", "README.md", "results/quick/a.csv", "paper/a.pdf", "paper/paper.typ"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("1", encoding="utf-8")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    head = summaries.commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", head)
    for path in ("README.md", "results/quick/a.csv", "paper/a.pdf", "new.py"):
        (tmp_path / path).write_text("2", encoding="utf-8")
    assert summaries.commit(tmp_path) == head
    subprocess.run([*git, "commit", "-qam", "results"], cwd=tmp_path, check=True)
    assert summaries.commit(tmp_path) == head, "results that are committed and rendered again are the same"
    (tmp_path / "paper" / "paper.typ").write_text("2", encoding="utf-8")
    assert summaries.commit(tmp_path) == f"{head}-dirty"


def test_the_generated_blocks_follow_the_tables_and_check_notices_a_change(tmp_path, monkeypatch, capsys):
    for name, page in readme.PAGES.items():
        files.write_text(tmp_path / page, f"before\n{blocks(tmp_path, name)}after\n")
    for preset in ("quick", "full", "why"):
        committed = QUICK.parent / preset
        shutil.copytree(committed, tmp_path / "results" / preset, ignore=shutil.ignore_patterns("tables"))
    (tmp_path / "paper").symlink_to(TEXTS)
    monkeypatch.chdir(tmp_path)
    assert main(["readme", "--check"]) == 2
    assert main(["readme"]) == 0
    assert main(["readme", "--check"]) == 0
    content = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert content.startswith(f"before\n{readme.BEGIN.format('findings')}\n- **In small networks")
    claims = pd.read_csv("results/quick/summary/claims.csv").set_index("id")
    gain = claims.loc["muon-cnn"]
    assert text.interval(gain["difference"], gain["low"], gain["high"]) in content
    survived = (tmp_path / "docs" / "running.md").read_text(encoding="utf-8")
    assert survived.endswith(f"{readme.END.format('checks')}\nafter\n")
    costs = (tmp_path / "docs" / "speed.md").read_text(encoding="utf-8")
    assert costs.startswith(f"before\n{readme.BEGIN.format('speed')}\n**A, B**: ")
    for said in (
        "put 4 faults in the way of a small grid",
        "2 times there was nothing to repair; 2 times the workflow named what was damaged or unfinished and made it",
        "; 0 times the machine had refused something",
        "Finished work was lost 0 times, and 0 times something was wrong and no message said so.\n",
        "| SIGKILL | 4 | 2 | 2 | 0 | 0 | 0 |\n",
        "1 of 2 calls ended with the checksums of a local run. What happened in them: none; scancel.\n",
        "For 1,000 runs:\n\n| step | CPU seconds | memory, MB |\n|---|---|---|\n| tables alone | 0.75 | 89 |\n",
        "**A, B**: products 190.1 [189.0, 191.0] GFLOP/s.\n\n![",
        "](../results/benchmarks/a-b/bench.svg)",
        "| FA / BP | ≤ 1.02 | 1.011 [1.001, 1.021] | 0.0312 | 7 | ✓ met |  |\n",
        "| a start, s | ≤ 2.5 | 4.81 [4.70, 4.90] | 0 | 7 | ✗ NOT MET | import torch 1.8 s |\n",
    ):
        assert said in survived + costs
    collect.write(Path("results/quick/summary/claims.csv"), claims.reset_index().assign(difference=0.5), 8)
    assert main(["readme", "--check"]) == 2
    assert capsys.readouterr().err.endswith("run `make readme`\n")


def test_the_report_has_every_number_as_python_rounds_it(committed, tmp_path, monkeypatch):
    typst = pytest.importorskip("typst")
    monkeypatch.chdir(tmp_path)
    names = {**PAGE_NAMES, "tuned": str(QUICK / "tuned.csv"), "labels": LABELS, "datasets": {}}
    for figure in ("accuracy", "tuning"):
        files.write_text(
            f"figures/quick/{figure}.svg", '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
        )
        files.write_text(f"figures/quick/{figure}.txt", f"Caption of {figure}.")
    monkeypatch.setattr(paper, "drawn", lambda folder: ["accuracy", "tuning"])
    inputs = paper.inputs(TEXTS, {"quick": names}, committed.parent)
    found = {
        kind: typst.query(str(TEXTS / "paper.typ"), f"figure.where(kind: {kind})", sys_inputs=inputs)
        for kind in ("image", "table")
    }
    for figure in ("accuracy", "tuning"):
        assert found["image"].count(f"Caption of {figure}.") == 1
    made = json.loads(inputs["made"])["presets"]["quick"]
    for table, column in (("accuracy", "test_percent"), ("claims", "left_mean")):
        for row in made[table][:29]:
            assert row[column] in found["table"]
    paper.paper(TEXTS, {"quick": names}, committed.parent, Path("out.pdf"))
    assert str(ROOT).encode() not in Path("out.pdf").read_bytes()


def test_bad_input_is_named_in_one_sentence(tmp_path, capsys, one_sentence):
    assert main(["summarise", str(tmp_path)]) == 2
    one_sentence(capsys.readouterr().err.strip(), "names.json cannot be read")
    files.write_json(tmp_path / "names.json", {"title": "x", "looks": {"arms": {}, "studies": {}, "shown": {}}})
    assert main(["summarise", str(tmp_path)]) == 2
    one_sentence(capsys.readouterr().err.strip(), "runs.csv", "is not there")


# ---- the committed tables, against arithmetic done here ----

ARM = ["study", "dataset", "architecture", "arm"]


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """Summaries and claims, made anew from the committed tidy tables."""
    out = tmp_path_factory.mktemp("project") / "quick"
    out.mkdir()
    (out / "tables").symlink_to(QUICK / "tables")
    summaries.summarise(out, TEXTS, "t")
    return out


@pytest.fixture(scope="module")
def plain():
    """The tidy tables as pandas reads them, but for gradients of whole nets of which a part is frozen."""
    tables = {path.name.split(".")[0]: pd.read_csv(path) for path in (QUICK / "tables").iterdir()}
    runs, table = tables["runs"], tables["ranks"]
    partial = runs[runs["arm"].str.contains("frozen|last")][["study", "arm"]].drop_duplicates().assign(partial=True)
    partial = table.merge(partial, how="left", on=["study", "arm"])["partial"].notna().to_numpy()
    whole = ((table["layer"] == "all") & (table["quantity"] == "gradient_trajectory")).to_numpy()
    return {**tables, "ranks": table[~(partial & whole)]}


def ended(plain: dict, table: str, outcomes: list[str], column: str) -> pd.DataFrame:
    """The last rows that have a value, of the runs with these outcomes."""
    rows = plain[table].merge(plain["runs"].loc[plain["runs"]["outcome"].isin(outcomes), [*ARM, "seed"]])
    rows = rows.dropna(subset=column)
    by = [*ARM, "seed", *(key for key in ("quantity", "layer", "scope") if key in rows)]
    return rows.sort_values("step").groupby(by).tail(1) if "step" in rows else rows


def test_the_summaries_are_means_over_the_committed_runs(committed, plain):
    both, spectrum = ["finished", "diverged"], ["quantity", "layer", "scope"]
    for summary, table, column, shown, outcomes, by, unit in (
        ("accuracy", "runs", "test_accuracy", "test_percent", both, [], 100),
        ("accuracy", "runs", "test_accuracy", "test_percent_finished", both[:1], [], 100),
        ("cost", "runs", "seconds", "seconds", both[:1], [], 1),
        ("ranks", "ranks", "entropy_s2", "entropy_s2", both[:1], spectrum, 1),
        ("norms", "norms", "value", "value", both[:1], spectrum[:2], 1),
    ):
        found = tidy.read(committed / "summary" / f"{summary}.csv").set_index([*ARM, *by])
        values = ended(plain, table, outcomes, column).groupby([*ARM, *by])[column]
        wanted = pd.DataFrame({"n": values.count(), "mean": unit * values.mean(), "std": unit * values.std()})
        assert len(found) == len(plain[table][[*ARM, *by]].drop_duplicates())
        wanted = wanted.reindex(found.index)
        columns = [f"{shown}_mean", f"{shown}_std"]
        assert found[columns].to_numpy() == pytest.approx(wanted[["mean", "std"]].to_numpy(), rel=1e-6, nan_ok=True)
        assert shown.endswith("finished") or found["n"].tolist() == wanted["n"].fillna(0).tolist()


def gains(claim: dict, arms: list, plain: dict, outcomes: list[str]) -> list[float]:
    """Left less right at the end, paired by seed, in the unit of the claim."""
    what, unit = claim["quantity"], 1
    if what == "accuracy":
        what, unit = {"table": "runs", "measure": "test_accuracy"}, 100
    column, table = what.get("measure", "value"), what["table"]
    where = {"study": claim["study"], "dataset": claim["dataset"]}
    where |= {key: what[key] for key in ("quantity", "layer", "scope", "rows") if key in what}
    fitting = plain[table][(plain[table][[*where]] == pd.Series(where)).all(axis=1)]
    rows = ended({**plain, table: fitting, "runs": plain["runs"]} if unit == 1 else plain, table, outcomes, column)
    rows = rows[(rows[[*where]] == pd.Series(where)).all(axis=1)].set_index(["arm", "seed"])[column]
    left, right = (rows.loc[arm] if isinstance(arm, str) else arm for arm in arms)
    return [*(unit * (left - right)).dropna()]


def test_the_claims_are_t_tests_on_the_committed_tables(committed, plain):
    table = pd.read_csv(committed / "summary" / "claims.csv", keep_default_na=False, na_values=[""]).set_index("id")
    families = yaml.safe_load((ROOT / "paper" / "claims.yaml").read_text(encoding="utf-8"))
    stated = [one for claim in families["What the paper says"] for one in claims.spelt_out(claim)]
    stated = [claim for claim in stated if claim["study"] in set(plain["runs"]["study"])]
    assert [*table.index[: len(stated)]] == [claim["id"] for claim in stated]
    assert {*table["study"]} <= {*plain["runs"]["study"]}
    for claim in stated:
        claim = {"quantity": "accuracy", **claim}
        row, sides = table.loc[claim["id"]], [claim["left"], claim["right"]]
        both = ["finished", "diverged"] if claim["quantity"] == "accuracy" else ["finished"]
        for start, ending, arms, outcomes in (
            ("", "", sides, both), ("", "_finished", sides, ["finished"]), ("control_", "", claim.get("control"), both),
        ):  # fmt: skip
            if arms and claim.get("at") != "equal loss":
                found = gains(claim, arms, plain, outcomes)
                shown = row[[f"{start}{column}{ending}" for column in ("n", "difference", "low", "high")]].astype(float)
                interval = stats.ttest_1samp(found, 0).confidence_interval(0.95)
                assert shown.tolist() == pytest.approx([len(found), np.mean(found), *interval], rel=1e-6, abs=1e-9)
    for _, mine in table[table["structural"].isna() & table["p"].notna()].sort_values("p").groupby("family"):
        steps = [(len(mine) - i) * p for i, p in enumerate(mine["p"])]
        assert mine["p_holm"].tolist() == pytest.approx(np.minimum(1, np.maximum.accumulate(steps)), rel=1e-6)
    for row in table.itertuples():
        sign = 1 if row.relation == "greater" else -1
        above, gained, left = (
            min(sign * low, sign * high) > 0
            for low, high in ((row.low, row.high), (row.control_low, row.control_high), (row.rest_low, row.rest_high))
        )
        verdict = ["worse", "better"][above] if row.frozen == row.frozen else ["not reproduced", "reproduced"][above]
        verdict = "explained by the control" if above and gained and not left else verdict
        verdict = verdict if row.p_holm < 0.05 else "inconclusive"
        verdict = "by construction" if row.structural == row.structural else verdict
        assert row.verdict == ("not tested" if row.n == 0 and row.diverged == 0 else verdict)
