"""From the grid's config to its runs, study x dataset x arm x seed, and what makes two of them the same run."""

import ast
import functools
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rankcollapse import datasets
from rankcollapse.config import Dataset, RunConfig, Seed, Settings, Strict, checked
from rankcollapse.errors import InputError

NAME = "{study}/{dataset}/{arm}/seed{seed}"  # of a run: its folder below results/<preset>/runs
# The modules that a run's bits depend on; of knobs their values count, see `identity`.
TRAINING = ("data", "datasets", "feedback", "models", "optim", "probes", "rules", "spectra", "training")
Name = Annotated[str, Field(pattern=r"^[a-z0-9+-]+$")]


class Arm(Strict):
    """An algorithm: what it sets in a run, and how it looks in every figure."""

    label: str = Field(min_length=1, description="its name in figures and tables")
    colour: str = Field(pattern=r"^#[0-9a-fA-F]{6}$", description="hex colour, the same in every figure")
    marker: Literal[tuple("osv^D<>PXhdp*8")] = Field(description="matplotlib marker, filled")
    line: Literal["-", "--", "-.", ":"] = Field(description="matplotlib line style")
    run: Settings = Field(Settings(), description="what this algorithm sets in a run")


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
    arms: dict[str, Settings] = Field(min_length=1, description="its arms, with what each sets beyond the arm itself")
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
    allow_missing: bool = Field(False, description="render from the runs that are there, marking the others as missing")
    run: Settings = Field(description="defaults of every run")
    arms: dict[Name, Arm] = Field(min_length=1, description="the algorithms, by name")
    studies: list[Study] = Field(min_length=1, description="the grid")


@dataclass(frozen=True)
class Run:
    """A planned run: where it stands in the grid and what it is."""

    study: Study
    arm: str
    config: RunConfig

    @property
    def name(self) -> str:
        return NAME.format(**self.place)

    @property
    def place(self) -> dict[str, str | int]:
        return {"study": self.study.name, "dataset": self.config.dataset, "arm": self.arm, "seed": self.config.seed}

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
    for key, names in {"studies": [study.name for study in found.studies], "seeds": found.seeds, **lists}.items():
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(f"config: {key} holds {twice[0]!r} twice; it must hold each once")
    return found


def runs(grid: Grid) -> list[Run]:
    """Every run of a grid, in its order. Raises InputError, one sentence, for whatever cannot be run."""
    found = []
    for study in grid.studies:
        where = f"config: study {study.name!r}"
        for arm, special in study.arms.items():
            if arm not in grid.arms:
                raise InputError(f"{where} has the unknown arm {arm!r}; the arms are {', '.join(grid.arms)}")
            settings = (grid.run, study.run, grid.arms[arm].run, special)  # the more special wins
            values = {key: getattr(each, key) for each in settings for key in each.model_fields_set}
            for key in ("dataset", "seed"):
                if key in values:
                    raise InputError(f"{where} sets {key!r} in a run; the grid does, by {key + 's'!r}")
            for dataset, seed in itertools.product(study.datasets, grid.seeds):
                knobs = {**values, "dataset": dataset, "seed": seed}
                found.append(Run(study, arm, checked(RunConfig, knobs, f"{where}, arm {arm!r}, dataset {dataset!r}")))
    return found


def identity(config: RunConfig) -> str:
    """What a run's bits depend on, as a hash: knobs that differ from their defaults, and the code that trains.

    A new knob at its default, a comment or a new measure leaves it as it is. Snakemake retrains on it, and on no more.
    """
    knobs = config.model_dump(exclude_defaults=True)
    return hashlib.sha256(json.dumps([knobs, training_code()], sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def training_code() -> str:
    """Hash of the modules that train, comments, docstrings and layout aside."""
    parts = []
    for name in TRAINING:
        tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        parts.append(f"# {name}\n{ast.unparse(tree)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def plan(grid: Grid) -> dict:
    """The grid resolved, for the jobs that run it: where to train, and every run with its identity and its knobs."""
    planned = {}
    for run in runs(grid):
        planned[run.name] = {**run.place, "identity": identity(run.config), "config": run.config.model_dump()}
    return {**grid.model_dump(include={"preset", "title", "device", "gpu_slots"}), "runs": planned}


def schema() -> str:
    """The JSON schema of a config, for editors: config.schema.json. A preset may leave any key to config.yaml."""
    made = {key: value for key, value in Grid.model_json_schema().items() if key != "required"}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
