"""One training job: from a config to the folder of its run, going on from where an earlier one was stopped."""

import contextlib
import io
import os
import pickle
import platform
import resource
import sys
from pathlib import Path

import torch
from torch import nn

import rankcollapse
from rankcollapse import cpu, data, datasets, files, folder, grid, lock, progress, saves, seals, spectra
from rankcollapse.config import RunConfig, run_config
from rankcollapse.errors import InputError
from rankcollapse.training import State, deterministic, evaluate, fit, make_model, pick_device


def train(
    config: RunConfig,
    out: Path | str,
    *,
    data_dir: Path | str = "data",
    device: str = "auto",
    about: dict[str, str] | None = None,
    name: str | None = None,
    save_minutes: float = 5.0,
    replace: bool = False,
    fresh: bool = False,
) -> dict:
    """Train one run and write its folder, showing progress on standard error; return the contents of run.json.

    A whole folder of this config and code is returned as it is, and a run that was stopped goes on, to the same bits;
    `fresh` starts it over. Its state is saved every `save_minutes`, on SIGUSR1, and on SIGTERM and SIGINT, which then
    raise saves.Stopped or KeyboardInterrupt. One process writes a folder: another waits. `about` goes into run.json.
    Raises InputError if `out` holds another config's run, unless `replace`, or for data that cannot be had. A loss that
    blows up is no error: `outcome` is then `diverged`, and what was measured is kept.
    """
    out = Path(out)
    with lock.held(out / ".lock", _tell) as check, saves.Signals() as signals, deterministic():
        files.sweep(out)
        if fresh:
            saves.drop(out)
            for name in (folder.RESULT, folder.COPY):
                (out / name).unlink(missing_ok=True)
        done = folder.finished(out, config, _tell)
        if not done:
            folder.claim(out, config, replace)
            done = _train(config, out, data_dir, device, about or {}, name or str(out), save_minutes, check, signals)
        saves.drop(out)
    return done


def _train(config, out, data_dir, device, about, name, save_minutes, check, signals) -> dict:
    where = pick_device(device)
    converted = _converted(config, Path(data_dir).expanduser())
    kept = saves.Saves(out, grid.identity(config), check)
    state = State(config, data.load(config, converted, where), kept.gradients)
    kept.restore(state, _tell)
    reset_peak_memory(where)

    def report(step: int, note: str) -> None:
        if signals.stop or signals.save or kept.age() > 60 * save_minutes:
            kept.save(state)
            signals.save = False
            signals.end(f"{name}: stopped at step {step} of {state.steps}, saved: the same command goes on from there")
        bar.update(step - bar.n)
        if note:
            bar.set_postfix_str(note)

    with progress.bar(state.steps, name, state.step) as bar:
        with signals.deferred():  # to the end of a step
            outcome = fit(state, report)
        if signals.stop or kept.age() > 1:
            kept.save(state)
        signals.end(f"{name}: stopped after the last step, saved: the same command goes on from there")
    state.probes.finish()
    state.lap("probes")
    check()
    scores = {key: state.epochs[-1][key] for key in ("validation_accuracy", "train_loss")}
    if not config.tuning:
        scores["test_loss"], scores["test_accuracy"] = evaluate(state.model, state.data, state.data.test, config)
    result = {"identity": grid.identity(config), "outcome": outcome, "epochs": len(state.epochs)}
    result |= scores | _cost(state, kept, peak_memory_mb(where)) | _place(where)
    _write(out, config, state, {**about, **result})
    return seals.read(out / folder.RESULT)


def _converted(config: RunConfig, data_dir: Path) -> Path:
    """The folder of the converted set, whole: what was damaged since it was converted is converted anew."""
    folder = datasets.prepare(config.dataset, data_dir, data_dir / "ready")
    if seals.seal_once(folder, datasets.ARRAYS):
        with lock.held(folder / ".lock", _tell):
            for path, what in seals.seal_once(folder, datasets.ARRAYS):  # unless another process was faster
                _tell(f"{path} is {what} since it was sealed: the set is converted anew")
                for name in ("seal.json", *datasets.ARRAYS):
                    (folder / name).unlink(missing_ok=True)
                datasets.prepare(config.dataset, data_dir, data_dir / "ready")
                break
            seals.seal_once(folder, datasets.ARRAYS)
    return folder


def _cost(state: State, kept: "saves.Saves", memory: int) -> dict:
    return {
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "seconds": round(kept.elapsed(), 3),
        "train_seconds": round(state.seconds["train"], 3),
        "probe_seconds": round(state.seconds["probes"], 3),
        "images_per_second": round(state.step * state.config.batch_size / state.seconds["train"], 1),
        "memory_mb": memory,
        "resumed": kept.resumed,
        "started": kept.started,
        "finished": saves.now(),
    }


def _place(where: torch.device) -> dict:
    place = {"device": device_label(where), "threads": torch.get_num_threads(), "python": platform.python_version()}
    code = {"code": grid.training_code(), "measures": folder.measures_code()}
    return place | {"rankcollapse": rankcollapse.__version__, "torch": torch.__version__, **code}


def _write(out: Path, config: RunConfig, state: State, result: dict) -> None:
    probes, metrics = state.probes, [row.values() for row in state.epochs]
    files.write_text(out / "metrics.csv", folder.table(folder.METRICS, metrics))
    if not config.tuning:
        packed = io.BytesIO()  # written by Python: torch.save to a full disk raises no OSError
        content = {"config": config.model_dump(), "model": state.model.state_dict(), "epoch": len(state.epochs)}
        torch.save(content, packed)
        files.write(out / "checkpoint.pt", lambda path: path.write_bytes(packed.getbuffer()))
        spectra.save_spectra(out / "spectra.npz", probes.spectra)
        files.write_text(out / "ranks.csv", folder.rank_table(probes.spectra))
        for name, rows in (("alignment.csv", probes.alignment), ("norms.csv", probes.norms)):
            files.write_text(out / name, folder.table(folder.SCALARS, rows))
    for name in (folder.COPY, folder.RESULT):
        seals.write(out / name, result, folder.CANDIDATE if config.tuning else folder.RUN, out)


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


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def reset_peak_memory(device: torch.device) -> None:
    """From here on the peak is that of training, not of what was loaded and converted before."""
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # where the system has no such switch the peak is the whole process's
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb(device: torch.device) -> int:
    """Peak of the process since the reset, or of torch's memory on a GPU, MB."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    with contextlib.suppress(OSError):
        return round(int(Path("/proc/self/status").read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 1024)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # a Mac counts bytes


def device_label(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu.label()}, {os.cpu_count()} cores"
