"""What feedback alignment, Muon, the probes and a job's start cost, beside what a user would pick instead.

Each figure is a ratio of two arms that take turns in one process, so that a machine whose speed drifts slows both. The
second comes once more as a third: its ratio to itself is the noise. On a CPU its own time counts. Random images stand
in for data, so nothing is downloaded.
"""

import csv
import importlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rankcollapse import data, datasets, files, models, optim
from rankcollapse.config import RunConfig
from rankcollapse.errors import InputError
from rankcollapse.job import device_label
from rankcollapse.training import State, deterministic, fit, make_model, pick_device

SECONDS = 0.3  # of one turn, about
UNPROBED = {"gradient_every": 0, "signals_every": 0}
CIFAR = {"dataset": "cifar10", "validation_images": 1000, "lr": 0.01, "rule": "fa"}
RESNET = {**CIFAR, "architecture": "resnet18", "normalization": "batch"}
CNN = {**CIFAR, "architecture": "cnn4", "width": 32}
MLP = {**CIFAR, "architecture": "mlp", "width": 256, "depth": 3, "channels_last": False}
Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    what: str
    unit: str  # of the figures: ratio or s
    target: str  # as in "≤ 1.02"; empty for what is only told
    measured: float  # the median
    low: float  # quartiles
    high: float
    noise: float  # of a ratio: how far the quartiles of an arm's ratio to itself are from 1
    rounds: int

    @property
    def verdict(self) -> str:
        """Whether the target is met; a miss that is no larger than the noise is called that, and no success."""
        if not self.target:
            return ""
        sign, bound = self.target.split()
        beyond = self.measured - float(bound) if sign == "≤" else float(bound) - self.measured
        return "met" if beyond <= 0 else "within noise" if beyond <= self.noise else "NOT MET"

    def __str__(self) -> str:
        spread = f"({self.low:.4g} to {self.high:.4g})"
        return (
            f"{self.what:72s} {self.measured:8.4g} {spread:20s} noise {self.noise:.3f}  {self.target:8s} {self.verdict}"
        )


# ---- timing ----


def now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def turns(works: list[Work], device: torch.device, rounds: int) -> np.ndarray:
    """Seconds of each, [rounds, works], in an order that turns. What is short is repeated within a turn."""
    for work in works:
        work()  # to warm up
    start = now(device)
    works[0]()
    times = max(1, round(SECONDS / max(now(device) - start, 1e-6)))
    seconds = np.empty((rounds, len(works)))
    for i in range(rounds):
        for which in np.roll(np.arange(len(works)), i):
            start = now(device)
            for _ in range(times):
                works[which]()
            seconds[i, which] = (now(device) - start) / times
    return seconds


def ratio(what: str, target: str, over: Work, under: Work, device: torch.device, rounds: int) -> Row:
    """How many times as long the first takes as the second."""
    seconds = turns([over, under, under], device, rounds)
    low, middle, high = np.percentile(seconds[:, 0] / seconds[:, 1], [25, 50, 75])
    noise = np.abs(np.percentile(seconds[:, 2] / seconds[:, 1], [25, 75]) - 1).max()
    return Row(what, "ratio", target, middle, low, high, noise, rounds)


# ---- what is timed ----


def state(config: RunConfig, device: torch.device) -> State:
    """A run before its first step, on random images."""
    g, record = data.generator(0, "bench"), datasets.SETS[config.dataset]
    channels, height, width = record.shape

    def split(n: int) -> data.Split:
        images = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=g)
        return data.Split(images, torch.randint(0, record.classes, (n,), generator=g)).to(device)

    splits = split(datasets.training_images(config)), split(config.validation_images), split(100)
    made = data.Data(*splits, *data.scale(config.dataset, device), config.channels_last)
    handle, path = tempfile.mkstemp(prefix="rankcollapse-bench-")
    os.close(handle)
    return State(config, made, Path(path))


