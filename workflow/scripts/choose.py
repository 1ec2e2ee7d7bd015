"""From the candidates of the tuning to the choices: python choose.py results/PRESET [STUDY/DATASET/ARM]

With an arm: its choice.json, the knobs of its best candidate, or of the row that the plan's `tuned` table marks as
chosen. Without: tuned.csv, a row per candidate. The best has the highest mean validation accuracy over the tuning seeds
at the end of training; a candidate that diverged with any of them is shown and never chosen.
"""

from pathlib import Path

import pandas as pd
from analysis import read, run, write

from rankcollapse import config, files, grid, seals
from rankcollapse.errors import InputError

KEYS = ["study", "dataset", "arm"]
KNOBS = list(grid.SHORT)
COLUMNS = [*KEYS, *KNOBS, "epochs", "n", "diverged", "validation_percent_mean", "validation_percent_std"]
COLUMNS += ["full_percent", "chosen", "edge"]
MEND = "lower or widen its `tune` in the config if all candidates diverged, or leave `tuned` out to tune anew"


def scores(plan: dict, results: Path, arm: str = "") -> pd.DataFrame:
    """A row per run of a candidate that is there, of all arms or of one."""
    rows = []
    for name, planned in plan["candidates"].items():
        path = results / "tuning" / name / "run.json"
        if name.startswith(f"{arm}/" if arm else "") and path.exists():
            knobs, found = planned["config"], seals.read(path)
            row = {key: planned[key] for key in ("study", "arm")} | {key: knobs[key] for key in ("dataset", *KNOBS)}
            row |= {"epochs": knobs["epochs"], "full": planned["candidate"].endswith("-full")}
            rows.append({**row, **{key: found[key] for key in ("outcome", "validation_accuracy")}})
    return pd.DataFrame(rows, columns=[*KEYS, *KNOBS, "epochs", "full", "outcome", "validation_accuracy"])


def table(scores: pd.DataFrame) -> pd.DataFrame:
    """tuned.csv: a row per candidate, in the order of the plan, with the choice of each arm marked."""
    scores = scores.assign(diverged=scores["outcome"] == "diverged", percent=100 * scores["validation_accuracy"])
    by, full = [*KEYS, *KNOBS], scores["full"].astype(bool)
    groups = scores[~full].groupby(by, sort=False)
    found = groups.agg(
        epochs=("epochs", "first"),
        n=("percent", "count"),
        diverged=("diverged", "sum"),
        validation_percent_mean=("percent", "mean"),
        validation_percent_std=("percent", "std"),
    ).reset_index()
    checks = scores[full & ~scores["diverged"]].set_index(by)["percent"].rename("full_percent")
    found = found.join(checks, on=by).assign(chosen=False, edge="")
    for _, part in found.groupby(KEYS, sort=False):
        sound = part[part["diverged"] == 0]
        if len(sound):
            best = sound.sort_values(KNOBS)["validation_percent_mean"].idxmax()  # of equals that of the smaller rate
            found.loc[best, ["chosen", "edge"]] = True, edge(part, part.loc[best])
    return found.reindex(columns=COLUMNS)


def edge(part: pd.DataFrame, best: pd.Series) -> str:
    """At which end of the values tried the best one's are; beyond one that diverged, or 0, there is nothing to try."""
    found = []
    for knob in KNOBS:
        values = part[knob].unique()
        if len(values) > 1 and best[knob] in (values.min() or None, values.max()):
            found.append(f"{knob} {'smallest' if best[knob] == values.min() else 'largest'}")
    return ", ".join(found)


def choice(rows: pd.DataFrame, arm: str, knobs: list[str], where: str) -> dict[str, float]:
    """The knobs of the chosen row of an arm. Raises InputError if there is none, or for another kind of table."""
    lacking = [column for column in (*KEYS, *knobs, "chosen") if column not in rows]
    if lacking:
        raise InputError(f"{where} lacks the column {lacking[0]!r}: it must be a table of choices, tuned.csv")
    rows = rows[(rows[KEYS] == arm.split("/")).all(axis=1) & rows["chosen"]]
    if len(rows) != 1:
        raise InputError(f"{where} has {len(rows)} choices for {arm}, and not one: {MEND}")
    return {knob: float(rows[knob].iloc[0]) for knob in knobs}


def given(path: str) -> pd.DataFrame:
    """The table of choices at `path`. Raises InputError for a file that is no table."""
    try:
        return read(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as a table ({reason}): it must be one of choices, tuned.csv"
        ) from error


def main(results: str, arm: str = "") -> None:
    plan = config.read(f"{results}/plan.json")
    if not arm:
        return write(f"{results}/tuned.csv", table(scores(plan, Path(results))), digits=6)
    path = f"{results}/tuning/{arm}/choice.json"
    waiting = next(run for run in plan["runs"].values() if run["choice"] == path)
    knobs = [knob for knob in KNOBS if knob not in waiting["config"]]
    rows = given(plan["tuned"]) if plan["tuned"] else table(scores(plan, Path(results), arm))
    files.write_json(path, choice(rows, arm, knobs, plan["tuned"] or "the tuning"))


if __name__ == "__main__":
    run(main)
