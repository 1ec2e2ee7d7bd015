"""A campaign of faults against the real workflow: python tests/faults.py [--seed N] [--faults N] [--load N]

Copies of the project with a small grid of digits are killed, damaged, starved, and run twice at once. After each fault
the same command is given again, as a user would; what it has made is then compared with what an undisturbed call made,
and verified. Every other task has N busy processes beside it. A fault ends as one of

    survived   nothing was to be done      mended   it was named and made again by the same command
    by hand    it took a person: right only where the machine refuses something, and where one sentence says so
    lost       work of before was done again without need
    silent     the end differs, or a file was made again, and nothing was said

Writes results/checks/faults.csv, a row per kind and target, and faults-each.csv, a row per fault; exits with 1 if one
was lost or silent, or by hand where the machine refused nothing. For Linux; what only root can do is skipped by name.
"""

import argparse
import collections
import hashlib
import io
import itertools
import json
import os
import queue
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from pypdf import PdfReader

from rankcollapse.experiment import files

ROOT = Path(__file__).parents[1]
PARTS = "rankcollapse workflow presets profiles paper envs Snakefile config.yaml README.md".split()  # noqa: SIM905
FIGURES = "rankcollapse/render/figures"
FEW = ("accuracy", "curves", "gradient_rank", "tuning")  # of eleven figures: jobs of one rule
RESULTS = Path("results/faults")
MADE = (RESULTS, Path("figures/faults"), Path("paper/faults"))
OVERLAY = """
preset: faults
seeds: [0]
device: cpu
save_minutes: 0.01
tuning: {seeds: [7], share: 0.5}
run: {validation_images: 200, tuning_images: 400, flip: false, crop: 0, epochs: 200, batch_size: 32, precision: float32,
  gradient_every: 50, gradient_stride: 10, gradient_window: 20, signals_every: 50, probe_images: 16}
studies:
  - name: mlp
    datasets: [digits]
    run: {architecture: mlp, width: 16, depth: 2}
    arms: {bp: {lr: 0.05}, fa: {tune: {lr: [0.001, 0.01, 0.1]}}, fa+both: {like: fa}}
    cost: {cpu: 10000, cuda: 10000, mem_mb: 1500, disk_mb: 0.1}
"""
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "overlay.yaml")
STAGES = {  # the jobs in their order: how the name of their process begins, and their processor seconds, about
    "training": ("train ", 3.0), "tune": ("tune ", 0.15), "tables": ("collect ", 0.2), "summaries": ("summarise ", 0.9),
    "figure": ("figure ", 0.6), "pages": ("pages ", 0.2), "paper": ("paper ", 0.2), "seal": ("seal ", 0.1),
}  # fmt: skip
# In these two undisturbed calls differ: times, costs, and the hashes of what holds them.
VARYING = {"seconds", "train_seconds", "probe_seconds", "run_seconds", "images_per_second", "memory_mb", "resumed"}
VARYING |= {"started", "finished", "files", "seal"}
OUTCOMES = ["survived", "mended", "by hand", "lost", "silent"]
WAYS = [(way, keep) for way in ("truncated", "emptied", "bit flipped", "digit changed") for keep in (False, True)]
WAYS += [("deleted", False)]
MID, WHOM = "SIGKILL in mid-write", ("snakemake", "process group")
IDLE = (
    ".digests.json",
    "plan.json",
    "names.json",
    ".run.json",
)  # they hold no result: no word is needed when they are made again
REFUSALS = {"full disk": r"No space left|MB free", "no permission": r"not permitted"}


