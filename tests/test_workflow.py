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

from rankcollapse.experiment import cpu, lock, seals

ROOT = Path(__file__).parents[1]
FIGURES = [path.stem for path in (ROOT / "workflow/scripts/figures").glob("*.py")]
ARMS = {"mlp": ["bp", "fa", "fa+both"], "intervention": ["bp", "bp-top2", "fa-full-spectral"]}
PARTS = "rankcollapse workflow envs presets profiles paper tests Snakefile config.yaml README.md".split()  # noqa: SIM905

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
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", env=env)


def overlay(folder: Path, name: str, **changes) -> str:
    """The tiny grid with some top-level keys changed, as an overlay of its own."""
    values = yaml.safe_load((folder / "tests" / "tiny.yaml").read_text(encoding="utf-8"))
    (folder / name).write_text(yaml.safe_dump({**values, **changes}), encoding="utf-8")
    return name


def planned(folder: Path, configfile: str, *arguments: str) -> dict[str, list[str]]:
    """What a dry run would do: for each rule, what its jobs would write."""
    result = snakemake(folder, "-n", "--configfile", configfile, *arguments)
    assert result.returncode == 0, result.stderr
    jobs: dict[str, list[str]] = {}
    for rule, output in re.findall(
        r"^(?:local)?(?:rule|checkpoint) (\w+):\n.*?^    output: ([^\n]+)", result.stdout + result.stderr, re.M | re.S
    ):
        jobs.setdefault(rule, []).append(output)
    return jobs


@pytest.fixture(scope="module")
def first_call(tmp_path_factory) -> tuple[Path, int]:
    """The project of the next fixture, and the most threads that Snakemake had at once in the call that made it."""
    folder, threads = copy_project(tmp_path_factory.mktemp("a project")), [0]
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "tests/tiny.yaml"]
    with (folder.parent / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, env={**os.environ, **LATIN})
        while process.poll() is None:
            threads.append(len([*Path(f"/proc/{process.pid}/task").glob("*")]))
            time.sleep(0.1)
    assert process.returncode == 0, (folder.parent / "said").read_text(encoding="utf-8", errors="replace")[-5000:]
    return folder, max(threads)


@pytest.fixture(scope="module")
def project(first_call) -> Path:
    """A project whose tiny grid has been run from nothing, in a folder with a space in its name and in a locale that is
    not UTF-8, once for all tests; they leave it as it is.
    """
    return first_call[0]


