"""What holds, in a few sentences and a table of depth utility, for README, report and paper, made of claims.csv."""

import pandas as pd

from rankcollapse.render import text
from rankcollapse.render.claims import WORDS, label
from rankcollapse.render.text import NONE, listed

VERDICTS = [*WORDS["statement"], "explained by the control", "inconclusive"]  # of what is counted, in this order


def findings(claims: pd.DataFrame) -> list[str]:
    """Whole sentences: what was reproduced, what the controls say, what is open. Empty without a tested claim."""
    tested = claims[claims["verdict"] != "not tested"]
    if tested.empty:
        return []
    parts = [_reproduced, _depth_utility, _shares, _open]
    return [sentence for part in parts for sentence in [part(tested)] if sentence]


def _named(rows: pd.DataFrame, most: int = 4) -> str:
    return f": {'; '.join(f'“{said}”' for said in rows['statement'])}" if 0 < len(rows) <= most else ""


def _points(value: float, low: float, high: float) -> str:
    return "+" * (value > 0) + text.number(value, (high - low) / 2)


def _reproduced(tested: pd.DataFrame) -> str:
    """The paper's statements and ours apart, and apart from both what is true by construction."""
    rows = tested[tested["family"] == "statement"]
    known, ours, said = rows["structural"].notna(), rows["source"] == "ours", []
    for whose, part in (("statements of the paper tested here", rows[~ours & ~known]), ("of ours", rows[ours & ~known])):
        by = [(verdict, part[part["verdict"] == verdict]) for verdict in VERDICTS]
        counts = [f"{len(mine)} {verdict}" for verdict, mine in by if len(mine)]
        said += [f"of {len(part)} {whose}, {listed(counts)}"] if len(part) else []
    said += [f"{known.sum()} more by construction, not counted"] if known.any() else []
    failed = rows[~known & (rows["verdict"] == WORDS["statement"][1])]
    said += [f"not reproduced{_named(failed)}"] if len(failed) else []
    words = "; ".join(said)
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _depth_utility(tested: pd.DataFrame) -> str:
    """By kind of frozen net: in how many comparisons FA beats it, and by what it does not."""
    rows, said = tested[tested["family"] == "depth utility"], []
    better, worse = WORDS["depth utility"]
    for learns, part in rows.groupby("frozen", sort=False):
        named = [
            f"{label(r.left)} in {r.study} {_points(r.difference, r.low, r.high)}"
            + (", which loses to it" if r.verdict == worse else "")
            for r in part[part["verdict"] != better].itertuples()
        ]
        words = f"{learns} {(part['verdict'] == better).sum()} of {len(part)} times"
        said.append(words + (f" (not {'; '.join(named)})" if named else ""))
    what = "A net trained by FA beats the same net with frozen hidden weights, by what learns in that one, in points"
    return f"{what}: {'; '.join(said)}." if said else ""


def _shares(tested: pd.DataFrame) -> str:
    """What the frozen nets have of each gain in accuracy."""
    rows = tested[tested["control_difference"].notna() & (tested["measure"] == "%") & (tested["difference"] > 0)]
    said = [
        f"{label(r.left)} over {label(r.right)} in {r.study} {_points(r.difference, r.low, r.high)} and "
        + _points(r.control_difference, r.control_low, r.control_high)
        + (f" ({r.verdict})" if r.verdict != WORDS["statement"][0] else "")
        for r in rows.itertuples()
    ]
    return f"Gains in points, FA's and those of a frozen net by the same remedy: {'; '.join(said)}." if said else ""


def _open(tested: pd.DataFrame) -> str:
    rows = tested[tested["verdict"] == "inconclusive"]
    statements, pairs = (rows[rows["family"] == family] for family in WORDS)
    said = [f"{_count(statements, 'statement')}{_named(statements)}"] if len(statements) else []
    said += [_count(pairs, "comparison") + " with a frozen net"] if len(pairs) else []
    return f"Open: {'; '.join([*said, 'and everything at the size of the paper'])}."


def _count(rows: pd.DataFrame, word: str) -> str:
    return f"{len(rows)} {word}{'s' * (len(rows) != 1)}"


def depth_table(shown: pd.DataFrame) -> list[list[str]]:
    """Of claims.csv as text: a head, then a row for each net and frozen net, a column for each study; or nothing."""
    rows = shown[shown["family"] == "depth utility"]
    tested, found = rows["verdict"] != "not tested", {}
    if not tested.any():
        return []
    studies = dict.fromkeys(rows.loc[tested, "study"])
    for row in rows.itertuples():
        said = "not tested" if row.verdict == "not tested" else f"{row.difference} {row.verdict.split()[0]}"
        found.setdefault((row.left, row.right, row.frozen), {})[row.study] = said
    head = ["trained net", "frozen net", "what learns in it", *studies]
    return [head, *([*names, *(cells.get(study, NONE) for study in studies)] for names, cells in found.items())]
