"""The real workflow, as a user types it, on a copy of the project and a tiny grid of digits."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[1]
FIGURES = [
    "error_rank",
    "gradient_rank",
    "intervention",
    "remedies",
    "alignment",
    "accuracy",
    "accuracy_vs_rank",
    "curves",
]
ARMS = {"mlp": ["bp", "fa", "fa+both"], "intervention": ["bp", "bp-top2", "fa-full-spectral"]}

pytestmark = pytest.mark.workflow


def copy_project(folder: Path) -> Path:
    for name in (
        "rankcollapse",
        "workflow",
        "envs",
        "presets",
        "profiles",
        "paper",
        "tests",
        "Snakefile",
        "config.yaml",
    ):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pdf"))
        else:
            shutil.copy(source, folder / name)
    return folder


def snakemake(folder: Path, *arguments: str, env: dict | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **(env or {})})


def overlay(folder: Path, name: str, **changes) -> str:
    """The tiny grid with some top-level keys changed, as an overlay of its own."""
    values = yaml.safe_load((folder / "tests" / "tiny.yaml").read_text())
    values.update(changes)
    (folder / name).write_text(yaml.safe_dump(values))
    return name


def planned(folder: Path, configfile: str, *arguments: str) -> dict[str, list[str]]:
    """What a dry run would do: for each rule, what its jobs would write."""
    result = snakemake(folder, "-n", "--configfile", configfile, *arguments)
    assert result.returncode == 0, result.stderr
    jobs: dict[str, list[str]] = {}
    for rule, output in re.findall(
        r"^(?:local)?rule (\w+):\n.*?^    output: ([^\n]+)", result.stdout + result.stderr, re.M | re.S
    ):
        jobs.setdefault(rule, []).append(output)
    return jobs


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project whose tiny grid has been run from nothing, once for all tests; they leave it as it is."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    result = snakemake(folder, "--cores", "2", "--configfile", "tests/tiny.yaml")
    assert result.returncode == 0, result.stderr[-5000:]
    return folder


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
        assert (project / f"figures/tiny/{name}.svg").read_text().lstrip().startswith("<?xml")
        assert (project / f"figures/tiny/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "n" in (project / f"figures/tiny/{name}.txt").read_text()
    for name in ("accuracy", "ranks", "alignment", "cost", "claims"):
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


def test_a_training_log_shows_progress_and_the_result(project):
    log = (project / "results/tiny/logs/train/mlp/digits/fa/seed0.log").read_text()
    assert re.search(r"mlp/digits/fa/seed0: test [\d.]+ %, \d+ s", log)


def test_provenance_names_versions_and_machine(project):
    provenance = json.loads((project / "results/tiny/provenance.json").read_text())
    assert provenance["runs"] == {"planned": 12, "finished": 12}
    assert provenance["device"] == f"CPU, {os.cpu_count()} cores"
    assert len(provenance["config_sha256"]) == 64


def test_a_second_call_has_nothing_to_do(project):
    assert planned(project, "tests/tiny.yaml") == {}


def test_an_added_seed_trains_that_seed_alone(project):
    jobs = planned(project, overlay(project, "more.yaml", seeds=[0, 1, 2]))
    assert len(jobs["train"]) == 6
    assert all("/seed2/" in output for output in jobs["train"])


def test_another_learning_rate_retrains_its_arm_alone(project):
    studies = yaml.safe_load((project / "tests/tiny.yaml").read_text())["studies"]
    studies[0]["arms"]["fa"]["lr"] = 0.02
    jobs = planned(project, overlay(project, "lr.yaml", studies=studies))
    assert len(jobs["train"]) == 2
    assert all("/mlp/digits/fa/" in output for output in jobs["train"])


def test_the_colour_of_an_arm_redraws_the_figures_that_show_it(project):
    jobs = planned(project, overlay(project, "colour.yaml", arms={"bp-top2": {"colour": "#123456"}}))
    assert sorted(Path(output.split(",")[0]).stem for output in jobs.pop("figure")) == [
        "accuracy_vs_rank",
        "intervention",
    ]
    assert set(jobs) == {"paper"}


def test_an_edited_figure_script_redraws_that_figure(edited):
    with open(edited / "workflow/scripts/figures/curves.py", "a") as script:
        script.write("# edited\n")
    jobs = planned(edited, "tests/tiny.yaml")
    assert [Path(output.split(",")[0]).stem for output in jobs.pop("figure")] == ["curves"]
    assert set(jobs) == {"paper"}


def test_edited_training_code_retrains(edited):
    with open(edited / "rankcollapse/optim.py", "a") as module:
        module.write("# edited\n")
    assert len(planned(edited, "tests/tiny.yaml")["train"]) == 12


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
    assert "missing" in (edited / "figures/tiny/accuracy.txt").read_text()


def test_the_papers_grid_is_listed_with_advice_for_a_machine_without_a_gpu(fresh):
    result = snakemake(fresh, "-n", "--quiet", "rules", env={"CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 0, result.stderr
    text = result.stdout + result.stderr
    assert "290 training runs" in text
    assert "presets/quick.yaml" in text
    assert re.search(r"train +290", text)


def test_use_conda_without_conda_names_both_ways_on(fresh):
    where = str(Path(sys.executable).parent)
    result = snakemake(fresh, "-n", "--use-conda", env={"PATH": f"{where}:/usr/bin:/bin"})
    if shutil.which("conda", path=f"{where}:/usr/bin:/bin"):
        pytest.skip("conda is on this machine")
    assert result.returncode != 0
    assert "install it" in result.stderr + result.stdout
    assert "leave --use-conda out" in result.stderr + result.stdout


def test_under_use_conda_the_environments_hold_all_that_the_rules_need(tmp_path):
    """Nothing but what envs/ lists is in them: not this package, which no one has installed there, nor pytest."""
    folder = copy_project(tmp_path)
    values = yaml.safe_load((folder / "tests" / "tiny.yaml").read_text())
    configfile = overlay(
        folder, "one.yaml", seeds=[0], studies=[{**values["studies"][0], "arms": {"fa": {"lr": 0.05}}}]
    )
    path = [folder / "tests" / "doubles" / "conda" / "bin", Path(sys.executable).parent, "/usr/bin", "/bin"]
    env = {"PATH": os.pathsep.join(map(str, path)), "PYTHONPATH": ""}
    result = snakemake(folder, "--cores", "2", "--use-conda", "--configfile", configfile, env=env)
    assert result.returncode == 0, result.stderr[-5000:]
    assert (folder / "paper" / "tiny" / "replication.pdf").exists()
    environments = [p for p in (folder / ".snakemake" / "conda").iterdir() if p.is_dir()]
    assert len(environments) == 2
    for prefix in environments:
        gone = subprocess.run([prefix / "bin" / "python", "-c", "import pytest"], capture_output=True, cwd=tmp_path)
        assert gone.returncode == 1
    used = re.findall(r"Activating conda environment: (\S+)", result.stderr)
    assert {Path(p).name for p in used} == {p.name for p in environments}


def study(**changes) -> list[dict]:
    run = {"architecture": "mlp", "width": 16, "depth": 1, **changes.pop("run", {})}
    arms = {"bp": {"lr": 0.05, **changes.pop("arm", {})}}
    cost = {"cpu": 1, "cuda": 1, "mem_mb": 1, "disk_mb": 1}
    return [{"name": "bad", "datasets": ["digits"], "run": run, "arms": arms, "cost": cost, **changes}]


BAD = {
    "an unknown key": ({"sedes": [0]}, "unknown key 'sedes'; did you mean 'seeds'?"),
    "an unknown key of a run": ({"run": {"epoch": 3}}, "unknown key 'run.epoch'; did you mean 'epochs'?"),
    "duplicate seeds": ({"seeds": [1, 1]}, "seeds is [1, 1]; it must not hold a value twice"),
    "an unknown arm": ({"studies": study(arms={"dfa": {"lr": 0.1}})}, "unknown arm 'dfa'"),
    "an unknown rule": ({"studies": study(arm={"rule": "dfa"})}, "it must be one of bp, fa"),
    "an unknown architecture": (
        {"studies": study(run={"architecture": "vgg"})},
        "it must be one of mlp, cnn4, resnet18",
    ),
    "an unknown dataset": ({"studies": study(datasets=["mnist"])}, "it must be one of cifar10, cifar100, digits"),
    "a learning rate of 0": ({"studies": study(arm={"lr": 0})}, "lr is 0; it must be greater than 0"),
    "epochs of 0": ({"studies": study(run={"epochs": 0})}, "epochs is 0; it must be 1 or more"),
    "a subset larger than the set": (
        {"studies": study(run={"train_images": 5000})},
        "train_images is 5000, but digits has 1437 training images",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_stops_with_one_sentence(fresh, case):
    changes, sentence = BAD[case]
    result = snakemake(fresh, "--cores", "2", "--configfile", overlay(fresh, "bad.yaml", **changes))
    assert result.returncode != 0
    text = result.stdout + result.stderr
    assert sentence in text
    assert "Traceback" not in text
    assert not (fresh / "results").exists()


def stops_before_training(folder: Path, name: str, **changes) -> str:
    result = snakemake(folder, "--cores", "2", "--configfile", overlay(folder, name, preset="bad", **changes))
    assert result.returncode != 0
    assert not (folder / "results/bad/runs").exists()
    text = result.stdout + result.stderr
    assert "Traceback" not in text
    return text


def test_a_rank_beyond_a_matrix_stops_before_training(project):
    text = stops_before_training(project, "rank.yaml", studies=study(arm={"update": "top_r", "rank": 11}))
    assert "rank is 11, beyond the 10 x 16 matrix of layer 'head' of mlp; it must be 10 or less" in text


def test_absent_data_without_a_download_stops_before_training(project, tmp_path):
    run = {"data_dir": str(tmp_path), "download": False, "validation_images": 100}
    text = stops_before_training(project, "absent.yaml", studies=study(datasets=["cifar10"], run=run))
    assert "cifar-10-batches-py does not exist and download is false" in text


def test_an_altered_file_stops_before_training(project, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"altered")
    run = {"data_dir": str(tmp_path), "validation_images": 100}
    text = stops_before_training(project, "altered.yaml", studies=study(datasets=["cifar10"], run=run))
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


def test_the_conda_environments_have_the_versions_of_the_lock():
    lock = dict(
        re.findall(
            r"^([\w.-]+)==([\w.+-]+)(?: ; python_full_version < '3.12')? \\",
            (ROOT / "requirements.lock").read_text(),
            re.M,
        )
    )
    for path in (ROOT / "envs").glob("*.yaml"):
        pip = yaml.safe_load(path.read_text())["dependencies"][-1]["pip"]
        assert {name: lock.get(name) for name, _ in (pin.split("==") for pin in pip)} == dict(
            pin.split("==") for pin in pip
        )


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(project: Path) -> Path:
    result = snakemake(project, "--configfile", "tests/tiny.yaml", "--report", "report.html")
    assert result.returncode == 0, result.stderr
    return project / "report.html"


def test_the_report_holds_every_figure_with_its_caption(report, project):
    text = report.read_text()
    for name in FIGURES:
        assert f"{name}.svg" in text
        caption = (project / f"figures/tiny/{name}.txt").read_text().split(";")[0].split("(")[0].strip()
        assert json.dumps(caption)[1:-1] in text
    assert "Tables" in text


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
    page.write_text(report.read_text() + SHOW)
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --virtual-time-budget=20000"
    closed = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *flags.split(), *closed, "--dump-dom", page.as_uri()]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "Tables" in text
    for name in FIGURES:
        assert f"drawn figures/tiny/{name}.svg true" in text
