"""What a process may use of its machine, and one GPU for each job."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from rankcollapse.experiment import machine
from rankcollapse.library import processor

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "label", "multiplies"),
    [("model name\t: A B\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", "A B, AVX512-bf16", True),
     ("model name\t: A B\nflags\t\t: avx512_bf16 amx_bf16 amx_tile\n", "A B, AMX", True),
     ("model name\t: A B\nflags\t\t: avx2 avx512f\n", "A B, AVX512", False),
     ("model name\t: A B\nflags\t\t: sse\n", "A B", False),
     ("processor\t: 0\nFeatures\t: fp asimd bf16\n", "CPU, bf16", True), ("", "CPU", False)],
)  # fmt: skip
def test_the_processor_is_told_by_make_and_instructions(monkeypatch, text, label, multiplies):
    monkeypatch.setattr(processor, "_cpuinfo", lambda: text)
    assert processor.label() == label
    assert processor.multiplies_bfloat16() is multiplies


def test_cores_are_those_of_the_affinity_and_of_the_control_group(monkeypatch, tmp_path):
    may, limit = os.sched_getaffinity(0), tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "Path", lambda path: limit)
    assert machine.cores() == len(may), "no control group"
    try:
        os.sched_setaffinity(0, {min(may)})
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, may)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(64)})
    for text, cores in {"max 100000": 64, "250000 100000": 2, "50000 100000": 1, "9900000 100000": 64}.items():
        limit.write_text(text, encoding="ascii")
        assert machine.cores() == cores


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [("", []), ("-1", []), ("NoDevFiles", []), ("0,1,x,2", ["0", "1"]), ("3, 5", ["3", "5"]), ("0,-1,1", ["0"]),
     ("GPU-8f2c-1,GPU-77,none", ["GPU-8f2c-1", "GPU-77"]), ("MIG-GPU-8f/1/0", ["MIG-GPU-8f/1/0"])],
)  # fmt: skip
def test_gpus_are_those_that_the_variable_lists_as_cuda_reads_it(monkeypatch, listed, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert machine.gpus() == gpus


def test_gpus_are_counted_with_nvidia_smi_where_no_variable_says_which(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listing = "GPU 0: A (UUID: x)\n  MIG 1g.10gb Device 0: (UUID: y)\nGPU 1: B (UUID: z)\n"
    monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=listing))
    assert machine.gpus() == ["0", "1"]

    def absent(*arguments, **options):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(machine.subprocess, "run", absent)
    assert machine.gpus() == []


# ---- one GPU each ----

CLAIM = """
import os, sys
from rankcollapse.experiment import machine
with machine.one_gpu(int(sys.argv[1])) as gpu:
    print(gpu, os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def claimant(tmp_path):
    """A function that starts a process which claims a GPU and holds it until its standard input is closed."""
    started = []

    def start(visible, slots=1, job=None):
        env = {key: value for key, value in os.environ.items() if key != "SLURM_JOB_ID"}
        env |= {"CUDA_VISIBLE_DEVICES": visible, "TMPDIR": str(tmp_path), **({"SLURM_JOB_ID": job} if job else {})}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", CLAIM, str(slots)], env=env, cwd=ROOT, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def admit(waiting, holding, count):
    """Move those that say which GPU they hold from `waiting` to `holding`: `count` will, and then no other does."""
    while ready := select.select([process.stdout for process in waiting], [], [], 300 if count > 0 else 0.7)[0]:
        for process in [process for process in waiting if process.stdout in ready]:
            waiting.remove(process)
            gpu, shown = process.stdout.readline().split()
            assert gpu == shown
            holding[process] = gpu
            count -= 1


@pytest.mark.parametrize(("slots", "job"), [(1, None), (2, "17")])
def test_processes_never_exceed_the_slots_of_two_gpus_and_all_have_their_turn(claimant, slots, job):
    """Even where the first to end is killed: a lock does not outlive its process."""
    waiting, holding, codes = [claimant("3,5", slots, job) for _ in range(2 * slots + 1)], {}, []
    while waiting or holding:
        admit(waiting, holding, min(len(waiting), 2 * slots - len(holding)))
        held = Counter(holding.values())
        assert held == {"3": slots, "5": slots} if waiting else max(held.values()) <= slots
        process = next(iter(holding))
        del holding[process]
        if not codes:
            process.kill()
        process.communicate(timeout=300)  # which closes its standard input
        codes.append(process.returncode)
    assert codes == [-signal.SIGKILL, *[0] * (2 * slots)]


def test_within_a_job_of_slurm_each_of_four_processes_has_a_gpu_of_its_own_and_another_job_is_not_in_the_way(claimant):
    """Two jobs on two machines, or with devices of their own, may list the same numbers."""
    together = [claimant("0,1,2,3", job="17") for _ in range(4)]
    assert {process.stdout.readline().split()[0] for process in together} == {"0", "1", "2", "3"}
    assert claimant("0,1,2,3", job="18").stdout.readline().split() == ["0", "0"]


def test_every_gpu_is_filled_before_one_is_shared(claimant):
    assert [claimant("0,1", slots=2).stdout.readline().split()[0] for _ in range(4)] == ["0", "1", "0", "1"]


@pytest.mark.parametrize(("slots", "listed"), [(0, "0,1"), (1, ""), (1, "-1"), (1, "NoDevFiles")])
def test_nothing_is_touched_without_slots_or_without_a_gpu(monkeypatch, tmp_path, slots, listed):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    with machine.one_gpu(slots) as gpu:
        assert gpu is None
        assert os.environ["CUDA_VISIBLE_DEVICES"] == listed
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_given_back_after_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for _ in range(2):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-8f/1/0")
        held = []
        with contextlib.suppress(KeyError), machine.one_gpu(1) as gpu:
            held += [gpu, os.environ["CUDA_VISIBLE_DEVICES"]]
            raise KeyError
        assert held == ["MIG-GPU-8f/1/0"] * 2
