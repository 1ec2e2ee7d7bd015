"""The workflow in environments that a real conda makes, in a home whose own packages break whatever imports them.

conda takes Python and pip from a channel made of this machine's, and pip the rest, as envs/ lists it. Two wheels are
stand-ins: torch and torchvision lead to what is installed here, with CUDA's libraries and triton, instead of gigabytes
anew. So this does not show that those install, nor that conda-forge's own Python and pip solve.
"""

import json
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from test_workflow import ROOT, copy_project

LINKED = "torch", "torchvision"
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
TRACE = """\
import os, sys
with open(os.environ["TRACE"], "a") as file:
    print(*sys.orig_argv[2:4], sys.prefix, file=file)
"""
POISON = 'raise ImportError("a package of ~/.local")\n'

pytestmark = pytest.mark.conda


def pins(text: str) -> dict[str, str]:
    return dict(pin.split("==") for pin in yaml.safe_load(text)["dependencies"][-1]["pip"])


def write_wheels(folder: Path) -> str:
    """Wheels of torch and torchvision that lead to those installed here: pip takes them for a later local version."""
    (folder / "links").mkdir(parents=True)
    here = Path(metadata.distribution("torch").locate_file(""))
    for name in (*LINKED, "torchgen", "functorch", "torchvision.libs", "nvidia", "triton"):
        if (here / name).exists():
            (folder / "links" / name).symlink_to(here / name)
    for name in LINKED:
        version = f"{metadata.version(name)}+linked"
        needs = [need for need in metadata.requires(name) if not need.startswith(("nvidia", "cuda", "triton"))]
        head = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
        texts = {"METADATA": "\n".join(["Metadata-Version: 2.1", *head]), "WHEEL": "Wheel-Version: 1.0", "RECORD": ""}
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.pth", f"{folder / 'links'}\n")
            for file, text in texts.items():
                wheel.writestr(f"{name}-{version}.dist-info/{file}", text)
    return str(folder)


def poison(home: Path) -> None:
    """What a user has installed for all Pythons, in the versions of the pins: it breaks whatever imports it."""
    site = home / f".local/lib/python{PYTHON}/site-packages"
    versions = pins((ROOT / "envs/render.yaml").read_text(encoding="utf-8"))
    for name in ("numpy", "pandas", "pydantic"):
        info = site / f"{name}-{versions[name]}.dist-info/METADATA"
        for path, text in ((site / name / "__init__.py", POISON), (info, f"Name: {name}\nVersion: {versions[name]}\n")):
            path.parent.mkdir(parents=True)
            path.write_text(text, encoding="utf-8")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """A user's, with a home of its own, and nothing of a conda or a Python that is active here."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("CONDA", "PYTHON", "XDG"))}
    return {**env, "HOME": str(folder / "home"), "PATH": f"{folder}/conda/root/condabin:{env['PATH']}", **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A home, a conda, and the project, whose tiny grid has been run in environments of that conda."""
    if f"python={PYTHON}" not in (ROOT / "envs/train.yaml").read_text(encoding="utf-8"):
        pytest.skip(
            f"envs/ asks for another Python than this, {PYTHON}, which is all that a channel made here can offer"
        )
    folder = tmp_path_factory.mktemp("conda")
    (folder / "home").mkdir()
    make = [sys.executable, ROOT / "tests/conda/make.py", folder / "conda"]
    made = subprocess.run(make, env=environment(folder), capture_output=True, text=True)
    if made.returncode == 77:
        pytest.skip(made.stdout.strip())
    assert made.returncode == 0, made.stderr
    poison(folder / "home")
    project = copy_project(folder / "project")
    (project / "sitecustomize.py").write_text(TRACE, encoding="utf-8")  # rules have this folder in PYTHONPATH
    tiny = yaml.safe_load((project / "tests/tiny.yaml").read_text(encoding="utf-8"))
    study = tiny["studies"][0]
    studies = [{**study, "arms": {"fa": study["arms"]["fa"]}}]
    (project / "one.yaml").write_text(yaml.safe_dump({**tiny, "seeds": [0], "studies": studies}), encoding="utf-8")
    wheels = f"{os.environ.get('PIP_FIND_LINKS', '')} {write_wheels(folder / 'wheels')}".strip()
    env = environment(folder, PIP_FIND_LINKS=wheels, TRACE=str(folder / "trace"))
    call = [sys.executable, "-m", "snakemake", "--cores", "2", "--use-conda", "--configfile", "one.yaml"]
    done = subprocess.run(call, cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def prefixes(folder: Path) -> dict[str, Path]:
    """The environments that Snakemake had made, by the file of envs/."""
    files = {(folder / f"project/envs/{name}.yaml").read_bytes(): name for name in ("train", "render")}
    return {files[copy.read_bytes()]: copy.with_suffix("") for copy in folder.glob("project/.snakemake/conda/*.yaml")}


def ask(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Ask the Python of an environment, in the user's environment as it is."""
    command = [prefixes(folder)[name] / "bin/python", *arguments]
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, cwd=folder)


def test_the_grid_runs_to_the_end(folder):
    results = folder / "project/results/tiny"
    (run,) = results.glob("runs/*/*/*/seed0/run.json")
    assert json.loads(run.read_text(encoding="utf-8"))["outcome"] == "finished"
    assert (results / "manifest.json").exists()
    assert (folder / "project/paper/tiny/replication.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["train", "render"])
def test_an_environment_holds_what_is_pinned_for_it(folder, name):
    listed = ask(folder, name, "-s", "-m", "pip", "list", "--format", "json")
    found = {entry["name"].lower(): entry["version"] for entry in json.loads(listed.stdout)}
    wanted = pins((ROOT / f"envs/{name}.yaml").read_text(encoding="utf-8"))
    wanted |= {linked: f"{wanted[linked]}+linked" for linked in LINKED if linked in wanted}
    assert {key: found.get(key) for key in wanted} == wanted
    assert not {"rankcollapse", "snakemake", "pytest"} & set(found)
    assert ("torch" in found) == (name == "train")


@pytest.mark.parametrize("name", ["train", "render"])
def test_the_users_own_packages_would_have_broken_it(folder, name):
    assert "a package of ~/.local" in ask(folder, name, "-c", "import numpy").stderr
    assert ask(folder, name, "-s", "-c", "import numpy").returncode == 0


def test_rules_run_in_their_environments_python(folder):
    """All but the check before the first job, which is Snakemake's own."""
    train, render = prefixes(folder)["train"], prefixes(folder)["render"]
    wanted = {f"rankcollapse {command} {train}" for command in ("data", "train")}
    wanted |= {f"rankcollapse {command} {render}" for command in ("tune", "collect", "seal")}
    wanted |= {f"rankcollapse.render {command} {render}" for command in ("summarise", "figure", "pages", "paper")}
    traced = set((folder / "trace").read_text(encoding="utf-8").splitlines())
    assert traced == wanted | {f"rankcollapse check {sys.prefix}"}
