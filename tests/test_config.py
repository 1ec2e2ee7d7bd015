"""A run's knobs, the grid and its plan, the schema, and the identity of a run."""

import ast
import inspect
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import jsonschema
import pytest

import rankcollapse
from rankcollapse.experiment import datasets, files, grid, identity, plan
from rankcollapse.experiment.config import UPDATES, RunConfig, Settings, checked, read, run_config
from rankcollapse.library import models, norms, processor, rules

ROOT = Path(__file__).parent.parent
CONFIGS = [ROOT / "config.yaml", *sorted((ROOT / "presets").glob("*.yaml")), ROOT / "tests" / "tiny.yaml"]
FIELDS = Settings.model_fields
INF, NAN = math.inf, math.nan

# fmt: off
DEFAULTS = {
    "dataset": "digits", "train_images": None, "validation_images": 200, "tuning_images": 0, "tuning": False,
    "flip": False, "crop": 0, "architecture": "cnn", "width": 32, "depth": None, "stem": "cifar",
    "normalization": "none", "rule": "bp", "feedback": "same", "feedback_rank": None,
    "feedback_scale": 1.0, "error": "full", "error_directions": None,
    "learning_blocks": None, "optimizer": "sgd", "lr": 0.03, "momentum": 0.9,
    "weight_decay": 0.0, "update": "full", "rank": None, "norm": None, "update_head": True, "ns_steps": 5,
    "ns_precision": "bfloat16",
    "shape_factor": "original", "auxiliary_lr": 0.001, "epochs": 12, "warmup": 0, "schedule": "cosine",
    "batch_size": 64, "precision": "float32", "channels_last": True, "compile": False, "gradient_every": 6,
    "gradient_stride": 25, "gradient_window": 100, "signals_every": 1, "probe_images": 64, "seed": 0,
}
# fmt: on
# Of knobs of every kind other values that are allowed, and values that are not; the bounds of all are in the schema.
KNOBS = {
    "dataset": (["cifar10", "cifar100"], ["mnist", ""]),
    "train_images": ([1, 10**9], [0, -1]),
    "tuning": ([True], [0, 1, "yes"]),
    "crop": ([1, 8], [-1, 9]),
    "depth": ([1, 12], [0, 13]),
    "normalization": (["batch", "layer", "group", "rms", "whiten"], ["bn", True]),
    "rule": (["fa", "dfa", "kp", "usf", "brsf", "frsf", "wm", "frozen", "frozen-fa", "frozen-bp"], ["sfa", "FA"]),
    "lr": ([1, 1e-9, 10.0], [0, -1, 0.0, "1e-3", NAN, INF]),
    "momentum": ([0, 0.999], [1, 1.0, -0.1, NAN]),
    "weight_decay": ([0.1, 3], [-0.1, INF, NAN]),
    "optimizer": (["sgd", "muon"], ["adamw", "SGD"]),
    "norm": (["frobenius", "spectral"], ["nuclear"]),
    "ns_precision": (["float32"], ["float64", "auto"]),
    "precision": (["bfloat16", "auto"], ["float16", 32]),
    "channels_last": ([False], [0, "true"]),
    "batch_size": ([2, 4096], [1, 0]),
    "seed": ([1, 2**32 - 1], [-1, 2**32]),
}
GOOD = [(knob, value) for knob, (good, _) in KNOBS.items() for value in (DEFAULTS[knob], *good)]


def wrong(knob):
    """What the knob may not be: of another type, a whole number with a point, a truth value for a number."""
    default, (good, bad) = DEFAULTS[knob], KNOBS[knob]
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


# ---- one knob ----


def test_the_defaults_of_knobs_never_change():
    """A run's identity leaves out what is at its default: with another default, old results would silently pass for new
    ones, and Snakemake would retrain nothing. A new knob may come, with the default that runs had without it.
    """
    assert RunConfig().model_dump() == DEFAULTS
    assert set(RunConfig.model_fields) == set(FIELDS)
    assert [knob for knob, field in FIELDS.items() if not (field.description or "").strip()] == []