@dataclass(eq=False)
class Fault:
    kind: str  # SIGKILL, bit flipped, full disk ...
    target: str  # what it hits: training, runs: metrics.csv ...
    where: str = ""  # the stage, file or folder
    moment: float | None = None  # of a kill, as a share of the job's processor time; None: in mid-write
    keep_time: bool = False  # of damage: the time of modification is set back
    load: int = 0  # busy processes beside it
    outcome: str = ""
    note: str = ""
    said: str = ""  # by the commands since

    def end(self, outcome: str, note: str = "") -> None:
        """Settle it, unless something worse is known."""
        if not self.outcome or OUTCOMES.index(outcome) > OUTCOMES.index(self.outcome):
            self.outcome, self.note = outcome, note[-800:] or self.note

    @property
    def named(self) -> bool:
        """Whether a command has said what was damaged: of the gradients of a state, that it is."""
        path = re.escape(self.where.replace("gradients.bin", "step"))
        return bool(re.search(rf"{path}.*(altered|missing|damaged)|Missing output files:.*{path}", self.said))

    def hit(self, snakemake: int, pid: int) -> None:
        """Kill the process of a job, or whom else it is meant for; or leave it no more memory than it has."""
        if self.kind == "memory limit":
            return resource.prlimit(pid, resource.RLIMIT_AS, (2**20, 2**20))
        number = signal.Signals[self.kind.split()[0]] if self.kind.startswith("SIG") else signal.SIGKILL
        os.kill({"snakemake": snakemake, "process group": -snakemake}.get(self.target, pid), number)

    def spoil(self, path: Path, rng: random.Random) -> None:
        """Damage a file."""
        before, made = path.stat(), bytearray(path.read_bytes())
        digits = [i for i, byte in enumerate(made) if chr(byte).isdecimal()]
        if self.kind == "deleted":
            return path.unlink()
        if self.kind == "digit changed" and digits:
            place = rng.choice(digits)
            made[place] = 48 + (made[place] - 48 + rng.randint(1, 9)) % 10
        elif self.kind in ("bit flipped", "digit changed") and made:
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
        else:
            made = made[: rng.randrange(len(made)) if self.kind == "truncated" and made else 0]
        path.write_bytes(made)
        if self.keep_time:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class Call:
    """A command, and the processes that it has started: those too that have outlived their Snakemake."""

    def __init__(self, folder: Path, command: tuple):
        self.said, self.log = "", tempfile.TemporaryFile()  # noqa: SIM115
        how = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(folder)}, "start_new_session": True}
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, **how)

    def members(self, name: str = "") -> list[int]:
        """Its processes that live and are called that, as warm.py names its forks."""
        found = []
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with suppress(OSError):
                if os.getsid(pid) == self.process.pid and Path(f"/proc/{pid}/comm").read_text().startswith(name):
                    found.append(pid)
        return found

    def end(self) -> int:
        """Wait for the command; its exit status, 124 if it hangs. What it has said is in `said` then."""
        try:
            code = self.process.wait(900)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            code = 124
        self.log.seek(0)
        self.said = self.log.read().decode("utf-8", "replace")
        return code


def used(pid: int) -> float:
    """Processor seconds of a living process: by them a moment is much the same under any load."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (fields[0] != "Z") * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


# ---- what there is ----


def content(path: Path) -> str:
    """Of a file, what must be the same after any two calls."""
    made = path.read_bytes()
    try:
        if path.name in (".digests.json", "cost.csv", "cost.html"):
            return "whole" if made.endswith((b"}", b"\n")) else "cut off"
        if path.name == "replication.pdf":
            return f"{len(PdfReader(path).pages)} pages"
        if path.name == "manifest.json":
            return repr(sorted(json.loads(made)["files"]))
        if path.name == "runs.csv":
            return pd.read_csv(path, dtype=str).drop(columns=VARYING, errors="ignore").to_csv()
        if path.name in ("run.json", "provenance.json"):
            return repr({key: value for key, value in json.loads(made).items() if key not in VARYING})
    except Exception as error:  # whatever a reader says of a damaged file
        return f"unreadable: {error}"
    return sha256(made)


def sha256(made: bytes) -> str:
    return hashlib.sha256(made).hexdigest()


def progress(folder: Path) -> tuple[str, float] | None:
    """When the run of a folder was begun, and its latest step that is saved and sound: infinity for a whole result.

    A job may go on while its folder is read: its states are gone then, and newer ones or its result are there.
    """
    for _ in range(3):
        for path in (folder / "run.json", folder / ".run.json"):
            with suppress(OSError, ValueError):
                found = files.sealed(path)
                if all(sha256((folder / name).read_bytes()) == digest for name, digest in found["files"].items()):
                    return found["started"], float("inf")
        for path in sorted(folder.glob("state/*/step*.pt"), reverse=True):
            with suppress(OSError):
                made = path.read_bytes()
                if sha256(made[64:]).encode() == made[:64]:
                    saved = torch.load(io.BytesIO(made[64:]), weights_only=True)
                    if sha256(path.with_name("gradients.bin").read_bytes()[: saved["size"]]) == saved["rows"]:
                        return saved["started"], saved["state"]["step"]
    return None


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes beside what is done here that leave no processor idle."""
    code = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def sh(*words: object) -> str:
    return subprocess.run([*map(str, words)], check=True, capture_output=True, text=True).stdout


