import contextlib
import io
import json
import os
import re
import resource
import select
import subprocess
import sys

import pytest
import yaml

from rankcollapse import __main__ as cli
from rankcollapse import gpus
from rankcollapse.__main__ import ProgressBar, main

TRAIN = [sys.executable, "-m", "rankcollapse", "train"]
RUN = {
    "device": "cpu",
    "architecture": "mlp",
    "width": 8,
    "depth": 1,
    "epochs": 1,
    "gradient_every": 0,
    "signals_every": 0,
}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(RUN))
    return path


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def call(*arguments, **options):
    return subprocess.run([*TRAIN, *map(str, arguments)], capture_output=True, text=True, **options)


# ---- train ----


def test_train_writes_the_run_folder_and_ends_with_a_line_of_results(config_file, tmp_path):
    done = call(config_file, "--out", tmp_path / "run", "--name", "small run", "--threads", 1)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "run.json").read_text())
    assert result["outcome"] == "finished"
    assert result["device"].startswith("CPU")
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"small run: test {100 * result['test_accuracy']:.1f} %")
    assert "\r" not in done.stderr


def test_train_reads_its_config_from_standard_input(tmp_path):
    done = call("-", "--out", tmp_path / "run", input=json.dumps({**RUN, "width": 5}))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["width"] == 5


