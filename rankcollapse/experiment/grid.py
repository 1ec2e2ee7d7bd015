"""The config of a grid: arms, studies, seeds, what is tuned. Every key with its type, bounds and meaning."""

import json
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rankcollapse.errors import InputError
from rankcollapse.experiment.config import Dataset, Seed, Settings, Strict, checked

Name = Annotated[str, Field(pattern=r"^[a-z0-9+-]+$")]


class Arm(Strict):
    """An algorithm: what it sets in a run, and how it looks in every figure."""

    label: str = Field(min_length=1, description="its name in figures and tables")
    colour: str = Field(pattern=r"^#[0-9a-fA-F]{6}$", description="hex colour, the same in every figure")
    marker: Literal[tuple("osv^D<>PXhHdp*8")] = Field(description="matplotlib marker, filled")
    line: Literal["-", "--", "-.", ":"] = Field(description="matplotlib line style")
    run: Settings = Field(Settings(), description="what this algorithm sets in a run")


class Tune(Strict):
    """The candidates of an arm: the middle value of each knob, and around it the others of each, one at a time.

    All arms have as many, but for those tried `wider` since the best rate lay at an end.
    """

    lr: list[Annotated[float, Field(gt=0)]] = Field(min_length=3, description="learning rates to try, ascending")
    weight_decay: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, min_length=3, description="weight decays to try, ascending; null: the arm's own"
    )
    wider: list[Annotated[float, Field(gt=0)]] = Field(
        [], description="further learning rates, tried since the best of `lr` lay at that end"
    )

    @model_validator(mode="after")
    def _ascending(self) -> "Tune":
        for key, values in self.axes.items():
            if values != sorted(set(values)) or len(values) % 2 == 0:
                raise ValueError(f"{key} is {values}; it must be an odd number of values, ascending")
            if any(float(f"{value:g}") != value for value in values):  # as candidates are named, and tables written
                raise ValueError(f"{key} is {values}; a value must have at most six digits")
        inner = [value for value in self.wider if self.lr[0] <= value <= self.lr[-1]]
        if inner or len({value > self.lr[-1] for value in self.wider}) > 1:
            raise ValueError(f"wider is {self.wider}; its values must lie beyond one end of lr, {self.lr}")
        return self

    @property
    def axes(self) -> dict[str, list[float]]:
        return self.model_dump(exclude_none=True, exclude={"wider"})

    @property
    def middle(self) -> dict[str, float]:
        return {key: values[len(values) // 2] for key, values in self.axes.items()}

    @property
    def candidates(self) -> list[dict[str, float]]:
        found = [{**self.middle, key: value} for key, values in self.axes.items() for value in values]
        found += [{**self.middle, "lr": value} for value in self.wider]
        return [candidate for i, candidate in enumerate(found) if candidate not in found[:i]]


class StudyArm(Settings):
    """An arm within a study. Its rate is fixed here, by `lr`, or tuned, or that of another arm."""

    tune: Tune | None = Field(None, description="candidates for the rate")
    like: str | None = Field(None, description="arm of this study whose tuned rate this one takes")
    seeds: int | None = Field(
        None, ge=1, description="of the grid's seeds, how many it runs over, the first; null: as many as its study"
    )
    check: bool = Field(False, description="also train the candidates to full length, to see that they rank alike")

    @model_validator(mode="after")
    def _one_way(self) -> "StudyArm":
        ways = [key for key in ("lr", "tune", "like") if getattr(self, key) and key in self.model_fields_set]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} are both set; a rate has one origin, so it must be one of them")
        if self.tune and self.tune.weight_decay and "weight_decay" in self.model_fields_set:
            raise ValueError("weight_decay is set and also in tune; it must be in one of them")
        if self.check and not self.tune:
            raise ValueError("check is true, but nothing is tuned; it must stand beside tune")
        return self


class Tuning(Strict):
    """How candidates are trained."""

    seeds: list[Seed] = Field([], description="seeds of the candidates; no run of the grid may have one of them")
    share: float = Field(1.0, gt=0, le=1, description="share of a run's epochs that a candidate trains")


class Cost(Strict):
    """Rough cost of a run, for estimates and for the resources asked of a cluster; it changes no result."""

    cpu: float = Field(gt=0, description="images per second on one CPU core")
    cuda: float = Field(gt=0, description="images per second on one GPU")
    mem_mb: int = Field(ge=1, description="peak memory of a run, MB")
    disk_mb: float = Field(gt=0, description="disk of a run folder, MB")


class Study(Strict):
    """An architecture and its budget, over data sets, arms and seeds."""

    name: str = Field(pattern=r"^[a-z0-9-]+$", description="folder name of the study's runs")
    title: str = Field("", description="its name in figures and tables; by default `name`")
    shown: list[str] | None = Field(None, description="its arms that figures show; null: all. Tables have all")
    datasets: list[Dataset] = Field(min_length=1, description="data sets the study runs over")
    seeds: int | None = Field(None, ge=1, description="of the grid's seeds, how many its arms run over; null: all")
    run: Settings = Field(Settings(), description="what this study sets in a run")
    arms: dict[str, StudyArm] = Field(min_length=1, description="its arms, with what each sets beyond the arm itself")
    cost: Cost


class Grid(Strict):
    """The whole config: config.yaml with the presets laid on it."""

    preset: str = Field(pattern=r"^[a-z0-9-]+$", description="name of the folders in results/, figures/ and paper/")
    title: str = Field("", description="what this preset is for, in a sentence; shown at the start and in the paper")
    seeds: list[Seed] = Field(min_length=1, description="the seeds that studies run over")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train; auto: a GPU if there is one")
    data_dir: str = Field("data", min_length=1, description="folder of the official CIFAR folders; ~ is home")
    download: bool = Field(True, description="download a missing CIFAR set")
    threads: int = Field(1, ge=1, description="CPU threads of one training job")
    gpu_slots: int = Field(1, ge=1, description="training jobs that share one GPU")
    tuned: str | None = Field(None, description="table of choices, tuned.csv, to take rates from in place of tuning")
    tuning: Tuning = Tuning()
    save_minutes: float = Field(5.0, gt=0, description="minutes between two saves of all that a run is so far")
    fresh: bool = Field(False, description="start the runs that are trained over, whatever was saved of them")
    keep: bool = Field(False, description="count a run as made if its rows stand in the tables under its identity")
    allow_missing: bool = Field(False, description="render from the runs that are there, marking the others as missing")
    run: Settings = Field(description="defaults of every run")
    arms: dict[Name, Arm] = Field(min_length=1, description="the algorithms, by name")
    studies: list[Study] = Field(min_length=1, description="the grid")


def overlay(config: dict, over: dict) -> dict:
    """`config` with the keys of `over` laid on it, nested ones key by key, as `snakemake --configfile` does."""
    nested = [key for key in over if isinstance(over[key], dict) and isinstance(config.get(key), dict)]
    return {**config, **over, **{key: overlay(config[key], over[key]) for key in nested}}


def grid(config: dict) -> Grid:
    """The grid of a config. Raises InputError, one sentence, for what it does not allow."""
    found = checked(Grid, config, "config")
    lists = {f"datasets of study {study.name!r}": study.datasets for study in found.studies}
    lists["tuning.seeds"] = found.tuning.seeds
    for study in found.studies:
        unknown = [arm for arm in study.shown or [] if arm not in study.arms]
        if unknown:
            known = ", ".join(study.arms)
            raise InputError(
                f"config: study {study.name!r} shows the arm {unknown[0]!r}; it must be one of its: {known}"
            )
    for key, names in {"studies": [study.name for study in found.studies], "seeds": found.seeds, **lists}.items():
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(f"config: {key} holds {twice[0]!r} twice; it must hold each once")
    return found


def schema() -> str:
    """The JSON schema of a config, for editors: config.schema.json. A preset may leave any key to config.yaml."""
    made = {key: value for key, value in Grid.model_json_schema().items() if key != "required"}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
