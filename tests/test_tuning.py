"""Tuning: the candidates of an arm, their table, the choice among them; and tables that keep what stands in them."""

import copy
import gzip
import shutil
from fractions import Fraction
from math import ceil
from pathlib import Path

import pandas as pd
import pytest
from test_config import a_grid, runs

from rankcollapse import train
from rankcollapse.__main__ import main
from rankcollapse.errors import InputError
from rankcollapse.experiment import collect, files, grid, plan, tuning
from rankcollapse.experiment.config import read

RATES = [0.01, 0.1, 1.0]


def tuned_grid(tune=None, tuning=None, **arms):
    """One study of the digits, whose arm `bp` is tuned and whose arm `fa` takes its rate."""
    config = a_grid(tuning={"seeds": [7, 8], "share": 0.5, **(tuning or {})}, seeds=[0, 1])
    arms = {"bp": {"tune": tune or {"lr": RATES}}, "fa": {"like": "bp"}, **arms}
    return config | {"studies": [{**config["studies"][1], "run": {"width": 16}, "arms": arms}]}


def candidates(config):
    return plan.candidates(grid.grid(config), "cpu")


# ---- candidates ----


def test_candidates_are_runs_of_the_arm_with_the_middle_values_or_a_step_from_them_along_one_knob():
    found = candidates(tuned_grid({"lr": [0.01, 0.03, 0.1, 0.3, 1.0], "weight_decay": [0.0, 0.1, 0.5]}))
    names = ["lr0.01-wd0.1", "lr0.03-wd0.1", "lr0.1-wd0.1", "lr0.3-wd0.1", "lr1-wd0.1", "lr0.1-wd0", "lr0.1-wd0.5"]
    assert [run.name for run in found] == [f"a/digits/bp/{name}/seed{seed}" for name in names for seed in (7, 8)]
    for run in found:
        config = run.config
        assert run.candidate == f"lr{config.lr:g}-wd{config.weight_decay:g}"
        assert (config.epochs, config.tuning, config.width, config.momentum) == (2, True, 16, 0.3)
        assert (config.gradient_every, config.signals_every) == (0, 0)
        assert run.place == {"study": "a", "dataset": "digits", "arm": "bp", "seed": config.seed}


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
    given = tuned_grid(tuning={"seeds": []}) | {"tuned": "tuned.csv"}
    assert (candidates(given), len(runs(given))) == ([], 4), "with choices there is nothing to tune, and no seed for it"


def test_rates_beyond_the_end_that_was_the_best_are_candidates_and_leave_the_number_fair():
    found = candidates(tuned_grid({"lr": RATES, "wider": [3.0, 10.0]}, fa={"tune": {"lr": RATES}}))
    rates = {arm: [run.config.lr for run in found if (run.arm, run.config.seed) == (arm, 7)] for arm in ("bp", "fa")}
    assert rates == {"bp": [*RATES, 3.0, 10.0], "fa": RATES}


