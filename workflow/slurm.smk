# What a cluster needs and one machine does not: what a job asks for, which runs share a job, and SLURM's own ways.
import asyncio

SHARED = 1800  # estimated seconds of work up to which the runs of an arm share a job, so as not to flood a queue


# On the machine that submits: they are light, and where nodes have no network it has.
localrules:
    all,
    data,
    choose,
    collect,
    summarise,
    figure,
    pages,
    paper,
    seal,


if not GRID.tuned:

    localrules:
        tuned,


# In each job, not in all: what the machine that submits has is no limit.
resource_scopes:
    gpu="local",


def gpus_asked(wildcards):
    """GPUs of a training job. The nodes of a cluster have some, whatever the machine that submits has."""
    return int(DEVICE == "cuda" if workflow.non_local_exec else ON_GPU)


def shared_job(wildcards):
    """The group of a run or candidate: those of an arm, if they are short, are one job; None if they are not.

    Each arm has a group of its own name: runs of two would wait for each other's choices, and Snakemake 9.27 mixes up
    what runs with what waits, in groups of one name, when a checkpoint has it look again.
    """
    kind = "tuning" if "candidate" in wildcards.keys() else "runs"
    if workflow.local_exec or not workflow.is_main_process:
        return None
    if seconds_of_arms()[kind, grid.ARM.format(**wildcards)] > SHARED:
        return None
    # What one job may have: so its runs take turns, with the GPU and the memory of one, and their times add up.
    workflow.register_resource("_cores", GRID.threads)
    name = "-".join((kind, wildcards.study, wildcards.dataset, wildcards.arm))
    workflow.parent_groupids[name] = "arm"  # the name by which the profile says how many may share a job
    return name


@functools.cache
def seconds_of_arms():
    """The estimated work of an arm's runs, and of its candidates."""
    found = {}
    for kind, runs in (("runs", RUNS), ("tuning", CANDIDATES)):
        for run in runs.values():
            key = kind, grid.ARM.format(**run.place)
            found[key] = found.get(key, 0) + run.seconds(DEVICE)
    return found


def meet_slurm():
    """Before the first job: see that SLURM will tell how jobs end, and cancel those of a Snakemake that was killed."""
    settings = workflow.executor_settings
    if not hasattr(settings, "status_command"):  # another executor
        return
    if settings.status_command is None:
        raise WorkflowError(
            "there is no SLURM here, neither sinfo nor sbatch: call this on a machine that submits to it"
        )
    import snakemake_executor_plugin_slurm as executor

    remembered = executor.get_min_job_age() or 0
    if settings.status_command == "sacct" and not tells(["sacct", "--noheader"]):
        if remembered < max(200, 3 * settings.init_seconds_before_status_checks):  # it asks every 3 minutes at least
            raise WorkflowError(
                f"sacct does not answer, and squeue shows a job for {remembered} s after its end, too short a time to "
                "learn how it ended: SLURM needs accounting (slurmdbd), or a MinJobAge of 300"
            )
        print("sacct does not answer: squeue is asked how jobs ended", file=sys.stderr)
        settings.status_command = "squeue"
    if settings.status_command == "squeue":
        executor.get_min_job_age = lambda: remembered  # asked anew while slurmctld is away, it would turn to sacct
    executor.query_job_status = states(executor.query_job_status)
    last = Path(RESULTS, ".slurm")  # what the jobs of the last call are named
    left = tells(["squeue", "--noheader", "--format=%i", f"--name={last.read_text()}"]).split() if last.exists() else []
    if left:
        print(f"{len(left)} jobs of a Snakemake that was killed are cancelled", file=sys.stderr)
        tells(["scancel", *left])
    files.write_text(last, workflow.scheduler._executor.run_uuid)


def tells(command):
    """What a command prints, and a line's end; nothing if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout + "\n"
    except (OSError, subprocess.SubprocessError):
        return ""


def states(ask):
    """How jobs are, by `ask` of the executor (2.8), which waits for ever where it must not: for all its jobs, which it
    forgets, if SLURM does not answer, as in a restart; and for one that is preempted, as if SLURM were to requeue it.
    """

    async def asked(command, logger):
        while (answer := await ask(command, logger)) == (None, None):
            await asyncio.sleep(10)
        found, seconds = answer
        return {job: "CANCELLED" if state == "PREEMPTED" else state for job, state in found.items()}, seconds

    return asked
