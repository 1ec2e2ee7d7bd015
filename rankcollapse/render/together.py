"""Which presets stand in one report: all whose results the project commits. Another preset has a report of its own."""

from pathlib import Path

COMMITTED = ("quick", "full", "why", "paper")
RESULTS = Path("results")


def together(preset: str) -> list[str]:
    """The presets that stand in the report of this one: it, and what is rendered beside it."""
    if preset not in COMMITTED:
        return [preset]
    return [name for name in COMMITTED if name == preset or (RESULTS / name / "manifest.json").exists()]


def beside(preset: str) -> list[str]:
    """The files of the other presets of its report."""
    found = []
    for name in together(preset):
        if name != preset:
            found += [*(RESULTS / name / "summary").glob("*.csv"), *Path("figures", name).glob("*.svg")]
    return sorted(map(str, found))


def place(preset: str) -> Path:
    """Of the report that a preset stands in."""
    return Path("paper", *([] if preset in COMMITTED else [preset]), "replication.pdf")
