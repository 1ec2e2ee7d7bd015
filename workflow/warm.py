"""Jobs of this machine in processes that need not load their libraries: forked from one that has loaded them.

Loading torch, or pandas and Matplotlib, takes seconds of a job; the smallest runs take less. So one process of each
Snakemake loads them, and its local jobs are forks of that. A fork has the arguments, environment, folder and streams of
the job's own command, which passes signals on to it; each ends when the other does. Wherever something refuses, jobs
are plain processes.

    python warm.py --serve FD             forks, as asked through the listening socket FD, while its parent lives
    python warm.py SOCKET ARGUMENT...     does what `python ARGUMENT...` does, and is that where nobody answers
"""

import json
import os
import signal
import socket
import struct
import sys

HEAD = struct.Struct("!I")  # the length of what is asked for, then the process id of the fork, then its exit status
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# What training loads, and what rendering does. Nothing of this project: each job reads it anew.
TRAINING = ("torch", "torch._dynamo", "numpy", "pydantic", "yaml", "tqdm", "filelock")
RENDERING = ("numpy", "scipy.stats", "pandas", "matplotlib.pyplot", "seaborn", "pydantic", "yaml", "filelock")


def start(threads: int) -> list[str] | None:
    """Start the process that forks, for jobs of so many threads; the command that stands for `python` then.

    None where there can be none. It ends with the calling process.
    """
    import atexit
    import shutil
    import subprocess
    import tempfile

    folder = tempfile.mkdtemp(prefix="rankcollapse-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "socket")
    pools = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)  # an OSError where the path is too long, as that of a cluster's TMPDIR may be
            listener.listen(1024)
            serving = [sys.executable, __file__, "--serve", str(listener.fileno())]
            environment = {**os.environ, **pools}
            subprocess.Popen(serving, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, env=environment)
    except (OSError, AttributeError):  # a system without such sockets has no name for them
        return None
    return [sys.executable, "-S", __file__, path]


# ---- the job's command ----


def ask(path: str, arguments: list[str]) -> int:
    """Have a command run by the process that listens at `path`; its exit status."""
    wanted = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(path)
            socket.send_fds(server, [HEAD.pack(len(wanted))], [0, 1, 2])
            server.sendall(wanted)
            pid = HEAD.unpack(server.recv(HEAD.size))[0]
        except (OSError, struct.error):
            os.execv(sys.executable, [sys.executable, *arguments])
        for number in PASSED_ON:
            signal.signal(number, lambda number, frame: pass_on(pid, number))
        status = server.recv(1)  # nothing if it was killed
        return status[0] if status else 128 + signal.SIGKILL


def pass_on(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has ended by itself


# ---- the process that forks ----


def serve(listener: socket.socket) -> None:
    import gc
    import importlib

    parent = os.getppid()
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
        try:
            head, streams, _, _ = socket.recv_fds(client, HEAD.size, 3)
            arguments, folder, environment = json.loads(client.recv(*HEAD.unpack(head), socket.MSG_WAITALL))
        except (OSError, ValueError, struct.error):  # killed while it asked
            client.close()
            continue
        for name in RENDERING if any("render" in word for word in arguments[:2]) else TRAINING:
            importlib.import_module(name)
        gc.freeze()
        pid = os.fork()
        if not pid:
            listener.close()
            client.settimeout(None)
            run(client, arguments, folder, environment, streams, base)
        for stream in streams:
            os.close(stream)
        client.close()


# ---- the fork ----


def run(client: socket.socket, arguments: list[str], folder: str, environment: dict, streams: list[int], base) -> None:
    """Be `python ARGUMENT...`, and tell the command how it ended. Does not return."""
    import atexit
    import runpy
    import threading
    import traceback

    code = 1
    try:
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        client.send(HEAD.pack(os.getpid()))
        threading.Thread(target=end_with, args=(client,), daemon=True).start()
        paths = list(filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))
        with open("/proc/self/comm", "w") as file:  # what `ps -o comm` shows, as in `train results/`
            file.write(" ".join(arguments[2:])[:15])
        sys.argv, sys.path[:] = arguments[1:], [folder, *paths, *base]  # of `-m MODULE ARGUMENT...`
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # the log's writer is dead
                code = code or 1
        try:
            client.send(bytes([code & 255]))
        finally:
            os._exit(code & 255)


def end_with(client: socket.socket) -> None:
    """End this process when its command has been killed."""
    try:
        client.recv(1)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(socket.socket(fileno=int(sys.argv[2])))
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
