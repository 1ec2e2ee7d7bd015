# What all stages share: the grid and what is planned of it, how jobs are called, and what is seen to before the first.
import argparse
import csv
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

HERE = Path(workflow.basedir)
sys.path.insert(0, str(HERE))  # the package stands beside the Snakefile; under conda nothing has installed it
os.environ.update(PYTHONNOUSERSITE="1")  # in an environment of conda the user's own packages would hide its own

from filelock import FileLock, Timeout

from rankcollapse.errors import InputError
from rankcollapse.experiment import datasets, files, folder, grid, machine, plan
from rankcollapse.library import processor

# For a report Snakemake (9.27) asks for the sizes of all inputs and takes none: a screenful of complaints.
warnings.filterwarnings("ignore", r"coroutine 'InputFiles\._predicated_size_files", RuntimeWarning)

# Snakemake does not know what is asked for when it reads this. Two things must be: whether it is `render`, which has no
# other rules, and whether the call only asks, as a dry run does, and so may change nothing.
RENDER_ONLY = "render" in sys.argv[1:]
ONLY_ASKS = r"--(dry-?run|lint|report|summary|list-.*|dag|rulegraph)|-[a-zA-Z]*n[a-zA-Z]*"
ONLY_ASKS = any(re.fullmatch(ONLY_ASKS, word) for word in sys.argv[1:])
SAID = {"true": True, "false": False}  # by `--config key=true`, which Snakemake takes for text


def refused(function, *arguments):
    """What a function of the package returns; its word on bad input as Snakemake shows it."""
    try:
        return function(*arguments)
    except InputError as error:
        raise WorkflowError(str(error))


GRID = refused(
    grid.grid, {key: SAID.get(value, value) if isinstance(value, str) else value for key, value in config.items()}
)
RESULTS, FIGURES = f"results/{GRID.preset}", f"figures/{GRID.preset}"
PLAN = f"{RESULTS}/plan.json"  # made by no job; training is not to wait for it, nor to run again for it
TUNED = GRID.tuned or f"{RESULTS}/tuned.csv"
TABLES = ["runs.csv", "epochs.csv", "ranks.csv.gz", "alignment.csv.gz", "norms.csv.gz"]
TABLES = [f"{RESULTS}/tables/{name}" for name in TABLES]
CHOSEN = [] if GRID.tuned else [TUNED, f"{RESULTS}/candidates.csv"]  # what tuning makes
if RENDER_ONLY:
    CHOSEN = [path for path in CHOSEN if os.path.exists(path)]
READY = "data/ready"
KEPT = f"{RESULTS}/.kept"  # with keep: the tables as they are before a job, which Snakemake begins by deleting them

GPUS = machine.gpus()
QUEUED = workflow.nodes  # jobs that a cluster has at once; None where they run here. The executor is not yet known
DEVICE = GRID.device if GRID.device != "auto" else "cuda" if GPUS or QUEUED else "cpu"
CANDIDATES = {run.name: run for run in refused(plan.candidates, GRID, DEVICE)}
RUNS = {run.name: run for run in refused(plan.runs, GRID, DEVICE, {})}
# A seed of all arms before the next, and arms in the order of the config: a grid that is stopped is worth something.
ORDER = sorted(RUNS, key=lambda name: GRID.seeds.index(RUNS[name].config.seed))
PRIORITIES = {name: len(ORDER) - i for i, name in enumerate(ORDER)}
SETS = sorted({run.config.dataset for run in RUNS.values()})
if GRID.tuned and not RENDER_ONLY:
    refused(plan.choices, GRID, GRID.tuned, True)


def ours(*names):
    """Files of the repository, from the folder that this is called in."""
    return [name if HERE == Path.cwd() else str(HERE / name) for name in names]


# ---- how jobs are called ----

IN_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
if IN_CONDA and shutil.which("conda") is None:
    raise WorkflowError(
        "--use-conda needs the command conda, which is not on this machine: either install it (Miniforge will do), "
        "or leave --use-conda out and run in the .venv that `make` creates (.venv/bin/snakemake --cores all)."
    )
