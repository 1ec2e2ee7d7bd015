"""Jobs forked from a process that has loaded their libraries: the same as `python ...`, in all that can be seen."""

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

WARM = Path(__file__).parents[1] / "workflow" / "warm.py"
PARENT = """
import sys
sys.path.insert(0, sys.argv[2])
import warm
print(warm.started(sys.argv[1]).pid, flush=True)
sys.stdin.read()
"""
PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="jobs are forked on Linux alone")


def wait_for(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False


class Server:
    def __init__(self, folder):
        self.socket = folder / "socket"
        command = [sys.executable, "-c", PARENT, self.socket, WARM.parent]
        self.parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = int(self.parent.stdout.readline())

    def start(self, *arguments, **how):
        return subprocess.Popen([sys.executable, "-S", WARM, self.socket, *arguments], text=True, **{**PIPES, **how})

    def end(self):
        self.parent.kill()
        self.parent.wait()
        wait_for(lambda: not alive(self.pid))


@pytest.fixture
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("s"))
    yield made
    made.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("s"))
    yield made
    made.end()


@pytest.fixture
def script(tmp_path):
    """A function that writes a script and gives its path."""

    def write(text):
        (tmp_path / "script.py").write_text(text, encoding="utf-8")
        return str(tmp_path / "script.py")

    return write


# ---- the same as python ----

TELLING = """
import json, os, sys
import beside
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("WORD"), sys.stdin.read(), __name__, beside.__file__]))
print("to stderr", file=sys.stderr)
sys.exit(5)
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_a_fork_has_the_arguments_folder_environment_streams_and_paths_of_its_command(
    shared, script, tmp_path, as_module
):
    path = script(TELLING)
    (tmp_path / "beside.py").write_text("", encoding="utf-8")
    words = ["-m", "script"] if as_module else [path]
    environment = {**os.environ, "WORD": "ä\udcff"}
    how = {"cwd": tmp_path if as_module else "/", "env": environment, "text": True, "input": "given"}
    cold = subprocess.run([sys.executable, *words, "a b", "--c"], capture_output=True, check=False, **how)
    command = [sys.executable, "-S", WARM, shared.socket, *words, "a b", "--c"]
    warm = subprocess.run(command, capture_output=True, check=False, **how)
    assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr)
    assert warm.returncode == 5
    assert json.loads(warm.stdout)[3] == "given"


@pytest.mark.parametrize("has_path", [False, True])
def test_a_fork_finds_modules_where_python_would(shared, script, tmp_path, has_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(elsewhere) if has_path else ""}
    path = script("import sys; print([p for p in sys.path])")
    for words in ([path], ["-m", "script"]):
        cold = subprocess.check_output([sys.executable, *words], env=environment, cwd=tmp_path)
        command = [sys.executable, "-S", WARM, shared.socket, *words]
        assert subprocess.check_output(command, env=environment, cwd=tmp_path) == cold


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(None)", 0, ""),
        ("import sys; sys.exit('a sentence')", 1, "a sentence"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os._exit(7)", 7, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, ""),
        ("import atexit, sys; atexit.register(print, 'at the end', file=sys.stderr)", 0, "at the end"),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_a_command_ends_as_its_fork_does(shared, script, text, code, said):
    process = shared.start(script(text))
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert said in err


def test_libraries_are_there_already_and_nothing_of_this_project_is(shared, script):
    path = script("import sys; print('pandas' in sys.modules, any(m.startswith('rankcollapse') for m in sys.modules))")
    assert shared.start(path).communicate(timeout=60)[0] == "True False\n"


def test_without_anybody_who_answers_the_command_is_python_itself(tmp_path, script):
    path = script("import sys; print(sys.argv[1:], 'pandas' in sys.modules); sys.exit(3)")
    command = [sys.executable, "-S", WARM, tmp_path / "none", path, "a"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "['a'] False\n")


def test_a_run_trained_in_a_fork_has_the_bits_of_one_that_is_not(shared, tiny, data_dir, tmp_path):
    config = tiny(rule="fa", normalization="batch", optimizer="muon", lr=0.01, epochs=2, gradient_every=3)
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump()), encoding="utf-8")
    words = ["-m", "rankcollapse", "train", str(tmp_path / "config.json"), "--data-dir", str(data_dir)]
    process = shared.start(*words, "--out", str(tmp_path / "warm"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    subprocess.run([sys.executable, *words, "--out", str(tmp_path / "cold")], check=True, capture_output=True)
    names = {path.name for path in (tmp_path / "cold").iterdir()}
    assert {path.name for path in (tmp_path / "warm").iterdir()} == names >= {"checkpoint.pt", "spectra.npz"}
    for name in names - {"run.json", ".run.json"}:
        assert (tmp_path / "warm" / name).read_bytes() == (tmp_path / "cold" / name).read_bytes(), name


# ---- signals and deaths ----

WAITING = """
import os, signal, sys, time
def handle(number, frame):
    print("got", number, flush=True)
    if number != signal.SIGUSR1:
        sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, handle)
