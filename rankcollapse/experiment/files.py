"""Files that are never half-written, seals that show what has changed since, and a lock for one writer at a time.

A seal is a JSON file with the sha256 of other files and of itself, so that nothing altered passes unnoticed. A run's
folder is sealed by its run.json, all that a preset makes of its runs by manifest.json.
"""

import errno
import glob
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from rankcollapse.errors import InputError

# ---- atomic writing ----


@contextmanager
def writing(path: Path | str) -> Iterator[Path]:
    """A temporary path to write to; at the end it is forced to disk and renamed. On any error `path` stays as it was.

    What killed writers of `path` left is swept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path)
    temporary = path.with_name(f".{path.stem}.writing.{socket.gethostname()}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # the name that the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, path: Path | None = None) -> None:
    """Delete what killed writers left in a folder, of `path` or of any file; on another machine one may be alive."""
    stem, suffix = (glob.escape(path.stem), glob.escape(path.suffix)) if path else ("*", "")
    for left in folder.glob(f".{stem}.writing.{glob.escape(socket.gethostname())}.*{suffix}"):
        pid = left.name.partition(f".writing.{socket.gethostname()}.")[2].partition(".")[0]
        if pid.isdigit() and not _alive(int(pid)):
            left.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return True


def write(path: Path | str, save: Callable[[Path], object]) -> None:
    """Call save(temporary path), as in `writing`."""
    with writing(path) as temporary:
        save(temporary)


def write_bytes(path: Path | str, content: bytes) -> None:
    write(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path | str, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: object) -> None:
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# ---- one writer at a time ----


@contextmanager
def lock(path: Path, tell: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock file `path`, waiting for another process, which `tell` says once.

    The system releases it however the process ends, and on file systems that pass locks on, between machines as well.
    Where there are none, such as on SMB, a file names its holder, and one that is dead on this machine loses it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        _acquire(held, path.parent, tell)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
            error.filename = str(path.parent)  # the name that the user knows
            raise
        held = SoftFileLock(f"{path}.soft")  # the attempt has left `path` behind, which would pass for a holder's
        _acquire(held, path.parent, tell)
    try:
        yield
    finally:
        held.release()


def _acquire(held: FileLock | SoftFileLock, what: Path, tell: Callable[[str], object]) -> None:
    try:
        held.acquire(timeout=0)
    except Timeout:
        tell(f"{what} is being written by another process: waiting until it has ended")
        held.acquire()


# ---- seals ----


def sha256(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path | str, values: dict, names: Iterable[str], root: Path | str) -> None:
    """`values` as JSON at `path`, with the sha256 of the files `names`, relative to `root`, and of itself."""
    values = {**values, "files": {name: sha256(Path(root) / name) for name in names}}
    write_json(path, {**values, "seal": _digest(values)})


def sealed(path: Path | str) -> dict:
    """What `seal` wrote. Raises InputError if it is not that, to the bit; FileNotFoundError if it is not there."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text)
        if text == json_text(values) and values.pop("seal") == _digest(values):
            return values
    except FileNotFoundError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        values = None  # whatever it is, it is not as it was written
    raise InputError(f"{path} is damaged (it is not as it was sealed): run the same command again, which makes it anew")


def _digest(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Digests:
    """sha256 of files, remembered in a file of its own as long as size, inode and times of a file stay as they are.

    The time of change cannot be set by hand: whatever writes to a file renews it. What decays on the disk does not;
    for that there is `fresh`, which reads every file. Without a `path` nothing is remembered.
    """

    def __init__(self, path: Path | str | None = None, fresh: bool = False):
        self.path, self.known = path, {}
        if path and not fresh:
            with suppress(OSError, InputError, LookupError):  # then all is read anew
                self.known = sealed(path)["digests"]
        self.used: dict[str, list] = {}

    def __call__(self, path: Path | str) -> str | None:
        """None if there is no such file."""
        try:
            stat = Path(path).stat()
            stamp = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
            known = self.known.get(str(path))
            self.used[str(path)] = known if known and known[:4] == stamp else [*stamp, sha256(path)]
        except (FileNotFoundError, IsADirectoryError):
            return None
        return self.used[str(path)][4]

    def save(self) -> None:
        """Remember what was asked for since the start, and nothing else."""
        if self.used != self.known:
            seal(self.path, {"digests": self.used}, [], "")


def damage(sealing: Path, root: Path, digest: Digests | None = None) -> Iterator[tuple[Path, str]]:
    """Each file that is not as the seal `sealing` says, relative to `root`, and what is wrong with it."""
    digest = digest or Digests()
    digest(sealing)  # it counts as asked for
    try:
        named = sealed(sealing)["files"]
    except (InputError, FileNotFoundError) as error:
        yield sealing, "altered" if isinstance(error, InputError) else "missing"
        return
    for name, expected in named.items():
        found = digest(root / name)
        if found != expected:
            yield root / name, "missing" if found is None else "altered"


def manifest(results: Path | str) -> Path:
    """What seals all that a preset has made."""
    return Path(results) / "manifest.json"


def problems(results: Path | str, runs: Iterable[Path], digest: Digests) -> Iterator[tuple[Path, Path, str]]:
    """What is not as it was sealed: the output to make again, the file, and what is wrong with it.

    Of the run folders whose run.json are given and of all that the manifest in `results` names; relative to here.
    """
    for sealing in runs:
        if sealing.exists():
            yield from ((sealing, path, what) for path, what in damage(sealing, sealing.parent, digest))
    if manifest(results).exists():
        yield from ((path, path, what) for path, what in damage(manifest(results), Path(), digest))
