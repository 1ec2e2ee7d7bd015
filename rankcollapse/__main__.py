"""The command line: `python -m rankcollapse train | data | tune | collect | seal | verify | check | schema`.

What makes figures, pages and the paper of the tables is `python -m rankcollapse.render`.
"""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

from rankcollapse.errors import InputError, Stopped
from rankcollapse.experiment import datasets, files, folder, grid, machine, plan
from rankcollapse.experiment.config import RunConfig, checked, read, run_config


def _train(args: argparse.Namespace) -> None:
    """A run by itself, or that of a plan, which says too how to train it."""
    how = {key: getattr(args, key) for key in ("data_dir", "ready", "download", "device", "gpu_slots", "save_minutes")}
    out, identity, name = Path(args.out), None, args.run or args.out
    if args.run:
        entry = plan.find(args.config, args.run)
        identity, config = entry["identity"], checked(RunConfig, entry["config"], f"{args.config}, {name}")
        how |= {key: value for key, value in read(args.config).items() if key in how}
        how |= {"about": {key: entry[key] for key in ("study", "arm")}, "replace": True}
    else:
        config = run_config(read("/dev/stdin" if args.config == "-" else args.config))
    slots = how.pop("gpu_slots")
    result = None if args.fresh or not identity else folder.finished(out, identity, lambda text: None)
    if result:
        print(f"{name} is there already, whole", file=sys.stderr)
        folder.drop(out)  # where a kill came between the result and this
    else:
        with machine.one_gpu(slots if how["device"] != "cpu" else 0):
            import torch  # only now: it reads CUDA_VISIBLE_DEVICES once

            from rankcollapse.experiment.job import train

            if args.threads:
                torch.set_num_threads(args.threads)
            result = train(config, out, **how, as_planned=identity, name=name, fresh=args.fresh)
    os.utime(out / folder.RESULT)  # snakemake wants it newer than what it is made from
    ending = "" if result["outcome"] == "finished" else f", DIVERGED in epoch {result['epochs']}"
    cost = f"{result['seconds']:.0f} s, {result['images_per_second']:.0f} images/s on {result['device']}"
    split = "validation" if config.tuning else "test"
    print(f"{name}: {split} {100 * result[f'{split}_accuracy']:.1f} %{ending}, {cost}", file=sys.stderr)


def _data(args: argparse.Namespace) -> None:
    where = args.data_dir, args.ready, args.download
    print(datasets.prepare(args.name, *where, lambda text: print(text, file=sys.stderr)), file=sys.stderr)


def _tune(args: argparse.Namespace) -> None:
    from rankcollapse.experiment import collect, tuning  # with pandas, which a training job has no need of

    planned, table = plan.entries(args.results / "plan.json", "candidates"), args.results / "candidates.csv"
    found = collect.candidates(planned, args.results / "tuning", table, args.keep)
    collect.write(args.results / "tuned.csv", tuning.choose(found), digits=6)


def _collect(args: argparse.Namespace) -> None:
    from rankcollapse.experiment import collect

    planned = plan.entries(args.results / "plan.json", "runs")
    collect.runs(planned, args.results / "runs", args.results / "tables", args.keep)


def _seal(args: argparse.Namespace) -> None:
    files.seal(files.manifest(args.results), {"preset": args.results.name}, filter(os.path.exists, args.names), ".")


def _verify(args: argparse.Namespace) -> None:
    from rankcollapse.experiment.verify import verify

    presets = args.results or sorted(path.parent for path in Path("results").glob("*/manifest.json"))
    if not presets:
        raise InputError("results/ has no manifest.json yet: snakemake writes one as its last job")
    if sum(map(verify, presets)):
        raise InputError("the command that made them makes them again; a stray file is for you to delete")


def _check(args: argparse.Namespace) -> None:
    from rankcollapse.experiment import network

    for config in plan.distinct(args.plan):
        network.check(config)


def _schema(args: argparse.Namespace) -> None:
    if not args.check:
        files.write_text(args.path, grid.schema())
    elif not args.path.exists() or args.path.read_text(encoding="utf-8") != grid.schema():
        raise InputError(f"{args.path} is not the schema of experiment/config.py and grid.py: run `make schema`")


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m rankcollapse", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    sets = argparse.ArgumentParser(add_help=False)
    sets.add_argument("--data-dir", default="data", metavar="DIR", help="folder of the official files (default data)")
    sets.add_argument("--ready", metavar="DIR", help="folder of the converted sets (default DATA_DIR/ready)")
    sets.add_argument("--no-download", dest="download", action="store_false", help="stop where files are missing")
    results = argparse.ArgumentParser(add_help=False)
    results.add_argument("results", type=Path, metavar="RESULTS", help="folder of a preset, with its plan.json")
    results.add_argument("--keep", type=Path, metavar="DIR", help="tables as they were, whose rows are kept")

    train = commands.add_parser("train", parents=[sets], help="train one run and write its folder")
    train.add_argument("config", metavar="CONFIG", help="YAML or JSON file of a run's knobs, - for standard input")
    train.add_argument("--run", metavar="NAME", help="CONFIG is a grid's plan.json, and this the run of it to train")
    train.add_argument("--out", required=True, metavar="DIR", help="run folder to write")
    train.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where (default auto)")
    train.add_argument("--threads", type=_positive, help="CPU threads; torch's choice otherwise")
    train.add_argument("--gpu-slots", type=_positive, default=1, metavar="N", help="runs that may share one GPU")
    train.add_argument("--save-minutes", type=float, default=5.0, metavar="MIN", help="between two saves of its state")
    train.add_argument("--fresh", action="store_true", help="start over, whatever was saved or finished")
    data = commands.add_parser("data", parents=[sets], help="check a data set's official files and convert them")
    data.add_argument("name", choices=datasets.SETS)
    commands.add_parser("tune", parents=[results], help="write the table of candidates and that of choices")
    commands.add_parser("collect", parents=[results], help="write the tables of the runs")
    seal = commands.add_parser("seal", parents=[results], help="seal what was made of the runs, in manifest.json")
    seal.add_argument("names", nargs="*", metavar="FILE")
    verify = commands.add_parser("verify", help="check what was made against its seals, byte by byte")
    verify.add_argument("results", type=Path, nargs="*", metavar="RESULTS", help="folders of presets; all by default")
    check = commands.add_parser("check", help="see that the network and update of every run of a plan can be made")
    check.add_argument("plan", metavar="PLAN")
    schema = commands.add_parser("schema", help="write config.schema.json, by which editors check and complete configs")
    schema.add_argument("path", metavar="PATH", type=Path, nargs="?", default=Path("config.schema.json"))
    schema.add_argument("--check", action="store_true", help="exit 2 if it is not up to date")
    return top


COMMANDS = (_train, _data, _tune, _collect, _seal, _verify, _check, _schema)


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        {command.__name__: command for command in COMMANDS}[f"_{args.command}"](args)
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
