"""Resuming to the same bits, whatever stops a run; and the lock that keeps a folder to one writer."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from rankcollapse import identity, train
from rankcollapse.errors import Stopped
from rankcollapse.experiment import files, folder, job, training

ROOT = Path(__file__).parent.parent
STEPS = 20  # of the run below: two epochs of ten
PROBES = {"gradient_every": 3, "gradient_stride": 2, "gradient_window": 4, "signals_every": 1, "epochs": 2}
ARMS = {
    "fa+bn": {"rule": "fa", "normalization": "batch"},
    "fa+both": {"rule": "fa", "normalization": "batch", "optimizer": "muon", "lr": 0.01},
    "kp, augmented": {"rule": "kp", "weight_decay": 0.1, "flip": True, "crop": 1},
    "diverged": {"lr": 1e4, "epochs": 3},
    "warm-up": {"warmup": 1},
    "a candidate": {"rule": "fa", "tuning": True, "tuning_images": 700, "gradient_every": 0},
}


def bits(out: Path) -> dict[str, bytes]:
    """All of a run folder but run.json, which has times in it."""
    return {
        path.name: path.read_bytes() for path in out.iterdir() if path.name not in ("run.json", ".run.json", ".lock")
    }


@pytest.fixture(scope="module")
def whole(tiny, data_dir, tmp_path_factory):
    """A function from an arm to its config and to what it leaves when nothing stops it."""
    made = {}

    def of(arm: str):
        if arm not in made:
            config, out = tiny(**{**PROBES, **ARMS[arm]}), tmp_path_factory.mktemp("whole")
            result = train(config, out, data_dir=data_dir, device="cpu")
            made[arm] = config, bits(out), result
        return made[arm]

    return of


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
def go(data_dir, tmp_path):
    """A function that trains a config in a folder of this test, saving after every step."""

    def run(config, **how):
        return train(config, tmp_path / "run", data_dir=data_dir, device="cpu", **{"save_minutes": 1e-9, **how})

    return run


# ---- resuming ----


@pytest.mark.parametrize("step", [1, 10, 13, STEPS])  # 10 ends the first epoch
@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "diverged"])
def test_a_run_that_is_told_to_end_goes_on_to_the_same_bits(whole, signalled, go, tmp_path, capsys, arm, step):
    config, expected, result = whole(arm)
    signalled(step)
    with pytest.raises(Stopped) as stopped:
        go(config, save_minutes=60)
    assert stopped.value.number == signal.SIGTERM
    assert f"step {step} of {STEPS}, saved: the same command goes on" in str(stopped.value)
    assert not (tmp_path / "run" / "run.json").exists()
    again = go(config)
    assert f"resumed at step {step} of {STEPS}" in capsys.readouterr().err
    assert bits(tmp_path / "run") == expected
    assert again["resumed"] == 1
    for key in ("validation_accuracy", "train_loss", "outcome", "identity", *(() if config.tuning else ["test_loss"])):
        assert again[key] == result[key]


def test_a_run_killed_at_every_step_ends_with_the_same_bits(whole, go, tmp_path, monkeypatch):
    config, expected, _ = whole("fa+both")

    class Killed(BaseException):
        pass

    save = folder.Saves.save

    def dying(kept, state):
        save(kept, state)
        raise Killed

    for _ in range(STEPS):
        monkeypatch.setattr(folder.Saves, "save", dying)
        with pytest.raises(Killed):
            go(config)
    monkeypatch.setattr(folder.Saves, "save", save)
    assert go(config)["resumed"] == STEPS
    assert bits(tmp_path / "run") == expected


@pytest.mark.parametrize("arm", ["fa+bn", "diverged"])
def test_a_run_killed_while_its_results_are_written_goes_on_from_its_last_step(whole, go, tmp_path, monkeypatch, arm):
    config, expected, result = whole(arm)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            go(config)
    again = go(config)
    assert again["resumed"] == 1
    assert (again["outcome"], again["epochs"]) == (result["outcome"], result["epochs"])
    assert bits(tmp_path / "run") == expected


def test_a_keyboard_interrupt_saves_and_is_one(whole, signalled, go, tmp_path):
    config, expected, _ = whole("fa+bn")
    handler = signal.getsignal(signal.SIGINT)
    signalled(5, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step 5 of 20"):
        go(config, save_minutes=60)
    assert signal.getsignal(signal.SIGINT) is handler
    assert go(config)["resumed"] == 1
    assert bits(tmp_path / "run") == expected


def test_sigusr1_saves_and_training_goes_on(whole, signalled, go, tmp_path, monkeypatch):
    config, expected, _ = whole("fa+bn")
    steps, save = [], folder.Saves.save
    monkeypatch.setattr(folder.Saves, "save", lambda kept, state: (steps.append(state.step), save(kept, state)))
    signalled(5, signal.SIGUSR1)
    assert go(config, save_minutes=60)["outcome"] == "finished"
    assert steps == [5]
    assert bits(tmp_path / "run") == expected


def test_state_is_saved_as_often_as_asked_the_latest_two_are_kept_and_none_at_the_end(whole, go, tmp_path, monkeypatch):
    config, _, _ = whole("fa+bn")
    seen, save = [], folder.Saves.save

    def watched(kept, state):
        save(kept, state)
        seen.append([path.name for path in kept._found()])

    monkeypatch.setattr(folder.Saves, "save", watched)
    go(config)
    assert len(seen) == STEPS + 2  # and after each epoch
    assert seen[-1] == ["step00000020.pt", "step00000019.pt"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*folder.RUN, "run.json", ".run.json", ".lock"}
    seen.clear()
    train(config, tmp_path / "seldom", device="cpu", data_dir=tmp_path, save_minutes=5)
    assert seen == []


def state_of(config, out: Path) -> list[Path]:
    return sorted((out / "state" / identity(config)).glob("step*.pt"))


def flip(path: Path, place: int) -> None:
    made = bytearray(path.read_bytes())
    made[place] ^= 16
    path.write_bytes(made)


@pytest.mark.parametrize(
    ("damage", "resumed"),
    [
        (lambda old, new, rows: flip(new, 5000), 12),
        (lambda old, new, rows: flip(new, 3), 12),  # in its checksum
        (lambda old, new, rows: new.write_bytes(b""), 12),
        (lambda old, new, rows: (flip(new, -1), old.unlink()), None),
        (lambda old, new, rows: (flip(new, -1), flip(old, -1)), None),
        (lambda old, new, rows: flip(rows, 10), None),  # both count this row
        (lambda old, new, rows: flip(rows, -10), 12),  # the newer one alone counts this row
        (lambda old, new, rows: os.truncate(rows, rows.stat().st_size - 1), 12),
        (lambda old, new, rows: rows.unlink(), None),
    ],
    ids=["bit", "checksum", "empty", "only one", "both", "an early row", "the last row", "half a row", "no rows"],
)
def test_a_damaged_state_is_named_and_the_one_before_it_serves(
    whole, signalled, go, tmp_path, capsys, monkeypatch, damage, resumed
):
    config, expected, _ = whole("fa+bn")
    for step in (12, 13):  # a row of gradients is added by step 13
        signalled(step)
        with pytest.raises(Stopped):
            go(config, save_minutes=60)
    old, new = state_of(config, tmp_path / "run")
    damage(old, new, new.with_name("gradients.bin"))
    capsys.readouterr()
    go(config, save_minutes=60)
    told = capsys.readouterr().err
    assert f"{new} is damaged" in told
    assert ("resumed at step 12 of 20" in told) == (resumed is not None)
    assert bits(tmp_path / "run") == expected


def test_state_of_other_code_is_named_and_not_taken(whole, signalled, go, tmp_path, capsys, monkeypatch):
    config, expected, _ = whole("fa+bn")
    signalled(5)
    with pytest.raises(Stopped):
        go(config, save_minutes=60)
    (there,) = (tmp_path / "run" / "state").iterdir()
    other = there.rename(there.with_name("0123456789abcdef"))
    capsys.readouterr()
    assert go(config)["resumed"] == 0
    assert f"{other} is the state of another config or code, and is not taken" in capsys.readouterr().err
    assert bits(tmp_path / "run") == expected


def test_state_that_was_put_under_another_name_is_not_taken(whole, signalled, go, tmp_path, capsys, tiny):
    config, expected, _ = whole("fa+bn")
    signalled(5)
    with pytest.raises(Stopped):
        train(tiny(**PROBES, rule="fa", lr=0.5), tmp_path / "other", data_dir=tmp_path, device="cpu")
    (tmp_path / "run" / "state").mkdir(parents=True)
    (there,) = (tmp_path / "other" / "state").iterdir()
    there.rename(tmp_path / "run" / "state" / identity(config))
    assert go(config)["resumed"] == 0
    assert "not taken" in capsys.readouterr().err
    assert bits(tmp_path / "run") == expected


def test_fresh_starts_over_and_replaces_what_is_whole(whole, signalled, go, tmp_path):
    config, expected, _ = whole("fa+bn")
    signalled(5)
    with pytest.raises(Stopped):
        go(config, save_minutes=60)
    first = go(config, fresh=True)
    assert first["resumed"] == 0
    (tmp_path / "run" / "norms.csv").write_text("of no run", encoding="utf-8")
    assert files.sealed(tmp_path / "run" / "run.json") == first
    go(config, fresh=True)
    assert bits(tmp_path / "run") == expected


def test_the_times_of_a_resumed_run_are_those_of_all_its_parts(whole, signalled, go, monkeypatch):
    config, _, _ = whole("fa+bn")
    monkeypatch.setattr(job, "evaluate", lambda *args: time.sleep(0.1) or (1.0, 0.5))
    take = training.State.take_step
    monkeypatch.setattr(training.State, "take_step", lambda state, *batch: (time.sleep(0.02), take(state, *batch)))
    signalled(15)
    with pytest.raises(Stopped):
        go(config, save_minutes=60)
    result = go(config, save_minutes=60)
    assert result["train_seconds"] >= 20 * 0.02
    assert result["seconds"] >= result["train_seconds"] + 0.1
    assert result["images_per_second"] <= 64 / 0.02


# ---- the lock ----

HOLD = """
import sys, time
from pathlib import Path
from rankcollapse.experiment import files
if len(sys.argv) > 3:
    import fcntl
    def flock(fd, what):
        raise OSError(int(sys.argv[3]), "no locks here")
    fcntl.flock = flock
