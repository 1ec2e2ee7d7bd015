"""From the grid's config to its runs: study x dataset x arm x seed."""

import dataclasses
from dataclasses import dataclass

from rankcollapse.config import InputError, RunConfig, check_against_schema, run_config


@dataclass(frozen=True)
class Run:
    """A planned run: where it stands in the grid and what it is."""

    study: str
    dataset: str
    arm: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """Its folder below results/<preset>/runs."""
        return f"{self.study}/{self.dataset}/{self.arm}/seed{self.seed}"

    def values(self) -> dict:
        return dataclasses.asdict(self.config)


def overlay(config: dict, over: dict) -> dict:
    """`config` with the keys of `over` laid on it, nested ones key by key, as `snakemake --configfile` does."""
    both = {
        k: overlay(config[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(config.get(k), dict)
    }
    return {**config, **over, **both}


def runs(config: dict) -> list[Run]:
    """Every run of a grid's config, in its order. Raises InputError, one sentence, for whatever cannot be run."""
    check_against_schema(config, None, "config")
    names = [study["name"] for study in config["studies"]]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"config: studies holds the name {name!r} twice; each study needs its own")
    return [run for study in config["studies"] for run in _study(config, study)]


def _study(config: dict, study: dict) -> list[Run]:
    planned = []
    for arm, overrides in study["arms"].items():
        if arm not in config["arms"]:
            known = ", ".join(config["arms"])
            raise InputError(f"config: study {study['name']!r} has the unknown arm {arm!r}; the arms are {known}")
        # The more special wins: a run's defaults, the study, the arm, the arm within the study.
        values = {**config["run"], **study.get("run", {}), **config["arms"][arm].get("run", {}), **overrides}
        for key in ("dataset", "seed"):
            if key in values:
                raise InputError(
                    f"config: study {study['name']!r} sets {key!r} in a run; the grid does, by {key + 's'!r}"
                )
        for dataset in study["datasets"]:
            for seed in config["seeds"]:
                try:
                    resolved = run_config({**values, "dataset": dataset, "seed": seed})
                except InputError as error:
                    where = f"config: study {study['name']!r}, arm {arm!r}, dataset {dataset!r}"
                    raise InputError(f"{where}: {error}") from error
                planned.append(Run(study["name"], dataset, arm, seed, resolved))
    return planned


def seconds(run: Run, study: dict, device: str) -> float:
    """Estimated seconds of a run on one CPU core or GPU; start-up, test and probes are a fifth of training and 8 s."""
    return 8 + 1.2 * run.config.epochs * run.config.images / study["cost"][device]
