"""Seals: a JSON file that holds the sha256 of files, and its own, so that nothing altered passes unnoticed.

A run folder is sealed by its run.json, which is written last; all that a preset makes of its runs by manifest.json.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from rankcollapse import files
from rankcollapse.errors import InputError


def sha256(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path | str, values: dict, names: Iterable[str], root: Path | str) -> None:
    """`values` as JSON at `path`, with the sha256 of the files `names`, relative to `root`, and of itself."""
    _write(path, {**values, "files": {name: sha256(Path(root) / name) for name in names}})


def read(path: Path | str) -> dict:
    """What `write` wrote. Raises InputError if it is not that, to the bit; FileNotFoundError if it is not there."""
    values = _sealed(path)
    if "files" not in values:
        raise InputError(f"{path} seals no files: it must be the run.json of a run, or a manifest.json")
    return values


def seal_once(folder: Path, names: Iterable[str]) -> list[tuple[Path, str]]:
    """Seal files that are made once and read by many, in seal.json beside them; or what is wrong with those sealed."""
    if not (folder / "seal.json").exists():
        write(folder / "seal.json", {}, names, folder)
    return [*damage(folder / "seal.json", folder, Digests(folder / "none", fresh=True))]


def _write(path: Path | str, values: dict) -> None:
    files.write_json(path, {**values, "seal": digest_of(values)})


def _sealed(path: Path | str) -> dict:
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text)
        if text == files.json_text(values) and values.pop("seal") == digest_of(values):
            return values
    except FileNotFoundError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # whatever it is, it is not as it was written
    raise InputError(f"{path} is damaged (it is not as it was sealed): run the same command again, which makes it anew")


def digest_of(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Digests:
    """sha256 of files, remembered in a file of its own as long as size, inode and times of a file stay as they are.

    The time of change cannot be set by hand: whatever writes to a file renews it. What decays on the disk does not;
    for that there is `fresh`, which reads every file.
    """

    def __init__(self, path: Path | str, fresh: bool = False):
        self.path, self.known = Path(path), {}
        if not fresh:
            with suppress(OSError, InputError):  # then all is read anew
                self.known = _sealed(self.path)["digests"]
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
            _write(self.path, {"digests": self.used})


def damage(sealed: Path, root: Path, digest: Digests) -> Iterator[tuple[Path, str]]:
    """Each file that is not as `sealed` says, relative to `root`, and what is wrong with it."""
    if digest(sealed) is None:
        yield sealed, "missing"
        return
    try:
        named = read(sealed)["files"]
    except InputError:
        yield sealed, "altered"
        return
    for name, expected in named.items():
        found = digest(root / name)
        if found != expected:
            yield root / name, "missing" if found is None else "altered"


def manifest(results: Path | str) -> Path:
    """What seals all that a preset has made, see workflow/scripts/seal.py."""
    return Path(results) / "manifest.json"


def problems(results: Path | str, runs: Iterable[Path], digest: Digests) -> Iterator[tuple[Path, Path, str]]:
    """What is not as it was sealed: the output to make again, the file, and what is wrong with it.

    Of the run folders whose run.json are given and of all that the manifest in `results` names; relative to here.
    """
    for sealed in runs:
        if sealed.exists():
            yield from ((sealed, path, what) for path, what in damage(sealed, sealed.parent, digest))
    if manifest(results).exists():
        for path, what in damage(manifest(results), Path(), digest):
            if path.name != "run.json" or what == "missing":  # it may be newer, and seals itself
                yield path, path, what