def test_a_bad_config_ends_with_code_2_and_one_line_and_writes_nothing(tmp_path, one_sentence):
    done = call("-", "--out", tmp_path / "run", input="lr: -1")
    assert done.returncode == 2
    one_sentence(done.stderr.removesuffix("\n"), "rankcollapse: run config: lr is -1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [("lr: [", "cannot be read as YAML"), ("- 1", "not a mapping"), ("momentun: 0.9", "did you mean 'momentum'"),
     ("{update: top_r, rank: 99, architecture: mlp, device: cpu}", "rank is 99")],
)  # fmt: skip
def test_bad_input_is_one_line_on_standard_error(tmp_path, capsys, one_sentence, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert main(["train", str(path), "--out", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    one_sentence(err.removesuffix("\n"), "rankcollapse: ", words)
    assert not (tmp_path / "run" / "run.json").exists()


def test_another_configs_folder_is_refused(config_file, tmp_path, capsys, one_sentence):
    out = tmp_path / "run"
    assert main(["train", str(config_file), "--out", str(out)]) == 0
    config_file.write_text(yaml.safe_dump({**RUN, "seed": 7}))
    capsys.readouterr()
    assert main(["train", str(config_file), "--out", str(out)]) == 2
    one_sentence(capsys.readouterr().err.removesuffix("\n"), "seed is 0 there, 7 here")


def test_divergence_is_shouted_but_is_no_error(config_file, tmp_path, capsys):
    config_file.write_text(yaml.safe_dump({**RUN, "lr": 1e6, "rule": "bp"}))
    assert main(["train", str(config_file), "--out", str(tmp_path / "run")]) == 0
    assert "DIVERGED in epoch 1" in capsys.readouterr().err.splitlines()[-1]


def test_bench_prints_two_ratios_for_each_plain_fa_run_of_the_grid(capsys):
    root = os.path.dirname(os.path.dirname(__file__))
    configs = [os.path.join(root, "config.yaml"), os.path.join(root, "tests", "tiny.yaml")]
    assert main(["bench", *configs, "--rounds", "2", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    ratios = [line for line in lines if line.startswith("  ")]
    assert [line[:26].strip() for line in ratios] == ["mlp, fa", "mlp, fa", "all of these"]
    assert all(re.fullmatch(r"\d+\.\d{3} \(\d+\.\d{3} to \d+\.\d{3}\)", line[27:]) for line in ratios)
    assert ratios[1][27:] == ratios[2][27:], "the sum over one network is that network's"


@pytest.mark.parametrize(
    ("arms", "rounds", "words"),
    [({"bp": {"lr": 0.05}}, "2", ["no study has an arm of plain FA"]), ({"fa": {"lr": 0.05}}, "1", ["--rounds is 1"])],
)
def test_bench_refuses_what_it_cannot_time(tmp_path, capsys, one_sentence, arms, rounds, words):
    root = os.path.dirname(os.path.dirname(__file__))
    with open(os.path.join(root, "tests", "tiny.yaml")) as file:
        tiny = yaml.safe_load(file)
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**tiny, "studies": [{**tiny["studies"][0], "arms": arms}]}))
    assert main(["bench", os.path.join(root, "config.yaml"), str(path), "--rounds", rounds, "--device", "cpu"]) == 2
    one_sentence(capsys.readouterr().err.removesuffix("\n"), *words)


def test_bench_names_what_is_wrong_with_a_config(tmp_path, capsys, one_sentence):
    path = tmp_path / "grid.yaml"
    path.write_text("studies: []")
    assert main(["bench", str(path)]) == 2
    one_sentence(capsys.readouterr().err.removesuffix("\n"), "config", "is missing")


def test_help_names_the_commands_and_their_options(capsys):
    for arguments, words in (
        (["--help"], ["train", "bench"]),
        (["train", "--help"], ["CONFIG", "--out DIR", "--gpu-slots"]),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words)


@pytest.mark.parametrize(
    "arguments", [[], ["train"], ["train", "x.yaml"], ["trian"], ["train", "x", "--out", "y", "--threads", "z"]]
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


def test_no_space_ends_with_code_3_and_one_line(config_file, tmp_path, capsys, monkeypatch, one_sentence):
    rename = os.replace

    def full(source, target):
        if "checkpoint" in str(target):
            raise OSError(28, "No space left on device", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert main(["train", str(config_file), "--out", str(tmp_path / "run")]) == 3
    (line,) = errors(capsys.readouterr().err)
    one_sentence(line, "rankcollapse: ", "checkpoint", "No space left on device", "the same command again")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_disk_that_is_full_in_earnest_ends_with_code_3_and_one_line(config_file, tmp_path, one_sentence):
    """The system itself refuses to let a file grow beyond 2 kB, which torch reports in a way of its own."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    done = call(config_file, "--out", tmp_path / "run", preexec_fn=limit)
    assert done.returncode == 3, done.stderr
    (line,) = errors(done.stderr)
    one_sentence(line, "rankcollapse: ", "checkpoint")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_an_out_folder_that_cannot_be_made_ends_with_code_3_and_names_it(config_file, tmp_path, capsys, one_sentence):
    (tmp_path / "file").write_text("")
    assert main(["train", str(config_file), "--out", str(tmp_path / "file" / "run")]) == 3
    one_sentence(capsys.readouterr().err.removesuffix("\n"), "rankcollapse: ", str(tmp_path / "file"))


# ---- the progress bar ----


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_ten_seconds(clock):
    stream = io.StringIO()
    bar = ProgressBar(100, "run", stream)
    for step in range(1, 51):
        clock[0] += 1
        bar(step, "")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[1] == "run [####................]  20 %, step 20/100, 80 s left"
    assert lines[4] == "run [##########..........]  50 %, step 50/100, 50 s left"


def test_a_terminal_gets_one_line_redrawn_in_place(clock):
    stream = Terminal()
    bar = ProgressBar(10, "run", stream)
    for step in range(1, 6):
        clock[0] += 0.25
        bar(step, "")
    bar.close("done")
    text = stream.getvalue()
    assert text.count("\r\033[K") == 6
    assert text.count("\n") == 1
    assert text.endswith("\r\033[Kdone\n")


def test_the_note_of_the_last_epoch_stays_and_the_end_is_always_shown(clock):
    stream = io.StringIO()
    bar = ProgressBar(4, "run", stream, seconds=2)
    clock[0] += 1
    bar(1, "loss 2")
    assert stream.getvalue() == ""
    clock[0] += 1
    bar(2, "")
    assert stream.getvalue().endswith("step 2/4, 2 s left, loss 2\n")
    bar(4, "loss 1")
    assert stream.getvalue().endswith("run [####################] 100 %, step 4/4, 0 s left, loss 1\n")


# ---- one GPU each ----


CLAIM = """
import os, sys
from rankcollapse import gpus
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
