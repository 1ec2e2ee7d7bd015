"""Resuming to the same bits, whatever stops a run; and the lock that keeps a folder to one writer."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rankcollapse import identity, train
from rankcollapse.errors import Stopped
from rankcollapse.experiment import files, folder, job, training

ROOT = Path(__file__).parent.parent
STEPS = 20  # of the run below: two epochs of ten
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
compiles = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
PROBES = {"gradient_every": 3, "gradient_stride": 2, "gradient_window": 4, "signals_every": 1, "epochs": 2}
ARMS = {
    "fa+bn": {"rule": "fa", "normalization": "batch"},
    "fa+both": {"rule": "fa", "normalization": "batch", "optimizer": "muon", "lr": 0.01},
    "fa+whiten": {"rule": "fa", "normalization": "whiten"},
    "kp, augmented": {"rule": "kp", "weight_decay": 0.1, "flip": True, "crop": 1},
    "frozen-fa": {"architecture": "cnn", "width": 4, "normalization": "batch", "rule": "frozen-fa"},
    "fa, top_r, bfloat16, warm-up": {"update": "top_r", "rank": 2, "precision": "bfloat16", "warmup": 1},
    "compiled": {"rule": "fa", "compile": True},
    "a candidate": {"rule": "fa", "tuning": True, "tuning_images": 700, "gradient_every": 0},
    "diverged": {"lr": 1e4, "epochs": 3},
}
BREAKS = [(arm, step) for arm in [*ARMS][:-3] for step in (1, 10, 13)]  # 10 ends the first epoch
BREAKS += [("fa+bn", STEPS)]
BREAKS += [("a candidate", 13), pytest.param("compiled", 13, marks=compiles)]


def bits(out: Path) -> dict[str, bytes]:
    """All of a run folder but run.json, which has times in it."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name in folder.RUN or path.is_dir()}


@pytest.fixture(scope="module")
def whole(tiny, data_dir, tmp_path_factory, device):
    """A function from an arm to its config and to what it leaves when nothing stops it."""
    made = {}

    def of(arm: str):
        if arm not in made:
            config, out = tiny(**{**PROBES, **ARMS[arm]}), tmp_path_factory.mktemp("whole")
            result = train(config, out, data_dir=data_dir, device=device)
            made[arm] = config, bits(out), result
        return made[arm]

    return of


@pytest.fixture
def go(data_dir, tmp_path, device):
    """A function that trains a config in a folder of this test, saving after every step."""

    def run(config, **how):
        return train(config, tmp_path / "run", data_dir=data_dir, device=device, **{"save_minutes": 1e-9, **how})

    return run


@pytest.fixture
def signalled(monkeypatch):
    """A function that has a signal come in the midst of a step, once."""

    def arrange(step: int, number: signal.Signals = signal.SIGTERM) -> None:
        take = training.State.take_step

        def take_step(state, *batch):
            take(state, *batch)
            if state.step == step:
                monkeypatch.setattr(training.State, "take_step", take)
                signal.raise_signal(number)

        monkeypatch.setattr(training.State, "take_step", take_step)

    return arrange


@pytest.fixture
def stop(signalled, go):
    """A function that trains a config until a signal stops it at a step; what was raised."""

    def run(config, step: int, number: signal.Signals = signal.SIGTERM):
        signalled(step, number)
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Stopped) as stopped:
            go(config, save_minutes=60)
        return stopped.value

    return run


# ---- resuming ----


@pytest.mark.parametrize(("arm", "step"), BREAKS)
def test_a_run_that_is_told_to_end_goes_on_to_the_same_bits(whole, stop, go, tmp_path, capsys, arm, step):
    config, expected, result = whole(arm)
    number, handler = signal.SIGINT if step == 13 else signal.SIGTERM, signal.getsignal(signal.SIGINT)
    stopped = stop(config, step, number)
    assert getattr(stopped, "number", signal.SIGINT) == number
    assert f"step {step} of {STEPS}, saved: the same command goes on" in str(stopped)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "run" / "run.json").exists()
    again = go(config)
    assert f"resumed at step {step} of {STEPS}" in capsys.readouterr().err
    assert bits(tmp_path / "run") == expected
    assert again["resumed"] == 1
    for key in ("validation_accuracy", "train_loss", "outcome", "identity", *(() if config.tuning else ["test_loss"])):
        assert again[key] == result[key]


