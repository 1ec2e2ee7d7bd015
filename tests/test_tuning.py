"""Tuning: the candidates of an arm, the choice among them, and what waits for it."""

import copy
import json
import sys
from fractions import Fraction
from math import ceil
from pathlib import Path

import pandas as pd
import pytest
from test_config import a_grid, refused

from rankcollapse.experiment import files, grid, seals
from rankcollapse.experiment.config import InputError, RunConfig, read, run_config

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

from rankcollapse.experiment import tuning as choose
from rankcollapse.render import tables as analysis

RATES = [0.01, 0.1, 1.0]


def tuned_grid(tune=None, tuning=None, **arms):
    """One study of the digits, whose arm `bp` is tuned and whose arm `fa` takes its rate."""
    config = a_grid(tuning={"seeds": [7, 8], "share": 0.5, **(tuning or {})}, seeds=[0, 1])
    arms = {"bp": {"tune": tune or {"lr": RATES}}, "fa": {"like": "bp"}, **arms}
    return config | {"studies": [{**config["studies"][1], "run": {"width": 16}, "arms": arms}]}


def candidates(config):
    return grid.candidates(grid.grid(config))


def runs(config):
    return grid.runs(grid.grid(config))


# ---- candidates ----


def test_candidates_are_the_middle_and_a_step_away_from_it_along_one_knob_at_a_time():
    star = grid.Tune(lr=[0.01, 0.03, 0.1, 0.3, 1.0], weight_decay=[0.0, 0.1, 0.5])
    assert star.middle == {"lr": 0.1, "weight_decay": 0.1}
    assert [(c["lr"], c["weight_decay"]) for c in star.candidates] == [
        (0.01, 0.1), (0.03, 0.1), (0.1, 0.1), (0.3, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 0.5),
    ]  # fmt: skip
    assert grid.Tune(lr=RATES).candidates == [{"lr": rate} for rate in RATES]


def test_a_candidate_is_a_run_of_the_arm_with_its_rate_its_seed_and_its_share_of_the_epochs():
    found = candidates(tuned_grid({"lr": RATES, "weight_decay": [0.0, 0.1, 0.5]}))
    names = ["lr0.01-wd0.1", "lr0.1-wd0.1", "lr1-wd0.1", "lr0.1-wd0", "lr0.1-wd0.5"]
    assert [run.name for run in found] == [f"a/digits/bp/{name}/seed{seed}" for name in names for seed in (7, 8)]
    for run in found:
        config = run.config
        assert run.candidate == f"lr{config.lr:g}-wd{config.weight_decay:g}"
        assert (config.epochs, config.tuning, config.width, config.momentum) == (2, True, 16, 0.3)
        assert (config.gradient_every, config.signals_every) == (0, 0)
        assert (run.source, grid.choice(grid.grid(tuned_grid()), run), run.knobs) == (None, None, config.model_dump())


@pytest.mark.parametrize("share", [0.07, 0.2, 0.35, 0.5, 0.55, 1.0])
def test_the_share_of_the_epochs_is_rounded_up(share):
    for epochs in (1, 3, 10, 12, 100):
        config = tuned_grid(tuning={"share": share}, bp={"tune": {"lr": RATES}, "epochs": epochs})
        assert {run.config.epochs for run in candidates(config)} == {ceil(Fraction(str(share)) * epochs)}


def test_a_check_trains_every_candidate_to_full_length_as_well_with_one_seed():
    arms = {"bp": {"tune": {"lr": RATES}, "check": True}}
    full = [run for run in candidates(tuned_grid(**arms)) if run.candidate.endswith("-full")]
    assert [run.name for run in full] == [f"a/digits/bp/lr{rate:g}-full/seed7" for rate in RATES]
    assert [(run.config.lr, run.config.epochs, run.config.tuning) for run in full] == [(r, 4, True) for r in RATES]
    assert len(candidates(tuned_grid(**arms))) == 3 * 2 + 3
    assert len(candidates(tuned_grid(tuning={"share": 1.0}, **arms))) == 3 * 2, "they are of full length"


def test_given_choices_leave_nothing_to_tune_and_need_no_tuning_seed():
    config = tuned_grid(tuning={"seeds": []}) | {"tuned": "tuned.csv"}
    assert candidates(config) == []
    assert [run.rate for run in runs(config)] == ["tuned", "tuned", "as bp", "as bp"]
    assert grid.plan(grid.grid(config))["candidates"] == {}


