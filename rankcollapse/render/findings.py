"""What holds, in a few sentences and a table of depth utility, for README, report and paper, made of claims.csv."""

import pandas as pd

from rankcollapse.render.claims import WORDS, label
from rankcollapse.render.text import NONE, number

VERDICTS = [*WORDS["statement"], "explained by the control", "inconclusive"]  # of what is counted, in this order


def findings(claims: pd.DataFrame) -> list[str]:
    """Whole sentences: what was reproduced, what the controls say, what is open. Empty without a tested claim."""
    tested = claims[claims["verdict"] != "not tested"]
    parts = [_reproduced, _depth_utility, _open] if len(tested) else []
    return [sentence for part in parts if (sentence := part(tested))]


def _named(rows: pd.DataFrame, most: int = 4) -> str:
    return f": {'; '.join(f'“{said}”' for said in rows['statement'])}" if 0 < len(rows) <= most else ""


def _reproduced(tested: pd.DataFrame) -> str:
    """The paper's statements and ours apart, and apart from both what is true by construction."""
    rows, said = tested[tested["family"] == "statement"], []
    counted = rows[rows["structural"].isna()]
    for ours, part in counted.groupby(counted["source"] == "ours"):
        tally = part["verdict"].value_counts().reindex(VERDICTS).dropna().astype(int)
        whose = "that we add" if ours else "statements of the paper tested here"
        said.append(f"of {len(part)} {whose}, {', '.join(f'{n} {verdict}' for verdict, n in tally.items())}")
    said += [f"{len(rows) - len(counted)} more by construction, not counted"] * (len(rows) > len(counted))
    failed = [(verdict, counted[counted["verdict"] == verdict]) for verdict in VERDICTS[1:3]]
    words = "; ".join([*said, *(f"{verdict}{_named(part)}" for verdict, part in failed if len(part))])
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _depth_utility(tested: pd.DataFrame) -> str:
    """By kind of frozen net: in how many comparisons FA beats it, and by what it does not."""
    rows, said, (better, worse) = tested[tested["family"] == "depth utility"], [], WORDS["depth utility"]
    for learns, part in rows.groupby("frozen", sort=False):
        others = "; ".join(
            f"{label(r.left)} in {r.study} {'+' * (r.difference > 0)}{number(r.difference, (r.high - r.low) / 2)}"
            + ", which loses to it" * (r.verdict == worse)
            for r in part[part["verdict"] != better].itertuples()
        )
        won = (part["verdict"] == better).sum()
        said.append(f"{learns} {won} of {len(part)} times{f' (not {others})' if others else ''}")
    what = "A net trained by FA beats the same net with frozen hidden weights, by what learns in that one, in points"
    return f"{what}: {'; '.join(said)}." if said else ""


def _open(tested: pd.DataFrame) -> str:
    rows = tested[tested["verdict"] == "inconclusive"]
    statements, pairs = (rows[rows["family"] == family] for family in WORDS)
    said = [f"{len(statements)} statement{'s' * (len(statements) != 1)}{_named(statements)}"] if len(statements) else []
    said += [f"{len(pairs)} comparison{'s' * (len(pairs) != 1)} with a frozen net"] if len(pairs) else []
    return f"Open: {'; '.join([*said, 'and everything at the size of the paper'])}."


def depth_table(shown: pd.DataFrame) -> list[list[str]]:
    """Of claims.csv as text: a head, then a row for each net and frozen net, a column for each study; or nothing."""
    rows, found = shown[shown["family"] == "depth utility"], {}
    studies = dict.fromkeys(rows.loc[rows["verdict"] != "not tested", "study"])
    for row in rows.itertuples():
        said = row.verdict if row.verdict == "not tested" else f"{row.difference} {row.verdict.split()[0]}"
        if row.difference_finished != row.difference:
            said += f"; n = {row.n}, finished alone {row.n_finished}: {row.difference_finished}"
        found.setdefault((row.left, row.right, row.frozen), {})[row.study] = said
    head = ["trained net", "frozen net", "what learns in it", *studies]
    cells = [[*names, *(mine.get(study, NONE) for study in studies)] for names, mine in found.items()]
    return [head, *cells] if studies else []
