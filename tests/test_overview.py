"""The table that README and report open on: which rows and columns it has, and what stands in a cell."""

from pathlib import Path

import pandas as pd
import pytest

from rankcollapse.render.names import named
from rankcollapse.render.overview import overview

ROOT = Path(__file__).parents[1]
NAMES = {
    "labels": {"fa": "FA", "fa+both": "FA + both", "bp": "BP", "frozen": "Frozen"},
    "studies": {"net": "A net", "cut": "Cut updates"},
    "datasets": {"digits": "digits"},
}


def arm(study, name, n, mean, std=None, rank=None, diverged=0, paper=None):
    return {
        "study": study, "dataset": "digits", "arm": name, "n": n, "diverged": diverged, "paper_percent": paper,
        "test_percent_mean": mean, "test_percent_std": std, "whole_gradient_rank_mean": rank,
    }  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """Writes accuracy.csv of a preset, and returns the overview of all that were written."""

    def write(preset, *rows):
        folder = tmp_path / preset / "summary"
        folder.mkdir(parents=True)
        pd.DataFrame(rows).to_csv(folder / "accuracy.csv", index=False)
        presets = {path.name: NAMES for path in sorted(tmp_path.iterdir())}
        return overview(presets, tmp_path)

    return write


def test_a_row_for_each_arm_in_a_fixed_order_and_a_column_for_each_study_that_has_fa_plain_and_with_both(written):
    rows = written(
        "quick",
        arm("net", "bp", 2, 61.2, 0.8, 157.2),
        arm("net", "fa", 3, 43.6, 1.1, diverged=1),
        arm("net", "fa+both", 3, 52.0, 0.5, 143.4),
        arm("net", "frozen", 0, None),  # has not been run
        arm("cut", "fa", 3, 40.0, 1.0, 12.0),
        arm("stem", "fa+both", 1, 30.0, rank=12.0),
    )
    assert rows == [
        ["", "A net, digits (n = 2 to 3)"],
        ["FA", "43.6 ± 1.1 (1 diverged)"],
        ["FA + both", "52.00 ± 0.50 (143)"],
        ["BP", "61.20 ± 0.80 (157)"],
    ]


def test_what_is_quoted_for_the_paper_stands_in_one_last_column(written):
    written("full", arm("net", "fa+both", 1, 25.0, rank=9.48, paper=46.1), arm("net", "fa", 1, 1.0, diverged=1))
    rows = written("quick", arm("cut", "fa+both", 1, 12.1, paper=46.1), arm("cut", "fa", 1, 3.8, paper=1.4))
    assert [cell.partition(":")[2] for cell in rows[0]] == ["", "", "", " the paper's, by an unverified note"]
    assert rows[1:] == [["FA", "1 (1 diverged)", "3.8", "1.4"], ["FA + both", "25 (9.48)", "12.1", "46.1"]]


def test_studies_of_why_stand_apart_and_without_a_study_there_is_a_head_alone(written):
    assert written("why", arm("net", "fa+both", 3, 50.0, 1.0)) == [[""]]


def test_the_committed_overview_has_the_committed_means():
    names = named(ROOT / "results/quick")
    head, *rows = overview({"quick": names}, ROOT / "results")
    column = next(i for i, title in enumerate(head) if title.startswith(f"{names['studies']['cnn4']}, "))
    accuracy = pd.read_csv(ROOT / "results/quick/summary/accuracy.csv").set_index(["study", "arm"])["test_percent_mean"]
    cell = next(row[column] for row in rows if row[0] == "FA + Muon")
    assert float(cell.split(" ±")[0]) == pytest.approx(accuracy["cnn4", "fa+muon"], abs=0.05)