@pytest.mark.parametrize("knob", KNOBS)
def test_a_good_value_is_kept_and_a_bad_one_refused_in_one_sentence_that_names_the_knob(knob, refused):
    for value in (DEFAULTS[knob], *KNOBS[knob][0]):
        assert getattr(checked(Settings, {knob: value}, "run"), knob) == value
    for value in wrong(knob):
        refused(lambda value=value: run_config({knob: value}), f"run config: {knob} is {value!r}; ")


def test_the_schema_for_editors_allows_what_the_library_allows():
    """But for 2.0, a whole number in JSON, and for NaN and infinity, which JSON does not have."""
    defined = json.loads(grid.schema())
    validator = jsonschema.Draft202012Validator({"$ref": "#/$defs/Settings", "$defs": defined["$defs"]})
    assert [(knob, value) for knob, value in GOOD if not validator.is_valid({knob: value})] == []
    told = [(k, v) for k, v in BAD if not isinstance(v, float) or (math.isfinite(v) and v not in KNOBS[k][0])]
    assert [(knob, value) for knob, value in told if validator.is_valid({knob: value})] == []


def test_every_name_that_a_knob_allows_is_one_the_library_knows():
    assert set(get_args(FIELDS["rule"].annotation)) == set(rules.RULES)
    assert set(get_args(FIELDS["architecture"].annotation)) == set(models.ARCHITECTURES)
    assert set(get_args(FIELDS["normalization"].annotation)) == {"none", *norms.NORMALIZATIONS}
    assert {"digits", "cifar10", "cifar100"} <= set(datasets.SETS)
    assert set(get_args(FIELDS["optimizer"].annotation)) == set(UPDATES)
    assert set(get_args(FIELDS["update"].annotation)) == {name for some in UPDATES.values() for name in some}


# ---- one run ----


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rate": 0.1}, ["unknown key 'learning_rate'", "the keys here are dataset, train_images"]),
        ({"momentun": 0.1}, ["unknown key 'momentun'", "did you mean 'momentum'"]),
        ({"lr": "1e-3"}, ["lr is '1e-3'", "YAML reads a number with an exponent only with a point: 1.0e-3"]),
        ({"train_images": 1238}, ["train_images is 1238", "leave 1237"]),
        ({"dataset": "cifar10", "train_images": 50_000}, ["train_images is 50000", "50000 training images"]),
        ({"tuning_images": 1237}, ["validation_images is 200 and tuning_images 1237", "1437 training images"]),
        ({"tuning_images": 200, "train_images": 1038}, ["train_images is 1038", "tuning_images 200 leave 1037"]),
        (
            {"tuning_images": 200, "tuning": True, "train_images": 201},
            ["train_images is 201", "tuning_images sets apart 200"],
        ),
        ({"learning_blocks": 1, "rule": "frozen-fa"}, ["learning_blocks is 1", "under rule 'frozen-fa' no block"]),
        ({"depth": 1}, ["depth is 1", "a cnn has 2 convolutions or more"]),
        ({"depth": 13}, ["depth is 13", "less than or equal to 12"]),
        ({"depth": 18, "architecture": "resnet18"}, ["depth is 18", "less than or equal to 12"]),
        ({"depth": 4, "architecture": "resnet18"}, ["depth is 4", "resnet18", "it must be null"]),
        ({"train_images": 64, "probe_images": 65}, ["probe_images is 65", "64 training images"]),
        ({"precision": "auto"}, ["precision is 'auto'", "'float32' or 'bfloat16'"]),
        ({"warmup": 12}, ["warmup is 12", "epochs is 12", "must be less"]),
        ({"update": "top_r"}, ["rank is missing"]),
        ({"update": "top_r", "optimizer": "muon"}, ["rank is missing"]),
        ({"update": "spread_r", "optimizer": "muon"}, ["rank is missing", "'spread_r'"]),
        ({"update": "spread_r", "optimizer": "muon", "rank": 2}, ["norm is missing", "'spread_r'"]),
        ({"update": "full_rank", "optimizer": "muon"}, ["update is 'full_rank'", "'muon'", "'polar', 'top_r'"]),
        ({"update": "polar"}, ["update is 'polar'", "optimizer 'sgd'", "'full', 'top_r', 'full_rank'"]),
        ({"update": "top_r", "rank": 2, "optimizer": "adam"}, ["update is 'top_r'", "'adam' it must be one of 'full'"]),
        ({"rule": "fa", "rank": 5}, ["rank is 5", "update 'full' takes none", "must be null"]),
        ({"stem": "imagenet", "architecture": "cnn"}, ["stem is 'imagenet'", "'cnn' has none"]),
        (None, ["run config"]),
    ],
    ids=str,
)
def test_what_is_no_run_is_refused_in_one_sentence(values, words, refused):
    refused(lambda: run_config(values), "run config: ", *words)


