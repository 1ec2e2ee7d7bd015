"""Check all that was made against its seals, reading every byte: python verify.py [results/PRESET ...]

Names every file that is missing, altered or stray, and exits with 1 if one is. In a copy of the repository that has run
nothing, what git does not keep is not missed.
"""

import subprocess
import sys
import time
from pathlib import Path

from rankcollapse import config, seals
from rankcollapse.errors import InputError


def verify(results: Path) -> int:
    """Print what is wrong with the files of a preset; how many it is."""
    started, digest, plan = (
        time.monotonic(),
        seals.Digests(results / ".digests.json", fresh=True),
        results / "plan.json",
    )
    runs = planned(plan) | {Path(name) for name in sealed(results) if name.endswith("/run.json")}
    found = {path: what for _, path, what in seals.problems(results, sorted(runs), digest)}
    away = [] if plan.exists() else not_kept([path for path, what in found.items() if what == "missing"])
    found = {path: what for path, what in found.items() if path not in away}
    found |= dict.fromkeys(strays(results, digest), "stray")
    if plan.exists() and not planned(plan):
        found[plan] = "altered"
    for path, what in sorted(found.items()):
        print(f"{path}: {what}")
    digest.save()  # by which the next call of snakemake knows what to make again
    sound = len(digest.used) - [*found.values()].count("altered")
    note = f", {len(away)} are not part of the repository" if away else ""
    print(f"{results}: {sound} files as sealed{note}, {len(found)} not ({time.monotonic() - started:.1f} s)")
    return len(found)


def planned(plan: Path) -> set[Path]:
    """run.json of each run and candidate of a plan, if there is a readable one."""
    parts = {"runs": "runs", "tuning": "candidates"}
    try:
        found = config.read(plan)
        return {plan.parent / folder / name / "run.json" for folder, part in parts.items() for name in found[part]}
    except (InputError, LookupError, TypeError):
        return set()


def sealed(results: Path) -> dict:
    try:
        return seals.read(seals.manifest(results))["files"]
    except InputError:  # named among what is altered
        return {}


def not_kept(paths: list[Path]) -> list[Path]:
    """Those that are no part of the repository; none where there is none."""
    try:
        said = subprocess.check_output(["git", "ls-files", "-z"], encoding="utf-8", stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return []
    kept = {*said.split("\0")}
    return [path for path in paths if str(path) not in kept]


def strays(results: Path, digest: seals.Digests) -> list[Path]:
    """Files, or whole run folders, beside the sealed ones that no seal names; not of runs that are being trained."""
    places = [*(results / part for part in ("runs", "tuning", "tables", "summary", "pages"))]
    places += [Path("figures", results.name), Path("paper", results.name)]
    known = {*digest.used, *(name.replace("/run.json", "/.run.json") for name in digest.used)}
    found = [path for place in places for path in place.rglob("*") if path.is_file() and str(path) not in known]
    unfinished = {path.parent for path in found if path.name == ".lock"}
    unfinished |= {path.parents[2] for path in found if path.parents[1].name == "state"}
    found = [path for path in found if not unfinished & {*path.parents}]
    sealed = {str(Path(name).parent) for name in known}
    whole = {path: path.parent for path in found if str(path.parent) not in sealed and {*places[:2]} & {*path.parents}}
    return [*dict.fromkeys(whole.get(path, path) for path in found)]


if __name__ == "__main__":
    presets = [Path(name) for name in sys.argv[1:]] or sorted(
        path.parent for path in Path("results").glob("*/manifest.json")
    )
    if not presets:
        sys.exit("results/ has no manifest.json yet: snakemake writes one as its last job")
    wrong = sum(map(verify, presets))
    if wrong:
        sys.exit("the command that made them makes them again, such as `make quick`; a stray file is for you to delete")
