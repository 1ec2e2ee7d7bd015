"""What a run is so far, kept while it is trained, so that one that is stopped goes on, to the same bits.

    state/IDENTITY/step00000120.pt   sha256 of the rest, then the state between two steps, as torch saves it
    state/IDENTITY/gradients.bin     the gradient rows of the probes, which only grow

The two latest states are kept: where the last one is damaged, or the rows that it counts, the one before serves. State
of another config or code lies in a folder of another name, and says in itself whose it is: it is never taken.
"""

import hashlib
import io
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rankcollapse import files
from rankcollapse.errors import Stopped
from rankcollapse.training import State

KEPT = 2


class Saves:
    """The saved states of one run. Not for two processes at once: `check` raises if another took the folder over."""

    def __init__(self, out: Path, identity: str, check: Callable[[], None] = lambda: None):
        self.identity, self.check, self.folder = identity, check, out / "state" / identity
        self.others = sorted(p.name for p in self.folder.parent.glob("*") if p.name != identity)
        self.gradients = self.folder / "gradients.bin"
        self.started, self.resumed = now(), 0
        self._rows, self._hashed = hashlib.sha256(), 0  # of the gradients: their first bytes, and how many
        self._saved = self._clock = time.monotonic()

    def age(self) -> float:
        """Seconds since the last save, or the start."""
        return time.monotonic() - self._saved

    def elapsed(self) -> float:
        """Seconds of work that led here, in all processes."""
        return time.monotonic() - self._clock

    def save(self, state: State) -> None:
        """Write all that `state` is, atomically; older states but one go. Not counted as training."""
        state.lap("train")
        values = {"state": state.state_dict(), "identity": self.identity, "started": self.started}
        size = len(state.probes.gradient_steps) * state.probes.row.nbytes
        values |= {"elapsed": self.elapsed(), "resumed": self.resumed, "size": size, "rows": self._hash(size)}
        packed = io.BytesIO()
        torch.save(values, packed)
        digest = hashlib.sha256(packed.getbuffer()).hexdigest().encode()

        def put(path: Path) -> None:
            with open(path, "wb") as file:
                file.write(digest)
                file.write(packed.getbuffer())

        self.check()
        files.write(self.folder / f"step{state.step:08}.pt", put)
        for old in self._found()[KEPT:]:
            old.unlink(missing_ok=True)
        self._saved, state.mark = time.monotonic(), time.perf_counter()

    def restore(self, state: State, tell: Callable[[str], object]) -> None:
        """Bring `state` to the latest saved one that is sound, if any; `tell` says which, and what was not taken."""
        for name in self.others:
            tell(f"{self.folder.parent / name} is the state of another config or code, and is not taken")
        for path in self._found():
            values = self._sound(path)
            if values is None:
                tell(f"{path} is damaged, or its gradient rows are: it is not taken")
                path.unlink()
                continue
            state.load_state_dict(values["state"])
            self.started, self.resumed = values["started"], values["resumed"] + 1
            self._clock -= values["elapsed"]
            tell(f"resumed at step {state.step} of {state.steps}")
            break
        os.truncate(self.gradients, self._hashed)  # rows after it come again, and are added

    def _found(self) -> list[Path]:
        """Latest first."""
        return sorted(self.folder.glob("step*.pt"), reverse=True)

    def _sound(self, path: Path) -> dict | None:
        """The content of a state, if it and its gradient rows are as they were written."""
        text = path.read_bytes()
        if hashlib.sha256(memoryview(text)[64:]).hexdigest().encode() != text[:64]:
            return None
        values = torch.load(io.BytesIO(memoryview(text)[64:]), weights_only=True, map_location="cpu")
        self._rows, self._hashed = hashlib.sha256(), 0
        sound = values["identity"] == self.identity and self._hash(values["size"]) == values["rows"]
        if not sound:
            self._rows, self._hashed = hashlib.sha256(), 0
        return values if sound else None

    def _hash(self, size: int) -> str:
        """sha256 of the first `size` bytes of gradients, reading those that were not read yet."""
        with open(self.gradients, "rb") as file:
            file.seek(self._hashed)
            while self._hashed < size and (part := file.read(min(2**24, size - self._hashed))):
                self._rows.update(part)
                self._hashed += len(part)
        return self._rows.hexdigest()


def drop(out: Path) -> None:
    """Forget what was saved of a run."""
    shutil.rmtree(out / "state", ignore_errors=True)


class Signals:
    """A context in which SIGTERM and SIGINT end the process in order, and SIGUSR1 asks for a save.

    A first signal ends it at once, but in `deferred`, where `stop` tells the work to save and to call `end`.
    """

    def __init__(self):
        self.stop, self.save, self._deferring, self._before = 0, False, False, {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # others have no handlers
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self.save = True
        elif not self.stop:  # a second one, of a scheduler in haste, does not cut off the save
            self.stop = number
            if not self._deferring:
                self.end(f"stopped by {signal.Signals(number).name}: the same command goes on from what is saved")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def end(self, text: str) -> None:
        """Raise, if a signal to end came, what fits it."""
        if self.stop == signal.SIGINT:
            raise KeyboardInterrupt(text)
        if self.stop:
            raise Stopped(text, self.stop)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
