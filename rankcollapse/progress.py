"""The progress of a run: a bar redrawn in place on a terminal, a line every ten seconds in a log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm


class _Lines:
    """A log's view of a bar: each redrawing is a line of its own."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self.stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self.stream.flush()


@contextmanager
def bar(total: int, name: str, stream: TextIO | None = None) -> Iterator["tqdm"]:
    """Within this context: a bar of `total` steps; call its `update(1)` and `set_postfix_str(note)`."""
    stream = stream or sys.stderr
    live = stream.isatty()
    shown = tqdm(
        total=total, desc=name, unit="step", file=stream if live else _Lines(stream), mininterval=0.2 if live else 10.0,
        dynamic_ncols=live, leave=False, ascii=not live,
        bar_format="{desc}: {percentage:3.0f} % {bar:20} step {n_fmt}/{total_fmt}, {remaining} left{postfix}",
    )  # fmt: skip
    try:
        yield shown
    finally:
        shown.close()
