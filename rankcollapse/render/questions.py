"""Every question with its claims and their verdicts, as tables of text, for the pages, made of claims.csv."""

import pandas as pd

from rankcollapse.render.claims import DEPTH
from rankcollapse.render.findings import depth_table
from rankcollapse.render.text import NONE

HEAD = ["statement (source)", "left − right", "control", "n", "p (Holm)", "verdict"]


def questions(claims: pd.DataFrame) -> dict[str, list[list[str]]]:
    """A table by question, its head first, of claims.csv as `shown` has it. That of depth utility is the last."""
    found = {}
    for row in claims[(claims["family"] != DEPTH) & (claims["verdict"] != "not tested")].itertuples():
        difference = row.difference
        if row.difference_finished != row.difference:
            difference += f"; finished runs alone: {row.difference_finished}"
        control = row.control_difference + f", n = {row.control_n}" * ("(" in row.control_n)
        verdict = row.verdict + f": {row.structural}" * (row.structural != NONE)
        cells = [f"{row.statement} ({row.source})", difference, control, row.n, f"{row.p} ({row.p_holm})", verdict]
        found.setdefault(row.family, [HEAD]).append(cells)
    depth = depth_table(claims)
    return {**found, **({f"{DEPTH[0].upper()}{DEPTH[1:]}": depth} if depth else {})}
