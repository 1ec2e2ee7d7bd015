"""From the grid's config to its runs, study x dataset x arm x seed, to the candidates that tune them, and what makes
two of them the same run.
"""

import ast
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rankcollapse import cpu, datasets, gpus
from rankcollapse.config import Dataset, RunConfig, Seed, Settings, Strict, checked, read
from rankcollapse.errors import InputError

NAME = "{study}/{dataset}/{arm}/seed{seed}"  # of a run: its folder below results/<preset>/runs
ARM = "{study}/{dataset}/{arm}"  # of what is tuned: the folder of its candidates below results/<preset>/tuning
CANDIDATE = ARM + "/{candidate}/seed{seed}"
# The modules that a run's bits depend on; of knobs their values count, see `identity`.
SHORT = {"lr": "lr", "weight_decay": "wd"}  # knobs in the name of a candidate
TRAINING = ("data", "datasets", "feedback", "models", "optim", "probes", "rules", "spectra", "training")
Name = Annotated[str, Field(pattern=r"^[a-z0-9+-]+$")]


class Arm(Strict):
    """An algorithm: what it sets in a run, and how it looks in every figure."""

    label: str = Field(min_length=1, description="its name in figures and tables")
    colour: str = Field(pattern=r"^#[0-9a-fA-F]{6}$", description="hex colour, the same in every figure")
    marker: Literal[tuple("osv^D<>PXhHdp*8")] = Field(description="matplotlib marker, filled")
    line: Literal["-", "--", "-.", ":"] = Field(description="matplotlib line style")
    run: Settings = Field(Settings(), description="what this algorithm sets in a run")