BAD = [
    ({"tune": {"lr": [1.0, 0.1, 0.01]}}, {}, ["lr is [1.0, 0.1, 0.01]", "an odd number of values, ascending"]),
    ({"tune": {"lr": [0.01, 0.1, 1.0, 10.0]}}, {}, ["lr is [0.01, 0.1, 1.0, 10.0]", "an odd number"]),
    ({"tune": {"lr": [0.01, 0.03162278, 0.1]}}, {}, ["lr is [0.01, 0.03162278, 0.1]", "six digits"]),
    ({"tune": {"lr": [0.1]}}, {}, ["lr is [0.1]", "at least 3"]),
    ({"tune": {"lr": RATES, "wider": [0.05]}}, {}, ["wider is [0.05]", "beyond one end of lr"]),
    ({"tune": {"lr": RATES, "wider": [0.001, 10.0]}}, {}, ["wider is [0.001, 10.0]", "beyond one end of lr"]),
    ({"tune": {"lr": RATES}, "lr": 0.1}, {}, ["lr and tune are both set", "one origin"]),
    ({}, {"fa": {"like": "bp", "lr": 0.1}}, ["lr and like are both set"]),
    ({}, {"fa": {"like": "pepita"}}, ["study 'a'", "arm 'fa' is like 'pepita'", "a tuned arm"]),
    ({}, {"fa": {"lr": 0.1}, "kp": {"like": "fa"}}, ["arm 'kp' is like 'fa'", "a tuned arm"]),
    ({"lr": 0.1, "check": True}, {"fa": {}}, ["check is true, but nothing is tuned"]),
    ({}, {"fa": {"tune": {"lr": [0.01, 0.03, 0.1, 0.3, 1.0]}}}, ["3 candidates for a/bp", "5 for a/fa", "fair"]),
    ({"tune": {"lr": RATES}, "tuning": True}, {}, ["study 'a' sets 'tuning' in a run", "by 'tune'"]),
    ({}, {"tuning": {"seeds": [7, 1]}}, ["seed 1 is both in seeds and in tuning.seeds", "tune or report"]),
    ({}, {"tuning": {"seeds": []}}, ["arm 'bp'", "tuning.seeds is empty"]),
]


@pytest.mark.parametrize(("bp", "others", "words"), BAD, ids=[", ".join(words) for *_, words in BAD])
def test_tuning_that_is_wrong_or_not_fair_is_refused_in_one_sentence(bp, others, words, refused):
    config = tuned_grid(**({"bp": bp} if bp else {}), **others)
    config["arms"]["kp"] = config["arms"]["fa"]
    refused(lambda: (candidates(config), runs(config)), "config: ", *words)


# ---- the runs that take the choices ----


def test_a_run_has_the_rate_that_its_arm_or_the_one_it_is_like_has_chosen_and_says_so():
    config = tuned_grid({"lr": RATES, "weight_decay": [0.0, 0.1, 0.5]}, kp={"lr": 0.5})
    config["arms"]["kp"] = config["arms"]["fa"]
    before = runs(config)
    assert {run.arm: run.rate for run in before} == {"bp": "tuned", "fa": "as bp", "kp": "fixed"}
    assert {run.arm: run.config.lr for run in before} == {"bp": 0.1, "fa": 0.1, "kp": 0.5}, "the middle, before any"
    found = runs(config, choices={"a/digits/bp": {"lr": 0.01, "weight_decay": 0.5}})
    assert {run.arm: (run.config.lr, run.config.weight_decay) for run in found} == {
        "bp": (0.01, 0.5), "fa": (0.01, 0.5), "kp": (0.5, 0.0),
    }  # fmt: skip
    assert {run.config.momentum for run in found if run.arm == "fa"} == {0.1}, "that is all it takes from the other arm"
    same = {run.arm for run, other in zip(found, before, strict=True) if run.identity == other.identity}
    assert same == {"kp"}, "a choice is part of what a run is"


def test_what_is_probed_is_no_part_of_a_candidate():
    config = tuned_grid()
    before = copy.deepcopy(config)
    config["run"] |= {
        "gradient_every": 1, "signals_every": 2, "gradient_stride": 3, "gradient_window": 4, "probe_images": 5,
    }  # fmt: skip
    assert [run.identity for run in candidates(config)] == [run.identity for run in candidates(before)]
    assert {run.identity for run in runs(config)}.isdisjoint(run.identity for run in runs(before))
    both = [run.identity for run in (*candidates(config), *runs(config))]
    assert len({*both}) == len(both)
    config["run"]["batch_size"] = 32
    assert {run.identity for run in candidates(config)}.isdisjoint(run.identity for run in candidates(before))


# ---- the choice ----


