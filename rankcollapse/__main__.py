"""The command line: `python -m rankcollapse train | data | schema`, see --help."""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

from rankcollapse import datasets, files, gpus, grid, seals
from rankcollapse.config import RunConfig, read, run_config
from rankcollapse.errors import InputError, Stopped
from rankcollapse.folder import finished


def _train(args: argparse.Namespace) -> None:
    values = read("/dev/stdin" if args.config == "-" else args.config)
    name, about, device, slots, minutes = args.run or args.out, None, args.device, args.gpu_slots, args.save_minutes
    if args.run is None:
        config = run_config(values)
    else:
        try:
            planned = {**values["runs"], **values["candidates"]}[name]
            device, slots, minutes = values["device"], values["gpu_slots"], values["save_minutes"]
            config = grid.resolved(planned, f"{args.config}, {name}")
            about = {key: planned[key] for key in ("study", "arm")}
            identity = grid.identity(config, RunConfig.model_fields.keys() - planned["config"].keys())
        except (KeyError, TypeError) as error:
            what = f"{args.config} is not a plan with the run {name!r} ({error})"
            raise InputError(f"{what}: run snakemake, which writes it") from error
        if args.identity not in (None, identity):
            raise InputError(f"{args.config} has {name} in another version than {args.identity}: run snakemake again")
    result = None if args.fresh else finished(Path(args.out), config, lambda text: None)
    if result:
        print(f"{name} is there already, whole", file=sys.stderr)
    else:
        with gpus.claim(slots if device != "cpu" else 0):
            import torch  # only now: it reads CUDA_VISIBLE_DEVICES once

            from rankcollapse.job import train

            if args.threads:
                torch.set_num_threads(args.threads)
            how = {"data_dir": args.data_dir, "device": device, "about": about, "name": name, "save_minutes": minutes}
            result = train(config, args.out, **how, replace=args.run is not None, fresh=args.fresh)
    os.utime(Path(args.out, "run.json"))  # snakemake wants it newer than what it is made from
    ending = "" if result["outcome"] == "finished" else f", DIVERGED in epoch {result['epochs']}"
    cost = f"{result['seconds']:.0f} s, {result['images_per_second']:.0f} images/s on {result['device']}"
    split = "validation" if config.tuning else "test"
    print(f"{name}: {split} {100 * result[f'{split}_accuracy']:.1f} %{ending}, {cost}", file=sys.stderr)


def _data(args: argparse.Namespace) -> None:
    folder = datasets.prepare(args.name, args.data_dir, args.out, args.download)
    for path, what in seals.seal_once(folder, datasets.ARRAYS):
        raise InputError(f"{path} is {what} since it was sealed: delete {folder} to have it made anew")
    print(folder, file=sys.stderr)


def _schema(args: argparse.Namespace) -> None:
    if not args.check:
        files.write_text(args.path, grid.schema())
    elif not args.path.exists() or args.path.read_text(encoding="utf-8") != grid.schema():
        raise InputError(f"{args.path} is not the schema of rankcollapse/config.py and grid.py: run `make schema`")


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m rankcollapse", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train one run and write its folder")
    train.add_argument("config", metavar="CONFIG", help="YAML or JSON file of a run's knobs, - for standard input")
    train.add_argument("--run", metavar="NAME", help="CONFIG is a grid's plan.json, and this the run of it to train")
    train.add_argument("--identity", help="stop if the run of the plan is not this one")
    train.add_argument("--out", required=True, metavar="DIR", help="run folder to write")
    train.add_argument("--data-dir", default="data", metavar="DIR", help="folder of the data sets (default data)")
    train.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where (default auto)")
    train.add_argument("--threads", type=_positive, help="CPU threads; torch's choice otherwise")
    train.add_argument("--gpu-slots", type=_positive, default=1, metavar="N", help="runs that may share one GPU")
    train.add_argument("--save-minutes", type=float, default=5.0, metavar="MIN", help="between two saves of its state")
    train.add_argument("--fresh", action="store_true", help="start over, whatever was saved or finished")

    data = commands.add_parser("data", help="check a data set's official files and convert them for training")
    data.add_argument("name", choices=datasets.SETS)
    data.add_argument("--data-dir", default="data", metavar="DIR", help="folder of the official files (default data)")
    data.add_argument("--out", default="data/ready", metavar="DIR", help="folder to write to (default data/ready)")
    data.add_argument("--no-download", dest="download", action="store_false", help="stop where the files are missing")

    schema = commands.add_parser("schema", help="write config.schema.json, by which editors check and complete configs")
    schema.add_argument("path", metavar="PATH", type=Path, nargs="?", default=Path("config.schema.json"))
    schema.add_argument("--check", action="store_true", help="exit 2 if it is not up to date")
    return top


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        {"train": _train, "data": _data, "schema": _schema}[args.command](args)
    except InputError as error:
        print(f"rankcollapse: {error}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt) as error:
        with contextlib.suppress(BrokenPipeError):  # where a signal has ended the log's writer too
            print(f"rankcollapse: {error}", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)
    except OSError as error:  # above all a full disk
        where = error.filename or getattr(args, "out", args.command)
        hint = "free space or mend the path, then run the same command again: what was complete before is untouched"
        print(f"rankcollapse: {where}: {error.strerror}; {hint}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
