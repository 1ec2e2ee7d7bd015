"""Jobs of this machine in processes that need not load their libraries: forked from one that has loaded them.

Loading torch, or pandas and Matplotlib, takes seconds of a job; the smallest runs take less. So one process of each
Snakemake loads them, and its local jobs are forks of that. A fork has the arguments, environment, folder and streams of
the job's own command, which passes signals on to it; each ends when the other does. Wherever something refuses, jobs
are plain processes.

    python warm.py --serve FD PID         forks, as asked through the listening socket FD, while its parent PID lives
    python warm.py SOCKET ARGUMENT...     does what `python ARGUMENT...` does, and is that where nobody answers
"""

import json
import os
import signal
import socket
import struct
import sys

NUMBER = struct.Struct("!I")  # the length of what is asked for, and the process id of the fork
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# What the jobs load that train, and the others. Nothing of this project: each job reads it anew.
TRAINING = ("torch", "torch._dynamo", "numpy", "pydantic", "yaml", "tqdm", "filelock")
TABLES = ("numpy", "scipy.stats", "pandas", "matplotlib.pyplot", "seaborn", "pydantic", "yaml", "filelock")


def start(threads: int) -> list[str] | None:
    """Start the process that forks, for jobs of so many threads; the command that stands for `python` then.

    None where there can be none. It ends with the calling process, and takes its socket with it.
    """
    import shutil
    import subprocess
    import tempfile

    if not sys.platform.startswith("linux"):  # elsewhere what torch has loaded may hang in a fork
        return None
    folder = tempfile.mkdtemp(prefix="rankcollapse-")
    path, pools = os.path.join(folder, "socket"), ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)  # an OSError where the path is too long, as that of a cluster's TMPDIR may be
            listener.listen(1024)
            serving = [sys.executable, __file__, "--serve", str(listener.fileno()), str(os.getpid())]
            environment = {**os.environ, **dict.fromkeys(pools, str(threads))}
            subprocess.Popen(serving, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, env=environment)
    except OSError:
        shutil.rmtree(folder)
        return None
    return [sys.executable, "-S", __file__, path]


# ---- the job's command ----


def ask(path: str, arguments: list[str]) -> int | None:
    """Have a command run by the process that listens at `path`; its exit status, None if nobody answers."""
    wanted = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(path)
            socket.send_fds(server, [NUMBER.pack(len(wanted))], [0, 1, 2])
            server.sendall(wanted)
            (pid,) = NUMBER.unpack(server.recv(NUMBER.size))
        except (OSError, struct.error):
            return None
        for number in PASSED_ON:
            signal.signal(number, lambda number, frame: pass_on(pid, number))
        server.send(b" ")  # now it may begin
        status = server.recv(1)  # nothing if it was killed
        return status[0] if status else 128 + signal.SIGKILL


def pass_on(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has ended by itself


# ---- the process that forks ----


def serve(listener: socket.socket, parent: int) -> None:
    import gc
    import importlib
    import shutil

    for number in PASSED_ON:  # they are meant for the jobs
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no one asks how a fork ended: it tells its command
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    base = [entry for entry in sys.path[1:] if entry not in own]  # where Python finds libraries without PYTHONPATH
    listener.settimeout(1)
    while os.getppid() == parent:
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        client.settimeout(10)
        streams = []
        try:
            head, streams, _, _ = socket.recv_fds(client, NUMBER.size, 3)
            arguments, *how = json.loads(client.recv(*NUMBER.unpack(head), socket.MSG_WAITALL))
        except (OSError, ValueError, struct.error):
            arguments = None  # killed while it asked
        if arguments:
            for name in TRAINING if arguments[2:3] in (["train"], ["check"]) else TABLES:
                importlib.import_module(name)
            gc.freeze()
            if not os.fork():
                try:
                    listener.close()
                    client.settimeout(None)
                    run(client, streams, base, arguments, *how)
                finally:
                    os._exit(1)
        for stream in streams:
            os.close(stream)
        client.close()
    shutil.rmtree(os.path.dirname(listener.getsockname()), ignore_errors=True)


# ---- the fork ----


def run(client: socket.socket, streams: list[int], base: list, arguments: list, folder: str, environment: dict) -> None:
    """Be `python -m MODULE ARGUMENT...`, and tell the command how it ended. Does not return."""
    import atexit
    import runpy
    import threading
    import traceback

    code = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        client.send(NUMBER.pack(os.getpid()))
        client.recv(1)
        threading.Thread(target=end_with, args=(client,), daemon=True).start()
        with open("/proc/self/comm", "w") as file:  # what `ps -o comm` shows, as in `train results/`
            file.write(" ".join(arguments[2:])[:15])
        paths = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
        sys.argv, sys.path[:] = arguments[1:], [folder, *paths, *base]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    for number in PASSED_ON:  # it has ended: only its command is to be told
        signal.signal(number, signal.SIG_IGN)
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1  # the log's writer is dead
    client.send(bytes([code & 255]))
    os._exit(code & 255)


def end_with(client: socket.socket) -> None:
    """End this process when its command has been killed."""
    try:
        client.recv(1)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]))
    else:
        status = ask(sys.argv[1], sys.argv[2:]) if sys.argv[2:3] == ["-m"] else None
        if status is None:
            os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
        sys.exit(status)
