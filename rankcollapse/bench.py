"""The cost of feedback alignment and of the probes, as ratios measured side by side in one process.

Random images stand in for data, so nothing is downloaded; networks and budgets are those of a grid's config. Rounds
interleave what is compared, so that a machine whose speed drifts slows both sides alike; on a CPU its own time counts.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rankcollapse import data as batching
from rankcollapse import datasets
from rankcollapse.config import RunConfig, run_config
from rankcollapse.errors import InputError
from rankcollapse.folder import environment
from rankcollapse.grid import Run
from rankcollapse.training import State, deterministic, fit, pick_device

STEPS = 40  # of training in one timing of the step


def bench(runs: list[Run], rounds: int, device_name: str) -> None:
    """Print FA / BP of a training step, and with / without probes of a whole run, for each plain FA run's network.

    Raises InputError for less than two rounds and for a grid without such a run.
    """
    if rounds < 2:
        raise InputError(f"--rounds is {rounds}; it must be 2 or more, since a single timing has no spread")
    plain = [r for r in runs if (r.config.rule, r.config.optimizer, r.config.update) == ("fa", "sgd", "full")]
    configs = {f"{run.study.name}, {run.arm}": run.config for run in reversed(plain)}  # the first of seeds and sets
    if not configs:
        raise InputError(
            "config: no study has an arm of plain FA (rule fa, optimizer sgd, update full) to time; add one"
        )
    device = pick_device(device_name)
    print(f"{environment(device)['device']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with deterministic():
        print(f"FA step / BP step, median of {rounds} rounds of {STEPS} steps (quartiles); at most 1.05 is wanted")
        for name, config in reversed(configs.items()):
            _report(name, _rounds(_steps(config, device), _steps(_changed(config, rule="bp"), device), rounds))
        rounds = max(2, rounds // 10)
        print(f"run with probes / run without, median of {rounds} rounds (quartiles); at most 1.10 is wanted")
        every = []
        for name, config in reversed(configs.items()):
            without = _changed(config, gradient_every=0, signals_every=0)
            every.append(_rounds(_run(config, device), _run(without, device), rounds))
            _report(name, every[-1])
        _report("all of these", [tuple(map(sum, zip(*one, strict=True))) for one in zip(*every, strict=True)])


def _report(name: str, seconds: list[tuple[float, float]]) -> None:
    low, middle, high = statistics.quantiles([a / b for a, b in seconds], n=4, method="inclusive")
    print(f"  {name:24s} {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)


def _rounds(a: Callable[[], float], b: Callable[[], float], rounds: int) -> list[tuple[float, float]]:
    """Seconds of a and of b, round by round, the first of the two in turn."""
    found = []
    for i in range(rounds):
        seconds = {call: call() for call in ((a, b) if i % 2 else (b, a))}
        found.append((seconds[a], seconds[b]))
    return found


def _changed(config: RunConfig, **changes: object) -> RunConfig:
    return run_config({**config.model_dump(), **changes})


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _steps(config: RunConfig, device: torch.device) -> Callable[[], float]:
    """A call that takes a few training steps, probes off, and returns their seconds."""
    state = _state(_changed(config, epochs=10_000, gradient_every=0, signals_every=0), device)
    batches = [batch for batch, _ in zip(state.batches(), range(STEPS), strict=False)]

    def steps() -> float:
        start = _now(device)
        for images, labels in batches:
            state.take_step(images, labels)
        return _now(device) - start

    steps()  # to warm up
    return steps


def _run(config: RunConfig, device: torch.device) -> Callable[[], float]:
    """A call that trains a whole run, without loading data or writing its results, and returns its seconds."""

    def run() -> float:
        start = _now(device)
        state = _state(config, device)
        fit(state)
        state.probes.finish()
        return _now(device) - start

    return run


def _state(config: RunConfig, device: torch.device) -> State:
    g, record = batching.generator(0, "bench"), datasets.SETS[config.dataset]
    channels, height, width = record.shape

    def split(n: int) -> batching.Split:
        images = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=g)
        return batching.Split(images, torch.randint(0, record.classes, (n,), generator=g)).to(device)

    splits = split(datasets.training_images(config)), split(config.validation_images), split(100)
    data = batching.Data(*splits, *batching.scale(config.dataset, device), config.channels_last)
    return State(config, data, Path(tempfile.gettempdir()) / f"rankcollapse-bench-{os.getpid()}.bin")
