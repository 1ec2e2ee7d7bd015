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
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from test_workflow import ROOT, copy_project, overlay, planned, snakemake

PROFILE = ["--workflow-profile", "profiles/slurm"]
SQUEUE = ["--slurm-status-command", "squeue"]
SLURM = [*PROFILE, *SQUEUE, "--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "10"]
TINY = ["results/tiny/tables/runs.csv", "--configfile", "tests/tiny.yaml", "auto.yaml"]
LONG = ["--configfile", "tests/slurm/faults.yaml"]
# What a node with another processor and another Python would make of the grid by itself.
ELSEWHERE = """
import os
if "SLURM_JOB_ID" in os.environ:
    identity = lambda config, asked=None: "another"
    precision = lambda device, dataset: "bfloat16"
"""

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

    def text(self, path: str) -> str:
        found = self.folder / path
        return found.read_text(encoding="utf-8", errors="replace") if found.exists() else ""

    def run(self, command: str) -> str:
        return subprocess.run(shlex.split(command), env=self.env, capture_output=True, text=True, check=True).stdout

    def jobs(self, states: str = "all") -> dict[str, str]:
        """The comments of this call's jobs, which name a rule or a group, by the jobs' ids."""
        lines = self.run(f"squeue --noheader --states={states} --format=%i|%k|%Z").splitlines()
        rows = (line.split("|") for line in lines)
        return {job: comment for job, comment, folder in rows if folder == str(self.folder)}

    def asked(self) -> list[str]:
        """What SLURM knows of each."""
        return [self.run(f"scontrol show job {job}") for job in self.jobs()]

    def processes(self) -> dict[int, str]:
        """The commands of all that runs in the folder, by process id."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if os.readlink(process / "cwd") == str(self.folder):
                    found[int(process.name)] = (process / "cmdline").read_text(encoding="utf-8").replace("\0", " ")
        return found

    def wait(self, what: Callable):
        """What `what` returns, once that is true."""
        end = time.monotonic() + 400
        while not (found := what()):
            assert self.process.poll() is None, f"Snakemake has ended:\n{self.text('said.txt')[-3000:]}"
            assert time.monotonic() < end, f"waited in vain:\n{self.text('said.txt')[-3000:]}"
            time.sleep(0.3)
        return found

    def midway(self, count: int = 1) -> list[int]:
        """The processes of so many runs, once these have saved their state: they are held there."""

        def held() -> list[int]:
            found = []
            for pid, command in self.processes().items():
                out = re.search(r"python\S* -m rankcollapse train .* --out (\S+)", command)
                if out and not self.text(f"{out[1]}/run.json") and [*self.folder.glob(f"{out[1]}/state/*/step*.pt")]:
                    os.kill(pid, signal.SIGSTOP)
                    found.append(pid)
            return found if len(found) == count else []

        return self.wait(held)

    def daemon(self, name: str) -> int:
        """The process id of one of SLURM's."""
        return int(Path(self.env["SLURM_CONF"]).with_name(f"{name}.pid").read_text(encoding="ascii"))


# ---- what happens to a call ----


def scancel(call: Call) -> None:
    """While two runs train at once, each with its GPU: that is noted, for a test to judge."""
    environments = [Path(f"/proc/{pid}/environ").read_text(encoding="utf-8") for pid in call.midway(2)]
    call.seen = [re.search(r"\0CUDA_VISIBLE_DEVICES=([^\0]*)", text)[1] for text in environments]
    call.run(f"scancel {' '.join(call.jobs('running'))}")


def kill_training(call: Call) -> None:
    """Of the second run of a job, when the first has ended."""
    call.wait(lambda: [*call.folder.glob("results/faults/runs/shared/*/*/*/run.json")])
    os.kill(call.midway()[0], signal.SIGKILL)


def drain(call: Call) -> None:
    """A job of the only node ends while that is drained, and its retry waits until it is resumed."""
    call.midway()
    call.run("scontrol update nodename=b state=drain reason=test")
    call.run(f"scancel {' '.join(call.jobs('running'))}")
    call.wait(lambda: call.jobs("pending"))
    call.run("scontrol update nodename=b state=resume")


def lose_node(call: Call) -> None:
    """A node hangs, daemon and process, and is given up; its process goes on when a retry waits for it elsewhere."""
    (old,), (job,) = call.midway(), call.jobs("running")
    node = call.run(f"squeue --noheader --jobs={job} --format=%N").strip()
    os.kill(call.daemon(f"slurmd-{node}"), signal.SIGKILL)
    call.run(f"scontrol update nodename={node} state=down reason=test")
    call.wait(lambda: "is being written by another process: waiting" in call.text(LOG))
    os.kill(old, signal.SIGCONT)


def reach_wall_time(call: Call) -> None:
    """The run is held, as if it took long. Before its two minutes are over SLURM wakes it, with the SIGTERM to save."""
    call.midway()
    call.wait(lambda: "stopped at step" in call.text(LOG))


def preempt(call: Call) -> None:
    """By a job that comes first; the retry waits for its end."""
    call.midway()
    call.run("sbatch --partition=urgent --output=/dev/null --wrap 'sleep 3'")
    call.wait(lambda: call.jobs("preempted"))


def restart_slurmctld(call: Call) -> None:
    """All calls notice."""
    (pid,) = call.midway()
    os.kill(call.daemon("slurmctld"), signal.SIGTERM)
    time.sleep(5)
    call.run("slurmctld")
    os.kill(pid, signal.SIGCONT)


def kill_snakemake(call: Call) -> None:
    """While one of its jobs trains and one is queued; then it is called again."""
    call.midway()
    assert (len(call.jobs("running")), len(call.jobs("pending"))) == (1, 1)
    call.process.kill()
    call.process.wait()
    call.start()
    call.wait(lambda: "2 jobs of a Snakemake that was killed are cancelled" in call.text("said.txt"))


RUN, LOG = "results/faults/runs/{}/digits/bp/seed{}/run.json", "results/faults/logs/train/alone/digits/bp/seed0.log"
ONE, BOTH = [RUN.format("alone", 0)], [RUN.format("alone", seed) for seed in (0, 1)]
SHARED = [RUN.format("shared", seed) for seed in (0, 1)]
GPU, WHERE = "--set-resources train:gpu=1", "--default-resources slurm_partition="
WALL = "--set-resources train:runtime=2 --default-resources slurm_extra=\"'--signal=TERM@30'\""
# By name: what happens, the runs that are asked for, how often one of them is resumed, and arguments of the call.
FAULTS = {
    "scancel": (scancel, BOTH, 2, GPU),
    "training killed in a shared job": (kill_training, SHARED, 1, f"{GPU} --config tuned=tests/slurm/tuned.csv"),
    "node drained and resumed": (drain, ONE, 1, f"{WHERE}lone"),
    "node down, its process alive": (lose_node, ONE, 0, f"{WHERE}pair"),
    "wall time reached": (reach_wall_time, ONE, 1, WALL),
    "preempted": (preempt, ONE, 1, f"{WHERE}yielding"),
    "slurmctld restarted": (restart_slurmctld, ONE, 0, ""),
    "Snakemake killed": (kill_snakemake, BOTH, 1, f"{WHERE}narrow"),
}


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """The environment of whoever speaks to the SLURM of these tests."""
    folder, here = tmp_path_factory.mktemp("slurm"), ROOT / "tests/slurm"
    try:
        started = subprocess.run([here / "start.sh", folder], capture_output=True, text=True)
        if started.returncode == 77:
            pytest.skip(started.stdout.strip())
        assert started.returncode == 0, started.stdout + started.stderr
        yield {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}/bin:{os.environ['PATH']}"}
    finally:
        subprocess.run([here / "stop.sh", folder], check=True)


@pytest.fixture(scope="module")
def calls(env, tmp_path_factory):
    """The end of each call: its folder, and how long it took. They go on in the background."""
    root, going = tmp_path_factory.mktemp("calls"), []
    project = copy_project(root / "project")
    subprocess.run([sys.executable, "-m", "rankcollapse", "data", "digits"], cwd=project, check=True)
    overlay(project, "auto.yaml", run={"precision": "auto"})
    with (project / "rankcollapse/experiment/plan.py").open("a", encoding="utf-8") as module:
        module.write(ELSEWHERE)

    def end(name: str, arguments: list[str], happening: Callable = lambda call: None) -> tuple[Call, float]:
        start = time.monotonic()
        call = Call(project, root / re.sub(r"\W+", "-", name), env, arguments)
        going.append(call)
        happening(call)
        assert call.process.wait(600) == 0, call.text("said.txt")[-5000:]
        return call, time.monotonic() - start

    wanted = {name: ([*runs, *LONG, *SLURM, *shlex.split(by)], how) for name, (how, runs, _, by) in FAULTS.items()}
    wanted |= {"long, local": ([*BOTH, *LONG, "--cores", "1"],), "none": ([*TINY, *SLURM],)}
    wanted |= {"local": ([*TINY, "--cores", "1"],)}
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
    rows = [("fault", "seconds", "outcome")]
    yield rows
    if len(rows) == len(FAULTS) + 2:
        with (ROOT / "results/checks/slurm.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def digests(folder: Path) -> dict[str, str]:
    """Of what a run has left, but for its lock, and run.json and its copy, which have times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name.strip(".") not in ("run.json", "lock"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- how it ends ----


def test_an_undisturbed_grid_is_as_a_local_one_on_nodes_that_would_plan_another(calls, record):
    (call, seconds), (local, _) = calls["none"].result(), calls["local"].result()
    results, there = (each.folder / "results/tiny" for each in (call, local))
    for part in ("runs", "tuning"):
        assert digests(results / part) == digests(there / part)
        assert len(digests(results / part)) > 12
    times = "seconds train_seconds probe_seconds images_per_second memory_mb resumed started finished".split()  # noqa: SIM905
    for table in ("candidates.csv", "tuned.csv", *(f"tables/{path.name}" for path in there.glob("tables/*.csv*"))):
        ours, theirs = (pd.read_csv(each / table).drop(columns=times, errors="ignore") for each in (results, there))
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert planned(call.folder, *TINY[1:], TINY[0], *SLURM) == {}, "nothing that a node has recorded counts"
    record.append(("none", round(seconds), "as a local run"))


def test_short_runs_share_a_job_that_asks_for_one_and_light_rules_are_no_jobs(calls):
    (call, _), (shared, _) = calls["none"].result(), calls["training killed in a shared job"].result()
    names = Counter(comment.split("_wildcards")[0] for comment in call.jobs().values())
    assert names == {"rule_short-candidates_candidate": 1, "rule_short-runs_train": 1, "rule_train": 8}
    assert not any("gres" in job for job in call.asked()), "the grid is one for CPUs"
    one = ["TimeLimit=00:20:00", "TRES=cpu=1,mem=1000M,node=1,billing=1,gres/gpu=1", "TresPerJob=gres:gpu:1"]
    assert [re.findall(r"TimeLimit=\S+|TRES=\S+|TresPer\S+", job) for job in shared.asked()] == [one, one]


def test_what_is_not_shared_goes_on_at_once_and_each_job_sees_its_own_gpu(calls):
    call, _ = calls["scancel"].result()
    assert ["TresPerJob=gres:gpu:1" in job for job in call.asked()] == [True] * 4
    assert sorted(call.seen) == ["0", "1"]
    said = snakemake(call.folder, "-n", RUN.format("alone", 1), "--force", *LONG, *SLURM, "--config", "device=auto")
    assert " gpu=1," in said.stdout + said.stderr


def test_two_processes_of_one_allocation_with_two_gpus_have_one_each(env):
    claim = "from rankcollapse.experiment import machine; import time; a = machine.one_gpu(1); print(a.__enter__()); "
    one = shlex.join([sys.executable, "-c", f"{claim} time.sleep(5)"])
    command = ["srun", "--gres=gpu:2", "bash", "-c", f"{one} & {one} & wait"]
    said = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert sorted(said.stdout.split()) == ["0", "1"], said.stderr


@pytest.mark.parametrize(
    ("age", "how", "told"),
    [(300, [], "no one learns how jobs end: add --slurm-status-command squeue to the command"),
     (60, SQUEUE, "squeue shows a job for 60 s after its end, too short a time: SLURM needs accounting"),
     (None, SQUEUE, "there is no SLURM here, neither sinfo nor sbatch")],
)  # fmt: skip
def test_where_no_one_would_learn_how_jobs_end_the_call_stops_with_one_sentence(env, tmp_path, age, how, told):
    for command in ("bash", "sh", "which"):
        (tmp_path / command).symlink_to(shutil.which(command))
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho 'MinJobAge = {age} sec'\n", encoding="ascii")
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}:{env['PATH']}" if age else str(tmp_path)
    call = snakemake(copy_project(tmp_path / "p"), *TINY, *PROFILE, *how, env={**env, "PATH": path})
    assert call.returncode != 0
    assert told in call.stderr
    assert not re.search("Traceback|submitted", call.stderr)


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_a_run_is_as_a_local_one(fault, calls, record):
    (call, seconds), (local, _), times = calls[fault].result(), calls["long, local"].result(), 0
    for run in FAULTS[fault][1]:
        reference = Path(local.folder, run.replace("/shared/", "/alone/")).parent
        assert digests(Path(call.folder, run).parent) == digests(reference)
        resumed = json.loads(call.text(run))["resumed"]
        log = call.text(run.replace("/runs/", "/logs/train/").replace("/run.json", ".log"))
        assert ("resumed at step" in log) == (resumed > 0)
        times += resumed
    assert times == FAULTS[fault][2]
    record.append((fault, round(seconds), f"as a local run; resumes: {times}"))
