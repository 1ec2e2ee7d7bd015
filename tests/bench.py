"""What feedback alignment, Muon, the probes and a job's start cost, beside what a user would pick instead.

    python tests/bench.py [--device cuda] [--only REGEX]

Each ratio is of two arms that take turns in one process, so that a machine whose speed drifts slows both. The second
comes once more as a third: its ratio to itself is the noise. On a CPU its own time counts. Random images stand in for
data, so nothing is downloaded. Writes results/benchmarks/DEVICE/bench.csv and a figure of it.
"""

import argparse
import csv
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rankcollapse.experiment import data, datasets, files
from rankcollapse.experiment.config import RunConfig
from rankcollapse.experiment.job import device_label, peak_memory_mb, reset_peak_memory
from rankcollapse.experiment.network import make_model, skeleton
from rankcollapse.experiment.plan import precision
from rankcollapse.experiment.training import State, autocast, deterministic, fit, pick_device
from rankcollapse.library import models, products, updates
from rankcollapse.library.feedback import feedback_layers
from rankcollapse.library.processor import instructions, label

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "workflow"))

import warm  # noqa: E402

SECONDS = 0.3  # of one turn, about
ONE_LAYER = 0.03  # of one turn of a single product
UNPROBED = {"gradient_every": 0, "signals_every": 0}
CIFAR = {"dataset": "cifar10", "validation_images": 1000, "lr": 0.01, "rule": "fa"}
RESNET = {**CIFAR, "architecture": "resnet18", "normalization": "batch", "stem": "cifar2"}
FULL = {"width": 64, "batch_size": 128}  # ResNet-18 as the paper's
CNN = {**CIFAR, "architecture": "cnn", "width": 32}
MLP = {**CIFAR, "architecture": "mlp", "width": 256, "depth": 3, "channels_last": False}
PROBED = {"train_images": 10_000, "epochs": 6}  # of the row on probes: an epoch as in `quick`
Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    what: str
    unit: str  # of the figures
    target: str  # as in "≤ 1.02"; empty for what is only told
    measured: float  # the median; NaN if it cannot be measured here
    low: float  # quartiles
    high: float
    noise: float  # of a ratio: how far the quartiles of an arm's ratio to itself are from 1
    n: int
    bound: str = ""  # what bounds it, as far as that was measured too

    @property
    def verdict(self) -> str:
        """Whether the target is met; a miss that is no larger than the noise is called that, and no success."""
        if math.isnan(self.measured):
            return "not measured"
        if not self.target:
            return ""
        sign, bound = self.target.split()
        beyond = self.measured - float(bound) if sign == "≤" else float(bound) - self.measured
        return "met" if beyond <= 0 else "within noise" if beyond <= self.noise else "NOT MET"

    def __str__(self) -> str:
        figures = f"{self.measured:8.4g} {f'({self.low:.4g} to {self.high:.4g})':20s} noise {self.noise:.3f}"
        said = f"{self.what:76s} {self.unit:8s} {self.target:8s} {figures}  {self.verdict}"
        return said + (f"\n    {self.bound}" if self.bound else "")


def row(what: str, unit: str, target: str, values: list[float] | np.ndarray, bound: str = "", noise: float = 0) -> Row:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return Row(what, unit, target, middle, low, high, noise, len(values), bound)


def not_measured(what: str, unit: str, target: str, why: str) -> Row:
    return Row(what, unit, target, *3 * (math.nan,), 0, 0, why)


# ---- timing ----


def now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def turns(works: list[Work], device: torch.device, rounds: int, turn: float | None = None) -> np.ndarray:
    """Seconds of each, [rounds, works], in an order that turns. What is short is repeated within a turn."""
    turn = SECONDS if turn is None else turn
    for work in works:
        work()  # to warm up
    start = now(device)
    works[0]()
    times = max(1, round(turn / max(now(device) - start, 1e-6)))
    seconds = np.empty((rounds, len(works)))
    for i in range(rounds):
        for which in np.roll(np.arange(len(works)), i):
            start = now(device)
            for _ in range(times):
                works[which]()
            seconds[i, which] = (now(device) - start) / times
    return seconds


