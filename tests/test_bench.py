"""The benchmark: that each section runs, on networks that are small; what it finds is for people to read."""

import tempfile

import numpy as np
import pandas as pd
import pytest
import torch

from rankcollapse import bench
from rankcollapse.__main__ import main

CPU = torch.device("cpu")
SMALL = {"dataset": "digits", "validation_images": 50, "lr": 0.01, "rule": "fa"}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Networks of a few units, turns of a few milliseconds, and a folder for temporary files."""
    monkeypatch.setattr(bench, "RESNET", {**SMALL, "architecture": "cnn4", "normalization": "batch"})
    monkeypatch.setattr(bench, "CNN", {**SMALL, "architecture": "cnn4", "width": 4})
    monkeypatch.setattr(bench, "MLP", {**SMALL, "architecture": "mlp", "width": 8, "depth": 2, "channels_last": False})
    monkeypatch.setattr(bench, "SECONDS", 0.002)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def go(tmp_path, *arguments):
    return main(["bench", "--out", str(tmp_path / "out"), "--device", "cpu", *arguments])


def table(tmp_path):
    (path,) = (tmp_path / "out").glob("*/bench.csv")
    return pd.read_csv(path)


@pytest.mark.parametrize(("only", "rows"), [("newton", 2), ("^muon", 1), ("start", 1)])
def test_a_section_is_shown_and_written_and_leaves_nothing(capsys, tmp_path, only, rows):
    assert go(tmp_path, "--rounds", "2", "--only", only) == 0
    found, lines = table(tmp_path), capsys.readouterr().out.splitlines()
    assert len(found) == rows == len(lines) - 1
    assert found["device"].iloc[0] in lines[0]
    for row, line in zip(found.itertuples(), lines[1:], strict=True):
        assert row.what in line
        assert row.low <= row.measured <= row.high
        assert row.measured > 0
        assert row.rounds == 2
        assert line.endswith(row.verdict)
    assert list((tmp_path / "tmp").glob("rankcollapse*")) == []


def test_a_ratio_is_of_the_first_by_the_second_and_its_noise_is_that_of_the_second(monkeypatch):
    clock = iter(np.cumsum(np.ones(100)))
    monkeypatch.setattr(bench, "now", lambda device: next(clock))
    calls = []
    row = bench.ratio("x", "≤ 1.5", lambda: calls.append("a"), lambda: calls.append("b"), CPU, 6)
    assert (row.measured, row.low, row.high, row.noise, row.rounds) == (1, 1, 1, 0, 6)
    assert calls.count("b") == 2 * (calls.count("a") - 1), "the first is timed once more, to see how long a turn is"


@pytest.mark.parametrize(
    ("target", "measured", "noise", "verdict"),
    [("≤ 1.02", 1.02, 0, "met"), ("≤ 1.02", 1.04, 0, "NOT MET"), ("≤ 1.02", 1.04, 0.03, "within noise"),
     ("≥ 2", 1.9, 0, "NOT MET"), ("≥ 2", 1.875, 0.125, "within noise"), ("≥ 2", 2, 0, "met"), ("", 7, 0, "")],
)  # fmt: skip
def test_a_miss_within_the_noise_is_no_success(target, measured, noise, verdict):
    assert bench.Row("x", "ratio", target, measured, measured, measured, noise, 9).verdict == verdict


def test_bench_refuses_what_it_cannot_time(capsys, tmp_path, one_sentence):
    assert go(tmp_path, "--rounds", "1") == 2
    one_sentence(capsys.readouterr().err.strip(), "--rounds is 1", "2 or more")
    assert go(tmp_path, "--only", "nonsense") == 2
    one_sentence(capsys.readouterr().err.strip(), "--only is 'nonsense'", "newton_schulz")


def test_the_processor_is_told_by_make_and_instructions():
    make, _, instructions = bench.processor().rpartition(", ")
    assert make
    assert instructions in ("AMX", "AVX512-bf16", "AVX512", "AVX2", "no AVX2")
