"""One training job: from a config to the folder of its run, going on from where an earlier one was stopped."""

import io
import pickle
import platform
import resource
import signal
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from tqdm import tqdm

import rankcollapse
from rankcollapse.errors import InputError, Stopped
from rankcollapse.experiment import data, datasets, files, folder, machine
from rankcollapse.experiment.config import RunConfig, run_config
from rankcollapse.experiment.identity import MEASURES, TRAINING, code, identity
from rankcollapse.experiment.network import make_model
from rankcollapse.experiment.training import State, deterministic, evaluate, fit, pick_device
from rankcollapse.library import processor


def train(
    config: RunConfig,
    out: Path | str,
    *,
    data_dir: Path | str = "data",
    ready: Path | str | None = None,
    download: bool = True,
    device: str = "auto",
    as_planned: str | None = None,
    about: dict[str, str] | None = None,
    name: str | None = None,
    save_minutes: float = 5.0,
    replace: bool = False,
    fresh: bool = False,
) -> dict:
    """Train one run and write its folder, showing progress on standard error; return the contents of run.json.

    A whole folder of this identity is returned as it is, and a run that was stopped goes on, to the same bits; `fresh`
    starts it over. Its state is saved every `save_minutes`, on SIGUSR1, and on SIGTERM and SIGINT, which then raise
    Stopped or KeyboardInterrupt. One process writes a folder: another waits. Data sets are converted to `ready`, by
    default a folder of `data_dir`. `as_planned` is the identity that a plan gives the run, and `about` goes into
    run.json. Raises InputError if `out` holds another config's run, unless `replace`, or for data that cannot be had. A
    loss that blows up is no error: `outcome` is then `diverged`, and what was measured is kept.
    """
    out, what = Path(out), as_planned or identity(config)
    with files.lock(out / folder.LOCK, _tell), Signals() as signals, deterministic():
        files.sweep(out)
        if fresh:
            folder.drop(out)
        done = None if fresh else folder.finished(out, what, _tell)
        if not done:
            folder.claim(out, config, replace)
            converted = datasets.prepare(config.dataset, data_dir, ready, download, _tell)
            where, kept = pick_device(device), folder.Saves(out, identity(config))
            state = State(config, data.load(config, converted, where), kept.gradients)
            kept.restore(state, _tell)
            reset_peak_memory(where)
            outcome = _fit(state, kept, signals, name or str(out), save_minutes)
            _write(out, state, {**(about or {}), "identity": what, "outcome": outcome}, kept)
            done = files.sealed(out / folder.RESULT)
        folder.drop(out)
    return done


def _fit(state: State, kept: folder.Saves, signals: "Signals", name: str, save_minutes: float) -> str:
    """Train to the end, with progress and saves; the outcome. Raises as `train` does where a signal says so."""

    def report(step: int, note: str) -> None:
        if signals.stop or signals.save or kept.age() > 60 * save_minutes:
            kept.save(state)
            signals.save = False
            signals.end(f"{name}: stopped at step {step} of {state.steps}, saved: the same command goes on from there")
        bar.update(step - bar.n)
        if note:
            bar.set_postfix_str(note)

    with progress(state.steps, name, state.step) as bar:
        signals.deferred = True  # to the end of a step
        outcome = fit(state, report)
        signals.deferred = False
        if signals.stop or kept.age() > 1:
            kept.save(state)
        signals.end(f"{name}: stopped after the last step, saved: the same command goes on from there")
    return outcome


