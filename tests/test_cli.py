"""The command line: what a command writes, what it says, and the code with which it ends."""

import contextlib
import io
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rankcollapse.__main__ import main
from rankcollapse.errors import Stopped
from rankcollapse.experiment import files, grid, job, machine
from rankcollapse.experiment import plan as planning
from rankcollapse.experiment.config import read, run_config
from rankcollapse.library import processor

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
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT, **options)


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
    assert done["device"] == f"{processor.label()}, {machine.cores()} cores"
    assert out == ""
    assert err.splitlines()[-1].startswith(f"{tmp_path}/small run: test {100 * done['test_accuracy']:.1f} %, ")
    assert "\r" not in err


def test_files_are_utf_8_whatever_the_locale_and_a_config_comes_from_standard_input(training, tmp_path):
    """The folder has a name that the C locale cannot spell."""
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    text = "# größe\n" + yaml.safe_dump({**RUN, "width": 5, "rule": "fa"})
    out = tmp_path / "lauf-ü"
    done = call(training("-", "--out", out), input=text, env=env)
    assert done.returncode == 0, done.stderr
    assert run_config(read(out / "config.json")).width == 5
    assert result(out)["outcome"] == "finished"


def test_a_bad_config_ends_with_code_2_and_one_line_and_writes_nothing(training, tmp_path, one_sentence):
    done = call(training("-", "--out", tmp_path / "run"), input="lr: -1")
    assert (done.returncode, done.stdout) == (2, "")
    one_sentence(done.stderr.removesuffix("\n"), "rankcollapse: run config: lr is -1")
    assert list(tmp_path.iterdir()) == []


def test_divergence_is_shouted_but_is_no_error(training, config_file, tmp_path, capsys):
    config_file.write_text(yaml.safe_dump({**RUN, "lr": 1e6, "rule": "bp"}), encoding="utf-8")
    assert main(training(config_file, "--out", tmp_path / "run")) == 0
    assert "DIVERGED in epoch 1" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("stop", "code"), [(Stopped("told to end", 15), 143), (KeyboardInterrupt("told to end"), 130)])
def test_a_signal_ends_it_with_its_code_and_one_line(training, config_file, tmp_path, capsys, monkeypatch, stop, code):
    def stopped(*arguments, **options):
        raise stop

    monkeypatch.setattr(job, "train", stopped)
    assert main(training(config_file, "--out", tmp_path / "run")) == code
    assert error(capsys) == "rankcollapse: told to end"


# ---- train, from a plan ----


@pytest.fixture
def plan(tmp_path, data_dir):
    """The plan of the tests' grid, as a file; of all that one may set to train, nothing is at its default."""
    path, config = tmp_path / "plan.json", grid.overlay(*map(read, TINY))
    found = grid.grid({**config, "data_dir": str(data_dir), "download": False, "gpu_slots": 2, "save_minutes": 7.5})
    planned = {"candidates": planning.candidates(found, "cpu"), "runs": planning.runs(found, "cpu", {})}
    planning.write(path, found, "cpu", str(data_dir / "ready"), **planned)
    return path


NAME, CANDIDATE = "mlp/digits/bp/seed1", "mlp/digits/fa/lr0.01/seed7"


@pytest.mark.parametrize(("part", "name"), [("runs", NAME), ("candidates", CANDIDATE)])
def test_train_reads_all_of_a_run_of_a_plan_from_it(plan, data_dir, tmp_path, capsys, monkeypatch, part, name):
    """And its identity: where the grid asks for the precision `auto`, that of `auto`."""
    content, trained, train = read(plan), [], job.train
    planned = content[part][name]
    planned["identity"] = "of auto"
    files.write_json(plan, content)
    monkeypatch.setattr(job, "train", lambda *args, **how: trained.append(how) or train(*args, **how))
    for _ in range(2):
        assert main(["train", str(plan), "--run", name, "--out", str(tmp_path / "run")]) == 0
    (how,) = trained
    expected = {"data_dir": str(data_dir), "download": False, "device": "cpu", "save_minutes": 7.5}
    expected |= {"as_planned": planned["identity"], "about": {"study": "mlp", "arm": planned["arm"]}, "name": name}
    assert {key: how[key] for key in expected} == expected
    done, said = result(tmp_path / "run"), capsys.readouterr().err.splitlines()
    split = "test" if part == "runs" else "validation"
    assert said[-1].startswith(f"{name}: {split} {100 * done[f'{split}_accuracy']:.1f} %")
    assert said[-2] == f"{name} is there already, whole"
    assert {key: done[key] for key in ("study", "arm", "identity")} == {
        key: planned[key] for key in ("study", "arm", "identity")
    }
    assert read(tmp_path / "run" / "config.json") == planned["config"]