def scored(percents, arm="bp", full=None):
    """The table of candidates: by rate, or rate and decay, a percent for each seed, or None where it diverged.

    `full`: in the same way, what became of a candidate at full length.
    """
    rows = []
    for name, values in percents.items():
        lr, decay = name if isinstance(name, tuple) else (name, 0.0)
        for percent, long in [*((p, "") for p in values), *((p, "-full") for p in (full or {}).get(name, []))]:
            ending = ("diverged", 0.99) if percent is None else ("finished", percent / 100)
            rows.append(["a", "digits", arm, f"lr{lr:g}{long}", lr, decay, 4 if long else 2, *ending])
    keys = ["study", "dataset", "arm", "candidate", "lr", "weight_decay", "epochs", "outcome", "validation_accuracy"]
    return pd.DataFrame(rows, columns=keys)


def of(rows):
    return tuning.choose(rows).set_index(["arm", "lr", "weight_decay"])


def chosen(rows):
    """The one choice: rate, decay, edge."""
    (row,) = tuning.choose(rows).query("chosen").to_dict("records")
    return row["lr"], row["weight_decay"], row["edge"]


def test_the_best_mean_over_the_tuning_seeds_is_chosen_and_the_table_shows_all():
    full = {0.01: [50], 0.1: [75], 1: [None]}
    both = [scored({0.01: [20, 30], 0.1: [40, 46], 1: [50, 30]}, full=full), scored({0.01: [9, 9], 0.1: [8, 8]}, "fa")]
    found = of(pd.concat(both, ignore_index=True))
    assert list(tuning.choose(both[0])) == tuning.COLUMNS
    assert found["validation_percent_mean"].tolist() == pytest.approx([25, 43, 40, 9, 8])
    assert found["validation_percent_std"].tolist() == pytest.approx([50**0.5, 18**0.5, 200**0.5, 0, 0])
    assert found["full_percent"].tolist() == pytest.approx([50, 75, *[float("nan")] * 3], nan_ok=True)
    assert found["chosen"].tolist() == [False, True, False, True, False]
    assert found["edge"].tolist() == ["", "", "", "lr smallest", ""]
    assert (found["n"].tolist(), found["epochs"].tolist()) == ([2] * 5, [2] * 5)
    assert of(scored({1: [40]}))["validation_percent_std"].isna().all(), "one seed has no deviation"


@pytest.mark.parametrize(
    ("percents", "expected"),
    [
        ({0.01: [20, 30], 0.1: [10, 20], 1: [None, 90]}, (0.01, 0, "lr smallest")),
        ({0.01: [30, 50], 0.1: [50, 30], 1: [40, 40]}, (0.01, 0, "lr smallest")),
        ({1: [40], 0.1: [40], 0.01: [30]}, (0.1, 0, "")),
        ({(1, 0.1): [40], (0.1, 0): [40], (0.1, 0.1): [30], (0.1, 0.5): [20], (0.01, 0.1): [10]}, (0.1, 0, "")),
        ({(1, 0.5): [30], (1, 0.1): [40], (1, 0.2): [40]}, (1, 0.1, "weight_decay smallest")),
        ({0.01: [1], 0.1: [2], 1: [3]}, (1, 0, "lr largest")),
        ({0.01: [1], 0.1: [2], 1: [None]}, (0.1, 0, "")),
        ({0.01: [None], 0.1: [2], 1: [1]}, (0.1, 0, "")),
        ({(1, 0): [3], (1, 0.2): [2], (1, 0.5): [1]}, (1, 0, "")),
        ({(0.1, 0.2): [1], (1, 0.2): [3], (2, 0.2): [2], (1, 0.5): [4]}, (1, 0.5, "weight_decay largest")),
    ],
    ids=str,
)
def test_what_diverged_is_not_chosen_and_of_equals_the_smaller_rate_then_the_smaller_decay(percents, expected):
    """At an end of the values tried it is an edge, but where the next one diverged, or would be a decay below 0."""
    assert chosen(scored(percents)) == expected


# ---- from folders to choices ----