def ratio(what: str, target: str, over: Work, under: Work, device: torch.device, rounds: int, note: str = "") -> Row:
    """How many times as long the first takes as the second; beside it, what both compute, and how fast."""
    seconds = turns([over, under, under], device, rounds)
    noise = np.abs(np.percentile(seconds[:, 2] / seconds[:, 1], [25, 75]) - 1).max()
    sides = [
        f"{1e3 * s:.3g} ms{at_rate(work, s)}" for work, s in zip((over, under), np.median(seconds, 0), strict=False)
    ]
    bound = " against ".join(sides) + (f"; {note}" if note else "")
    return row(what, "ratio", target, seconds[:, 0] / seconds[:, 1], bound, noise)


def at_rate(work: Work, seconds: float) -> str:
    """The operations of its products and convolutions, and their rate; nothing of what is compiled."""
    if getattr(work, "compiled", False):
        return ""
    done = operations(work)
    return f", {done:.3g} GFLOP at {done / seconds:.0f} GFLOP/s"


def operations(work: Work) -> float:
    """GFLOP of the products and convolutions of a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


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
    begun = State(config, made, Path(path))
    if not config.gradient_every:
        Path(path).unlink()  # else it is read at the end
    return begun


def steps(config: RunConfig, device: torch.device) -> Work:
    """A call that takes a training step, probes off."""
    running = state(config.model_copy(update={"epochs": 10_000, "train_images": 1024, **UNPROBED}), device)
    batches = list(islice(running.batches(), 4))
    for batch in batches:
        running.take_step(*batch)

    def step() -> None:
        running.take_step(*batches[0])

    step.compiled = config.compile
    return step


def passes(net: nn.Module, config: RunConfig, device: torch.device) -> Work:
    """A call that sends a batch through a network, and its errors back."""
    running = state(config.model_copy(update={"train_images": config.batch_size, **UNPROBED}), device)
    ((images, labels),) = running.batches()

    def both() -> None:
        net.zero_grad()
        with autocast(config, device):
            logits = net(images)
        F.cross_entropy(logits.float(), labels).backward()

    return both


def peak(config: RunConfig, device: torch.device, threads: int) -> int:
    """Peak memory of a few steps, MB, of a process of its own."""
    torch.set_num_threads(threads)
    with deterministic():
        step = steps(config, device)
        reset_peak_memory(device)
        for _ in range(3):
            step()
    return peak_memory_mb(device)


# ---- what is compared: each yields its rows ----


def product_rates(dtype: torch.dtype, device: torch.device, rounds: int) -> np.ndarray:
    """GFLOP/s of large square products, [rounds, 1]."""
    a = torch.randn(1024, 1024, generator=data.generator(0, "bench")).to(device, dtype)
    return 2 * 1.024**3 / turns([lambda: a @ a], device, rounds)


def machine(device: torch.device, rounds: int) -> Iterator[Row]:
    """How fast this one multiplies, and copies: what bounds the others."""
    for dtype in (torch.float32, torch.bfloat16):
        what = f"products of 1024 x 1024 matrices of {str(dtype)[6:]}"
        yield row(what, "GFLOP/s", "", product_rates(dtype, device, rounds))
    a = torch.zeros(2**26, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    yield row("copying 64 MB", "GB/s", "", 2 * a.nbytes / 1e9 / turns([lambda: b.copy_(a)], device, rounds))


def newton_schulz(device: torch.device, rounds: int) -> Iterator[Row]:
    """Our Muon by torch's on the flattened matrices."""
    for name, config in (("ResNet-18 of width 64", {**RESNET, **FULL}), ("the MLP", MLP)):
        net = make_model(RunConfig(**config), device)
        weights = list(models.matrices(net).values())
        flat = [nn.Parameter(w.detach().flatten(1).clone()) for w in weights]
        for w, m in zip(weights, flat, strict=True):
            m.grad = torch.randn(m.shape, generator=data.generator(0, "gradients")).to(device)
            w.grad = m.grad.view_as(w).clone()
        ours = updates.Muon(weights, 1e-6, 0.95, 0.0, 5, "original").step
        theirs = torch.optim.Muon(flat, lr=1e-6, weight_decay=0.0).step
        target = "≤ 0.6" if config is not MLP else ""  # square matrices gain nothing by their Gram side
        yield ratio(f"Muon's step on the matrices of {name}: ours / torch's", target, ours, theirs, device, rounds)


