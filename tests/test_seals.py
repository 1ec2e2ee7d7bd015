"""Seals, the memory of digests, the lock, and the command that checks all that a preset has made."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankcollapse.__main__ import main
from rankcollapse.errors import InputError
from rankcollapse.experiment import files


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A folder with two files and the JSON that seals them."""
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "a.csv").write_text("1,2\n", encoding="utf-8")
    (folder / "b.bin").write_bytes(bytes(range(256)))
    files.seal(folder / "run.json", {"loss": float("nan"), "label": "Größe", "n": 3}, ["a.csv", "b.bin"], folder)
    return folder


def test_what_was_sealed_is_read_back_and_is_whole(sealed):
    found = files.sealed(sealed / "run.json")
    assert (found["label"], found["n"], set(found["files"])) == ("Größe", 3, {"a.csv", "b.bin"})
    assert [*files.damage(sealed / "run.json", sealed)] == []


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_of_a_seal_can_change_unnoticed(sealed, place, bit):
    made = bytearray((sealed / "run.json").read_bytes())
    made[int(place * len(made))] ^= 1 << bit
    copy = sealed / "copy.json"
    copy.write_bytes(made)
    with pytest.raises(InputError, match=r"copy\.json is damaged"):
        files.sealed(copy)


@pytest.mark.parametrize("content", ["", "[]", "1", "null", '{"a": 1}', '{"seal": 1}', "[" * 10_000], ids=len)
def test_what_is_no_seal_is_refused_in_one_sentence(tmp_path, refused, content):
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    refused(lambda: files.sealed(tmp_path / "x.json"), "x.json", "damaged")


def test_a_digest_is_remembered_and_a_change_with_the_old_time_and_size_is_seen_all_the_same(tmp_path, monkeypatch):
    path, memory = tmp_path / "file", tmp_path / "digests.json"
    path.write_bytes(b"0123456789")
    first = files.Digests(memory)
    before = first(path)
    first.save()
    read, sha256 = [], files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: read.append(path) or sha256(path))
    assert (files.Digests(memory)(path), read) == (before, [])
    assert (files.Digests(memory, fresh=True)(path), read) == (before, [path])
    stat = path.stat()
    path.write_bytes(b"0123456788")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert files.Digests(memory)(path) == sha256(path) != before
    memory.write_text("{", encoding="utf-8")
    other = files.Digests(memory)
    assert (other(path), other(tmp_path / "none")) == (sha256(path), None)
    other(memory)
    other.save()
    last = files.Digests(memory)
    last(path)
    last.save()
    found = json.loads(memory.read_text(encoding="utf-8"))["digests"]
    assert list(found) == [str(path)], "what is asked for no longer is forgotten"


# ---- seal and verify ----


@pytest.fixture
def preset(tmp_path, monkeypatch):
    """What a preset has made: a table, a figure, a run and a candidate, a plan of both, and the manifest."""
    monkeypatch.chdir(tmp_path)
    made = ["results/p/tables/runs.csv", "figures/p/a.svg", "figures/p/a.pdf"]
    for name in made:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name, encoding="utf-8")
    runs = [Path("results/p/runs/s/d/a/seed0"), Path("results/p/tuning/s/d/a/lr1/seed1")]
    for folder in runs:
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("1\n", encoding="utf-8")
        files.seal(folder / "run.json", {}, ["metrics.csv"], folder)
    plan = {"runs": {"s/d/a/seed0": {}}, "candidates": {"s/d/a/lr1/seed1": {}}}
    Path("results/p/plan.json").write_text(json.dumps(plan), encoding="utf-8")
    assert main(["seal", "results/p", *made, "figures/p/none.svg"]) == 0
    return tmp_path


@pytest.fixture
def verified(capsys):
    """A function from arguments to the code of `verify`, the files that it names, and all else that it says."""

    def call(*words):
        code = main(["verify", *words])
        out, err = capsys.readouterr()
        *named, last = out.splitlines() or [""]
        return code, dict(line.split(": ") for line in named), last + err

    return call


def test_verify_names_every_file_that_is_missing_altered_or_stray(preset, verified):
    for name in ("figures/p/a.svg", "results/p/runs/s/d/a/seed0/metrics.csv"):
        Path(name).unlink()
    for name in ("results/p/tables/runs.csv", "results/p/tuning/s/d/a/lr1/seed1/run.json"):
        Path(name).write_text("{}", encoding="utf-8")
    for name in ("figures/p/old.svg", "results/p/tables/.runs.writing.17.csv", "results/p/runs/s/d/b/seed0/run.json"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}", encoding="utf-8")
    code, named, last = verified("results/p")
    assert code == 2
    assert named == {
        "figures/p/a.svg": "missing",
        "figures/p/old.svg": "stray",
        "results/p/runs/s/d/a/seed0/metrics.csv": "missing",
        "results/p/runs/s/d/b/seed0": "stray",
        "results/p/tables/.runs.writing.17.csv": "stray",
        "results/p/tables/runs.csv": "altered",
        "results/p/tuning/s/d/a/lr1/seed1/metrics.csv": "stray",  # its seal is broken
        "results/p/tuning/s/d/a/lr1/seed1/run.json": "altered",
    }
    assert "8 not" in last
    assert "makes them again" in last


def test_a_damaged_manifest_is_named_and_a_missing_one_is_asked_for(preset, verified):
    manifest = Path("results/p/manifest.json")
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("a.svg", "b.svg"), encoding="utf-8")
    code, named, _ = verified()
    assert (code, named["results/p/manifest.json"]) == (2, "altered")
    manifest.unlink()
    code, _, last = verified()
    assert code == 2
    assert "no manifest.json yet" in last


def test_a_run_that_is_being_trained_is_not_stray(preset, verified):
    """Nor is the lock that a run leaves."""
    for name in ("a/seed0/.lock", "c/seed0/.lock", "c/seed0/config.json", "c/seed0/state/id/gradients.bin"):
        name = f"runs/s/d/{name}"
        Path("results/p", name).parent.mkdir(parents=True, exist_ok=True)
        Path("results/p", name).write_text("{}", encoding="utf-8")
    code, named, last = verified()
    assert (code, named) == (0, {})
    assert "results/p: 8 files as sealed, 0 not" in last


def test_a_copy_of_the_repository_that_ran_nothing_misses_only_what_git_keeps(preset, verified):
    def git(*words):
        subprocess.run(["git", *words], check=True, capture_output=True)

    git("init", "-q")
    git("add", "figures/p/a.svg", "results/p/tables", "results/p/manifest.json")
    shutil.rmtree("results/p/tuning")
    Path("figures/p/a.pdf").unlink()
    missing = {"figures/p/a.pdf": "missing", "results/p/tuning/s/d/a/lr1/seed1/run.json": "missing"}
    assert verified()[:2] == (2, missing)  # where the runs are they were made
    shutil.rmtree("results/p/runs")
    code, named, last = verified()
    assert (code, named) == (0, {})
    assert "1 are not part of the repository" in last
    Path("figures/p/a.svg").unlink()
    assert verified()[:2] == (2, {"figures/p/a.svg": "missing"})
