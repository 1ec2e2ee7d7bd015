"""Check every planned run and its data before the first is trained, and list the runs in plan.csv."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(snakemake.scriptdir).parents[1]))  # noqa: F821

import pandas as pd

from rankcollapse import data, files, models, optim
from rankcollapse.config import InputError, RunConfig


def check(runs: list[dict], disk_mb: float, folder: Path) -> None:
    """Raises InputError for data that cannot be had, an intervention beyond a matrix, and a disk too small."""
    seen = set()
    for run in runs:
        config = RunConfig(**{key: value for key, value in run.items() if key not in ("study", "arm")})
        model = models.skeleton(config, data.SHAPES[config.dataset], data.CLASSES[config.dataset])
        optim.intervention(model, config)
        source = config.dataset, config.data_dir
        if source not in seen:
            data.LOADERS[config.dataset](config)
            seen.add(source)
    free = shutil.disk_usage(folder).free / 1e6
    if free < disk_mb:
        raise InputError(
            f"{folder} has {free:.0f} MB free, and this grid writes about {disk_mb:.0f} MB: free space, or drop seeds"
        )


def main(runs: list[dict], disk_mb: float, out: Path) -> None:
    check(runs, disk_mb, out.parent)
    table = pd.DataFrame(runs)
    files.write(out, lambda path: table.to_csv(path, index=False))


with open(snakemake.log[0], "w") as log:  # noqa: F821
    try:
        main(snakemake.params.runs, snakemake.params.disk_mb, Path(snakemake.output[0]))  # noqa: F821
    except InputError as error:
        print(f"rankcollapse: {error}", file=log)
        sys.exit(f"rankcollapse: {error}")