def pytorchs(work: Work) -> Work:
    """The same with every convolution by PyTorch's kernels."""

    def by_kernels() -> object:
        rule, products.choose = products.choose, lambda *layer: products.How()
        try:
            return work()
        finally:
            products.choose = rule

    return by_kernels


def stems(device: torch.device, rounds: int) -> Iterator[Row]:
    """ResNet-18 of width 64 by its stem: PyTorch's products by ours, and images a second on one core."""
    bounds = {"bfloat16": {"cifar2": 2.3, "imagenet": 3.0, "cifar": 1.2}, "float32": {"cifar2": 1.5}}
    amx = instructions() == "AMX"
    for kind in ("bfloat16", "float32"):
        for stem in ("imagenet", "cifar2", "cifar"):
            config = RunConfig(**{**RESNET, **FULL, "stem": stem}, precision=kind)
            ours = steps(config, device)
            bound = bounds[kind].get(stem, 1.0) if amx or kind == "float32" else 1.0
            what = (
                f"step of ResNet-18 of width 64, stem {stem}, batch of 128, {kind}, FA: PyTorch's convolutions / ours"
            )
            yield ratio(what, f"≥ {bound}", pytorchs(steps(config, device)), ours, device, rounds)
            if kind == "bfloat16":
                others = {"BP": {"rule": "bp"}, "FA": {}, "FA + Muon": {"optimizer": "muon"}}
                arms = [steps(config.model_copy(update=knobs), device) for knobs in others.values()]
                for name, seconds in zip(others, turns(arms, device, rounds).T, strict=True):
                    what = f"ResNet-18 of width 64, stem {stem}, {kind}, one thread: {name}"
                    yield row(what, "images/s", "", config.batch_size / seconds)


def small_nets(device: torch.device, rounds: int) -> Iterator[Row]:
    """The networks of `quick`."""
    for name, knobs, bound in (("ResNet-18 of width 16", {**RESNET, "width": 16}, 1.3), ("the CNN", CNN, 1.1)):
        config = RunConfig(**knobs, precision=precision(device.type, "cifar10"))
        what = f"step of {name} of `quick`, {config.precision}: PyTorch's convolutions / ours"
        yield ratio(what, f"≥ {bound}", pytorchs(steps(config, device)), steps(config, device), device, rounds)


# ---- convolutions, layer by layer ----


@dataclass(frozen=True)
class Layer:
    """A product of a convolution in turns by each way; `chosen` by the rule."""

    layer: str
    dtype: str
    product: str
    chosen: str
    torch: float  # milliseconds, median
    whole: float = math.nan
    unfolded: float = math.nan
    tapped: float = math.nan

    @property
    def ours(self) -> float:
        return getattr(self, self.chosen)

    @property
    def least(self) -> float:
        return np.nanmin([self.torch, self.whole, self.unfolded, self.tapped])


LAYERS: list[Layer] = []  # of this call, for layers.csv


def convolutions_of(stem: str) -> list[tuple[int, int, int, int, int]]:
    """Those of ResNet-18 of width 64 for CIFAR, in order: channels in and out, kernel, stride, side of the picture."""
    config = RunConfig(**{**RESNET, **FULL, "stem": stem})
    net, found = skeleton(config), []

    def look(layer: nn.Conv2d, inputs: tuple, output: object) -> None:
        shape = layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], inputs[0].shape[-1]
        found.append(shape)

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(look)
    net(torch.empty(FULL["batch_size"], *datasets.SETS[config.dataset].shape, device="meta"))
    return found