class Tune(Strict):
    """The candidates of an arm: the middle value of each knob, and around it the others of each, one at a time."""

    lr: list[Annotated[float, Field(gt=0)]] = Field(min_length=3, description="learning rates to try, ascending")
    weight_decay: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, min_length=3, description="weight decays to try, ascending; null: the arm's own"
    )

    @model_validator(mode="after")
    def _ascending(self) -> "Tune":
        for key, values in self.axes.items():
            if values != sorted(set(values)) or len(values) % 2 == 0:
                raise ValueError(f"{key} is {values}; it must be an odd number of values, ascending")
            if any(float(f"{value:g}") != value for value in values):  # as candidates are named, and tables written
                raise ValueError(f"{key} is {values}; a value must have at most six digits")
        return self

    @property
    def axes(self) -> dict[str, list[float]]:
        return self.model_dump(exclude_none=True)

    @property
    def middle(self) -> dict[str, float]:
        return {key: values[len(values) // 2] for key, values in self.axes.items()}

    @property
    def candidates(self) -> list[dict[str, float]]:
        found = [{**self.middle, key: value} for key, values in self.axes.items() for value in values]
        return [candidate for i, candidate in enumerate(found) if candidate not in found[:i]]


class StudyArm(Settings):
    """An arm within a study. Its rate is fixed here, by `lr`, or tuned, or that of another arm."""

    tune: Tune | None = Field(None, description="candidates for the rate")
    like: str | None = Field(None, description="arm of this study whose tuned rate this one takes")
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
    datasets: list[Dataset] = Field(min_length=1, description="data sets the study runs over")
    run: Settings = Field(Settings(), description="what this study sets in a run")
    arms: dict[str, StudyArm] = Field(min_length=1, description="its arms, with what each sets beyond the arm itself")
    cost: Cost


class Grid(Strict):
    """The whole config: config.yaml with the presets laid on it."""

    preset: str = Field(pattern=r"^[a-z0-9-]+$", description="name of the folders in results/, figures/ and paper/")
    title: str = Field("", description="what this preset is for, in a sentence; shown at the start and in the paper")
    seeds: list[Seed] = Field(min_length=1, description="the seeds that every study runs over")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train; auto: a GPU if there is one")
    data_dir: str = Field("data", min_length=1, description="folder of the official CIFAR folders; ~ is home")
    download: bool = Field(True, description="download a missing CIFAR set")
    threads: int = Field(1, ge=1, description="CPU threads of one training job")
    gpu_slots: int = Field(1, ge=1, description="training jobs that share one GPU")
    tuned: str | None = Field(None, description="table of choices, tuned.csv, to take rates from in place of tuning")
    tuning: Tuning = Tuning()
    save_minutes: float = Field(5.0, gt=0, description="minutes between two saves of all that a run is so far")
    fresh: bool = Field(False, description="start the runs that are trained over, whatever was saved of them")
    allow_missing: bool = Field(False, description="render from the runs that are there, marking the others as missing")
    run: Settings = Field(description="defaults of every run")
    arms: dict[Name, Arm] = Field(min_length=1, description="the algorithms, by name")
    studies: list[Study] = Field(min_length=1, description="the grid")


@dataclass(frozen=True)
class Run:
    """A planned run: where it stands in the grid and what it is."""

    study: Study
    arm: str
    config: RunConfig  # of a run whose rate is to be chosen, with that of the middle candidate
    candidate: str | None = None  # its name, if it is one

    @property
    def name(self) -> str:
        return (CANDIDATE if self.candidate else NAME).format(**self.place, candidate=self.candidate)

    @property
    def place(self) -> dict[str, str | int]:
        return {"study": self.study.name, "dataset": self.config.dataset, "arm": self.arm, "seed": self.config.seed}

    @property
    def rate(self) -> str:
        """Where its learning rate comes from, in the words of the tables."""
        arm = self.study.arms[self.arm]
        return f"as {arm.like}" if arm.like else "tuned" if arm.tune else "fixed"

    @property
    def source(self) -> str | None:
        """The tuned arm, as ARM, whose choice this run takes; None for a fixed rate and for a candidate."""
        return ARM.format(**{**self.place, "arm": self._tuned}) if self._tuned else None

    @property
    def knobs(self) -> dict:
        """Those of its config that are settled before the tuning."""
        return self.config.model_dump(exclude=self._chosen)

    @property
    def identity(self) -> str:
        return identity(self.config, self._chosen)

    @property
    def _tuned(self) -> str | None:
        arm = self.study.arms[self.arm]
        return None if self.candidate else arm.like or (self.arm if arm.tune else None)

    @property
    def _chosen(self) -> set[str]:
        return {*self.study.arms[self._tuned].tune.axes} if self._tuned else set()

    def seconds(self, device: str) -> float:
        """Estimated time on one CPU core or GPU; start-up, test and probes are a fifth of training and 8 s."""
        images = self.config.epochs * datasets.training_images(self.config)
        return 8 + 1.2 * images / getattr(self.study.cost, device)


def overlay(config: dict, over: dict) -> dict:
    """`config` with the keys of `over` laid on it, nested ones key by key, as `snakemake --configfile` does."""
    nested = [key for key in over if isinstance(over[key], dict) and isinstance(config.get(key), dict)]
    return {**config, **over, **{key: overlay(config[key], over[key]) for key in nested}}


def grid(config: dict) -> Grid:
    """The grid of a config. Raises InputError, one sentence, for what it does not allow."""
    found = checked(Grid, config, "config")
    lists = {f"datasets of study {study.name!r}": study.datasets for study in found.studies}
    lists["tuning.seeds"] = found.tuning.seeds
    for key, names in {"studies": [study.name for study in found.studies], "seeds": found.seeds, **lists}.items():
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(f"config: {key} holds {twice[0]!r} twice; it must hold each once")
    return found


def runs(grid: Grid) -> list[Run]:
    """Every run of a grid, in its order. Raises InputError, one sentence, for whatever cannot be run."""
    return [run for run in _all(grid) if not run.candidate]


def candidates(grid: Grid) -> list[Run]:
    """Every run that tunes the grid: none if the choices are given. Raises InputError as `runs` does."""
    return [] if grid.tuned else [run for run in _all(grid) if run.candidate]


def _all(grid: Grid) -> list[Run]:
    both = sorted({*grid.seeds} & {*grid.tuning.seeds})
    if both:
        raise InputError(f"config: seed {both[0]} is both in seeds and in tuning.seeds; a seed must tune or report")
    found, counts, fastest = [], {}, functools.cache(functools.partial(precision, grid.device))
    for study in grid.studies:
        where = f"config: study {study.name!r}"
        for arm, special in study.arms.items():
            if arm not in grid.arms:
                raise InputError(f"{where} has the unknown arm {arm!r}; the arms are {', '.join(grid.arms)}")
            settings = (grid.run, study.run, grid.arms[arm].run, special)  # the more special wins
            values = {key: getattr(each, key) for each in settings for key in each.model_fields_set}
            values = {key: value for key, value in values.items() if key in RunConfig.model_fields}
            origin = study.arms.get(special.like) if special.like else special
            if origin is None or (special.like and not origin.tune):
                raise InputError(
                    f"{where}: arm {arm!r} is like {special.like!r}, which must be a tuned arm of the study"
                )
            if special.tune:
                counts[study.name, arm] = len(special.tune.candidates)
            values |= origin.tune.middle if origin.tune else {}
            for key, by in {"dataset": "datasets", "seed": "seeds", "tuning": "tune"}.items():
                if key in values:
                    raise InputError(f"{where} sets {key!r} in a run; the grid does, by {by!r}")
            for dataset in study.datasets:
                place = f"{where}, arm {arm!r}, dataset {dataset!r}"
                here = values | ({"precision": fastest(dataset)} if values.get("precision") == "auto" else {})
                for seed in grid.seeds:
                    config = checked(RunConfig, {**here, "dataset": dataset, "seed": seed}, place)
                    found.append(Run(study, arm, config))
                found += _candidates(grid, found[-1], here, place) if special.tune else []
    if len({*counts.values()}) > 1:
        least, most = min(counts, key=counts.get), max(counts, key=counts.get)
        what = f"{counts[least]} candidates for {'/'.join(least)} and {counts[most]} for {'/'.join(most)}"
        raise InputError(f"config: tune gives {what}; every tuned arm must have the same number, or tuning is not fair")
    return found


def precision(device: str, dataset: str) -> str:
    """What `auto` stands for: bfloat16 on a GPU, and on a CPU that multiplies it; but images of 8 x 8 gain nothing."""
    on_gpu = device == "cuda" or (device == "auto" and gpus.visible())
    return "bfloat16" if dataset != "digits" and (on_gpu or cpu.multiplies_bfloat16()) else "float32"


def _candidates(grid: Grid, run: Run, values: dict, place: str) -> list[Run]:
    """The runs that tune the arm of `run`: short ones for each tuning seed, and full ones that check them."""
    if not grid.tuning.seeds and not grid.tuned:
        raise InputError(f"{place} is to be tuned, but tuning.seeds is empty; it must hold a seed, or lr be set")
    # What is probed is no part of a candidate: a change of it tunes nothing anew.
    unprobed = {"gradient_every": 0, "signals_every": 0, "gradient_stride": 25, "gradient_window": 100}
    values = {**values, **unprobed, "dataset": run.config.dataset, "probe_images": 2, "tuning": True}
    short, found = math.ceil(round(grid.tuning.share * run.config.epochs, 9)), []  # 0.07 * 100 is above 7
    lengths = [(short, grid.tuning.seeds)]
    if run.study.arms[run.arm].check and short < run.config.epochs:
        lengths.append((run.config.epochs, grid.tuning.seeds[:1]))
    for chosen, (epochs, seeds) in itertools.product(run.study.arms[run.arm].tune.candidates, lengths):
        name = "-".join(f"{SHORT[key]}{value:g}" for key, value in chosen.items())
        name += "" if epochs == short else "-full"
        for seed in seeds:
            config = checked(RunConfig, {**values, **chosen, "epochs": epochs, "seed": seed}, place)
            found.append(Run(run.study, run.arm, config, name))
    return found


def identity(config: RunConfig, without: Collection[str] = ()) -> str:
    """What a run's bits depend on, as a hash: knobs that differ from their defaults, and the code that trains.

    A new knob at its default, a comment or a new measure leaves it as it is. Snakemake retrains on it, and on no more,
    but for knobs that are still to be chosen: those are left out by `without`, and a changed choice retrains.
    """
    knobs = config.model_dump(exclude_defaults=True, exclude=set(without))
    return hashlib.sha256(json.dumps([knobs, training_code()], sort_keys=True).encode()).hexdigest()[:16]


def training_code() -> str:
    """Hash of the modules that train."""
    return code(TRAINING)


@functools.cache
def code(modules: tuple[str, ...]) -> str:
    """Hash of modules of this package, comments, docstrings and layout aside."""
    parts = []
    for name in modules:
        tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        parts.append(f"# {name}\n{ast.unparse(tree)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def plan(grid: Grid) -> dict:
    """The grid resolved, for the jobs that run it: where to train, and every run with its identity and its knobs.

    A run whose rate is to be chosen lacks the knobs that are tuned, and names the file that will hold them, `choice`.
    """
    parts = {"runs": {}, "candidates": {}}
    for part, planned in zip(parts.values(), (runs(grid), candidates(grid)), strict=True):
        for run in planned:
            part[run.name] = {**run.place, "rate": run.rate, "choice": choice(grid, run), "config": run.knobs}
            part[run.name] |= {"candidate": run.candidate, "identity": run.identity}
    return {**grid.model_dump(include={"preset", "title", "device", "gpu_slots", "save_minutes", "tuned"}), **parts}


def choice(grid: Grid, run: Run) -> str | None:
    """The file with what was chosen for a run; None if there is nothing to choose."""
    return f"results/{grid.preset}/tuning/{run.source}/choice.json" if run.source else None


def resolved(planned: dict, where: str) -> RunConfig:
    """The config of a run of a plan, with its choice. Raises InputError if that is not made or not a choice."""
    chosen = read(planned["choice"]) if planned["choice"] else {}
    if planned["choice"] and chosen.keys() != RunConfig.model_fields.keys() - planned["config"].keys():
        raise InputError(f"{planned['choice']} is not a choice for {where}: delete it and run the same command again")
    return checked(RunConfig, {**planned["config"], **chosen}, where)


def schema() -> str:
    """The JSON schema of a config, for editors: config.schema.json. A preset may leave any key to config.yaml."""
    made = {key: value for key, value in Grid.model_json_schema().items() if key != "required"}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
