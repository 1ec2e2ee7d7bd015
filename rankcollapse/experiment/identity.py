"""What makes two runs the same run: a hash of knobs and of the code that trains."""

import ast
import functools
import hashlib
import json
from pathlib import Path

from rankcollapse.experiment.config import RunConfig

# The modules that a run's bits depend on, below the package; of knobs their values count.
TRAINING = (
    *(f"library/{name}.py" for name in ("error_signal", "feedback", "laws", "models", "norms", "processor")),
    *(f"library/{name}.py" for name in ("products", "rules", "signals", "spectra", "trajectory", "updates")),
    *(f"experiment/{name}.py" for name in ("data", "datasets", "network", "training")),
)
# The hash of code that trains as an earlier one did, up to rounding, and the hash that it keeps of that one. Since it:
# Newton-Schulz in float32 on CPUs without bfloat16, in training zeros for numbers below 1e-38, and other updates
# and interventions on errors.
KEEPS = {"a5bc98b048a363e7": "6bb0a93fe337149d"}
MEASURES = ("library/ranks.py",)  # what ranks.csv stands on


def identity(config: RunConfig, precision: str | None = None) -> str:
    """What a run's bits depend on, as a hash: knobs that differ from their defaults, and the code that trains.

    A new knob at its default, a comment, another Python or a new measure leaves it as it is. `precision` is what the
    grid asks for, where that is `auto`: the runs of one grid have the same identity on every processor.
    """
    knobs = config.model_dump(exclude_defaults=True) | ({"precision": precision} if precision else {})
    trained_by = KEEPS.get(code(TRAINING), code(TRAINING))
    return hashlib.sha256(json.dumps([knobs, trained_by], sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def code(modules: tuple[str, ...]) -> str:
    """Hash of modules of this package, comments, docstrings and layout aside, the same in every Python."""
    parts = []
    for name in modules:
        tree = ast.parse(Path(__file__).parents[1].joinpath(name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        parts.append(f"# {name}\n{_written(tree)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _written(node: object) -> str:
    """A syntax tree as text. A newer Python has fields that an older lacks, and empty texts in f-strings: those go."""
    if isinstance(node, list):
        return f"[{', '.join(map(_written, node))}]"
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    if isinstance(node, ast.JoinedStr):
        fields["values"] = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
    return f"{type(node).__name__}({', '.join(f'{name}={_written(value)}' for name, value in fields.items())})"
