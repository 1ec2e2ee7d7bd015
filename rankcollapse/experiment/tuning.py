"""From the candidates of the tuning to the choices, tuned.csv.

An arm's choice is the candidate with the highest mean validation accuracy over the tuning seeds at the end of training;
one that diverged with any of them is shown and never chosen.
"""

import pandas as pd

from rankcollapse.experiment.collect import KNOBS

ARM = ["study", "dataset", "arm"]
COLUMNS = [*ARM, *KNOBS, "epochs", "n", "diverged", "validation_percent_mean", "validation_percent_std"]
COLUMNS += ["full_percent", "chosen", "edge"]


def choose(candidates: pd.DataFrame) -> pd.DataFrame:
    """tuned.csv from candidates.csv: a row per candidate, in the order of the plan, with the choices marked."""
    scores = candidates.assign(
        full=candidates["candidate"].astype(str).str.endswith("-full"),
        diverged=candidates["outcome"] == "diverged",
        percent=100 * candidates["validation_accuracy"].astype(float),
    )
    by, full = [*ARM, *KNOBS], scores["full"]
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
    for _, part in found.groupby(ARM, sort=False):
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