named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
named.add_argument("--workflow-profile", default="none")
PROFILE = named.parse_known_args()[0].workflow_profile
if PROFILE != "none" and not os.path.exists(PROFILE):  # Snakemake would go on without it, on the machine that submits
    raise WorkflowError(
        f"--workflow-profile is {PROFILE!r}, which does not exist: it must be a folder, as profiles/slurm"
    )


def quoted(text):
    """For the shell, in a command that is formatted."""
    return shlex.quote(str(text)).replace("{", "{{").replace("}", "}}")


PREFIX = f"set -euo pipefail; export PYTHONPATH={quoted(HERE)}${{{{PYTHONPATH:+:$PYTHONPATH}}}}; "
if not IN_CONDA:  # `python` is the one that runs snakemake, whether or not its environment is activated
    PREFIX += f"export PATH={quoted(os.path.dirname(sys.executable))}:$PATH; "
# On SIGTERM training saves its state: the shell and the writer of its log wait for it.
PREFIX += "trap : TERM; tee() {{ trap '' TERM; command tee \"$@\"; }}; "
# No part of a command, which they would change: what is trained does not depend on them.
PREFIX += f"export THREADS={GRID.threads} FRESH={'--fresh' if GRID.fresh else ''} KEEP={quoted(f'--keep {KEPT}') if GRID.keep else ''}; "
PREFIX += f"export DATA_DIR={quoted(GRID.data_dir)} NO_DOWNLOAD={'' if GRID.download else '--no-download'}; "
shell.prefix(PREFIX)


def warm_up():
    """From here on jobs of a CPU preset are forks of a process that has loaded their libraries, see warm.py.

    Not on a GPU, whose driver forbids forks, nor within conda, where jobs have another Python. Returns Python's command.
    """
    if IN_CONDA or DEVICE == "cuda" or not workflow.local_exec:
        return [sys.executable]
    sys.path.insert(0, str(HERE / "workflow"))
    import warm

    command = warm.start(GRID.threads)
    if command:
        shell.prefix(PREFIX + f"python() {{{{ command {' '.join(map(quoted, command))} \"$@\"; }}}}; ")
    return command or [sys.executable]


# ---- what is planned, and what is made of it ----


def made(name):
    """run.json of a run or a candidate, by name."""
    return f"{RESULTS}/{'runs' if name in RUNS else 'tuning'}/{name}/{folder.RESULT}"


def planned(wildcards):
    """The run or candidate that a training job's wildcards name."""
    name = (plan.CANDIDATE if "candidate" in wildcards.keys() else plan.NAME).format(**wildcards)
    if name not in RUNS and name not in CANDIDATES:
        raise WorkflowError(f"{name} is not a run of preset {GRID.preset}: the config lacks its study, arm or seed")
    return RUNS.get(name) or CANDIDATES[name]


def resolved():
    """The runs with what was chosen for them, as far as the table of choices is there: so the plan has them."""
    return _resolved(os.stat(TUNED).st_mtime_ns if os.path.exists(TUNED) else None)


@functools.lru_cache(maxsize=1)
def _resolved(written):
    chosen = refused(plan.choices, GRID, TUNED) if written else {}
    runs = refused(plan.runs, GRID, DEVICE, chosen)
    if ALONE and not ONLY_ASKS:
        plan.write(PLAN, GRID, DEVICE, READY, candidates=[*CANDIDATES.values()], runs=runs)
    return {run.name: run for run in runs}


def identity(wildcards):
    """Of a run or candidate: it is trained again when this changes, and for nothing else."""
    return {**CANDIDATES, **resolved()}[planned(wildcards).name].identity


def wanted(runs, table):
    """run.json of each; with allow_missing of those that are there, with keep of those that the table does not have."""
    names = [name for name in runs if not GRID.allow_missing or os.path.exists(made(name))]
    if not GRID.keep:
        return [made(name) for name in names]
    place = f"{RESULTS}/tables" if table == "runs.csv" else RESULTS
    there = plan.standing(f"{place if ONLY_ASKS else KEPT}/{table}")  # who only asks has kept none
    old = [name for name in runs if name in there and there[name] != runs[name].identity]
    if old:
        told = f"{', '.join(old[:5])}{' and others' if len(old) > 5 else ''}"
        print(f"{table} has {len(old)} under another identity, which are made again: {told}", file=sys.stderr)
    return [made(name) for name in names if name not in there or there[name] != runs[name].identity]


