"""What one run is. Read without torch, so that the workflow can plan a grid in milliseconds.

Every key, its unit and its bounds stand in `config.schema.yaml`; here are the names, the types and the defaults.
"""

import contextlib
import dataclasses
import difflib
import functools
import json
import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import yaml

SCHEMA = Path(__file__).with_name("config.schema.yaml")
TRAIN_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "digits": 1_437}


class InputError(ValueError):
    """Bad input: config, data, checkpoint or flag. The message is one sentence: what, what is wrong, what is right."""


@dataclass(frozen=True)
class RunConfig:
    """One training run, whole: equal configs on one machine give equal bits. The defaults are a small digits run."""

    # data
    dataset: str = "digits"
    data_dir: str = "data"
    download: bool = True
    train_images: int | None = None
    validation_images: int = 200
    flip: bool = False
    crop: int = 0
    # model
    architecture: str = "cnn4"
    width: int = 32
    depth: int = 3
    stem_stride: int = 1
    normalization: str = "none"
    # learning rule and update
    rule: str = "fa"
    optimizer: str = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 0.0
    update: str = "full"
    rank: int | None = None
    norm: str | None = None
    ns_steps: int = 5
    shape_factor: str = "original"
    classifier: str = "muon"
    auxiliary_lr: float = 0.001
    # training
    epochs: int = 12
    batch_size: int = 64
    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    device: str = "auto"
    # probes
    gradient_every: int = 6
    gradient_stride: int = 25
    gradient_window: int = 100
    signals_every: int = 1
    probe_images: int = 64

    seed: int = 0

    def __post_init__(self):
        check_against_schema(dataclasses.asdict(self), "run", "run config")
        available = TRAIN_IMAGES[self.dataset] - self.validation_images
        has = f"{self.dataset} has {TRAIN_IMAGES[self.dataset]} training images"
        if available <= 0:
            raise InputError(f"validation_images is {self.validation_images}, but {has}; it must be less")
        if self.train_images is not None and self.train_images > available:
            raise InputError(
                f"train_images is {self.train_images}, but {has}, which less validation_images "
                f"{self.validation_images} leave {available}; it must be that or less"
            )
        if self.images < self.batch_size:
            raise InputError(f"batch_size is {self.batch_size}, more than the {self.images} training images")
        if self.probe_images and self.probe_images > self.images:
            raise InputError(f"probe_images is {self.probe_images}, more than the {self.images} training images")
        if self.precision == "bfloat16" and self.dataset == "digits" and self.architecture != "mlp":
            # oneDNN (torch 2.14) leaves the taps of a strided 3x3 kernel that see only padding uninitialised.
            raise InputError(
                "precision is 'bfloat16', in which CPUs get convolutions over single pixels wrong, and to those the "
                "8 x 8 digits shrink; it must be 'float32' for digits"
            )
        if self.update == "top_r" and self.rank is None:
            raise InputError("rank is missing: update 'top_r' needs the number of singular directions to keep")
        if self.update == "full_rank" and self.norm is None:
            raise InputError("norm is missing: update 'full_rank' needs 'frobenius' or 'spectral', the norm to keep")
        if self.update != "full" and self.optimizer != "sgd":
            raise InputError(f"update {self.update!r} changes momentum SGD; optimizer must be 'sgd', not 'muon'")

    @property
    def images(self) -> int:
        """Training images seen per epoch, before the last incomplete batch is left out."""
        return self.train_images or TRAIN_IMAGES[self.dataset] - self.validation_images

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch_size

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def gradient_rows(self) -> int:
        """T, the rows of the gradient trajectory; 0 with the probe off."""
        return -(-self.steps // self.gradient_every) if self.gradient_every else 0


FIELDS = tuple(field.name for field in dataclasses.fields(RunConfig))


def run_config(values: dict) -> RunConfig:
    """A RunConfig from a mapping. Raises InputError for an unknown key, a wrong type or a value out of bounds."""
    check_against_schema(values, "run", "run config")
    return RunConfig(**values)


def read(path: Path | str) -> dict:
    """The mapping in a YAML or JSON file. Raises InputError if it cannot be read as one."""
    try:
        text = Path(path).read_text()
        with contextlib.suppress(json.JSONDecodeError):  # first, since YAML reads JSON's 1e-05 as text
            return _mapping(json.loads(text), path)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    return _mapping(values, path)


def _mapping(values: object, path: Path | str) -> dict:
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, not a mapping of keys to values")
    return values


@functools.cache
def schema() -> dict:
    return yaml.safe_load(SCHEMA.read_text())


@functools.cache
def _validator(definition: str | None):
    from jsonschema import (
        Draft202012Validator,
        validators,
    )  # a tenth of a second that `import rankcollapse` need not pay

    # Stricter than JSON: 2.0 is no whole number, and NaN and infinity are no numbers.
    types = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
            "number": lambda _, value: (
                isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
            ),
        }
    )
    whole = schema()
    part = whole if definition is None else {"$ref": f"#/$defs/{definition}", "$defs": whole["$defs"]}
    return validators.extend(Draft202012Validator, type_checker=types)(part)


def check_against_schema(values: dict, definition: str | None, where: str) -> None:
    """Raise InputError, one sentence, for the first thing in `values` that the schema does not allow."""
    _check_keys(values, where)
    errors = sorted(_validator(definition).iter_errors(values), key=lambda error: (len(error.path), str(error.path)))
    if errors:
        raise InputError(f"{where}: {_sentence(errors[0])}")


def _check_keys(values: object, where: str) -> None:
    """JSON has text keys alone; YAML's others would break the validator itself."""
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    for key in values if isinstance(values, dict) else ():
        if not isinstance(key, str):
            raise InputError(f"{where}: unknown key '{key}'; keys are text, and this is of type {type(key).__name__}")
    for value in inner:
        _check_keys(value, where)


def _sentence(error) -> str:
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(known))[0]
        near = difflib.get_close_matches(unknown, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys here are {', '.join(known)}"
        return f"unknown key {f'{key}.{unknown}'.lstrip('.')!r}; {hint}"
    if error.validator == "required":
        missing = sorted(set(error.validator_value) - set(error.instance))[0]
        return f"key {f'{key}.{missing}'.lstrip('.')!r} is missing"
    wants = {
        "enum": lambda v: "must be one of " + ", ".join(str(x) for x in v),
        "type": lambda v: f"must be of type {' or '.join(v) if isinstance(v, list) else v}",
        "minimum": lambda v: f"must be {v} or more",
        "maximum": lambda v: f"must be {v} or less",
        "exclusiveMinimum": lambda v: f"must be greater than {v}",
        "exclusiveMaximum": lambda v: f"must be less than {v}",
        "uniqueItems": lambda _: "must not hold a value twice",
        "minItems": lambda v: f"must hold at least {v}",
        "pattern": lambda v: f"must match {v}",
    }.get(error.validator, lambda _: error.message)(error.validator_value)
    about = error.schema.get("description", "")
    if isinstance(error.instance, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", error.instance):
        about = "YAML reads a number with an exponent only with a point: " + re.sub("[eE]", ".0e", error.instance)
    return f"{key} is {error.instance!r}; it {wants}" + (f" ({about})" if about else "")
