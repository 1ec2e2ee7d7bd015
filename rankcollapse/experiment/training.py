"""Training: the network of a run, all that it is between two steps, and the loop over them."""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankcollapse.errors import InputError
from rankcollapse.experiment import data as batching
from rankcollapse.experiment import datasets, network
from rankcollapse.experiment.config import RunConfig
from rankcollapse.library import signals, trajectory
from rankcollapse.library.ranks import Spectrum
from rankcollapse.library.rules import RULES

DIVERGED = 10.0  # a mean loss beyond this many times chance's, log(classes), counts as divergence; so does NaN
VALUES = ("epoch_start", "step", "epochs", "loss_sum", "correct", "seconds")  # of a State's own, in its state_dict
Report = Callable[[int, str], object]  # (steps done, a note at the end of an epoch or "")


class State:
    """All that a run is between two steps; what its config and data do not tell is in `state_dict()`."""

    def __init__(self, config: RunConfig, data: batching.Data, gradients: Path):
        """`gradients`: the file of gradient rows. The run starts at the first step, on the device of `data`."""
        self.config, self.data, self.device = config, data, data.train.labels.device
        self.steps_per_epoch = datasets.steps_per_epoch(config)
        self.steps = config.epochs * self.steps_per_epoch
        self.model, self.rule = network.make_model(config, self.device), RULES[config.rule]
        self.forward = torch.compile(self.model, options={"deterministic": True}) if config.compile else self.model
        self.optimizers = network.optimizers(self.model, config)
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, self.rate) for o in self.optimizers]
        order = torch.randperm(len(data.train), generator=batching.generator(config.seed, "probe"))
        drawn = data.train[order[: config.probe_images].to(self.device)]
        self.signals = signals.Signals(self.model, (data.pixels(drawn.images), drawn.labels), self.untrained)
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.trajectory = trajectory.Trajectory(self.model, config.gradient_every, gradients, dtype)
        self.order = batching.generator(config.seed, "order")
        self.epoch_start = self.order.get_state()  # of `order`: the epoch's draws are made again from it
        self.step = 0
        self.epochs: list[dict] = []
        self.loss_sum = self.correct = 0  # over the steps of this epoch; tensors then, so that no step waits for a GPU
        self.seconds = {"train": 0.0, "probes": 0.0}
        self.mark = time.perf_counter()
        self.parts = [self.model, *self.optimizers, *self.schedules, self.signals, self.trajectory]

    def state_dict(self) -> dict:
        """Plain values and tensors, not copied. With the rows of the file of gradients it is all of the run so far."""
        return {"parts": [part.state_dict() for part in self.parts], **{key: getattr(self, key) for key in VALUES}}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state` was taken, from a run of the same config: to the same bits as without the break."""
        for part, there in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(there)
        for key in VALUES:
            setattr(self, key, copy.copy(state[key]))
        self.order.set_state(self.epoch_start.cpu())

    def rate(self, step: int) -> float:
        """The learning rate of a step, as a share of its peak: up a line in a warm-up, then as scheduled."""
        warmup = self.config.warmup * self.steps_per_epoch
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup)))

    def untrained(self, step: int, tensors: list[Tensor]) -> None:
        """Fill the feedback weights that the signals of a step compare those of the run with."""
        draw = batching.generator(self.config.seed, f"untrained feedback, {step}")
        network.redraw_feedback(tensors, self.config, draw)

    @property
    def diverged(self) -> bool:
        """Whether the loss has blown up in the last epoch."""
        chance_loss = math.log(datasets.SETS[self.config.dataset].classes)
        return bool(self.epochs) and not self.epochs[-1]["train_loss"] < DIVERGED * chance_loss

    def lap(self, what: str | None) -> None:
        """Count the time since the last lap as spent on `what`; None: on nothing that is told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if what:
            self.seconds[what] += now - self.mark
        self.mark = now

    def measure(self, probe: Callable[[int], None]) -> None:
        """Run a probe of this step; its time does not count as training."""
        self.lap("train")
        probe(self.step)
        self.lap("probes")

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left of this epoch."""
        return batching.batches(self.data, self.config, self.order, self.step - len(self.epochs) * self.steps_per_epoch)

    def take_step(self, images: Tensor, labels: Tensor) -> None:
        with autocast(self.config, self.device):
            logits = self.forward(images)
        loss = F.cross_entropy(logits.float(), labels)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        if self.trajectory.due(self.step):
            self.measure(self.trajectory.add)
        group = self.optimizers[0].param_groups[0]  # of the forward weights
        rate = group["lr"]
        keep = 1 - rate * group["weight_decay"]
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.rule.after_step(self.model, keep)
        self.loss_sum = self.loss_sum + loss.detach()  # not in place: a state that was loaded is the caller's
        self.correct = self.correct + (logits.detach().argmax(1) == labels).sum()
        self.step += 1
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        if not rest and self.wants_signals(epoch):
            self.measure(lambda step: self.signals.update(self.optimizers[0], step, rate))

    def end_epoch(self) -> dict:
        """The row of metrics.csv, and the signals if they are due."""
        row = {
            "epoch": len(self.epochs) + 1,
            "step": self.step,
            "train_loss": float(self.loss_sum) / self.steps_per_epoch,
            "train_accuracy": float(self.correct) / (self.steps_per_epoch * self.config.batch_size),
        }
        self.lap("train")
        loss, accuracy = evaluate(self.model, self.data, self.data.validation, self.config)
        self.lap(None)
        self.epochs.append({**row, "validation_loss": loss, "validation_accuracy": accuracy})
        self.epoch_start = self.order.get_state()
        self.loss_sum = self.correct = 0
        self.measure_signals()
        return self.epochs[-1]

    def wants_signals(self, epoch: int) -> bool:
        every = self.config.signals_every
        return bool(every) and (epoch % every == 0 or epoch == self.config.epochs)

    def measure_signals(self) -> None:
        if self.wants_signals(len(self.epochs)):
            self.measure(self.signals.measure)

    def spectra(self) -> list[Spectrum]:
        """All that were measured, after the last step: those that need all of training are made now."""
        self.signals.finish()
        stride, window = self.config.gradient_stride, self.config.gradient_window
        found = [*self.signals.spectra, *self.trajectory.spectra(stride, window)]
        self.trajectory.close()
        self.lap("probes")
        return found


def fit(state: State, report: Report = lambda step, note: None) -> str:
    """Train to the end, from wherever `state` is; the outcome."""
    state.mark = time.perf_counter()
    if state.step == 0:
        state.measure_signals()
    while len(state.epochs) < state.config.epochs and not state.diverged:
        state.model.train()
        for images, labels in state.batches():
            state.take_step(images, labels)
            report(state.step, "")
        row = state.end_epoch()
        report(state.step, f"loss {row['train_loss']:.3f}, validation {100 * row['validation_accuracy']:.1f} %")
    return "diverged" if state.diverged else "finished"


@torch.no_grad()
def evaluate(model: nn.Module, data: batching.Data, split: batching.Split, config: RunConfig) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) of a split, in evaluation mode."""
    model.eval()
    losses, hits = [], []  # tensors until the end, so that no batch waits for a GPU
    for images, labels in zip(split.images.split(1000), split.labels.split(1000), strict=True):
        with autocast(config, images.device):
            logits = model(data.pixels(images))
        losses.append(F.cross_entropy(logits.float(), labels, reduction="sum"))
        hits.append((logits.argmax(1) == labels).sum())
    model.train()
    return sum(map(float, losses)) / len(split), sum(map(int, hits)) / len(split)


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises InputError for `cuda` without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no GPU here: set it to 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def deterministic() -> Iterator[None]:
    """Same machine, same config, same bits, and float32 that is float32; torch's settings are put back after.

    On a CPU numbers below float32's normal ones, of 1e-38, are zeros. The momentum of a dead unit falls below them in
    1,700 steps, and one such number in a hundred makes Newton-Schulz steps take 10 to 25 times as long.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
    settings = [
        (torch.backends.cudnn, "benchmark", False),
        (torch.backends.cudnn, "allow_tf32", False),  # the default for convolutions is TF32, of 10 bits
        (torch.backends.cuda.matmul, "allow_tf32", False),
        (torch.utils.deterministic, "fill_uninitialized_memory", False),  # a tenth of a step, and nothing reads it
    ]
    with ExitStack() as after:
        after.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would load the compiler, for seconds
        after.callback(torch.set_flush_denormal, False)  # torch's default; it does not tell what was set
        torch.set_flush_denormal(True)
        for where, name, value in settings:
            after.callback(setattr, where, name, getattr(where, name))
            setattr(where, name, value)
        yield
