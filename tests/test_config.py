import ast
import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml

import rankcollapse
from rankcollapse.experiment import cpu, datasets, files, grid
from rankcollapse.experiment.config import InputError, RunConfig, Settings, checked, read, run_config

ROOT = Path(__file__).parent.parent
CONFIGS = [ROOT / "config.yaml", *sorted((ROOT / "presets").glob("*.yaml")), ROOT / "tests" / "tiny.yaml"]
FIELDS = Settings.model_fields
INF, NAN = math.inf, math.nan

# Of each knob its default, other values that are allowed, and values that are not.
KNOBS = {
    "dataset": ("digits", ["cifar10", "cifar100"], ["mnist", ""]),
    "train_images": (None, [1, 10**9], [0, -1]),
    "validation_images": (200, [10, 10**9], [9, 0, -200]),
    "tuning_images": (0, [1, 10**9], [-1]),
    "tuning": (False, [True], [0, 1, "yes"]),
    "flip": (False, [True], [0, 1, "yes"]),
    "crop": (0, [1, 8], [-1, 9]),
    "architecture": ("cnn4", ["mlp", "resnet18"], ["vgg", "CNN4"]),
    "width": (32, [1, 4096], [0, -1]),
    "depth": (3, [1, 9], [0, -1]),
    "stem_stride": (1, [2], [0, 3]),
    "normalization": ("none", ["batch"], ["layer"]),
    "rule": ("bp", ["fa", "kp", "frozen", "frozen-fa", "frozen-bp"], ["dfa", "FA"]),
    "learning_blocks": (None, [1, 9], [0, -1]),
    "optimizer": ("sgd", ["muon"], ["adam"]),
    "lr": (0.03, [1, 1e-9, 10.0], [0, -1, 0.0, "1e-3", NAN, INF]),
    "momentum": (0.9, [0, 0.999], [1, 1.0, -0.1, NAN]),
    "weight_decay": (0.0, [0.1, 3], [-0.1, INF, NAN]),
    "update": ("full", ["top_r", "full_rank"], ["top"]),
    "rank": (None, [1, 10], [0, -1]),
    "norm": (None, ["frobenius", "spectral"], ["nuclear"]),
    "ns_steps": (5, [1, 99], [0, 100]),
    "shape_factor": ("original", ["match_rms_adamw"], ["none"]),
    "auxiliary_lr": (0.001, [1e-9, 1], [0, -0.001, "1e-3", NAN, INF]),
    "epochs": (12, [1, 1000], [0, -1]),
    "batch_size": (64, [2, 4096], [1, 0]),
    "precision": ("float32", ["bfloat16"], ["float16", 32]),
    "channels_last": (True, [False], [0, "true"]),
    "compile": (False, [True], [1]),
    "gradient_every": (6, [0, 1000], [-1]),
    "gradient_stride": (25, [1, 1000], [0]),
    "gradient_window": (100, [2, 1000], [1]),
    "signals_every": (1, [0, 9], [-1]),
    "probe_images": (64, [2, 1000], [1]),
    "seed": (0, [1, 2**32 - 1], [-1, 2**32]),
}
GOOD = [(knob, value) for knob, (default, good, _) in KNOBS.items() for value in (default, *good)]


def wrong(knob):
    """What the knob may not be: of another type, a whole number with a point, a truth value for a number."""
    default, good, bad = KNOBS[knob]
    number = not isinstance(good[0], bool | str)
    whole = isinstance(good[0], int) and not isinstance(default, float)
    return [
        *bad,
        [good[0]],
        {"a": good[0]},
        *([] if default is None else [None]),
        *([True, str(good[0])] if number else [7]),
        *([float(good[0]), good[0] + 0.5] if number and whole else []),
    ]


BAD = [(knob, value) for knob in KNOBS for value in wrong(knob)]


def refused(one_sentence, call, *words):
    """The one sentence, with these words in it, by which `call` refuses its input."""
    with pytest.raises(InputError) as caught:
        call()
    one_sentence(caught.value, *words)
    return str(caught.value)


# ---- one knob ----


def test_the_defaults_of_knobs_never_change():
    """A run's identity leaves out what is at its default: with another default, old results would silently pass for new
    ones, and Snakemake would retrain nothing. A new knob may come, with the default that runs had without it.
    """
    assert {knob: RunConfig().model_dump().get(knob) for knob in KNOBS} == {k: v[0] for k, v in KNOBS.items()}
    assert set(RunConfig.model_fields) == set(FIELDS)


