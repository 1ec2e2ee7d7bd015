"""What one run is: every knob once, with its type, default, bounds, unit and reason. Read without torch.

A default is what runs did before the knob was there, and never changes: an identity leaves out what is at its default.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rankcollapse.errors import InputError
from rankcollapse.experiment import datasets

UPDATES = {  # by optimizer
    "sgd": ("full", "top_r", "full_rank"),
    "muon": ("full", "polar", "top_r", "spread_r", "fixed_r", "drawn_r", "frobenius", "spectral", "sign"),
    "adam": ("full",),
}
CUTS = ("top_r", "spread_r", "fixed_r", "drawn_r")  # which keep `rank` directions
ERRORS = ("full_rank", "top_r", "fixed_r")  # interventions on the error signal
Dataset = Literal[tuple(datasets.SETS)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1, description="seed of weights, feedback, subset, order, augmentation")]

DRAWN = ("fa", "dfa", "kp", "wm", "frozen-fa")  # rules whose B starts as a matrix of its own law


class Strict(BaseModel):
    """Unknown keys, wrong types (2.0 is no whole number, true no number), NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Settings(Strict):
    """The knobs of a run, in any number: what a grid, a study or an arm sets."""

    # data
    dataset: Dataset = Field("digits", description="data set")
    train_images: int | None = Field(None, ge=1, description="stratified subset to train on, images; null: all")
    validation_images: int = Field(200, ge=10, description="fixed validation split of the training set, images")
    tuning_images: int = Field(0, ge=0, description="training images set apart for tuning, which no other run draws")
    tuning: bool = Field(False, description="a candidate of the tuning: it draws from those, and sees no test image")
    flip: bool = Field(False, description="flip training images left to right at random")
    crop: int = Field(0, ge=0, le=8, description="zero padding before a random crop of training images, pixels")
    # model
    architecture: Literal["mlp", "cnn", "resnet18"] = Field("cnn", description="network")
    width: int = Field(32, ge=1, description="units of a hidden layer of the mlp, or channels of the first convolution")
    depth: int | None = Field(
        None,
        ge=1,
        le=12,
        description="hidden layers of the mlp, null: 3; or convolutions of the cnn, from 2, null: 4",
    )
    stem: Literal["cifar", "cifar2", "imagenet"] = Field(
        "cifar",
        description="first convolution of resnet18: 3 x 3; the same with stride 2, at a quarter of the cost; or 7 x 7 "
        "with stride 2 and max-pooling, at a sixteenth",
    )
    normalization: Literal["none", "batch", "layer", "group", "rms", "whiten"] = Field(
        "none",
        description="normalisation of hidden activities: none; of each channel over a batch; of each image, over all "
        "features, over groups of channels, or by the root mean square alone; or whitening of channels over a batch",
    )
    # learning rule and update
    rule: Literal["bp", "fa", "dfa", "kp", "usf", "brsf", "frsf", "wm", "frozen", "frozen-fa", "frozen-bp"] = Field(
        "bp",
        description="learning rule: backpropagation, feedback alignment, direct FA, Kolen-Pollack, W's signs in B with "
        "one magnitude, magnitudes drawn at each step or once, weight mirror, or hidden weights frozen: the classifier "
        "alone learns, or norm parameters too, by FA's errors or exact ones",
    )
    feedback: Literal["same", "orthogonal", "rank"] = Field(
        "same", description="law of B: W's, or of hidden layers another of its norm; the classifier's B keeps that of W"
    )
    feedback_rank: int | None = Field(None, ge=1, description="rank of B under feedback 'rank'")
    feedback_scale: float = Field(1.0, gt=0, description="factor on B as it is drawn, or on its magnitudes")
    error: Literal["full", *ERRORS] = Field(
        "full",
        description="intervention on the error signal of hidden layers, images x features of a batch, at its Frobenius "
        "norm: none; its polar factor; its largest singular directions; or it within random directions of the "
        "features, the same at every step",
    )
    error_directions: int | None = Field(None, ge=1, description="directions that error top_r and fixed_r keep")
    learning_blocks: int | None = Field(
        None, ge=1, description="blocks before the classifier that learn, the others as initialised; null: all"
    )
    optimizer: Literal["sgd", "muon", "adam"] = Field("sgd", description="update: momentum SGD, Muon or AdamW")
    lr: float = Field(0.03, gt=0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum; of AdamW β₁")
    weight_decay: float = Field(0.0, ge=0, description="decoupled decay of forward weights, per step and unit of lr")
    update: Literal["full", "full_rank", "polar", *CUTS, "frobenius", "spectral", "sign"] = Field(
        "full",
        description="intervention on the update: none; of sgd its top singular directions, or its polar factor in its "
        "own norm; of muon, in place of Newton-Schulz, the exact polar factor, its top directions or some that are "
        "spread evenly over its spectrum, at one of its norms, that within random directions of the outputs, the same "
        "at every step or drawn anew, the momentum or its signs at the norm of a polar factor of full rank, or the "
        "momentum at its spectral norm",
    )
    rank: int | None = Field(None, ge=1, description="directions that top_r, spread_r, fixed_r and drawn_r keep")
    norm: Literal["frobenius", "spectral"] | None = Field(
        None,
        description="norm that full_rank keeps of the update, and r directions under muon of the polar factor",
    )
    update_head: bool = Field(True, description="whether the intervention changes the classifier's update too")
    ns_steps: int = Field(5, ge=1, le=99, description="Newton-Schulz steps of Muon")
    ns_precision: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="type that Newton-Schulz steps of matrices of more than 64 rows are in"
    )
    shape_factor: Literal["original", "match_rms_adamw"] = Field(
        "original", description="Muon's factor on lr, from the flattened matrix: √max(1, out/in), or 0.2 √max(out, in)"
    )
    auxiliary_lr: float = Field(0.001, gt=0, description="learning rate of AdamW for what Muon does not take")
    # training
    epochs: int = Field(12, ge=1, description="passes over the training images")
    warmup: int = Field(0, ge=0, description="epochs over which all learning rates rise to their peak, linearly")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="all learning rates after the warm-up: down a cosine to 0, or constant"
    )
    batch_size: int = Field(64, ge=2, description="images per step")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32", description="type of products in training (autocast); auto: the faster one where the grid is planned"
    )
    channels_last: bool = Field(True, description="memory layout of images and convolutions: products run faster in it")
    compile: bool = Field(False, description="train through torch.compile")
    # probes
    gradient_every: int = Field(6, ge=0, description="steps between two rows of the gradient trajectory; 0 for none")
    gradient_stride: int = Field(25, ge=1, description="rows between two points of the rank curve over T")
    gradient_window: int = Field(100, ge=2, description="rows of the sliding window of the rank curve")
    signals_every: int = Field(1, ge=0, description="epochs between two probes of the signals of a batch; 0 for none")
    probe_images: int = Field(64, ge=2, description="images of the fixed probe batch")
    seed: Seed = 0


