"""The cost of feedback alignment and of the probes, as ratios measured side by side in one process.

Random images stand in for data, so nothing is downloaded; networks and budgets are those of a grid's config. Rounds
interleave what is compared, so that a machine whose speed drifts slows both sides alike; on a CPU its own time counts.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from rankcollapse import data, datasets
from rankcollapse.config import RunConfig
from rankcollapse.errors import InputError
from rankcollapse.grid import Run
from rankcollapse.job import device_label
from rankcollapse.training import State, deterministic, fit, pick_device

STEPS = 40  # of training in one timing of the step
UNPROBED = {"gradient_every": 0, "signals_every": 0}
Work = Callable[[], None]


def bench(runs: list[Run], rounds: int, device_name: str, threads: int) -> None:
    """Print both ratios for the network of each plain FA run. Raises InputError for rounds < 2, or if there is none."""
    torch.set_num_threads(threads)
    if rounds < 2:
        raise InputError(f"--rounds is {rounds}; it must be 2 or more, since a single timing has no spread")
    plain = [r for r in runs if (r.config.rule, r.config.optimizer, r.config.update) == ("fa", "sgd", "full")]
    configs = {f"{run.study.name}, {run.arm}": run.config for run in reversed(plain)}  # the first of seeds and sets
    if not configs:
        wanted = "plain FA (rule fa, optimizer sgd, update full)"
        raise InputError(f"config: no study has an arm of {wanted} to time; add one")
    device = pick_device(device_name)
    print(f"{device_label(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with deterministic():
        print(f"FA step / BP step, median of {rounds} rounds of {STEPS} steps (quartiles); at most 1.05 is wanted")
        for name, config in reversed(configs.items()):
            both = _steps(config, device), _steps(config.model_copy(update={"rule": "bp"}), device)
            _compare(name, both, rounds, device)
        rounds = max(2, rounds // 10)
        print(f"run with probes / run without, median of {rounds} rounds (quartiles); at most 1.10 is wanted")
        every = []
        for name, config in reversed(configs.items()):
            both = partial(_run, config, device), partial(_run, config.model_copy(update=UNPROBED), device)
            every.append(_compare(name, both, rounds, device))
        _report("all of these", np.sum(every, axis=0))


def _compare(name: str, both: tuple[Work, Work], rounds: int, device: torch.device) -> np.ndarray:
    """Seconds of the two, [rounds, 2], the first of them in turn."""
    seconds = np.empty((rounds, 2))
    for i in range(rounds):
        for which in (0, 1) if i % 2 else (1, 0):
            start = _now(device)
            both[which]()
            seconds[i, which] = _now(device) - start
    _report(name, seconds)
    return seconds


def _report(name: str, seconds: np.ndarray) -> None:
    low, middle, high = np.percentile(seconds[:, 0] / seconds[:, 1], [25, 50, 75])
    print(f"  {name:24s} {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _steps(config: RunConfig, device: torch.device) -> Work:
    """A call that takes a few training steps, probes off."""
    state = _state(config.model_copy(update={"epochs": 10_000, **UNPROBED}), device)
    batches = list(islice(state.batches(), STEPS))

    def steps() -> None:
        for images, labels in batches:
            state.take_step(images, labels)

    steps()  # to warm up
    return steps


def _run(config: RunConfig, device: torch.device) -> None:
    """Train a whole run, without loading data or writing its results."""
    state = _state(config, device)
    fit(state)
    state.probes.finish()
    state.probes.path.unlink()


def _state(config: RunConfig, device: torch.device) -> State:
    g, record = data.generator(0, "bench"), datasets.SETS[config.dataset]
    channels, height, width = record.shape

    def split(n: int) -> data.Split:
        images = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=g)
        return data.Split(images, torch.randint(0, record.classes, (n,), generator=g)).to(device)

    splits = split(datasets.training_images(config)), split(config.validation_images), split(100)
    made = data.Data(*splits, *data.scale(config.dataset, device), config.channels_last)
    return State(config, made, Path(tempfile.gettempdir()) / f"rankcollapse-bench-{os.getpid()}.bin")
