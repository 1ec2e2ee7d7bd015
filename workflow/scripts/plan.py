"""List the planned runs with their configs, a row each."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(snakemake.scriptdir).parents[1]))  # noqa: F821

import pandas as pd

from rankcollapse import files

table = pd.DataFrame(snakemake.params.runs)  # noqa: F821
files.write(snakemake.output[0], lambda path: table.to_csv(path, index=False))  # noqa: F821
