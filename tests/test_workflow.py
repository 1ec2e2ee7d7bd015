"""The real workflow, as a user types it, on a copy of the project and a tiny grid of digits."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from filelock import FileLock

from rankcollapse.experiment import files
from rankcollapse.library import processor
from rankcollapse.render.figures import drawn, titles

ROOT = Path(__file__).parents[1]
FIGURES = list(titles())
ARMS = {"mlp": ["bp", "fa", "fa+both"], "intervention": ["bp", "bp-top2", "fa-full-spectral"]}
PARTS = "rankcollapse workflow envs presets profiles paper tests Snakefile config.yaml README.md".split()  # noqa: SIM905
TINY = ("--cores", "2", "--configfile", "tests/tiny.yaml")
TUNED = "results/tiny/tuned.csv"
LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

pytestmark = pytest.mark.workflow


def copy_project(folder: Path) -> Path:
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pdf"))
        else:
            shutil.copy(source, folder / name)
    return folder


def snakemake(folder: Path, *arguments: str, env: dict | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", *arguments]
    env = {**os.environ, **(env or {})}
    how = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    return subprocess.run(command, cwd=folder, env=env, **how)


def done(folder: Path, *arguments: str, env: dict | None = None) -> str:
    """What a call says that must succeed."""
    result = snakemake(folder, *arguments, env=env)
    assert result.returncode == 0, result.stderr[-5000:]
    return result.stdout + result.stderr


def overlay(folder: Path, name: str, **changes) -> str:
    """The tiny grid with some top-level keys changed, as an overlay of its own."""
    values = yaml.safe_load((folder / "tests" / "tiny.yaml").read_text(encoding="utf-8"))
    (folder / name).write_text(yaml.safe_dump({**values, **changes}), encoding="utf-8")
    return name


def planned(folder: Path, configfile: str = "tests/tiny.yaml", *arguments: str) -> dict[str, list[str]]:
    """What a dry run would do: for each rule, what its jobs would write."""
    said, jobs = done(folder, "-n", "--configfile", configfile, *arguments), {}
    for rule, output in re.findall(
        r"^(?:local)?(?:rule|checkpoint) (\w+):\n.*?^    output: ([^\n]+)", said, re.MULTILINE | re.DOTALL
    ):
        jobs.setdefault(rule, []).append(output)
    return jobs


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project whose tiny grid has been run from nothing, in a folder with what a shell takes for its own in its name
    and in a locale that is not UTF-8, once for all tests; they leave it as it is.
    """
    folder, threads = copy_project(tmp_path_factory.mktemp("it's $HOME, a project")), [0]
    with (folder.parent / "said").open("w") as said:
        command = [sys.executable, "-m", "snakemake", *TINY]
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, env={**os.environ, **LATIN})
        while process.poll() is None:
            threads.append(len([*Path(f"/proc/{process.pid}/task").glob("*")]))
            time.sleep(0.1)
    assert process.returncode == 0, (folder.parent / "said").read_text(encoding="utf-8", errors="replace")[-5000:]
    assert max(threads) < 10, "Snakemake keeps a timer for each job that has ended (workflow/workarounds.smk)"
    return folder


