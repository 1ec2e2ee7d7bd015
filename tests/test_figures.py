"""Each figure on synthetic tables with diverged, missing and single runs."""

import importlib
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow/scripts/figures"))

import common  # noqa: E402

FIGURES = sorted(path.stem for path in (ROOT / "workflow/scripts/figures").glob("*.py") if path.stem != "common")
STEPS = [0, 10, 20]
SETTINGS = {
    "bp": {"rule": "bp", "update": "full"},
    "bp-top2": {"rule": "bp", "update": "top_r", "rank": 2},
    "fa": {"rule": "fa", "update": "full"},
    "fa+bn": {"rule": "fa", "update": "full"},
}
LOOKS = yaml.safe_load((ROOT / "config.yaml").read_text())["arms"]


def write_tables(folder: Path, outcomes: dict[tuple[str, int], str], seeds: int = 2) -> None:
    """The tables of collect.py for one study, with random numbers in them; outcomes are `finished` unless given."""
    g = np.random.default_rng(0)
    tables: dict[str, list] = {"runs": [], "epochs": [], "ranks": [], "alignment": []}
    for arm, settings in SETTINGS.items():
        for seed in range(seeds):
            key = {"study": "s", "dataset": "cifar10", "architecture": "mlp", "arm": arm, "seed": seed}
            outcome = outcomes.get((arm, seed), "finished")
            run = {**key, "rank": None, "norm": None, "lr": 0.1, **settings, "outcome": outcome}
            if outcome == "missing":
                tables["runs"].append(run)
                continue
            broken = np.nan if outcome == "diverged" else 1.0
            tables["runs"].append({**run, "test_accuracy": g.uniform(0.3, 0.6), "validation_accuracy": 0.5})
            for epoch in (1, 2):
                row = {
                    "epoch": epoch,
                    "step": 10 * epoch,
                    "train_loss": broken * g.uniform(1, 2),
                    "train_accuracy": 0.5,
                }
                tables["epochs"].append(
                    {**key, **row, "validation_loss": 1.0, "validation_accuracy": g.uniform(0.3, 0.6)}
                )
            for step in STEPS:
                for quantity, scope in [
                    ("error", "batch"), ("error", "pooled"), ("classifier_input_error", "pooled"),
                    ("activation", "batch"),
                    ("update", "step"), ("gradient_trajectory", "cumulative"), ("gradient_trajectory", "window"),
                ]:  # fmt: skip
                    for layer in ("hidden1", "head", "all"):
                        values = dict.fromkeys(("entropy_s", "entropy_s2"), broken * g.uniform(2, 50))
                        what = {"quantity": quantity, "layer": layer, "scope": scope, "step": step, "rows": step + 5}
                        tables["ranks"].append({**key, **what, **values})
                if settings["rule"] == "fa":
                    for quantity, layer in [("weight", "head"), ("gradient", "hidden1"), ("gradient", "all")]:
                        row = {"quantity": quantity, "layer": layer, "step": step, "value": broken * g.uniform(-1, 1)}
                        tables["alignment"].append({**key, **row})
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(folder / (f"{name}.csv.gz" if name == "ranks" else f"{name}.csv"), index=False)


def draw(figure: str, tables: Path, out: Path) -> str:
    """The caption of the figure, drawn and saved by its script."""
    looks = {arm: {key: LOOKS[arm][key] for key in ("label", "colour", "marker", "line")} for arm in SETTINGS}
    grid = {"arms": looks, "studies": {"s": "A study"}}
    script = importlib.import_module(figure)
    found = common.load(tables, grid)
    with mpl.rc_context(common.STYLE):
        common.save(script.draw(found, grid), script.caption(found, grid), out / figure)
    assert (out / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    return (out / f"{figure}.txt").read_text()


@pytest.mark.parametrize("figure", FIGURES)
def test_diverged_and_missing_runs_are_counted_in_the_caption(figure, tmp_path):
    write_tables(tmp_path, {("fa", 0): "diverged", ("bp", 1): "missing"})
    caption = draw(figure, tmp_path, tmp_path)
    assert "1 diverged" in caption
    assert "1 missing" in caption or figure == "alignment"  # which shows no BP


@pytest.mark.parametrize("figure", FIGURES)
def test_a_single_seed_is_drawn_without_a_spread(figure, tmp_path):
    write_tables(tmp_path, {}, seeds=1)
    assert "standard deviation" not in draw(figure, tmp_path, tmp_path)


def test_equal_tables_give_equal_bytes(tmp_path):
    write_tables(tmp_path, {})
    for folder in ("first", "second"):
        draw("gradient_rank", tmp_path, tmp_path / folder)
    for kind in ("svg", "pdf", "txt"):
        first, second = (tmp_path / folder / f"gradient_rank.{kind}" for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_the_look_of_every_arm_is_its_own():
    looks = [(look["colour"], look["marker"]) for look in LOOKS.values()]
    assert len(set(looks)) == len(looks)
    assert len({look["label"] for look in LOOKS.values()}) == len(LOOKS)
