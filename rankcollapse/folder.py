"""The folder of a run.

    config.json      the resolved config                checkpoint.pt    weights, feedback weights, config
    metrics.csv      loss and accuracy of each epoch    spectra.npz      singular values of all that was probed
    alignment.csv    cosines                            norms.csv        of activations, weights and BP gradients
    run.json         outcome, accuracy, cost, versions; written last

A folder with run.json in it is complete; without, it is not a result. A candidate of the tuning leaves config.json,
metrics.csv and run.json alone, and its run.json has no test accuracy.
"""

import contextlib
import io
import os
import pickle
import platform
import resource
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

import rankcollapse
from rankcollapse import data, datasets, files, grid, probes, progress, spectra
from rankcollapse.config import RunConfig, read, run_config
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
) -> dict:
    """Train one run and write its folder, showing progress on standard error; return the contents of run.json.

    A complete folder of this config and code is returned as it is. `about` goes into run.json. Raises InputError if
    `out` holds another config's run, or for data that cannot be had. A loss that blows up is no error: `outcome` is
    then `diverged`, and what was measured is kept.
    """
    out, start, started = Path(out), time.perf_counter(), _now()
    if done := _claim(out, config):
        return done
    where = pick_device(device)
    folder = datasets.prepare(config.dataset, data_dir, Path(data_dir).expanduser() / "ready")
    with deterministic():
        state = State(config, data.load(config, folder, where), out / "gradients.bin")
        _reset_peak_memory(where)
        with progress.bar(state.steps, name or str(out)) as bar:
            outcome = fit(state, lambda step, note: (bar.update(step - bar.n), note and bar.set_postfix_str(note)))
        state.probes.finish()
        state.lap("probes")
        memory = _peak_memory_mb(where)
        scores = {key: state.epochs[-1][key] for key in ("validation_accuracy", "train_loss")}
        if not config.tuning:
            scores["test_loss"], scores["test_accuracy"] = evaluate(state.model, state.data, state.data.test, config)
    ending = {"identity": grid.identity(config), "outcome": outcome, "epochs": len(state.epochs)}
    cost = {
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "seconds": round(time.perf_counter() - start, 3),
        "train_seconds": round(state.seconds["train"], 3),
        "probe_seconds": round(state.seconds["probes"], 3),
        "images_per_second": round(state.step * config.batch_size / state.seconds["train"], 1),
        "memory_mb": memory,
    }
    times = {"started": started, "finished": _now()}
    place = {"device": device_label(where), "threads": torch.get_num_threads(), "python": platform.python_version()}
    code = {"rankcollapse": rankcollapse.__version__, "torch": torch.__version__, "code": grid.training_code()}
    result = {**(about or {}), **ending, **scores, **cost, **times, **place, **code}
    _write(out, config, state, result)
    return result


def _write(out: Path, config: RunConfig, state: State, result: dict) -> None:
    files.write_text(out / "metrics.csv", _csv(state.epochs[0], [row.values() for row in state.epochs]))
    if not config.tuning:
        packed = io.BytesIO()  # written by Python: torch.save to a full disk raises no OSError
        content = {"config": config.model_dump(), "model": state.model.state_dict(), "epoch": len(state.epochs)}
        torch.save(content, packed)
        files.write(out / "checkpoint.pt", lambda path: path.write_bytes(packed.getbuffer()))
        spectra.save_spectra(out / "spectra.npz", state.probes.spectra)
        files.write_text(out / "alignment.csv", _csv(probes.SCALARS, state.probes.alignment))
        files.write_text(out / "norms.csv", _csv(probes.SCALARS, state.probes.norms))
    files.write_json(out / "run.json", result)


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


def _claim(out: Path, config: RunConfig) -> dict | None:
    """Make the run folder this config's. The stored result if it is complete; InputError if it is another config's."""
    there, here = out / "config.json", config.model_dump()
    if there.exists():
        found = {**RunConfig().model_dump(), **read(there)}  # a knob that is newer than the folder was at its default
        for key in sorted({*found, *here}):
            if found.get(key) != here.get(key):
                other = f"another config ({key} is {found.get(key)!r} there, {here.get(key)!r} here)"
                raise InputError(f"{out} holds the run of {other}: choose another folder, or delete that one")
        done = read(out / "run.json") if (out / "run.json").exists() else {}
        if done.get("identity") == grid.identity(config):
            return done
    files.write_json(there, here)
    return None


def _csv(columns: Iterable[str], rows: Iterable[Iterable]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in [columns, *rows])


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _reset_peak_memory(device: torch.device) -> None:
    """From here on the peak is that of training, not of what was loaded and converted before."""
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # where the system has no such switch the peak is the whole process's
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_memory_mb(device: torch.device) -> int:
    """Peak of the process since the reset, or of torch's memory on a GPU, MB."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    with contextlib.suppress(OSError):
        return round(int(Path("/proc/self/status").read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 1024)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # a Mac counts bytes


def device_label(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
