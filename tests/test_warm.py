"""Jobs forked from a process that has loaded their libraries: the same as `python -m ...`, in all that can be seen."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARENT = "import sys, warm; print(*(warm.start(1) or ['none']), sep='\\n', end='\\n\\n', flush=True); sys.stdin.read()"
PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="jobs are forked on Linux alone")


def wait_for_the_end(pid):
    deadline = time.monotonic() + 300
    while Path(f"/proc/{pid}/cwd").exists():  # one that has ended and that nobody has asked after has none
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Server:
    """A process that forks, the process it serves, and a folder for modules."""

    def __init__(self, folder):
        self.folder, env = folder, {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT / "workflow")}
        self.parent = subprocess.Popen([sys.executable, "-c", PARENT], text=True, env=env, **PIPES)
        self.command = [*iter(lambda: self.parent.stdout.readline().strip(), "")]
        children = Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").read_text(encoding="ascii")
        self.pid = int(children or 0)

    def start(self, text, *arguments):
        """A command that runs the module of this text."""
        name = f"told{time.monotonic_ns()}"
        (self.folder / f"{name}.py").write_text(text, encoding="utf-8")
        return subprocess.Popen([*self.command, "-m", name, *arguments], cwd=self.folder, text=True, **PIPES)

    def end(self):
        self.parent.kill()
        self.parent.communicate()
        wait_for_the_end(self.pid or self.parent.pid)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("s"))
    yield made
    made.end()


TELLING = """
import json, os, sys, beside
print(json.dumps([sys.argv, os.getcwd(), dict(os.environ), sys.stdin.read(), __name__, beside.__file__, sys.path]))
sys.exit("to stderr")
"""


def test_a_fork_has_the_arguments_folder_environment_streams_and_paths_of_its_command(shared, tmp_path):
    (tmp_path / "beside.py").write_text("", encoding="utf-8")
    (tmp_path / "telling.py").write_text(TELLING, encoding="utf-8")
    for path in ("", str(ROOT)):
        how = {"cwd": tmp_path, "env": {**os.environ, "WORD": "ä\udcff", "PYTHONPATH": path}, "capture_output": True}
        words = ["-m", "telling", "a b", "--c"]
        commands = ([*python, *words] for python in ([sys.executable], shared.command))
        cold, warm = (subprocess.run(command, text=True, input="given", **how) for command in commands)
        assert (warm.returncode, warm.stdout, warm.stderr) == (1, cold.stdout, cold.stderr)
        assert json.loads(warm.stdout)[3] == "given"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [("pass", 0, ""), ("import sys; sys.exit(None)", 0, ""), ("import sys; sys.exit('a sentence')", 1, "a sentence"),
     ("1 / 0", 1, "ZeroDivisionError"), ("raise KeyboardInterrupt", 130, ""), ("import os; os.abort()", 137, ""),
     ("import atexit, sys; atexit.register(print, 'at the end', file=sys.stderr)", 0, "at the end")],
)  # fmt: skip
def test_a_command_ends_as_its_fork_does(shared, text, code, said):
    process = shared.start(text)
    assert said in process.communicate(timeout=300)[1]
    assert process.returncode == code


def test_libraries_are_there_already_nothing_of_this_project_is_and_a_fork_is_named_by_its_arguments(shared):
    text = "import os, sys\nprint(*(any(m.split('.')[0] == n for m in sys.modules) for n in sys.argv[3].split()))\n"
    text += "print(os.popen(f'ps -o comm= {os.getpid()}').read().strip())"
    for *words, library in (["train", "results/x", "torch"], ["figure", "accuracy", "pandas"]):
        said = shared.start(text, *words, f"{library} rankcollapse").communicate(timeout=300)[0]
        assert said == f"True False\n{' '.join(words)}\n"


def test_a_run_trained_in_a_fork_has_the_bits_of_one_that_is_not(shared, tiny, data_dir, tmp_path):
    config = tiny(rule="fa", normalization="batch", optimizer="muon", lr=0.01, epochs=2, gradient_every=3)
    (tmp_path / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    words = f"-m rankcollapse train {tmp_path}/config.json --data-dir {data_dir} --threads 1".split()
    for name, command in {"warm": shared.command, "cold": [sys.executable]}.items():
        subprocess.run([*command, *words, "--out", tmp_path / name], check=True, capture_output=True, cwd=ROOT)
    names = {path.name for path in (tmp_path / "cold").iterdir()}
    assert {path.name for path in (tmp_path / "warm").iterdir()} == names >= {"checkpoint.pt", "spectra.npz"}
    for name in names - {"run.json", ".run.json"}:
        assert (tmp_path / "warm" / name).read_bytes() == (tmp_path / "cold" / name).read_bytes(), name


def test_without_anybody_who_answers_and_for_what_is_no_module_the_command_is_python_itself(shared, tmp_path):
    text = "import sys; print(sys.argv[1:], 'torch' in sys.modules); sys.exit(3)"
    (tmp_path / "told.py").write_text(text, encoding="utf-8")
    for command in ([*shared.command[:-1], tmp_path / "none", "-m", "told"], [*shared.command, "-c", text]):
        done = subprocess.run([*command, "a"], capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (3, "['a'] False\n")


def test_where_the_folder_for_temporary_files_has_too_long_a_name_there_is_no_server(tmp_path):
    (tmp_path / ("long" * 25)).mkdir()
    made = Server(tmp_path / ("long" * 25))
    made.end()
    assert (made.command, [*made.folder.iterdir()]) == (["none"], [])


WAITING = """
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda number, frame: print("saved", flush=True))
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
try:
    print(os.getpid(), flush=True)
    time.sleep(300)
