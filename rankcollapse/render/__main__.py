"""The command line: `python -m rankcollapse.render summarise | figure | pages | paper RESULTS`, and `readme`.

RESULTS is the folder of a preset with its tables and names.json, which snakemake writes: what things are called in it,
and look like. Figures go to figures/<preset>, the report where together.place says.
"""

import argparse
import sys
from pathlib import Path

from rankcollapse.errors import InputError
from rankcollapse.render.figures import titles
from rankcollapse.render.names import named

TEXTS = Path(__file__).parents[2] / "paper"

# Each command imports what it needs, and no more: a figure has no use for the paper's compiler.


def _summarise(results: Path, names: dict) -> None:
    from rankcollapse.render.summaries import summarise

    summarise(results, TEXTS, names["title"])


def _figure(results: Path, names: dict, figure: str) -> None:
    from rankcollapse.render.drawing import figure as draw

    draw(figure, results, Path(names["tuned"]), names["looks"], Path("figures", results.name, figure))


def _pages(results: Path, names: dict) -> None:
    from rankcollapse.render.pages import pages

    pages(results, Path("figures", results.name), Path(names["tuned"]), names)


def _paper(results: Path, names: dict) -> None:
    from rankcollapse.render.paper import paper
    from rankcollapse.render.together import place, together

    presets = {preset: named(results.parent / preset) for preset in together(results.name)}
    paper(TEXTS, presets, results.parent, place(results.name))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m rankcollapse.render", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        made = commands.add_parser(name)
        made.add_argument("results", type=Path, metavar="RESULTS")
        if name == "figure":
            made.add_argument("figure", choices=titles())
    readme = commands.add_parser("readme", help="write the generated blocks of the README.md that is here")
    readme.add_argument("--check", action="store_true", help="write nothing, and exit 2 if it is not up to date")
    return top


COMMANDS = {"summarise": _summarise, "figure": _figure, "pages": _pages, "paper": _paper}


def main(arguments: list[str] | None = None) -> int:
    options = vars(parser().parse_args(arguments))
    command = options.pop("command")
    try:
        if command == "readme":
            from rankcollapse.render.readme import readme

            readme(**options)
        else:
            COMMANDS[command](names=named(options["results"]), **options)
    except (InputError, FileNotFoundError) as error:
        lost = getattr(error, "filename", None)
        said = f"{lost} is not there: make it first, or give its right path" if lost else error
        print(f"rankcollapse: {said}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
