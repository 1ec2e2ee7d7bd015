"""Jobs of this machine in processes that need not load their libraries: forked from one that has loaded them.

Loading torch, or pandas and Matplotlib, takes seconds of a job; the smallest runs take less. So one process of each
Snakemake loads them, and its local jobs are forks of that. A fork has the arguments, environment, folder and streams of
the job's own command, which passes signals on to it, dies with it, and ends as it does.

    python warm.py --serve FD                 forks, as asked through the listening socket FD, while its parent lives
    python warm.py SOCKET ARGUMENT...         does what `python ARGUMENT...` does, and is that where nobody answers
"""

import json
import os
import signal
import socket
import struct
import sys

HEAD = struct.Struct("!I")
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# What training loads, and what scripts do. Nothing of this project: each job reads it anew.
TRAINING = ("torch", "torch._dynamo", "numpy", "pydantic", "yaml", "tqdm")
SCRIPTS = ("numpy", "scipy.stats", "pandas", "matplotlib.pyplot", "seaborn", "pydantic", "yaml")


# ---- the job's command ----


def ask(path: str, arguments: list[str]) -> int:
    """Have a command run by the process that listens at `path`; its exit status."""
    wanted = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(path)
            socket.send_fds(server, [HEAD.pack(len(wanted))], [0, 1, 2])
            server.sendall(wanted)
            for number in PASSED_ON:
                signal.signal(number, lambda number, frame: server.send(bytes([number])))
            pid = server.recv(HEAD.size)
        except OSError:
            pid = b""
        if len(pid) < HEAD.size:
            for number in PASSED_ON:
                signal.signal(number, signal.SIG_DFL)
            os.execv(sys.executable, [sys.executable, *arguments])
        try:
            status = server.recv(1)
        except OSError:
            status = b""
    if not status:
        os.kill(HEAD.unpack(pid)[0], signal.SIGTERM)
        sys.exit("the process that ran this job's has ended: run the same command again")
    return status[0]


# ---- the process that forks ----


def started(path: str, environment: dict[str, str] | None = None):
    """One, a Popen, that listens at `path` when this returns. It ends with the calling process, or by SIGKILL."""
    import subprocess

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1024)
        command = [sys.executable, __file__, "--serve", str(listener.fileno())]
        return subprocess.Popen(command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, env=environment)


def serve(listener: socket.socket) -> None:
    import contextlib
    import importlib
    import selectors

    parent = os.getppid()
    for number in PASSED_ON:  # they are meant for the jobs
        signal.signal(number, signal.SIG_IGN)
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    base = [entry for entry in sys.path[1:] if entry not in own]  # where Python finds libraries without PYTHONPATH
    jobs: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: pid, the command's connection
    with selectors.DefaultSelector() as events:
        events.register(listener, selectors.EVENT_READ)

        def end(pidfd: int) -> None:
            pid, client = jobs.pop(pidfd)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            events.unregister(pidfd)
            events.unregister(client)
            os.close(pidfd)
            with contextlib.suppress(OSError), client:  # the command was killed
                client.send(bytes([code if code >= 0 else 128 - code]))

        def start() -> None:
            client, _ = listener.accept()
            try:
                head, streams, _, _ = socket.recv_fds(client, HEAD.size, 3)
                arguments, folder, environment = json.loads(client.recv(*HEAD.unpack(head), socket.MSG_WAITALL))
            except (OSError, ValueError, struct.error):  # killed while it asked
                return client.close()
            for name in TRAINING if arguments[0] == "-m" or "preflight" in arguments[0] else SCRIPTS:
                importlib.import_module(name)
            pid = os.fork()
            if not pid:
                events.close()
                for opened in (listener, client, *(client for _, client in jobs.values())):
                    opened.close()
                for pidfd in jobs:
                    os.close(pidfd)
                run(arguments, folder, environment, streams, base)
            for stream in streams:
                os.close(stream)
            pidfd = os.pidfd_open(pid)
            jobs[pidfd] = pid, client
            events.register(pidfd, selectors.EVENT_READ)
            events.register(client, selectors.EVENT_READ, pidfd)
            with contextlib.suppress(OSError):  # the command was killed meanwhile: its connection tells, below
                client.send(HEAD.pack(pid))

        while jobs or os.getppid() == parent:
            for key, _ in events.select(1):
                if key.fileobj is listener:
                    start()
                elif key.fd in jobs:
                    end(key.fd)
                elif key.data in jobs:  # it may have ended just now
                    pid, client = jobs[key.data]
                    for number in heard(client) or [signal.SIGKILL]:
                        os.kill(pid, number)


def heard(client: socket.socket) -> bytes:
    """The signals that a command passes on; none if it is dead."""
    try:
        return client.recv(16)
    except OSError:
        return b""


# ---- the fork ----


def run(arguments: list[str], folder: str, environment: dict, streams: list[int], base: list[str]) -> None:
    """Be `python ARGUMENT...`. Does not return."""
    import atexit
    import runpy
    import traceback

    code = 1
    try:
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        paths = list(filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))
        if arguments[0] == "-m":
            sys.argv, sys.path[:] = arguments[1:], [folder, *paths, *base]
            name_process(" ".join(arguments[1:]))
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[:] = arguments, [os.path.dirname(os.path.abspath(arguments[0])), *paths, *base]
            name_process(os.path.basename(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
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
        os._exit(code & 255)


def name_process(name: str) -> None:
    """What `ps -o comm` shows."""
    import contextlib

    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:  # no more than a name
        file.write(name[:15])


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(socket.socket(fileno=int(sys.argv[2])))
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
