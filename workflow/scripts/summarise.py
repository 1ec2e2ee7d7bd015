"""From the tidy tables to the summaries that the paper prints: mean, standard deviation and n over seeds.

accuracy.csv, ranks.csv, alignment.csv, cost.csv. Means are those of the finished runs; diverged and missing ones are
counted beside them.
"""

import argparse
from pathlib import Path

import pandas as pd
import yaml

from rankcollapse import files

ARM = ["study", "dataset", "architecture", "arm"]
RUN = ["study", "dataset", "arm", "seed"]


def finished(runs: pd.DataFrame, tidy: pd.DataFrame) -> pd.DataFrame:
    """The rows of a tidy table that come from finished runs."""
    return tidy.merge(runs.loc[runs["outcome"] == "finished", RUN], on=RUN)


def spread(values: pd.core.groupby.DataFrameGroupBy, columns: list[str]) -> pd.DataFrame:
    """Mean and standard deviation over seeds of each column, as COLUMN_mean and COLUMN_std."""
    parts = {}
    for column in columns:
        parts[f"{column}_mean"], parts[f"{column}_std"] = values[column].mean(), values[column].std()
    return pd.DataFrame(parts)


def accuracy(runs: pd.DataFrame, published: list[dict]) -> pd.DataFrame:
    """Test accuracy in % per arm, beside the paper's where it gives one."""
    runs = runs.assign(test_percent=100 * runs["test_accuracy"], validation_percent=100 * runs["validation_accuracy"])
    measured = ["test_percent", "validation_percent"]
    runs[measured] = runs[measured].where(runs["outcome"] == "finished")
    arms = runs.groupby(ARM, sort=False)
    table = spread(arms, measured)
    table.insert(0, "n", arms["test_percent"].count())
    table.insert(1, "planned", arms.size())
    for position, outcome in enumerate(["diverged", "missing"], start=2):
        table.insert(position, outcome, arms["outcome"].agg(lambda o, name=outcome: (o == name).sum()))
    for column in ("lr", "weight_decay", "width"):
        table[column] = arms[column].first()
    table = table.reset_index()
    theirs = pd.DataFrame(published, columns=["dataset", "architecture", "arm", "paper_percent", "paper_source"])
    return table.merge(theirs, how="left", on=["dataset", "architecture", "arm"])


def ranks(tidy: pd.DataFrame) -> pd.DataFrame:
    """The four measures of each spectrum at the end of a run."""
    what = ["quantity", "layer", "scope"]
    measures = [column for column in tidy if column not in {*ARM, "seed", *what, "step", "rows"}]
    last = tidy.groupby([*ARM, "seed", *what])["step"].transform("max")
    groups = tidy[tidy["step"] == last].groupby([*ARM, *what], sort=False)
    table = spread(groups, measures)
    table.insert(0, "n", groups[measures[0]].count())
    table.insert(1, "rows", groups["rows"].max())
    return table.reset_index()


def alignment(tidy: pd.DataFrame) -> pd.DataFrame:
    """Cosines at the end of a run."""
    last = tidy.groupby([*ARM, "seed"])["step"].transform("max")
    groups = tidy[tidy["step"] == last].groupby([*ARM, "quantity", "layer"], sort=False)
    table = spread(groups, ["value"])
    table.insert(0, "n", groups["value"].count())
    return table.reset_index()


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """Seconds, throughput and peak memory of a finished run; probe_percent is the probes' share of training time."""
    runs = finished(runs, runs)
    runs = runs.assign(probe_percent=100 * runs["probe_seconds"] / runs["train_seconds"])
    arms = runs.groupby(ARM, sort=False)
    table = spread(arms, ["seconds", "images_per_second", "memory_mb", "probe_percent"])
    table.insert(0, "n", arms["seconds"].count())
    table["device"] = arms["device"].agg(lambda d: "; ".join(sorted(set(d.dropna()))))
    return table.reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tidy tables")
    parser.add_argument("--published", type=Path, required=True, help="the paper's own numbers, YAML")
    parser.add_argument("--out", type=Path, required=True, help="folder for the summaries")
    args = parser.parse_args()
    runs = pd.read_csv(args.tables / "runs.csv")
    summaries = {
        "accuracy": accuracy(runs, yaml.safe_load(args.published.read_text())),
        "ranks": ranks(finished(runs, pd.read_csv(args.tables / "ranks.csv.gz"))),
        "alignment": alignment(finished(runs, pd.read_csv(args.tables / "alignment.csv"))),
        "cost": cost(runs),
    }
    for name, table in summaries.items():
        files.write(args.out / f"{name}.csv", lambda path, t=table: t.to_csv(path, index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