class RunConfig(Settings):
    """One training run, whole: equal configs on one machine give equal bits. The defaults are a small digits run."""

    @model_validator(mode="after")
    def _fits(self) -> "RunConfig":
        total, images = datasets.SETS[self.dataset].train, datasets.training_images(self)
        available, has = datasets.available(self), f"{self.dataset} has {total} training images"
        if total - self.validation_images - self.tuning_images <= 0:
            apart = f" and tuning_images {self.tuning_images}" if self.tuning_images else ""
            raise ValueError(f"validation_images is {self.validation_images}{apart}, but {has}; it must be less")
        if images > available:
            left = f"of which validation_images {self.validation_images} and tuning_images {self.tuning_images} leave"
            left = "of which tuning_images sets apart" if self.tuning and self.tuning_images else left
            raise ValueError(f"train_images is {self.train_images}, but {has}, {left} {available}; it must be no more")
        if self.precision == "auto":
            raise ValueError("precision is 'auto', which a grid settles; of a run it must be 'float32' or 'bfloat16'")
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup is {self.warmup}, but epochs is {self.epochs}; it must be less")
        for key in ("batch_size", "probe_images"):
            if getattr(self, key) > images:
                raise ValueError(f"{key} is {getattr(self, key)}, more than the {images} training images")
        if self.depth is not None and self.architecture == "resnet18":
            raise ValueError(f"depth is {self.depth}, but resnet18 has one depth, that of its name; it must be null")
        if self.depth == 1 and self.architecture == "cnn":
            raise ValueError("depth is 1, but a cnn has 2 convolutions or more; it must be 2 to 12, or null")
        if self.learning_blocks and self.rule.startswith("frozen"):
            raise ValueError(f"learning_blocks is {self.learning_blocks}, but under rule {self.rule!r} no block learns")
        if self.feedback != "same" and self.rule not in DRAWN:
            what = f"feedback is {self.feedback!r}, but rule {self.rule!r} draws no B of a law of its own"
            raise ValueError(f"{what}; feedback must be 'same', or rule one of {', '.join(DRAWN)}")
        if (self.feedback == "rank") != (self.feedback_rank is not None):
            raise ValueError(f"feedback_rank is {self.feedback_rank}; feedback 'rank' alone needs it, a whole number")
        if self.feedback_scale != 1 and self.rule not in (*DRAWN, "usf", "brsf", "frsf"):
            raise ValueError(f"feedback_scale is {self.feedback_scale}, but rule {self.rule!r} has no B; it must be 1")
        if self.error != "full" and (self.rule.startswith("frozen") or self.compile):
            cause = "compile is true" if self.compile else f"under rule {self.rule!r} no hidden weight learns from it"
            raise ValueError(f"error is {self.error!r}, but {cause}; it must be 'full'")
        if (self.error in ("top_r", "fixed_r")) != (self.error_directions is not None):
            raise ValueError(
                f"error_directions is {self.error_directions}; error 'top_r' and 'fixed_r' need it, and no other"
            )
        if self.error_directions and self.error_directions > self.batch_size:
            what = f"error_directions is {self.error_directions}, beyond the {self.batch_size} images of a batch"
            raise ValueError(f"{what}; it must be {self.batch_size} or less")
        if self.update not in UPDATES[self.optimizer]:
            words = ", ".join(map(repr, UPDATES[self.optimizer]))
            raise ValueError(f"update is {self.update!r}; under optimizer {self.optimizer!r} it must be one of {words}")
        cut = self.update in CUTS
        if cut and self.rank is None:
            raise ValueError(f"rank is missing: update {self.update!r} needs the number of directions to keep")
        if (needs := self.update == "full_rank" or (cut and self.optimizer == "muon")) and not self.norm:
            raise ValueError(
                f"norm is missing: update {self.update!r} needs 'frobenius' or 'spectral', the norm to keep"
            )
        if self.norm and not needs:
            raise ValueError(f"norm is {self.norm!r}, but update {self.update!r} here keeps none; it must be null")
        if not self.update_head and self.update == "full":
            raise ValueError("update_head is false, but update is 'full', which changes nothing; it must be left out")
        if self.rank is not None and not cut:
            raise ValueError(f"rank is {self.rank}, but update {self.update!r} takes none; it must be null")
        if self.stem != "cifar" and self.architecture != "resnet18":
            raise ValueError(f"stem is {self.stem!r}, but {self.architecture!r} has none; it must be left out")
        return self


