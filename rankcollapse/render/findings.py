"""What holds, in a few sentences for README, report and paper, made of claims.csv."""

import pandas as pd

from rankcollapse.render.claims import WORDS, label


def points(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def listed(words: list[str], last: str = "and") -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def findings(claims: pd.DataFrame) -> list[str]:
    """Whole sentences: what was reproduced, what the controls say, what is open. Empty without a tested claim."""
    tested = claims[claims["verdict"] != "not tested"]
    if tested.empty:
        return []
    parts = [_reproduced, _depth_utility, _shares, _open]
    return [sentence for part in parts for sentence in [part(tested)] if sentence]


def _named(rows: pd.DataFrame, most: int = 4) -> str:
    return f": {'; '.join(f'“{said}”' for said in rows['statement'])}" if 0 < len(rows) <= most else ""


def _reproduced(tested: pd.DataFrame) -> str:
    rows = tested[(tested["family"] == "statement") & ~tested["structural"].astype(bool)]
    by = {verdict: rows[rows["verdict"] == verdict] for verdict in (*WORDS["statement"], "explained by the control")}
    counts = [f"{len(part)} {verdict}" for verdict, part in by.items() if len(part)]
    said = f"Of {len(rows)} statements tested here, {listed(counts) or 'none could be settled'}"
    lost = by["not reproduced"]
    return f"{said}{f'; not reproduced{_named(lost)}' if len(lost) else ''}."


def _depth_utility(tested: pd.DataFrame) -> str:
    """By kind of frozen net: in how many comparisons FA beats it, and by what it does not."""
    rows, said = tested[tested["family"] == "depth utility"], []
    better, worse = WORDS["depth utility"]
    for learns, part in rows.groupby("frozen", sort=False):
        named = [
            f"{label(r.left)} in {r.study} {points(r.difference)}{', which loses to it' if r.verdict == worse else ''}"
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
        f"{label(r.left)} over {label(r.right)} in {r.study} {points(r.difference)} and {points(r.control_difference)}"
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
