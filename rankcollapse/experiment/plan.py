"""From a grid to what is planned: the candidates that tune it, and its runs, each with every knob resolved.

plan.json holds it for the jobs: how to train, and by name each candidate and run with its identity and its config. A
job reads its own entry. The runs are in it once the table of choices is made, tuned.csv.
"""

import csv
import itertools
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from rankcollapse.errors import InputError
from rankcollapse.experiment import datasets, files
from rankcollapse.experiment.config import RunConfig, checked, read
from rankcollapse.experiment.grid import Grid, Study, StudyArm
from rankcollapse.experiment.identity import identity
from rankcollapse.library import processor

ARM = "{study}/{dataset}/{arm}"  # of what is tuned
NAME = ARM + "/seed{seed}"  # of a run: its folder below results/<preset>/runs
CANDIDATE = ARM + "/{candidate}/seed{seed}"  # and that of a candidate, below results/<preset>/tuning
SHORT = {"lr": "lr", "weight_decay": "wd"}  # the knobs that are tuned, and their names in that of a candidate
FOLDERS = {"runs": "runs", "candidates": "tuning"}
Choices = dict[str, dict[str, float]]  # by ARM, its tuned knobs


@dataclass(frozen=True)
class Run:
    """A planned run: where it stands in the grid, and what it is."""

    study: Study
    arm: str
    config: RunConfig
    identity: str | None  # None while nothing is chosen for its arm: its config has the middle candidate then
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

    def seconds(self, device: str) -> float:
        """Estimated time on one CPU core or GPU; start-up, test and probes are a fifth of training and 8 s."""
        images = self.config.epochs * datasets.training_images(self.config)
        return 8 + 1.2 * images / getattr(self.study.cost, device)


def runs(grid: Grid, device: str, choices: Choices) -> list[Run]:
    """Every run of a grid, in its order, trained on `device`, `cpu` or `cuda`, with what was chosen for its arm.

    Raises InputError, one sentence, for whatever cannot be run, chosen or not.
    """
    both = sorted({*grid.seeds} & {*grid.tuning.seeds})
    if both:
        raise InputError(f"config: seed {both[0]} is both in seeds and in tuning.seeds; a seed must tune or report")
    found = []
    for study, arm, dataset, values, place in _places(grid):
        origin = study.arms[arm].like or arm
        tune, chosen = study.arms[origin].tune, choices.get(ARM.format(study=study.name, dataset=dataset, arm=origin))
        if tune:
            values = values | (chosen or tune.middle)
        for seed in grid.seeds[: study.arms[arm].seeds or study.seeds]:
            run = _run(study, arm, {**values, "seed": seed}, device, place)
            found.append(replace(run, identity=None) if tune and not chosen else run)
    return found


def candidates(grid: Grid, device: str) -> list[Run]:
    """Every run that tunes the grid: none if the choices are given. Raises InputError as `runs` does."""
    found, counts = [], {}
    for study, arm, _, values, place in _places(grid):
        if study.arms[arm].tune:
            counts[study.name, arm] = len(study.arms[arm].tune.candidates) - len(study.arms[arm].tune.wider)
            found += [] if grid.tuned else _candidates(grid, study, arm, values, device, place)
    if len({*counts.values()}) > 1:
        least, most = min(counts, key=counts.get), max(counts, key=counts.get)
        what = f"{counts[least]} candidates for {'/'.join(least)} and {counts[most]} for {'/'.join(most)}"
        raise InputError(f"config: tune gives {what}; every tuned arm must have the same number, or tuning is not fair")
    return found


def _places(grid: Grid):
    """Each study, arm and data set with the knobs that are set there, all but rates to be chosen, and its name."""
    for study in grid.studies:
        where = f"config: study {study.name!r}"
        for arm, special in study.arms.items():
            if arm not in grid.arms:
                raise InputError(f"{where} has the unknown arm {arm!r}; the arms are {', '.join(grid.arms)}")
            if special.like and not study.arms.get(special.like, StudyArm()).tune:
                raise InputError(f"{where}: arm {arm!r} is like {special.like!r}, which must be a tuned arm of it")
            settings = (grid.run, study.run, grid.arms[arm].run, special)  # the more special wins
            values = {key: getattr(each, key) for each in settings for key in each.model_fields_set}
            values = {key: value for key, value in values.items() if key in RunConfig.model_fields}
            for key, by in {"dataset": "datasets", "seed": "seeds", "tuning": "tune"}.items():
                if key in values:
                    raise InputError(f"{where} sets {key!r} in a run; the grid does, by {by!r}")
            for dataset in study.datasets:
                place = f"{where}, arm {arm!r}, dataset {dataset!r}"
                yield study, arm, dataset, {**values, "dataset": dataset}, place


