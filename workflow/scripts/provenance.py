"""What the results of a preset stand on: versions, config hash, machine, date, seconds."""

import argparse
import hashlib
import json
from pathlib import Path

import pandas as pd

from rankcollapse import files


def provenance(runs: pd.DataFrame, plan: Path, about: dict) -> dict:
    done = runs[runs["outcome"] != "missing"]
    several = {
        key: sorted(str(value) for value in done[key].dropna().unique())
        for key in ("device", "python", "rankcollapse", "torch", "torchvision")
    }
    return {
        **about,
        "runs": {"planned": len(runs), **{k: int(v) for k, v in runs["outcome"].value_counts().items()}},
        # Of the resolved runs: equal hashes are equal grids, whatever the comments, labels and colours.
        "config_sha256": hashlib.sha256(plan.read_bytes()).hexdigest(),
        **{key: values[0] if len(values) == 1 else values for key, values in several.items()},
        "started": done["started"].min(),
        "finished": done["finished"].max(),
        "run_seconds": round(float(done["seconds"].sum())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="runs.csv")
    parser.add_argument("--plan", type=Path, required=True, help="plan.csv")
    parser.add_argument("--about", type=json.loads, required=True, help="JSON with the preset's name and title")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    files.write_json(args.out, provenance(pd.read_csv(args.runs), args.plan, args.about))


if __name__ == "__main__":
    main()
