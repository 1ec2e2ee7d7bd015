"""The benchmark: that each section runs, on networks that are small; what it finds is for people to read."""

import tempfile

import bench
import numpy as np
import pandas as pd
import pytest
import torch

CPU = torch.device("cpu")
SMALL = {"dataset": "digits", "validation_images": 50, "lr": 0.01, "rule": "fa"}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Networks of a few units, turns of a few milliseconds, and a folder for temporary files."""
    monkeypatch.setattr(bench, "RESNET", {**SMALL, "architecture": "resnet18", "normalization": "batch"})
    monkeypatch.setattr(bench, "FULL", {"width": 8, "batch_size": 16})
    monkeypatch.setattr(bench, "LAYERS", [])
    monkeypatch.setattr(bench, "ONE_LAYER", 0.0002)
    monkeypatch.setattr(bench, "CNN", {**SMALL, "architecture": "cnn", "width": 8})
    monkeypatch.setattr(bench, "MLP", {**SMALL, "architecture": "mlp", "width": 8, "depth": 2, "channels_last": False})
    monkeypatch.setattr(bench, "PROBED", {"train_images": 640, "epochs": 1})
    monkeypatch.setattr(bench, "SECONDS", 0.002)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def go(tmp_path, only):
    bench.main(["--out", str(tmp_path / "out"), "--rounds", "2", "--only", only])
    (path,) = (tmp_path / "out").glob("*/bench.csv")
    assert path.with_name("bench.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
    return pd.read_csv(path)


@pytest.mark.parametrize(
    ("only", "rows"),
    [
        ("machine", 3),
        ("newton", 2),
        ("^muon", 1),
        ("probes", 1),
        ("biotorch|quick", 5),
        ("stems", 15),
        ("small_nets", 2),
        ("other_rules", 10),
    ],
)
def test_a_section_is_shown_and_written_and_leaves_nothing(capsys, tmp_path, only, rows):
    found, out = go(tmp_path, only), capsys.readouterr().out
    assert len(found) == rows
    assert found["device"].iloc[0] in out.splitlines()[0]
    for row in found.fillna({"verdict": "", "bound": ""}).itertuples():
        assert row.what in out
        assert row.verdict in out
        assert row.bound in out
        if row.verdict == "not measured":
            assert np.isnan(row.measured)
            assert (row.noise, row.n) == (0, 0)
        else:
            assert 0 < row.low <= row.measured <= row.high
            assert row.n == 2
    assert list((tmp_path / "tmp").glob("rankcollapse*")) == []


def test_every_product_of_every_layer_is_timed_by_every_way(tmp_path):
    """Of each layer of the three nets once; the sums of a net have a layer as often as it is there."""
    rows = go(tmp_path, "convolutions")
    assert list(rows["what"].str.contains("bfloat16")) == [True] * 3 + [False] * 3
    nets = [bench.convolutions_of(stem) for stem in ("imagenet", "cifar2", "cifar")]
    layers = pd.read_csv(next((tmp_path / "out").glob("*/layers.csv")))
    assert len(layers) == 2 * 3 * len({layer for net in nets for layer in net})
    assert layers["torch"].notna().all()
    assert layers[layers["product"] == "to_weight"]["tapped"].notna().all()
    assert all(row[row.chosen] > 0 for _, row in layers.iterrows())
    layers = layers[layers["dtype"] == "bfloat16"].set_index("layer")
    names = [f"{i}, {o}, {k}, {s}, {side} x {side}" for i, o, k, s, side in nets[0]]
    every = layers.loc[names]
    ours = sum(row[row.chosen] for _, row in every.iterrows())
    assert rows["measured"].iloc[0] == pytest.approx(every["torch"].sum() / ours, rel=1e-3)


def test_pytorchs_products_are_its_own_for_a_call(monkeypatch):
    rule = bench.products.choose
    assert bench.pytorchs(lambda: bench.products.choose("any layer"))() == bench.products.How()
    with pytest.raises(ZeroDivisionError):
        bench.pytorchs(lambda: 1 / 0)()
    assert bench.products.choose is rule


def test_what_cannot_be_measured_here_is_told_as_that_and_what_is_compiled_is_not_counted(tmp_path):
    found = go(tmp_path, "throughput")
    assert set(found["verdict"]) == {"not measured"}
    assert found["bound"].str.contains("make bench-gpu").all()
    work = lambda: torch.zeros(100, 100) @ torch.zeros(100, 100)  # noqa: E731
    assert bench.at_rate(work, 0.001) == ", 0.002 GFLOP at 2 GFLOP/s"
    assert bench.operations(work) == 0.002
    work.compiled = True
    assert bench.at_rate(work, 0.001) == ""


def test_a_part_of_the_benchmark_leaves_the_table_of_the_whole_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    bench.main(["--rounds", "2", "--only", "throughput"])
    assert not (tmp_path / "results").exists()


def test_a_ratio_is_of_the_first_by_the_second_and_its_noise_is_that_of_the_second(monkeypatch):
    clock = iter(np.cumsum(np.ones(100)))
    monkeypatch.setattr(bench, "now", lambda device: next(clock))
    calls = []
    seconds = bench.turns([lambda: calls.append("a"), lambda: calls.append("b")], CPU, 6)
    assert seconds.shape == (6, 2)
    assert calls.count("b") == calls.count("a") - 1, "the first is timed once more, to see how long a turn is"
    row = bench.ratio("x", "≤ 1.5", lambda: None, lambda: None, CPU, 6)
    assert (row.measured, row.low, row.high, row.noise, row.n) == (1, 1, 1, 0, 6)


@pytest.mark.parametrize(
    ("target", "measured", "noise", "verdict"),
    [("≤ 1.02", 1.02, 0, "met"), ("≤ 1.02", 1.04, 0, "NOT MET"), ("≤ 1.02", 1.04, 0.03, "within noise"),
     ("≥ 2", 1.9, 0, "NOT MET"), ("≥ 2", 1.875, 0.125, "within noise"), ("≥ 2", 2, 0, "met"), ("", 7, 0, ""),
     ("≤ 1", float("nan"), 0, "not measured")],
)  # fmt: skip
def test_a_miss_within_the_noise_is_no_success(target, measured, noise, verdict):
    assert bench.Row("x", "ratio", target, measured, measured, measured, noise, 9).verdict == verdict
