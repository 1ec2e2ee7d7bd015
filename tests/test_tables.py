"""The scripts between the runs and the paper: tidy tables, summaries, claims, pages, provenance and the README's block.

On tables and run folders made by hand, and on the committed tables of results/quick against arithmetic done here.
"""

import csv
import gzip
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from rankcollapse.config import InputError, RunConfig, Settings, read
from rankcollapse.grid import grid as grid_of
from rankcollapse.grid import overlay, plan
from rankcollapse.spectra import Spectrum, save_spectra

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow" / "scripts"
QUICK = ROOT / "results" / "quick"
sys.path.insert(0, str(SCRIPTS))

import analysis  # noqa: E402
import claims  # noqa: E402
import collect  # noqa: E402
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


def runs(**accuracies: list[float]) -> pd.DataFrame:
    """A row per run from arm=[accuracy in % of seed 0, 1, ...]; NaN is a missing run, 10 one that diverged."""
    return pd.DataFrame(
        {
            **KEYS, "arm": arm, "seed": seed, "test_accuracy": a, "validation_accuracy": a, "lr": 0.1,
            "weight_decay": 0.0, "width": 8, "rule": "fa", "normalization": "none", "optimizer": "sgd",
            "update": "full", "outcome": "missing" if np.isnan(a) else {10: "diverged"}.get(a, "finished"),
        }
        for arm, values in accuracies.items()
        for seed, a in enumerate(values)
    )  # fmt: skip


def spectra(outcomes: list[str], values: list[list[float]]) -> pd.DataFrame:
    """A spectrum per seed and step of one arm, all measures equal."""
    return pd.DataFrame(
        {
            **KEYS, "arm": "fa", "seed": seed, "quantity": "error", "layer": "conv4", "scope": "batch", "step": step,
            "rows": 8, "outcome": outcome, **dict.fromkeys(analysis.MEASURES, value),
        }
        for seed, (outcome, row) in enumerate(zip(outcomes, values, strict=True))
        for step, value in enumerate(row)
    )  # fmt: skip


def ends(ranks: pd.DataFrame) -> pd.DataFrame:
    return summarise.ends(ranks, analysis.SPECTRUM, analysis.MEASURES)


def test_accuracy_is_that_of_the_finished_runs_and_counts_the_others():
    table = summarise.accuracy(runs(fa=[40, 50, float("nan"), 10]), []).iloc[0]
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
RANK = {"table": "ranks", "quantity": "error", "layer": "conv4", "scope": "batch", "measure": "entropy_s"}


def settle(table: pd.DataFrame, **changes) -> dict:
    return claims.settle(claims.Claim(**{**CLAIM, **changes}), {"runs": table})


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
    ],
)
def test_a_claim_that_is_not_well_formed_is_refused_in_one_sentence(tmp_path, change, words):
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps([{**CLAIM, **change}]), encoding="utf-8")
    with pytest.raises(InputError) as error:
        claims.read_claims(path)
    one_line(error.value, "claim 'x'", *words)


@pytest.mark.parametrize("text", ["- [", "id: a", "- a"])
def test_a_file_that_is_no_list_of_claims_is_refused(tmp_path, text):
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"claims\.yaml") as error:
        claims.read_claims(path)
    one_line(error.value)


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
    claim = claims.Claim(**{**CLAIM, "quantity": RANK, **change})
    assert claims.settle(claim, tables)["verdict"] == "not tested"


# ---- collect, on run folders made by hand ----


def planned(arm: str, seed: int = 0, study: str = "cnn4", **knobs) -> dict:
    config = RunConfig(**{"epochs": 2, "seed": seed, **knobs}).model_dump()
    place = {"study": study, "dataset": config["dataset"], "arm": arm, "seed": seed}
    return {**place, "identity": f"{arm}{seed}", "config": config}


def name(run: dict) -> str:
    return "{study}/{dataset}/{arm}/seed{seed}".format(**run)