def steps(config: RunConfig, device: torch.device) -> Work:
    """A call that takes a training step, probes off."""
    running = state(config.model_copy(update={"epochs": 10_000, "train_images": 1024, **UNPROBED}), device)
    running.probes.path.unlink()
    batches = list(islice(running.batches(), 4))
    for batch in batches:
        running.take_step(*batch)
    return lambda: running.take_step(*batches[0])


def passes(net: nn.Module, config: RunConfig, device: torch.device) -> Work:
    """A call that sends a batch through a network, and its errors back."""
    running = state(config.model_copy(update={"train_images": config.batch_size, **UNPROBED}), device)
    running.probes.path.unlink()
    ((images, labels),) = running.batches()

    def both() -> None:
        net.zero_grad()
        F.cross_entropy(net(images), labels).backward()

    return both


def whole_run(config: RunConfig, device: torch.device) -> None:
    running = state(config, device)
    fit(running)
    running.probes.finish()
    running.probes.path.unlink()


# ---- what is compared: each yields its rows ----


def feedback_alignment(device: torch.device, rounds: int) -> Iterator[Row]:
    """FA by BP: a narrow network, and the paper's."""
    for width, batch in ((16, 64), (64, 32)):
        for precision in ("float32", "bfloat16"):
            for compiled in (False, True):
                how = {"width": width, "batch_size": batch, "precision": precision, "compile": compiled}
                config = RunConfig(**RESNET, **how)
                arms = (steps(config.model_copy(update={"rule": rule}), device) for rule in ("fa", "bp"))
                what = (
                    f"step of ResNet-18 of width {width}, {precision}, {'compiled' if compiled else 'eager'}: FA / BP"
                )
                yield ratio(what, "≤ 1.02", *arms, device, rounds)


def newton_schulz(device: torch.device, rounds: int) -> Iterator[Row]:
    """Our Muon by torch's on the flattened matrices."""
    for name, config in (("ResNet-18 of width 64", {**RESNET, "width": 64}), ("the MLP", MLP)):
        net = models.build(RunConfig(**config), data.generator(0, "bench")).to(device)
        weights = list(models.matrices(net).values())
        flat = [nn.Parameter(w.detach().flatten(1).clone()) for w in weights]
        for w, m in zip(weights, flat, strict=True):
            m.grad = torch.randn(m.shape, generator=data.generator(0, "gradients")).to(device)
            w.grad = m.grad.view_as(w).clone()
        ours = optim.Muon(weights, 1e-6, 0.95, 0.0, 5, "original").step
        theirs = torch.optim.Muon(flat, lr=1e-6, weight_decay=0.0).step
        yield ratio(f"Muon's step on the matrices of {name}: ours / torch's", "≤ 0.6", ours, theirs, device, rounds)


def muon(device: torch.device, rounds: int) -> Iterator[Row]:
    config = RunConfig(**MLP, precision="bfloat16")
    arms = (steps(config.model_copy(update={"optimizer": name}), device) for name in ("muon", "sgd"))
    yield ratio("step of the MLP: Muon / SGD", "≤ 3.5", *arms, device, rounds)


def formats(device: torch.device, rounds: int) -> Iterator[Row]:
    """What bfloat16 and channels_last are worth."""
    for name, config in (("the CNN", CNN), ("ResNet-18 of width 16", {**RESNET, "width": 16}), ("the MLP", MLP)):
        fast = RunConfig(**config, precision="bfloat16")
        plain = fast.model_copy(update={"precision": "float32", "channels_last": False})
        arms = (steps(each, device) for each in (fast, plain))
        yield ratio(f"step of {name}: bfloat16 in channels_last / float32", "≤ 1.0", *arms, device, rounds)


def probes(device: torch.device, rounds: int) -> Iterator[Row]:
    """As often as `quick` measures."""
    config = RunConfig(**CNN, precision="bfloat16", train_images=5_000, epochs=1)
    with_them, without = (partial(whole_run, each, device) for each in (config, config.model_copy(update=UNPROBED)))
    yield ratio("an epoch of the CNN: with probes / without", "≤ 1.05", with_them, without, device, rounds)


