"""What holds, in a few sentences and a table of depth utility, for README, report and paper, made of claims.csv."""

import pandas as pd

from rankcollapse.render.claims import DEPTH, label
from rankcollapse.render.text import NONE, number

VERDICTS = ["reproduced", "not reproduced", "explained by the control", "inconclusive"]  # of what counts, in this order


def findings(claims: pd.DataFrame) -> list[str]:
    """Whole sentences: what was reproduced, family by family, what the controls say. Empty without a tested claim."""
    tested = claims[claims["verdict"] != "not tested"]
    families = [*tested.groupby("family", sort=False)]
    return [(_depth_utility if name == DEPTH else _counted)(rows) for name, rows in families]


def _named(rows: pd.DataFrame, most: int = 4) -> str:
    return f": {'; '.join(f'“{said}”' for said in rows['statement'])}" if 0 < len(rows) <= most else ""


def _counted(rows: pd.DataFrame) -> str:
    """How often each verdict fell in a family, and on what those that fail, apart from what is so by construction."""
    family, counted = rows["family"].iloc[0], rows[rows["structural"].isna()]
    tally = counted["verdict"].value_counts().reindex(VERDICTS).dropna().astype(int)
    said = [f"of {len(counted)} statements {', '.join(f'{n} {verdict}' for verdict, n in tally.items())}"]
    said += [f"{len(rows) - len(counted)} more by construction"] * (len(rows) > len(counted))
    failed = [(verdict, counted[counted["verdict"] == verdict]) for verdict in VERDICTS[1:3]]
    said += [f"{verdict}{named}" for verdict, part in failed if (named := _named(part))]
    words = "; ".join(said)
    return f"{family} {words[0].upper()}{words[1:]}." if family.endswith("?") else f"{family}: {words}."


def _depth_utility(rows: pd.DataFrame) -> str:
    """By kind of frozen net: in how many comparisons FA beats it, and by what it does not."""
    said = []
    for learns, part in rows.groupby("frozen", sort=False):
        others = "; ".join(
            f"{label(r.left)} in {r.study} {'+' * (r.difference > 0)}{number(r.difference, (r.high - r.low) / 2)}"
            + ", which loses to it" * (r.verdict == "worse")
            for r in part[part["verdict"] != "better"].itertuples()
        )
        won = (part["verdict"] == "better").sum()
        said.append(f"{learns} {won} of {len(part)} times{f' (not {others})' if others else ''}")
    what = "A net trained by FA beats the same net with frozen hidden weights, by what learns in that one, in points"
    return f"{what}: {'; '.join(said)}."


def depth_table(shown: pd.DataFrame) -> list[list[str]]:
    """Of claims.csv as text: a head, then a row for each net and frozen net, a column for each study; or nothing."""
    rows, found = shown[shown["family"] == DEPTH], {}
    studies = dict.fromkeys(rows.loc[rows["verdict"] != "not tested", "study"])
    for row in rows.itertuples():
        said = row.verdict if row.verdict == "not tested" else f"{row.difference} {row.verdict.split()[0]}"
        if row.difference_finished != row.difference:
            said += f"; n = {row.n}, finished alone {row.n_finished}: {row.difference_finished}"
        found.setdefault((row.left, row.right, row.frozen), {})[row.study] = said
    head = ["trained net", "frozen net", "what learns in it", *studies]
    cells = [[*names, *(mine.get(study, NONE) for study in studies)] for names, mine in found.items()]
    return [head, *cells] if studies else []
