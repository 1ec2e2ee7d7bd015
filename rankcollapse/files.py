"""Files that are never half-written: each is complete under a temporary name before it takes its own."""

import glob
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(path: Path | str) -> Iterator[Path]:
    """A temporary path to write to; at the end it is forced to disk and renamed. On any error `path` stays as it was.

    What killed writers of `path` left is swept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path)
    temporary = temporary_of(path)
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


def temporary_of(path: Path) -> Path:
    """The name under which this process writes it."""
    return path.with_name(f".{path.stem}.writing.{socket.gethostname()}.{os.getpid()}{path.suffix}")


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
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def write(path: Path | str, save: Callable[[Path], object]) -> None:
    """Call save(temporary path), as in `writing`."""
    with writing(path) as temporary:
        save(temporary)


def write_text(path: Path | str, text: str) -> None:
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path | str, value: object) -> None:
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
