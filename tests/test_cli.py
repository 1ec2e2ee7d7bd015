import contextlib
import io
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from rankcollapse.__main__ import main
from rankcollapse.experiment import cpu, gpus, grid, progress
from rankcollapse.experiment.config import read, run_config

ROOT = Path(__file__).parent.parent
TINY = [str(ROOT / "config.yaml"), str(ROOT / "tests" / "tiny.yaml")]
RUN = {"architecture": "mlp", "width": 8, "depth": 1, "epochs": 1, "gradient_every": 0, "signals_every": 0}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(RUN), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def training(data_dir):
    """A function from a config's path and further arguments to the arguments of `train` on the CPU."""
    return lambda config, *more: ["train", *map(str, [config, *more]), "--data-dir", str(data_dir), "--device", "cpu"]


def call(arguments, **options):
    command = [sys.executable, "-m", "rankcollapse", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", **options)


def result(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def error(capsys):
    """The one line on standard error, and nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rankcollapse: ")
    return err.removesuffix("\n")


# ---- train ----


def test_train_writes_the_run_folder_and_ends_with_a_line_of_results(training, config_file, tmp_path, capsys):
    assert main(training(config_file, "--out", tmp_path / "small run", "--threads", 1)) == 0
    out, err = capsys.readouterr()
    done = result(tmp_path / "small run")
    assert (done["outcome"], done["threads"]) == ("finished", 1)
    assert done["device"] == f"{cpu.label()}, {os.cpu_count()} cores"
    assert out == ""
    assert err.splitlines()[-1].startswith(f"{tmp_path}/small run: test {100 * done['test_accuracy']:.1f} %, ")
    assert "\r" not in err


def test_files_are_utf_8_whatever_the_locale_and_a_config_comes_from_standard_input(training, tmp_path):
    """The folder has a name that the C locale cannot spell."""
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    path = tmp_path / "config.schema.json"
    for more in ([], ["--check"]):
        assert call(["schema", str(path), *more], env=env).returncode == 0
    assert path.read_text(encoding="utf-8") == grid.schema()
    assert not grid.schema().isascii()
    text = "# größe\n" + yaml.safe_dump({**RUN, "width": 5, "rule": "fa"})
    out = tmp_path / "lauf-ü"
    for _ in range(2):  # then its own files are read
        done = call(training("-", "--out", out), input=text, env=env)
        assert done.returncode == 0, done.stderr
    assert run_config(read(out / "config.json")).width == 5
    assert result(out)["outcome"] == "finished"


def test_a_bad_config_ends_with_code_2_and_one_line_and_writes_nothing(training, tmp_path, one_sentence):
    done = call(training("-", "--out", tmp_path / "run"), input="lr: -1")
    assert (done.returncode, done.stdout) == (2, "")
    one_sentence(done.stderr.removesuffix("\n"), "rankcollapse: run config: lr is -1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [("lr: [", "cannot be read as YAML"), ("- 1", "not a mapping"), ("momentun: 0.9", "did you mean 'momentum'"),
     ("{update: top_r, rank: 99, architecture: mlp}", "rank is 99"), ("{lr: 1e-3}", "lr is '1e-3'")],
)  # fmt: skip
def test_bad_input_is_one_line_on_standard_error(training, tmp_path, capsys, one_sentence, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert main(training(path, "--out", tmp_path / "run")) == 2
    one_sentence(error(capsys), words)
    assert not (tmp_path / "run" / "run.json").exists()


def test_another_configs_folder_is_refused(training, config_file, tmp_path, capsys, one_sentence):
    assert main(training(config_file, "--out", tmp_path / "run")) == 0
    config_file.write_text(yaml.safe_dump({**RUN, "seed": 7}), encoding="utf-8")
    capsys.readouterr()
    assert main(training(config_file, "--out", tmp_path / "run")) == 2
    one_sentence(error(capsys), "seed is 0 there, 7 here")


def test_divergence_is_shouted_but_is_no_error(training, config_file, tmp_path, capsys):
    config_file.write_text(yaml.safe_dump({**RUN, "lr": 1e6, "rule": "bp"}), encoding="utf-8")
    assert main(training(config_file, "--out", tmp_path / "run")) == 0
    assert "DIVERGED in epoch 1" in capsys.readouterr().err.splitlines()[-1]


# ---- train, from a plan ----


@pytest.fixture
def plan(tmp_path):
    """The plan of the tests' grid, as a file."""
    path = tmp_path / "plan.json"
    found = grid.grid(grid.overlay(*map(read, TINY)))
    path.write_text(json.dumps(grid.plan(found)), encoding="utf-8")
    return path


NAME = "mlp/digits/bp/seed1"
TUNED = "mlp/digits/fa/seed1"


def test_train_takes_a_run_of_a_plan_with_its_place_and_its_device(training, plan, tmp_path, capsys):
    planned = read(plan)["runs"][NAME]
    arguments = training(plan, "--run", NAME, "--identity", planned["identity"], "--out", tmp_path / "run")
    assert main(arguments[: arguments.index("--device")]) == 0, "the plan says where"
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{NAME}: test ")
    done = result(tmp_path / "run")
    assert (done["study"], done["arm"], done["identity"]) == ("mlp", "bp", planned["identity"])
    assert done["device"] == f"{cpu.label()}, {os.cpu_count()} cores"
    assert read(tmp_path / "run" / "config.json") == planned["config"]


def test_train_takes_a_candidate_of_a_plan_and_tells_its_validation_accuracy(training, plan, tmp_path, capsys):
    name = "mlp/digits/fa/lr0.01/seed7"
    planned = read(plan)["candidates"][name]
    arguments = training(plan, "--run", name, "--identity", planned["identity"], "--out", tmp_path / "run")
    assert main(arguments) == 0
    done = result(tmp_path / "run")
    told = f"{name}: validation {100 * done['validation_accuracy']:.1f} %, "
    assert capsys.readouterr().err.splitlines()[-1].startswith(told)
    assert (done["study"], done["arm"], done["identity"]) == ("mlp", "fa", planned["identity"])
    assert read(tmp_path / "run" / "config.json") == planned["config"]


def test_train_takes_the_choice_that_a_run_of_a_plan_waits_for(
    training, plan, tmp_path, capsys, monkeypatch, one_sentence
):
    monkeypatch.chdir(tmp_path)
    planned = read(plan)["runs"][TUNED]
    arguments = training(plan, "--run", TUNED, "--identity", planned["identity"], "--out", tmp_path / "run")
    assert main(arguments) == 2
    one_sentence(error(capsys), planned["choice"])
    for rate in (0.25, 0.5):
        path = Path(planned["choice"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"lr": rate}), encoding="utf-8")
        assert main(arguments) == 0
        assert read(tmp_path / "run" / "config.json") == {**planned["config"], "lr": rate}
        assert result(tmp_path / "run")["identity"] == grid.identity(run_config({**planned["config"], "lr": rate}))
        shutil.rmtree(tmp_path / "run")


def changed(plan, key, value):
    content = read(plan)
    content["runs"][NAME][key] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, ["--run", "mlp/digits/fa/seed9"], ["plan.json", "'mlp/digits/fa/seed9'", "run snakemake"]),
        (None, ["--run", NAME, "--identity", "of another day"], [NAME, "of another day", "run snakemake"]),
        (lambda plan: yaml.safe_dump(RUN), ["--run", NAME], ["plan.json", NAME]),
        (lambda plan: plan.read_text(encoding="utf-8")[:500], ["--run", NAME], ["plan.json", "cannot be read"]),
        (lambda plan: changed(plan, "config", {"lr": 0}), ["--run", NAME], ["plan.json", NAME, "lr is 0"]),
        (lambda plan: '{"runs": null}', ["--run", NAME], ["plan.json", NAME]),
        (lambda plan: json.dumps({"runs": {NAME: {}}}), ["--run", NAME], ["plan.json", NAME]),
    ],
    ids=["unknown run", "other identity", "no plan", "truncated", "bad config", "no runs", "empty run"],
)
def test_a_plan_without_that_run_is_refused_in_one_line(
    training, plan, tmp_path, capsys, one_sentence, content, options, words
):
    if content:
        plan.write_text(content(plan), encoding="utf-8")
    assert main(training(plan, *options, "--out", tmp_path / "run")) == 2
    one_sentence(error(capsys), *words)
    assert not (tmp_path / "run").exists()