BAD = [
    ({"tune": {"lr": [1.0, 0.1, 0.01]}}, {}, ["lr is [1.0, 0.1, 0.01]", "an odd number of values, ascending"]),
    ({"tune": {"lr": [0.01, 0.1, 0.1]}}, {}, ["lr is [0.01, 0.1, 0.1]", "ascending"]),
    ({"tune": {"lr": [0.01, 0.1, 1.0, 10.0]}}, {}, ["lr is [0.01, 0.1, 1.0, 10.0]", "an odd number"]),
    ({"tune": {"lr": RATES, "weight_decay": [0.2, 0.1, 0.3]}}, {}, ["weight_decay is [0.2, 0.1, 0.3]", "ascending"]),
    ({"tune": {"lr": [0.01, 0.03162278, 0.1]}}, {}, ["lr is [0.01, 0.03162278, 0.1]", "six digits"]),
    ({"tune": {"lr": [0.1]}}, {}, ["lr is [0.1]", "at least 3"]),
    ({"tune": {"lr": [0.0, 0.1, 1.0]}}, {}, ["lr[0] is 0.0", "greater than 0"]),
    ({"tune": {"weight_decay": [0.0, 0.1, 1.0]}}, {}, ["bp.tune.lr' is missing"]),
    ({"tune": {"lr": RATES, "momentum": RATES}}, {}, ["unknown key", "momentum", "lr, weight_decay"]),
    ({"tune": {"lr": RATES}, "lr": 0.1}, {}, ["lr and tune are both set", "one origin"]),
    ({"tune": {"lr": RATES}, "like": "fa"}, {}, ["tune and like are both set"]),
    ({}, {"fa": {"like": "bp", "lr": 0.1}}, ["lr and like are both set"]),
    ({}, {"fa": {"like": "pepita"}}, ["study 'a'", "arm 'fa' is like 'pepita'", "a tuned arm"]),
    ({}, {"fa": {"lr": 0.1}, "kp": {"like": "fa"}}, ["arm 'kp' is like 'fa'", "a tuned arm"]),
    ({}, {"kp": {"like": "fa"}}, ["arm 'kp' is like 'fa'", "a tuned arm"]),
    ({}, {"fa": {"like": "fa"}}, ["arm 'fa' is like 'fa'", "a tuned arm"]),
    (
        {},
        {"fa": {"tune": {"lr": [0.01, 0.03, 0.1, 0.3, 1.0]}}},
        ["3 candidates for a/bp", "5 for a/fa", "the same number", "fair"],
    ),
    ({"tune": {"lr": RATES}, "tuning": True}, {}, ["study 'a' sets 'tuning' in a run", "by 'tune'"]),
]


@pytest.mark.parametrize(("bp", "others", "words"), BAD, ids=[", ".join(words) for *_, words in BAD])
def test_tuning_that_is_wrong_or_not_fair_is_refused_in_one_sentence(bp, others, words, one_sentence):
    config = tuned_grid(**({"bp": bp} if bp else {}), **others)
    config["arms"]["kp"] = config["arms"]["fa"]
    refused(one_sentence, lambda: runs(config), "config: ", *words)
    refused(one_sentence, lambda: candidates(config), "config: ", *words)


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        ({"seeds": [7, 1]}, ["seed 1 is both in seeds and in tuning.seeds", "tune or report"]),
        ({"seeds": []}, ["arm 'bp'", "tuning.seeds is empty"]),
        ({"seeds": [7, 7]}, ["tuning.seeds holds 7 twice"]),
        ({"share": 0}, ["tuning.share is 0"]),
        ({"share": 1.5}, ["tuning.share is 1.5"]),
        ({"share": True}, ["tuning.share is True"]),
        ({"epochs": 3}, ["'tuning.epochs'"]),
    ],
    ids=str,
)
def test_tuning_seeds_and_share_are_checked(tuning, words, one_sentence):
    refused(one_sentence, lambda: runs(tuned_grid(tuning=tuning)), "config: ", *words)


# ---- runs that wait for a choice ----


