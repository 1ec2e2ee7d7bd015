"""The command line: `python -m rankcollapse.render summarise | figure | pages | paper | readme`, see --help."""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

from rankcollapse.errors import InputError
from rankcollapse.render.figures import titles

# Where the function of each command is. Imported then: a figure has no use for the paper's compiler.
HOME = {"summarise": "summaries", "figure": "drawing", "pages": "pages", "paper": "paper", "readme": "readme"}
PATHS = {"summarise": ["results", "--claims", "--published"], "figure": ["--results", "--tuned", "--out"]}
PATHS |= {"pages": ["results", "figures", "--tuned"], "paper": ["--text", "--results", "--figures", "--out"]}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m rankcollapse.render", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name) for name in HOME}
    for name, paths in PATHS.items():
        for path in paths:
            made[name].add_argument(path, type=Path, **({"required": True} if path.startswith("-") else {}))
    made["figure"].add_argument("name", choices=titles())
    utf_8 = {"type": lambda given: os.fsencode(given).decode("utf-8")}  # whatever the locale takes it for
    made["summarise"].add_argument("--title", required=True, help="what the preset is, in words", **utf_8)
    for name, option in (("figure", "--looks"), ("pages", "--names"), ("paper", "--names")):
        about = "what things are called, and look like, in this preset"
        made[name].add_argument(option, type=json.loads, required=True, metavar="JSON", help=about)
    made["readme"].add_argument(
        "--check", action="store_true", help="write nothing, and exit 2 if it is not up to date"
    )
    return top


def main(arguments: list[str] | None = None) -> int:
    options = vars(parser().parse_args(arguments))
    command = options.pop("command")
    try:
        getattr(importlib.import_module(f"rankcollapse.render.{HOME[command]}"), command)(**options)
    except (InputError, FileNotFoundError) as error:
        lost = getattr(error, "filename", None)
        said = f"{lost} is not there: make it first, or give its right path" if lost else error
        print(f"rankcollapse: {said}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
