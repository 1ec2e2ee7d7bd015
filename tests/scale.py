"""What a grid of 100, 1,000 and 10,000 runs costs beside its training: python tests/scale.py [RUNS ...]

On a copy of the project, with the folder of a digits run that is trained once standing for all: `snakemake -n` before
the training, the tables, `-n` after, and what each job of a cluster pays for the size of the grid. CPU seconds and peak
memory are those of the processes themselves. Writes results/checks/scale.csv.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rankcollapse.experiment import files, folder, grid, plan  # noqa: E402
from rankcollapse.experiment.config import read  # noqa: E402

PARTS = ("rankcollapse", "workflow", "envs", "profiles", "paper", "Snakefile", "config.yaml")
ARMS, CONFIG = 20, "scale.yaml"
TABLES = "results/scale/tables/runs.csv"
SNAKEMAKE = [sys.executable, "-m", "snakemake"]
COLUMNS = ["what", "runs", "cpu_seconds", "seconds", "memory_mb"]
# What a job on a cluster's node does before its own work: read its run from the plan, and Snakemake the whole config.
JOB = """
from rankcollapse.experiment import config, grid, plan
plan.runs(grid.grid(grid.overlay(config.read('config.yaml'), config.read('scale.yaml'))), 'cpu', {})
plan.entries('results/scale/plan.json', 'runs')
"""


def measured(what: str, project: Path, runs: int, command: list[str]) -> dict:
    """A row of the table: a command's CPU and wall seconds, those of its children too, and its peak memory, MB."""
    started, env = time.monotonic(), {**os.environ, "PYTHONPATH": str(project)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=project, stdout=said, stderr=subprocess.STDOUT, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{what} of {runs} runs failed: {said.read().decode()[-2000:]}")
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    return dict(
        zip(COLUMNS, [what, runs, f"{cpu:.3g}", f"{time.monotonic() - started:.3g}", f"{peak:.0f}"], strict=True)
    )


def project_of(runs: int, where: Path) -> tuple[Path, grid.Grid]:
    """A copy of the project whose config is a grid of so many runs."""
    for part in PARTS:
        (where / part).symlink_to(ROOT / part)
    config = read(ROOT / "config.yaml")
    tiny = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text(encoding="utf-8"))
    arms = {
        name: {"lr": 0.05}
        for name in [name for name in config["arms"] if not name.endswith(("top10", *"12346"))][:ARMS]
    }
    study = {**tiny["studies"][0], "arms": arms, "datasets": ["digits"], "run": {"architecture": "cnn", "width": 16}}
    over = {**tiny, "preset": "scale", "seeds": [*range(runs // ARMS)], "studies": [study]}
    over["tuning"] = {"seeds": [], "share": 1.0}
    (where / CONFIG).write_text(yaml.safe_dump(over), encoding="utf-8")
    return where, grid.grid(grid.overlay(config, over))


def fill(project: Path, runs: list[plan.Run], trained: Path) -> None:
    """A whole folder for each run, of one trained run's tables under its own name and config."""
    result = files.sealed(trained / "run.json")
    for run in runs:
        out = project / "results/scale/runs" / run.name
        out.mkdir(parents=True)
        for name in folder.RUN[1:]:
            os.link(trained / name, out / name)
        (out / "config.json").write_text(json.dumps(run.config.model_dump()), encoding="utf-8")
        values = {**result, "study": run.study.name, "arm": run.arm, "identity": run.identity}
        files.seal(out / "run.json", values, folder.RUN, out)


def costs(runs: int, trained: Path, where: Path) -> list[dict]:
    project, found = project_of(runs, where)
    dry = [*SNAKEMAKE, "-n", "--quiet", "--cores", "1", "--configfile", CONFIG]
    tables = [*SNAKEMAKE, TABLES, "--cores", "1", "--configfile", CONFIG]
    rows = [measured("snakemake -n, before", project, runs, dry)]
    fill(project, plan.runs(found, "cpu", {}), trained)
    ready = project / "data/ready/digits"
    ready.mkdir(parents=True)
    for name in ("images.npy", "labels.npy"):
        (ready / name).touch()
    rows.append(measured("snakemake, tables", project, runs, tables))
    alone = [sys.executable, "-m", "rankcollapse", "collect", "results/scale"]
    rows.append(measured("tables alone", project, runs, alone))
    rows.append(measured("snakemake -n, after", project, runs, [*tables, "-n", "--quiet"]))
    rows.append(measured("a job's share", project, runs, [sys.executable, "-c", JOB]))
    return rows


def main(sizes: list[int]) -> None:
    rows = []
    with tempfile.TemporaryDirectory(prefix="rankcollapse-scale-") as scratch:
        trained, config = Path(scratch, "trained"), {"rule": "fa", "width": 16, "lr": 0.1, "epochs": 2}
        Path(scratch, "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        train = [sys.executable, "-m", "rankcollapse", "train", "run.yaml", "--out", trained, "--data-dir", scratch]
        subprocess.run(train, cwd=scratch, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
        for runs in sizes:
            where = Path(scratch, str(runs))
            where.mkdir()
            rows += costs(runs, trained, where)
            for row in rows[-5:]:
                print(
                    "{what:>22}, {runs:>6} runs: {cpu_seconds:>5} CPU-s, {seconds:>5} s, {memory_mb:>5} MB".format(
                        **row
                    )
                )
    out = ROOT / "results/checks/scale.csv"
    with files.writing(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [100, 1_000, 10_000])
