"""From the tidy tables to the summaries that the paper prints: mean, standard deviation and n over seeds.

accuracy.csv, ranks.csv, alignment.csv, cost.csv. Means are those of the finished runs; diverged and missing ones are
counted beside them, and an arm without a finished run has its row, with n = 0.
"""

import argparse
from pathlib import Path

import pandas as pd
import yaml
from analysis import ARM, MEASURES, SPECTRUM, last, load, spread, write

SETTINGS = ["lr", "weight_decay", "width", "rule", "normalization", "optimizer", "update"]


def over_finished(table: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """The spread over finished runs, with a row for each group that there is."""
    values = table[columns].where(table["outcome"] == "finished")
    return spread(table.assign(**values), by, columns)


def accuracy(runs: pd.DataFrame, published: list[dict]) -> pd.DataFrame:
    """Test accuracy in % per arm, beside the paper's where it gives one."""
    runs = runs.rename(columns={"test_accuracy": "test_percent", "validation_accuracy": "validation_percent"})
    runs = runs.assign(**{name: runs["outcome"] == name for name in ("diverged", "missing")})
    arms = runs.groupby(ARM, sort=False)
    counts = arms.agg(planned=("seed", "size"), diverged=("diverged", "sum"), missing=("missing", "sum"))
    table = over_finished(runs, ARM, ["test_percent", "validation_percent"])
    table = table[[*ARM, "n"]].join(counts, on=ARM).join(table.drop(columns=[*ARM, "n"]))
    theirs = pd.DataFrame(published, columns=["dataset", "architecture", "arm", "paper_percent", "paper_source"])
    return table.join(arms[SETTINGS].first(), on=ARM).merge(theirs, how="left", on=["dataset", "architecture", "arm"])


def ranks(ranks: pd.DataFrame) -> pd.DataFrame:
    """The four measures of each spectrum at the end of a run."""
    ends, by = last(ranks, by=SPECTRUM), [*ARM, *SPECTRUM]
    table = over_finished(ends, by, MEASURES).join(ends.groupby(by)["rows"].max(), on=by)
    return table[[*by, "n", "rows", *table.columns[len(by) + 1 : -1]]]


def alignment(alignment: pd.DataFrame) -> pd.DataFrame:
    """Cosines at the end of a run."""
    by = ["quantity", "layer"]
    return over_finished(last(alignment, by=by), [*ARM, *by], ["value"])


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """Seconds, throughput and peak memory of a finished run; probe_percent is the probes' share of training time."""
    runs = runs.assign(probe_percent=100 * runs["probe_seconds"] / runs["train_seconds"])
    table = over_finished(runs, ARM, ["seconds", "images_per_second", "memory_mb", "probe_percent"])
    device = runs.groupby(ARM)["device"].agg(lambda names: "; ".join(sorted(set(names.dropna()))))
    return table.join(device, on=ARM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tidy tables")
    parser.add_argument("--published", type=Path, required=True, help="the paper's own numbers, YAML")
    parser.add_argument("--out", type=Path, required=True, help="folder for the summaries")
    args = parser.parse_args()
    tables, published = load(args.tables), yaml.safe_load(args.published.read_text(encoding="utf-8"))
    summaries = {
        "accuracy": accuracy(tables["runs"], published),
        "ranks": ranks(tables["ranks"]),
        "alignment": alignment(tables["alignment"]),
        "cost": cost(tables["runs"]),
    }
    for name, table in summaries.items():
        write(args.out / f"{name}.csv", table, digits=4)


if __name__ == "__main__":
    main()
