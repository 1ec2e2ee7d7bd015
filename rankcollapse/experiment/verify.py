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
    runs = _planned(results / "plan.json")
    found = {path: what for _, path, what in files.problems(results, runs, digest)}
    if any(path.exists() for path in runs):
        found |= {path: "missing" for path in runs if not path.exists()}
        away = []
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
        found = [(path.parent / where, plan.entries(path, part)) for part, where in plan.FOLDERS.items()]
    except InputError:
        return []
    return [where / name / folder.RESULT for where, entries in found for name in entries]


def _not_kept(found: dict[Path, str]) -> list[Path]:
    """Those that are missing and no part of the repository; none where there is none."""
    try:
        said = subprocess.check_output(["git", "ls-files", "-z"], encoding="utf-8", stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return []
    kept = {*said.split("\0")}
    return [path for path, what in found.items() if what == "missing" and str(path) not in kept]


def _strays(results: Path, digest: files.Digests) -> list[Path]:
    """Files, or whole run folders, beside the sealed ones that no seal names; not of runs that are being trained, and
    not what snakemake has moved aside.
    """
    places = [*(results / part for part in ("runs", "tuning", "tables", "summary", "pages"))]
    places += [Path("figures", results.name), Path("paper", results.name)]
    known = {*digest.used, *(name.replace(f"/{folder.RESULT}", f"/{folder.COPY}") for name in digest.used)}
    found = [path for place in places for path in place.rglob("*") if path.is_file() and str(path) not in known]
    unfinished = {path.parents[2] for path in found if path.parents[1].name == "state"}
    found = [path for path in found if not unfinished & {*path.parents} and path.name != folder.LOCK]
    found = [path for path in found if path.suffix != ".damaged"]
    sealed = {str(Path(name).parent) for name in known}
    whole = {path: path.parent for path in found if str(path.parent) not in sealed and {*places[:2]} & {*path.parents}}
    return [*dict.fromkeys(whole.get(path, path) for path in found)]