class Killed(BaseException):
    pass


def test_a_run_killed_at_every_step_ends_with_the_same_bits_and_leaves_none_of_its_states(
    whole, go, tmp_path, monkeypatch
):
    """The latest two are kept until then."""
    (config, expected, _), seen, save = whole("fa+both"), [], folder.Saves.save

    def dying(kept, state):
        save(kept, state)
        seen.append([path.name for path in kept._found()])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(folder.Saves, "save", dying)
        for _ in range(STEPS):
            with pytest.raises(Killed):
                go(config)
    assert seen[-1] == ["step00000019.pt", "step00000018.pt"]  # that of step 10 was written twice
    assert go(config)["resumed"] == STEPS
    assert bits(tmp_path / "run") == expected


@pytest.mark.parametrize("arm", ["fa+bn", "diverged"])
def test_a_run_killed_while_its_results_are_written_goes_on_from_its_last_step(whole, go, tmp_path, monkeypatch, arm):
    config, expected, result = whole(arm)

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(job, "_write", killed)
        with pytest.raises(Killed):
            go(config)
    again = go(config)
    assert (again["resumed"], again["outcome"], again["epochs"]) == (1, result["outcome"], result["epochs"])
    assert bits(tmp_path / "run") == expected


@pytest.mark.parametrize(
    ("minutes", "number", "expected"), [(60, None, []), (60, signal.SIGUSR1, [5]), (0, None, None)]
)
def test_state_is_saved_as_often_as_asked_and_on_sigusr1(whole, signalled, go, monkeypatch, minutes, number, expected):
    steps, save = [], folder.Saves.save
    monkeypatch.setattr(folder.Saves, "save", lambda kept, state: (steps.append(state.step), save(kept, state)))
    if number:
        signalled(5, number)
    assert go(whole("fa+bn")[0], save_minutes=minutes)["outcome"] == "finished"
    assert steps == (sorted([*range(1, STEPS + 1), 10, 20]) if expected is None else expected), "and after an epoch"


def flip(path: Path, place: int) -> None:
    made = bytearray(path.read_bytes())
    made[place] ^= 16
    path.write_bytes(made)


@pytest.mark.parametrize(
    ("damage", "resumed"),
    [
        (lambda old, new, rows: flip(new, 5000), True),
        (lambda old, new, rows: flip(new, 3), True),  # in its checksum
        (lambda old, new, rows: new.write_bytes(b""), True),
        (lambda old, new, rows: (flip(new, -1), flip(old, -1)), False),
        (lambda old, new, rows: flip(rows, 10), False),  # both count this row
        (lambda old, new, rows: flip(rows, -10), True),  # the newer one alone counts this row
        (lambda old, new, rows: os.truncate(rows, rows.stat().st_size - 1), True),
        (lambda old, new, rows: rows.unlink(), False),
    ],
    ids=["bit", "checksum", "empty", "both", "an early row", "the last row", "half a row", "no rows"],
)
def test_a_damaged_state_is_named_and_the_one_before_it_serves(whole, stop, go, tmp_path, capsys, damage, resumed):
    config, expected, _ = whole("fa+bn")
    for step in (12, 13):  # a row of gradients is added by step 13
        stop(config, step)
    old, new = sorted((tmp_path / "run" / "state" / identity(config)).glob("step*.pt"))
    damage(old, new, new.with_name("gradients.bin"))
    capsys.readouterr()
    go(config, save_minutes=60)
    told = capsys.readouterr().err
    assert f"{new} is damaged" in told
    assert ("resumed at step 12 of 20" in told) == resumed
    assert bits(tmp_path / "run") == expected


