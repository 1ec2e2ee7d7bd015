"""The figures, a module each, whose docstring begins with its number and title: `9. Tuning.`

A module has SHOWN, the runs it shows, as a query on runs.csv and what drawing.labelled adds, None for all; SPREAD, what
in it shows the spread over seeds, `bands` or `bars`, "" for nothing, None if its caption says itself what it stands on;
OVER, which of the runs its means are over, if not `finished`; data(tables), the tidy table that it is drawn from, empty
if the preset lacks what it takes; draw(table, looks), which returns its grid or figure; and caption(table), what is
drawn, in whole sentences, or a tuple of that, its numbers, which the report leaves out, and what it stands on, if
SPREAD is None. drawing.figure makes the files of it.
"""

import ast
from pathlib import Path

from rankcollapse.errors import InputError

NOTHING = "this preset has no finished runs for it"  # the words of a figure that has nothing to draw
NUMBERS, SCRIPT = "In numbers: ", "Drawn by "  # how two lines of a caption begin


def titles() -> dict[str, str]:
    """Each figure's number and title, by the name of its module, in order. Imports none of them."""
    found = {}
    for path in Path(__file__).parent.glob("[!_]*.py"):
        head = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        if not head.split(".")[0].isdigit():
            raise InputError(f"{path.name}: its docstring must begin with its number and title, as in `9. Title.`")
        found[path.stem] = head.rstrip(".")
    return dict(sorted(found.items(), key=lambda item: int(item[1].split(".")[0])))


def drawn(folder: Path) -> list[str]:
    """The figures of the folder in order, but those that had nothing to draw."""
    captions = {name: folder / f"{name}.txt" for name in titles()}
    there = {name: path.read_text(encoding="utf-8") for name, path in captions.items() if path.exists()}
    return [name for name, caption in there.items() if NOTHING not in caption]
