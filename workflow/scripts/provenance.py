"""What the results of a preset stand on: commit, versions, config hash, machine, date, seconds."""

import argparse
import hashlib
import json
import subprocess
from pathlib import Path

import pandas as pd
from analysis import load

from rankcollapse import files

ROOT = Path(__file__).resolve().parents[2]
GENERATED = [":!results", ":!figures", ":!README.md", ":(exclude,glob)paper/*/**"]


def commit(root: Path) -> str | None:
    """HEAD, with -dirty if a tracked file that is not generated differs from it; None without git or a repository."""
    if not (root / ".git").exists():  # or git would answer for a repository around this one
        return None
    head = ["git", "rev-parse", "HEAD"]
    status = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", *GENERATED]
    try:
        said = [subprocess.run(c, cwd=root, capture_output=True, check=True).stdout for c in (head, status)]
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[0].decode().strip() + ("-dirty" if said[1] else "")


def provenance(runs: pd.DataFrame, plan: dict, about: dict) -> dict:
    done = runs[runs["outcome"] != "missing"]
    configs = json.dumps({name: run["config"] for name, run in plan["runs"].items()}, sort_keys=True)
    several = {
        key: sorted(str(value) for value in done[key].dropna().unique())
        for key in ("device", "python", "rankcollapse", "torch", "code")
    }
    return {
        **about,
        "runs": {"planned": len(runs), **{k: int(v) for k, v in runs["outcome"].value_counts().items()}},
        "commit": commit(ROOT),
        # Of the resolved runs: equal hashes are equal grids, whatever the comments, labels and colours.
        "config_sha256": hashlib.sha256(configs.encode()).hexdigest(),
        **{key: values[0] if len(values) == 1 else values for key, values in several.items()},
        "started": done["started"].min(),
        "finished": done["finished"].max(),
        "run_seconds": round(float(done["seconds"].sum())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tidy tables")
    parser.add_argument("--plan", type=Path, required=True, help="plan.json")
    parser.add_argument("--about", type=json.loads, required=True, help="JSON with the preset's name and title")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    plan = json.loads(args.plan.read_text(encoding="utf-8"))
    files.write_json(args.out, provenance(load(args.tables)["runs"], plan, args.about))


if __name__ == "__main__":
    main()