@pytest.fixture
def edited(project: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, with its history, that a test may change."""
    shutil.copytree(project, tmp_path / "project", symlinks=True)
    return tmp_path / "project"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp("fresh"))


def test_a_summary_is_made_anew_when_a_module_that_makes_it_changes():
    """Those of the renderer, that is: the modules that `summaries` imports, and those that they import."""
    made, seen = ["summaries"], set()
    while made:
        seen.add(name := made.pop())
        text = (ROOT / f"rankcollapse/render/{name}.py").read_text(encoding="utf-8")
        found = re.findall(r"from rankcollapse\.render(?:\.| import )(\w+)", text)
        made += [other for other in found if other not in seen]
    rule = (ROOT / "workflow/rules/render.smk").read_text(encoding="utf-8")
    rule = rule.partition("rule summarise:")[2].partition("output:")[0]
    assert {name for name in seen if f'"{name}"' not in rule} == set()


# ---- what is made ----


def test_every_figure_table_and_the_paper_are_there(project):
    for name in FIGURES:
        assert (project / f"figures/tiny/{name}.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
        assert (project / f"figures/tiny/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "n" in (project / f"figures/tiny/{name}.txt").read_text(encoding="utf-8")
    gallery = (project / "figures/tiny/README.md").read_text(encoding="utf-8")
    captions = {name: (project / f"figures/tiny/{name}.txt").read_text(encoding="utf-8") for name in FIGURES}
    empty = {name for name, words in captions.items() if "this preset has no finished runs for it" in words}
    assert {name for name in FIGURES if f"]({name}.svg)" in gallery} == {*FIGURES} - empty
    assert {"headline", "depths"} <= empty <= {*FIGURES} - {"accuracy", "curves"}
    meanings = (project / "results/tiny/README.md").read_text(encoding="utf-8")
    assert "`entropy_s_mean` | effective rank exp H(p), p = s / Σs; mean over n seeds" in meanings
    for name in ("accuracy", "ranks", "alignment", "norms", "cost", "claims"):
        assert len(pd.read_csv(project / f"results/tiny/summary/{name}.csv")) > 0
    assert (project / "paper/tiny/replication.pdf").read_bytes().startswith(b"%PDF")
    log = (project / "results/tiny/logs/train/mlp/digits/fa/seed0.log").read_text(encoding="utf-8")
    assert re.search(r"mlp/digits/fa/seed0: test [\d.]+ %, \d+ s", log)
    provenance = json.loads((project / "results/tiny/provenance.json").read_text(encoding="utf-8"))
    assert provenance["runs"] == {"planned": 12, "finished": 12}
    assert processor.label() in str(provenance["device"])
    assert planned(project) == {}, "the same call has nothing more to do"


def test_every_planned_run_is_in_the_tables(project):
    runs = pd.read_csv(project / "results/tiny/tables/runs.csv")
    assert sorted(set(zip(runs["study"], runs["arm"], runs["seed"], strict=True))) == sorted(
        (study, arm, seed) for study, arms in ARMS.items() for arm in arms for seed in (0, 1)
    )
    assert set(runs["outcome"]) == {"finished"}
    ranks = pd.read_csv(project / "results/tiny/tables/ranks.csv.gz")
    whole = ranks[(ranks["quantity"] == "gradient_trajectory") & (ranks["layer"] == "all")]
    assert len(whole.groupby(["study", "arm", "seed"])) == len(runs)


def test_each_candidate_is_trained_and_the_runs_have_what_was_chosen(project):
    candidates = {f"lr{rate}{kind}/seed7" for rate in (0.001, 0.01, 0.1) for kind in ("", "-full")}
    folder = project / "results/tiny/tuning/mlp/digits/fa"
    assert {str(path.parent.relative_to(folder)) for path in folder.rglob("run.json")} == candidates
    table = pd.read_csv(project / TUNED)
    assert table["lr"].tolist() == [0.001, 0.01, 0.1]
    best = table.loc[table["chosen"]].squeeze()
    assert table["validation_percent_mean"].max() == best["validation_percent_mean"]
    plan = json.loads((project / "results/tiny/plan.json").read_text(encoding="utf-8"))
    for arm in ("fa", "fa+both"):
        run = project / f"results/tiny/runs/mlp/digits/{arm}/seed1"
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        entry = plan["runs"][f"mlp/digits/{arm}/seed1"]
        assert config == entry["config"]
        assert files.sealed(run / "run.json")["identity"] == entry["identity"]
        assert (config["lr"], config["tuning"], config["tuning_images"]) == (best["lr"], False, 400)
    rates = pd.read_csv(project / "results/tiny/tables/runs.csv").groupby(["study", "arm"])["rate"].first()
    assert (rates.pop(("mlp", "fa")), rates.pop(("mlp", "fa+both"))) == ("tuned", "as fa")
    assert set(rates) == {"fixed"}


# ---- what is made again, and what is not ----


def test_what_is_no_part_of_training_trains_nothing(edited):
    """A comment, a new knob at its default, a moved data folder, threads, a colour, an edited claim."""
    append(edited / "rankcollapse/library/updates.py", "# a comment\n")
    config = edited / "rankcollapse/experiment/config.py"
    knob = '    seed: Seed = 0\n    brightness: float = Field(0.0, ge=0, description="of images")\n'
    text = config.read_text(encoding="utf-8")
    assert "    seed: Seed = 0\n" in text
    config.write_text(text.replace("    seed: Seed = 0\n", knob), encoding="utf-8")
    append(edited / "paper/claims.yaml", "# a comment\n")
    changes = {"data_dir": "elsewhere", "download": False, "threads": 2, "arms": {"bp-top2": {"colour": "#123456"}}}
    jobs = planned(edited, overlay(edited, "moved.yaml", **changes))
    assert len(jobs["figure"]) == len(FIGURES)
    assert set(jobs) == {"summarise", "figure", "pages", "paper", "seal"}


def test_an_edited_figure_redraws_that_figure(edited):
    append(edited / "rankcollapse/render/figures/curves.py", "# edited\n")
    jobs = planned(edited)
    assert [Path(output.split(",")[0]).stem for output in jobs.pop("figure")] == ["curves"]
    assert set(jobs) == {"pages", "paper", "seal"}


def test_a_seed_and_a_learning_rate_train_what_they_are_of(project):
    studies = yaml.safe_load((project / "tests/tiny.yaml").read_text(encoding="utf-8"))["studies"]
    studies[0]["arms"]["bp"]["lr"] = 0.02
    jobs = planned(project, overlay(project, "more.yaml", seeds=[0, 1, 2], studies=studies))
    assert len(jobs["train"]) == 8
    assert all("/seed2/" in output or "/mlp/digits/bp/" in output for output in jobs["train"])
    assert not {"candidate", "tune"} & set(jobs)


def test_a_new_measure_tabulates_anew_and_trains_nothing(edited):
    measure = "\n\nMEASURES = {**MEASURES, 'nuclear': lambda s: float(s.sum() / s.max())}\n"
    append(edited / "rankcollapse/library/ranks.py", measure)
    assert set(planned(edited)) == {"collect", "summarise", "figure", "pages", "paper", "seal"}


def test_a_damaged_manifest_vouches_for_nothing(edited):
    alter(edited / "results/tiny/manifest.json")
    before = lasting(edited)
    assert "manifest.json is altered since it was sealed: it is made again" in done(edited, "-n", *TINY)
    assert (edited / "results/tiny/manifest.json").exists(), "a dry run moves nothing"
    said = done(edited, *TINY)
    assert all(f"rule {rule}:" in said for rule in ("collect", "summarise", "figure", "pages", "paper", "seal"))
    assert not re.search(r"rule (candidate|train):", said)
    assert lasting(edited) == before


def test_edited_training_code_trains_everything(edited):
    append(edited / "rankcollapse/library/updates.py", "EDITED = True\n")
    jobs = planned(edited)
    assert (len(jobs["train"]), len(jobs["candidate"])) == (12, 6)


def test_what_was_deleted_is_made_again(edited):
    run = edited / "results/tiny/runs/mlp/digits/fa/seed0"
    for name in ("run.json", "spectra.npz"):  # as a kill between two files leaves it
        (run / name).unlink()
    shutil.rmtree(edited / "results/tiny/runs/mlp/digits/fa/seed1")
    (edited / "results/tiny/summary/cost.csv").unlink()
    (edited / "results/tiny/pages/cost.html").unlink()
    jobs = planned(edited)
    assert sorted(re.findall(r"seed\d", " ".join(jobs["train"]))) == ["seed0", "seed1"]
    assert len(jobs["summarise"]) == len(jobs["pages"]) == 1


# ---- stages by themselves ----


def win(folder: Path, rate: str) -> None:
    """Let another candidate have been the best."""
    path = folder / f"results/tiny/tuning/mlp/digits/fa/lr{rate}/seed7/run.json"
    result = files.sealed(path)
    files.seal(path, {**result, "validation_accuracy": 0.99}, result.pop("files"), path.parent)


def test_a_changed_choice_trains_its_arm_and_those_like_it_anew_and_no_other(edited):
    def trained():
        return {str(p.parent): p.stat().st_mtime_ns for p in (edited / "results/tiny/runs").glob("*/*/*/*/run.json")}

    before = trained()
    win(edited, "0.01")
    said = done(edited, *TINY, "--until", "train")
    assert "rule candidate" not in said
    again = {name for name, when in trained().items() if before.get(name) != when}
    assert {Path(name).parent.name for name in again} == {"fa", "fa+both"}
    assert len(again) == 4
    for name in again:
        assert json.loads(Path(name, "config.json").read_text(encoding="utf-8"))["lr"] == 0.01
    before = trained()
    (edited / TUNED).unlink()  # made again, it says the same
    assert "rule train" not in done(edited, *TINY, "--until", "train")
    assert trained() == before


def test_a_given_table_of_choices_leaves_nothing_to_tune(edited, one_sentence):
    table = pd.read_csv(edited / TUNED)
    edges = table.assign(edge=table["chosen"].map({True: "lr largest", False: ""}))
    edges.to_csv(edited / "given.csv", index=False)
    said = done(edited, *TINY, "--config", "tuned=given.csv", "--until", "collect")
    assert "rule candidate" not in said
    assert "checkpoint tune" not in said
    assert "given.csv: the choice for mlp/digits/fa is the lr largest tried: widen `tune` there" in said
    table.assign(chosen=False).to_csv(edited / "given.csv", index=False)
    result = snakemake(edited, "-n", "--configfile", "tests/tiny.yaml", "--config", "tuned=given.csv")
    assert result.returncode == 1
    assert "given.csv has 0 choices for mlp/digits/fa; it must have one" in result.stdout + result.stderr


def test_render_makes_all_that_people_read_of_the_tables_alone(project, edited):
    """In a clone that has the committed files and neither runs nor data: nothing is trained."""
    results = edited / "results/tiny"
    for name in ("runs", "tuning", "plan.json", "candidates.csv", "summary", "pages", "logs"):
        path = results / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in (edited / "data", edited / "figures/tiny", edited / "paper/tiny", edited / ".snakemake"):
        shutil.rmtree(folder)
    said = done(edited, "render", "--forceall", *TINY)
    assert not re.search(r"rule (train|candidate|data|collect|tune)", said)
    assert lasting(edited).items() <= lasting(project).items()
    assert len([*(edited / "figures/tiny").glob("*.svg")]) == len(FIGURES)
    assert (edited / "paper/tiny/replication.pdf").exists()


def test_what_stands_in_kept_tables_under_its_identity_counts_as_made(project, edited):
    """A grid gathered over sittings: the folders of the first are gone, and one run in it was of other code."""
    table = edited / "results/tiny/tables/runs.csv"
    shutil.rmtree(edited / "results/tiny/runs")
    shutil.rmtree(edited / "results/tiny/tuning")
    runs = pd.read_csv(table, dtype=str, keep_default_na=False)
    other = (runs["study"] == "mlp") & (runs["arm"] == "bp") & (runs["seed"] == "1")
    runs.loc[other, "identity"] = "another"
    runs.to_csv(table, index=False)
    (edited / "results/tiny/manifest.json").unlink()
    config = overlay(edited, "more.yaml", seeds=[0, 1, 2])
    keep = ("--cores", "2", "--configfile", config, "--config", "keep=true")
    asked = done(edited, *keep, "-n", "--quiet", "rules")
    assert not re.search(r"^candidate +\d", asked, re.MULTILINE), "a call that only asks looks in the tables, too"
    said = done(edited, *keep, "--until", "collect")
    assert "runs.csv has 1 under another identity, which are made again: mlp/digits/bp/seed1" in said
    assert "rule candidate" not in said
    made = {path.parent.parent.name + path.parent.name for path in (edited / "results/tiny/runs").rglob("run.json")}
    assert made == {f"{arm}seed2" for arms in ARMS.values() for arm in arms} | {"bpseed1"}
    now, before = (pd.read_csv(folder / "results/tiny/tables/ranks.csv.gz") for folder in (edited, project))
    assert len(now) == 1.5 * len(before)
    pd.testing.assert_frame_equal(now[now["seed"] < 2].reset_index(drop=True), before)


def test_a_part_of_a_grid_that_was_trained_first_counts_for_the_whole(edited):
    """By a copy of the preset with fewer studies. Of the others not even the tuning is there."""
    shutil.rmtree(edited / "results/tiny")
    studies = yaml.safe_load((edited / "tests/tiny.yaml").read_text(encoding="utf-8"))["studies"]
    part = overlay(edited, "part.yaml", studies=studies[1:])
    done(edited, "--cores", "2", "--configfile", part, "--until", "collect")
    said = done(edited, *TINY, "--config", "keep=true", "allow_missing=true")
    assert not re.search(r"rule (candidate|train):", said)
    runs = pd.read_csv(edited / "results/tiny/tables/runs.csv", dtype=str)
    assert {*runs.loc[runs["outcome"] == "missing", "study"]} == {"mlp"}
    assert {*runs.loc[runs["outcome"] == "finished", "study"]} == {"intervention"}
    assert (edited / "paper/tiny/replication.pdf").exists()
    accuracy = pd.read_csv(edited / "results/tiny/summary/accuracy.csv").set_index(["study", "arm"])["n"]
    assert accuracy["intervention", "bp"] == 2
    assert accuracy["mlp", "fa"] == 0
    shutil.rmtree(edited / "results/tiny/runs")  # as in a clone of what was committed of it
    said = done(edited, *TINY, "--config", "keep=true", "--until", "collect")
    assert len(re.findall(r"rule candidate:", said)) == 6, "the three of the other study, and their checks"
    runs = pd.read_csv(edited / "results/tiny/tables/runs.csv", dtype=str)
    assert {*runs["outcome"]} == {"finished"}
    assert {path.parts[-5] for path in (edited / "results/tiny/runs").rglob("run.json")} == {"mlp"}


def test_a_run_that_stands_in_no_table_and_has_no_choice_yet_is_not_taken_for_made(edited):
    """As where a table of choices was restored that is older than the arm."""
    for name in (TUNED, "results/tiny/tables/runs.csv"):
        table = pd.read_csv(edited / name, dtype=str, keep_default_na=False)
        table[~table["arm"].isin(["fa", "fa+both"])].to_csv(edited / name, index=False)
    (edited / "results/tiny/manifest.json").unlink()
    shutil.rmtree(edited / "results/tiny/runs")
    jobs = planned(edited, "tests/tiny.yaml", "--config", "keep=true", "--rerun-triggers", "mtime")
    assert len(jobs["train"]) == 4


def test_tables_are_kept_together_or_not_at_all(edited):
    """Those of an earlier call stay while one of this call's is lost: rows of two calls may be of two identities."""
    tables, kept = edited / "results/tiny/tables", edited / "results/tiny/.kept"
    shutil.copytree(tables, kept)
    (kept / "runs.csv").write_text((tables / "runs.csv").read_text().partition("\n")[0] + "\n")
    earlier = (kept / "runs.csv").read_bytes()
    (tables / "ranks.csv.gz").unlink()
    done(edited, *TINY, "--config", "keep=true", "--until", "tune")
    assert (kept / "runs.csv").read_bytes() == earlier
    assert (kept / "candidates.csv").exists()


def test_a_lost_run_is_marked_when_missing_runs_are_allowed(edited):
    shutil.rmtree(edited / "results/tiny/runs/mlp/digits/fa/seed1")
    lossy = overlay(edited, "lossy.yaml", allow_missing=True)
    wanted = ["results/tiny/summary/accuracy.csv", "figures/tiny/accuracy.svg"]
    done(edited, *wanted, "--cores", "2", "--configfile", lossy, "--forcerun", "collect")
    runs = pd.read_csv(edited / "results/tiny/tables/runs.csv").set_index(["study", "arm", "seed"])
    assert runs.loc[("mlp", "fa", 1), "outcome"] == "missing"
    accuracy = pd.read_csv(edited / "results/tiny/summary/accuracy.csv").set_index(["study", "arm"])
    assert tuple(accuracy.loc[("mlp", "fa"), ["n", "planned", "missing"]]) == (1, 2, 1)
    assert "missing" in (edited / "figures/tiny/accuracy.txt").read_text(encoding="utf-8")


def test_the_workflow_can_be_called_from_another_folder(project, tmp_path):
    """As workflows are: the repository is read there, and all that is made is made here, with the same bits."""
    where = tmp_path / "it's $HOME"
    where.mkdir()
    repository = ["--snakefile", str(project / "Snakefile"), "--configfile", str(project / "tests/tiny.yaml")]
    done(where, "--cores", "2", *repository)
    assert {path.name for path in where.iterdir() if path.name[0] != "."} == {"data", "figures", "paper", "results"}
    assert lasting(where) == lasting(project)


# ---- advice and refusals ----


def test_the_papers_grid_is_listed_with_advice_for_a_machine_without_a_gpu(fresh):
    text = done(fresh, "-n", "--quiet", "rules", env={"CUDA_VISIBLE_DEVICES": ""})
    runs, candidates = re.search(r"(\d+) training runs and (\d+) for tuning", text).groups()
    assert (int(runs) > 600, int(candidates) > 450) == (True, True)
    assert "presets/quick.yaml" in text
    assert re.search(rf"train +{runs}\n", text)
    assert re.search(rf"candidate +{candidates}\n", text)


def test_use_conda_without_conda_names_both_ways_on(fresh):
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    if shutil.which("conda", path=path):
        pytest.skip("conda is on this machine")
    result = snakemake(fresh, "-n", "--use-conda", env={"PATH": path})
    assert result.returncode != 0
    assert "either install it (Miniforge will do), or leave --use-conda out" in result.stderr + result.stdout


def test_a_misspelt_profile_stops_the_call(fresh):
    result = snakemake(fresh, "-n", "--workflow-profile", "profiles/slrum")
    assert result.returncode == 1
    assert "--workflow-profile is 'profiles/slrum', which does not exist" in result.stdout + result.stderr


def study(**changes) -> list[dict]:
    run = {"architecture": "mlp", "width": 16, "depth": 1, **changes.pop("run", {})}
    arms = {"bp": {"lr": 0.05, **changes.pop("arm", {})}}
    cost = {"cpu": 1, "cuda": 1, "mem_mb": 1, "disk_mb": 1}
    return [{"name": "bad", "datasets": ["digits"], "run": run, "arms": arms, "cost": cost, **changes}]


WRONG = {
    "a bad value": ({"studies": study(arm={"lr": 0})}, "lr is 0; it must be greater than 0"),
    "a rank beyond a matrix": (
        {"studies": study(arm={"update": "top_r", "rank": 11})},
        "rank is 11, beyond the 10 x 16 matrix of layer 'head' of mlp; it must be 10 or less",
    ),
    "altered data": (
        {"studies": study(datasets=["cifar10"]), "data_dir": "altered"},
        "data_batch_1 is altered or truncated",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_stops_before_training_with_one_sentence(fresh, wrong):
    (fresh / "altered/cifar-10-batches-py").mkdir(parents=True, exist_ok=True)
    (fresh / "altered/cifar-10-batches-py/data_batch_1").write_bytes(b"altered")
    changes, sentence = WRONG[wrong]
    config = overlay(fresh, "wrong.yaml", preset="bad", **changes)
    result = snakemake(fresh, "--cores", "2", "--configfile", config)
    assert result.returncode != 0
    assert sentence in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not (fresh / "results/bad/runs").exists()


# ---- damage, and what is left by a command that was killed ----


def alter(path: Path) -> None:
    """Change one bit, and nothing that a listing shows."""
    stat, made = path.stat(), bytearray(path.read_bytes())
    made[len(made) // 2] ^= 1
    path.write_bytes(made)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def lasting(folder: Path) -> dict[str, bytes]:
    """What two calls that give the same results leave alike: times and costs are in the files that are left out."""
    names = ["checkpoint.pt", "metrics.csv", "spectra.npz", "ranks.csv", "alignment.csv", "norms.csv"]
    names += ["epochs.csv", "ranks.csv.gz", "alignment.csv.gz", "norms.csv.gz", "accuracy.csv", "tuned.csv"]
    paths = [path for path in folder.glob("results/tiny/**/*") if path.name in names]
    paths += [path for path in folder.glob("figures/tiny/*") if path.suffix != ".md"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def verify(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rankcollapse", "verify"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_what_is_damaged_is_named_and_made_again_by_the_same_command(project, edited):
    altered = ["runs/mlp/digits/bp/seed0/checkpoint.pt", "runs/mlp/digits/fa/seed1/run.json", "tables/epochs.csv"]
    altered += ["tuned.csv", "tuning/mlp/digits/fa/lr0.1/seed7/metrics.csv", "summary/cost.csv"]
    altered = [f"results/tiny/{name}" for name in altered]
    missing = ["figures/tiny/depth.pdf", "results/tiny/runs/intervention/digits/bp/seed0/norms.csv"]
    for name in [*altered, "data/ready/digits/images.npy"]:
        alter(edited / name)
    for name in missing:
        (edited / name).unlink()
    found = verify(edited)
    assert found.returncode == 2
    for name in [*altered, *missing]:
        assert f"{name}: {'altered' if name in altered else 'missing'}" in found.stdout
    (edited / "results/tiny/plan.json").unlink()
    said = done(edited, *TINY)
    for name in altered:
        assert f"{name} is altered since it was sealed: it is made again" in said
    for name in missing:
        assert f"{name} is missing: it is made again" in said
    assert "data/ready/digits/images.npy is altered since it was sealed: the set is converted anew" in said
    assert lasting(edited) == lasting(project)
    for path in edited.rglob("*.damaged"):
        path.unlink()
    assert verify(edited).returncode == 0, verify(edited).stdout


def test_a_whole_run_that_is_asked_for_again_is_trained_only_afresh(edited):
    run = edited / "results/tiny/runs/mlp/digits/bp/seed0/run.json"
    before, target = run.read_bytes(), str(run.relative_to(edited))
    arguments = [target, *TINY, "--forcerun", target]
    done(edited, *arguments)
    assert run.read_bytes() == before
    done(edited, *arguments, "--config", "fresh=true")
    assert files.sealed(run)["started"] != json.loads(before)["started"]


def test_the_lock_of_a_dead_snakemake_goes_and_that_of_a_live_one_stays(edited):
    (edited / ".snakemake/locks").mkdir(exist_ok=True)
    held = edited / ".snakemake/locks/0.output.lock"
    held.write_text("results/tiny/tables/runs.csv\n", encoding="utf-8")
    with FileLock(edited / ".snakemake/rankcollapse.lock"):
        result = snakemake(edited, *TINY)
        assert result.returncode == 1
        assert "cannot be locked" in result.stderr
        assert held.exists()
    assert "was locked by a Snakemake that is dead: unlocked" in done(edited, *TINY)
    assert not held.exists()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Shows every figure of the report as a picture and writes into the page the path of each that the browser could draw,
# and the labels of all in the order in which the report lists them.
SHOW = """<script>window.addEventListener("load", () => {
  for (const [path, result] of Object.entries(results)) if (path.endsWith(".svg")) {
    const picture = new Image();
    picture.onload = () => document.body.append(`drawn ${path} ${picture.naturalWidth > 100}; `);
    picture.src = result.data_uri;
  }
  const figures = Object.values(results).flatMap((result) => result.labels.figure ?? []);
  document.body.append(`listed ${figures.sort((a, b) => a.localeCompare(b)).join("; ")};`);
})</script>"""


@pytest.fixture(scope="module")
def report(project: Path) -> Path:
    done(project, "--configfile", "tests/tiny.yaml", "--report", "report.html")
    return project / "report.html"


def test_the_report_holds_every_figure_with_its_caption(report, project):
    text = report.read_text(encoding="utf-8")
    for name in FIGURES:
        assert f"{name}.svg" in text
        caption = (project / f"figures/tiny/{name}.txt").read_text(encoding="utf-8").split(";")[0].split("(")[0].strip()
        assert json.dumps(caption)[1:-1] in text
    for name in ("holds", "accuracy", "ranks", "alignment", "norms", "cost", "claims", "tuned"):
        assert f"results/tiny/pages/{name}.html" in text


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_report_opens_on_what_holds_in_a_browser_without_a_network_and_shows_every_figure(
    report, project, tmp_path
):
    page = tmp_path / "report.html"
    page.write_text(report.read_text(encoding="utf-8") + SHOW, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --virtual-time-budget=20000"
    closed = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *flags.split(), *closed, "--dump-dom", page.as_uri()]
    text = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    shown = text.partition('<div id="app">')[2].partition("<script")[0]
    places = [shown.index(f">{name}</span>") for name in ("1. What holds", "2. Figures", "3. Tables", "4. Paper")]
    assert places == sorted(places)
    first = drawn(project / "figures/tiny")[0]
    assert f'<img alt="{titles()[first]}" src="data:image/svg+xml;base64,' in shown
    said = (project / "results/tiny/summary/findings.txt").read_text(encoding="utf-8").splitlines()
    assert all(f"<li>{sentence}" in shown for sentence in said)
    assert '<div id="rulegraph"' not in shown, "it opens on what holds, not on the graph of rules"
    listed = text.rpartition("listed ")[2].replace("\u2007", "")
    assert listed.startswith("; ".join(titles().values()))
    for name in FIGURES:
        assert f"drawn figures/tiny/{name}.svg true" in text
