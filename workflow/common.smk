# What the rules share: the planned runs, the folders of this preset, and the lines at the start.
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, workflow.basedir)

from rankcollapse import gpus, grid
from rankcollapse.config import InputError


def plan_runs():
    try:
        return {run.name: run for run in grid.runs(config)}
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


def start_lines():
    """How many runs, on which devices, the estimated time and disk; and whether this machine is the one for it."""
    wants_gpu = sum(run.config.device != "cpu" for run in RUNS.values())
    device = "cuda" if wants_gpu and GPUS else "cpu"
    jobs = len(GPUS) * config.get("gpu_slots", 1) if device == "cuda" else os.cpu_count()
    hours = sum(grid.seconds(run, STUDIES[run.study], device) for run in RUNS.values()) / jobs / 3600
    disk = sum(STUDIES[run.study]["cost"]["disk_mb"] for run in RUNS.values())
    where = f"{len(GPUS)} GPUs" if device == "cuda" else f"{os.cpu_count()} CPU cores"
    time = (
        f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.0f} hours" if hours < 100 else f"{hours / 24:.0f} days"
    )
    lines = [
        f"rankcollapse, preset {config['preset']}: {config.get('title', '')}",
        f"  {len(RUNS)} training runs on {where}: about {time} for all of them, {disk / 1000:.1f} GB of disk below {RESULTS}",
    ]
    if wants_gpu and not GPUS:
        lines.append(
            "  No GPU here, and this grid is made for GPUs: on CPU cores take --configfile presets/quick.yaml (real CIFAR, "
            "20 minutes on two cores) or presets/demo.yaml (4 minutes, no download)."
        )
    return "\n".join(lines)


def preflight():
    """Stop before any training if a run or its data cannot be had. It takes seconds; a dry run leaves it out."""
    if not find_spec("torch"):
        return  # snakemake alone in this environment: each job checks its own run
    disk = sum(STUDIES[run.study]["cost"]["disk_mb"] for run in RUNS.values() if not os.path.exists(run_json(run.name)))
    asked = {"runs": [run.values() for run in RUNS.values()], "disk_mb": disk, "folder": RESULTS}
    command = [sys.executable, "workflow/scripts/preflight.py"]
    env = {**os.environ, "PYTHONPATH": str(workflow.basedir)}
    done = subprocess.run(command, input=json.dumps(asked), text=True, stderr=subprocess.PIPE, env=env)
    if done.returncode:
        raise WorkflowError(done.stderr.strip())


def run_json(name):
    return f"{RESULTS}/runs/{name}/run.json"


def planned(wildcards):
    """The run that a training job's wildcards name."""
    name = RUN_NAME.format(**wildcards)
    if name not in RUNS:
        raise WorkflowError(
            f"{name} is not a run of preset {config['preset']}: its study, arm or seed is not in the config."
        )
    return RUNS[name]


def finished_runs(wildcards):
    """run.json of every run; with allow_missing, of those that are there."""
    expected = [run_json(name) for name in RUNS]
    return [path for path in expected if not config.get("allow_missing") or os.path.exists(path)]


def figure_grid(figure):
    """The arms and studies that a figure shows, in the order of the config, with their looks: JSON for its script."""
    changed = {a for a, look in config["arms"].items() if look.get("run", {}).get("update", "full") != "full"}
    interventions = {name for name, study in STUDIES.items() if changed & set(study["arms"])}
    shown = {"intervention": interventions, "accuracy_vs_rank": set(STUDIES)}.get(figure, set(STUDIES) - interventions)
    studies = {name: study.get("title", name) for name, study in STUDIES.items() if name in shown}
    arms = {arm for name in studies for arm in STUDIES[name]["arms"]}
    feedback = {arm for arm in arms if config["arms"][arm].get("run", {}).get("rule", "bp") != "bp"}
    arms = {
        "error_rank": arms & {"bp", "bp+bn", "fa", "fa+bn"},
        "remedies": feedback | arms & {"bp", "bp+bn"},
        "alignment": feedback,
    }.get(figure, arms)
    looks = {
        arm: {key: look[key] for key in ("label", "colour", "marker", "line")}
        for arm, look in config["arms"].items()
        if arm in arms
    }
    return json.dumps({"arms": looks, "studies": studies})


def minutes(wildcards):
    """Wall time to ask of a cluster: three times the estimate."""
    run = planned(wildcards)
    on_gpu = run.config.device != "cpu"
    return 10 + round(3 * grid.seconds(run, STUDIES[run.study], "cuda" if on_gpu else "cpu") / 60)


# The package stands beside the Snakefile; in a conda environment nothing has installed it. Without conda, `python` is
# the one that runs snakemake, whether or not its environment is activated.
PATHS = f"export PYTHONPATH={workflow.basedir!r}; "
if not uses_conda():
    PATHS += f"export PATH={os.path.dirname(sys.executable)!r}:$PATH; "
shell.prefix(f"set -euo pipefail; {PATHS}")

RUNS = plan_runs()
STUDIES = {study["name"]: study for study in config["studies"]}
RESULTS = f"results/{config['preset']}"
FIGURES = f"figures/{config['preset']}"
RUN_NAME = "{study}/{dataset}/{arm}/seed{seed}"
GPUS = gpus.visible()

FIGURE_TITLES = {
    "error_rank": "1. Error-signal effective rank",
    "gradient_rank": "2. Gradient-trajectory effective rank",
    "intervention": "3. Intervention on the rank of updates",
    "remedies": "4. Ranks under Muon and normalisation",
    "alignment": "5. Alignment",
    "accuracy": "6. Test accuracy",
    "accuracy_vs_rank": "7. Accuracy against effective rank",
    "curves": "8. Training curves",
}
# Figure scripts that another one imports.
FIGURE_IMPORTS = {"accuracy_vs_rank": "workflow/scripts/figures/gradient_rank.py"}
if GPUS:
    workflow.register_resource("gpu", len(GPUS) * config.get("gpu_slots", 1))


wildcard_constraints:
    study="[a-z0-9-]+",
    dataset="[a-z0-9]+",
    arm="[a-z0-9+-]+",
    seed="[0-9]+",


if workflow.is_main_process:
    print(start_lines(), file=sys.stderr)