class Project:
    """A copy of this project; of `reference`, if there is one, and then it is whole between two tasks."""

    def __init__(self, folder: Path, reference: "Project | None" = None):
        self.folder, self.reference, self.calls = folder, reference, []
        self.renew()

    def renew(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.reference:
            shutil.copytree(self.reference.folder, self.folder, symlinks=True)
            self.run()  # so that it knows its own files
            return
        self.folder.mkdir()
        for path in (ROOT / name for name in PARTS):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, self.folder / path.name)
        for path in {*self.folder.glob(f"{FIGURES}/[a-z]*.py")} - {
            self.folder / f"{FIGURES}/{name}.py" for name in FEW
        }:
            path.unlink()
        (self.folder / "overlay.yaml").write_text(OVERLAY, encoding="utf-8")

    def start(self, command: tuple = SNAKEMAKE) -> Call:
        self.calls.append(Call(self.folder, command))
        return self.calls[-1]

    def run(self, command: tuple = SNAKEMAKE) -> tuple[int, str]:
        call = self.start(command)
        return call.end(), call.said

    def clear(self, but: tuple[str, ...] = ()) -> None:
        """What was made goes, but for some folders of the results; what Snakemake remembers stays."""
        for path in itertools.chain.from_iterable((self.folder / part).glob("*") for part in MADE):
            if path.name not in but:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def files(self, pattern: str = "*") -> list[str]:
        """Of what was made, all but logs and what was moved aside, relative to the project."""
        found = (path for part in MADE for path in (self.folder / part).rglob(pattern) if path.is_file())
        names = (path.relative_to(self.folder) for path in found)
        return sorted(str(name) for name in names if "logs" not in name.parts and name.suffix != ".damaged")

    def content(self) -> dict[str, str]:
        """Of each file, but for the copies of run.json, which stand for nothing as long as there is that."""
        return {name: content(self.folder / name) for name in self.files() if Path(name).name != ".run.json"}

    def work(self) -> dict[str, tuple]:
        """Of each run folder what could be lost: its result if it is whole, else the latest state that is sound."""
        folders = {(self.folder / name).parent for name in self.files("config.json")}
        return {str(path): found for path in folders if (found := progress(path))}

    def lost(self, before: dict[str, tuple]) -> str:
        """The run folders that hold less of the same run than before, or another run."""
        now = dict.fromkeys(before, (None, 0)) | self.work()
        less = [path for path, (run, step) in before.items() if now[path][0] != run or now[path][1] < step]
        return ", ".join(f"{path}: {before[path]} before, then {now[path]}" for path in less)

    def wrong(self, expected: dict[str, str]) -> str:
        """In words, what is not as without a fault; "" if nothing is. Jobs that have outlived Snakemake end before."""
        deadline = time.monotonic() + 300
        while any(call.members() for call in self.calls) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.calls.clear()
        code, said = self.run((sys.executable, "-m", "rankcollapse", "verify", str(RESULTS)))
        here = self.content()
        found = [name for name in sorted({*here, *expected}) if here.get(name) != expected.get(name)]
        found += map(str, (self.folder / "data").rglob("*.writing.*"))
        return f"verify: {said}" * bool(code) + f"differs: {', '.join(found)}" * bool(found)

    def settle(self, faults: list[Fault], before: dict[str, tuple]) -> None:
        """Give the command again, and hold the end against the reference."""
        code, said = self.run()
        wrong, lost = self.wrong(self.reference.content()), self.lost(before)
        for fault in faults:
            fault.said += said
            if code or wrong or lost:
                fault.end(*(("by hand", said) if code else ("silent", wrong) if wrong else ("lost", lost)))
        if code or wrong:
            self.renew()

    # ---- the tasks: each returns the faults that it could not inject ----

    def damaged(self, faults: list[Fault], rng: random.Random) -> list[Fault]:
        """A file of a complete tree. It is to be named, but if it holds no result."""
        (fault,) = faults
        fault.spoil(self.folder / fault.where, rng)
        if fault.target == "data":  # something has to read it
            shutil.rmtree(self.folder / RESULTS / "runs/mlp/digits/bp")
        self.settle(faults, self.work())
        fault.end("mended" if fault.named else "survived" if Path(fault.where).name in IDLE else "silent")
        if fault.outcome == "survived":  # as it is, damaged
            self.renew()
        return []

    def killed(self, faults: list[Fault], rng: random.Random) -> list[Fault]:
        """A run from nothing that is interrupted many times; another when it comes to its end before the moment of a
        fault. Damage to a saved state follows on a kill.
        """
        struck, later, held = [], [], {}
        self.clear()
        for fault in faults:
            call = self.start()
            before, code = self.strike(call, fault), call.end()
            for other in struck:
                other.said += call.said
            if lost := self.lost(held):
                struck[-1].end("lost", lost)
            if before is None:
                for other in struck[-1:] if code else []:
                    other.end("by hand", call.said)
                self.finish(struck, held)
                struck, held = [], {}
                later.append(fault)
                self.clear(() if fault.where in ("training", "tune") else ("runs", "tuning"))
                continue
            fault.note = "" if code else "the command ended well"
            if code == 124:
                fault.end("by hand", "it did not end")
            if lost := self.lost(before):
                fault.end("lost", lost)
            if fault.target == "saved state":
                if not (saved := self.files("step*.pt") + self.files("gradients.bin")):
                    later.append(fault)
                    continue
                fault.where = rng.choice(saved)
                fault.spoil(self.folder / fault.where, rng)
            struck.append(fault)
            held = self.work()
        self.finish(struck, held)
        return later

    def strike(self, call: Call, fault: Fault) -> dict[str, tuple] | None:
        """Do it when its moment has come; what could be lost by it. None if the command has ended before."""
        while call.process.poll() is None:
            for pid in call.members(STAGES[fault.where][0]):
                due = self.writes(pid) if fault.moment is None else used(pid) >= fault.moment * STAGES[fault.where][1]
                with suppress(ProcessLookupError):
                    if due:
                        os.kill(pid, signal.SIGSTOP)
                        before = self.work()
                        fault.hit(call.process.pid, pid)
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGCONT)
                        return before
            time.sleep(0.002)
        return None

    def writes(self, pid: int) -> bool:
        """Wait until a process has a file half-written; False if it has ended before."""
        while used(pid):
            for _, _, names in itertools.chain.from_iterable(os.walk(self.folder / part) for part in MADE):
                if any(".writing." in name and str(pid) in name for name in names):
                    return True
        return False

    def finish(self, struck: list[Fault], held: dict[str, tuple]) -> None:
        self.settle(struck, held)
        for fault in struck:
            needed = fault.named if fault.target == "saved state" else not fault.note
            fault.end("mended" if needed else "survived")

    def refused(self, faults: list[Fault], rng: random.Random) -> list[Fault]:
        """The refusal must be said in one sentence, and the same command make up for it when it is lifted."""
        (fault,) = faults
        try:
            with getattr(self, fault.kind.replace(" ", "_"))(fault, rng):
                before = self.work()
                code, said = self.run()
        except subprocess.CalledProcessError as error:  # not root, or a file system without it
            fault.note = error.stderr.strip()
            self.renew()
            return faults
        self.settle(faults, before)
        sentences = [line for line in said.splitlines() if re.search(REFUSALS[fault.kind], line)]
        if code and (not sentences or "Traceback" in said):
            fault.end("silent", f"no clear sentence: {said}")
        fault.end("by hand" if code else "survived", sentences[0] if code else "")
        return []

    @contextmanager
    def full_disk(self, fault: Fault, rng: random.Random) -> Iterator[None]:
        """All results on a disk with little room for what is still to be made; then on another."""
        place, kept = self.folder / RESULTS, self.folder / "kept"
        missing = rng.choice([".", "runs/mlp/digits/bp", "tables", "summary", "pages"])
        shutil.rmtree(place / missing)
        place.mkdir(exist_ok=True)
        room = rng.randint(4, 900 if missing == "." else 30)
        fault.where, size = f"{missing}: {room} kB", room + int(sh("du", "-sk", place).split()[0])
        shutil.move(place, kept)
        place.mkdir()
        sh("mount", "-t", "tmpfs", "-o", f"size={size}k", "faults", place)
        try:
            shutil.copytree(kept, place, dirs_exist_ok=True)
            shutil.rmtree(kept)
            yield
            shutil.copytree(place, kept)
        finally:
            sh("umount", place)
        place.rmdir()
        shutil.move(kept, place)

    @contextmanager
    def no_permission(self, fault: Fault, rng: random.Random) -> Iterator[None]:
        """A file is missing in a folder that nothing can be written to, not even by root."""
        path = self.folder / rng.choice(self.files())
        fault.where = str(path.relative_to(self.folder))
        path.unlink()
        sh("chattr", "+i", path.parent)
        try:
            yield
        finally:
            sh("chattr", "-i", path.parent)

    def twice(self, faults: list[Fault], rng: random.Random) -> list[Fault]:
        """Two commands at once in one folder; of two trainings one is killed. The other must do as if alone."""
        (fault,), command, victim = faults, SNAKEMAKE, 1
        fault.where = rng.choice(("tables", "summary", "runs"))
        if fault.target == "training":
            fault.where, victim = f"runs/mlp/digits/{rng.choice(['bp', 'fa', 'fa+both'])}/seed0", rng.randrange(2)
            command = (sys.executable, "-m", "rankcollapse", "train", f"{RESULTS}/plan.json", "--threads", "1")
            command += ("--run", fault.where.removeprefix("runs/"), "--out", f"{RESULTS}/{fault.where}")
            fault.note = f"the {('first', 'second')[victim]} was killed"
        shutil.rmtree(self.folder / RESULTS / fault.where)
        calls = []
        for _ in range(2):
            calls.append(self.start(command))
            time.sleep(rng.uniform(0, 5))
        before = self.work()
        if fault.target == "training":
            calls[victim].process.kill()
        codes = [call.end() for call in calls]
        if codes[1 - victim]:
            fault.end("by hand", calls[1 - victim].said)
        if fault.target == "snakemake" and codes[1] and not re.search("cannot be locked|concurrent", calls[1].said):
            fault.end("silent", calls[1].said)
        self.settle(faults, before)
        fault.end("survived")
        return []