def _write(out: Path, state: State, result: dict, kept: folder.Saves) -> None:
    """The files of the run, run.json last."""
    config, spectra = state.config, state.spectra()
    scores = {key: state.epochs[-1][key] for key in ("validation_accuracy", "train_loss")}
    if not config.tuning:
        scores["test_loss"], scores["test_accuracy"] = evaluate(state.model, state.data, state.data.test, config)
    result = {**result, "epochs": len(state.epochs), **scores, **_circumstances(state, kept)}
    files.write_text(out / "metrics.csv", folder.table(folder.METRICS, (row.values() for row in state.epochs)))
    if not config.tuning:
        packed = io.BytesIO()  # written by Python: torch.save to a full disk raises no OSError
        content = {"config": config.model_dump(), "model": state.model.state_dict(), "epoch": len(state.epochs)}
        torch.save(content, packed)
        files.write_bytes(out / "checkpoint.pt", packed.getbuffer())
        folder.save_spectra(out / "spectra.npz", spectra)
        files.write_text(out / "ranks.csv", folder.rank_table(spectra))
        for name, rows in (("alignment.csv", state.signals.alignment), ("norms.csv", state.signals.norms)):
            files.write_text(out / name, folder.table(folder.SCALARS, rows))
    for name in (folder.COPY, folder.RESULT):
        files.seal(out / name, result, folder.CANDIDATE if config.tuning else folder.RUN, out)


def _circumstances(state: State, kept: folder.Saves) -> dict:
    """What the run cost, where it was trained, and by which versions."""
    return {
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "seconds": round(kept.elapsed(), 3),
        "train_seconds": round(state.seconds["train"], 3),
        "probe_seconds": round(state.seconds["probes"], 3),
        "images_per_second": round(state.step * state.config.batch_size / state.seconds["train"], 1),
        "memory_mb": peak_memory_mb(state.device),
        "resumed": kept.resumed,
        "started": kept.started,
        "finished": folder.now(),
        "device": device_label(state.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "rankcollapse": rankcollapse.__version__,
        "torch": torch.__version__,
        "code": code(TRAINING),
        "measures": code(MEASURES),
    }


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


class Signals(ExitStack):
    """A context in which SIGTERM and SIGINT end the process in order, and SIGUSR1 asks for a save.

    A first signal ends it at once, but while `deferred`, when `stop` tells the work to save and to call `end`.
    """

    stop, save, deferred = 0, False, False

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # others have no handlers
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                self.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def _handle(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self.save = True
        elif not self.stop:  # a second one, of a scheduler in haste, does not cut off the save
            self.stop = number
            if not self.deferred:
                self.end(f"stopped by {signal.Signals(number).name}: the same command goes on from what is saved")

    def end(self, text: str) -> None:
        """Raise, if a signal to end came, what fits it."""
        if self.stop:
            raise KeyboardInterrupt(text) if self.stop == signal.SIGINT else Stopped(text, self.stop)


def progress(total: int, name: str, done: int = 0) -> tqdm:
    """A context: a bar of `total` steps on standard error, redrawn on a terminal, a line every ten seconds in a log."""
    stream, live = sys.stderr, sys.stderr.isatty()

    def write_line(text: str) -> None:
        with suppress(BrokenPipeError):  # a signal to all of a job ends its log's writer before the training has ended
            if text.strip():
                stream.write(text.strip() + "\n")

    return tqdm(
        total=total, initial=done, desc=name, unit="step", mininterval=0.2 if live else 10.0, dynamic_ncols=live,
        leave=False, ascii=not live, file=stream if live else SimpleNamespace(write=write_line, flush=stream.flush),
        bar_format="{desc}: {percentage:3.0f} % {bar:20} step {n_fmt}/{total_fmt}, {remaining} left{postfix}",
    )  # fmt: skip


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> tuple[nn.Module, RunConfig]:
    """The trained network of a checkpoint and its config. Raises InputError for a file that is not one."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        config = run_config(content["config"])
        model = make_model(config, device)
        model.load_state_dict(content["model"])
    except (OSError, RuntimeError, LookupError, TypeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a readable checkpoint ({reason}): delete its folder to train anew") from error
    return model, config


def reset_peak_memory(device: torch.device) -> None:
    """From here on the peak is that of training, not of what was loaded and converted before."""
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # where the system has no such switch the peak is the whole process's
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb(device: torch.device) -> int:
    """Peak of the process since the reset, or of torch's memory on a GPU, MB."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    with suppress(OSError):
        return round(int(Path("/proc/self/status").read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 1024)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # a Mac counts bytes


def device_label(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor.label()}, {machine.cores()} cores"
