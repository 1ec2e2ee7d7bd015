# What the rules share: the planned runs, the folders of this preset, and the lines at the start.
import ast
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, workflow.basedir)

from rankcollapse import datasets, files, gpus, grid
from rankcollapse.config import read
from rankcollapse.errors import InputError


def plan_grid():
    try:
        found = grid.grid(config)
        return found, {run.name: run for run in grid.runs(found)}
    except InputError as error:
        raise WorkflowError(str(error))


def uses_conda():
    chosen = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
    if chosen and shutil.which("conda") is None:
        raise WorkflowError(
            "--use-conda needs the command conda, which is not on this machine: either install it (Miniforge will do), "
            "or leave --use-conda out and run in the .venv that `make` creates (.venv/bin/snakemake --cores all)."
        )
    return chosen


def on_gpu():
    return GRID.device != "cpu" and bool(GPUS)


def start_lines():
    """How many runs, on which devices, the estimated time and disk; and whether this machine is the one for it."""
    jobs = len(GPUS) * GRID.gpu_slots if on_gpu() else os.cpu_count()
    hours = sum(run.seconds("cuda" if on_gpu() else "cpu") for run in RUNS.values()) / jobs / 3600
    disk = sum(run.study.cost.disk_mb for run in RUNS.values())
    where = f"{len(GPUS)} GPUs" if on_gpu() else f"{os.cpu_count()} CPU cores"
    time = (
        f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.0f} hours" if hours < 100 else f"{hours / 24:.0f} days"
    )
    lines = [
        f"rankcollapse, preset {GRID.preset}: {GRID.title}",
        f"  {len(RUNS)} training runs on {where}: about {time} for all of them, {disk / 1000:.1f} GB of disk below {RESULTS}",
    ]
    if GRID.device != "cpu" and not GPUS:
        lines.append(
            "  No GPU here, and this grid is made for GPUs: on CPU cores take --configfile presets/quick.yaml (real "
            "CIFAR, small networks) or presets/demo.yaml (minutes, no download)."
        )
    idle = [arm for arm in GRID.arms if not any(arm in study.arms for study in GRID.studies)]
    if idle:
        lines.append(f"  Arms of the config that no study of this preset runs: {', '.join(idle)}")
    return "\n".join(lines)


def start():
    """Write the plan that the jobs read, and stop before any training if one of its runs cannot be had."""
    files.write_json(PLAN, grid.plan(GRID))
    disk = sum(run.study.cost.disk_mb for name, run in RUNS.items() if not os.path.exists(run_json(name)))
    free = shutil.disk_usage(RESULTS).free / 1e6
    if free < disk:
        raise WorkflowError(
            f"{RESULTS} has {free:.0f} MB free, and this grid writes about {disk:.0f} MB: free space, or drop seeds"
        )
    if find_spec("torch"):  # in an environment with snakemake alone each job checks its own run
        command = [sys.executable, "workflow/scripts/preflight.py", PLAN]
        env = {**os.environ, "PYTHONPATH": str(workflow.basedir)}
        done = subprocess.run(command, text=True, encoding="utf-8", stderr=subprocess.PIPE, env=env)
        if done.returncode:
            raise WorkflowError(done.stderr.strip())


def run_json(name):
    return f"{RESULTS}/runs/{name}/run.json"


def planned(wildcards):
    """The run that a training job's wildcards name."""
    name = grid.NAME.format(**wildcards)
    if name not in RUNS:
        raise WorkflowError(
            f"{name} is not a run of preset {GRID.preset}: its study, arm or seed is not in the config."
        )
    return RUNS[name]


def finished_runs(wildcards):
    """run.json of every run; with allow_missing, of those that are there."""
    expected = [run_json(name) for name in RUNS]
    return [path for path in expected if not GRID.allow_missing or os.path.exists(path)]


def minutes(wildcards):
    """Wall time to ask of a cluster: three times the estimate."""
    return 10 + round(3 * planned(wildcards).seconds("cuda" if GRID.device != "cpu" else "cpu") / 60)


def figure_titles():
    """The figures by file, in order: each script's docstring begins with `N. Title.`"""
    found = {}
    for path in Path(workflow.basedir, "workflow/scripts/figures").glob("*.py"):
        title = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        number = title.split(".")[0]
        if not number.isdigit():
            raise WorkflowError(f"{path.name}: its docstring must begin with its number and title, as in `9. Title.`")
        found[path.stem] = int(number), title.rstrip(".")
    return {name: title for name, (_, title) in sorted(found.items(), key=lambda item: item[1])}


def known_names():
    """All names that a claim may use: those of this grid, and of config.yaml, whose studies a preset may lack."""
    base = read(Path(workflow.basedir, "config.yaml"))
    studies = {study.name for study in GRID.studies} | {study["name"] for study in base["studies"]}
    return {"studies": sorted(studies), "arms": sorted(GRID.arms), "datasets": list(datasets.SETS)}


# The package and the scripts stand beside the Snakefile; in a conda environment nothing has installed them. Without
# conda, `python` is the one that runs snakemake, whether or not its environment is activated.
PATHS = f"export PYTHONPATH={workflow.basedir!r}:{os.path.join(workflow.basedir, 'workflow/scripts')!r}; "
if not uses_conda():
    PATHS += f"export PATH={os.path.dirname(sys.executable)!r}:$PATH; "
shell.prefix(f"set -euo pipefail; {PATHS}")

GRID, RUNS = plan_grid()
RESULTS, FIGURES = f"results/{GRID.preset}", f"figures/{GRID.preset}"
PLAN = f"{RESULTS}/plan.json"  # no file that a rule makes: training is not to wait for it, nor to run again for it
DOWNLOAD = "" if GRID.download else "--no-download"
GPUS = gpus.visible()
TITLES = figure_titles()
LOOKS = {
    "arms": {name: arm.model_dump(exclude={"run"}) for name, arm in GRID.arms.items()},
    "studies": {study.name: study.title or study.name for study in GRID.studies},
}
LABELS = {
    "arm": {name: arm.label for name, arm in GRID.arms.items()},
    "study": LOOKS["studies"],
    "dataset": {name: record.label for name, record in datasets.SETS.items()},
}
PAPER = {
    "preset": GRID.preset,
    "figures": list(TITLES),
    "labels": LABELS["arm"],
    "studies": LABELS["study"],
    "datasets": LABELS["dataset"],
}
if GPUS:
    workflow.register_resource("gpu", len(GPUS) * GRID.gpu_slots)


wildcard_constraints:
    study="[a-z0-9-]+",
    dataset="[a-z0-9]+",
    arm="[a-z0-9+-]+",
    seed="[0-9]+",
    figure="|".join(TITLES),
    table="[a-z]+",


if workflow.is_main_process:
    print(start_lines(), file=sys.stderr)