# ---- the campaign ----


def label(name: str) -> str:
    """What a file of a complete tree is: of a run's its name, of most others their folder."""
    top, _, part, *rest = Path(name).parts
    if top != "results":
        return top
    return f"{part}: {rest[-1]}" if part in ("runs", "tuning") else part


def damages(names: list[str], count: int, rng: random.Random) -> list[Fault]:
    """Each kind of file in turn; by chance which of them, and how."""
    faults = [Fault(way, label(name), name, keep_time=keep) for name in names for way, keep in WAYS]
    rng.shuffle(faults)
    turns = collections.defaultdict(itertools.count)
    return sorted(faults, key=lambda fault: next(turns[fault.target]))[:count]


def kills(rng: random.Random) -> Iterator[Fault]:
    """Without end. Late moments more often: a job begins by loading its libraries."""
    signals = ("SIGKILL", "SIGTERM", "SIGINT")
    while True:
        deck = [(kind, stage, stage) for stage in [*STAGES, "training", "training"] for kind in (*signals, MID)]
        deck += [(kind, who, rng.choice(["training", *STAGES])) for who in WHOM for kind in signals for _ in range(3)]
        deck += [("memory limit", "training", "training")] * 3
        for kind, target, stage in rng.sample(deck, len(deck)):
            yield Fault(kind, target, stage, None if kind == MID else rng.random() ** 0.5)


