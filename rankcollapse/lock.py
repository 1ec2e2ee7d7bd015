"""One writer of a folder: a lock that names its holder, and that outlives none.

A lock of the operating system would do on one machine. On a cluster two nodes see the folder, and many of its file
systems pass no locks between them: so the lock is a file, and whoever finds it tells whether its holder is alive, on
its own machine by the process, on another by the time stamp, which a living holder renews.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rankcollapse import files
from rankcollapse.errors import Stopped

BEAT, SILENCE = 15.0, 120.0  # seconds: between two renewals, and without one until a holder elsewhere counts as dead


def this_process() -> dict:
    """What tells it from any other: host and process id, for people; the boot and the process's start, for `dead`."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "born": _born(os.getpid())}


def dead(holder: dict) -> bool | None:
    """Whether a process has ended; None if it runs, or ran, on another machine."""
    if holder.get("machine") != _machine():
        return None
    return holder.get("born") is None or _born(holder["pid"]) != holder["born"]


def told(holder: dict) -> str:
    """For people."""
    return f"process {holder.get('pid')} on {holder.get('host')}"


@contextmanager
def held(path: Path, tell: Callable[[str], object]) -> Iterator[Callable[[], None]]:
    """Hold the lock file `path`, waiting for another's, whom `tell` names once. Gives a check that raises Stopped."""
    mine, stop = this_process(), threading.Event()
    _acquire(path, mine, tell)
    beat = threading.Thread(target=_renew, args=(path, mine, stop), daemon=True)
    beat.start()

    def check() -> None:
        if (now := read(path)) != mine:
            raise Stopped(f"{path.parent} was taken over by {told(now or {})}, since this process was silent for long")

    try:
        yield check
    finally:
        stop.set()
        beat.join()
        if read(path) == mine:
            path.unlink(missing_ok=True)
            files.sweep(path.parent, path)


def _acquire(path: Path, mine: dict, tell: Callable[[str], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    waited, seen, since = False, None, 0.0
    while not _create(path, mine):
        holder, stamp = read(path), _stamp(path)
        if (holder, stamp) != seen:
            seen, since = (holder, stamp), time.monotonic()
        if (holder is not None and dead(holder)) or time.monotonic() - since > SILENCE:
            if _take_over(path, mine, holder):
                tell(f"{path.parent}: the lock of {told(holder or {})}, which is dead, is taken over")
                return
        elif stamp is not None and not waited:
            waited = True
            tell(f"{path.parent} is being written by {told(holder or {})}: waiting until it has ended")
        time.sleep(0.5)


def _create(path: Path, mine: dict) -> bool:
    """Make the lock, whole from its first moment, unless there is one."""
    files.sweep(path.parent, path)
    own = files.temporary_of(path)
    try:
        own.write_text(json.dumps(mine), encoding="utf-8")
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError as error:
        error.filename = str(path.parent)  # the name that the user knows
        raise
    finally:
        own.unlink(missing_ok=True)
    return True


def _take_over(path: Path, mine: dict, holder: dict | None) -> bool:
    """Put this process in the place of a dead one, unless another does so first."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # where the file system knows no locks the pause below must do
            fcntl.flock(folder, fcntl.LOCK_EX)
        if not path.exists() or read(path) != holder:
            return False
        files.write_json(path, mine)
        time.sleep(0.2)
        return read(path) == mine
    finally:
        os.close(folder)


def _renew(path: Path, mine: dict, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):
            if read(path) == mine:
                os.utime(path)


def read(path: Path) -> dict | None:
    """The holder that a lock names; None if it names none."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    return None


def _stamp(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return None


def _machine() -> str:
    """Of this boot and this container: process ids mean the same within it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return socket.gethostname()


def _born(pid: int) -> int | None:
    """When a process started, since ids are used again; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return int(fields[19]) if fields[0] not in "ZX" else None
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0