def test_state_of_other_code_is_named_and_not_taken_whatever_its_name(whole, stop, go, tmp_path, capsys, tiny):
    config, expected, _ = whole("fa+bn")
    for name in ("0123456789abcdef", identity(config)):
        stop(tiny(**PROBES, rule="fa", lr=0.5), 5)
        (there,) = (tmp_path / "run" / "state").iterdir()
        there.rename(there.with_name(name))
        capsys.readouterr()
        assert go(config, replace=True)["resumed"] == 0
        assert "not taken" in capsys.readouterr().err
        assert bits(tmp_path / "run") == expected
        shutil.rmtree(tmp_path / "run")


def test_fresh_starts_over_and_replaces_what_is_whole(whole, stop, go, tmp_path):
    config, expected, _ = whole("fa+bn")
    stop(config, 5)
    assert go(config, fresh=True)["resumed"] == 0
    (tmp_path / "run" / "norms.csv").write_text("of no run", encoding="utf-8")
    go(config, fresh=True)
    assert bits(tmp_path / "run") == expected


def test_the_times_of_a_resumed_run_are_those_of_all_its_parts(whole, stop, go, monkeypatch):
    config, _, _ = whole("fa+bn")
    take = training.State.take_step
    monkeypatch.setattr(training.State, "take_step", lambda state, *batch: (time.sleep(0.02), take(state, *batch)))
    stop(config, 15)
    monkeypatch.setattr(training.State, "take_step", take)
    result = go(config, save_minutes=60)
    assert result["seconds"] >= result["train_seconds"] >= 15 * 0.02
    assert result["images_per_second"] <= 20 * 64 / (15 * 0.02)


# ---- the lock ----

HOLD = """
import fcntl, sys
from pathlib import Path
from rankcollapse.experiment import files
def flock(fd, what):
    raise OSError(int(sys.argv[2]), "no locks here")
fcntl.flock = flock if sys.argv[2] != "0" else fcntl.flock
with files.lock(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path, error: int = 0) -> subprocess.Popen:
    """A process that holds a lock until its standard input is closed. `error`: what its file system says of locks."""
    command = [sys.executable, "-W", "ignore", "-c", HOLD, path, str(error)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, cwd=ROOT, **pipes)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    "error", [0, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS], ids=lambda number: errno.errorcode.get(number)
)
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_second_process_waits_for_the_end_of_the_first_and_says_so(tmp_path, monkeypatch, error, killed):
    """However that ends, and where the file system has no locks as well; its file may stay behind."""

    def flock(fd, what):
        raise OSError(error, "no locks here")

    if error:
        monkeypatch.setattr("fcntl.flock", flock)
    path, told = tmp_path / "run" / ".lock", []

    def tell(text):
        told.append(text)
        first.stdin.close()

    with holder(path, error) as first:
        if killed:
            first.kill()
            first.wait()
        with files.lock(path, tell):
            assert first.wait(300) == (-signal.SIGKILL if killed else 0)
    said = f"{path.parent} is being written by another process: waiting until it has ended"
    assert told == [said] or (killed and told == [])
    with files.lock(path, pytest.fail):
        assert path.parent.exists()


def test_two_commands_on_one_folder_train_once_and_both_find_the_run_whole(tiny, tmp_path, data_dir):
    config = tmp_path / "run.json"
    config.write_text(json.dumps({**tiny(**PROBES).model_dump(), "epochs": 30}), encoding="utf-8")
    command = [sys.executable, "-m", "rankcollapse", "train", config, "--out", tmp_path / "run"]
    command += ["--data-dir", data_dir, "--device", "cpu", "--threads", "1"]
    with holder(tmp_path / "run" / ".lock") as first:  # so that both are there before one begins
        both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in "ab"]
        for process in both:
            assert "is being written by another process" in process.stderr.readline()
        first.kill()
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("step 300/300" in text for text in said) == 1
    assert {text.splitlines()[-1].split(": ")[1].split(",")[0] for text in said} == {
        f"test {100 * files.sealed(tmp_path / 'run' / 'run.json')['test_accuracy']:.1f} %"
    }


def test_a_job_that_is_killed_when_it_claims_its_folder_leaves_the_name_of_what_is_saved_there(
    tiny, tmp_path, monkeypatch
):
    config = tiny(lr=0.01)
    folder.claim(tmp_path, config, replace=False)
    (tmp_path / "metrics.csv").touch()

    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder.files, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.claim(tmp_path, config, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
