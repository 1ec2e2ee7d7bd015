# What all jobs share. The planned runs, the folders of this preset, and the lines at the start.
import ast
import atexit
import csv
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

sys.path[:0] = [workflow.basedir, os.path.join(workflow.basedir, "workflow")]

import warm
from rankcollapse.experiment import cpu, datasets, files, gpus, grid
from rankcollapse.errors import InputError

# For a report Snakemake (9.27) asks for the sizes of all inputs and takes none: a screenful of complaints.
warnings.filterwarnings("ignore", r"coroutine 'InputFiles\._predicated_size_files", RuntimeWarning)

SAID = {"true": True, "false": False}  # by `--config key=true`, which Snakemake takes for text

try:
    GRID = grid.grid(
        {key: SAID.get(value, value) if isinstance(value, str) else value for key, value in config.items()}
    )
    RUNS = {run.name: run for run in grid.runs(GRID)}
    CANDIDATES = {run.name: run for run in grid.candidates(GRID)}
except InputError as error:
    raise WorkflowError(str(error))

if GRID.tuned and not os.path.exists(GRID.tuned):
    raise WorkflowError(
        f"tuned is {GRID.tuned!r}, which does not exist: it must be a table of choices, such as the committed "
        "results/quick/tuned.csv, or be left out to tune"
    )

RESULTS, FIGURES = f"results/{GRID.preset}", f"figures/{GRID.preset}"
PLAN = f"{RESULTS}/plan.json"  # made by no job; training is not to wait for it, nor to run again for it
TUNED = GRID.tuned or f"{RESULTS}/tuned.csv"
GPUS = gpus.visible()
DEVICE = "cpu" if GRID.device == "cpu" else "cuda"  # of the jobs, wherever they run
ON_GPU = DEVICE == "cuda" and bool(GPUS)
if GPUS:
    workflow.register_resource("gpu", len(GPUS) * GRID.gpu_slots)

# The package and the scripts stand beside the Snakefile; in a conda environment nothing has installed them. Without
# conda, `python` is the one that runs snakemake, whether or not its environment is activated.
PATHS = f"export PYTHONPATH={workflow.basedir!r}:{os.path.join(workflow.basedir, 'workflow/scripts')!r}; "
IN_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
if not IN_CONDA:
    PATHS += f"export PATH={os.path.dirname(sys.executable)!r}:$PATH; "
elif shutil.which("conda") is None:
    raise WorkflowError(
        "--use-conda needs the command conda, which is not on this machine: either install it (Miniforge will do), "
        "or leave --use-conda out and run in the .venv that `make` creates (.venv/bin/snakemake --cores all)."
    )
# No part of a command, which they would change: a data set is the same wherever its files come from.
DATA = f"export DATA_DIR={GRID.data_dir!r} NO_DOWNLOAD={'' if GRID.download else '--no-download'}; "
DATA += f"export FRESH={'--fresh' if GRID.fresh else ''}; "
# On SIGTERM training saves its state: the shell and the writer of its log wait for it.
PATIENT = "trap : TERM; tee() {{ trap '' TERM; command tee \"$@\"; }}; "
PREFIX = f"set -euo pipefail; {PATIENT}{PATHS}{DATA}"
shell.prefix(PREFIX)


def warm_up():
    """From here on local jobs are forks of a process that has loaded their libraries, see warm.py. Returns its command.

    Not within conda, where jobs have another Python than Snakemake, and not where Linux is too old.
    """
    if IN_CONDA or not workflow.local_exec or not hasattr(os, "pidfd_open"):
        return [sys.executable]
    folder = tempfile.mkdtemp(prefix="rankcollapse-")  # short: the path of a socket may not be long
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "socket")
    pools = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(GRID.threads))
    warm.started(path, {**os.environ, **pools})
    shell.prefix(PREFIX + f'python() {{{{ command python -S {warm.__file__!r} {path!r} "$@"; }}}}; ')
    return [sys.executable, "-S", warm.__file__, path]


def figure_titles():
    """The figures by file, in order: each script's docstring begins with `N. Title.`"""
    found = {}
    for path in Path(workflow.basedir, "workflow/scripts/figures").glob("*.py"):
        found[path.stem] = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        if not found[path.stem].split(".")[0].isdigit():
            raise WorkflowError(f"{path.name}: its docstring must begin with its number and title, as in `9. Title.`")
    return {name: found[name].rstrip(".") for name in sorted(found, key=lambda name: int(found[name].split(".")[0]))}


TITLES = figure_titles()
LOOKS = {
    "arms": {name: arm.model_dump(exclude={"run"}) for name, arm in GRID.arms.items()},
    "studies": {study.name: study.title or study.name for study in GRID.studies},
}
BENCHMARKS = sorted(str(path) for path in Path("results/benchmarks").glob("*/bench.csv"))
# What paper and pages call things. Sorted: the same names in another order make nothing anew.
NAMES = json.dumps(
    {
        "preset": GRID.preset,
        "tuned": TUNED,
        "title": GRID.title or GRID.preset,
        "figures": list(TITLES),
        "titles": TITLES,
        "labels": {name: arm.label for name, arm in GRID.arms.items()},
        "studies": LOOKS["studies"],
        "benchmarks": BENCHMARKS,
        "datasets": {name: record.label for name, record in datasets.SETS.items()},
    },
    sort_keys=True,
)


def run_json(name):
    """Of a run or a candidate, by name."""
    return f"{RESULTS}/{'runs' if name in RUNS else 'tuning'}/{name}/run.json"


