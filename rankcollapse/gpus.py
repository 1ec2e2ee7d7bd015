"""One GPU for each training job on a machine with several: schedulers hand out a count, not a device."""

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def visible() -> list[str]:
    """Ids of the GPUs this process may use, found without loading torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


@contextmanager
def claim(slots: int) -> Iterator[str | None]:
    """Hold one of `slots` places on one GPU, waiting for it if need be, and show this process that GPU alone.

    Places are file locks, which the system releases however the process ends. Nothing is done with `slots` of 0,
    without a GPU, or within SLURM, which hands out devices itself. Call before torch is imported.
    """
    gpus = visible() if slots and "SLURM_JOB_ID" not in os.environ else []
    if not gpus:
        yield None
        return
    folder = Path(tempfile.gettempdir()) / f"rankcollapse-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    while True:
        for slot in range(slots):  # fill every GPU once before any is shared
            for gpu in gpus:
                with open(folder / f"{gpu.replace('/', '-')}.{slot}.lock", "w") as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue
                    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                    yield gpu
                    return
        time.sleep(0.5)
