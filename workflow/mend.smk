# Before the jobs are planned: what is damaged is to be made again, and the lock of a dead Snakemake goes. Snakemake
# itself looks at times alone, and at locks without asking whose they are.
from rankcollapse.experiment import lock, seals

RUNNING = Path(".snakemake", "running")  # a file per Snakemake that works here


@functools.cache
def mend():
    """Have the jobs run that make what is not as it was sealed. Called by the input functions, when there is a DAG."""
    if not ALONE:  # what another call is making is not sealed yet
        return
    if not workflow.dryrun:
        write_plan()
    digest = seals.Digests(f"{RESULTS}/.digests.json")
    found = [*seals.problems(RESULTS, (Path(run_json(name)) for name in (*RUNS, *CANDIDATES)), digest)]
    digest.save()
    for target, path, what in found[:20]:
        print(
            f"{path} is {what}{' since it was sealed' if what == 'altered' else ''}: it is made again", file=sys.stderr
        )
    if len(found) > 20:
        print(f"... and {len(found) - 20} more", file=sys.stderr)
    again = {str(target) for target, _, _ in found}
    if str(seals.manifest(RESULTS)) in again or not seals.manifest(RESULTS).exists():
        again |= {*rules.collect.output}  # without a seal nothing that is made of runs can be trusted
    workflow.dag.forcefiles |= again


def check_writable():
    """Stop with one sentence where outputs cannot be written: Snakemake would end in a traceback, in mid-way."""
    parts = (f"{RESULTS}/{part}" for part in ("tables", "summary", "pages"))
    for folder in (".", RESULTS, *parts, FIGURES, f"paper/{GRID.preset}"):
        if os.path.isdir(folder):
            try:
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as error:
                what = f"{folder} cannot be written to ({error.strerror})"
                raise WorkflowError(f"{what}: mend that, and run the same command again")


def clear_dead_locks():
    """Unlock this folder if every Snakemake that has worked here is dead; be known as one that does. Whether no other is alive here."""
    files.sweep(RUNNING)
    locks = [*Path(".snakemake", "locks").glob("*")]
    there = {path: lock.read(path) or {"host": "an unknown host"} for path in RUNNING.glob("[!.]*.json")}
    gone = [path for path in there if lock.dead(there[path]) or "pid" not in there[path]]
    if locks and there and len(gone) == len(there):
        print(f"{os.getcwd()} was locked by {lock.told(there[gone[-1]])}, which is dead: unlocked", file=sys.stderr)
        for path in locks:
            path.unlink(missing_ok=True)
    for path in gone:
        path.unlink(missing_ok=True)
    mine = RUNNING / f"{socket.gethostname()}-{os.getpid()}.json"
    files.write_json(mine, lock.this_process())
    atexit.register(mine.unlink, missing_ok=True)
    return not any(lock.dead(holder) is False for holder in there.values())


if workflow.is_main_process:
    check_writable()
ALONE = workflow.is_main_process and clear_dead_locks()