# ---- what the jobs take ----


def trained(wildcards):
    """The converted set that a run trains on. Not for its time: a set converted anew is the same set."""
    return ancient(expand(f"{READY}/{{set}}/{{array}}", set=wildcards.dataset, array=datasets.ARRAYS))


def threads(wildcards):
    """CPU threads of a training job. On GPUs of this machine its share of the cores, so that no more run than fit."""
    places = len(GPUS) * GRID.gpu_slots if DEVICE == "cuda" and workflow.local_exec else 0
    return max(GRID.threads, machine.cores() // places) if places else GRID.threads


def short(wildcards):
    """The group of a run that takes minutes: on a cluster such share a job, one after the other.

    All of a group must wait or run when the checkpoint is done: Snakemake 9.27 forms groups anew then, and mixes up what
    runs with what waits. So a run of a fixed rate, which does not wait for it, is a job of its own.
    """
    run = planned(wildcards)
    early = not run.candidate and run.rate == "fixed" and not GRID.tuned
    if workflow.local_exec or early or run.seconds(DEVICE) > 300:
        return None
    return "short-candidates" if run.candidate else "short-runs"


def choices(wildcards):
    """The table that has the rate of a run, if it is not fixed."""
    if planned(wildcards).rate == "fixed":
        return []
    return ancient(GRID.tuned or checkpoints.tune.get().output[1])  # not for its time: for what it says


def finished_runs(wildcards):
    """run.json of the runs that are to be made, or are there."""
    if GRID.keep and CANDIDATES:
        checkpoints.tune.get()  # their identities are known then
    return wanted(resolved(), "runs.csv")


def begun_candidates(wildcards):
    """run.json of those that have a folder: a damaged one is made again, though the tables that were made of it stand.

    With keep also of those that the kept table does not have, for the same reason: it stands when a part of a grid is done.
    """
    begun = [path for path in map(made, CANDIDATES) if os.path.isdir(os.path.dirname(path))]
    return [*dict.fromkeys([*begun, *(wanted(CANDIDATES, "candidates.csv") if GRID.keep else [])])]


# ---- before the first job ----


def start_lines():
    """How many runs, on which devices, the estimated time and disk; and whether this machine is the one for it."""
    jobs, where = machine.cores(), f"{machine.cores()} CPU cores"
    if DEVICE == "cuda" and GPUS:
        jobs, where = len(GPUS) * GRID.gpu_slots, f"{len(GPUS)} GPUs"
    if QUEUED:
        jobs, where = QUEUED, f"a cluster, {QUEUED} jobs at once"
    both = [*RUNS.values(), *CANDIDATES.values()]
    hours = sum(run.seconds(DEVICE) for run in both) / jobs / 3600
    time = f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.0f} hours"
    disk = sum(run.study.cost.disk_mb for run in RUNS.values()) / 1000
    yield f"rankcollapse, preset {GRID.preset}: {GRID.title}"
    tuning = f", rates from {GRID.tuned}," if GRID.tuned else f" and {len(CANDIDATES)} for tuning" if CANDIDATES else ""
    yield f"  {len(RUNS)} training runs{tuning} on {where}: about {time} in all, {disk:.1f} GB of disk below {RESULTS}"
    precisions = sorted({run.config.precision for run in both})
    yield f"  Precision: {' and '.join(precisions)}" + (f", on {processor.label()}" if DEVICE == "cpu" else "")
    if GRID.device == "auto" and DEVICE == "cpu":
        yield (
            "  No GPU here, and this grid is made for GPUs: on CPU cores take --configfile presets/quick.yaml (real "
            "CIFAR, small networks) or presets/demo.yaml (minutes, no download)."
        )