def test_the_run_of_a_plan_takes_the_place_of_another_in_its_folder(plan, tmp_path, config_file, training):
    assert main(training(config_file, "--out", tmp_path / "run")) == 0
    assert main(["train", str(plan), "--run", NAME, "--out", str(tmp_path / "run")]) == 0
    assert result(tmp_path / "run")["identity"] == read(plan)["runs"][NAME]["identity"]


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (None, "mlp/digits/fa/seed9", ["plan.json", "'mlp/digits/fa/seed9'", "run snakemake"]),
        (lambda text: yaml.safe_dump(RUN), NAME, ["plan.json", "must be a plan"]),
        (lambda text: text[:500], NAME, ["plan.json", "cannot be read"]),
        (lambda text: text.replace('"lr": 0.05', '"lr": 0'), NAME, ["plan.json", NAME, "lr is 0"]),
        (lambda text: '{"candidates": {}, "runs": null}', NAME, ["plan.json", "has no runs"]),
    ],
    ids=["unknown run", "no plan", "truncated", "bad config", "no runs"],
)
def test_a_plan_without_that_run_is_refused_in_one_line(plan, tmp_path, capsys, one_sentence, change, name, words):
    if change:
        plan.write_text(change(plan.read_text(encoding="utf-8")), encoding="utf-8")
    assert main(["train", str(plan), "--run", name, "--out", str(tmp_path / "run")]) == 2
    one_sentence(error(capsys), *words)
    assert not (tmp_path / "run").exists()


def test_check_sees_whether_the_network_and_the_update_of_every_run_can_be_made(plan, capsys, one_sentence):
    assert main(["check", str(plan)]) == 0
    assert capsys.readouterr() == ("", "")
    made = plan.read_text(encoding="utf-8")
    for change, words in (('"rank": 2', "rank is 99"), ('"learning_blocks": null', "learning_blocks is 99")):
        key = change.split(":")[0]
        plan.write_text(made.replace(change, f"{key}: 99"), encoding="utf-8")
        assert main(["check", str(plan)]) == 2
        one_sentence(error(capsys), words)


# ---- data, schema ----


def test_data_converts_a_set_and_says_where(tmp_path, capsys, one_sentence):
    arguments = ["--data-dir", str(tmp_path), "--ready", str(tmp_path / "ready")]
    assert main(["data", "digits", *arguments]) == 0
    assert capsys.readouterr().err == f"{tmp_path / 'ready' / 'digits'}\n"
    assert (tmp_path / "ready" / "digits" / "images.npy").exists()
    assert main(["data", "cifar10", "--no-download", *arguments]) == 2
    one_sentence(error(capsys), str(tmp_path / "cifar-10-batches-py"), "download is false")


def test_schema_writes_the_schema_and_checks_that_it_is_up_to_date(tmp_path, capsys, one_sentence):
    path = tmp_path / "config.schema.json"
    assert main(["schema", str(path)]) == main(["schema", str(path), "--check"]) == 0
    assert path.read_text(encoding="utf-8") == grid.schema()
    path.write_text(grid.schema() + " ", encoding="utf-8")
    assert main(["schema", str(path), "--check"]) == 2
    one_sentence(error(capsys), str(path), "make schema")


# ---- arguments ----


@pytest.mark.parametrize(
    "arguments",
    [[], ["train", "x"], ["trian"], ["data", "mnist"], ["train", "x", "--out", "y", "--threads", "-1"]],
    ids=" ".join,
)
def test_bad_arguments_end_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m rankcollapse" in capsys.readouterr().err


# ---- a full disk ----


def errors(text):
    """The lines of a log that are no progress lines."""
    return [line for line in text.splitlines() if not re.search(r"step \d+/\d+", line)]


@pytest.mark.parametrize(("knobs", "word"), [({}, "checkpoint|step"), ({"gradient_every": 1}, "large")])
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
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock", "config.json", "metrics.csv", "state"}


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


def shown(stream, steps):
    with contextlib.redirect_stderr(stream), job.progress(steps, "rün") as bar:
        for _ in range(steps // 2):
            bar.update(1)
        bar.set_postfix_str("loss 1.5")
    return stream.getvalue()


def test_a_log_gets_lines_and_not_one_for_every_step_and_a_terminal_one_line_that_goes_at_the_end():
    lines = shown(io.StringIO(), 1000).splitlines()
    assert 1 < len(lines) < 10
    assert all(line.startswith("rün: ") and "\r" not in line for line in lines)
    assert re.fullmatch(r"rün:  50 % .*step 500/1000.*, loss 1\.5", lines[-1])
    text = shown(Terminal(), 40)
    assert "\n" not in text
    assert text.count("\rrün: ") >= 2
    assert "step 20/40" in text
    assert text.endswith("\r")
    assert text.split("\r")[-2].strip() == ""