with files.lock(Path(sys.argv[1]), lambda text: print(text, flush=True)):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(path: Path, seconds: float, *error: int) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", "-c", HOLD, path, str(seconds), *map(str, error)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("error", [None, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS], ids=str)
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_second_process_waits_for_the_end_of_the_first_and_says_so(tmp_path, monkeypatch, error, killed):
    """However that ends, and where the file system has no locks as well; the file may stay behind."""
    if error:

        def flock(fd, what):
            raise OSError(error, "no locks here")

        monkeypatch.setattr("fcntl.flock", flock)
    path, told = tmp_path / "run" / ".lock", []
    with holder(path, 60 if killed else 0.3, *([error] if error else [])) as first:
        if killed:
            first.kill()
            first.wait()
        with files.lock(path, told.append):
            assert first.poll() is not None or first.wait(1) == 0
    said = f"{path.parent} is being written by another process: waiting until it has ended"
    assert told == [said] or (killed and told == [])
    with files.lock(path, told.append):
        assert told in ([said], [])


def test_a_lock_that_cannot_be_made_names_the_folder(tmp_path, monkeypatch):
    def denied(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path / "run" / ".lock"))

    monkeypatch.setattr(filelock.FileLock, "acquire", denied)
    with pytest.raises(PermissionError) as caught, files.lock(tmp_path / "run" / ".lock", print):
        pass
    assert caught.value.filename == str(tmp_path / "run")


def test_two_commands_on_one_folder_train_once_and_both_find_the_run_whole(tiny, tmp_path, data_dir):
    config = tmp_path / "run.json"
    config.write_text(json.dumps({**tiny(**PROBES).model_dump(), "epochs": 30}), encoding="utf-8")
    command = [sys.executable, "-m", "rankcollapse", "train", config, "--out", tmp_path / "run"]
    command += ["--data-dir", data_dir, "--device", "cpu", "--threads", "1"]
    with holder(tmp_path / "run" / ".lock", 60) as first:  # so that both are there before one begins
        both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in "ab"]
        for process in both:
            assert "is being written by another process" in process.stderr.readline()
        first.kill()
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("step 300/300" in text for text in said) == 1
    assert {text.splitlines()[-1].split(": ")[1].split(",")[0] for text in said} == {
        f"test {100 * files.sealed(tmp_path / 'run' / 'run.json')['test_accuracy']:.1f} %"
    }