def chains(faults: list[Fault], rng: random.Random) -> list[tuple[str, list[Fault]]]:
    """A dozen to a run, in the order of the jobs. The tuning comes amid training, pages and paper side by side."""
    parts, found = -(-len(faults) // 12), []
    for part in (faults[i::parts] for i in range(parts)):
        order = {stage: i for i, stage in enumerate(STAGES)}
        order |= {"tune": rng.choice((-1, 1)), "pages": rng.choice((5, 7))}
        found.append(("killed", sorted(part, key=lambda fault, order=order: order[fault.where])))
    return found


def campaign(count: int, names: list[str], rng: random.Random) -> list[tuple[str, list[Fault]]]:
    """The tasks: a method of Project, and its faults."""
    few = max(1, count // 35)
    single = [("refused", Fault(kind, "all")) for kind in REFUSALS for _ in range(few)]
    single += [("twice", Fault("two at once", target)) for target in ("snakemake", "training") for _ in range(few)]
    ways = rng.sample(WAYS * few, 3 * few)
    states = [Fault(way, "saved state", "training", rng.uniform(0.6, 0.9), keep) for way, keep in ways]
    left = count - len(single + states)
    single += [("damaged", fault) for fault in damages(names, left // 2, rng)]
    many = [*itertools.islice(kills(rng), left - left // 2)]
    return chains(states + many, rng) + [(how, [fault]) for how, fault in single]


def injected(tasks: list[tuple[str, list[Fault]]], projects: list[Project], seed: str, load: int) -> list[Fault]:
    """The faults of all tasks, once they are done; those that came too late are tried again, earlier."""
    faults, free = [fault for _, some in tasks for fault in some], queue.SimpleQueue()
    for project in projects:
        free.put(project)

    def do(task: tuple[str, list[Fault]], numbers: random.Random) -> list[Fault]:
        (how, some), project = task, free.get()
        later = getattr(project, how)(some, numbers)
        free.put(project)
        for fault in some:
            fault.load = load
            if fault.outcome:
                print(f"{fault.outcome:8}  {fault.kind}: {fault.target}, {fault.where} {fault.note}", flush=True)
        return [fault for fault in later if fault.kind not in REFUSALS]

    for turn in range(3):
        numbers = [random.Random(f"{seed} {turn} {i}") for i in range(len(tasks) + 1)]
        with busy(load), ThreadPoolExecutor(len(projects)) as pool:
            later = [*itertools.chain.from_iterable(pool.map(do, tasks, numbers))]
        for fault in later:
            fault.moment = fault.moment and fault.moment / 2
        tasks = chains(later, numbers[-1])
    return faults


def report(faults: list[Fault], out: Path) -> pd.DataFrame:
    """Write the two tables, and print how many of each kind ended how."""
    table = pd.DataFrame([asdict(fault) for fault in faults]).drop(columns="said")
    for row in table[table["outcome"] == ""].itertuples():
        print(f"not injected: {row.kind}, {row.target} {row.note}")
    table = table[table["outcome"] != ""]
    counts = pd.crosstab([table["kind"], table["target"]], table["outcome"]).reindex(columns=OUTCOMES, fill_value=0)
    counts.insert(0, "injected", counts.sum(axis=1))
    counts.columns = [name.replace(" ", "_") for name in counts]
    out.mkdir(parents=True, exist_ok=True)
    counts.to_csv(out / "faults.csv")
    table.to_csv(out / "faults-each.csv", index=False)
    print(pd.concat([counts.groupby("kind").sum(), counts.sum().to_frame("all").T]).to_string())
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("seed", 0), ("faults", 122), ("workers", 2), ("load", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args, started = parser.parse_args(), time.monotonic()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="faults-") as base:
        reference = Project(Path(base, "reference"))
        code, said = reference.run()
        reference.wrong({})  # verify writes down what it has read
        if code or (said := reference.wrong(reference.content())):
            sys.exit(said)
        projects = [Project(Path(base, f"copy{i}"), reference) for i in range(args.workers)]
        names = [name for name in reference.files() if not name.endswith(".lock")]
        names += [f"data/ready/digits/{name}.npy" for name in ("images", "labels")]
        tasks, faults = campaign(args.faults, names, rng), []
        for load, part in ((0, tasks[::2]), (args.load, tasks[1::2])):
            faults += injected(part, projects, f"{args.seed} {load}", load)
    table = report(faults, ROOT / "results/checks")
    print(f"{len(table)} faults in {time.monotonic() - started:.0f} s, seed {args.seed}, load {os.getloadavg()[1]:.1f}")
    by_hand = (table["outcome"] == "by hand") & ~table["kind"].isin(REFUSALS)
    return int((table["outcome"].isin(["lost", "silent"]) | by_hand).any())


if __name__ == "__main__":
    sys.exit(main())