def write_run(runs: Path, run: dict, **result) -> Path:
    """A run folder as training leaves it; its spectra are flat, so that all ranks are the number of values."""
    folder = runs / name(run)
    flat = [Spectrum("error", "conv4", "batch", step, 64, np.full(step + 1, 3.0)) for step in (1, 2)]
    save_spectra(folder / "spectra.npz", flat)
    (folder / "config.json").write_text(json.dumps(run["config"]), encoding="utf-8")
    rows = [",".join(collect.METRICS), "1,10,2.5,0.125,2.25,0.15", "2,20,1.5,0.25,1.25,0.35"]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    steps = (0, 20) if run["config"]["rule"] == "fa" else ()
    cosines = [",".join(collect.COSINES), *(f"weight,conv{i},{step},0.123456789" for step in steps for i in (1, 2))]
    (folder / "alignment.csv").write_text("\n".join(cosines) + "\n", encoding="utf-8")
    found = {
        "study": run["study"], "arm": run["arm"], "identity": run["identity"], "outcome": "finished", "epochs": 2,
        "test_accuracy": 0.5, "test_loss": 1.0, "validation_accuracy": 0.35, "train_loss": 1.5, "parameters": 11173962,
        "seconds": 3.0, "train_seconds": 2.0, "probe_seconds": 0.5, "images_per_second": 100.0, "memory_mb": 512,
        "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:00:03Z", "device": "Prüfgerät, 2 Kerne",
        "threads": 1, "python": "3.11", "rankcollapse": "0", "torch": "2", "code": "c", **result,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture
def grid(tmp_path):
    """plan.json and run folders: finished with another lr than planned, without cosines, diverged, stale, absent."""
    changed, bp, diverged = planned("fa", rule="fa"), planned("bp"), planned("fa", 1, rule="fa")
    stale, absent = planned("1"), planned("nan", lr=0.2)
    write_run(tmp_path / "runs", {**changed, "config": {**changed["config"], "lr": 0.5}})
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
    assert "11173962," in (grid / "tables" / "runs.csv").read_text(encoding="utf-8")


def test_what_was_measured_is_in_the_tidy_tables_with_its_outcome(grid):
    tables = collected(grid)
    ranks = tables["ranks"]
    assert ranks["outcome"].tolist() == ["finished"] * 4 + ["diverged"] * 2
    assert ranks["epoch"].tolist() == [0.1, 0.2] * 3
    assert ranks[analysis.MEASURES].to_numpy() == pytest.approx(np.tile([[2.0], [3.0]] * 3, 4))
    assert tables["epochs"]["validation_accuracy"].tolist() == [15, 35] * 3
    assert len(tables["alignment"]) == 8
    assert tables["alignment"]["arm"].unique().tolist() == ["fa"]
    assert (grid / "tables" / "alignment.csv").read_text(encoding="utf-8").splitlines()[1].endswith(",0.123457")


def test_equal_runs_give_equal_files(grid):
    collected(grid)
    before = {path.name: path.read_bytes() for path in (grid / "tables").iterdir()}
    os.utime(grid / "plan.json", (0, 0))
    collected(grid)
    assert {path.name: path.read_bytes() for path in (grid / "tables").iterdir()} == before


def test_without_any_run_there_is_nothing_to_tabulate(grid):
    shutil.rmtree(grid / "runs")
    done = script("collect", grid)
    assert done.returncode == 1
    one_line(done.stderr, "nothing to tabulate")
    assert not (grid / "tables").exists()


def cut(blob: bytes) -> bytes:
    return blob[: len(blob) // 2]


DAMAGES = {
    "cut": cut,
    "empty": lambda blob: b"",
    "garbled": lambda blob: bytes(byte ^ 0x55 for byte in blob),
    "another": lambda blob: b"[1, 2]\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["run.json", "config.json", "metrics.csv", "alignment.csv", "spectra.npz"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, file, damage):
    run = planned("fa", rule="fa")
    path = write_run(tmp_path, run) / file
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(InputError) as error:
        collect.collect({"runs": {name(run): run}}, tmp_path)
    one_line(error.value, str(path), "delete its run folder", str(path.parent), "run the same command again")


@pytest.mark.parametrize("file", ["config.json", "metrics.csv", "alignment.csv", "spectra.npz"])
def test_an_absent_file_of_a_complete_run_is_named(tmp_path, file):
    run = planned("fa", rule="fa")
    path = write_run(tmp_path, run) / file
    path.unlink()
    with pytest.raises(InputError) as error:
        collect.collect({"runs": {name(run): run}}, tmp_path)
    one_line(error.value, str(path), "delete its run folder")


def test_an_epoch_that_is_cut_off_with_its_whole_line_is_noticed(tmp_path):
    run = planned("bp")
    path = write_run(tmp_path, run) / "metrics.csv"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.csv"):
        collect.collect({"runs": {name(run): run}}, tmp_path)


# ---- pages, provenance, README ----

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


PAGE_NAMES = {"title": "Größe", "figures": ["b", "a"], "titles": {"b": "1. First", "a": "2. Second"}, "studies": {},
              "labels": {"fa": "FA"}, "datasets": {}}  # fmt: skip


def test_every_page_and_table_is_written_in_utf_8_whatever_the_locale(grid):
    tables = collected(grid, **C_LOCALE)
    assert "Prüfgerät, 2 Kerne" in set(tables["runs"]["device"])
    shutil.copytree(ROOT / "paper", grid / "paper")
    claim = [{**CLAIM, "statement": "Größer", "dataset": "digits"}]
    (grid / "paper" / "claims.yaml").write_text(yaml.safe_dump(claim, allow_unicode=True), encoding="utf-8")
    run_script("summarise", grid, grid / "paper", **C_LOCALE)
    assert json.loads((grid / "provenance.json").read_text(encoding="utf-8"))["title"] == "Größe"
    (grid / "results").mkdir()
    (grid / "results" / "quick").symlink_to(grid)
    page = grid / "README.md"
    page.write_text(f"vorher ü\n{readme.BEGIN}\n{readme.END}\n", encoding="utf-8")
    run_script("readme", cwd=grid, **C_LOCALE)
    text = page.read_text(encoding="utf-8")
    assert "vorher ü" in text
    assert "| Größer (ours) |" in text
    assert "Prüfgerät" in text
    names = {**PAGE_NAMES, "figures": ["a"], "labels": {"fa": "Rückkopplung"}}
    (grid / "figures").mkdir()
    (grid / "figures" / "a.txt").write_text("Größe, ±.", encoding="utf-8")
    run_script("pages", grid, grid / "figures", json.dumps(names), **C_LOCALE)
    assert "<td>Rückkopplung</td>" in (grid / "pages" / "cost.html").read_text(encoding="utf-8")
    assert "Größe, ±." in (grid / "figures" / "README.md").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert "# Tables: Größe" in text
    assert "`entropy_s_mean` | effective rank exp H(p), p = s / Σs; mean over n seeds" in text


def test_every_column_of_the_committed_tables_has_a_meaning():
    page = pages.tables(QUICK, PAGE_NAMES)
    for path in [*(QUICK / "tables").iterdir(), *(QUICK / "summary").glob("*.csv")]:
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
    table = pd.DataFrame([settle(runs(fa=[40, 41, 42], bp=[60, 62, 61])), settle(runs(fa=[], bp=[60]))])
    quick = tmp_path / "results" / "quick"
    (quick / "summary").mkdir(parents=True)
    table.to_csv(quick / "summary" / "claims.csv", index=False)
    (quick / "provenance.json").write_text('{"device": "CPU", "finished": "2026-01-02T03:04:05Z"}', encoding="utf-8")
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n", encoding="utf-8")
    assert script("readme", "--check", cwd=tmp_path).returncode == 1
    run_script("readme", cwd=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "1 statements, tested" in text
    assert "1 reproduced, 0 not reproduced, 0 inconclusive" in text
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert script("readme", "--check", cwd=tmp_path).returncode == 0


def test_a_figure_that_the_text_does_not_name_is_in_the_paper(committed, tmp_path):
    typst = pytest.importorskip("typst")
    shutil.copytree(ROOT / "paper", tmp_path / "paper")
    shutil.copytree(committed / "summary", tmp_path / "results" / "quick" / "summary")
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
    inputs = {"preset": "quick", "labels": "{}", "studies": "{}", "datasets": "{}", "figures": json.dumps(figures)}
    text = str(tmp_path / "paper" / "paper.typ")
    found = typst.query(
        text, "figure.where(kind: image)", root=str(tmp_path), sys_inputs=inputs, ignore_system_fonts=True
    )
    for figure in figures:
        assert found.count(f"Caption of {figure}.") == 1


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
    return {path.name.split(".")[0]: rows_of(path) for path in (QUICK / "tables").iterdir()}


@pytest.fixture(scope="module")
def good(tidy):
    """The finished runs."""
    return {key(row, *ARM, "seed") for row in tidy["runs"] if row["outcome"] == "finished"}


def last_by_seed(rows: list[dict], good: set, column: str, **where: str) -> dict[str, float]:
    """By seed the value at the last step, of finished runs, of the rows that fit."""
    fitting = [row for row in rows if all(row[k] == v for k, v in where.items()) and key(row, *ARM, "seed") in good]
    latest = {}
    for row in fitting:
        if row["seed"] not in latest or int(row["step"]) > int(latest[row["seed"]]["step"]):
            latest[row["seed"]] = row
    return {seed: float(row[column]) for seed, row in latest.items() if row[column]}


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
    ],
)
def test_the_ends_are_those_of_the_committed_spectra_and_cosines(committed, tidy, good, table, by, columns, every):
    summary = rows_of(committed / "summary" / f"{table}.csv")
    assert len(summary) == len({key(row, *ARM, *by) for row in tidy[table]})
    for row in summary[::every]:
        where = {column: row[column] for column in (*ARM, *by)}
        for column in columns:
            agrees(row, column, list(last_by_seed(tidy[table], good, column, **where).values()))


def test_the_claims_are_t_tests_on_the_committed_tables(committed, tidy, good):
    stated = yaml.safe_load((ROOT / "paper" / "claims.yaml").read_text(encoding="utf-8"))
    settled = rows_of(committed / "summary" / "claims.csv")
    assert [row["id"] for row in settled] == [claim["id"] for claim in stated]
    kinds = set()
    for claim, row in zip(stated, settled, strict=True):
        quantity = claim["quantity"]
        if quantity == "accuracy":
            quantity = {"table": "runs", "measure": "test_accuracy"}
        wanted = {k: quantity[k] for k in ("quantity", "layer", "scope") if k in quantity}
        place = {"study": claim["study"], "dataset": claim["dataset"]}
        rows, scale = tidy[quantity["table"]], 100 if quantity["table"] == "runs" else 1
        column = quantity.get("measure", "value")
        left = last_by_seed(rows, good, column, **place, **wanted, arm=claim["left"])
        if isinstance(claim["right"], str):
            right = last_by_seed(rows, good, column, **place, **wanted, arm=claim["right"])
        else:
            right = dict.fromkeys(left, claim["right"] / scale)
        differences = [scale * (left[seed] - right[seed]) for seed in sorted(set(left) & set(right))]
        lost = sum(
            r["outcome"] == "diverged" and r["arm"] in (claim["left"], claim["right"])
            for r in tidy["runs"]
            if key(r, "study", "dataset") == (claim["study"], claim["dataset"])
        )
        assert (int(row["n"]), int(row["diverged"])) == (len(differences), lost)
        verdict = "inconclusive" if differences or lost else "not tested"
        if len(differences) > 1:
            interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
            for name, value in (("difference", np.mean(differences)), ("low", interval.low), ("high", interval.high)):
                assert float(row[name]) == pytest.approx(value, rel=6e-4, abs=1e-9)
            if not lost and interval.low * interval.high > 0:
                held = (interval.low > 0) == (claim["relation"] == "greater")
                verdict = "reproduced" if held else "not reproduced"
            kinds.add(quantity["table"])
        assert row["verdict"] == verdict
        assert row["measure"] == {"runs": "%", "alignment": "cosine"}.get(quantity["table"], column)
    assert kinds == {"runs", "ranks", "alignment"}


def test_the_readme_block_says_what_the_committed_claims_say(committed):
    project = committed.parents[1]
    page = project / "README.md"
    page.write_text(f"{readme.BEGIN}\n{readme.END}\n", encoding="utf-8")
    run_script("readme", cwd=project)
    lines = page.read_text(encoding="utf-8").splitlines()
    tested = [row for row in rows_of(committed / "summary" / "claims.csv") if row["verdict"] != "not tested"]
    for verdict in ("reproduced", "not reproduced", "inconclusive"):
        count = sum(row["verdict"] == verdict for row in tested)
        assert re.search(rf"(\*\*|, ){count} {verdict}(,|\*\*)", lines[1])
    table = [line for line in lines if line.startswith("| ")][1:]
    for line, row in zip(table, tested, strict=True):
        statement, difference, n, verdict = line.strip("| ").split(" | ")
        assert statement == f"{row['statement']} ({row['source']})"
        assert n.split(",")[0] == row["n"]
        assert verdict.lstrip("✓✗~ ").strip("*") == row["verdict"]
        numbers = [float(number) for number in re.findall(r"-?[\d.]+(?:e[-+]\d+)?", difference)]
        expected = [float(row[column]) for column in ("difference", "low", "high") if row[column]]
        assert numbers == pytest.approx(expected, rel=6e-3)