def test_a_run_says_where_its_rate_comes_from():
    config = tuned_grid(kp={"lr": 0.5})
    config["arms"]["kp"] = config["arms"]["fa"]
    found = {run.name: run for run in runs(config)}
    rates = {"bp": "tuned", "fa": "as bp", "kp": "fixed"}
    assert {run.arm: run.rate for run in found.values()} == rates
    for arm, source in {"bp": "a/digits/bp", "fa": "a/digits/bp", "kp": None}.items():
        run = found[f"a/digits/{arm}/seed0"]
        assert run.source == source
        assert ("lr" in run.knobs) == (source is None)
    assert found["a/digits/kp/seed0"].config.lr == 0.5
    assert found["a/digits/fa/seed0"].config.momentum == 0.1, "a rate is all that it takes from the other arm"


def test_an_identity_of_a_tuned_run_is_that_of_all_but_its_rate():
    """Which candidates there are does not tell what a run is; its choice does, and Snakemake sees to that."""
    before = {run.name: run.identity for run in runs(tuned_grid())}
    for tune in ({"lr": [0.1, 0.2, 0.3, 0.4, 0.5]}, {"lr": [0.02, 0.05, 0.07]}):
        assert {run.name: run.identity for run in runs(tuned_grid(tune))} == before
    other = {run.name: run.identity for run in runs(tuned_grid(bp={"tune": {"lr": RATES}, "momentum": 0.5}))}
    assert {name for name in before if before[name] != other[name]} == {"a/digits/bp/seed0", "a/digits/bp/seed1"}
    rates = {run.identity for lr in (0.1, 0.2) for run in runs(tuned_grid(fa={}, bp={"lr": lr})) if run.arm == "bp"}
    assert len(rates) == 4, "a fixed rate tells"


def test_what_is_probed_is_no_part_of_a_candidate():
    config = tuned_grid()
    before = copy.deepcopy(config)
    config["run"] |= {
        "gradient_every": 1, "signals_every": 2, "gradient_stride": 3, "gradient_window": 4, "probe_images": 5,
    }  # fmt: skip
    assert [run.identity for run in candidates(config)] == [run.identity for run in candidates(before)]
    assert {run.identity for run in runs(config)}.isdisjoint(run.identity for run in runs(before))
    config["run"]["batch_size"] = 32
    assert {run.identity for run in candidates(config)}.isdisjoint(run.identity for run in candidates(before))


def test_candidates_differ_in_their_identity_from_each_other_and_from_every_run():
    config = tuned_grid(bp={"tune": {"lr": RATES}, "check": True})
    both = [*candidates(config), *runs(config)]
    identities = [run.identity for run in both]
    assert len(set(identities)) == len(identities) == 9 + 4


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """The plan's entry of a run that waits for a choice, and the path of that choice, relative to where we are."""
    monkeypatch.chdir(tmp_path)
    plan = json.loads(json.dumps(grid.plan(grid.grid(tuned_grid()))))
    entry = plan["runs"]["a/digits/fa/seed1"]
    assert entry["choice"] == "results/test/tuning/a/digits/bp/choice.json"
    return entry, Path(entry["choice"])


def test_a_run_takes_the_choice_of_its_arm(waiting):
    entry, path = waiting
    assert RunConfig.model_fields.keys() - entry["config"].keys() == {"lr"}
    files.write_json(path, {"lr": 0.25})
    found = grid.resolved(entry, "here")
    assert found == run_config({**entry["config"], "lr": 0.25})
    assert grid.identity(found, {"lr"}) == entry["identity"]


