"""The progress of a run: a bar redrawn in place on a terminal, a line every ten seconds in a log."""

import sys
from contextlib import suppress
from types import SimpleNamespace

from tqdm import tqdm


def bar(total: int, name: str, done: int = 0) -> tqdm:
    """A context: a bar of `total` steps on standard error; call its `update(1)` and `set_postfix_str(note)`."""
    stream, live = sys.stderr, sys.stderr.isatty()

    def write_line(text: str) -> None:
        with suppress(BrokenPipeError):  # a signal to all of a job ends its log's writer before the training has ended
            if text.strip():
                stream.write(text.strip() + "\n")

    return tqdm(
        total=total, initial=done, desc=name, unit="step", mininterval=0.2 if live else 10.0, dynamic_ncols=live,
        leave=False, ascii=not live, file=stream if live else SimpleNamespace(write=write_line, flush=stream.flush),
        bar_format="{desc}: {percentage:3.0f} % {bar:20} step {n_fmt}/{total_fmt}, {remaining} left{postfix}",
    )  # fmt: skip