@pytest.fixture
def edited(project: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, with its history, that a test may change."""
    shutil.copytree(project, tmp_path / "project", symlinks=True)
    return tmp_path / "project"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp("fresh"))


def test_every_figure_table_and_the_paper_are_there(project):
    for name in FIGURES:
        assert (project / f"figures/tiny/{name}.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
        assert (project / f"figures/tiny/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "n" in (project / f"figures/tiny/{name}.txt").read_text(encoding="utf-8")
    gallery = (project / "figures/tiny/README.md").read_text(encoding="utf-8")
    assert all(f"]({name}.svg)" in gallery for name in FIGURES)
    assert "| `test_accuracy` |" in (project / "results/tiny/README.md").read_text(encoding="utf-8")
    for name in ("accuracy", "ranks", "alignment", "norms", "cost", "claims"):
        assert len(pd.read_csv(project / f"results/tiny/summary/{name}.csv")) > 0
    assert (project / "paper/tiny/replication.pdf").read_bytes().startswith(b"%PDF")


def test_every_planned_run_is_in_the_tables(project):
    runs = pd.read_csv(project / "results/tiny/tables/runs.csv")
    assert sorted(set(zip(runs["study"], runs["arm"], runs["seed"], strict=True))) == sorted(
        (study, arm, seed) for study, arms in ARMS.items() for arm in arms for seed in (0, 1)
    )
    assert set(runs["outcome"]) == {"finished"}
    ranks = pd.read_csv(project / "results/tiny/tables/ranks.csv.gz")
    whole = ranks[(ranks["quantity"] == "gradient_trajectory") & (ranks["layer"] == "all")]
    assert len(whole.groupby(["study", "arm", "seed"])) == len(runs)


def test_snakemake_keeps_no_timer_for_each_job_that_has_ended(first_call):
    """It did, by a limit on jobs per second never reached: after 205 jobs 137 threads, and a third of a core."""
    assert first_call[1] < 10


# ---- tuning ----

TUNED = "results/tiny/tuned.csv"
CHOICE = "results/tiny/tuning/mlp/digits/fa/choice.json"
WAITING = {f"mlp/digits/{arm}/seed{seed}" for arm in ("fa", "fa+both") for seed in (0, 1)}


def trained(folder: Path) -> dict[str, int]:
    """When each run and each candidate was trained, by the path of its folder below results/tiny."""
    paths = sorted((folder / "results/tiny").glob("**/run.json"))
    return {str(path.parent.relative_to(folder / "results/tiny")): path.stat().st_mtime_ns for path in paths}


def retrained(folder: Path, before: dict[str, int], *arguments: str) -> set[str]:
    """What another call trains, up to the runs and no further."""
    result = snakemake(folder, "--cores", "2", "--configfile", "tests/tiny.yaml", "--until", "train", *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    return {name for name, time in trained(folder).items() if before.get(name) != time}


def test_each_candidate_is_trained_and_the_runs_have_what_was_chosen(project):
    candidates = {f"tuning/mlp/digits/fa/lr{rate}{kind}/seed7" for rate in (0.001, 0.01, 0.1) for kind in ("", "-full")}
    assert {name for name in trained(project) if name.startswith("tuning")} == candidates
    for name in candidates:
        files = {path.name for path in (project / "results/tiny" / name).iterdir()}
        assert files == {"config.json", "metrics.csv", "run.json", ".run.json"}
    table = pd.read_csv(project / TUNED)
    assert table["lr"].tolist() == [0.001, 0.01, 0.1]
    assert table["chosen"].sum() == 1
    choice = json.loads((project / CHOICE).read_text(encoding="utf-8"))
    assert choice == {"lr": table.loc[table["chosen"], "lr"].item()}
    assert table["validation_percent_mean"].max() == table.loc[table["chosen"], "validation_percent_mean"].item()
    for name in WAITING:
        config = json.loads((project / "results/tiny/runs" / name / "config.json").read_text(encoding="utf-8"))
        assert (config["lr"], config["tuning"], config["tuning_images"]) == (choice["lr"], False, 400)
    runs = pd.read_csv(project / "results/tiny/tables/runs.csv").drop_duplicates(["study", "arm"])
    rates = runs.set_index(["study", "arm"])["rate"].to_dict()
    assert rates.pop(("mlp", "fa")) == "tuned"
    assert rates.pop(("mlp", "fa+both")) == "as fa"
    assert set(rates.values()) == {"fixed"}


def win(folder: Path, rate: str) -> None:
    """Let another candidate have been the best."""
    path = folder / f"results/tiny/tuning/mlp/digits/fa/lr{rate}/seed7/run.json"
    result = seals.read(path)
    seals.write(path, {**result, "validation_accuracy": 0.99}, result.pop("files"), path.parent)


def test_a_changed_choice_trains_its_arm_and_those_like_it_anew_and_no_other(edited):
    before = trained(edited)
    win(edited, "0.01")
    jobs = planned(edited, "tests/tiny.yaml")
    assert "candidate" not in jobs
    assert len(jobs["choose"]) == len(jobs["tuned"]) == 1
    assert retrained(edited, before) == {f"runs/{name}" for name in WAITING} | {"tuning/mlp/digits/fa/lr0.01/seed7"}
    for name in WAITING:
        config = json.loads((edited / "results/tiny/runs" / name / "config.json").read_text(encoding="utf-8"))
        assert config["lr"] == 0.01


def test_a_choice_that_is_made_again_and_is_the_same_trains_nothing(edited):
    """By the table of the choices, or by a script with another comment: what is chosen is what it was."""
    before = trained(edited)
    assert "candidate" not in planned(edited, "tests/tiny.yaml", "--config", f"tuned={TUNED}")
    assert retrained(edited, before, "--config", f"tuned={TUNED}") == set()
    append(edited / "workflow/scripts/choose.py", "# a comment\n")
    assert retrained(edited, before) == set()
    assert trained(edited) == before


def test_the_table_of_choices_alone_trains_the_runs_without_tuning(edited):
    shutil.copy(edited / TUNED, edited / "given.csv")
    shutil.rmtree(edited / "results")
    jobs = planned(edited, "tests/tiny.yaml", "--config", "tuned=given.csv")
    assert (len(jobs["train"]), len(jobs["choose"])) == (12, 1)
    assert not {"candidate", "tuned"} & set(jobs)


def test_a_choice_at_the_end_of_the_values_tried_is_told_at_the_end_of_the_run(edited):
    table = pd.read_csv(edited / TUNED)
    for edge, told in (("lr largest", ["mlp/digits/fa is the lr largest tried: widen `tune` there"]), ("", [])):
        table.assign(edge=table["chosen"].map({True: edge, False: ""})).to_csv(edited / "given.csv", index=False)
        arguments = ["--cores", "2", "--configfile", "tests/tiny.yaml", "--config", "tuned=given.csv"]
        result = snakemake(edited, *arguments, "--until", "choose")
        assert result.returncode == 0, result.stderr[-3000:]
        assert re.findall(r"given.csv: the choice for (.*), and run again", result.stderr) == told


# ---- what is made again, and what is not ----


def test_a_training_log_shows_progress_and_the_result(project):
    log = (project / "results/tiny/logs/train/mlp/digits/fa/seed0.log").read_text(encoding="utf-8")
    assert re.search(r"mlp/digits/fa/seed0: test [\d.]+ %, \d+ s", log)


def test_provenance_names_versions_and_machine(project):
    provenance = json.loads((project / "results/tiny/provenance.json").read_text(encoding="utf-8"))
    assert provenance["runs"] == {"planned": 12, "finished": 12}
    assert provenance["device"] == f"{cpu.label()}, {os.cpu_count()} cores"
    assert len(provenance["config_sha256"]) == 64


def test_a_second_call_has_nothing_to_do(project):
    assert planned(project, "tests/tiny.yaml") == {}


def test_an_added_seed_trains_that_seed_alone(project):
    jobs = planned(project, overlay(project, "more.yaml", seeds=[0, 1, 2]))
    assert len(jobs["train"]) == 6
    assert all("/seed2/" in output for output in jobs["train"])
    assert not {"candidate", "choose", "tuned"} & set(jobs)


def test_another_learning_rate_retrains_its_arm_alone(project):
    studies = yaml.safe_load((project / "tests/tiny.yaml").read_text(encoding="utf-8"))["studies"]
    studies[0]["arms"]["bp"]["lr"] = 0.02
    jobs = planned(project, overlay(project, "lr.yaml", studies=studies))
    assert len(jobs["train"]) == 2
    assert all("/mlp/digits/bp/" in output for output in jobs["train"])


def test_a_moved_data_folder_another_device_and_a_colour_retrain_nothing(project):
    changes = {"data_dir": "elsewhere", "download": False, "threads": 2, "arms": {"bp-top2": {"colour": "#123456"}}}
    jobs = planned(project, overlay(project, "moved.yaml", **changes))
    assert len(jobs["figure"]) == len(FIGURES)
    assert set(jobs) == {"figure", "pages", "paper", "seal"}


def test_an_edited_figure_script_redraws_that_figure(edited):
    with open(edited / "workflow/scripts/figures/curves.py", "a", encoding="utf-8") as script:
        script.write("# edited\n")
    jobs = planned(edited, "tests/tiny.yaml")
    assert [Path(output.split(",")[0]).stem for output in jobs.pop("figure")] == ["curves"]
    assert set(jobs) == {"pages", "paper", "seal"}


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_an_edited_claim_settles_the_claims_anew_and_tabulates_nothing(edited):
    append(edited / "paper/claims.yaml", "# a comment\n")
    assert set(planned(edited, "tests/tiny.yaml")) == {"summarise", "pages", "paper", "seal"}


def test_a_comment_in_training_code_and_a_new_knob_retrain_nothing(edited):
    append(edited / "rankcollapse/optim.py", "# a comment\n")
    config = edited / "rankcollapse/config.py"
    knob = '    seed: Seed = 0\n    brightness: float = Field(0.0, ge=0, description="of images")\n'
    text = config.read_text(encoding="utf-8")
    assert "    seed: Seed = 0\n" in text
    config.write_text(text.replace("    seed: Seed = 0\n", knob), encoding="utf-8")
    assert planned(edited, "tests/tiny.yaml") == {}


def test_a_new_measure_tabulates_anew_and_retrains_nothing(edited):
    append(
        edited / "rankcollapse/ranks.py", "\n\nMEASURES = {**MEASURES, 'nuclear': lambda s: float(s.sum() / s.max())}\n"
    )
    jobs = planned(edited, "tests/tiny.yaml")
    assert "train" not in jobs
    assert {"collect", "summarise", "figure", "paper"} <= set(jobs)


def test_edited_training_code_retrains(edited):
    append(edited / "rankcollapse/optim.py", "EDITED = True\n")
    jobs = planned(edited, "tests/tiny.yaml")
    assert (len(jobs["train"]), len(jobs["candidate"])) == (12, 6)


def test_a_deleted_run_folder_and_a_deleted_table_are_made_again(edited):
    shutil.rmtree(edited / "results/tiny/runs/mlp/digits/fa/seed1")
    (edited / "results/tiny/summary/cost.csv").unlink()
    (edited / "results/tiny/pages/cost.html").unlink()
    jobs = planned(edited, "tests/tiny.yaml")
    assert len(jobs["train"]) == len(jobs["summarise"]) == len(jobs["pages"]) == 1


def test_a_lost_run_is_marked_when_missing_runs_are_allowed(edited):
    shutil.rmtree(edited / "results/tiny/runs/mlp/digits/fa/seed1")
    result = snakemake(
        edited,
        "--cores",
        "2",
        "--configfile",
        overlay(edited, "lossy.yaml", allow_missing=True),
        "--forcerun",
        "collect",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    runs = pd.read_csv(edited / "results/tiny/tables/runs.csv").set_index(["study", "arm", "seed"])
    assert runs.loc[("mlp", "fa", 1), "outcome"] == "missing"
    accuracy = pd.read_csv(edited / "results/tiny/summary/accuracy.csv").set_index(["study", "arm"])
    assert tuple(accuracy.loc[("mlp", "fa"), ["n", "planned", "missing"]]) == (1, 2, 1)
    assert "missing" in (edited / "figures/tiny/accuracy.txt").read_text(encoding="utf-8")


def test_the_papers_grid_is_listed_with_advice_for_a_machine_without_a_gpu(fresh):
    result = snakemake(fresh, "-n", "--quiet", "rules", env={"CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 0, result.stderr
    text = result.stdout + result.stderr
    assert "610 training runs and 460 for tuning" in text
    assert "presets/quick.yaml" in text
    assert re.search(r"train +610", text)
    assert re.search(r"candidate +460", text)
    assert re.search(r"choose +92", text), "an arm of a study and a data set, each"


def test_use_conda_without_conda_names_both_ways_on(fresh):
    where = str(Path(sys.executable).parent)
    result = snakemake(fresh, "-n", "--use-conda", env={"PATH": f"{where}:/usr/bin:/bin"})
    if shutil.which("conda", path=f"{where}:/usr/bin:/bin"):
        pytest.skip("conda is on this machine")
    assert result.returncode != 0
    assert "install it" in result.stderr + result.stdout
    assert "leave --use-conda out" in result.stderr + result.stdout


def study(**changes) -> list[dict]:
    run = {"architecture": "mlp", "width": 16, "depth": 1, **changes.pop("run", {})}
    arms = {"bp": {"lr": 0.05, **changes.pop("arm", {})}}
    cost = {"cpu": 1, "cuda": 1, "mem_mb": 1, "disk_mb": 1}
    return [{"name": "bad", "datasets": ["digits"], "run": run, "arms": arms, "cost": cost, **changes}]


def stops_before_training(folder: Path, name: str, **changes) -> str:
    result = snakemake(folder, "--cores", "2", "--configfile", overlay(folder, name, preset="bad", **changes))
    assert result.returncode != 0
    assert not (folder / "results/bad/runs").exists()
    text = result.stdout + result.stderr
    assert "Traceback" not in text
    return text


def test_a_bad_config_stops_with_one_sentence(project):
    text = stops_before_training(project, "bad.yaml", studies=study(arm={"lr": 0}))
    assert "lr is 0; it must be greater than 0" in text


def test_a_table_of_choices_that_does_not_exist_stops_before_training(project):
    text = stops_before_training(project, "nowhere.yaml", tuned="nowhere.csv")
    assert "tuned is 'nowhere.csv', which does not exist: it must be a table of choices" in text


def test_a_rank_beyond_a_matrix_stops_before_training(project):
    text = stops_before_training(project, "rank.yaml", studies=study(arm={"update": "top_r", "rank": 11}))
    assert "rank is 11, beyond the 10 x 16 matrix of layer 'head' of mlp; it must be 10 or less" in text


def test_absent_data_without_a_download_stops_before_training(project, tmp_path):
    where = {"data_dir": str(tmp_path), "download": False}
    text = stops_before_training(project, "absent.yaml", studies=study(datasets=["cifar10"]), **where)
    assert "cifar-10-batches-py does not exist and download is false" in text


def test_an_altered_file_stops_before_training(project, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"altered")
    text = stops_before_training(project, "altered.yaml", studies=study(datasets=["cifar10"]), data_dir=str(tmp_path))
    assert "data_batch_1 is altered or truncated" in text


def test_a_run_cut_off_is_not_read_as_done(edited):
    run = edited / "results/tiny/runs/mlp/digits/fa/seed0"
    for name in ("run.json", "spectra.npz"):  # as a kill between two files leaves it
        (run / name).unlink()
    for folder in ("tables", "summary"):  # a first call that was cut off had none of these
        shutil.rmtree(edited / "results/tiny" / folder)
    jobs = planned(edited, "tests/tiny.yaml")
    assert len(jobs["train"]) == 1
    assert "/mlp/digits/fa/seed0/" in jobs["train"][0]


# ---- damage, and what is left by a command that was killed ----


def alter(path: Path) -> None:
    """Change one bit, and nothing that a listing shows."""
    stat, made = path.stat(), bytearray(path.read_bytes())
    made[len(made) // 2] ^= 1
    path.write_bytes(made)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def lasting(folder: Path) -> dict[str, bytes]:
    """What two calls that give the same results leave alike: times and costs are in the files that are left out."""
    names = ["checkpoint.pt", "metrics.csv", "spectra.npz", "ranks.csv", "alignment.csv", "norms.csv", "choice.json"]
    names += ["epochs.csv", "ranks.csv.gz", "alignment.csv.gz", "norms.csv.gz", "accuracy.csv", "tuned.csv"]
    paths = [path for path in folder.glob("results/tiny/**/*") if path.name in names]
    return {str(path.relative_to(folder)): path.read_bytes() for path in [*paths, *folder.glob("figures/tiny/*.svg")]}


def verify(folder: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "workflow/scripts/verify.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)


def test_what_is_damaged_is_named_and_made_again_by_the_same_command(project, edited):
    assert verify(edited).returncode == 0
    altered = ["runs/mlp/digits/bp/seed0/checkpoint.pt", "runs/mlp/digits/fa/seed1/run.json", "tables/epochs.csv"]
    altered += ["tuning/mlp/digits/fa/choice.json", "tuning/mlp/digits/fa/lr0.1/seed7/metrics.csv", "summary/cost.csv"]
    altered = [f"results/tiny/{name}" for name in altered]
    missing = ["figures/tiny/depth.pdf", "results/tiny/runs/intervention/digits/bp/seed0/norms.csv"]
    for name in [*altered, "data/ready/digits/images.npy"]:
        alter(edited / name)
    for name in missing:
        (edited / name).unlink()
    found = verify(edited)
    assert found.returncode == 1
    for name in [*altered, *missing]:
        assert f"{name}: {'altered' if name in altered else 'missing'}" in found.stdout
    jobs = planned(edited, "tests/tiny.yaml")
    assert [len(jobs[rule]) for rule in ("candidate", "choose", "collect", "summarise", "seal")] == [1] * 5
    done = snakemake(edited, "--cores", "2", "--configfile", "tests/tiny.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in altered:
        assert f"{name} is altered since it was sealed: it is made again" in done.stderr
    for name in missing:
        assert f"{name} is missing: it is made again" in done.stderr
    assert "data/ready/digits/images.npy is altered since it was sealed: the set is converted anew" in done.stderr
    assert verify(edited).returncode == 0, verify(edited).stdout
    assert lasting(edited) == lasting(project)
    assert planned(edited, "tests/tiny.yaml") == {}


def test_a_damaged_manifest_vouches_for_nothing(edited):
    alter(edited / "results/tiny/manifest.json")
    jobs = planned(edited, "tests/tiny.yaml")
    assert {"collect", "summarise", "figure", "pages", "paper", "seal"} == set(jobs)


def test_a_plan_that_is_gone_is_written_again(edited):
    plan = edited / "results/tiny/plan.json"
    before = plan.read_bytes()
    plan.unlink()
    assert snakemake(edited, "--cores", "2", "--configfile", "tests/tiny.yaml").returncode == 0
    assert plan.read_bytes() == before


def test_a_whole_run_that_is_asked_for_again_is_trained_only_afresh(edited):
    run = edited / "results/tiny/runs/mlp/digits/bp/seed0/run.json"
    before = run.read_bytes()
    target = str(run.relative_to(edited))
    arguments = [target, "--cores", "1", "--configfile", "tests/tiny.yaml", "--forcerun", target]
    assert snakemake(edited, *arguments).returncode == 0
    assert run.read_bytes() == before
    assert snakemake(edited, *arguments, "--config", "fresh=true").returncode == 0
    assert seals.read(run)["started"] != json.loads(before)["started"]


def test_the_lock_of_a_dead_snakemake_goes_and_that_of_a_live_one_stays(edited):
    (edited / ".snakemake/locks").mkdir(exist_ok=True)
    held, running = edited / ".snakemake/locks/0.output.lock", edited / ".snakemake/running"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        stat = Path(f"/proc/{other.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        record = {**lock.this_process(), "pid": other.pid, "born": int(stat[19])}
        (running / "other.json").write_text(json.dumps(record), encoding="utf-8")
        held.write_text("results/tiny/tables/runs.csv\n", encoding="utf-8")
        done = snakemake(edited, "--cores", "2", "--configfile", "tests/tiny.yaml")
        assert done.returncode == 1
        assert "cannot be locked" in done.stderr
        assert held.exists()
        other.kill()
    done = snakemake(edited, "--cores", "2", "--configfile", "tests/tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert f"was locked by process {other.pid} on {record['host']}, which is dead: unlocked" in done.stderr
    assert [*running.iterdir()] == []


def test_a_snakemake_that_is_killed_leaves_nothing_that_the_same_command_does_not_take_up(fresh, tmp_path):
    shutil.copytree(fresh, tmp_path / "project")
    folder, target = tmp_path / "project", "results/tiny/runs/mlp/digits/bp/seed0/run.json"
    tiny = yaml.safe_load((folder / "tests/tiny.yaml").read_text(encoding="utf-8"))
    config = overlay(folder, "long.yaml", run={**tiny["run"], "epochs": 300, "gradient_every": 50}, save_minutes=0.005)
    command = [sys.executable, "-m", "snakemake", target, "--cores", "1", "--configfile", config]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not [*folder.glob("results/tiny/runs/mlp/digits/bp/seed0/state/*/step*.pt")]:
            assert process.poll() is None, "it ended before any state was saved"
            time.sleep(0.05)
        trainer = json.loads((folder / target).with_name(".lock").read_text(encoding="utf-8"))["pid"]
        process.kill()
    os.kill(trainer, 9)
    done = snakemake(folder, *command[3:])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unlocked" in done.stderr
    result = seals.read(folder / target)
    assert (result["resumed"], result["outcome"], result["epochs"]) == (1, "finished", 300)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(project: Path) -> Path:
    result = snakemake(project, "--configfile", "tests/tiny.yaml", "--report", "report.html")
    assert result.returncode == 0, result.stderr
    return project / "report.html"


def test_the_report_holds_every_figure_with_its_caption(report, project):
    text = report.read_text(encoding="utf-8")
    for name in FIGURES:
        assert f"{name}.svg" in text
        caption = (project / f"figures/tiny/{name}.txt").read_text(encoding="utf-8").split(";")[0].split("(")[0].strip()
        assert json.dumps(caption)[1:-1] in text
    for name in ("accuracy", "ranks", "alignment", "norms", "cost", "claims", "tuned"):
        assert f"results/tiny/pages/{name}.html" in text


# Shows every figure of the report as a picture and writes the path of each that the browser could draw into the page.
SHOW = """<script>window.addEventListener("load", () => {
  for (const [path, result] of Object.entries(results)) if (path.endsWith(".svg")) {
    const picture = new Image();
    picture.onload = () => document.body.append(`drawn ${path} ${picture.naturalWidth > 100}; `);
    picture.src = result.data_uri;
  }
})</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_report_opens_in_a_browser_without_a_network_and_shows_every_figure(report, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(report.read_text(encoding="utf-8") + SHOW, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --virtual-time-budget=20000"
    closed = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *flags.split(), *closed, "--dump-dom", page.as_uri()]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "Tables" in text
    for name in FIGURES:
        assert f"drawn figures/tiny/{name}.svg true" in text
