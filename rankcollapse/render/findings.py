"""Sentences that change with the results: paper/findings.yaml, by what the summaries say; and depth utility's table."""

import operator
import re
from pathlib import Path

import pandas as pd
from pydantic import Field

from rankcollapse.errors import InputError
from rankcollapse.experiment import config
from rankcollapse.render.claims import DEPTH
from rankcollapse.render.evidence import Evidence
from rankcollapse.render.text import NONE

NAMED = re.compile(r"\{([^{}]+)\}")
NOTHING = "No statement of the paper can be settled on the data of this preset: it shows that everything works."
MORE = ", more"  # ends the name of what is said behind a finding
ABSENT = "absent"  # the value of what no summary has
COMPARED = {"<": operator.lt, ">": operator.gt}


class Case(config.Strict):
    """What is said if each name in `if` has its value: a verdict, one of several, or as `< 0.5` a range of numbers.

    `more` is said behind it where there is room, which README has not.
    """

    when: dict[str, str | list[str]] = Field({}, alias="if")
    say: str
    more: str = ""

    def named(self) -> set[str]:
        return {*self.when, *NAMED.findall(self.say + self.more)}


Finding = list[list[Case]]  # its parts, which are said one after another, by their cases


def read_findings(path: Path) -> dict[str, Finding]:
    """By name each finding. Raises InputError, one sentence, for a file that does not hold them."""
    return {name: _finding(found, f"{path}: {name}") for name, found in config.read(path).items()}


def _finding(found: object, where: str) -> Finding:
    if not isinstance(found, list):
        raise InputError(f"{where} must be a list of cases, each with `say`, and `if` unless it always holds")
    parts = found if all(isinstance(part, list) for part in found) else [found]
    return [[config.checked(Case, case, where) for case in cases] for cases in parts]


def findings(read: dict[str, Finding], evidence: Evidence) -> dict[str, str]:
    """By name what each finding says: of each of its parts the first case that holds, with texts in place of {names}.

    Under `name` what it says, under `name, more` the rest. A case that names in its sentence what there is not does not
    hold.
    """
    said = {}
    for name, parts in read.items():
        first = [next((case for case in cases if _holds(case, evidence)), None) for cases in parts]
        said[name] = " ".join(case.say for case in first if case)
        said[name + MORE] = " ".join(case.more for case in first if case)
    return {
        name: NAMED.sub(lambda named: evidence.texts[named[1]], " ".join(words.split()))
        for name, words in said.items()
        if words.strip()
    }


def _holds(case: Case, evidence: Evidence) -> bool:
    there = all(name in evidence.texts for name in NAMED.findall(case.say + case.more))
    return there and all(_is(evidence.values.get(name, ABSENT), wanted) for name, wanted in case.when.items())


def _is(value: object, wanted: str | list[str]) -> bool:
    if isinstance(wanted, list):
        return any(_is(value, one) for one in wanted)
    if wanted[:1] in COMPARED:
        return isinstance(value, float | int) and COMPARED[wanted[0]](value, float(wanted[1:]))
    return value == wanted


def depth_table(shown: pd.DataFrame) -> list[list[str]]:
    """Of claims.csv as text: a head, then a row for each net and frozen net, a column for each study; or nothing."""
    rows, found = shown[shown["family"] == DEPTH], {}
    studies = dict.fromkeys(rows.loc[rows["verdict"] != "not tested", "study"])
    for row in rows.itertuples():
        said = row.verdict if row.verdict == "not tested" else f"{row.difference} {row.verdict.split()[0]}"
        if row.difference_finished != row.difference:
            said += f"; n = {row.n}, finished alone {row.n_finished}: {row.difference_finished}"
        found.setdefault((row.left, row.right, row.frozen), {})[row.study] = said
    found = {names: mine for names, mine in found.items() if {*mine.values()} != {"not tested"}}
    head = ["trained net", "frozen net", "what learns in it", *studies]
    cells = [[*names, *(mine.get(study, NONE) for study in studies)] for names, mine in found.items()]
    return [head, *cells] if studies else []
