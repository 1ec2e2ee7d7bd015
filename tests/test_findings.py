"""Sentences that follow the results: which case is said, and that all names in the committed file exist."""

import itertools
import re
from pathlib import Path

import pytest

from rankcollapse.experiment import config, grid
from rankcollapse.render import findings
from rankcollapse.render.claims import read_claims
from rankcollapse.render.evidence import VERDICTS, Evidence, evidence
from rankcollapse.render.joined import PREDICTORS
from rankcollapse.render.mediation import RIVALS
from rankcollapse.render.together import COMMITTED, beside, place, together

ROOT = Path(__file__).parents[1]
STATED = ROOT / "paper" / "findings.yaml"


def known() -> Evidence:
    found = Evidence()
    found.add("quick", "there")
    found.add("quick/a", "reproduced", "1.0 [0.5, 1.5]")
    found.add("quick/r2", 0.25, "0.25")
    return found


def case(say: str, **when) -> findings.Case:
    return config.checked(findings.Case, {"if": when.get("when", {}), "say": say}, "here")


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ({}, True),
        ({"quick": "there", "quick/a": "reproduced"}, True),
        ({"quick/a": ["inconclusive", "reproduced"]}, True),
        ({"quick/a": "not reproduced"}, False),
        ({"quick/r2": "< 0.3"}, True),
        ({"quick/r2": "> 0.3"}, False),
        ({"quick/a": "> 0"}, False),  # a verdict is no number
        ({"full": "absent"}, True),
        ({"full": "there"}, False),
        ({"quick/gone": "> 0"}, False),
    ],
)
def test_a_case_is_said_if_all_that_it_asks_for_is_so(when, holds):
    said = findings.findings({"x": [[case("First {quick/a}.", when=when), case("Second.")]]}, known())
    assert said == {"x": "First 1.0 [0.5, 1.5]." if holds else "Second."}


def test_a_sentence_that_names_what_there_is_not_is_never_said():
    assert findings.findings({"x": [[case("{full/a} points.")]]}, known()) == {}


def test_parts_of_a_finding_are_said_one_after_another_each_by_its_own_cases():
    parts = [
        [case("One.")],
        [case("Two.", when={"quick": "absent"})],
        [case("Never.", when={"full": "there"}), case("Three.")],
    ]
    assert findings.findings({"x": parts}, known()) == {"x": "One. Three."}


def test_every_name_in_the_committed_sentences_exists_in_some_preset():
    """A misspelt name would keep its case from ever being said, without a word."""
    claims = read_claims(ROOT / "paper" / "claims.yaml")
    grids = {name: grid.grid(overlaid(name)) for name in ("quick", "full", "why")}
    names = {*grids, *(f"{preset}/{claim.id}" for preset, claim in itertools.product(grids, claims))}
    for preset, made in grids.items():
        for study in made.studies:
            names |= {f"{preset}/{study.name}/{arm}" for arm in study.arms}
            names |= {f"{preset}/rank and accuracy/{study.name}"}
            names |= {f"{preset}/rules/{predictor}/{study.name}" for predictor in RIVALS}
        families = {claim.family for claim in claims}
        counted = [(claim.family, *side) for claim in claims for side in ([], [claim.left])]
        names |= {"/".join([preset, "count", *each, verdict]) for each in counted for verdict in VERDICTS}
        names |= {f"{preset}/count/{family}/{each}" for family in families for each in ("all", "abstract", "summary")}
        names |= {f"{preset}/heldout/{each}/{net}" for each in PREDICTORS for net in ("cnn4", "cnn", "resnet18", "mlp")}
        names |= {
            f"{preset}/runs/{each}"
            for each in ("planned", "finished", "diverged", "missing", "core hours", "device", "precision")
        }
    parts = [cases for parts in findings.read_findings(STATED).values() for cases in parts]
    used = {name for cases in parts for case in cases for name in case.named()}
    assert {name for name in used if name not in names and re.sub(r"\.\w+$", "", name) not in names} == set()


def test_of_a_preset_on_whose_data_no_statement_can_be_settled_nothing_is_said():
    assert findings.findings(findings.read_findings(STATED), Evidence()) == {}


def test_a_case_that_always_holds_is_the_last_of_its_finding():
    """Those behind it would never be said."""
    for name, parts in findings.read_findings(STATED).items():
        assert all(case.when for cases in parts for case in cases[:-1]), name


def overlaid(preset: str) -> dict:
    """A preset's overlay on config.yaml, as Snakemake lays it."""
    return {**config.read(ROOT / "config.yaml"), **config.read(ROOT / "presets" / f"{preset}.yaml")}


def test_the_evidence_of_the_committed_results_says_what_their_tables_say():
    found = evidence({name: ROOT / "results" / name for name in COMMITTED})
    assert found.values["quick"] == "there"
    assert re.fullmatch(r"−?[\d.]+ \[−?[\d.]+, −?[\d.]+\]", found.texts["quick/muon-cnn"])
    assert found.values["quick/cnn4/bp"] == pytest.approx(float(found.texts["quick/cnn4/bp"].split(" ±")[0]), abs=0.01)
    assert found.values["quick/count/What the paper says/all"] == sum(
        found.values[f"quick/count/What the paper says/{verdict}"]
        for verdict in ("reproduced", "not reproduced", "explained by the control", "inconclusive")
    )


def test_a_file_that_holds_no_findings_is_refused_in_one_sentence(tmp_path, refused):
    for content, words in (("x: 1", "list of cases"), ("x: [{if: {}}]", "say"), ("x: [{say: a, when: {}}]", "when")):
        (tmp_path / "findings.yaml").write_text(content, encoding="utf-8")
        refused(lambda: findings.read_findings(tmp_path / "findings.yaml"), "findings.yaml", words)


def test_committed_presets_share_a_report_and_another_has_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quick", "demo"):
        (tmp_path / "results" / name / "summary").mkdir(parents=True)
        (tmp_path / "results" / name / "manifest.json").touch()
        (tmp_path / "results" / name / "summary" / "claims.csv").touch()
    assert together("full") == ["quick", "full"]
    assert together("demo") == ["demo"]
    assert beside("full") == ["results/quick/summary/claims.csv"]
    assert beside("demo") == beside("quick") == []
    assert place("full") == Path("paper/replication.pdf")
    assert place("demo") == Path("paper/demo/replication.pdf")
