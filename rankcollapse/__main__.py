"""The command line: `python -m rankcollapse train CONFIG --out DIR` and `bench CONFIG ...`, see --help."""

import argparse
import functools
import sys
import time
from typing import TextIO

from rankcollapse import grid
from rankcollapse.config import InputError, read, run_config


class ProgressBar:
    """A bar redrawn in place on a terminal; in a log or a pipe a line of its own every `seconds`."""

    def __init__(self, total: int, name: str, stream: TextIO, seconds: float = 10.0):
        self.total, self.name, self.stream = total, name, stream
        self.live = stream.isatty()
        self.every = 0.2 if self.live else seconds
        self.start = self.shown = time.monotonic()
        self.note = ""

    def __call__(self, step: int, note: str) -> None:
        self.note = note or self.note
        now = time.monotonic()
        if now - self.shown < self.every and not (note and step == self.total):
            return
        self.shown = now
        filled = 20 * step // self.total
        left = (now - self.start) / step * (self.total - step)
        bar = f"[{'#' * filled}{'.' * (20 - filled)}] {100 * step // self.total:3d} %"
        line = f"{self.name} {bar}, step {step}/{self.total}, {left:.0f} s left, {self.note}".rstrip(", ")
        self.stream.write(f"\r\033[K{line}" if self.live else line + "\n")
        self.stream.flush()

    def close(self, line: str) -> None:
        self.stream.write(f"\r\033[K{line}\n" if self.live else line + "\n")
        self.stream.flush()


def _train(args: argparse.Namespace) -> None:
    config = run_config(read("/dev/stdin" if args.config == "-" else args.config))
    name = args.name or args.out
    from rankcollapse import gpus

    with gpus.claim(args.gpu_slots if config.device != "cpu" else 0):
        import torch  # only now: it reads CUDA_VISIBLE_DEVICES once

        from rankcollapse.training import train

        if args.threads:
            torch.set_num_threads(args.threads)
        bar = ProgressBar(config.steps, name, sys.stderr)
        result = train(config, args.out, bar)
    ending = "" if result["outcome"] == "finished" else f", DIVERGED in epoch {result['epochs']}"
    bar.close(
        f"{name}: test {100 * result['test_accuracy']:.1f} %{ending}, {result['seconds']:.0f} s, "
        f"{result['images_per_second']:.0f} images/s on {result['device']}"
    )


def _bench(args: argparse.Namespace) -> None:
    planned = grid.runs(functools.reduce(grid.overlay, map(read, args.configs)))
    import torch

    from rankcollapse.bench import bench

    torch.set_num_threads(args.threads)
    bench(planned, args.rounds, args.device)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m rankcollapse", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train one run and write its folder")
    train.add_argument(
        "config", metavar="CONFIG", help="YAML or JSON file with the keys of RunConfig; - for standard input"
    )
    train.add_argument("--out", required=True, metavar="DIR", help="run folder to write")
    train.add_argument("--name", help="name in the progress lines; the folder otherwise")
    train.add_argument("--threads", type=int, help="CPU threads; torch's choice otherwise")
    train.add_argument("--gpu-slots", type=int, default=1, metavar="N", help="runs that may share one GPU (default 1)")
    train.set_defaults(call=_train)

    bench = commands.add_parser("bench", help="print the cost of feedback alignment and of the probes, as ratios")
    bench.add_argument("configs", metavar="CONFIG", nargs="+", help="a grid's config, and presets to lay over it")
    bench.add_argument("--rounds", type=int, default=30, help="interleaved timings of the step (default 30)")
    bench.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where (default auto)")
    bench.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    bench.set_defaults(call=_bench)
    return top


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        args.call(args)
    except InputError as error:
        print(f"rankcollapse: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # above all a full disk
        print(
            f"rankcollapse: {error.filename or args.command}: {error.strerror}; free space or mend the path, then run "
            "the same command again: what was complete before is untouched",
            file=sys.stderr,
        )
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