def measured(shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device) -> list[Layer]:
    """Every way of each product of one layer, batches of 128, channels_last."""
    inputs, outputs, kernel, stride, side = shape
    g, where = data.generator(0, "bench"), ((stride, stride), (kernel // 2,) * 2, (1, 1), 1)
    x, w = (
        torch.randn(s, generator=g).to(device, dtype).contiguous(memory_format=torch.channels_last)
        for s in ((FULL["batch_size"], inputs, side, side), (outputs, inputs, kernel, kernel))
    )
    how = products.choose(x, w.shape, where)
    laid = {way: products.lay_out(w, (side, side), where, way, dtype) for way in ("torch", "unfolded")}
    if how.forward == "whole":  # elsewhere it is a large matrix
        laid["whole"] = products.lay_out(w, (side, side), where, "whole", dtype)
    delta = torch.randn_like(F.conv2d(x, w, None, *where[:3]))
    ways = {
        "forward": {way: partial(products.forward, x, laid[way], None, w.shape, where, way) for way in laid},
        "to_input": {way: partial(products.to_input, delta, laid[way], x, w.shape, where, way) for way in laid},
        "to_weight": {
            way: partial(products.to_weight, delta, x, w.shape, where, way) for way in ("unfolded", "tapped")
        },
    }
    alone = products.How(), (False, True, False)
    ways["to_weight"]["torch"] = partial(products.backward, delta, laid["torch"], x, w.shape, where, *alone)
    name = f"{inputs}, {outputs}, {kernel}, {stride}, {side} x {side}"
    found = []
    for product, works in ways.items():
        medians = 1e3 * np.median(turns([*works.values()], device, 3, ONE_LAYER), 0)
        found.append(
            Layer(name, str(dtype)[6:], product, getattr(how, product), **dict(zip(works, medians, strict=True)))
        )
    return found


def convolutions(device: torch.device, rounds: int) -> Iterator[Row]:
    """The rule of `products` against every way of every layer: what it gains, and where it is not the better choice."""
    if device.type != "cpu":
        return
    stems = {stem: convolutions_of(stem) for stem in ("imagenet", "cifar2", "cifar")}
    for dtype in (torch.bfloat16, torch.float32):
        of = {shape: measured(shape, dtype, device) for shape in dict.fromkeys(chain(*stems.values()))}
        LAYERS.extend(chain(*of.values()))
        for stem, shapes in stems.items():
            every = [*chain(*(of[shape] for shape in shapes))]
            theirs, ours, least = (sum(getattr(each, key) for each in every) for key in ("torch", "ours", "least"))
            worse = {f"{each.layer} {each.product} ({each.ours:.2f} ms, best {each.least:.2f})": None
                     for each in every if each.ours > 1.15 * each.least}  # fmt: skip
            told = f"{theirs:.0f} ms against {ours:.0f}, and {least:.0f} by the fastest way of each product; "
            told += "the rule's is more than 15 % slower in " + ("; ".join(worse) or "none")
            what = f"convolutions of ResNet-18 of width 64, stem {stem}, {str(dtype)[6:]}: PyTorch's / by the rule"
            yield row(what, "ratio", "", [theirs / ours], told)


def muon(device: torch.device, rounds: int) -> Iterator[Row]:
    config = RunConfig(**MLP, precision="bfloat16")
    arms = [steps(config.model_copy(update={"optimizer": name}), device) for name in ("muon", "sgd")]
    least = operations(arms[0]) / np.median(product_rates(torch.bfloat16, device, rounds))
    note = f"the first can take no less than {1e3 * least:.3g} ms at the rate of large square products"
    yield ratio("step of the MLP: Muon / SGD", "", *arms, device, rounds, note)


def formats(device: torch.device, rounds: int) -> Iterator[Row]:
    """What `precision: auto` picks here, by the other; and channels_last."""
    both = ["float32", "bfloat16"]
    picked = precision(device.type, "cifar10")
    other = both[both[0] == picked]
    for name, config in (("the CNN", CNN), ("ResNet-18 of width 16", {**RESNET, "width": 16}), ("the MLP", MLP)):
        arms = (steps(RunConfig(**config, precision=each), device) for each in (picked, other))
        yield ratio(f"step of {name}: {picked}, which auto picks / {other}", "≤ 1.0", *arms, device, rounds)
    last = RunConfig(**{**RESNET, "width": 16}, precision=picked)
    arms = (steps(each, device) for each in (last, last.model_copy(update={"channels_last": False})))
    yield ratio(f"step of ResNet-18 of width 16, {picked}: channels_last / not", "≤ 1.0", *arms, device, rounds)


def probes(device: torch.device, rounds: int) -> Iterator[Row]:
    """By the clock of a run, which counts rows and updates among the probes, and what is left for the end."""
    config = RunConfig(**CNN, precision=precision(device.type, "cifar10"), gradient_window=50, **PROBED)
    shares, floors = [], []
    for _ in range(min(rounds, 3)):
        running = state(config, device)
        fit(running)
        running.spectra()
        running.trajectory.path.unlink()
        shares.append(running.seconds["probes"] / running.seconds["train"])
        start = time.perf_counter()
        for _ in range(3 * (config.epochs + 1)):
            running.signals._passes()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        floors.append((time.perf_counter() - start) / running.seconds["probes"])
    bound = f"{100 * np.median(floors):.0f} % of it passes of 64 images in float32: by W, by B, and by an untrained B"
    yield row("probes of the CNN, as often as in `quick` / training", "ratio", "≤ 0.05", shares, bound)


def feedback_alignment(device: torch.device, rounds: int) -> Iterator[Row]:
    """FA by BP: a narrow network, and the paper's."""
    for knobs in ({"width": 16}, {**FULL, "stem": "imagenet"}):
        for kind in ("float32", "bfloat16"):
            for compiled in (
                (False, True) if knobs["width"] == 16 else (False,)
            ):  # to compile the wide one takes minutes
                config = RunConfig(**{**RESNET, **knobs}, precision=kind, compile=compiled)
                arms = (steps(config.model_copy(update={"rule": rule}), device) for rule in ("fa", "bp"))
                what = f"step of ResNet-18 of width {config.width}, stem {config.stem}, {kind}, "
                what += f"{'compiled' if compiled else 'eager'}: FA / BP"
                yield ratio(what, "≤ 1.02", *arms, device, rounds)


def other_rules(device: torch.device, rounds: int) -> Iterator[Row]:
    """What the other rules and normalisations cost a step, what they do after it included."""
    bp = {**RESNET, "width": 16, "rule": "bp", "precision": precision(device.type, "cifar10")}
    whose = "step of ResNet-18 of width 16"
    for rule in ("dfa", "kp", "usf", "brsf", "frsf", "wm"):
        arms = (steps(RunConfig(**{**bp, "rule": each}), device) for each in (rule, "bp"))
        yield ratio(f"{whose}: {rule} / BP", "", *arms, device, rounds)
    for norm in ("layer", "group", "rms", "whiten"):
        arms = (steps(RunConfig(**{**bp, "normalization": each}), device) for each in (norm, "batch"))
        yield ratio(f"{whose}, BP: normalization {norm} / batch", "", *arms, device, rounds)


def memory(device: torch.device, rounds: int) -> Iterator[Row]:
    """What FA needs beyond BP: B, and B as bfloat16, laid out as the products take it."""
    config = RunConfig(**{**RESNET, **FULL, "batch_size": 32}, precision="bfloat16")
    net = make_model(config, device)
    with torch.autocast(device.type, torch.bfloat16):
        net(torch.zeros(32, *datasets.SETS[config.dataset].shape, device=device))
    layers = feedback_layers(net).values()
    expected = sum(layer.feedback.nbytes + layer._kept[2].nbytes for layer in layers) / 2**20
    context, over, peaks = multiprocessing.get_context("spawn"), [], {}
    for _ in range(min(rounds, 3)):
        for rule in ("fa", "bp"):
            with context.Pool(1) as pool:
                arguments = config.model_copy(update={"rule": rule}), device, torch.get_num_threads()
                peaks[rule] = pool.apply(peak, arguments)
        over.append((peaks["fa"] - peaks["bp"]) / expected)
    bound = f"{peaks['fa']} MB against {peaks['bp']}, of which B and its cast {expected:.0f}"
    what = "peak memory of FA above BP, ResNet-18 of width 64, stem cifar2 / B and its cast, as laid out"
    yield row(what, "ratio", "≤ 1.05", over, bound)


def throughput(device: torch.device, rounds: int) -> Iterator[Row]:
    """The paper's network on a GPU."""
    what = "ResNet-18 of width 64, compiled, bfloat16, batches of 512"
    if device.type == "cpu":
        yield not_measured(f"{what}: FA", "images/s", "≥ 45000", "for a GPU: make bench-gpu")
        yield not_measured(f"{what}: FA / BP", "ratio", "≤ 1.05", "for a GPU: make bench-gpu")
        return
    config = RunConfig(**RESNET, width=64, batch_size=512, precision="bfloat16", compile=True)
    arms = [steps(config.model_copy(update={"rule": rule}), device) for rule in ("fa", "bp")]
    yield row(f"{what}: FA", "images/s", "≥ 45000", 512 / turns(arms, device, rounds)[:, 0])
    yield ratio(f"{what}: FA / BP", "≤ 1.05", *arms, device, rounds)


def biotorch(device: torch.device, rounds: int) -> Iterator[Row]:
    """BioTorch's layers by ours in one network, if the folder that BIOTORCH names has the package."""
    nets = {
        "ResNet-18 of width 64, stem imagenet, batch of 128": ("≥ 1.5", {**RESNET, **FULL, "stem": "imagenet"}),
        "ResNet-18 of width 64, stem cifar2, batch of 128": ("≥ 1.5", {**RESNET, **FULL}),
        "the CNN": ("≥ 1.05", CNN),
    }
    what = "forward and backward of {}, float32: BioTorch's FA / ours"
    if not Path(os.environ.get("BIOTORCH", "absent")).exists():
        for net, (target, _) in nets.items():
            why = "BioTorch 0.0.16 is not here: make bench installs it, where there is a network"
            yield not_measured(what.format(net), "ratio", target, why)
        return
    sys.path.append(os.environ["BIOTORCH"])
    for net, (target, knobs) in nets.items():
        config = RunConfig(**knobs, precision="float32")
        ours, theirs = make_model(config, device), with_biotorchs_layers(config, device)
        said = []
        for who, each in (("BioTorch's", theirs), ("ours", ours)):
            try:
                passes(each, config.model_copy(update={"precision": "bfloat16"}), device)()
                said.append(f"{who} runs")
            except RuntimeError as error:
                said.append(f"{who} fails ({str(error).splitlines()[0]})")
        arms = (passes(each, config, device) for each in (theirs, ours))
        told = f"under autocast to bfloat16 {' and '.join(said)}"
        yield ratio(what.format(net), target, *arms, device, rounds, told)


def with_biotorchs_layers(config: RunConfig, device: torch.device) -> nn.Module:
    """The network of a run with BioTorch's layers for feedback alignment in it."""
    from biotorch.layers import fa  # no dependency of ours

    net = make_model(config.model_copy(update={"rule": "bp"}), device)
    for name, layer in [*net.named_modules()]:
        if isinstance(layer, nn.Conv2d):
            made = fa.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        elif isinstance(layer, nn.Linear):
            made = fa.Linear(layer.in_features, layer.out_features)
        else:
            continue
        net.set_submodule(name, made.to(device, memory_format=torch.channels_last))
    return net


IMPORTS = """
import time
begin = time.perf_counter()
import torch
middle = time.perf_counter()
import torch._dynamo
print(middle - begin, time.perf_counter() - middle)
"""


def imports() -> str:
    torch_, dynamo = map(float, subprocess.check_output([sys.executable, "-c", IMPORTS], text=True).split())
    return f"of which import torch {torch_:.3g} s and torch._dynamo, which its optimisers load, {dynamo:.3g} s"


def start(device: torch.device, rounds: int) -> Iterator[Row]:
    """A job of one step, from its command to its end: as the workflow's, and by hand."""
    config = RunConfig(train_images=64, batch_size=64, epochs=1, validation_images=10, lr=0.01, **UNPROBED)
    with tempfile.TemporaryDirectory(prefix="rankcollapse-bench-") as folder:
        Path(folder, "config.json").write_text(config.model_dump_json(), encoding="utf-8")
        forked = warm.start(1)
        train = ["-m", "rankcollapse", "train", f"{folder}/config.json", "--data-dir", folder, "--device", device.type]
        try:
            for what, command in {
                "a job of one step, forked as the workflow's are, from its command to its end": forked,
                "a job of one step as a process of its own": [sys.executable],
            }.items():
                if command is None:
                    yield not_measured(what, "s", "≤ 2.5", "jobs are forked on Linux alone")
                    continue
                seconds = []
                for i in range(rounds + 1):
                    out, begin = f"{folder}/{len(command)}-{i}", time.perf_counter()
                    whole = [*command, *train, "--out", out]
                    subprocess.run(whole, check=True, capture_output=True, cwd=ROOT)
                    seconds.append(time.perf_counter() - begin)
                bound = "" if command is forked else imports()
                yield row(what, "s", "≤ 2.5", seconds[1:], bound)  # the first converts digits
        finally:
            if forked:
                shutil.rmtree(Path(forked[-1]).parent)  # the process itself ends with this one


def results(preset: Path) -> list[dict]:
    """run.json of each run and candidate below a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in preset.glob("**/run.json")]


def occupied(found: list[dict]) -> tuple[float, float, float]:
    """Their seconds in all, and when the first began and the last ended."""
    ends = [datetime.fromisoformat(result[key]).timestamp() for result in found for key in ("started", "finished")]
    return sum(result["seconds"] for result in found), min(ends), max(ends)


def demo(device: torch.device, rounds: int) -> Iterator[Row]:
    """How much of the processors' time `make demo` trains: once, in a copy of the project."""
    with tempfile.TemporaryDirectory(prefix="rankcollapse-bench-") as folder:
        for part in ("rankcollapse", "workflow", "envs", "profiles", "presets", "Snakefile", "config.yaml"):
            Path(folder, part).symlink_to(ROOT / part)
        shutil.copytree(ROOT / "paper", f"{folder}/paper", ignore=shutil.ignore_patterns("*.pdf"))
        command = [sys.executable, "-m", "snakemake", "--cores", "all", "--configfile", "presets/demo.yaml"]
        begin = time.time()
        subprocess.run(command, check=True, capture_output=True, cwd=folder, env={**os.environ, "PYTHONPATH": folder})
        wall = time.time() - begin
        found = results(Path(folder, "results/demo"))
    seconds, first, last = occupied(found)
    cores = os.cpu_count()
    told = f"{len(found)} runs, {first - begin:.0f} s before the first, {begin + wall - last:.0f} s after the last; "
    told += f"{100 * seconds / cores / (last - first):.0f} % of the cores' time between them"
    yield row("`make demo`, without its report", "s", "", [wall])
    yield row(
        "`make demo`: seconds of training jobs / (wall x cores)", "ratio", "≥ 0.7", [seconds / cores / wall], told
    )


def quick(device: torch.device, rounds: int) -> Iterator[Row]:
    """The same of `make quick`, if its runs are there. The candidates of its tuning interleave with its runs."""
    amx = "≤ 45" if instructions() == "AMX" else ""
    folder, rows = ROOT / "results/quick", [("with its tuning: all jobs, at the efficiency below", "min", amx)]
    rows.append(("seconds of training jobs / (wall x cores), first to last", "ratio", "≥ 0.85"))
    if not (folder / "runs").exists():
        for what, unit, target in rows:
            yield not_measured(f"`make quick`, {what}", unit, target, "no run of it is here: make quick")
        return
    found = results(folder)
    seconds, first, last = occupied(found)
    training = sum(result["train_seconds"] for result in found)
    efficiency = seconds / os.cpu_count() / (last - first)
    values = [seconds / 60 / os.cpu_count() / efficiency, efficiency]
    told = [f"{len(found)} runs and candidates, {seconds / 60:.0f} minutes on one core", ""]
    told[1] = f"{100 * training / seconds:.0f} % of the jobs' time steps of training"
    for (what, unit, target), value, bound in zip(rows, values, told, strict=True):
        yield row(f"`make quick`, {what}", unit, target, [value], bound)


SECTIONS = [  # what a user gains first
    stems, small_nets, biotorch, formats, feedback_alignment, other_rules, memory, newton_schulz, muon, probes, start,
    demo, quick, throughput, convolutions, machine,
]  # fmt: skip


# ---- the table and the figure ----


def write(device: str, rows: list[Row], out: Path) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["device", *(field.name for field in fields(Row)), "verdict"])
    writer.writerows(
        [device, *(f"{value:.5g}" if isinstance(value, float) else value for value in astuple(one)), one.verdict]
        for one in rows
    )
    files.write_text(out / "bench.csv", table.getvalue())
    if LAYERS:
        pd.DataFrame(LAYERS).to_csv(out / "layers.csv", index=False, float_format="%.4g", lineterminator="\n")
    files.write(out / "bench.svg", lambda path: draw(device, rows, path))


LOOKS = {"met": ("o", "#0072b2"), "within noise": ("D", "#8c6d31"), "NOT MET": ("X", "#d55e00")}


def draw(device: str, rows: list[Row], path: Path) -> None:
    """What has a target, in units of it: left of 1 it is met."""
    shown = [one for one in rows if one.verdict in LOOKS][::-1]
    with plt.rc_context({"svg.hashsalt": "rankcollapse", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(10, 1.2 + 0.34 * len(shown)), layout="constrained")
        for y, one in enumerate(shown):
            marker, colour = LOOKS[one.verdict]
            sign, bound = one.target.split()
            low, middle, high = (
                value / float(bound) if sign == "≤" else float(bound) / value
                for value in (one.low, one.measured, one.high)
            )
            axes.plot([low, high], [y, y], color=colour, linewidth=1.5)
            axes.plot(middle, y, marker, color=colour, markersize=5, label=one.verdict)
        axes.axvline(1, color="black", linewidth=1)
        ticks = [0.1, 0.2, 0.5, 1, 2, 3]
        axes.set(xscale="log", xticks=ticks, xticklabels=ticks, yticks=range(len(shown)))
        axes.set(yticklabels=[textwrap.fill(f"{one.what}, {one.target}", 66) for one in shown], ylim=(-1, len(shown)))
        figure.supxlabel(
            "measured / target, and target / measured of what is to be large: left of 1 is met", fontsize=9
        )
        axes.minorticks_off()
        figure.suptitle(f"{device}: medians and quartiles", fontsize=9)
        axes.grid(axis="x", linewidth=0.3)
        named = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        axes.legend(
            named.values(), named.keys(), loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, frameon=False
        )
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Measure, show, and write OUT/DEVICE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", help="(results/benchmarks, but nowhere with --only)")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each pair, in turns (default 7)")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="sections to run: " + ", ".join(s.__name__ for s in SECTIONS)
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    args = parser.parse_args(arguments)
    if args.rounds < 2:
        parser.error(f"--rounds is {args.rounds}; it must be 2 or more, since a single timing has no spread")
    chosen = [section for section in SECTIONS if re.search(args.only, section.__name__)]
    if not chosen:
        parser.error(f"--only is {args.only!r}, which fits none of {', '.join(s.__name__ for s in SECTIONS)}")
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    name = label() if device.type == "cpu" else device_label(device)
    print(f"{name}, threads: {args.threads}, torch {torch.__version__}, {args.rounds} rounds")
    rows = []
    with deterministic():
        for section in chosen:
            for one in section(device, args.rounds):
                print(one, flush=True)
                rows.append(one)
    if args.out or not args.only:
        out = args.out or ROOT / "results/benchmarks"
        write(name, rows, out / re.sub(r"\W+", "-", name.lower()))


if __name__ == "__main__":
    main()