# ---- data, schema ----


def test_data_converts_a_set_and_says_where(tmp_path, capsys, one_sentence):
    arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "ready")]
    assert main(["data", "digits", *arguments]) == 0
    assert capsys.readouterr().err == f"{tmp_path / 'ready' / 'digits'}\n"
    assert (tmp_path / "ready" / "digits" / "images.npy").exists()
    with pytest.raises(SystemExit):
        main(["data", "mnist", *arguments])
    assert "choose from" in capsys.readouterr().err
    assert main(["data", "cifar10", "--no-download", *arguments]) == 2
    one_sentence(error(capsys), str(tmp_path / "cifar-10-batches-py"), "download is false")


def test_schema_writes_the_schema_and_checks_that_it_is_up_to_date(tmp_path, capsys, one_sentence):
    path = tmp_path / "config.schema.json"
    assert main(["schema", str(path), "--check"]) == 2
    one_sentence(error(capsys), str(path))
    assert main(["schema", str(path)]) == main(["schema", str(path), "--check"]) == 0
    assert path.read_text(encoding="utf-8") == grid.schema()
    path.write_text(grid.schema() + " ", encoding="utf-8")
    assert main(["schema", str(path), "--check"]) == 2
    one_sentence(error(capsys), str(path), "make schema")


