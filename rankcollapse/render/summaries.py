"""From tidy tables to summaries, verdicts and provenance: over the n seeds that count by the rule in tables.py.

An arm without a run that counts has its row, with n = 0.
"""

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rankcollapse.experiment import files
from rankcollapse.experiment.collect import write
from rankcollapse.experiment.config import Settings
from rankcollapse.render import tables as tidy
from rankcollapse.render.claims import read_claims, settled
from rankcollapse.render.evidence import evidence
from rankcollapse.render.findings import MORE, NOTHING, findings, read_findings
from rankcollapse.render.joined import gains, heldout, joined
from rankcollapse.render.mediation import mediation, rules
from rankcollapse.render.tables import ARM, MEASURES, SPECTRUM, Tables, finished

SETTINGS = ["rate", "lr", "weight_decay", "width", "learning_blocks", "rule", "normalization", "optimizer", "update"]
# Of joined.csv, what stands beside an arm's accuracy.
BESIDE = ["whole_gradient_rank", "recent_gradient_rank", "gradient_rank", "error_rank", "alignment", "relative_update"]
GENERATED = [
    ":!results",
    ":!figures",
    ":!README.md",
    ":!docs/speed.md",
    ":!docs/running.md",
    ":(exclude,glob)paper/**/*.pdf",
]
DIGITS = 8  # so many that nothing is rounded twice


def spread(table: pd.DataFrame, by: list[str], columns: list[str], outcomes: Sequence = ("finished",)) -> pd.DataFrame:
    """n, and each column's mean and standard deviation, as COLUMN_mean and COLUMN_std, in each group that there is."""
    groups = table.assign(**table[columns].where(table["outcome"].isin(outcomes))).groupby(by, sort=False)
    parts = {"n": groups[columns[0]].count()}
    for column in columns:
        parts[f"{column}_mean"], parts[f"{column}_std"] = groups[column].mean(), groups[column].std()
    return pd.DataFrame(parts).reset_index()


