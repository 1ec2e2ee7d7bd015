"""The conda environments of envs/ are what pyproject.toml and requirements.lock say."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = """
[project]
requires-python = ">=3.11,<3.13"
dependencies = ["Torch>=2.9,<3", "scikit_learn", "numpy"]
[project.optional-dependencies]
render = ["numpy", "matplotlib"]
dev = ["pytest"]
"""
LOCK = """\
matplotlib==3.10.0 \\
    --hash=sha256:1f \\
    --hash=sha256:2f
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:3f
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:4f
pytest==9.0.0 \\
    --hash=sha256:5f
scikit-learn==1.9.1 \\
    --hash=sha256:6f
torch==2.14.1+cpu ; python_full_version < '3.15' and sys_platform != 'none' \\
    --hash=sha256:7f
"""


def environments(folder, *arguments):
    command = [sys.executable, ROOT / "envs/environments.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path):
    """A small project whose environments have been written."""
    (tmp_path / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (tmp_path / "requirements.lock").write_text(LOCK, encoding="utf-8")
    (tmp_path / "envs").mkdir()
    assert environments(tmp_path).returncode == 0
    return tmp_path


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def written(folder, name):
    return yaml.safe_load((folder / "envs" / f"{name}.yaml").read_text(encoding="utf-8"))


def refused(done, one_sentence, *words):
    assert (done.returncode, done.stdout) == (1, "")
    one_sentence(done.stderr.removesuffix("\n"), *words)


def test_the_environments_of_the_project_are_up_to_date():
    done = environments(ROOT, "--check")
    assert done.returncode == 0, done.stderr


def test_each_environment_holds_what_is_listed_for_it_in_the_versions_of_the_lock(project):
    """From one channel, and without the word `nodefaults`: conda 26.7 and later take that for a channel's name."""
    train = ["torch==2.14.1+cpu", "scikit-learn==1.9.1", "numpy==2.4.6"]
    for name, pins in (("train", train), ("render", ["numpy==2.4.6", "matplotlib==3.10.0"])):
        wanted = {"channels": ["conda-forge"], "dependencies": ["python=3.11", "pip", {"pip": pins}]}
        assert written(project, name) == wanted


@pytest.mark.parametrize(
    ("file", "old", "new", "name"),
    [
        ("requirements.lock", "matplotlib==3.10.0", "matplotlib==3.10.1", "render"),
        ("pyproject.toml", 'render = ["numpy",', "render = [", "render"),
        ("envs/train.yaml", "conda-forge", "defaults", "train"),
    ],
)
def test_a_change_is_noticed_until_the_environments_are_written_anew(project, one_sentence, file, old, new, name):
    edit(project / "requirements.lock", "numpy==2.5.5", "numpy==2.5.6")  # of another Python
    assert environments(project, "--check").returncode == 0
    edit(project / file, old, new)
    refused(environments(project, "--check"), one_sentence, f"envs/{name}.yaml", "make envs")
    assert environments(project).returncode == 0
    assert environments(project, "--check").returncode == 0
    if file == "requirements.lock":
        assert new in written(project, name)["dependencies"][-1]["pip"]


def test_a_package_that_the_lock_lacks_is_named(project, one_sentence):
    edit(project / "requirements.lock", "matplotlib==3.10.0", "seaborn==0.13.2")
    for arguments in ([], ["--check"]):
        refused(environments(project, *arguments), one_sentence, "requirements.lock", "matplotlib", "make lock")
