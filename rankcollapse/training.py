"""One run: from a RunConfig to a run folder.

    config.json      the resolved config                checkpoint.pt    weights, feedback weights, config
    metrics.csv      loss and accuracy of each epoch    spectra.npz      singular values of all that was probed
    alignment.csv    cosines                            run.json         outcome, accuracy, cost, versions; written last

A folder with run.json in it is complete; without, it is not a result.
"""

import dataclasses
import io
import json
import math
import os
import pickle
import platform
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import rankcollapse
from rankcollapse import data as datasets
from rankcollapse import feedback, files, models, optim, probes
from rankcollapse.config import InputError, RunConfig, read

DIVERGED = 10.0  # a mean loss beyond this many times chance's, log(classes), counts as divergence; so does NaN
Report = Callable[[int, str], object]


def silent(step: int, note: str) -> None:
    """The report of a caller that wants none."""


def train(config: RunConfig, out: Path | str, report: Report = silent) -> dict:
    """Train one run and write its folder; return the contents of run.json. A complete folder is returned as it is.

    `report(step, note)` is called after every step. Raises InputError if `out` holds another config's run, or for data
    that cannot be had. A loss that blows up is no error: `outcome` is then `diverged`, and what was measured is kept.
    """
    out = Path(out)
    done = _claim(out, config)
    if done is not None:
        return done
    device = pick_device(config.device)
    start, started = time.perf_counter(), _now()
    with deterministic():
        data = datasets.load(config, device)
        model = make_model(config, device)
        probe = make_probes(model, data, config)
        epochs, outcome, seconds = fit(model, data, config, probe, report)
        tick = time.perf_counter()
        probe.finish()
        seconds["probes"] += time.perf_counter() - tick
        test_loss, test_accuracy = evaluate(model, data, data.test, config)
    trained = len(epochs) * config.steps_per_epoch * config.batch_size
    result = {
        "outcome": outcome,
        "epochs": len(epochs),
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "validation_accuracy": epochs[-1]["validation_accuracy"],
        "train_loss": epochs[-1]["train_loss"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - start, 3),
        "train_seconds": round(seconds["train"], 3),
        "probe_seconds": round(seconds["probes"], 3),
        "images_per_second": round(trained / seconds["train"], 1),
        "memory_mb": _peak_memory_mb(device),
        "started": started,
        "finished": _now(),
        **environment(device),
    }
    checkpoint = {"config": dataclasses.asdict(config), "model": model.state_dict(), "epoch": len(epochs)}
    packed = io.BytesIO()  # written by Python: torch.save to a full disk raises no OSError
    torch.save(checkpoint, packed)
    files.write(out / "checkpoint.pt", lambda path: path.write_bytes(packed.getbuffer()))
    files.write_text(out / "metrics.csv", _csv(epochs))
    probes.save_spectra(out / "spectra.npz", probe.spectra)
    names = [field.name for field in dataclasses.fields(probes.Alignment)]
    files.write_text(out / "alignment.csv", _csv((dataclasses.asdict(a) for a in probe.alignment), names))
    files.write_json(out / "run.json", result)
    return result


def make_model(config: RunConfig, device: torch.device | str = "cpu") -> nn.Module:
    """The network of a run as it is before the first step, on `device`, with its feedback weights."""
    shape, classes = datasets.SHAPES[config.dataset], datasets.CLASSES[config.dataset]
    model = models.build(config, shape, classes, datasets.generator(config.seed, "weights"))
    feedback.convert(model, config.rule, datasets.generator(config.seed, "feedback"), models.init_weight)
    return model.to(device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)


def make_probes(model: nn.Module, data: datasets.Data, config: RunConfig) -> probes.Probes:
    order = torch.randperm(len(data.train), generator=datasets.generator(config.seed, "probe"))
    batch = data.train[order[: config.probe_images].to(data.train.labels.device)]
    return probes.Probes(model, data.pixels(batch.images), batch.labels, config)


