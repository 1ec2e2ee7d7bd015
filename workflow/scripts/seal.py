"""Seal what a preset has made: python seal.py results/PRESET FILE...

results/PRESET/manifest.json has the sha256 of each FILE, of each choice of the tuning, and of run.json of each run and
candidate, as far as it is there; their other files are sealed by that.
"""

import itertools
from pathlib import Path

from analysis import run

from rankcollapse import config, seals


def main(results: str, *names: str) -> None:
    plan, out = config.read(f"{results}/plan.json"), Path(results)
    runs = [f"{results}/runs/{name}/run.json" for name in plan["runs"]]
    runs += [f"{results}/tuning/{name}/run.json" for name in plan["candidates"]]
    choices = dict.fromkeys(planned["choice"] for planned in plan["runs"].values() if planned["choice"])
    there = [name for name in itertools.chain(names, choices, runs) if Path(name).exists()]
    seals.write(out / "manifest.json", {"preset": plan["preset"]}, there, ".")


if __name__ == "__main__":
    run(main)