def test_numbers_of_steps_are_worked_by_hand():
    apart = {"validation_images": 200, "tuning_images": 300}
    counts = {
        (1000, 15): {"train_images": 1000}, (45_000, 703): {"dataset": "cifar10", "validation_images": 5000},
        (937, 14): apart, (300, 4): {**apart, "tuning": True}, (150, 2): {**apart, "tuning": True, "train_images": 150},
    }  # fmt: skip
    for expected, values in counts.items():
        config = run_config({"batch_size": 64, **values})
        assert (datasets.training_images(config), datasets.steps_per_epoch(config)) == expected


# ---- files ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: 1\n\tepochs: 2", "cannot be read as YAML"),
        ("- lr", "list, not a mapping"),
        ("[" * 3000, "cannot be read as YAML"),
        (b"\xff\xfe\x00\x81", "cannot be read as YAML"),
        ("x: !!python/object:os.system 1", "cannot be read as YAML"),
    ],
    ids=lambda text: str(text)[:30],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, refused, text, words):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(lambda: read(path), str(path), words)
    refused(lambda: read(tmp_path), str(tmp_path), "cannot be read")
    refused(lambda: read(tmp_path / "none"), str(tmp_path / "none"), "cannot be read")


def test_a_write_that_fails_for_want_of_space_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "result.txt"
    for text in ("older", "old"):
        files.write_text(path, text)

    def full(temporary):
        temporary.write_text("ne", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        files.write(path, full)
    assert caught.value.filename == str(path)
    assert path.read_text(encoding="utf-8") == "old"
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


def runs(config, device="cpu", choices=None):
    """Those of a grid; by default as if every tuned arm had chosen its middle candidate."""
    found = grid.grid(config)
    middle = {
        plan.ARM.format(study=study.name, dataset=dataset, arm=arm): special.tune.middle
        for study in found.studies
        for dataset in study.datasets
        for arm, special in study.arms.items()
        if special.tune
    }
    return plan.runs(found, device, middle if choices is None else choices)


def test_runs_come_in_the_order_of_the_config_and_know_their_place():
    config = a_grid()
    found = runs(config)
    assert config == a_grid(), "it is not changed"
    some = [f"b/{dataset}/{arm}/seed{s}" for arm in ("fa", "bp") for dataset in ("digits", "cifar10") for s in (1, 0)]
    assert [run.name for run in found] == [*some, "a/digits/bp/seed1", "a/digits/bp/seed0"]
    assert found[2].place == {"study": "b", "dataset": "cifar10", "arm": "fa", "seed": 1}
    assert (found[2].config.dataset, found[2].config.seed, found[2].study.cost.cpu) == ("cifar10", 1, 100)
    assert found[-1].seconds("cpu") == pytest.approx(8 + 1.2 * 4 * 1237 / 100), "training, a fifth, and the start"
    assert found[-1].seconds("cuda") == pytest.approx(8 + 1.2 * 4 * 1237 / 1000)


def test_the_more_special_override_wins():
    """A run's defaults, then the study, then the arm, then the arm within the study."""
    found = {run.name: run.config for run in runs(a_grid())}
    fa, bp, other = (found[name] for name in ("b/digits/fa/seed0", "b/digits/bp/seed0", "a/digits/bp/seed0"))
    assert (fa.lr, fa.width, fa.momentum, fa.epochs, fa.rule) == (0.1, 16, 0.2, 3, "bp")
    assert (bp.lr, bp.width, bp.momentum, bp.epochs, bp.rule) == (0.1, 16, 0.3, 5, "bp")
    assert (other.lr, other.width, other.momentum, other.epochs, other.rule) == (0.1, 8, 0.3, 4, "bp")
    config, default = a_grid(), {key: DEFAULTS[key] for key in ("momentum", "epochs")}
    config["studies"][1]["arms"]["bp"] = default
    assert runs(config)[-1].config.model_dump(include=set(default)) == default, "a default can be put back"


def test_a_study_and_an_arm_in_it_may_run_over_the_first_of_the_seeds_alone():
    config = a_grid(seeds=[3, 1, 2])
    study = config["studies"][1]
    study["arms"] = {"fa": {"lr": 0.1}, "bp": {"lr": 0.1, "seeds": 2}}

    def seeds():
        found = [run for run in runs(config) if run.study.name == study["name"]]
        return {arm: [run.config.seed for run in found if run.arm == arm] for arm in study["arms"]}

    assert seeds() == {"fa": [3, 1, 2], "bp": [3, 1]}
    study["seeds"] = 1
    assert seeds() == {"fa": [3], "bp": [3, 1]}, "the arm's own number is the one that counts"


@pytest.mark.parametrize(
    ("device", "multiplies", "expected"),
    [("cpu", True, "bfloat16"), ("cpu", False, "float32"), ("cuda", True, "bfloat16"), ("cuda", False, "bfloat16")],
)
def test_precision_auto_is_settled_where_the_grid_is_planned_and_leaves_the_identity(
    monkeypatch, device, multiplies, expected
):
    """Of the runs of a grid, whatever processor plans it; a type that is asked for by name is another run."""
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: multiplies)

    def planned(precision):
        study = {**a_grid()["studies"][0], "run": {"precision": precision, "architecture": "mlp"}}
        return {run.config.dataset: run for run in runs(a_grid(seeds=[0], studies=[study]), device)}

    auto, named = planned("auto"), planned(expected)
    assert [auto[dataset].config.precision for dataset in ("digits", "cifar10")] == ["float32", expected]
    assert auto["cifar10"].config == named["cifar10"].config
    assert auto["cifar10"].identity != named["cifar10"].identity
    other = auto["cifar10"].config.model_copy(update={"precision": "float32"})
    assert auto["cifar10"].identity == identity.identity(other, "auto")