def accuracy(runs: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Accuracies in % per arm, of all that ended and of what finished alone, beside the paper's where it gives one."""
    names = {"test_accuracy": "test_percent", "validation_accuracy": "validation_percent"}
    runs = runs.rename(columns=names).assign(planned=1, **{k: runs["outcome"] == k for k in ("diverged", "missing")})
    sound = {f"{name}_finished": runs[name].where(runs["outcome"] == "finished") for name in names.values()}
    counts = dict.fromkeys(["planned", "diverged", "missing"], "sum")
    about = runs.groupby(ARM).agg({**counts, **dict.fromkeys(SETTINGS, "first")})
    table = spread(runs.assign(**sound), ARM, [*names.values(), *sound], tidy.ENDED).join(about, on=ARM)
    return table.merge(theirs, how="left", on=ARM[1:])


def ends(table: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """Ranks or cosines at the end of a run; the rows of a matrix are the most that a run has."""
    table, by = tidy.last(table, by=by), [*ARM, *by]
    made = spread(table, by, columns)
    for column, how in {"rows": "max", "struck": "sum"}.items():
        made = made.join(table.groupby(by)[column].agg(how), on=by) if column in table else made
    return made


def progress(tables: Tables) -> pd.DataFrame:
    """Ranks of each arm and of BP with its normalisation, at the lowest training loss that both runs of a seed reach.

    Of the signals of one batch, of updates and of the latest gradients: their number of rows is that of any moment.
    """
    runs = finished(tables["runs"])
    runs = runs[runs["learning_blocks"].isna() & ~runs["rule"].str.startswith("frozen") & (runs["update"] == "full")]
    place, plain = [*ARM[:-1], "normalization"], runs[(runs["rule"] == "bp") & (runs["optimizer"] == "sgd")]
    references = plain.drop_duplicates(place)[[*place, "arm"]].rename(columns={"arm": "reference"})
    pairs = runs[runs["rule"] != "bp"].merge(references)[[*ARM, "reference"]].drop_duplicates()
    ranks = finished(tables["ranks"])
    spectra = dict([*ranks[ranks["scope"].isin(["batch", "step", "window"])].groupby([*ARM, *SPECTRUM], sort=False)])
    by_arm, rows = dict([*runs.groupby(ARM)]), []
    for *arm, reference in pairs.itertuples(index=False):
        arms = tuple(arm), (*arm[:-1], reference)
        losses, steps = tidy.equal_loss([by_arm[each] for each in arms], tables["epochs"])
        for spectrum in [key[len(ARM) :] for key in spectra if key[: len(ARM)] == arms[0]]:
            if (*arms[1], *spectrum) in spectra:
                both = {
                    side + measure: tidy.at_steps(spectra[*each, *spectrum], measure, at)
                    for side, each, at in zip(("", "reference_"), arms, steps, strict=True)
                    for measure in ("entropy_s", "entropy_s2")
                }
                both = pd.DataFrame({"loss": pd.Series(losses), **both}).dropna()
                moments = {f"{key}_{how}": both[key].agg(how) for key in both for how in ("mean", "std")}
                rows.append([*arm, reference, *spectrum, len(both), *moments.values()])
                columns = [*ARM, "reference", *SPECTRUM, "n", *moments]
    return pd.DataFrame(rows, columns=columns) if rows else pd.DataFrame(columns=[*ARM, "reference", *SPECTRUM, "n"])


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """Seconds, throughput and peak memory of a finished run; probe_percent is the probes' share of training time."""
    runs = runs.assign(probe_percent=100 * runs["probe_seconds"] / runs["train_seconds"])
    return spread(runs, ARM, ["seconds", "images_per_second", "memory_mb", "probe_percent"])


def commit(root: Path) -> str | None:
    """The last commit of what is not generated, with -dirty if any of that differs; None without git or a repository.

    So that results which are rendered, committed and rendered again are the same.
    """
    if not (root / ".git").exists():  # or git would answer for a repository around this one
        return None
    head = ["rev-list", "-1", "HEAD", "--", ".", *GENERATED]
    status = ["status", "--porcelain", "--untracked-files=no", "--", ".", *GENERATED]
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
    made_by = done.reindex(columns=["device", "precision", "python", "rankcollapse", "torch", "code"])
    several = {key: sorted({*values.dropna().astype(str)}) for key, values in made_by.items()}
    return {
        **{"preset": preset, "title": title},
        "runs": {"planned": len(runs), **runs["outcome"].value_counts().to_dict()},
        "rendered_from_commit": commit(Path(__file__).resolve().parents[2]),
        "config_sha256": grid_hash(runs),
        **{key: values[0] if len(values) == 1 else values for key, values in several.items()},
        **{"started": done["started"].min(), "finished": done["finished"].max()},
        "run_seconds": round(float(done["seconds"].sum())),
    }


def summarise(results: Path, texts: Path, title: str) -> None:
    """Write results/summary and provenance.json, from results/tables alone."""
    tables = tidy.load(results / "tables")
    beside = joined(tables)
    means = spread(beside, ARM, BESIDE).drop(columns="n")
    summaries = {
        "accuracy": accuracy(tables["runs"], tidy.published(texts)).merge(means, how="left", on=ARM),
        "ranks": ends(tables["ranks"], SPECTRUM, MEASURES),
        "alignment": ends(tables["alignment"], ["quantity", "layer"], ["value"]),
        "norms": ends(tables["norms"], ["quantity", "layer"], ["value"]),
        "progress": progress(tables),
        "cost": cost(tables["runs"]),
        "joined": beside,
        "gains": gains(beside, tables["runs"]),
        "mediation": mediation(tables),
        "rules": rules(beside),
        "heldout": heldout(beside, tables["runs"]),
        "claims": settled(read_claims(texts / "claims.yaml"), tables),
    }
    for name, table in summaries.items():
        write(results / "summary" / f"{name}.csv", table, DIGITS)
    preset = results.resolve().name
    files.write_json(results / "provenance.json", provenance(tables["runs"], preset, title))
    said = findings(read_findings(texts / "findings.yaml"), evidence({preset: results}))
    first = [words for name, words in said.items() if not name.endswith(MORE)]
    files.write_text(results / "summary" / "findings.txt", "\n".join(first or [NOTHING]) + "\n")
