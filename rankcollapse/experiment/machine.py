"""What a process may use of this machine, found without loading torch: cores, GPUs, a GPU for one job."""

import itertools
import math
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

GPU = re.compile(r"\s*(\d+|(GPU|MIG)-[\w/-]+)\s*")  # what CUDA takes for a device; it reads no further than others


def cores() -> int:
    """The cores that this process may use: of the machine, its affinity and its control group the least."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no control groups, or no limit: "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        found = min(found, max(1, math.floor(int(quota) / int(period))))
    return found


# ---- GPUs ----


def gpus() -> list[str]:
    """Ids of the GPUs that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        listed = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        return [gpu.strip() for gpu in itertools.takewhile(GPU.fullmatch, listed)]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


@contextmanager
def one_gpu(slots: int) -> Iterator[str | None]:
    """Hold one of `slots` places on one GPU, waiting for it if need be, and show this process that GPU alone.

    Schedulers hand out a count, not a device. Nothing is done with `slots` of 0 or without a GPU. Within SLURM the
    places are those of the job, whose devices no other job has. Call before torch is imported.
    """
    found = gpus() if slots else []
    if not found:
        yield None
        return
    folder = Path(tempfile.gettempdir()) / f"rankcollapse-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    job = os.environ.get("SLURM_JOB_ID", "")
    places = [
        FileLock(folder / f"{job}.{gpu.replace('/', '-')}.{slot}.lock") for slot in range(slots) for gpu in found
    ]  # in an order that fills every GPU once before any is shared
    while (place := next(filter(_taken, places), None)) is None:
        time.sleep(0.5)
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu = found[places.index(place) % len(found)]
    try:
        yield gpu
    finally:
        place.release()


def _taken(place: FileLock) -> bool:
    """Whether it was free, and is now this process's."""
    with suppress(Timeout):
        place.acquire(timeout=0)
    return place.is_locked
