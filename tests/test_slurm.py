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
from test_workflow import ROOT, copy_project, done, overlay, planned, snakemake

PROFILE, SQUEUE = ["--workflow-profile", "profiles/slurm"], ["--slurm-status-command", "squeue"]
SLURM = [*PROFILE, *SQUEUE, "--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "10"]
TINY = ["results/tiny/tables/runs.csv", "--configfile", "tests/tiny.yaml", "auto.yaml"]
LONG = ["--configfile", "tests/slurm/faults.yaml"]
TIMES = "seconds train_seconds probe_seconds images_per_second memory_mb resumed started finished".split()  # noqa: SIM905
# What a node with another processor and another Python would make of the grid by itself.
ELSEWHERE = """
if "SLURM_JOB_ID" in __import__("os").environ:
    identity, precision = lambda *config: "another", lambda *place: "bfloat16"
"""

pytestmark = pytest.mark.slurm


class Call:
    """A call of Snakemake in a copy of a project."""

    outcome = None  # in words, once it has been tested

    def __init__(self, project: Path, folder: Path, env: dict[str, str], arguments: list[str]):
        self.folder, self.env, self.began = shutil.copytree(project, folder), env, time.monotonic()
        self.command = [sys.executable, "-m", "snakemake", *arguments]
        self.start()

    def start(self) -> None:
        with (self.folder / "said.txt").open("a") as log:
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

    def asked(self, what: str) -> list[list[str]]:
        return [re.findall(what, self.run(f"scontrol show job {job}")) for job in self.jobs()]

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
        end = time.monotonic() + 900
        while not (found := what()):
            assert self.process.poll() is None, self.text("said.txt")[-3000:]
            assert time.monotonic() < end, self.text("said.txt")[-3000:]
            time.sleep(0.3)
        return found

    def held(self) -> list[int]:
        found = []  # those that train and have saved their state
        for pid, command in self.processes().items():
            out = re.match(r"\S*python\S* -m rankcollapse train .* --out (\S+)", command)
            if out and not self.text(f"{out[1]}/run.json") and [*self.folder.glob(f"{out[1]}/state/*/step*.pt")]:
                os.kill(pid, signal.SIGSTOP)
                found.append(pid)
        return found

    def midway(self, count: int = 1) -> list[int]:
        """The processes of so many runs, as soon as these have saved their state, when they are held."""
        return self.wait(lambda: len(found := self.held()) == count and found)

    def end_daemon(self, name: str, number: int) -> None:
        os.kill(int(Path(self.env["SLURM_CONF"]).with_name(f"{name}.pid").read_text(encoding="ascii")), number)


def scancel(call: Call) -> None:
    """While two runs train at once, each with its GPU: that is noted, for a test to judge."""
    environments = [Path(f"/proc/{pid}/environ").read_text(encoding="utf-8") for pid in call.midway(2)]
    call.seen = [re.search(r"\0CUDA_VISIBLE_DEVICES=([^\0]*)", text)[1] for text in environments]
    call.run(f"scancel {' '.join(call.jobs('running'))}")


def kill_training(call: Call) -> None:
    """Of the second run of a job, when the first has ended."""
    call.wait(lambda: [*call.folder.glob("results/faults/runs/shared/*/*/*/run.json")])
    os.kill(*call.midway(), signal.SIGKILL)


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
    call.end_daemon(f"slurmd-{node}", signal.SIGKILL)
    call.run(f"scontrol update nodename={node} state=down reason=test")
    call.wait(lambda: "is being written by another process: waiting" in call.text(LOG))
    os.kill(old, signal.SIGCONT)


def reach_wall_time(call: Call) -> None:
    """The run is held, as if it took long. Before three minutes are over SLURM wakes it, with the SIGTERM to save."""
    call.midway()
    call.wait(lambda: "stopped at step" in call.text(LOG))


def preempt(call: Call) -> None:
    """By a job that comes first; the retry waits for its end."""
    call.midway()
    call.run("sbatch --partition=urgent --output=/dev/null --wrap 'sleep 3'")
    call.wait(lambda: call.jobs("preempted"))


def restart_slurmctld(call: Call) -> None:
    """Which all calls notice."""
    (pid,) = call.midway()
    call.end_daemon("slurmctld", signal.SIGTERM)
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


LOG = "results/faults/logs/train/alone/digits/bp/seed0.log"
BOTH = [f"results/faults/runs/alone/digits/bp/seed{seed}/run.json" for seed in (0, 1)]
ONE, SHARED = BOTH[:1], [run.replace("alone", "shared") for run in BOTH]
GPU, WHERE = "--set-resources train:gpu=1", "--default-resources slurm_partition="
WALL = "--set-resources train:runtime=3 --default-resources slurm_extra=\"'--signal=TERM@30'\""
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
    """The calls, once they have ended: they go on in the background."""
    root, going = tmp_path_factory.mktemp("calls"), {}
    project = copy_project(root / "project")
    subprocess.run([sys.executable, "-m", "rankcollapse", "data", "digits"], cwd=project, check=True)
    overlay(project, "auto.yaml", seeds=[0], run={"precision": "auto"})
    with (project / "rankcollapse/experiment/plan.py").open("a", encoding="utf-8") as module:
        module.write(ELSEWHERE)

    def end(name: str, arguments: list[str], happening: Callable = lambda call: None) -> Call:
        call = going[name] = Call(project, root / re.sub(r"\W+", "-", name), env, arguments)
        happening(call)
        assert call.process.wait(1200) == 0, call.text("said.txt")[-5000:]
        call.seconds = round(time.monotonic() - call.began)
        return call

    wanted = {"none": ([*TINY, *SLURM],), "local": ([*TINY, "--cores", "1"],)}
    wanted |= {name: ([*runs, *LONG, *SLURM, *shlex.split(by)], how) for name, (how, runs, _, by) in FAULTS.items()}
    wanted["long, local"] = ([*BOTH, *LONG, "--cores", "1"],)
    with ThreadPoolExecutor(len(wanted)) as pool:
        try:
            yield {name: pool.submit(end, name, *how) for name, how in wanted.items()}
        finally:  # a cancelled Snakemake (9.27) can hang, in the lock that its handler of SIGTERM takes
            for pid in [pid for call in going.values() for pid in call.processes()]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    if all(name in going and going[name].outcome for name in ("none", *FAULTS)):
        rows = [(name, going[name].seconds, going[name].outcome) for name in ("none", *FAULTS)]
        with (ROOT / "results/checks/slurm.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("fault", "seconds", "outcome"), *rows])


def digests(folder: Path) -> dict[str, str]:
    """Of what a run has left, but for its lock, and run.json and its copy, which have times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name.strip(".") not in ("run.json", "lock"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_an_undisturbed_grid_is_as_a_local_one_on_nodes_that_would_plan_another(calls):
    call, local = calls["none"].result(), calls["local"].result()
    for part in ("results/tiny/runs", "results/tiny/tuning"):
        assert len(digests(local.folder / part)) >= 12
        assert digests(call.folder / part) == digests(local.folder / part)
    ours, theirs = (pd.read_csv(each.folder / TINY[0]).drop(columns=TIMES) for each in (call, local))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert planned(call.folder, *TINY[2:], *SLURM, TINY[0]) == {}, "of the nodes nothing is planned anew"
    call.outcome = "as a local run"


def test_a_job_asks_for_what_one_run_needs_and_short_runs_share_one(calls):
    call, shared, two = (calls[name].result() for name in ("none", "training killed in a shared job", "scancel"))
    names = Counter(comment.split("_wildcards")[0] for comment in call.jobs().values())
    assert names == {"rule_short-candidates_candidate": 1, "rule_short-runs_train": 1, "rule_train": 4}
    assert call.asked("gres") == [[]] * 6, "the grid is one for CPUs"
    one = ["TRES=cpu=1,mem=1000M,node=1,billing=1", "TresPerJob=gres:gpu:1"]
    assert two.asked(r"TRES=\S+|TresPer\S+") == [one] * 4
    assert shared.asked(r"TimeLimit=\S+|TRES=\S+|TresPer\S+") == [["TimeLimit=00:20:00", *one]] * 2, "the time of two"
    assert len({*two.seen}) == 2, "both at once, each with its own"
    assert " gpu=1," in done(call.folder, "-nF", *LONG, *SLURM, "--config", "device=auto", "--", *ONE)


def test_two_processes_of_one_allocation_with_two_gpus_have_one_each(env):
    code = "import time; from rankcollapse.experiment.machine import one_gpu as o; c = o(1); print(c.__enter__())"
    one = shlex.join([sys.executable, "-c", f"{code}; time.sleep(5)"])
    command = ["srun", "--gres=gpu:2", "bash", "-c", f"{one} & {one} & wait"]
    assert len({*subprocess.check_output(command, env=env, cwd=ROOT, text=True).split()}) == 2


@pytest.mark.parametrize(
    ("age", "how", "told"),
    [(300, [], "no one learns how jobs end: add --slurm-status-command squeue to the command"),
     (60, SQUEUE, "squeue shows a job for 60 s after its end, too short a time: SLURM needs accounting"),
     (None, SQUEUE, "there is no SLURM here, no command sbatch")],
)  # fmt: skip
def test_where_no_one_would_learn_how_jobs_end_the_call_stops_with_one_sentence(env, tmp_path, age, how, told):
    for command in ("bash", "sh", "which"):
        (tmp_path / command).symlink_to(shutil.which(command))
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho 'MinJobAge = {age} sec'\n", encoding="ascii")
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}:{env['PATH']}" if age else str(tmp_path)
    call = snakemake(copy_project(tmp_path / "p"), *TINY[:-1], *PROFILE, *how, env={**env, "PATH": path})
    assert call.returncode != 0
    assert told in call.stderr
    assert not re.search("Traceback|been submitted", call.stderr)


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_a_run_is_as_a_local_one(fault, calls):
    call, local, times = calls[fault].result(), calls["long, local"].result(), 0
    for run in FAULTS[fault][1]:
        assert digests((call.folder / run).parent) == digests((local.folder / run.replace("shared", "alone")).parent)
        resumed = json.loads(call.text(run))["resumed"]
        log = call.text(run.replace("/runs/", "/logs/train/").replace("/run.json", ".log"))
        assert ("resumed at step" in log) == (resumed > 0)
        times += resumed
    assert times == FAULTS[fault][2]
    call.outcome = f"as a local run; resumes: {times}"
