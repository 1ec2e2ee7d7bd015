"""The workflow on a real SLURM of this machine's own, as a user types it: undisturbed, and through faults that are
injected while a run trains, it ends with the bits of a local run.

All calls go on at once, each in a copy of the project. How they ended goes to results/checks/slurm.csv.
"""

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from test_workflow import FIGURES, ROOT, copy_project, snakemake

HERE = ROOT / "tests" / "slurm"
SLURM = "--workflow-profile profiles/slurm --slurm-init-seconds-before-status-checks 3 --latency-wait 10".split()  # noqa: SIM905

pytestmark = pytest.mark.slurm


class Call:
    """A call of Snakemake in a copy of a project."""

    def __init__(self, project: Path, folder: Path, env: dict[str, str], arguments: list[str]):
        self.folder, self.env = shutil.copytree(project, folder), env
        self.command = [sys.executable, "-m", "snakemake", *arguments]
        self.start()

    def start(self) -> None:
        with open(self.folder / "said.txt", "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, env=self.env, stdout=log, stderr=log)

    def said(self) -> str:
        return (self.folder / "said.txt").read_text(encoding="utf-8", errors="replace")

    def run(self, command: str) -> str:
        return subprocess.run(shlex.split(command), env=self.env, capture_output=True, text=True, check=True).stdout

    def jobs(self, states: str = "all") -> dict[str, str]:
        """The comments of this call's jobs, which name a rule or a group, by the jobs' ids."""
        lines = self.run(f"squeue --noheader --states={states} --format=%i|%k|%Z").splitlines()
        rows = (line.split("|") for line in lines)
        return {job: comment for job, comment, folder in rows if folder == str(self.folder)}

    def processes(self) -> dict[int, list[bytes]]:
        """The commands of all that runs in the folder, by process id."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if os.readlink(process / "cwd") == str(self.folder):
                    found[int(process.name)] = (process / "cmdline").read_bytes().split(b"\0")
        return found

    def training(self) -> list[int]:
        """The processes that train for this call."""
        train = [b"-m", b"rankcollapse", b"train"]
        return [pid for pid, command in self.processes().items() if command[1:4] == train]

    def wait(self, what: Callable, seconds: float = 400):
        """What `what` returns, once that is true."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert self.process.poll() is None, f"Snakemake has ended:\n{self.said()[-3000:]}"
            assert time.monotonic() < end, f"waited in vain:\n{self.said()[-3000:]}"
            time.sleep(0.3)
        return found

    def saved(self) -> set[Path]:
        """Where state has been saved."""
        return {path.parent for path in self.folder.glob("results/faults/runs/*/*/*/*/state/*/step*.pt")}

    def midway(self) -> None:
        """Until a run trains and has saved its state."""
        self.wait(lambda: self.saved() and self.training())

    def daemon(self, name: str) -> int:
        """The process id of one of SLURM's."""
        return int(Path(self.env["SLURM_CONF"]).with_name(f"{name}.pid").read_text(encoding="ascii"))


# ---- what happens to a call ----


def nothing(call: Call) -> None:
    pass


def scancel(call: Call) -> None:
    """While two runs train at once, each with its GPU: that is noted, for a test to judge."""
    call.wait(lambda: len(call.saved()) == len(call.training()) == 2)
    environments = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in call.training()]
    call.seen = [[word for word in words if word.startswith(b"CUDA_VISIBLE_DEVICES=")] for words in environments]
    call.asked = [call.run(f"scontrol show job {job}") for job in call.jobs("running")]
    call.run(f"scancel {' '.join(call.jobs('running'))}")


def kill_training(call: Call) -> None:
    """Of the second run of a job, when the first has ended."""
    call.wait(lambda: [*call.folder.glob("results/faults/runs/shared/*/*/*/run.json")])
    call.midway()
    os.kill(call.training()[0], signal.SIGKILL)


def drain(call: Call) -> None:
    """A job of the only node ends while that is drained, and its retry waits until it is resumed."""
    call.midway()
    call.run("scontrol update nodename=b state=drain reason=test")
    call.run(f"scancel {' '.join(call.jobs('running'))}")
    call.wait(lambda: call.jobs("pending"))
    call.run("scontrol update nodename=b state=resume")


def lose_node(call: Call) -> None:
    """A node hangs, daemon and process, and is given up; it is back when a retry has begun elsewhere: two writers."""
    call.midway()
    (old,), (job,) = call.training(), call.jobs("running")
    node = call.run(f"squeue --noheader --jobs={job} --format=%N").strip()
    os.kill(call.daemon(f"slurmd-{node}"), signal.SIGKILL)
    os.kill(old, signal.SIGSTOP)
    call.run(f"scontrol update nodename={node} state=down reason=test")
    call.wait(lambda: len(call.training()) == 2)
    os.kill(old, signal.SIGCONT)
    call.run(f"slurmd -N {node}")
    call.run(f"scontrol update nodename={node} state=resume")