@pytest.mark.parametrize(
    "content", [None, "", "[0.1]", {}, {"lr": 0}, {"lr": "0.1"}, {"lr": 0.1, "epochs": 1}], ids=str
)
def test_a_choice_that_is_none_is_refused_in_one_sentence(waiting, one_sentence, content):
    entry, path = waiting
    if content is not None:
        files.write_text(path, content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        grid.resolved(entry, "here")
    one_sentence(caught.value)
    assert "here" in str(caught.value) or str(path) in str(caught.value)


# ---- the choice ----


def scored(percents, arm="bp", full=None):
    """Rows of `choose.scores`: by rate, or rate and decay, a percent for each seed, or None where it diverged.

    `full`: in the same way, what became of a candidate at full length.
    """
    rows = []
    for name, values in percents.items():
        lr, decay = name if isinstance(name, tuple) else (name, 0.0)
        for percent, long in [*((p, False) for p in values), *((p, True) for p in (full or {}).get(name, []))]:
            ending = ("diverged", 0.99) if percent is None else ("finished", percent / 100)
            rows.append(["a", "digits", arm, lr, decay, 4 if long else 2, long, *ending])
    return pd.DataFrame(rows, columns=list(choose.scores({"candidates": {}}, Path())))


def of(rows):
    return choose.table(rows).set_index(["arm", "lr", "weight_decay"])


def chosen(rows):
    """The one choice: rate, decay, edge."""
    (row,) = choose.table(rows).query("chosen").to_dict("records")
    return row["lr"], row["weight_decay"], row["edge"]


def test_the_best_mean_over_the_tuning_seeds_is_chosen_and_the_table_shows_all():
    full = {0.01: [50], 0.1: [75], 1: [None]}
    both = [scored({0.01: [20, 30], 0.1: [40, 46], 1: [50, 30]}, full=full), scored({0.01: [9, 9], 0.1: [8, 8]}, "fa")]
    found = of(pd.concat(both, ignore_index=True))
    assert list(choose.table(both[0])) == choose.COLUMNS
    assert found["validation_percent_mean"].tolist() == pytest.approx([25, 43, 40, 9, 8])
    assert found["validation_percent_std"].tolist() == pytest.approx([50**0.5, 18**0.5, 200**0.5, 0, 0])
    assert found["full_percent"].tolist() == pytest.approx([50, 75, *[float("nan")] * 3], nan_ok=True)
    assert found["chosen"].tolist() == [False, True, False, True, False]
    assert found["edge"].tolist() == ["", "", "", "lr smallest", ""]
    assert (found["n"].tolist(), found["epochs"].tolist()) == ([2] * 5, [2] * 5)
    assert of(scored({1: [40]}))["validation_percent_std"].isna().all(), "one seed has no deviation"


def test_a_candidate_that_diverged_with_any_seed_is_shown_and_never_chosen():
    found = of(scored({0.01: [20, 30], 0.1: [10, 20], 1: [None, 90]}))
    assert found["diverged"].tolist() == [0, 0, 1]
    assert found["chosen"].tolist() == [True, False, False]
    assert found["edge"].tolist() == ["lr smallest", "", ""]


@pytest.mark.parametrize(
    ("percents", "expected"),
    [
        ({0.01: [30, 50], 0.1: [50, 30], 1: [40, 40]}, (0.01, 0, "lr smallest")),
        ({1: [40], 0.1: [40], 0.01: [30]}, (0.1, 0, "")),
        ({(1, 0.1): [40], (0.1, 0): [40], (0.1, 0.1): [30], (0.1, 0.5): [20], (0.01, 0.1): [10]}, (0.1, 0, "")),
        ({(1, 0.5): [30], (1, 0.1): [40], (1, 0.2): [40]}, (1, 0.1, "weight_decay smallest")),
    ],
    ids=["means", "out of order", "on both knobs", "of the decay"],
)
def test_of_equals_the_smaller_rate_is_chosen_then_the_smaller_decay(percents, expected):
    assert chosen(scored(percents)) == expected


@pytest.mark.parametrize(
    ("percents", "edge"),
    [
        ({0.01: [3], 0.1: [2], 1: [1]}, "lr smallest"),
        ({0.01: [1], 0.1: [3], 1: [2]}, ""),
        ({0.01: [1], 0.1: [2], 1: [3]}, "lr largest"),
        ({0.01: [1], 0.1: [2], 1: [None]}, ""),
        ({0.01: [None], 0.1: [2], 1: [1]}, ""),
        ({(1, 0.1): [1], (1, 0.2): [2], (1, 0.5): [3]}, "weight_decay largest"),
        ({(1, 0.1): [3], (1, 0.2): [2], (1, 0.5): [1]}, "weight_decay smallest"),
        ({(1, 0): [3], (1, 0.2): [2], (1, 0.5): [1]}, ""),
        ({(0.1, 0.2): [1], (1, 0.2): [3], (2, 0.2): [2], (1, 0.5): [4]}, "weight_decay largest"),
        ({1: [1]}, ""),
    ],
    ids=str,
)
def test_a_choice_at_an_end_of_the_values_tried_is_an_edge(percents, edge):
    """But where the next one diverged, or would be a decay below 0."""
    assert chosen(scored(percents))[2] == edge


@pytest.fixture
def preset(tmp_path, monkeypatch):
    """A function from each rate's accuracy to a plan and its candidates' folders, where choose.py looks for them."""
    monkeypatch.chdir(tmp_path)

    def make(accuracies, config=None, outcome=lambda run: "finished"):
        found = grid.grid(config or tuned_grid())
        files.write_json("results/test/plan.json", grid.plan(found))
        for run in grid.candidates(found):
            result = {"outcome": outcome(run), "validation_accuracy": accuracies[run.config.lr]}
            seals.write(f"results/test/tuning/{run.name}/run.json", result, [], ".")
        return Path("results/test")

    return make


def test_the_script_writes_a_choice_and_the_table_that_gives_the_same_choice(preset):
    results = preset({0.01: 0.2, 0.1: 0.4, 1.0: 0.3}, tuned_grid(bp={"tune": {"lr": RATES}, "check": True}))
    path = results / "tuning/a/digits/bp/choice.json"
    choose.main(str(results), "a/digits/bp")
    assert read(path) == {"lr": 0.1}
    choose.main(str(results))
    table = analysis.read(results / "tuned.csv")
    assert (table["lr"].tolist(), table["chosen"].tolist()) == (RATES, [False, True, False])
    assert table["full_percent"].tolist() == table["validation_percent_mean"].tolist() == [20, 40, 30]
    before = path.read_bytes()
    path.unlink()
    Path("given.csv").write_bytes((results / "tuned.csv").read_bytes())
    preset({}, tuned_grid() | {"tuned": "given.csv"})
    choose.main(str(results), "a/digits/bp")
    assert path.read_bytes() == before


def test_both_knobs_are_chosen_where_both_are_tuned(preset):
    results = preset({0.01: 0.2, 0.1: 0.3, 1.0: 0.4}, tuned_grid({"lr": RATES, "weight_decay": [0.0, 0.1, 0.5]}))
    choose.main(str(results), "a/digits/bp")
    assert read(results / "tuning/a/digits/bp/choice.json") == {"lr": 1.0, "weight_decay": 0.1}


def test_candidates_that_are_not_there_are_left_out_of_the_table_and_none_at_all_make_an_empty_one(preset):
    results = preset(dict.fromkeys(RATES, 0.2))
    for path in results.glob("tuning/a/digits/bp/lr1/*/run.json"):
        path.unlink()
    choose.main(str(results))
    assert analysis.read(results / "tuned.csv")["lr"].tolist() == [0.01, 0.1]
    results = preset({}, tuned_grid(bp={"lr": 0.1}, fa={}))
    choose.main(str(results))
    assert list(analysis.read(results / "tuned.csv")) == choose.COLUMNS


def test_an_arm_whose_candidates_all_diverged_is_named_with_what_to_do(preset, one_sentence):
    results = preset(dict.fromkeys(RATES, 0.2), outcome=lambda run: "diverged" if run.config.seed == 7 else "finished")
    words = ["the tuning has 0 choices for a/digits/bp", "lower or widen its `tune`"]
    refused(one_sentence, lambda: choose.main(str(results), "a/digits/bp"), *words)
    assert not (results / "tuning/a/digits/bp/choice.json").exists()
    choose.main(str(results))
    assert analysis.read(results / "tuned.csv")["chosen"].tolist() == [False] * 3


@pytest.mark.parametrize(
    ("change", "count"),
    [(lambda t: t.assign(arm="fa"), 0), (lambda t: t[t["lr"] > 2], 0), (lambda t: t.assign(chosen=True), 3)],
    ids=["another arm", "no row", "three choices"],
)
def test_a_given_table_without_one_choice_for_the_arm_is_refused(preset, one_sentence, change, count):
    results = preset(dict.fromkeys(RATES, 0.2))
    choose.main(str(results))
    analysis.write("given.csv", change(analysis.read(results / "tuned.csv")), digits=6)
    preset({}, tuned_grid() | {"tuned": "given.csv"})
    words = [f"given.csv has {count} choices for a/digits/bp", "leave `tuned` out"]
    refused(one_sentence, lambda: choose.main(str(results), "a/digits/bp"), *words)


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"", b"\xff\xfe\x00", b'"a\n1,2,3\n1,2,3,4,5'])
def test_a_given_file_that_is_no_table_of_choices_is_refused(preset, one_sentence, content):
    results = preset({}, tuned_grid() | {"tuned": "given.csv"})
    Path("given.csv").write_bytes(content)
    refused(one_sentence, lambda: choose.main(str(results), "a/digits/bp"), "given.csv", "tuned.csv")