def checked(model: type[Strict], values: object, where: str) -> Any:
    """`values` as a `model`. Raises InputError, one sentence, for the first thing in them that it does not allow."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: (len(e["loc"]), str(e["loc"])))
        raise InputError(f"{where}: {_sentence(model, first)}") from None


def run_config(values: dict) -> RunConfig:
    """A RunConfig from a mapping. Raises InputError for an unknown key, a wrong type or a value out of bounds."""
    return checked(RunConfig, values, "run config")


def read(path: Path | str) -> dict:
    """The mapping in a YAML or JSON file. Raises InputError if it cannot be read as one."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        try:
            values = json.loads(text)  # first, since YAML reads JSON's 1e-05 as text
        except json.JSONDecodeError:
            values = yaml.safe_load(text)
    except (OSError, ValueError, AttributeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, not a mapping of keys to values")
    return values


def _sentence(model: type[Strict], error: dict) -> str:
    """A pydantic error as one sentence: the key, what is wrong and what would be right."""
    loc = [part for part in error["loc"] if part != "[key]"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    if error["type"] == "missing":
        return f"key {key!r} is missing"
    models = [*Strict.__subclasses__(), *Settings.__subclasses__()]
    for part in loc[:-1]:  # down to the model that the last part is a key of
        if part in model.model_fields:
            found = re.findall(r"\w+", str(model.model_fields[part].annotation))
            model = next((inner for inner in models if inner.__name__ in found), model)
    fields = model.model_fields
    if error["type"] in ("extra_forbidden", "invalid_key"):
        near = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys here are {', '.join(fields)}"
        return f"unknown key {key!r}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if not loc:  # a check across keys: its message is whole
        return message
    about = getattr(fields.get(str(loc[-1])), "description", None)
    if isinstance(error["input"], str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", error["input"]):
        about = "YAML reads a number with an exponent only with a point: " + re.sub("[eE]", ".0e", error["input"])
    message = re.sub("^(Input|String|List|Dictionary|Value) should", "it must", message)
    return f"{key} is {error['input']!r}; {message}" + (f" ({about})" if about else "")
