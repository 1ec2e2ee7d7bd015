"""The cost of feedback alignment and of the probes, as ratios measured side by side in one process.

Random images stand in for data, so nothing is downloaded; the networks and budgets are those of presets/quick.yaml.
Rounds interleave what is compared, so that a machine whose speed drifts slows both sides alike.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F

from rankcollapse import data as datasets
from rankcollapse import optim
from rankcollapse.config import RunConfig
from rankcollapse.training import autocast, environment, fit, make_model, make_probes, pick_device

SHARED = {
    "dataset": "cifar10",
    "train_images": 10_000,
    "validation_images": 2_000,
    "precision": "bfloat16",
    "flip": True,
}
NETWORKS = {
    "mlp, 3 x 256": RunConfig(
        **SHARED, architecture="mlp", width=256, depth=3, epochs=8, channels_last=False, gradient_every=12
    ),
    "cnn4": RunConfig(**SHARED, architecture="cnn4", width=32, epochs=12),
    "cnn4, BN": RunConfig(**SHARED, architecture="cnn4", width=32, epochs=12, normalization="batch"),
    "resnet18, width 16, BN": RunConfig(
        **SHARED, architecture="resnet18", width=16, stem_stride=2, epochs=8, normalization="batch"
    ),
}


def bench(rounds: int, device_name: str) -> None:
    """Print the ratio FA / BP of a training step, and the probes' share of a whole run, for each network."""
    device = pick_device(device_name)
    print(f"{environment(device)['device']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"FA step / BP step, median of {rounds} interleaved rounds (minimum to maximum); at most 1.05 is wanted")
    for name, config in NETWORKS.items():
        steps = [_stepper(replace(config, rule=rule), device) for rule in ("fa", "bp")]
        _report(name, _ratios(steps[0], steps[1], rounds))
    print("run with probes / run without, of the same budget as in the quick preset; at most 1.10 is wanted")
    for name, config in NETWORKS.items():
        with_probes = _runner(replace(config, rule="fa"), device)
        without = _runner(replace(config, rule="fa", gradient_every=0, signals_every=0), device)
        _report(name, _ratios(with_probes, without, max(1, rounds // 5)))


def _report(name: str, ratios: list[float]) -> None:
    print(f"  {name:24s} {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)


def _ratios(a: Callable[[], None], b: Callable[[], None], rounds: int) -> list[float]:
    """Seconds of a over seconds of b, round by round, the first of the two in turn."""
    found = []
    for i in range(rounds):
        seconds = {call: _seconds(call) for call in ((a, b) if i % 2 else (b, a))}
        found.append(seconds[a] / seconds[b])
    return found


def _seconds(call: Callable[[], None]) -> float:
    """CPU time where the CPU does the work, so that other programs do not count; wall time around a GPU's."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def _fake(config: RunConfig, device: torch.device) -> datasets.Data:
    g = datasets.generator(0, "bench")
    shape, classes = datasets.SHAPES[config.dataset], datasets.CLASSES[config.dataset]

    def split(n: int) -> datasets.Split:
        images = torch.randint(0, 256, (n, *shape[1:], shape[0]), dtype=torch.uint8, generator=g)
        return datasets.Split(images, torch.randint(0, classes, (n,), generator=g)).to(device)

    mean, std = (255 * torch.tensor(values, device=device) for values in datasets.PIXELS[config.dataset])
    return datasets.Data(
        split(config.images), split(config.validation_images), split(100), mean, std, config.channels_last
    )


def _stepper(config: RunConfig, device: torch.device) -> Callable[[], None]:
    """A call of 30 training steps, forward, backward and update, warmed up."""
    model, data = make_model(config, device), _fake(replace(config, train_images=config.batch_size), device)
    optimizers = optim.build(model, config)
    images, labels = data.pixels(data.train.images), data.train.labels

    def steps(count: int = 30) -> None:
        for _ in range(count):
            with autocast(config, device):
                logits = model(images)
            for optimizer in optimizers:
                optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels).backward()
            for optimizer in optimizers:
                optimizer.step()

    steps(5)
    return steps


def _runner(config: RunConfig, device: torch.device) -> Callable[[], None]:
    """A call that trains a whole run, without loading data or writing files."""
    data = _fake(config, device)

    def run() -> None:
        model = make_model(config, device)
        probe = make_probes(model, data, config)
        fit(model, data, config, probe)
        probe.finish()

    return run