def test_every_knob_is_described():
    assert [knob for knob, field in FIELDS.items() if not (field.description or "").strip()] == []


@pytest.mark.parametrize("knob", KNOBS)
def test_a_good_value_is_kept_and_a_bad_one_refused_in_one_sentence_that_names_the_knob(knob, one_sentence):
    default, good, _ = KNOBS[knob]
    for value in (default, *good):
        assert getattr(checked(Settings, {knob: value}, "run"), knob) == value
    for value in wrong(knob):
        refused(one_sentence, lambda value=value: run_config({knob: value}), f"run config: {knob} is {value!r}; ")


def test_the_schema_for_editors_allows_what_the_library_allows():
    """But for 2.0, a whole number in JSON, and for NaN and infinity, which JSON does not have."""
    defined = json.loads(grid.schema())
    validator = jsonschema.Draft202012Validator({"$ref": "#/$defs/Settings", "$defs": defined["$defs"]})
    assert [(knob, value) for knob, value in GOOD if not validator.is_valid({knob: value})] == []
    told = [(k, v) for k, v in BAD if not isinstance(v, float) or (math.isfinite(v) and v not in KNOBS[k][1])]
    assert [(knob, value) for knob, value in told if validator.is_valid({knob: value})] == []


def test_every_name_that_a_knob_allows_is_one_the_library_knows():
    from rankcollapse.library import models, rules

    assert set(get_args(FIELDS["rule"].annotation)) == set(rules.RULES)
    assert set(get_args(FIELDS["architecture"].annotation)) == set(models.ARCHITECTURES)
    assert {"digits", "cifar10", "cifar100"} <= set(datasets.SETS)


# ---- one run ----


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rate": 0.1}, ["unknown key 'learning_rate'", "the keys here are dataset, train_images"]),
        ({"momentun": 0.1}, ["unknown key 'momentun'", "did you mean 'momentum'"]),
        ({"device": "cpu"}, ["unknown key 'device'"]),
        ({1: 2}, ["unknown key", "1"]),
        ({None: 2}, ["unknown key", "None"]),
        ({True: 2, "lr": 0.1, "x": 3}, ["unknown key"]),
        ({(1, 2): 3}, ["unknown key"]),
        ({"lr": "1e-3"}, ["lr is '1e-3'", "YAML reads a number with an exponent only with a point: 1.0e-3"]),
        ({"train_images": 1238}, ["train_images is 1238", "leave 1237"]),
        ({"dataset": "cifar10", "train_images": 50_000}, ["train_images is 50000", "50000 training images"]),
        ({"validation_images": 1437}, ["validation_images is 1437", "1437 training images"]),
        ({"tuning_images": 1237}, ["validation_images is 200 and tuning_images 1237", "1437 training images"]),
        ({"tuning_images": 1237, "tuning": True}, ["tuning_images 1237", "1437 training images"]),
        ({"tuning_images": 200, "train_images": 1038}, ["train_images is 1038", "tuning_images 200 leave 1037"]),
        (
            {"tuning_images": 200, "tuning": True, "train_images": 201},
            ["train_images is 201", "tuning_images sets apart 200"],
        ),
        ({"tuning_images": 60, "tuning": True}, ["batch_size is 64", "60 training images"]),
        ({"learning_blocks": 1, "rule": "frozen-fa"}, ["learning_blocks is 1", "under rule 'frozen-fa' no block"]),
        ({"train_images": 100, "batch_size": 128}, ["batch_size is 128", "100 training images"]),
        ({"train_images": 64, "probe_images": 65}, ["probe_images is 65", "64 training images"]),
        ({"architecture": "cnn4", "precision": "bfloat16"}, ["precision is 'bfloat16'", "'float32'"]),
        ({"update": "top_r"}, ["rank is missing"]),
        ({"update": "full_rank"}, ["norm is missing"]),
        ({"update": "top_r", "rank": 2, "optimizer": "muon"}, ["update 'top_r'", "optimizer must be 'sgd'"]),
        ([1], ["run config"]),
        (None, ["run config"]),
    ],
    ids=str,
)
def test_what_is_no_run_is_refused_in_one_sentence(values, words, one_sentence):
    refused(one_sentence, lambda: run_config(values), "run config: ", *words)