def fit(model, data, config, probe, report: Report = silent) -> tuple[list[dict], str, dict[str, float]]:
    """The training loop: metrics per epoch, the outcome, and seconds spent in training and in probes."""
    optimizers = optim.build(model, config)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=config.steps) for o in optimizers]
    forward = torch.compile(model) if config.compile else model
    order = datasets.generator(config.seed, "order")
    epochs: list[dict] = []
    seconds = {"train": 0.0, "probes": 0.0}
    chance_loss = math.log(datasets.CLASSES[config.dataset])
    step = 0
    for epoch in range(config.epochs):
        _signals(probe, epoch, step, seconds, data)
        tick = time.perf_counter()
        model.train()
        loss_sum = torch.zeros((), device=data.train.labels.device)
        correct = torch.zeros((), dtype=torch.int64, device=loss_sum.device)
        for images, labels in datasets.batches(data, config, order):
            with autocast(config, images.device):
                logits = forward(images)
            loss = F.cross_entropy(logits.float(), labels)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            probe.gradient(step)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            probe.update(step)
            loss_sum += loss.detach()
            correct += (logits.detach().argmax(1) == labels).sum()
            step += 1
            report(step, "")
        mean_loss = float(loss_sum) / config.steps_per_epoch  # waits for the device: once an epoch
        seconds["train"] += time.perf_counter() - tick
        validation_loss, validation_accuracy = evaluate(model, data, data.validation, config)
        row = {
            "epoch": epoch + 1,
            "step": step,
            "train_loss": mean_loss,
            "train_accuracy": float(correct) / (config.steps_per_epoch * config.batch_size),
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
        }
        epochs.append(row)
        report(step, f"loss {mean_loss:.3f}, validation {100 * validation_accuracy:.1f} %")
        if not mean_loss < DIVERGED * chance_loss:
            return epochs, "diverged", seconds
    _signals(probe, config.epochs, step, seconds, data)
    return epochs, "finished", seconds


def _signals(probe: probes.Probes, epoch: int, step: int, seconds: dict[str, float], data: datasets.Data) -> None:
    if probe.due(epoch):
        tick = time.perf_counter()
        probe.signals(step)
        seconds["probes"] += time.perf_counter() - tick


@torch.no_grad()
def evaluate(model: nn.Module, data: datasets.Data, split: datasets.Split, config: RunConfig) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) of a split, in evaluation mode."""
    model.eval()
    loss, correct = 0.0, 0
    for start in range(0, len(split), 1000):
        batch = slice(start, start + 1000)
        images, labels = data.pixels(split.images[batch]), split.labels[batch]
        with autocast(config, images.device):
            logits = model(images)
        loss += float(F.cross_entropy(logits.float(), labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
    model.train()
    return loss / len(split), correct / len(split)


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises InputError for `cuda` without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no GPU here: set it to 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def deterministic() -> Iterator[None]:
    """Same machine, same config, same bits; torch's settings are put back after."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> tuple[nn.Module, RunConfig]:
    """The trained network of a checkpoint and its config. Raises InputError for a file that is not one."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        config = RunConfig(**content["config"])
        model = make_model(config, device)
        model.load_state_dict(content["model"])
    except (OSError, RuntimeError, LookupError, TypeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is not a readable checkpoint ({reason}): delete its run folder to train it anew"
        ) from error
    return model, config


def _claim(out: Path, config: RunConfig) -> dict | None:
    """Make the run folder this config's. The stored result if it is complete; InputError if it is another config's."""
    path = out / "config.json"
    if path.exists():
        there, here = read(path), dataclasses.asdict(config)
        changed = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
        if changed:
            key = changed[0]
            raise InputError(
                f"{out} holds the run of another config ({key} is {there.get(key)!r} there, {here.get(key)!r} here): "
                "choose another folder, or delete that one"
            )
        if (out / "run.json").exists():
            return json.loads((out / "run.json").read_text())
    files.write_json(path, dataclasses.asdict(config))
    return None


def _csv(rows: Iterable[dict], columns: list[str] | None = None) -> str:
    rows = list(rows)
    columns = columns or list(rows[0])
    return "\n".join([",".join(columns), *(",".join(str(row[c]) for c in columns) for row in rows)]) + "\n"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _peak_memory_mb(device: torch.device) -> int:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def environment(device: torch.device) -> dict[str, str | int]:
    """What a result depends on beyond its config."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
    versions = {"rankcollapse": rankcollapse, "torch": torch, "torchvision": torchvision}
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{key: module.__version__ for key, module in versions.items()},
    }
