"""The command line: `python -m rankcollapse.render summarise | figure | pages | paper | readme`, see --help."""

import argparse
import json
import sys
from pathlib import Path

from rankcollapse.errors import InputError
from rankcollapse.render.figures import titles

# Each imports what it needs, and no more: a figure has no use for the paper's compiler.


def _summarise(args: argparse.Namespace) -> None:
    from rankcollapse.render.summaries import summarise

    summarise(args.results, args.claims, args.published, args.title)


def _figure(args: argparse.Namespace) -> None:
    from rankcollapse.render.drawing import figure

    figure(args.name, args.results, args.tuned, args.looks, args.out)


def _pages(args: argparse.Namespace) -> None:
    from rankcollapse.render.pages import pages

    pages(args.results, args.figures, args.tuned, args.names)


def _paper(args: argparse.Namespace) -> None:
    from rankcollapse.render.paper import paper

    paper(args.text, args.names, args.results, args.figures, args.out)


def _readme(args: argparse.Namespace) -> None:
    from rankcollapse.render.readme import readme

    readme(args.check)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m rankcollapse.render", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    named = {"type": json.loads, "required": True, "metavar": "JSON", "help": "what things are called in this preset"}

    def command(name: str, about: str, *paths: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about)
        for path in paths:
            made.add_argument(path, type=Path, **({"required": True} if path.startswith("-") else {}))
        return made

    summarise = command("summarise", "summaries, claims and provenance", "results", "--claims", "--published")
    summarise.add_argument("--title", required=True, help="what the preset is, in words")
    figure = command("figure", "one figure with its caption", "--results", "--tuned", "--out")
    figure.add_argument("name", choices=titles())
    figure.add_argument("--looks", type=json.loads, required=True, help='JSON: {"arms": {...}, "studies": {...}}')
    command("pages", "READMEs, and summaries as HTML", "results", "figures", "--tuned").add_argument("--names", **named)
    paper = command("paper", "the PDF", "--text", "--results", "--figures", "--out")
    paper.add_argument("--names", **named)
    readme = command("readme", "the generated blocks of the README.md that is here")
    readme.add_argument("--check", action="store_true", help="write nothing, and exit 2 if they are not up to date")
    return top


COMMANDS = {"summarise": _summarise, "figure": _figure, "pages": _pages, "paper": _paper, "readme": _readme}


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        COMMANDS[args.command](args)
    except InputError as error:
        print(f"rankcollapse: {error}", file=sys.stderr)
        return 2
    except FileNotFoundError as error:
        print(f"rankcollapse: {error.filename} is not there: make it first, or give its right path", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