def reach_wall_time(call: Call) -> None:
    """The run is held, as if it took long. Before its two minutes are over SLURM wakes it, with the SIGTERM to save."""
    log = call.folder / "results/faults/logs/train/alone/digits/bp/seed0.log"
    call.wait(lambda: log.exists() and re.search("step [1-9]", log.read_text(encoding="utf-8")))
    (pid,) = call.training()
    os.kill(pid, signal.SIGSTOP)
    call.wait(lambda: "stopped at step" in log.read_text(encoding="utf-8"))


def restart_slurmctld(call: Call) -> None:
    """All calls notice."""
    call.midway()
    os.kill(call.daemon("slurmctld"), signal.SIGTERM)
    time.sleep(5)
    call.run("slurmctld")


def kill_snakemake(call: Call) -> None:
    """While one of its jobs trains, held so as not to end meanwhile, and one is queued; then it is called again."""
    call.midway()
    os.kill(call.training()[0], signal.SIGSTOP)
    assert (len(call.jobs("running")), len(call.jobs("pending"))) == (1, 1)
    call.process.kill()
    call.process.wait()
    call.start()
    call.wait(lambda: "2 jobs of a Snakemake that was killed are cancelled" in call.said())


def preempt(call: Call) -> None:
    """By a job that comes first; the retry waits for its end."""
    call.midway()
    call.run("sbatch --partition=urgent --output=/dev/null --wrap 'sleep 3'")
    call.wait(lambda: call.jobs("preempted"))


def runs(study: str, *names: str) -> list[str]:
    return [f"results/faults/runs/{study}/digits/{name}/run.json" for name in names]


ONE, BOTH = runs("alone", "bp/seed0"), runs("alone", "bp/seed0", "bp/seed1")
SHORT = "--config save_minutes=60 --set-resources train:runtime=2 --default-resources slurm_extra='--signal=TERM@30'"
# By name: what happens, the runs that are asked for, whether one of them is resumed, and arguments of the call.
FAULTS = {
    "scancel": (scancel, BOTH, True, "--config device=auto"),
    "training killed in a shared job": (kill_training, runs("shared", "bp/seed0", "bp/seed1"), True, ""),
    "node drained and resumed": (drain, ONE, True, "--default-resources slurm_partition=lone"),
    # The first process may be the one that ends the run.
    "node down, its process alive": (lose_node, ONE, None, "--default-resources slurm_partition=pair"),
    "wall time reached": (reach_wall_time, ONE, True, SHORT),
    "preempted": (preempt, ONE, True, "--default-resources slurm_partition=yielding"),
    "slurmctld restarted": (restart_slurmctld, ONE, False, ""),
    "Snakemake killed": (kill_snakemake, BOTH, True, "--default-resources slurm_partition=narrow"),
}


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """The environment of whoever speaks to the SLURM of these tests."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        started = subprocess.run([HERE / "start.sh", folder], capture_output=True, text=True)
        if started.returncode == 77:
            pytest.skip(started.stdout.strip())
        assert started.returncode == 0, started.stdout + started.stderr
        found = {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        yield {**os.environ, **found, "CUDA_VISIBLE_DEVICES": "0"}  # what this machine has is no limit for the nodes
    finally:
        subprocess.run([HERE / "stop.sh", folder], check=True)


@pytest.fixture(scope="module")
def calls(env, tmp_path_factory):
    """The end of each call: its folder, and how long it took. They go on in the background."""
    root, going = tmp_path_factory.mktemp("calls"), []
    project = copy_project(root / "project")
    subprocess.run([sys.executable, "-m", "rankcollapse", "data", "digits"], cwd=project, check=True)

    def end(name: str, happening: Callable, arguments: list[str]) -> tuple[Call, float]:
        start = time.monotonic()
        call = Call(project, root / re.sub(r"\W+", "-", name), env, arguments)
        going.append(call)
        happening(call)
        assert call.process.wait(600) == 0, call.said()[-5000:]
        return call, time.monotonic() - start

    tiny, long = (["--configfile", f"tests/{name}.yaml"] for name in ("tiny", "slurm/faults"))
    wanted = {
        "local": (nothing, [*tiny, "--cores", "2"]),
        "long, local": (nothing, [*BOTH, *long, "--cores", "1"]),
        "none": (nothing, [*tiny, *SLURM]),
    }
    for name, (happening, targets, _, arguments) in FAULTS.items():
        wanted[name] = (happening, [*targets, *long, *SLURM, *arguments.split()])
    with ThreadPoolExecutor(len(wanted)) as pool:
        try:
            yield {name: pool.submit(end, name, *how) for name, how in wanted.items()}
        finally:
            for call in going:  # a cancelled Snakemake (9.27) can hang, in the lock that its handler of SIGTERM takes
                for pid in call.processes():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def record():
    """How each fault ended, as one file if all did."""
    rows = {}
    yield rows
    if len(rows) == len(FAULTS) + 1:
        path = ROOT / "results" / "checks" / "slurm.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("fault", "seconds", "outcome"), *rows.values()])


def digests(folder: Path) -> dict[str, str]:
    """Of what a run has left, but for run.json and its copy, which have times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name.strip(".") != "run.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- nothing happens ----