def start(device: torch.device, rounds: int) -> Iterator[Row]:
    """From the command of a job to its end, with one step in it."""
    config = RunConfig(train_images=64, batch_size=64, epochs=1, validation_images=10, lr=0.01, **UNPROBED)
    seconds = []
    with tempfile.TemporaryDirectory(prefix="rankcollapse-bench-") as folder:
        Path(folder, "config.json").write_text(config.model_dump_json(), encoding="utf-8")
        for i in range(rounds + 1):
            command = [sys.executable, "-m", "rankcollapse", "train", f"{folder}/config.json", "--out", f"{folder}/{i}"]
            begin = time.perf_counter()
            subprocess.run([*command, "--data-dir", folder, "--device", device.type], check=True, capture_output=True)
            seconds.append(time.perf_counter() - begin)
    low, middle, high = np.percentile(seconds[1:], [25, 50, 75])  # the first converts the digits
    yield Row("a job of one step, from its command to its end, s", "s", "≤ 2.5", middle, low, high, 0.0, rounds)


def biotorch(device: torch.device, rounds: int) -> Iterator[Row]:
    """BioTorch's layers by ours in one network, if the folder that BIOTORCH names has the package."""
    if "BIOTORCH" not in os.environ:
        return
    sys.path.append(os.environ["BIOTORCH"])
    fa = importlib.import_module("biotorch.layers.fa")  # no dependency of ours
    config = RunConfig(**CNN, precision="float32")
    theirs = make_model(config.model_copy(update={"rule": "bp"}), device)
    for name, layer in [*theirs.named_modules()]:
        if isinstance(layer, nn.Conv2d):
            made = fa.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        elif isinstance(layer, nn.Linear):
            made = fa.Linear(layer.in_features, layer.out_features)
        else:
            continue
        theirs.set_submodule(name, made.to(device, memory_format=torch.channels_last))
    ours = make_model(config, device)
    arms = (passes(net, config, device) for net in (theirs, ours))
    yield ratio("forward and backward of the CNN, float32: BioTorch's FA / ours", "≥ 1.05", *arms, device, rounds)


SECTIONS = [newton_schulz, muon, formats, probes, feedback_alignment, biotorch, start]


def bench(out: Path, device_name: str, rounds: int, threads: int, only: str) -> None:
    """Measure, show, and write OUT/DEVICE/bench.csv. Raises InputError for rounds < 2, or if `only` fits nothing."""
    if rounds < 2:
        raise InputError(f"--rounds is {rounds}; it must be 2 or more, since a single timing has no spread")
    chosen = [section for section in SECTIONS if re.search(only, section.__name__)]
    if not chosen:
        names = ", ".join(section.__name__ for section in SECTIONS)
        raise InputError(f"--only is {only!r}, which fits none of {names}")
    torch.set_num_threads(threads)
    device = pick_device(device_name)
    name = processor() if device.type == "cpu" else device_label(device)
    print(f"{name}, {threads} threads, torch {torch.__version__}, {rounds} rounds")
    rows = []
    with deterministic():
        for section in chosen:
            for row in section(device, rounds):
                print(row, flush=True)
                rows.append(row)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["device", *(field.name for field in fields(Row)), "verdict"])
    writer.writerows([name, *astuple(row), row.verdict] for row in rows)
    files.write_text(out / re.sub(r"\W+", "-", name.lower()) / "bench.csv", table.getvalue())


def processor() -> str:
    """The make of this machine's processor, and the widest instructions that matter here."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "CPU"
    make = re.search(r"model name\s*: (.*)", text)
    sets = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-bf16", "avx512f": "AVX512", "avx2": "AVX2"}
    widest = next((label for flag, label in sets.items() if flag in text), "no AVX2")
    return f"{make[1].strip() if make else 'CPU'}, {widest}"