def _candidates(grid: Grid, study: Study, arm: str, values: dict, device: str, place: str) -> list[Run]:
    """The runs that tune an arm: short ones for each tuning seed, and full ones that check them."""
    if not grid.tuning.seeds:
        raise InputError(f"{place} is to be tuned, but tuning.seeds is empty; it must hold a seed, or lr be set")
    # What is probed is no part of a candidate: a change of it tunes nothing anew.
    unprobed = {"gradient_every": 0, "signals_every": 0, "gradient_stride": 25, "gradient_window": 100}
    values = {**values, **unprobed, "probe_images": 2, "tuning": True}
    whole = values.get("epochs", RunConfig().epochs)
    short = math.ceil(round(grid.tuning.share * whole, 9))  # 0.07 * 100 is above 7
    lengths = [("", short, seed) for seed in grid.tuning.seeds]
    if study.arms[arm].check and short < whole:
        lengths.append(("-full", whole, grid.tuning.seeds[0]))
    found = []
    for chosen, (ending, epochs, seed) in itertools.product(study.arms[arm].tune.candidates, lengths):
        name = "-".join(f"{SHORT[key]}{value:g}" for key, value in chosen.items()) + ending
        found.append(_run(study, arm, {**values, **chosen, "epochs": epochs, "seed": seed}, device, place, name))
    return found


def _run(study: Study, arm: str, values: dict, device: str, place: str, candidate: str | None = None) -> Run:
    asked = values.get("precision")
    if asked == "auto":
        values = {**values, "precision": precision(device, values["dataset"])}
    config = checked(RunConfig, values, place)
    return Run(study, arm, config, identity(config, "auto" if asked == "auto" else None), candidate)


def precision(device: str, dataset: str) -> str:
    """What `auto` stands for: bfloat16 on a GPU, and on a CPU that multiplies it; but images of 8 x 8 gain nothing."""
    fast = device == "cuda" or processor.multiplies_bfloat16()
    return "bfloat16" if dataset != "digits" and fast else "float32"


# ---- the table of choices ----


def choices(grid: Grid, table: Path | str, whole: bool = False) -> Choices:
    """What a table of choices, tuned.csv, says for the tuned arms.

    Raises InputError, one sentence, for any other table, and where it must be `whole` for an arm without a choice.
    """
    needed, found = {"study", "dataset", "arm", *SHORT, "chosen"}, {}
    try:
        with open(table, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if lacking := sorted(needed - {*(reader.fieldnames or ())}):
                raise InputError(f"{table} lacks the column {lacking[0]!r}: it must be a table of choices, tuned.csv")
            rows = [row for row in reader if row["chosen"] == "True"]
        for study, arm, dataset, *_ in _places(grid):
            if not (tune := study.arms[arm].tune):
                continue
            name = ARM.format(study=study.name, dataset=dataset, arm=arm)
            here = [row for row in rows if ARM.format(**row) == name]
            if len(here) > 1 or (whole and not here):
                what = f"{table} has {len(here)} choices for {name}"
                raise InputError(f"{what}; it must have one, or be left out to tune")
            if here:
                found[name] = {knob: float(here[0][knob]) for knob in tune.axes}
    except InputError:
        raise
    except (OSError, ValueError, TypeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{table} cannot be read as a table of choices, tuned.csv ({reason})") from error
    return found


def standing(table: Path | str) -> dict[str, str]:
    """The runs or candidates in a table, by name, with their identities; those that are missing are not there."""
    if not Path(table).exists():
        return {}
    with open(table, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["outcome"] != "missing"]
    return {(CANDIDATE if "candidate" in row else NAME).format(**row): row["identity"] for row in rows}


# ---- the file ----


def entry(run: Run) -> dict:
    """What a job reads of a run: its place, its identity, its whole config."""
    found = {**run.place, "rate": run.rate, "identity": run.identity, "config": run.config.model_dump()}
    if run.identity is None:
        found["config"] |= dict.fromkeys(SHORT)
    return found | ({"candidate": run.candidate} if run.candidate else {})


def write(path: Path | str, grid: Grid, device: str, ready: str, **parts: list[Run]) -> None:
    """plan.json, unless it says so already. ready: the folder of the converted sets; parts: candidates and runs."""
    how = grid.model_dump(include={"preset", "title", "gpu_slots", "save_minutes", "data_dir", "download"})
    planned = {part: {run.name: entry(run) for run in some} for part, some in parts.items()}
    text = files.json_text({**how, "device": device, "ready": ready, **planned})
    if not Path(path).exists() or Path(path).read_bytes() != text.encode():
        files.write_text(path, text)


def entries(path: Path | str, part: str) -> dict[str, dict]:
    """The runs or candidates of a plan. Raises InputError if it is none."""
    found = read(path).get(part)
    if not isinstance(found, dict):
        raise InputError(f"{path} has no {part}: it must be a plan, which snakemake writes")
    return found


def find(path: Path | str, name: str) -> dict:
    """A run or candidate of a plan. Raises InputError if it has none of this name, or no rate for it."""
    found = {**entries(path, "candidates"), **entries(path, "runs")}.get(name)
    if found is None:
        raise InputError(f"{path} has no run {name!r}: run snakemake, which writes it")
    if found["identity"] is None:
        mend = "lower or widen its `tune` in the config if all its candidates diverged"
        raise InputError(f"{path}: no rate has been chosen for {name}: {mend}")
    return found


def distinct(path: Path | str) -> list[RunConfig]:
    """A config for each network and update of a plan: runs that differ in rate, seed or length alone have the same."""
    same = {"seed": 0, "lr": 0.1, "weight_decay": 0.0, "epochs": 1, "warmup": 0}
    texts = {json.dumps({**each["config"], **same}) for each in entries(path, "runs").values()}
    return [checked(RunConfig, json.loads(text), str(path)) for text in sorted(texts)]
