"""Check every planned run and its data before the first is trained. Standard input: JSON {runs, disk_mb, folder}."""

import json
import shutil
import sys
from pathlib import Path

from rankcollapse import data, models, optim
from rankcollapse.config import InputError, RunConfig


def check(runs: list[dict], disk_mb: float, folder: str) -> None:
    """Raises InputError for data that cannot be had, an intervention beyond a matrix, and a disk too small."""
    seen = set()
    for run in runs:
        config = RunConfig(**run)
        model = models.skeleton(config, data.SHAPES[config.dataset], data.CLASSES[config.dataset])
        optim.intervention(model, config)
        source = config.dataset, config.data_dir
        if source not in seen:
            data.LOADERS[config.dataset](config)
            seen.add(source)
    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e6
    if free < disk_mb:
        raise InputError(
            f"{folder} has {free:.0f} MB free, and this grid writes about {disk_mb:.0f} MB: free space, or drop seeds"
        )


if __name__ == "__main__":
    try:
        check(**json.load(sys.stdin))
    except InputError as error:
        sys.exit(str(error))