@pytest.fixture
def preset(tmp_path, monkeypatch):
    """A function from each rate's accuracy to a plan and the folders of its candidates, and the grid.

    `diverged`: the seed that diverges.
    """
    monkeypatch.chdir(tmp_path)

    def make(accuracies, config=None, diverged=None):
        found = grid.grid(config or tuned_grid())
        planned = plan.candidates(found, "cpu")
        plan.write("results/test/plan.json", found, "cpu", "data/ready", candidates=planned)
        for run in planned:
            outcome = "diverged" if run.config.seed == diverged else "finished"
            values = {"outcome": outcome, "validation_accuracy": accuracies[run.config.lr], "identity": run.identity}
            files.seal(f"results/test/tuning/{run.name}/run.json", values, [], ".")
        return Path("results/test"), found

    return make


def test_the_command_writes_the_tables_and_they_give_the_choices(preset):
    both = {"lr": RATES, "weight_decay": [0.0, 0.1, 0.5]}
    results, found = preset({0.01: 0.2, 0.1: 0.4, 1.0: 0.3}, tuned_grid(bp={"tune": both, "check": True}))
    assert main(["tune", str(results)]) == 0
    table = collect.read(results / "tuned.csv")
    assert (table["lr"].tolist(), table["weight_decay"].tolist()) == ([*RATES, 0.1, 0.1], [0.1, 0.1, 0.1, 0.0, 0.5])
    assert table["full_percent"].tolist() == table["validation_percent_mean"].tolist() == [20, 40, 30, 40, 40]
    assert plan.choices(found, results / "tuned.csv") == {"a/digits/bp": {"lr": 0.1, "weight_decay": 0.0}}
    candidates = collect.read(results / "candidates.csv")
    assert list(candidates) == collect.CANDIDATE
    assert len(candidates) == 5 * 2 + 5
    assert plan.standing(results / "candidates.csv") == {
        name: entry["identity"] for name, entry in plan.entries(results / "plan.json", "candidates").items()
    }


def test_candidates_that_are_not_there_or_are_of_other_code_are_left_out_and_none_at_all_make_an_empty_table(preset):
    results, _ = preset(dict.fromkeys(RATES, 0.2))
    for path in results.glob("tuning/a/digits/bp/lr1/*/run.json"):
        path.unlink()
    for path in results.glob("tuning/a/digits/bp/lr0.1/*/run.json"):
        files.seal(path, files.sealed(path) | {"identity": "of other code"}, [], ".")
    assert main(["tune", str(results)]) == 0
    assert collect.read(results / "tuned.csv")["lr"].tolist() == [0.01]
    results, found = preset({}, tuned_grid(bp={"lr": 0.1}, fa={}))
    assert main(["tune", str(results)]) == 0
    assert list(collect.read(results / "tuned.csv")) == tuning.COLUMNS
    assert plan.choices(found, results / "tuned.csv") == {}


@pytest.mark.parametrize(
    ("change", "count"),
    [(lambda t: t, 0), (lambda t: t.assign(chosen=True), 3), (lambda t: t.assign(arm="fa", chosen=True), 0)],
    ids=["all diverged", "three choices", "another arm"],
)
def test_a_table_without_one_choice_for_the_arm_is_refused(preset, refused, change, count):
    results, found = preset(dict.fromkeys(RATES, 0.2), diverged=7)
    assert main(["tune", str(results)]) == 0
    collect.write("given.csv", change(collect.read(results / "tuned.csv")), digits=6)
    words = f"given.csv has {count} choices for a/digits/bp", "it must have one, or be left out to tune"
    refused(lambda: plan.choices(found, "given.csv", whole=True), *words)


HEAD = b"study,dataset,arm,lr,weight_decay,chosen\n"


@pytest.mark.parametrize("content", [None, b"a,b\n1,2\n", b"", b"\xff\xfe\x00", HEAD + b"a,digits,bp,fast,0,True\n"])
def test_a_file_that_is_no_table_of_choices_is_refused(tmp_path, refused, content):
    path = tmp_path / "given.csv"
    if content is not None:
        path.write_bytes(content)
    refused(lambda: plan.choices(grid.grid(tuned_grid()), path, whole=True), str(path))


# ---- what stands in the tables is kept ----