def planned(wildcards):
    """The run or candidate that a training job's wildcards name."""
    name = (grid.CANDIDATE if "candidate" in wildcards.keys() else grid.NAME).format(**wildcards)
    if name not in RUNS and name not in CANDIDATES:
        raise WorkflowError(f"{name} is not a run of preset {GRID.preset}: the config lacks its study, arm or seed")
    return RUNS.get(name) or CANDIDATES[name]


def there(names):
    """run.json of each; with allow_missing, of those that are there."""
    return [path for path in map(run_json, names) if not GRID.allow_missing or os.path.exists(path)]


def finished_runs(wildcards):
    mend()
    return there(RUNS)


def choices(wildcards):
    """The choice that a run waits for, if its rate is not fixed."""
    mend()
    source = planned(wildcards).source
    if source is None:
        return []
    # After a checkpoint it is seen anew which jobs are to run: an unchanged choice retrains nothing.
    return checkpoints.choose.get(**dict(zip(("study", "dataset", "arm"), source.split("/")))).output


def rivals(wildcards):
    """What an arm's choice is made from: its candidates, or the table of choices that is given."""
    arm = grid.ARM.format(**wildcards)
    if GRID.tuned:
        return GRID.tuned
    return [run_json(name) for name in CANDIDATES if name.startswith(f"{arm}/")]


def all_rivals(wildcards):
    mend()
    return there(CANDIDATES)


def start_lines():
    """How many runs, on which devices, the estimated time and disk; and whether this machine is the one for it."""
    jobs = len(GPUS) * GRID.gpu_slots if ON_GPU else os.cpu_count()
    where = f"{len(GPUS)} GPUs" if ON_GPU else f"{os.cpu_count()} CPU cores"
    both = [*RUNS.values(), *CANDIDATES.values()]
    hours = sum(run.seconds("cuda" if ON_GPU else "cpu") for run in both) / jobs / 3600
    time = f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.0f} hours"
    disk = sum(run.study.cost.disk_mb for run in RUNS.values()) / 1000
    yield f"rankcollapse, preset {GRID.preset}: {GRID.title}"
    tuning = f", rates from {GRID.tuned}," if GRID.tuned else f" and {len(CANDIDATES)} for tuning" if CANDIDATES else ""
    yield f"  {len(RUNS)} training runs{tuning} on {where}: about {time} in all, {disk:.1f} GB of disk below {RESULTS}"
    precisions = sorted({run.config.precision for run in both})
    yield f"  Precision: {' and '.join(precisions)}" + (f", on {cpu.label()}" if DEVICE == "cpu" else "")
    if DEVICE == "cuda" and not GPUS:
        yield (
            "  No GPU here, and this grid is made for GPUs: on CPU cores take --configfile presets/quick.yaml (real "
            "CIFAR, small networks) or presets/demo.yaml (minutes, no download)."
        )
    idle = [arm for arm in GRID.arms if not any(arm in study.arms for study in GRID.studies)]
    if idle:
        yield f"  Arms of the config that no study of this preset runs: {', '.join(idle)}"


def edge_lines():
    """What to widen: the choices that lie at an end of the values tried."""
    if not os.path.exists(TUNED):  # not every target needs it
        return
    with open(TUNED, encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            if row.get("edge"):
                where = grid.ARM.format(**row)
                yield f"{TUNED}: the choice for {where} is the {row['edge']} tried: widen `tune` there, and run again"


def write_plan():
    """What the jobs read."""
    text = files.json_text(grid.plan(GRID))
    if not os.path.exists(PLAN) or Path(PLAN).read_bytes() != text.encode():
        files.write_text(PLAN, text)


def start():
    """Write the plan that the jobs read, and stop before any training if one of its runs cannot be had."""
    # By default at most 100 jobs start in a second, and to look again after that second Snakemake (9.27) sets a timer
    # whenever it looks, be it that a job has ended or that a timer has rung: a third of a core after 200 jobs of quick.
    workflow.scheduler.job_rate_limiter = None
    write_plan()
    python = warm_up()
    missing = [name for name in (*RUNS, *CANDIDATES) if not os.path.exists(run_json(name))]
    if not missing and not any(job.rule.name in ("train", "candidate") for job in workflow.dag.needrun_jobs()):
        return
    disk = sum(RUNS[name].study.cost.disk_mb for name in missing if name in RUNS)
    free = shutil.disk_usage(RESULTS).free / 1e6
    if free < disk:
        raise WorkflowError(
            f"{RESULTS} has {free:.3g} MB free, and this grid writes about {disk:.3g} MB: free space, or drop seeds"
        )
    if find_spec("torch"):  # in an environment with snakemake alone each job checks its own run
        command = [*python, "workflow/scripts/preflight.py", PLAN]
        env = {**os.environ, "PYTHONPATH": str(workflow.basedir)}
        done = subprocess.run(command, text=True, encoding="utf-8", stderr=subprocess.PIPE, env=env)
        said = done.stderr.strip()
        if "Traceback" in said:
            last = said.splitlines()[-1]
            raise WorkflowError(f"the planned runs cannot be checked ({last}): see that torch can be loaded here")
        if done.returncode:
            raise WorkflowError(said)


wildcard_constraints:
    study="[a-z0-9-]+",
    dataset="[a-z0-9]+",
    arm="[a-z0-9+-]+",
    seed="[0-9]+",
    candidate="[a-z0-9.+-]+",
    figure="|".join(TITLES),


if workflow.is_main_process:
    print(*start_lines(), sep="\n", file=sys.stderr)
