"""Try the environments of envs/ with the conda of this machine: create them, import what they list, train a run in one.

Prints a report. All that it rests on goes into a folder to send with it: logs, the run, what is in each environment.
"""

import csv
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

FOLDER = Path("results/conda-check")  # of a preset of its own, so that no run of another is taken for this one's
RUN = FOLDER / "runs/mlp/digits/bp/seed0/run.json"
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--use-conda", "--cores", "1", "--configfile", "presets/demo.yaml"]
SNAKEMAKE += ["--config", f"preset={FOLDER.name}"]
LOOK = """
import importlib, json, platform, sys
from importlib.metadata import distributions, version
for name in sys.argv[1:]:
    importlib.import_module({"scikit-learn": "sklearn", "pyyaml": "yaml"}.get(name, name))
every = {d.metadata["Name"]: d.version for d in distributions()}
json.dump([platform.python_version(), {name: version(name) for name in sys.argv[1:]}, every], sys.stdout)
"""


def check() -> Iterator[str]:
    """The lines of the report. Raises RuntimeError for the first step that fails."""
    info = json.loads(output("conda", "info", "--json"))
    yield f"platform    {info['platform']}, {platform.platform()}"
    yield f"conda       {output('conda', '--version').strip()}, at {info['conda_prefix']}"
    start = time.perf_counter()
    made = run("solve", *SNAKEMAKE, "--conda-create-envs-only").count("Creating conda environment")
    yield f"solve       ok, {made} made, the others were there, {time.perf_counter() - start:.0f} s"
    listed = output(*SNAKEMAKE, "--list-conda-envs").splitlines()
    for row in csv.DictReader(listed, delimiter="\t"):
        yield f"{row['environment']:20}{look(Path(row['environment']), Path(row['location']), info['platform'])}"
    run("train", *SNAKEMAKE, "--", str(RUN))
    result = json.loads(RUN.read_text(encoding="utf-8"))
    accuracy, seconds = 100 * result["test_accuracy"], result["seconds"]
    yield f"training    {result['outcome']}, test {accuracy:.1f} %, {seconds:.0f} s on {result['device']}"
    if result["outcome"] != "finished" or accuracy < 80:  # 96 % where we tried it
        raise RuntimeError("the run did not learn the digits")


def look(file: Path, prefix: Path, where: str) -> str:
    """The versions of what an environment lists, each imported; all that is in it goes into two files of the folder.

    Those are for a reader. As envs/NAME.PLATFORM.pin.txt the first would do harm, and so we ship none: where there is
    such a file snakemake (9.27) calls `conda create --file` with it and leaves the yaml unread. Such a list holds
    conda's own packages alone, here Python and pip, and none that pip installed: every rule would fail at its first
    import. What fixes our versions are the pip lines of the yaml; what those packages require in turn is pip's choice.
    """
    pins = yaml.safe_load(file.read_text(encoding="utf-8"))["dependencies"][-1]["pip"]
    wanted = dict(pin.split("==") for pin in pins)
    # Isolated: what lies in the user's home is not in the environment.
    python, found, every = json.loads(output(prefix / "bin" / "python", "-I", "-c", LOOK, *wanted))
    explicit = output("conda", "list", "--explicit", "--md5", "--prefix", prefix)
    (FOLDER / f"{file.stem}.{where}.pin.txt").write_text(explicit, encoding="utf-8")
    versions = "".join(f"{name}=={version}\n" for name, version in sorted(every.items()))
    (FOLDER / f"{file.stem}.{where}.python-packages.txt").write_text(versions, encoding="utf-8")
    if found != wanted:
        raise RuntimeError(f"{file} lists {wanted}, its environment holds {found}")
    return f"python {python}, " + ", ".join(f"{name} {version}" for name, version in found.items())


def output(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"`{' '.join(map(str, command))}` ended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def run(name: str, *command: str) -> str:
    """A step that takes time: what it says, which goes into a file of the folder as it comes."""
    log = FOLDER / f"{name}.log"
    print(f"            {name}: takes minutes, see {log}", file=sys.stderr)
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    said = log.read_text(encoding="utf-8", errors="replace")
    if code:
        last = "\n".join(said.splitlines()[-20:])
        raise RuntimeError(f"{name} ended with {code}; the last lines of {log}:\n{last.strip()}")
    return said


def main() -> None:
    if shutil.which("conda") is None:
        sys.exit("no conda on this machine, and nothing was checked: install it (Miniforge will do), then try again")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    report, ending = [], "PASSED: conda made both environments, they hold what they list, and a run was trained in one."
    try:
        for line in check():
            print(line, flush=True)
            report.append(line)
    except RuntimeError as error:
        print(error)
        report, ending = [*report, str(error)], "FAILED: the lines above say at which step, and why."
    print(ending)
    (FOLDER / "report.txt").write_text("\n".join([*report, ending, ""]), encoding="utf-8")
    print(f"To report it send the folder {FOLDER}.", file=sys.stderr)
    sys.exit(ending.startswith("FAILED"))


if __name__ == "__main__":
    main()
