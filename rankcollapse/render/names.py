"""What things are called in a preset: of its names.json, which Snakemake writes, and of what knows its own titles."""

from pathlib import Path

from rankcollapse.experiment import config, datasets
from rankcollapse.render.figures import drawn, titles


def named(results: Path) -> dict:
    """Labels of arms, studies, data sets and figures. Raises InputError if names.json cannot be read."""
    found = config.read(results / "names.json")
    labels = {name: arm["label"] for name, arm in found["looks"]["arms"].items()}
    sets = {name: record.label for name, record in datasets.SETS.items()}
    known = {"titles": titles(), "figures": drawn(Path("figures", results.name)), "labels": labels, "datasets": sets}
    return {**found, **known, "preset": results.name, "studies": found["looks"]["studies"]}
