"""Check all that was made against its seals, reading every byte.

In a copy of the repository that has run nothing, what git does not keep is not missed.
"""

import subprocess
import time
from pathlib import Path

from rankcollapse.errors import InputError
from rankcollapse.experiment import files, folder, plan


def verify(results: Path) -> int:
    """Print each file of a preset that is missing, altered or stray; how many they are."""
    started, digest = time.monotonic(), files.Digests(results / ".digests.json", fresh=True)
    runs, away = _planned(results / "plan.json"), set()
    found = {path: what for _, path, what in files.problems(results, runs, digest)}
    if any(path.exists() for path in runs):
        found |= {path: "missing" for path in runs if not path.exists()}
    else:
        away = _not_kept(found)
    found = {path: what for path, what in found.items() if path not in away}
    found |= dict.fromkeys(_strays(results, digest), "stray")
    for path, what in sorted(found.items()):
        print(f"{path}: {what}")
    digest.save()  # by which the next call of snakemake knows what to make again
    sound = len(digest.used) - [*found.values()].count("altered")
    note = f", {len(away)} are not part of the repository" if away else ""
    print(f"{results}: {sound} files as sealed{note}, {len(found)} not ({time.monotonic() - started:.1f} s)")
    return len(found)


def _planned(path: Path) -> list[Path]:
    """run.json of each run and candidate of a plan, if there is a readable one."""
    try:
        parts = [(path.parent / where, plan.entries(path, part)) for part, where in plan.FOLDERS.items()]
    except InputError:
        return []
    return [where / name / folder.RESULT for where, entries in parts for name in entries]


def _not_kept(found: dict[Path, str]) -> set[Path]:
    """Those that are missing and no part of the repository; none where there is none."""
    try:
        said = subprocess.check_output(["git", "ls-files", "-z"], encoding="utf-8", stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return set()
    return {path for path, what in found.items() if what == "missing"} - {*map(Path, said.split("\0"))}


def _strays(results: Path, digest: files.Digests) -> set[Path]:
    """Files, or whole run folders, beside the sealed ones that no seal names; not of runs that are being trained, and
    not what snakemake has moved aside.
    """
    folders = {results / where for where in plan.FOLDERS.values()}
    places = [*folders, *(results / part for part in ("tables", "summary", "pages"))]
    places += [Path("figures", results.name), Path("paper", results.name)]
    known = {*map(Path, digest.used)}
    known |= {path.with_name(folder.COPY) for path in known if path.name == folder.RESULT}
    found = {path for place in places for path in place.rglob("*") if path.is_file()} - known
    training = {path.parents[2] for path in found if path.parents[1].name == "state"}
    found = {path for path in found if path.name != folder.LOCK and path.suffix != ".damaged"}
    found = {path for path in found if not training & {*path.parents}}
    sealed = {path.parent for path in known}
    whole = {path for path in found if path.parent not in sealed and folders & {*path.parents}}
    return found - whole | {path.parent for path in whole}
