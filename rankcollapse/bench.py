"""The cost of feedback alignment and of the probes, as ratios measured side by side in one process.

Random images stand in for data, so nothing is downloaded; networks and budgets are those of a grid's config. Rounds
interleave what is compared, so that a machine whose speed drifts slows both sides alike.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from rankcollapse import data as datasets
from rankcollapse.config import InputError, RunConfig
from rankcollapse.grid import Run
from rankcollapse.training import deterministic, environment, fit, make_model, make_probes, pick_device

STEPS = 40  # of training in one timing of the step


def bench(runs: list[Run], rounds: int, device_name: str) -> None:
    """Print FA / BP of a training step, and with / without probes of a whole run, for each plain FA run's network.

    Raises InputError for less than two rounds and for a grid without such a run.
    """
    if rounds < 2:
        raise InputError(f"--rounds is {rounds}; it must be 2 or more, since a single timing has no spread")
    device = pick_device(device_name)
    configs: dict[str, RunConfig] = {}
    for run in filter(_plain, runs):
        configs.setdefault(f"{run.study}, {run.arm}", run.config)  # of its seeds and data sets the first
    if not configs:
        raise InputError(
            "config: no study has an arm of plain FA (rule fa, optimizer sgd, update full) to time; add one"
        )
    print(f"{environment(device)['device']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with deterministic():
        print(f"FA step / BP step, median of {rounds} rounds of {STEPS} steps (quartiles); at most 1.05 is wanted")
        for name, config in configs.items():
            _report(name, _rounds(_steps(config, device), _steps(replace(config, rule="bp"), device), rounds))
        rounds = max(2, rounds // 10)
        print(f"run with probes / run without, median of {rounds} rounds (quartiles); at most 1.10 is wanted")
        every = []
        for name, config in configs.items():
            without = replace(config, gradient_every=0, signals_every=0)
            every.append(_rounds(_run(config, device), _run(without, device), rounds))
            _report(name, every[-1])
        _report("all of these", [tuple(map(sum, zip(*one, strict=True))) for one in zip(*every, strict=True)])


def _plain(run: Run) -> bool:
    """FA under unaltered momentum SGD: what the step of backpropagation can be set beside."""
    return run.config.rule == "fa" and run.config.optimizer == "sgd" and run.config.update == "full"


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


def _steps(config: RunConfig, device: torch.device) -> Callable[[], float]:
    """A call that takes a few training steps, probes off, and returns their seconds."""
    images = STEPS * config.batch_size
    short = replace(config, epochs=1, train_images=images, validation_images=10, gradient_every=0, signals_every=0)
    model, data = make_model(short, device), _random_data(short, device)
    probe = make_probes(model, data, short)

    def steps() -> float:
        return fit(model, data, short, probe)[2]["train"]

    steps()  # to warm up
    return steps


def _run(config: RunConfig, device: torch.device) -> Callable[[], float]:
    """A call that trains a whole run, without loading data or writing files, and returns its seconds."""
    data = _random_data(config, device)

    def run() -> float:
        start = time.perf_counter()
        model = make_model(config, device)
        probe = make_probes(model, data, config)
        fit(model, data, config, probe)
        probe.finish()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def _random_data(config: RunConfig, device: torch.device) -> datasets.Data:
    g = datasets.generator(0, "bench")
    shape, classes = datasets.SHAPES[config.dataset], datasets.CLASSES[config.dataset]

    def split(n: int) -> datasets.Split:
        images = torch.randint(0, 256, (n, *shape[1:], shape[0]), dtype=torch.uint8, generator=g)
        return datasets.Split(images, torch.randint(0, classes, (n,), generator=g)).to(device)

    mean, std = (255 * torch.tensor(values, device=device) for values in datasets.PIXELS[config.dataset])
    return datasets.Data(
        split(config.images), split(config.validation_images), split(100), mean, std, config.channels_last
    )