print(os.getpid(), flush=True)
while True:
    time.sleep(0.05)
"""


def test_signals_are_passed_on(shared, script):
    process = shared.start(script(WAITING))
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == f"got {signal.SIGUSR1}\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == f"got {signal.SIGTERM}\n"
    assert process.returncode == 128 + signal.SIGTERM


def test_an_interrupt_is_python_s_own(shared, script):
    text = "import time\nprint(1, flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('yes')"
    process = shared.start(script(text))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "yes\n"
    assert process.returncode == 0


def test_a_fork_dies_with_its_command_and_the_command_with_its_fork(shared, script):
    process = shared.start(script(WAITING))
    pid = int(process.stdout.readline())
    process.kill()
    wait_for(lambda: not alive(pid))
    process.communicate()
    process = shared.start(script(WAITING))
    os.kill(int(process.stdout.readline()), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 137


def test_a_command_that_is_killed_as_soon_as_it_has_asked_does_the_others_no_harm(server, script):
    path = script("print('done')")
    wanted = json.dumps([[path], "/", dict(os.environ)]).encode()
    for part in (wanted, wanted[:9], b""):  # the first loads libraries meanwhile
        with socket.socket(socket.AF_UNIX) as client, open(os.devnull) as null:
            client.connect(str(server.socket))
            socket.send_fds(client, [struct.pack("!I", len(wanted))], [null.fileno()] * 3)
            client.sendall(part)
    assert server.start(path).communicate(timeout=60)[0] == "done\n"
    time.sleep(1)  # for an end that has begun
    assert alive(server.pid), "and not by Python itself, since nobody answers"


def test_many_at_once_each_have_their_own(shared, script):
    path = script("import sys, time; time.sleep(0.2); print(sys.argv[1]); sys.exit(int(sys.argv[1]))")
    started = [shared.start(path, str(i)) for i in range(20)]
    assert [process.communicate(timeout=60)[0] for process in started] == [f"{i}\n" for i in range(20)]
    assert [process.returncode for process in started] == [*range(20)]


def test_when_the_parent_dies_jobs_go_on_and_the_server_ends_after_them(server, script):
    process = server.start(script(WAITING))
    process.stdout.readline()
    server.parent.kill()
    server.parent.wait()
    time.sleep(1.5)
    assert alive(server.pid)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    wait_for(lambda: not alive(server.pid))


def test_signals_to_the_whole_group_do_not_end_the_server_before_its_jobs(server, script):
    process = server.start(script(WAITING))
    process.stdout.readline()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(server.pid, number)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_when_the_server_is_killed_its_jobs_are_told_to_end_and_their_commands_say_so(server, script):
    process = server.start(script(WAITING))
    pid = int(process.stdout.readline())
    os.kill(server.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "run the same command again" in err
    wait_for(lambda: not alive(pid))