BAD_GRIDS = [
    (lambda c: c.update(seeds=[0, 1, 0]), ["seeds", "0 twice"]),
    (lambda c: c["studies"][1]["arms"].update(pepita={}), ["study 'a'", "unknown arm 'pepita'", "bp, fa"]),
    (lambda c: c["studies"][1]["arms"].update(bp=None), ["studies[1].arms.bp is None"]),
    (lambda c: c["studies"][1].update(datasets=["digits", "digits"]), ["datasets", "study 'a'", "'digits' twice"]),
    (lambda c: c["studies"][1].pop("cost"), ["'studies[1].cost' is missing"]),
    (lambda c: c["arms"].update({"a/b": c["arms"]["bp"]}), ["'a/b'"]),
    (lambda c: c["arms"]["bp"].update(color="red"), ["'arms.bp.color'", "did you mean 'colour'"]),
    (lambda c: c["run"].update(lr=0), ["run.lr is 0"]),
    (lambda c: c["run"].update(dataset="digits"), ["study 'b'", "'dataset'", "'datasets'"]),
    (lambda c: c["run"].update(tuning=False), ["study 'b'", "'tuning'", "'tune'"]),
    (lambda c: c["run"].update(warmup=3), ["study 'b'", "arm 'fa'", "warmup is 3", "epochs is 3"]),
    (lambda c: c.update(sedes=[0]), ["'sedes'", "did you mean 'seeds'"]),
    (lambda c: c["run"].update(update="top_r"), ["study 'b'", "arm 'fa'", "dataset 'digits'", "rank is missing"]),
]