# ---- arguments ----


def test_help_names_the_commands_and_their_options(capsys):
    for arguments, words in (
        (["--help"], ["train", "data", "schema"]),
        (["train", "--help"], ["CONFIG", "--run NAME", "--identity", "--out DIR", "--data-dir DIR", "--gpu-slots"]),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        ["train", "x.yaml"],
        ["trian"],
        ["train", "x", "--out", "y", "--threads", "z"],
        ["train", "x", "--out", "y", "--device", "gpu"],
    ],
)
def test_bad_arguments_end_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m rankcollapse" in capsys.readouterr().err


def test_a_number_of_threads_below_one_is_refused(training, config_file, tmp_path):
    with contextlib.suppress(SystemExit):  # as argparse refuses
        assert main(training(config_file, "--out", tmp_path / "run", "--threads", "-1")) == 2
    assert not (tmp_path / "run").exists()


# ---- a full disk ----


def errors(text):
    """The lines of a log that are no progress lines."""
    return [line for line in text.splitlines() if not re.search(r"step \d+/\d+", line)]


def test_no_space_ends_with_code_3_and_one_line(training, config_file, tmp_path, capsys, monkeypatch, one_sentence):
    rename = os.replace

    def full(source, target):
        if "checkpoint" in str(target):
            raise OSError(28, "No space left on device", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert main(training(config_file, "--out", tmp_path / "run")) == 3
    (line,) = errors(capsys.readouterr().err)
    one_sentence(line, "rankcollapse: ", "checkpoint", "No space left on device", "the same command again")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "metrics.csv", "state"}


