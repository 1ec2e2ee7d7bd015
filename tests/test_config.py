import ast
import dataclasses
import json
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import rankcollapse
from rankcollapse import config as module
from rankcollapse import files, grid
from rankcollapse.config import FIELDS, InputError, RunConfig, read, run_config, schema

ROOT = Path(__file__).parent.parent


# ---- the schema ----


def test_the_schema_describes_every_field_of_a_run_and_no_other():
    described = schema()["$defs"]["run"]["properties"]
    assert set(described) == set(FIELDS) == {field.name for field in dataclasses.fields(RunConfig)}
    assert [key for key, value in described.items() if not value.get("description", "").strip()] == []


def test_the_schema_is_a_valid_schema():
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(schema())


def test_every_value_that_an_enum_allows_is_one_the_library_knows():
    from rankcollapse import data, feedback, models

    properties = schema()["$defs"]["run"]["properties"]
    assert set(properties["rule"]["enum"]) == set(feedback.RULES)
    assert set(properties["architecture"]["enum"]) == set(models.ARCHITECTURES)
    assert set(properties["normalization"]["enum"]) == set(models.NORMALIZATIONS)
    assert set(properties["dataset"]["enum"]) == set(data.CLASSES) == set(data.SHAPES) == set(data.PIXELS)
    assert set(properties["dataset"]["enum"]) == set(module.TRAIN_IMAGES)


# ---- one run ----


def test_the_defaults_are_a_valid_run():
    assert run_config({}) == RunConfig()


def test_derived_numbers_are_worked_by_hand():
    config = RunConfig(train_images=1000, batch_size=64, epochs=3, gradient_every=7)
    assert (config.images, config.steps_per_epoch, config.steps) == (1000, 15, 45)
    assert config.gradient_rows == len(range(0, 45, 7))
    assert RunConfig(gradient_every=0).gradient_rows == 0
    assert RunConfig(dataset="cifar10", validation_images=5000).images == 45_000


def test_the_whole_of_a_set_less_validation_may_be_asked_for():
    assert RunConfig(train_images=1237, validation_images=200).images == 1237


BAD = [
    ({"learning_rate": 0.1}, "'learning_rate'"),
    ({"momentun": 0.1}, "did you mean 'momentum'"),
    ({"rule": "dfa"}, "rule is 'dfa'"),
    ({"optimizer": "adam"}, "optimizer is 'adam'"),
    ({"architecture": "vgg"}, "architecture is 'vgg'"),
    ({"dataset": "mnist"}, "dataset is 'mnist'"),
    ({"lr": 0}, "lr is 0"),
    ({"lr": -1}, "lr is -1"),
    ({"lr": "1e-3"}, "lr is '1e-3'"),
    ({"lr": float("nan")}, "lr is nan"),
    ({"lr": float("inf")}, "lr is inf"),
    ({"weight_decay": float("inf")}, "weight_decay is inf"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ({"momentum": 1}, "momentum is 1"),
    ({"epochs": 0}, "epochs is 0"),
    ({"epochs": 1.5}, "epochs is 1.5"),
    ({"epochs": True}, "epochs is True"),
    ({"epochs": None}, "epochs is None"),
    ({"flip": 1}, "flip is 1"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**32}, f"seed is {2**32}"),
    ({"seed": False}, "seed is False"),
    ({"stem_stride": 3}, "stem_stride is 3"),
    ({"crop": 9}, "crop is 9"),
    ({"width": [32]}, "width is [32]"),
    ({"data_dir": ""}, "data_dir is ''"),
    ({"train_images": 0}, "train_images is 0"),
    ({"train_images": 1238}, "train_images is 1238"),
    ({"dataset": "cifar10", "train_images": 50_000}, "train_images is 50000"),
    ({"train_images": 100, "batch_size": 128}, "batch_size is 128"),
    ({"train_images": 64, "probe_images": 65}, "probe_images is 65"),
    ({"validation_images": 5}, "validation_images is 5"),
    ({"validation_images": 2000}, "validation_images"),
    ({"architecture": "cnn4", "precision": "bfloat16"}, "precision is 'bfloat16'"),
    ({"update": "top_r"}, "rank is missing"),
    ({"update": "full_rank"}, "norm is missing"),
    ({"update": "top_r", "rank": 0}, "rank is 0"),
    ({"update": "full_rank", "norm": "nuclear"}, "norm is 'nuclear'"),
    ({"update": "top_r", "rank": 2, "optimizer": "muon"}, "update 'top_r'"),
    ({1: 2}, "1"),
    ({True: 2, "lr": 0.1, "x": 3}, "unknown key"),
]