@pytest.mark.parametrize(("change", "words"), BAD_GRIDS, ids=[", ".join(words) for _, words in BAD_GRIDS])
def test_a_bad_grid_is_refused_in_one_sentence_that_names_the_key(change, words, refused):
    config = a_grid()
    change(config)
    refused(lambda: runs(config), "config: ", *words)


@pytest.mark.parametrize("text", ["run: &a {lr: *a}", "studies: &a [*a]", "seeds: &a [*a]"])
def test_an_anchor_that_holds_itself_is_refused_in_one_sentence(tmp_path, refused, text):
    path = tmp_path / "loop.yaml"
    path.write_text(text, encoding="utf-8")
    refused(lambda: runs(grid.overlay(a_grid(), read(path))), "config: ", text.split(":")[0])


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
    class Newer(RunConfig):
        knob: int = 0

    plain = identity.identity(run_config({}))
    assert plain == identity.identity(run_config(DEFAULTS))
    assert plain == identity.identity(Newer()), "a knob that comes, at its default"
    assert identity.identity(run_config({"lr": 1})) == identity.identity(run_config({"lr": 1.0}))
    changed = {(k, v): identity.identity(RunConfig().model_copy(update={k: v})) for k, v in GOOD if v != DEFAULTS[k]}
    assert len({plain, *changed.values()}) == 1 + len(changed)


@pytest.mark.parametrize("over", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plan_read_back_gives_each_run_its_place_and_its_identity(tmp_path, over, device):
    path, config = tmp_path / "plan.json", grid.overlay(read(CONFIGS[0]), read(over))
    found = grid.grid(config)
    planned = {"runs": runs(config, device), "candidates": plan.candidates(found, device)}
    plan.write(path, found, device, "data/ready", **planned)
    for part, some in planned.items():
        there = plan.entries(path, part)
        assert list(there) == [run.name for run in some]
        for run, entry in zip(some, there.values(), strict=True):
            assert run_config(entry["config"]) == run.config
            asked = (found.run.precision, run.study.run.precision, found.arms[run.arm].run.precision)
            assert (
                entry["identity"] == run.identity == identity.identity(run.config, "auto" if "auto" in asked else None)
            )
            assert {key: entry[key] for key in run.place} == run.place
            assert (entry["rate"], entry.get("candidate")) == (run.rate, run.candidate)
    how = {key: getattr(found, key) for key in ("preset", "gpu_slots", "save_minutes", "data_dir", "download")}
    assert {key: read(path)[key] for key in (*how, "device")} == {**how, "device": device}
    before = path.stat().st_mtime_ns
    plan.write(path, found, device, "data/ready", **planned)
    assert path.stat().st_mtime_ns == before, "it said so already"


PACKAGE = Path(rankcollapse.__file__).parent


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """A function from modules to their hash, in a copy of the package that a test may edit, and the copy's folder."""
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "__file__", str(copy / "experiment" / "identity.py"))
    return lambda *modules: identity.code.__wrapped__(modules), copy


def imported(path):
    """The modules that a file imports, by their full names; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_an_identity_counts_all_that_training_imports_but_what_changes_no_bit_or_is_counted_otherwise():
    found, left = set(), {"experiment/training.py"}
    while left:
        path = left.pop()
        found.add(path)
        names = {name.removeprefix("rankcollapse.").replace(".", "/") + ".py" for name in imported(PACKAGE / path)}
        left |= {name for name in names if (PACKAGE / name).exists()} - found
    assert found - {*identity.TRAINING} == {
        "errors.py",
        "experiment/config.py",
        "experiment/files.py",
        "library/ranks.py",
    }
    assert {*identity.TRAINING} <= found
    assert identity.MEASURES == ("library/ranks.py",)


def test_only_the_code_of_today_keeps_the_hash_of_an_earlier_one():
    """The next change to what trains makes new runs, unless its author says that they are the same."""
    assert set(identity.KEEPS) <= {identity.code(identity.TRAINING)}


def test_a_hash_of_code_follows_every_line_of_it_and_no_comment_docstring_or_layout(hashed):
    code, copy = hashed
    for name in (*identity.TRAINING, *identity.MEASURES):
        path, before = copy / name, code(name)
        text = path.read_text(encoding="utf-8")
        silent = text.replace('"""', '"""Another. ', 1).replace("\nimport", "\n# a comment\n\nimport", 1)
        method = re.sub(r'(\n +def .*:\n +""")', r"\1Said otherwise. ", silent, count=1)
        for edited in (silent, method):
            path.write_text(edited, encoding="utf-8")
            assert code(name) == before, name
        path.write_text(text + "added = 1\n", encoding="utf-8")
        assert code(name) != before, name
    path = copy / "odd.py"
    texts = ["f()", "f(None)", "f('')", "f(0)", "f([None, 1])", "f([1])", "f([''])", "f(b'')", "f('None')", "f(x=None)"]
    found = [(path.write_text(f"f(1)\n{text}\n"), code("odd.py"))[1] for text in texts]
    assert len({*found}) == len(texts)