def test_numbers_of_steps_are_worked_by_hand():
    config = run_config({"train_images": 1000, "batch_size": 64})
    assert (datasets.training_images(config), datasets.steps_per_epoch(config)) == (1000, 15)
    assert datasets.training_images(run_config({"dataset": "cifar10", "validation_images": 5000})) == 45_000
    assert datasets.training_images(run_config({"train_images": 1237, "validation_images": 200})) == 1237
    apart = {"validation_images": 200, "tuning_images": 300}
    assert datasets.training_images(run_config(apart)) == 937
    assert datasets.training_images(run_config({**apart, "tuning": True})) == 300
    assert datasets.training_images(run_config({**apart, "tuning": True, "train_images": 150})) == 150


# ---- files ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: [1, 2", "cannot be read as YAML"),
        ("lr: 1\n\tepochs: 2", "cannot be read as YAML"),
        ("- lr", "list, not a mapping"),
        ("", "NoneType, not a mapping"),
        ("just words", "str, not a mapping"),
        ("\x00", "cannot be read as YAML"),
        ("? [1, 2]\n: 3", "cannot be read as YAML"),
        ("a: &a\n  *a : 1", "cannot be read as YAML"),
        ("[" * 3000, "cannot be read as YAML"),
        ("x: !!python/object:os.system 1", "cannot be read as YAML"),
        ("title: 2020-13-45", "cannot be read as YAML"),
        ("lr: " + "1" * 5000, "cannot be read as YAML"),
    ],
    ids=lambda text: text[:30],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, one_sentence, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    refused(one_sentence, lambda: read(path), str(path), words)


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path, one_sentence):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    for path in (tmp_path / "none", tmp_path / "binary", tmp_path):
        refused(one_sentence, lambda path=path: read(path), str(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [("lr: 1e-3", "lr is '1e-3'"), ("lr: .nan", "lr is nan"), ("epochs: 2.0", "epochs is 2.0"),
     ("flip: 1", "flip is 1"), ("lr: 2020-01-01", "lr is datetime.date"), ("2: 3", "unknown key"),
     ("~: 3", "unknown key"), ("lr: &a [*a]", "lr is "), ("? lr\n", "lr is None")],
)  # fmt: skip
def test_what_yaml_makes_of_a_value_is_refused_in_one_sentence(tmp_path, one_sentence, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    refused(one_sentence, lambda: run_config(read(path)), words)


@pytest.mark.parametrize("value", [0.03, 1e-3, 1e-5, 5e-05, 1.5e-7, 1e20, 1.0])
def test_a_config_written_as_json_is_read_back_as_it_was(tmp_path, value):
    config = run_config({"lr": value})
    files.write_json(tmp_path / "config.json", config.model_dump())
    assert run_config(read(tmp_path / "config.json")) == config


def test_yaml_and_json_give_the_same_config(tmp_path):
    values = {"lr": 0.5, "rank": None, "flip": True, "architecture": "mlp"}
    (tmp_path / "a.yaml").write_text("# größe\n" + yaml.safe_dump(values), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(values), encoding="utf-8")
    assert read(tmp_path / "a.yaml") == read(tmp_path / "a.json") == values


def test_a_write_that_fails_for_want_of_space_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.txt"
    files.write_text(path, "old")

    def full(temporary):
        temporary.write_text("ne", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        files.write(path, full)
    assert caught.value.filename == str(path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_makes_the_folder_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "a" / "b" / "result.json"
    for value in ({"é": 1}, {"×": [1, 2]}):
        files.write_json(path, value)
        assert json.loads(path.read_text(encoding="utf-8")) == value
    assert list(path.parent.iterdir()) == [path]


# ---- the grid ----


def a_grid(**changes):
    look = {"label": "x", "colour": "#000000", "marker": "o", "line": "-"}
    cost = {"cpu": 100, "cuda": 1000, "mem_mb": 500, "disk_mb": 1}
    return {
        "preset": "test",
        "seeds": [1, 0],
        "run": {"lr": 0.1, "width": 8, "epochs": 2, "momentum": 0.1},
        "arms": {"bp": {**look, "run": {"rule": "bp", "momentum": 0.3, "epochs": 4}}, "fa": {**look}},
        "studies": [
            {"name": "b", "datasets": ["digits", "cifar10"], "arms": {"fa": {}, "bp": {"epochs": 5}}, "cost": {**cost},
             "run": {"width": 16, "momentum": 0.2, "epochs": 3}},
            {"name": "a", "datasets": ["digits"], "arms": {"bp": {}}, "cost": cost},
        ],
        **changes,
    }  # fmt: skip


def runs(config):
    return grid.runs(grid.grid(config))


def test_runs_come_in_the_order_of_the_config():
    names = [run.name for run in runs(a_grid())]
    assert names == [
        *(
            f"b/{dataset}/{arm}/seed{seed}"
            for arm in ("fa", "bp")
            for dataset in ("digits", "cifar10")
            for seed in (1, 0)
        ),
        "a/digits/bp/seed1",
        "a/digits/bp/seed0",
    ]


def test_the_more_special_override_wins():
    """A run's defaults, then the study, then the arm, then the arm within the study."""
    found = {run.name: run.config for run in runs(a_grid())}
    fa, bp, other = (found[name] for name in ("b/digits/fa/seed0", "b/digits/bp/seed0", "a/digits/bp/seed0"))
    assert (fa.lr, fa.width, fa.momentum, fa.epochs, fa.rule) == (0.1, 16, 0.2, 3, "bp")
    assert (bp.lr, bp.width, bp.momentum, bp.epochs, bp.rule) == (0.1, 16, 0.3, 5, "bp")
    assert (other.lr, other.width, other.momentum, other.epochs, other.rule) == (0.1, 8, 0.3, 4, "bp")


def test_an_override_may_put_a_default_back():
    config = a_grid()
    default = {key: KNOBS[key][0] for key in ("momentum", "epochs")}
    config["studies"][1]["arms"]["bp"] = default
    assert runs(config)[-1].config.model_dump(include=set(default)) == default


def test_a_run_knows_its_place_and_its_whole_config():
    (run,) = [run for run in runs(a_grid()) if run.name == "b/cifar10/fa/seed1"]
    assert run.place == {"study": "b", "dataset": "cifar10", "arm": "fa", "seed": 1}
    assert (run.config.dataset, run.config.seed, run.study.cost.cpu) == ("cifar10", 1, 100)


def test_planning_does_not_change_the_config():
    config = a_grid()
    grid.plan(grid.grid(config))
    assert config == a_grid()


@pytest.mark.parametrize(
    ("device", "gpus", "multiplies", "precisions"),
    [("cpu", ["0"], True, ("float32", "bfloat16")), ("cpu", ["0"], False, ("float32", "float32")),
     ("auto", [], True, ("float32", "bfloat16")), ("auto", [], False, ("float32", "float32")),
     ("auto", ["0"], False, ("float32", "bfloat16")), ("cuda", [], False, ("float32", "bfloat16"))],
)  # fmt: skip
def test_precision_auto_is_settled_by_the_device_when_the_grid_is_planned(
    monkeypatch, device, gpus, multiplies, precisions
):
    monkeypatch.setattr(grid.gpus, "visible", lambda: gpus)
    monkeypatch.setattr(grid.cpu, "multiplies_bfloat16", lambda: multiplies)

    def planned(precision, dataset):
        study = {**a_grid()["studies"][1], "datasets": [dataset], "run": {"precision": precision}}
        (run,) = runs(a_grid(seeds=[0], device=device, studies=[study]))
        return run

    for dataset, expected in zip(("digits", "cifar10"), precisions, strict=True):
        assert planned("auto", dataset).config.precision == expected
        # as if it had been written so
        assert planned("auto", dataset).identity == planned(expected, dataset).identity


def test_a_run_by_itself_must_name_its_precision(one_sentence):
    with pytest.raises(InputError) as error:
        run_config({"precision": "auto"})
    one_sentence(str(error.value), "precision", "'float32' or 'bfloat16'")


@pytest.mark.parametrize(
    ("text", "label", "multiplies"),
    [("model name\t: A B\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", "A B, AVX512-bf16", True),
     ("model name\t: A B\nflags\t\t: avx512_bf16 amx_bf16 amx_tile\n", "A B, AMX", True),
     ("model name\t: A B\nflags\t\t: avx2 avx512f\n", "A B, AVX512", False),
     ("model name\t: A B\nflags\t\t: avx2\n", "A B, AVX2", False),
     ("model name\t: A B\nflags\t\t: sse\n", "A B", False),
     ("processor\t: 0\nFeatures\t: fp asimd bf16\n", "CPU, bf16", True), ("", "CPU", False)],
)  # fmt: skip
def test_the_processor_is_told_by_make_and_instructions(monkeypatch, text, label, multiplies):
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: text)
    assert cpu.label() == label
    assert cpu.multiplies_bfloat16() is multiplies


def test_estimated_seconds_are_training_and_a_fifth_and_the_start():
    run = runs(a_grid())[-1]
    assert run.seconds("cpu") == pytest.approx(8 + 1.2 * 4 * 1237 / 100)
    assert run.seconds("cuda") == pytest.approx(8 + 1.2 * 4 * 1237 / 1000)


BAD_GRIDS = [
    (lambda c: c.update(seeds=[0, 1, 0]), ["seeds", "0 twice"]),
    (lambda c: c.update(seeds=[]), ["seeds is []"]),
    (lambda c: c.update(seeds=["0"]), ["seeds[0] is '0'"]),
    (lambda c: c.update(seeds=[0, 1.0]), ["seeds[1] is 1.0"]),
    (lambda c: c.update(seeds=[True]), ["seeds[0] is True"]),
    (lambda c: c.update(studies=[c["studies"][0], c["studies"][0]]), ["studies", "'b' twice"]),
    (lambda c: c.update(studies={}), ["studies is {}"]),
    (lambda c: c.update(studies=[]), ["studies is []"]),
    (lambda c: c.update(studies=[None]), ["studies[0] is None"]),
    (lambda c: c["studies"][1]["arms"].update(pepita={}), ["study 'a'", "unknown arm 'pepita'", "bp, fa"]),
    (lambda c: c["studies"][1]["arms"].update(bp=None), ["studies[1].arms.bp is None"]),
    (lambda c: c["studies"][1]["arms"].update({1: {}}), ["studies[1].arms", "1"]),
    (lambda c: c["studies"][1].update(arms={}), ["studies[1].arms is {}"]),
    (lambda c: c["studies"][1].update(datasets=["digits", "digits"]), ["datasets", "study 'a'", "'digits' twice"]),
    (lambda c: c["studies"][1].update(datasets=["svhn"]), ["studies[1].datasets[0] is 'svhn'"]),
    (lambda c: c["studies"][1].update(name="a\n"), ["studies[1].name is 'a\\n'"]),
    (lambda c: c["studies"][1].pop("cost"), ["'studies[1].cost' is missing"]),
    (lambda c: c["studies"][1]["cost"].update(cpu=0), ["studies[1].cost.cpu is 0"]),
    (lambda c: c["studies"][1]["cost"].pop("cuda"), ["'studies[1].cost.cuda' is missing"]),
    (lambda c: c["studies"][1].update(nmae="x"), ["'studies[1].nmae'", "did you mean 'name'"]),
    (lambda c: c.pop("arms"), ["'arms' is missing"]),
    (lambda c: c.update(arms={}), ["arms is {}"]),
    (lambda c: c["arms"].update({"a/b": c["arms"]["bp"]}), ["'a/b'"]),
    (lambda c: c["arms"].update({3: c["arms"]["bp"]}), ["arms", "3"]),
    (lambda c: c["arms"]["bp"].update(colour="red"), ["arms.bp.colour is 'red'"]),
    (lambda c: c["arms"]["bp"].update(color="red"), ["'arms.bp.color'", "did you mean 'colour'"]),
    (lambda c: c["arms"]["bp"]["run"].update(momentun=0), ["'arms.bp.run.momentun'", "did you mean 'momentum'"]),
    (lambda c: c["studies"][0]["arms"]["bp"].update(epoch=0), ["'studies[0].arms.bp.epoch'", "mean 'epochs'"]),
    (lambda c: c["run"].update(lr=0), ["run.lr is 0"]),
    (lambda c: c["run"].update(lr="1e-3"), ["run.lr is '1e-3'", "1.0e-3"]),
    (lambda c: c["run"].update({2: 3}), ["unknown key", "run"]),
    (lambda c: c["run"].update(run=c["run"]), ["'run.run'"]),
    (lambda c: c["run"].update(lr=c["run"]), ["run.lr is {"]),
    (lambda c: c["run"].update(dataset="digits"), ["study 'b'", "'dataset'", "'datasets'"]),
    (lambda c: c["run"].update(tuning=False), ["study 'b'", "'tuning'", "'tune'"]),
    (lambda c: c["run"].update(device="cpu"), ["'run.device'"]),
    (lambda c: c.update(run=None), ["run is None"]),
    (lambda c: c.update(sedes=[0]), ["'sedes'", "did you mean 'seeds'"]),
    (lambda c: c.update({3: [0]}), ["unknown key", "3"]),
    (lambda c: c.update(threads=0), ["threads is 0"]),
    (lambda c: c.update(gpu_slots=0.5), ["gpu_slots is 0.5"]),
    (lambda c: c.update(device="gpu"), ["device is 'gpu'"]),
    (lambda c: c.update(download="no"), ["download is 'no'"]),
    (lambda c: c.update(data_dir=""), ["data_dir is ''"]),
    (lambda c: c.update(preset="A B"), ["preset is 'A B'"]),
    (lambda c: c.update(preset="quick\n"), ["preset is 'quick\\n'"]),
    (lambda c: c["run"].update(update="top_r"), ["study 'b'", "arm 'fa'", "dataset 'digits'", "rank is missing"]),
    (lambda c: c["studies"][0]["run"].update(train_images=1300), ["study 'b'", "train_images is 1300"]),
]


@pytest.mark.parametrize(("change", "words"), BAD_GRIDS, ids=[", ".join(words) for _, words in BAD_GRIDS])
def test_a_bad_grid_is_refused_in_one_sentence_that_names_the_key(change, words, one_sentence):
    config = a_grid()
    change(config)
    refused(one_sentence, lambda: runs(config), "config: ", *words)


@pytest.mark.parametrize(
    "text", ["run: &a {run: *a}", "run: &a {lr: *a}", "studies: &a [*a]", "arms: &a {bp: *a}", "seeds: &a [*a]"]
)
def test_an_anchor_that_holds_itself_is_refused_in_one_sentence(tmp_path, one_sentence, text):
    path = tmp_path / "loop.yaml"
    path.write_text(text, encoding="utf-8")
    refused(one_sentence, lambda: runs(grid.overlay(a_grid(), read(path))), "config: ", text.split(":")[0])


@pytest.mark.parametrize("over", CONFIGS[1:], ids=lambda path: path.stem)
def test_overlays_are_laid_as_snakemake_lays_them(over):
    from snakemake.utils import update_config

    base, over = read(CONFIGS[0]), read(over)
    expected = read(CONFIGS[0])
    update_config(expected, over)
    assert grid.overlay(base, over) == expected
    assert base == read(CONFIGS[0]), "the config laid upon is left alone"


# ---- the schema ----


def test_the_committed_schema_is_that_of_the_code():
    assert (ROOT / "config.schema.json").read_text(encoding="utf-8") == grid.schema(), "run `make schema`"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_takes_every_config_and_refuses_a_misspelt_key_anywhere(path):
    schema = json.loads(grid.schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    config = read(path)
    validator.validate(config)
    study = config["studies"][0]
    for place in (config, config["run"], study, study["cost"], *study["arms"].values()):
        place["sedes"] = [0]
        assert not validator.is_valid(config)
        del place["sedes"]
    validator.validate(config)


# ---- the same run ----


def test_an_identity_is_of_what_a_run_is_and_not_of_how_it_is_written():
    plain = grid.identity(run_config({}))
    assert plain == grid.identity(run_config({knob: default for knob, (default, *_) in KNOBS.items()}))
    assert grid.identity(run_config({"lr": 1})) == grid.identity(run_config({"lr": 1.0}))
    changed = {(k, v): grid.identity(RunConfig().model_copy(update={k: v})) for k, v in GOOD if v != KNOBS[k][0]}
    assert len({plain, *changed.values()}) == 1 + len(changed)


@pytest.mark.parametrize("over", CONFIGS, ids=lambda path: path.stem)
def test_a_plan_read_back_gives_each_run_its_identity(over):
    found = grid.grid(grid.overlay(read(CONFIGS[0]), read(over)))
    plan = json.loads(json.dumps(grid.plan(found)))
    for part, planned in (("runs", grid.runs(found)), ("candidates", grid.candidates(found))):
        assert list(plan[part]) == [run.name for run in planned]
        for run in planned:
            there = plan[part][run.name]
            waits = {knob: value for knob, value in run.config.model_dump().items() if knob not in there["config"]}
            assert waits.keys() <= set(grid.SHORT), "of what may be chosen"
            assert bool(waits) == (there["choice"] is not None) == (part == "runs" and there["rate"] != "fixed")
            whole = run_config({**there["config"], **waits})
            assert whole == run.config
            assert there["identity"] == grid.identity(whole, waits) == run.identity
            assert {key: there[key] for key in (*run.place, "rate", "candidate")} == {
                **run.place,
                "rate": run.rate,
                "candidate": run.candidate,
            }
    keys = ("preset", "title", "device", "gpu_slots", "save_minutes", "tuned")
    assert {key: plan[key] for key in keys} == {key: getattr(found, key) for key in keys}


IDENTITIES = """
import json, sys
from pathlib import Path
from rankcollapse.experiment import grid
from rankcollapse.experiment.config import RunConfig, run_config
package = Path(grid.__file__).parent
def identity():
    grid.code.cache_clear()
    return grid.identity(RunConfig()), grid.identity(run_config({"rule": "fa", "lr": 0.5}))
found = {"": identity()}
for edit in json.loads(sys.stdin.read()):
    path, old, new = package / edit[0], edit[1], edit[2]
    text = path.read_text(encoding="utf-8")
    assert old in text, edit
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    found["|".join(edit)] = identity()
    path.write_text(text, encoding="utf-8")
print(json.dumps(found))
"""


def identities(package, edits=()):
    """The identities of two runs by the code in a copy of the package, as it is and after each edit of it."""
    env = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run(
        [sys.executable, "-c", IDENTITIES], input=json.dumps(list(edits)), capture_output=True, text=True, env=env,
        cwd=package.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def copied(tmp_path):
    package = tmp_path / "copy" / "rankcollapse"
    shutil.copytree(Path(rankcollapse.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


TRAINING = {"data", "datasets", "feedback", "models", "optim", "probes", "rules", "spectra", "training"}
OTHER = {
    "__init__", "__main__", "check", "config", "cpu", "errors", "files", "folder", "gpus", "grid", "job", "lock",
    "progress", "ranks", "saves", "seals",
}  # fmt: skip


def test_an_identity_follows_the_code_that_trains_and_no_comment_or_other_module(copied):
    paths = {path.stem: path for path in copied.glob("*.py")}
    assert set(paths) == TRAINING | OTHER, "a new module is one or the other"
    docstrings = {name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for name, path in paths.items()}
    first_lines = {name: (text or "").splitlines()[0] for name, text in docstrings.items() if text}
    loud = [(f"{name}.py", "", "added_line = 1\n") for name in sorted(paths)]
    silent = [
        *((f"{name}.py", first_lines[name], "Another docstring.") for name in sorted(TRAINING)),
        ("training.py", "import", "# a comment, and a blank line\n\nimport"),
        ("training.py", '    """All that a run is between two steps', '    """Said otherwise'),
    ]
    line = ("training.py", "self.step += 1", "self.step += 2")
    found = identities(copied, [*loud, *silent, line])
    before = found.pop("")
    assert before == [grid.identity(RunConfig()), grid.identity(run_config({"rule": "fa", "lr": 0.5}))]
    assert {edit[0] for edit in loud if found["|".join(edit)] != before} == {f"{name}.py" for name in TRAINING}
    assert [edit for edit in silent if found["|".join(edit)] != before] == []
    assert found["|".join(line)] != before


def test_a_new_knob_at_its_default_leaves_every_identity_as_it_is(copied):
    before = identities(copied)
    path = copied / "config.py"
    text = path.read_text(encoding="utf-8")
    assert text.count("    seed: Seed = 0\n") == 1
    knob = '    warmup: int = Field(0, ge=0, description="steps of linear warm-up")\n'
    path.write_text(text.replace("    seed: Seed = 0\n", knob + "    seed: Seed = 0\n"), encoding="utf-8")
    code = "from rankcollapse.experiment.config import RunConfig; assert RunConfig().warmup == 0"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=copied.parent)
    assert identities(copied) == before


# ---- the package ----


def test_every_module_that_the_package_imports_is_among_its_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {text.split("[")[0].split(">")[0].split("<")[0].strip().lower() for text in project["dependencies"]}
    known_as = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
    imported = set()
    for path in Path(rankcollapse.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    needed = {known_as.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"rankcollapse"}}
    assert needed - declared == set()


def test_planning_needs_no_torch():
    """Snakemake and every small job read the grid: they do not pay the seconds that torch takes to load."""
    code = "import sys, rankcollapse.grid, rankcollapse.spectra, rankcollapse.ranks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