@pytest.mark.parametrize(("values", "words"), BAD, ids=str)
def test_a_bad_value_is_refused_in_one_sentence_that_names_it(values, words, one_sentence):
    with pytest.raises(InputError) as caught:
        run_config(values)
    one_sentence(caught.value, words)


@pytest.mark.parametrize("values", [v for v, _ in BAD if set(v) <= set(FIELDS)], ids=str)
def test_the_class_itself_refuses_what_run_config_refuses(values):
    with pytest.raises(InputError):
        RunConfig(**values)


def test_a_whole_number_written_as_a_float_is_a_whole_number_or_is_refused():
    """JSON Schema takes 2.0 for an integer; range(2.0) is an error."""
    try:
        config = run_config({"epochs": 2.0})
    except InputError as error:
        assert "epochs" in str(error)  # noqa: PT017
    else:
        assert type(config.epochs) is int


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
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, one_sentence, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read(path)
    one_sentence(caught.value, str(path), words)


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path, one_sentence):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    for path in (tmp_path / "none", tmp_path / "binary", tmp_path):
        with pytest.raises(InputError) as caught:
            read(path)
        one_sentence(caught.value, str(path))


@pytest.mark.parametrize("value", [0.03, 1e-3, 1e-5, 5e-05, 1.5e-7, 1e20, 1.0])
def test_a_config_written_as_json_is_read_back_as_it_was(tmp_path, value):
    config = RunConfig(lr=value)
    files.write_json(tmp_path / "config.json", dataclasses.asdict(config))
    assert run_config(read(tmp_path / "config.json")) == config


def test_yaml_and_json_give_the_same_config(tmp_path):
    values = {"lr": 0.5, "rank": None, "flip": True, "architecture": "mlp"}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "a.json").write_text(json.dumps(values))
    assert read(tmp_path / "a.yaml") == read(tmp_path / "a.json") == values