def edge_lines():
    """What to widen: the choices that lie at an end of the values tried."""
    if RENDER_ONLY or not os.path.exists(TUNED):  # not every target needs it
        return
    with open(TUNED, encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            if row.get("edge"):
                where = plan.ARM.format(**row)
                yield f"{TUNED}: the choice for {where} is the {row['edge']} tried: widen `tune` there, and run again"


def alone():
    """Whether no other Snakemake works in this folder. If so, what one that was killed has locked is unlocked."""
    global lock
    lock = FileLock(".snakemake/rankcollapse.lock")  # held by the system for as long as this process lives
    os.makedirs(".snakemake", exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    if os.path.isdir(".snakemake/locks") and os.listdir(".snakemake/locks"):
        with tempfile.NamedTemporaryFile("w", suffix=".smk") as nothing:
            command = [sys.executable, "-m", "snakemake", "--unlock", "--snakefile", nothing.name, "--profile", "none"]
            subprocess.run([*command, "--workflow-profile", "none"], check=True, capture_output=True)
        print(f"{os.getcwd()} was locked by a Snakemake that is dead: unlocked", file=sys.stderr)
    return True


def check_writable():
    """Stop with one sentence where outputs cannot be written: Snakemake would end in a traceback, in mid-way."""
    parts = (f"{RESULTS}/{part}" for part in ("tables", "summary", "pages"))
    for place in (".", RESULTS, *parts, FIGURES, f"paper/{GRID.preset}"):
        if os.path.isdir(place):
            try:
                tempfile.TemporaryFile(dir=place).close()
            except OSError as error:
                what = f"{place} cannot be written to ({error.strerror})"
                raise WorkflowError(f"{what}: mend that, and run the same command again")


def mend():
    """Move aside what is not as it was sealed, so that it is made again: Snakemake itself looks at times alone."""
    digest = files.Digests(f"{RESULTS}/.digests.json")
    trained = [] if RENDER_ONLY else [Path(made(name)) for name in (*RUNS, *CANDIDATES)]
    found = [*files.problems(RESULTS, trained, digest)]
    digest.save()
    for target, path, what in found:
        altered = f"{what} since it was sealed" if what == "altered" else what
        print(f"{path} is {altered}: it is made again", file=sys.stderr)
    if ONLY_ASKS:
        return
    for target in {target for target, _, _ in found if target.exists()}:
        try:
            os.replace(target, f"{target}.damaged")
        except OSError as error:
            what = f"{target} cannot be moved aside ({error.strerror})"
            raise WorkflowError(f"{what}: mend that, and run the same command again")
    tables = [Path(table) for table in (*TABLES, f"{RESULTS}/candidates.csv") if os.path.exists(table)]
    together = all(os.path.exists(table) for table in TABLES)  # or those kept would be of several calls
    for table in tables if GRID.keep else ():
        if together or table.name == "candidates.csv":
            files.write_bytes(f"{KEPT}/{table.name}", table.read_bytes())
    if not RENDER_ONLY and not files.manifest(RESULTS).exists() and all(os.path.exists(made(name)) for name in RUNS):
        for table in tables:  # sealed by nothing yet, and made again of runs that all are there
            table.unlink()


def start():
    """Stop before any training if one of the planned runs cannot be had."""
    python, jobs = warm_up(), workflow.dag.needrun_jobs()
    if not any(job.rule.name in ("train", "candidate") for job in jobs):
        return
    disk = sum(run.study.cost.disk_mb for name, run in RUNS.items() if not os.path.exists(made(name)))
    free = shutil.disk_usage(RESULTS).free / 1e6
    if free < disk:
        raise WorkflowError(
            f"{RESULTS} has {free:.3g} MB free, and this grid writes about {disk:.3g} MB: free space, or drop seeds"
        )
    if find_spec("torch"):  # in an environment with snakemake alone each job checks its own run
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        command = [*python, "-m", "rankcollapse", "check", PLAN]
        done = subprocess.run(command, text=True, encoding="utf-8", stderr=subprocess.PIPE, env=environment)
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise WorkflowError(f"the planned runs cannot be had: {said[0]}")


wildcard_constraints:
    study="[a-z0-9-]+",
    dataset="[a-z0-9]+",
    arm="[a-z0-9+-]+",
    seed="[0-9]+",
    candidate="[a-z0-9.+-]+",


ALONE = False
if workflow.is_main_process:
    print(*start_lines(), sep="\n", file=sys.stderr)
    check_writable()
    ALONE = alone()
if ALONE:  # before jobs are planned
    mend()
if not RENDER_ONLY:
    resolved()
