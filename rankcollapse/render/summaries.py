"""From tidy tables to summaries, verdicts and provenance: python summarise.py results/PRESET paper

Means and standard deviations are over the seeds of finished runs, n of them. Diverged and missing runs are counted
beside, and an arm without a finished run has its row, with n = 0.
"""

import hashlib
import json
import subprocess
from pathlib import Path

import pandas as pd
import yaml

from rankcollapse.experiment import config, files
from rankcollapse.render.claims import read_claims, settled
from rankcollapse.render.findings import findings
from rankcollapse.render.tables import (
    ARM,
    MEASURES,
    SPECTRUM,
    Tables,
    at_steps,
    finished,
    last,
    load,
    lowest_loss,
    run,
    steps_at,
    write,
)

SETTINGS = ["rate", "lr", "weight_decay", "width", "learning_blocks", "rule", "normalization", "optimizer", "update"]
GENERATED = [":!results", ":!figures", ":!README.md", ":(exclude,glob)paper/*/**"]


def spread(table: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """n, and each column's mean and standard deviation, as COLUMN_mean and COLUMN_std, in each group that there is."""
    groups = table.assign(**table[columns].where(table["outcome"] == "finished")).groupby(by, sort=False)
    parts = {"n": groups[columns[0]].count()}
    for column in columns:
        parts[f"{column}_mean"], parts[f"{column}_std"] = groups[column].mean(), groups[column].std()
    return pd.DataFrame(parts).reset_index()


def accuracy(runs: pd.DataFrame, published: list[dict]) -> pd.DataFrame:
    """Test accuracy in % per arm, beside the paper's where it gives one."""
    runs = runs.rename(columns={"test_accuracy": "test_percent", "validation_accuracy": "validation_percent"})
    runs = runs.assign(planned=1, **{name: runs["outcome"] == name for name in ("diverged", "missing")})
    counts = dict.fromkeys(["planned", "diverged", "missing"], "sum")
    about = runs.groupby(ARM).agg({**counts, **dict.fromkeys(SETTINGS, "first")})
    table = spread(runs, ARM, ["test_percent", "validation_percent"]).join(about, on=ARM)
    theirs = pd.DataFrame(published, columns=[*ARM[1:], "paper_percent", "paper_source"])
    return table.merge(theirs, how="left", on=ARM[1:])


def ends(table: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """Ranks or cosines at the end of a run; the rows of a matrix are the most that a run has."""
    table, by = last(table, by=by), [*ARM, *by]
    made = spread(table, by, columns)
    for column, how in {"rows": "max", "struck": "sum"}.items():
        made = made.join(table.groupby(by)[column].agg(how), on=by) if column in table else made
    return made


def progress(tables: Tables) -> pd.DataFrame:
    """Ranks of each arm and of BP with its normalisation, at the lowest training loss that both runs of a seed reach.

    Of the signals of one batch, of updates and of the latest gradients: their number of rows is that of any moment.
    """
    runs, lowest = finished(tables["runs"]), lowest_loss(tables["epochs"])
    runs = runs[runs["learning_blocks"].isna() & ~runs["rule"].str.startswith("frozen") & (runs["update"] == "full")]
    ranks = finished(tables["ranks"])
    ranks = dict([*ranks[ranks["scope"].isin(["batch", "step", "window"])].groupby([*ARM, *SPECTRUM], sort=False)])
    rows = []
    for _, arms in runs.groupby(ARM[:-1], sort=False):
        references = arms[(arms["rule"] == "bp") & (arms["optimizer"] == "sgd")].drop_duplicates("normalization")
        references = references[["normalization", "arm"]].rename(columns={"arm": "reference"})
        pairs = arms[arms["rule"] != "bp"].merge(references, on="normalization")
        for (*arm, reference), both in pairs.groupby([*ARM, "reference"], sort=False):
            other = [*arm[:-1], reference]
            losses = pd.concat([lowest.loc[tuple(key)].reindex(both["seed"]) for key in (arm, other)], axis=1)
            losses = losses.max(axis=1, skipna=False).dropna()
            if losses.empty:
                continue
            steps = [steps_at(tables["epochs"], pd.concat({tuple(key): losses}, names=ARM)) for key in (arm, other)]
            for key, table in ranks.items():
                there = ranks.get((*other, *key[len(ARM) :]))
                if key[: len(ARM)] == tuple(arm) and there is not None:
                    rows.append(dict(zip([*ARM, *SPECTRUM], key, strict=True)) | {"reference": reference})
                    rows[-1] |= _equal(table, there, steps, losses)
    columns = [*ARM, "reference", *SPECTRUM, "n", "loss_mean"]
    return pd.DataFrame(rows).reindex(columns=[*columns, *(c for c in (rows[0] if rows else ()) if c not in columns)])


def _equal(table: pd.DataFrame, there: pd.DataFrame, steps: list[pd.Series], losses: pd.Series) -> dict:
    """Means over seeds of both sides' ranks at these steps, which are those of these losses, by seed."""
    values = {}
    for side, rows, at in zip(("", "reference_"), (table, there), steps, strict=True):
        for measure in ("entropy_s", "entropy_s2"):
            values[side + measure] = at_steps(rows, measure, at).droplevel(ARM)
    both = pd.DataFrame(values).dropna()
    row = {"n": len(both), "loss_mean": losses.reindex(both.index).mean()}
    return row | {f"{name}_{how}": getattr(both[name], how)() for name in values for how in ("mean", "std")}


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """Seconds, throughput and peak memory of a finished run; probe_percent is the probes' share of training time."""
    runs = runs.assign(probe_percent=100 * runs["probe_seconds"] / runs["train_seconds"])
    device = runs.groupby(ARM)["device"].agg(lambda names: "; ".join(sorted(set(names.dropna()))))
    return spread(runs, ARM, ["seconds", "images_per_second", "memory_mb", "probe_percent"]).join(device, on=ARM)


def commit(root: Path) -> str | None:
    """HEAD, with -dirty if a tracked file that is not generated differs from it; None without git or a repository."""
    if not (root / ".git").exists():  # or git would answer for a repository around this one
        return None
    head, status = ["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", ".", *GENERATED]
    try:
        said = [subprocess.check_output(["git", *words], cwd=root, encoding="utf-8") for words in (head, status)]
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[0].strip() + ("-dirty" if said[1] else "")


def provenance(runs: pd.DataFrame, plan: dict) -> dict:
    """What the results stand on: versions, hashes of code and config, machine, dates, seconds."""
    done, made_by = runs[runs["outcome"] != "missing"], ["device", "python", "rankcollapse", "torch", "code"]
    configs = json.dumps({name: run["config"] for name, run in plan["runs"].items()}, sort_keys=True)
    several = {key: sorted({*values.dropna().astype(str)}) for key, values in done.reindex(columns=made_by).items()}
    return {
        **{key: plan[key] for key in ("preset", "title")},
        "runs": {"planned": len(runs), **runs["outcome"].value_counts().to_dict()},
        "commit": commit(Path(__file__).resolve().parents[2]),
        # Of the resolved runs: equal hashes are equal grids, whatever the comments, labels and colours.
        "config_sha256": hashlib.sha256(configs.encode()).hexdigest(),
        **{key: values[0] if len(values) == 1 else values for key, values in several.items()},
        "started": done["started"].min(),
        "finished": done["finished"].max(),
        "run_seconds": round(float(done["seconds"].sum())),
    }


def main(results: str, paper: str) -> None:
    tables, published = load(Path(results, "tables")), Path(paper, "published.yaml").read_text(encoding="utf-8")
    summaries = {
        "accuracy": accuracy(tables["runs"], yaml.safe_load(published)),
        "ranks": ends(tables["ranks"], SPECTRUM, MEASURES),
        "alignment": ends(tables["alignment"], ["quantity", "layer"], ["value"]),
        "norms": ends(tables["norms"], ["quantity", "layer"], ["value"]),
        "progress": progress(tables),
        "cost": cost(tables["runs"]),
        "claims": settled(read_claims(Path(paper, "claims.yaml")), tables),
    }
    for name, table in summaries.items():
        write(f"{results}/summary/{name}.csv", table, digits=4)
    files.write_text(f"{results}/summary/findings.txt", "\n".join(findings(summaries["claims"])) + "\n")
    files.write_json(f"{results}/provenance.json", provenance(tables["runs"], config.read(f"{results}/plan.json")))


if __name__ == "__main__":
    run(main)
