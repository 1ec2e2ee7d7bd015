"""From tidy tables to summaries, verdicts and provenance.

Means and standard deviations are over the n seeds that count by the rule in tables.py. Diverged and missing runs are
counted beside, and an arm without a run that counts has its row, with n = 0.
"""

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from rankcollapse.errors import InputError
from rankcollapse.experiment import files
from rankcollapse.experiment.collect import write
from rankcollapse.experiment.config import Settings
from rankcollapse.render.claims import read_claims, settled
from rankcollapse.render.findings import findings
from rankcollapse.render.tables import ARM, ENDED, MEASURES, SPECTRUM, Tables, at_steps, finished, last, load
from rankcollapse.render.tables import lowest_loss, steps_at

SETTINGS = ["rate", "lr", "weight_decay", "width", "learning_blocks", "rule", "normalization", "optimizer", "update"]
GENERATED = [":!results", ":!figures", ":!README.md", ":(exclude,glob)paper/*/**"]
DIGITS = 8  # so many that nothing is rounded twice


def spread(table: pd.DataFrame, by: list[str], columns: list[str], outcomes: Sequence = ("finished",)) -> pd.DataFrame:
    """n, and each column's mean and standard deviation, as COLUMN_mean and COLUMN_std, in each group that there is."""
    groups = table.assign(**table[columns].where(table["outcome"].isin(outcomes))).groupby(by, sort=False)
    parts = {"n": groups[columns[0]].count()}
    for column in columns:
        parts[f"{column}_mean"], parts[f"{column}_std"] = groups[column].mean(), groups[column].std()
    return pd.DataFrame(parts).reset_index()


def accuracy(runs: pd.DataFrame, published: list[dict]) -> pd.DataFrame:
    """Accuracies in % per arm, of all that ended and of what finished alone, beside the paper's where it gives one."""
    names = {"test_accuracy": "test_percent", "validation_accuracy": "validation_percent"}
    runs = runs.rename(columns=names).assign(planned=1, **{k: runs["outcome"] == k for k in ("diverged", "missing")})
    sound = {f"{name}_finished": runs[name].where(runs["outcome"] == "finished") for name in names.values()}
    counts = dict.fromkeys(["planned", "diverged", "missing"], "sum")
    about = runs.groupby(ARM).agg({**counts, **dict.fromkeys(SETTINGS, "first")})
    table = spread(runs.assign(**sound), ARM, [*names.values(), *sound], ENDED).join(about, on=ARM)
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


def grid_hash(runs: pd.DataFrame) -> str:
    """Of what was planned: equal hashes are equal grids, whatever the outcomes, the order, labels and colours."""
    settings = [key for key in (*Settings.model_fields, "rate") if key in runs and key not in (*ARM, "seed")]
    # A run that diverged ended early, and a missing one may have no rate yet: of an arm's seeds, what any has.
    groups = runs.sort_values("seed").groupby(ARM)
    table = groups.agg({key: "max" if key == "epochs" else "first" for key in settings})
    table["seeds"] = groups["seed"].agg(lambda seeds: " ".join(map(str, seeds)))
    return hashlib.sha256(table.to_csv(float_format=f"%.{DIGITS}g").encode()).hexdigest()


def provenance(runs: pd.DataFrame, preset: str, title: str) -> dict:
    """What the results stand on: versions, hashes of code and config, machine, dates, seconds."""
    done = runs[runs["outcome"] != "missing"]
    made_by = ["device", "precision", "python", "rankcollapse", "torch", "code"]
    several = {key: sorted({*values.dropna().astype(str)}) for key, values in done.reindex(columns=made_by).items()}
    return {
        "preset": preset,
        "title": title,
        "runs": {"planned": len(runs), **runs["outcome"].value_counts().to_dict()},
        "commit": commit(Path(__file__).resolve().parents[2]),
        "config_sha256": grid_hash(runs),
        **{key: values[0] if len(values) == 1 else values for key, values in several.items()},
        "started": done["started"].min(),
        "finished": done["finished"].max(),
        "run_seconds": round(float(done["seconds"].sum())),
    }


def published(path: Path) -> list[dict]:
    """The paper's accuracies. Raises InputError, one sentence, for a file that does not hold a list of them."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if all({*each} == {*ARM[1:], "paper_percent", "paper_source"} for each in found):
            return found
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as a list of the paper's accuracies ({' '.join(str(error).split())})")
    raise InputError(f"{path}: an entry must have {', '.join(ARM[1:])}, paper_percent and paper_source, and no more")


def summarise(results: Path, claims: Path, numbers: Path, title: str) -> None:
    """Write results/summary and provenance.json, from results/tables alone."""
    tables = load(results / "tables")
    summaries = {
        "accuracy": accuracy(tables["runs"], published(numbers)),
        "ranks": ends(tables["ranks"], SPECTRUM, MEASURES),
        "alignment": ends(tables["alignment"], ["quantity", "layer"], ["value"]),
        "norms": ends(tables["norms"], ["quantity", "layer"], ["value"]),
        "progress": progress(tables),
        "cost": cost(tables["runs"]),
        "claims": settled(read_claims(claims), tables),
    }
    for name, table in summaries.items():
        write(results / "summary" / f"{name}.csv", table, DIGITS)
    files.write_text(results / "summary" / "findings.txt", "\n".join(findings(summaries["claims"])) + "\n")
    files.write_json(results / "provenance.json", provenance(tables["runs"], results.resolve().name, title))
