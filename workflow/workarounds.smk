# What Snakemake and its SLURM executor do not do by themselves. Each part says what of which version it works around,
# and is off by itself for others.
import asyncio
import re
from importlib.metadata import PackageNotFoundError, version


def is_version(package, start):
    """Whether this version of a package is there."""
    try:
        return f"{version(package)}.".startswith(f"{start}.")
    except PackageNotFoundError:
        return False


def without_timers():
    """Snakemake 9.27 starts at most 100 jobs in a second, a limit that no option takes away. To look again after that
    second it sets a timer whenever it looks, be it that a job has ended or that a timer has rung: a third of a core
    after 200 jobs of quick.
    """
    if is_version("snakemake", "9.27"):
        workflow.scheduler.job_rate_limiter = None


def patient(ask):
    """How jobs are, by `ask` of the SLURM executor (2.8), which waits for ever where it must not: for all its jobs, which
    it forgets, if SLURM does not answer, as in a restart; and for one that is preempted, as if SLURM were to requeue it.
    """

    async def asked(command, logger):
        while (answer := await ask(command, logger)) == (None, None):
            await asyncio.sleep(10)
        found, seconds = answer
        return {job: "CANCELLED" if state == "PREEMPTED" else state for job, state in found.items()}, seconds

    return asked


def with_slurm():
    """Before the first job: see that SLURM will tell how jobs end, and cancel those of a Snakemake that was killed."""
    settings = workflow.executor_settings
    if workflow.local_exec or not hasattr(settings, "status_command"):  # another executor
        return
    if shutil.which("sbatch") is None:
        raise WorkflowError("there is no SLURM here, no command sbatch: call this where jobs are submitted")
    shown = re.search(r"MinJobAge *= *([0-9]+)", told("scontrol", "show", "config"))
    shown = int(shown[1]) if shown else 0
    if not told("sacct", "--noheader"):
        what = "sacct does not answer, so that no one learns how jobs end"
        if shown < max(200, 3 * settings.init_seconds_before_status_checks):  # asked every 3 minutes at the least
            raise WorkflowError(
                f"{what}, and squeue shows a job for {shown} s after its end, too short a time: SLURM needs accounting "
                "(slurmdbd), or a MinJobAge of 300"
            )
        if settings.status_command == "sacct":
            raise WorkflowError(f"{what}: add --slurm-status-command squeue to the command")
    if is_version("snakemake-executor-plugin-slurm", "2.8"):
        import snakemake_executor_plugin_slurm as executor

        executor.get_min_job_age = lambda: shown  # asked anew while slurmctld is away, it would turn to sacct
        executor.query_job_status = patient(executor.query_job_status)
    # No other Snakemake works here: what still runs in this folder under our name is nobody's.
    jobs = [line.split(maxsplit=2) for line in told("squeue", "--me", "--noheader", "--format=%i %j %Z").splitlines()]
    prefix = f"{settings.jobname_prefix}_"
    left = [job for job, name, where in filter(None, jobs) if name.startswith(prefix) and where == os.getcwd()]
    if ALONE and left:
        print(f"{len(left)} jobs of a Snakemake that was killed are cancelled", file=sys.stderr)
        told("scancel", *left)


def told(*command):
    """What a command prints, and a line's end; nothing if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout + "\n"
    except (OSError, subprocess.SubprocessError):
        return ""