ODD = """
def f(x, *, y=None, **z) -> "text":
    match x:
        case {"a": [1, *rest], **others} if rest: return f"{x!r:>{y}}" f"" "" f"{x:}{{}}{y=}" rf"\\d{x:\\d}"
    async def g(): yield
    return lambda *a, k=(): (None, "", ..., 1j, -0.0, u"u", b"", {**z, x: y}, x[1:, ...])
"""


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_a_hash_of_code_is_the_same_in_every_python(hashed, version):
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    places = [*root.glob(f"versions/{version}.*/bin/python"), shutil.which(f"python{version}")]
    works = [where for where in places if where and not subprocess.call([where, "-c", ""], stderr=subprocess.DEVNULL)]
    if not works:
        pytest.skip(f"there is no Python {version} here")
    code, copy = hashed
    (copy / "odd.py").write_text(ODD, encoding="utf-8")
    modules = [str(path.relative_to(copy)) for path in sorted(copy.rglob("*.py"))]
    source = map(inspect.getsource, (identity._written, identity.code.__wrapped__))
    head = "import ast, functools, hashlib, sys\nfrom pathlib import Path\n__file__ = sys.argv[1]\n"
    script = head + "\n".join(source) + "\nprint(code(tuple(sys.argv[2:])))\n"
    found = subprocess.run([works[0], "-c", script, identity.__file__, *modules], capture_output=True, text=True)
    assert found.stdout.strip() == code(*modules), found.stderr


# ---- the package ----


def test_the_library_imports_nothing_of_the_other_rooms_and_the_package_what_it_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known_as = {"sklearn": "scikit-learn", "yaml": "pyyaml", "typing_extensions": "pydantic"}  # which brings it
    for room, extra in {"library": [], "experiment": ["workflow", "render"], "render": ["render"]}.items():
        lists = [project["dependencies"], *(project["optional-dependencies"][name] for name in extra)]
        declared = {re.split(r"[\[<>=]", text)[0].strip() for some in lists for text in some}
        names = {name for path in (PACKAGE / room).glob("*.py") for name in imported(path)}
        own = {name.split(".")[1] for name in names if name.startswith("rankcollapse.")}
        assert own <= {"errors", "library", *(["experiment"] if room != "library" else []), room}, room
        needed = {name.split(".")[0] for name in names} - {*sys.stdlib_module_names, "rankcollapse"}
        assert {known_as.get(name, name) for name in needed} - declared == set(), room


def test_planning_needs_no_torch():
    """Snakemake and every small job read the grid: they do not pay the seconds that torch takes to load."""
    code = "import sys, rankcollapse.__main__, rankcollapse.experiment.folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_second_stem_at_full_width_has_the_rates_that_were_chosen_behind_the_first():
    made = grid.grid({**read(ROOT / "config.yaml"), **read(ROOT / "presets" / "full.yaml")})
    first, second = made.studies
    chosen = plan.choices(made, ROOT / "results" / "full" / "tuned.csv")
    for name, arm in second.arms.items():
        rate = chosen[f"{first.name}/cifar100/{name}"]
        assert {knob: getattr(arm, knob) for knob in rate} == rate, name