def test_an_undisturbed_grid_is_as_a_local_one(calls, record):
    (call, seconds), (local, _) = calls["none"].result(), calls["local"].result()
    results, there = (each.folder / "results" / "tiny" for each in (call, local))
    for part in ("runs", "tuning"):
        assert digests(results / part) == digests(there / part)
        assert len(digests(results / part)) > 12
    times = "seconds train_seconds probe_seconds images_per_second memory_mb resumed started finished".split()  # noqa: SIM905
    tables = [path.relative_to(there) for part in ("tables", "summary") for path in (there / part).glob("*.csv*")]
    for table in [table for table in tables if table.name != "cost.csv"]:
        ours, theirs = (pd.read_csv(each / table).drop(columns=times, errors="ignore") for each in (results, there))
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    for figure in FIGURES:
        assert len({(each.folder / f"figures/tiny/{figure}.svg").read_bytes() for each in (call, local)}) == 1
    record["none"] = ("none", round(seconds), "as a local run")


def test_short_runs_share_a_job_and_light_rules_are_none(calls):
    call, _ = calls["none"].result()
    arms = {f"{study.parent.parent.name}-digits-{study.name}" for study in call.folder.glob("results/tiny/runs/*/*/*")}
    assert len(arms) == 6
    shared = {f"rule_runs-{arm}_train" for arm in arms} | {"rule_tuning-mlp-digits-fa_candidate"}
    assert sorted(call.jobs().values()) == sorted(shared), "12 runs and 6 candidates, but 7 jobs"
    assert len(re.findall("^localrule figure:", call.said(), re.M)) == len(FIGURES)


def test_without_accounts_squeue_is_asked_and_that_is_said_before_the_first_job(calls):
    said = calls["none"].result()[0].said()
    assert said.index("sacct does not answer: squeue is asked how jobs ended") < said.index("has been submitted")


def stopped(folder: Path, path: str, env: dict[str, str]) -> str:
    """What a call says that must stop before its first job."""
    call = snakemake(copy_project(folder), *SLURM, "--configfile", "tests/tiny.yaml", env={**env, "PATH": path})
    assert call.returncode != 0
    assert "Traceback" not in call.stderr
    assert "submitted" not in call.stderr
    return call.stderr


def test_where_squeue_forgets_too_soon_the_call_stops_with_one_sentence(env, tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'MinJobAge = 60 sec'\n", encoding="ascii")
    (tmp_path / "scontrol").chmod(0o755)
    said = stopped(tmp_path / "project", f"{tmp_path}:{env['PATH']}", env)
    assert "sacct does not answer, and squeue shows a job for 60 s after its end, too short a time to learn" in said


def test_without_slurm_the_call_stops_with_one_sentence(env, tmp_path):
    for command in ("bash", "sh", "which"):
        (tmp_path / command).symlink_to(shutil.which(command))
    assert "there is no SLURM here, neither sinfo nor sbatch" in stopped(tmp_path / "project", str(tmp_path), env)


# ---- GPUs ----


def test_a_grid_for_cpus_asks_for_no_gpu(calls):
    call, _ = calls["none"].result()
    asked = [call.run(f"scontrol show job {job}") for job in call.jobs()]
    assert len(asked) == 7
    assert not any("gres" in job for job in asked)


def test_a_grid_for_gpus_asks_for_one_in_each_job_which_sees_its_own(calls):
    call, _ = calls["scancel"].result()
    assert ["TresPerJob=gres:gpu:1" in job for job in call.asked] == [True, True]
    assert sorted(call.seen) == [[b"CUDA_VISIBLE_DEVICES=0"], [b"CUDA_VISIBLE_DEVICES=1"]]


def test_a_gpu_that_slurm_gives_is_left_as_it_is(env):
    code = "import os; from rankcollapse import gpus; claim = gpus.claim(1); print(claim.__enter__(), os.environ[NAME])"
    command = ["srun", "--gpus=1", sys.executable, "-c", code.replace("NAME", "'CUDA_VISIBLE_DEVICES'")]
    alone = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert alone in ("None 0\n", "None 1\n")


# ---- faults ----


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_a_run_is_as_a_local_one(fault, calls, record):
    _, asked, resumes, _ = FAULTS[fault]
    (call, seconds), (local, _) = calls[fault].result(), calls["long, local"].result()
    times = 0
    for run in asked:
        reference = Path(local.folder, run.replace("/shared/", "/alone/")).parent
        assert digests(Path(call.folder, run).parent) == digests(reference)
        resumed = json.loads(Path(call.folder, run).read_text(encoding="utf-8"))["resumed"]
        log = run.replace("/runs/", "/logs/train/").replace("/run.json", ".log")
        assert ("resumed at step" in Path(call.folder, log).read_text(encoding="utf-8")) == (resumed > 0)
        times += resumed
    assert resumes in (None, times > 0)
    record[fault] = (fault, round(seconds), f"as a local run; resumes: {times}")