except KeyboardInterrupt:
    print("interrupted")
"""


def ends(process, number):
    """What it says, and its exit status, after a signal."""
    process.send_signal(number)
    return *process.communicate(timeout=300), process.returncode


def test_signals_are_passed_on_and_an_interrupt_is_python_s_own(shared):
    for number, end in {signal.SIGTERM: ("", "", 143), signal.SIGINT: ("interrupted\n", "", 0)}.items():
        process = shared.start(WAITING)
        process.stdout.readline()
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "saved\n"
        assert ends(process, number) == end


def test_a_fork_dies_with_its_command_and_the_command_with_its_fork(shared):
    first, second = shared.start(WAITING), shared.start(WAITING)
    forks = [int(process.stdout.readline()) for process in (first, second)]
    first.kill()
    wait_for_the_end(forks[0])
    os.kill(forks[1], signal.SIGKILL)
    assert [process.communicate(timeout=300) and process.returncode for process in (first, second)] == [-9, 137]


def test_a_command_that_is_killed_as_soon_as_it_has_asked_does_the_others_no_harm(shared):
    wanted = json.dumps([["-m", "told"], str(shared.folder), dict(os.environ)]).encode()
    for part in (wanted, wanted[:9], b""):  # the first loads libraries meanwhile
        with socket.socket(socket.AF_UNIX) as client, open(os.devnull) as null:
            client.connect(shared.command[-1])
            socket.send_fds(client, [struct.pack("!I", len(wanted))], [null.fileno()] * 3)
            client.sendall(part)
    assert shared.start("import os; print(os.getppid())").communicate(timeout=300)[0] == f"{shared.pid}\n"


def test_many_at_once_each_have_their_own(shared):
    text = "import sys, time; time.sleep(0.2); print(sys.argv[1]); sys.exit(int(sys.argv[1]))"
    started = [shared.start(text, str(i)) for i in range(20)]
    assert [process.communicate(timeout=300)[0] for process in started] == [f"{i}\n" for i in range(20)]
    assert [process.returncode for process in started] == [*range(20)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_jobs_go_on_when_the_server_ends_with_its_parent_or_is_killed(tmp_path, number):
    server = Server(tmp_path)
    process = server.start(WAITING)
    process.stdout.readline()
    os.kill(server.pid, number)  # those that mean its jobs as well do not end it
    here = server.start("import os; print(os.getppid())").communicate(timeout=300)[0] == f"{server.pid}\n"
    assert here == (number != signal.SIGKILL)
    server.end()
    assert [*tmp_path.glob("rankcollapse-*")] == [] or not here, "it takes its socket with it"
    assert ends(process, signal.SIGTERM)[2] == 143