def contents(folder):
    """Of each table its text, by name."""
    read = {".gz": lambda path: gzip.decompress(path.read_bytes())}
    return {p.name: read.get(p.suffix, Path.read_bytes)(p).decode("utf-8") for p in folder.iterdir() if p.is_file()}


def test_candidates_in_the_table_are_kept_as_they_are_if_they_have_the_identity_of_the_plan(preset):
    results, _ = preset({0.01: 0.2, 0.1: 0.412345678, 1.0: 0.3})
    assert main(["tune", str(results)]) == 0
    before = contents(results)
    shutil.rmtree(results / "tuning/a/digits/bp/lr0.1")
    assert main(["tune", str(results), "--keep", str(results)]) == 0
    assert contents(results) == before
    run = results / "tuning/a/digits/bp/lr1/seed7/run.json"
    files.seal(run, files.sealed(run) | {"validation_accuracy": 0.5}, [], ".")
    assert main(["tune", str(results), "--keep", str(results)]) == 0
    assert collect.read(results / "candidates.csv")["validation_accuracy"].tolist()[-2:] == [0.5, 0.3], "of its folder"
    planned = read(results / "plan.json")
    planned["candidates"]["a/digits/bp/lr0.1/seed7"]["identity"] = "of other code"
    files.write_json(results / "plan.json", planned)
    assert main(["tune", str(results), "--keep", str(results)]) == 0
    assert [*plan.standing(results / "candidates.csv")].count("a/digits/bp/lr0.1/seed7") == 0
    assert collect.read(results / "tuned.csv")["n"].tolist() == [2, 1, 2]
    assert main(["tune", str(results)]) == 0
    assert collect.read(results / "tuned.csv")["lr"].tolist() == [0.01, 1.0]


def test_runs_in_the_tables_are_kept_line_by_line_if_they_have_the_identity_of_the_plan(
    tiny, data_dir, tmp_path, refused
):
    config = tiny(width=4, signals_every=1, gradient_every=3, gradient_stride=2, epochs=1).model_dump()
    names = [f"a/digits/{arm}/seed{seed}" for arm in ("bp", "fa") for seed in (0, 1)]
    planned, folders, out = {}, tmp_path / "runs", tmp_path / "tables"
    for name in names:
        arm, seed = name.split("/")[2], int(name[-1])
        made = tiny(**{**config, "rule": arm, "seed": seed})
        about = {"study": "a", "arm": arm}
        done = train(made, folders / name, data_dir=data_dir, device="cpu", about=about)
        planned[name] = about | {"rate": "fixed", "identity": done["identity"], "config": made.model_dump()}
    collect.runs(planned, folders, out)
    before = contents(out)
    assert set(before) == {"runs.csv", "epochs.csv", "ranks.csv.gz", "alignment.csv.gz", "norms.csv.gz"}
    for name in names[1:3]:
        shutil.rmtree(folders / name)
    collect.runs(planned, folders, out, keep=out)
    assert contents(out) == before
    collect.runs({**planned, names[1]: planned[names[1]] | {"rate": "tuned"}}, folders, out, keep=out)
    assert collect.read(out / "runs.csv")["rate"].tolist() == ["fixed", "tuned", "fixed", "fixed"], "as planned now"
    elsewhere = {name: run | {"config": run["config"] | {"precision": "bfloat16"}} for name, run in planned.items()}
    collect.runs(elsewhere, folders, out, keep=out)
    assert collect.read(out / "runs.csv")["precision"].tolist() == ["float32"] * 4, "as each was trained"
    other = {**planned, names[1]: {**planned[names[1]], "identity": "of other code"}}
    collect.runs(other, folders, out, keep=out)
    assert plan.standing(out / "runs.csv") == {n: planned[n]["identity"] for n in (names[0], *names[2:])}
    collect.runs(planned, folders, out)
    assert [*plan.standing(out / "runs.csv")] == [names[0], names[3]], "without keep they are missing"
    shutil.rmtree(folders)
    with pytest.raises(InputError, match="has no run of the plan"):
        collect.runs(planned, folders, tmp_path / "none", keep=tmp_path / "none")