def test_a_write_that_fails_for_want_of_space_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.txt"
    files.write_text(path, "old")

    def full(temporary):
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write(path, full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_makes_the_folder_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "a" / "b" / "result.json"
    for value in ({"é": 1}, {"×": [1, 2]}):
        files.write_json(path, value)
        assert json.loads(path.read_text()) == value
    assert list(path.parent.iterdir()) == [path]


# ---- the grid ----


def a_grid(**changes):
    look = {"label": "x", "colour": "#000000", "marker": "o", "line": "-"}
    cost = {"cpu": 100, "cuda": 1000, "mem_mb": 500, "disk_mb": 1}
    return {
        "preset": "test",
        "seeds": [1, 0],
        "run": {"lr": 0.1, "width": 8, "epochs": 2, "momentum": 0.1},
        "arms": {"bp": {**look, "run": {"rule": "bp", "momentum": 0.3, "epochs": 4}}, "fa": look},
        "studies": [
            {"name": "b", "datasets": ["digits", "cifar10"], "arms": {"fa": {}, "bp": {"epochs": 5}}, "cost": cost,
             "run": {"width": 16, "momentum": 0.2, "epochs": 3}},
            {"name": "a", "datasets": ["digits"], "arms": {"bp": {}}, "cost": {**cost}},
        ],
        **changes,
    }  # fmt: skip


def changed(change):
    config = a_grid()
    change(config)
    return config


def test_runs_come_in_the_order_of_the_config():
    names = [run.name for run in grid.runs(a_grid())]
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
    assert grid.runs(a_grid()) == grid.runs(a_grid())


def test_the_more_special_override_wins():
    """A run's defaults, then the study, then the arm, then the arm within the study."""
    found = {run.name: run.config for run in grid.runs(a_grid())}
    fa, bp, other = (found[name] for name in ("b/digits/fa/seed0", "b/digits/bp/seed0", "a/digits/bp/seed0"))
    assert (fa.lr, fa.width, fa.momentum, fa.epochs, fa.rule) == (0.1, 16, 0.2, 3, "fa")
    assert (bp.lr, bp.width, bp.momentum, bp.epochs, bp.rule) == (0.1, 16, 0.3, 5, "bp")
    assert (other.lr, other.width, other.momentum, other.epochs, other.rule) == (0.1, 8, 0.3, 4, "bp")


def test_a_run_knows_its_place_and_its_whole_config():
    (run,) = [run for run in grid.runs(a_grid()) if run.name == "b/cifar10/fa/seed1"]
    assert (run.study, run.dataset, run.arm, run.seed) == ("b", "cifar10", "fa", 1)
    assert (run.config.dataset, run.config.seed) == ("cifar10", 1)
    assert RunConfig(**run.values()) == run.config


def test_planning_does_not_change_the_config():
    config = a_grid()
    grid.runs(config)
    assert config == a_grid()


def test_estimated_seconds_are_training_and_a_fifth_and_the_start():
    config = a_grid()
    run = grid.runs(config)[-1]
    assert grid.seconds(run, config["studies"][1], "cpu") == pytest.approx(8 + 1.2 * 4 * 1237 / 100)
    assert grid.seconds(run, config["studies"][1], "cuda") == pytest.approx(8 + 1.2 * 4 * 1237 / 1000)


BAD_GRIDS = [
    (lambda c: c.update(seeds=[0, 1, 0]), ["seeds", "twice"]),
    (lambda c: c.update(seeds=[]), ["seeds"]),
    (lambda c: c.update(seeds=["0"]), ["seeds[0] is '0'"]),
    (lambda c: c.update(studies=[c["studies"][0], c["studies"][0]]), ["name 'b' twice"]),
    (lambda c: c["studies"][1]["arms"].update(pepita={}), ["study 'a'", "unknown arm 'pepita'", "bp, fa"]),
    (lambda c: c["studies"][1].update(datasets=["digits", "digits"]), ["studies[1].datasets", "twice"]),
    (lambda c: c["studies"][1].update(datasets=["svhn"]), ["studies[1].datasets[0] is 'svhn'"]),
    (lambda c: c["studies"][1].pop("cost"), ["'studies[1].cost' is missing"]),
    (lambda c: c["studies"][1]["cost"].update(cpu=0), ["studies[1].cost.cpu is 0"]),
    (lambda c: c.pop("arms"), ["'arms' is missing"]),
    (lambda c: c.update(arms={}), ["arms"]),
    (lambda c: c["arms"]["bp"].update(colour="red"), ["arms.bp.colour is 'red'"]),
    (lambda c: c["arms"]["bp"]["run"].update(momentun=0), ["'arms.bp.run.momentun'", "did you mean 'momentum'"]),
    (lambda c: c["run"].update(lr=0), ["run.lr is 0"]),
    (lambda c: c.update(run=None), ["run is None"]),
    (lambda c: c.update(sedes=[0]), ["'sedes'", "did you mean 'seeds'"]),
    (lambda c: c.update(threads=0), ["threads is 0"]),
    (lambda c: c.update(preset="A B"), ["preset is 'A B'"]),
    (lambda c: c["run"].update(update="top_r"), ["study 'b'", "arm 'fa'", "dataset 'digits'", "rank is missing"]),
    (lambda c: c["studies"][0]["run"].update(train_images=1300), ["study 'b'", "train_images is 1300"]),
]


@pytest.mark.parametrize(("change", "words"), BAD_GRIDS, ids=[", ".join(words) for _, words in BAD_GRIDS])
def test_a_bad_grid_is_refused_in_one_sentence_that_names_the_key(change, words, one_sentence):
    with pytest.raises(InputError) as caught:
        grid.runs(changed(change))
    one_sentence(caught.value, *words)


# ---- the package ----


def test_every_library_that_the_package_imports_is_among_its_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {text.split("[")[0].split(">")[0].split("<")[0].strip().lower() for text in project["dependencies"]}
    known_as = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
    imported = set()
    for path in Path(rankcollapse.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    needed = {known_as.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"rankcollapse"}}
    assert needed - declared == set()


def test_the_schema_travels_with_the_package():
    """Setuptools leaves a file that is no module out of a wheel unless it is told of it."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = tool.get("package-data", {}).get("rankcollapse", [])
    assert any(module.SCHEMA.match(pattern) for pattern in patterns)


def test_overlays_are_laid_as_snakemake_lays_them():
    from snakemake.utils import update_config

    base, over = read(ROOT / "config.yaml"), read(ROOT / "presets" / "quick.yaml")
    expected = read(ROOT / "config.yaml")
    update_config(expected, over)
    assert grid.overlay(base, over) == expected
    assert base == read(ROOT / "config.yaml"), "the config laid upon is left alone"
