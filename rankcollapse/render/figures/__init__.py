"""The figures, a module each: its docstring begins with its number and title."""

import ast
from pathlib import Path


def titles() -> dict[str, str]:
    """The figures by name, in their order, with their titles."""
    found = {}
    for path in Path(__file__).parent.glob("[a-z]*.py"):
        doc = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        number, _, title = doc.partition(". ")
        if not number.isdigit():
            raise ValueError(f"{path.name}: its docstring must begin with its number and title, as in `9. Title.`")
        found[path.stem] = int(number), doc.rstrip(".")
    return {name: title for name, (_, title) in sorted(found.items(), key=lambda item: item[1][0])}