@pytest.mark.parametrize(
    ("knobs", "word"), [({}, "checkpoint|step"), ({"gradient_every": 1}, "large"), ({"gradient_every": 15}, "large")]
)
def test_a_disk_that_is_full_in_earnest_ends_with_code_3_and_one_line(training, tmp_path, one_sentence, knobs, word):
    """The system itself refuses to let a file grow beyond 2 kB: torch has words of its own for it, a buffer waits."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    arguments = training("-", "--out", tmp_path / "run")
    done = call(arguments, input=json.dumps({**RUN, **knobs}), preexec_fn=limit)
    assert done.returncode == 3, done.stderr
    (line,) = errors(done.stderr)
    one_sentence(line, "rankcollapse: ")
    assert re.search(word, line)  # a slow machine saves its state before the end
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"config.json", "metrics.csv", "state"}


@pytest.mark.parametrize("option", ["--out", "--data-dir"])
def test_a_folder_that_cannot_be_made_ends_with_code_3_and_names_it(
    training, config_file, tmp_path, capsys, one_sentence, option
):
    (tmp_path / "file").write_text("", encoding="utf-8")
    options = {"--out": tmp_path / "run", "--device": "cpu", option: tmp_path / "file" / "folder"}
    assert main(["train", str(config_file), *(str(part) for pair in options.items() for part in pair)]) == 3
    one_sentence(error(capsys), str(tmp_path / "file"))


# ---- the progress bar ----


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, steps=40):
    with contextlib.redirect_stderr(stream), progress.bar(steps, "rün") as bar:
        for _ in range(steps // 2):
            bar.update(1)
        bar.set_postfix_str("loss 1.5")
    return stream.getvalue()


def test_a_log_gets_lines_and_not_one_for_every_step():
    lines = shown(io.StringIO(), 1000).splitlines()
    assert 1 < len(lines) < 10
    assert all(line.startswith("rün: ") and "\r" not in line for line in lines)
    assert lines[-1].startswith("rün:  50 %")
    assert "step 500/1000" in lines[-1]
    assert lines[-1].endswith(", loss 1.5")


def test_a_terminal_gets_one_line_redrawn_in_place_that_goes_at_the_end():
    text = shown(Terminal())
    assert "\n" not in text
    assert text.count("\rrün: ") >= 2
    assert "step 20/40" in text
    assert text.endswith("\r")
    assert text.split("\r")[-2].strip() == ""


# ---- one GPU each ----


CLAIM = """
import os, sys
from rankcollapse.experiment import gpus
with gpus.claim(int(sys.argv[1])) as gpu:
    print(gpu, os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def claimant(tmp_path, monkeypatch):
    """A function that starts a process which claims a GPU and holds it until its standard input is closed."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    started = []

    def start(visible, slots=1):
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": visible, "TMPDIR": str(tmp_path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", CLAIM, str(slots)], env=env, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_processes_get_a_gpu_each_and_a_third_waits_for_one(claimant):
    first, second = claimant("3,5"), claimant("3,5")
    held = [process.stdout.readline().split() for process in (first, second)]
    assert sorted(held) == [["3", "3"], ["5", "5"]]
    third = claimant("3,5")
    assert select.select([third.stdout], [], [], 0.5)[0] == []
    second.kill()  # a lock does not outlive its process
    assert third.stdout.readline().split() == held[1]


def admit(waiting, holding, count):
    """Move those that say which GPU they hold from `waiting` to `holding`: `count` will, and then no other does."""
    while ready := select.select([process.stdout for process in waiting], [], [], 60 if count > 0 else 0.7)[0]:
        for process in [process for process in waiting if process.stdout in ready]:
            waiting.remove(process)
            holding[process] = process.stdout.readline().split()[0]
            count -= 1


@pytest.mark.parametrize("slots", [1, 2])
def test_six_processes_never_exceed_the_slots_of_two_gpus_and_all_have_their_turn(claimant, slots):
    """Even where the first to end is killed."""
    waiting, holding, codes = [claimant("0,1", slots) for _ in range(6)], {}, []
    while waiting or holding:
        admit(waiting, holding, min(len(waiting), 2 * slots - len(holding)))
        held = Counter(holding.values())
        assert held == {"0": slots, "1": slots} if waiting else max(held.values()) <= slots
        process = next(iter(holding))
        del holding[process]
        if not codes:
            process.kill()
        process.communicate(timeout=60)  # which closes its standard input
        codes.append(process.returncode)
    assert codes == [-signal.SIGKILL, 0, 0, 0, 0, 0]


def test_every_gpu_is_filled_before_one_is_shared(claimant):
    held = [claimant("0,1", slots=2).stdout.readline().split()[0] for _ in range(4)]
    assert held == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    ("slots", "slurm", "listed"), [(1, "17", "0,1"), (0, None, "0,1"), (1, None, ""), (1, None, "-1")]
)
def test_nothing_is_touched_within_slurm_without_slots_or_without_a_gpu(monkeypatch, tmp_path, slots, slurm, listed):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if slurm:
        monkeypatch.setenv("SLURM_JOB_ID", slurm)
    with gpus.claim(slots) as gpu:
        assert gpu is None
        assert os.environ["CUDA_VISIBLE_DEVICES"] == listed
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_given_back_after_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for _ in range(2):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
        held = []
        with contextlib.suppress(KeyError), gpus.claim(1) as gpu:
            held += [gpu, os.environ["CUDA_VISIBLE_DEVICES"]]
            raise KeyError
        assert held == ["GPU-1234", "GPU-1234"]


def test_gpus_are_counted_with_nvidia_smi_where_no_variable_says_which(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    listing = "GPU 0: A (UUID: x)\n  MIG 1g.10gb Device 0: (UUID: y)\nGPU 1: B (UUID: z)\n"
    monkeypatch.setattr(gpus.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=listing))
    assert gpus.visible() == ["0", "1"]

    def absent(*arguments, **options):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(gpus.subprocess, "run", absent)
    assert gpus.visible() == []
