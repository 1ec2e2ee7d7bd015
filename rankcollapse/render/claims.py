"""Each claim of paper/claims.yaml, held against the tidy tables by the rule for a verdict at the head of that file."""

import difflib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field, model_validator
from scipy import stats

from rankcollapse.errors import InputError
from rankcollapse.experiment import config, datasets
from rankcollapse.render import tables as tidy
from rankcollapse.render.tables import MEASURES, SPECTRUM, Tables, ended, finished, select

# By measure: its table and column, and which runs count.
SOURCES = {"%": ("runs", "test_accuracy", ended), "cosine": ("alignment", "value", finished)}
SOURCES |= {measure: ("ranks", measure, finished) for measure in MEASURES}
LEVEL = 0.05  # of a test; intervals are 1 - LEVEL
DEPTH = "depth utility"  # the family whose claims are questions of our own: is the net better than its frozen one?
NOTE = {"abstract": "abstract", "summary": "unverified note"}  # where the paper's own numbers are read, by source
TYPES = {"quantity": str, "layer": str, "scope": str, "rows": int}
READING = ["n", "difference", "low", "high"]
CONTROL = [f"control_{column}" for column in ("left", "right", "diverged", "missing", *READING)]
CONTROL += ["rest", "rest_low", "rest_high"]


def compared(given: object) -> dict:
    """What is compared, as columns of claims.csv; `rows` is the T of a trajectory, None for all that was measured."""
    match given:
        case "accuracy":
            kind, what = "%", {"quantity": "accuracy"}
        case {"table": "ranks", "measure": kind, **what} if kind in MEASURES and {*SPECTRUM} <= {*what} <= {*TYPES}:
            pass
        case {"table": "alignment", **what} if {*what} == {"quantity", "layer"}:
            kind = "cosine"
        case _:
            what = {"quantity": None}
    if all(isinstance(value, TYPES[key]) for key, value in what.items()):
        return {**dict.fromkeys(TYPES), **what, "measure": kind}
    rank = f"quantity, layer, scope and measure ({', '.join(MEASURES)}), and rows if it is one T"
    raise ValueError(f"it must be accuracy, or table: ranks, {rank}, or table: alignment, quantity and layer")


class Claim(config.Strict):
    id: str
    family: str
    statement: str = ""  # by default that left is more accurate than right
    source: Literal["abstract", "summary", "ours"] = "ours"
    study: str
    dataset: str
    quantity: Annotated[dict, BeforeValidator(compared)] = Field("accuracy", validate_default=True)
    at: Literal["end", "equal loss"] = "end"
    left: str
    relation: Literal["less", "greater"]
    right: str | int | float
    frozen: str | None = None  # depth utility: what learns in the frozen net
    paper: int | float | None = None
    control: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    beyond: bool = False  # on what is left of the difference above the control's
    since: int = 0  # on this seed and later ones, where those before suggested what is claimed
    structural: str | None = None  # why the rule itself makes it so

    @model_validator(mode="after")
    def _along_the_way(self) -> "Claim":
        if self.at == "equal loss" and self.quantity["measure"] == "%":
            raise ValueError("accuracy is that of the end; at equal loss there are ranks and cosines")
        if self.beyond and not self.control:
            raise ValueError("beyond is true, but there is no control; it must have one, or be left out")
        return self


@functools.cache
def base() -> dict:
    """The paper's grid, which has studies and arms that a preset may lack."""
    return config.read(Path(__file__).parents[2] / "config.yaml")


@functools.cache
def known_studies() -> set[str]:
    """Of the paper's grid and of all presets, most of which a preset lacks."""
    grids = [base(), *map(config.read, sorted((Path(__file__).parents[2] / "presets").glob("*.yaml")))]
    return {study["name"] for grid in grids for study in grid["studies"]}


def label(arm: str | float | None) -> str:
    return base()["arms"].get(arm, {"label": arm})["label"]


def filled(given: object, values: dict) -> object:
    """What is given with the values in place of their {names}, in every text in it."""
    if isinstance(given, str):
        return given.format_map(values)
    if isinstance(given, list):
        return [filled(each, values) for each in given]
    return {key: filled(each, values) for key, each in given.items()} if isinstance(given, dict) else given


def spelt_out(claim: dict) -> list[dict]:
    """The claims that one stands for: one for every combination of the values that it has under `each`."""
    each = claim.get("each", {})
    kept = {key: value for key, value in claim.items() if key != "each"}
    found = [filled(kept, dict(zip(each, values, strict=True))) for values in itertools.product(*each.values())]
    said = "{} is {} accurate than {} in {}"
    for one in found:
        left, relation, right, study = map(one.get, ("left", "relation", "right", "study"))
        one.setdefault(
            "statement", said.format(label(left), "less" if relation == "less" else "more", label(right), study)
        )
    return found


def read_claims(path: Path) -> list[Claim]:
    """All, family by family. Raises InputError, one sentence, for a file that does not hold them."""
    try:
        families = config.read(path).items()
        claims = [{"family": family, **one} for family, some in families for each in some for one in spelt_out(each)]
    except (KeyError, AttributeError, TypeError, ValueError, IndexError) as error:
        what = "must hold families of claims, each a list of mappings, whose texts name what stands in their `each`"
        raise InputError(f"{path} {what} ({' '.join(str(error).split())})") from error
    return [config.checked(Claim, claim, f"{path}: claim {claim.get('id')!r}") for claim in claims]


def measured(claim: Claim, arm: str, tables: Tables, over: Callable) -> pd.DataFrame:
    """The rows of the claim's quantity in one arm's runs that count. Raises InputError for a name that is not there."""
    runs, rows = tables["runs"], over(tables[SOURCES[claim.quantity["measure"]][0]])
    known = {
        "study": {*runs["study"], *known_studies()},
        "dataset": {*datasets.SETS},
        "arm": {*runs["arm"], *base()["arms"]},
    }
    place = {"study": claim.study, "dataset": claim.dataset, "arm": arm}
    checked = [*known] if over(select(runs, **place)).empty else [*known, *SPECTRUM]
    for column, name in {**place, **claim.quantity}.items():
        if column in rows and name is not None:
            options = known.get(column, {*rows[column]})
            if column in checked and name not in options:
                near = difflib.get_close_matches(name, options, n=1)
                right = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(options)) or 'none'}"
                here = ", ".join(place.values())
                raise InputError(f"claim {claim.id!r}: {column} {name!r} is unknown in {here}; {right}")
            rows = select(rows, **{column: name})
    return rows


def pairs(claim: Claim, left: str, right: str | float, tables: Tables, over: Callable | None = None) -> pd.DataFrame:
    """Columns left and right, a row per seed that both have. over: which runs count, if not those of SOURCES."""
    _, column, counted = SOURCES[claim.quantity["measure"]]
    sides = [measured(claim, side, tables, over or counted) for side in (left, right) if isinstance(side, str)]
    if claim.at == "equal loss":
        steps = tidy.equal_loss(sides, tables["epochs"])[1]
        found = [tidy.at_steps(rows, column, at) for rows, at in zip(sides, steps, strict=True)]
    else:
        ends = [tidy.last(rows) if "step" in rows else rows for rows in sides]
        found = [rows.set_index("seed")[column] for rows in ends]
    if not isinstance(right, str):
        found.append(pd.Series(float(right), index=found[0].index))
    return pd.concat(found, axis=1, keys=["left", "right"]).dropna()


def reading(differences: pd.Series) -> list:
    """How many pairs, their mean difference, and the ends of its 95 % interval by Student's t; none for n < 2."""
    mean, n = differences.mean(), len(differences)
    half = stats.t.ppf(1 - LEVEL / 2, n - 1) * differences.sem() if n > 1 else np.nan
    return [n, mean, mean - half, mean + half]


def control(claim: Claim, differences: pd.Series, tables: Tables) -> dict:
    """What the frozen nets have of the same gain, and what is left of it above theirs, paired by seed."""
    if claim.control is None:
        return dict.fromkeys(CONTROL)
    two = pairs(claim, *claim.control, tables)
    theirs, runs = two["left"] - two["right"], lost(claim, claim.control, tables).values()
    values = *claim.control, *runs, *reading(theirs), *reading((differences - theirs).dropna())[1:]
    return dict(zip(CONTROL, values, strict=True))


def _above(claim: Claim, pair: pd.DataFrame, tables: Tables, over: Callable | None) -> pd.Series:
    """By seed what the claim is on: the difference, or what is left of it above the control's."""
    difference = pair["left"] - pair["right"]
    if not claim.beyond:
        return difference
    theirs = pairs(claim, *claim.control, tables, over)
    return (difference - (theirs["left"] - theirs["right"])).dropna()


def lost(claim: Claim, sides: list, tables: Tables) -> dict:
    """How many runs of these arms diverged, and how many are missing; none where an arm is not in the grid."""
    here = select(tables["runs"], study=claim.study, dataset=claim.dataset)
    here = here[here["arm"].isin(sides)]
    compared = {*here["arm"]} == {side for side in sides if isinstance(side, str)}
    return {what: compared * (here["outcome"] == what).sum() for what in ("diverged", "missing")}


def settle(claim: Claim, tables: Tables) -> dict:
    """One row of claims.csv, without the verdict. Raises InputError, one sentence, for a claim on what is not there.

    Its columns ending in _finished are the other reading of what diverged: as if those runs were not there.
    """
    sides, about = [claim.left, claim.right], claim.model_dump()
    if claim.since:
        tables = {name: rows[rows["seed"] >= claim.since] if "seed" in rows else rows for name, rows in tables.items()}
    two = pairs(claim, *sides, tables)
    gone = lost(claim, sides + claim.control if claim.beyond else sides, tables)
    above = [_above(claim, two, tables, None)] * 2
    if gone["diverged"]:
        above[1] = _above(claim, pairs(claim, *sides, tables, finished), tables, finished)
    here, given = select(tables["runs"], study=claim.study, dataset=claim.dataset), claim.paper is not None
    row = {key: about[key] for key in ("id", "family", "statement", "source", "study", "dataset")} | claim.quantity
    row |= {key: about[key] for key in ("at", "left", "relation", "right", "frozen")}
    row["rates"] = "; ".join(here.loc[here["arm"].isin(sides), "rate"].drop_duplicates())
    row |= {"left_mean": two["left"].mean(), "right_mean": two["right"].mean()} | gone
    for ending, difference in zip(("", "_finished"), above, strict=True):
        row |= dict(zip([f"{column}{ending}" for column in READING], reading(difference), strict=True))
        told = len(difference) > 1 and difference.sem() > 0
        row[f"p{ending}"] = stats.ttest_1samp(difference, 0).pvalue if told else np.nan
    difference, n = above[0], len(above[0])
    power = stats.t.ppf(1 - LEVEL / 2, n - 1) + stats.t.ppf(0.8, n - 1) if n > 1 else np.nan
    return row | {
        "detectable": power * difference.sem(),
        **control(claim, two["left"] - two["right"], tables),
        "beyond": claim.beyond,
        "paper": claim.paper,
        "paper_is": ("difference" if isinstance(claim.right, str) else "left") if given else None,
        "paper_source": NOTE.get(claim.source) if given else None,
        "structural": claim.structural,
    }


def holm(p: pd.Series) -> pd.Series:
    """p-values corrected for their number by Holm's step-down method (1979)."""
    ordered = p.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def verdict(row: pd.Series) -> str:
    """By the rule at the head of paper/claims.yaml."""
    if row["n"] == 0 and not row["diverged"]:
        return "not tested"
    if pd.notna(row["structural"]):
        return "by construction"
    if row["n"] < 2 or not row["p_holm"] < LEVEL:
        return "inconclusive"
    depth, claimed = row["family"] == DEPTH, 1 if row["relation"] == "greater" else -1
    if claimed * row["difference"] < 0:
        return "worse" if depth else "not reproduced"
    ends = [["control_low", "control_high"], ["rest_low", "rest_high"]]
    gains, left_over = (min(claimed * row[two].astype(float)) > 0 for two in ends)
    explained = gains and not left_over and not row["beyond"]
    return "explained by the control" if explained else "better" if depth else "reproduced"


def settled(claims: list[Claim], tables: Tables) -> pd.DataFrame:
    """claims.csv: a row per claim on a study that is there, with p-values corrected over its family and the verdict."""
    elsewhere = known_studies() - {*tables["runs"]["study"]}
    here = [claim for claim in claims if claim.study not in elsewhere]
    rows = [settle(claim, mine) for claim, mine in zip(here, _of_arms(here, tables), strict=True)]
    table = pd.DataFrame(rows, columns=[*settle(claims[0], tables)])
    for p in ("p", "p_finished"):
        counted = table[p].mask(table["structural"].notna())
        corrected = counted.groupby(table["family"]).transform(holm)
        table.insert(table.columns.get_loc(p) + 1, p.replace("p", "p_holm", 1), corrected)
    verdicts = [verdict(row) for _, row in table.iterrows()]
    return table.assign(verdict=pd.Series(verdicts, index=table.index, dtype=str))


def _of_arms(claims: list[Claim], tables: Tables) -> Iterator[Tables]:
    """For each claim the large tables' rows of its own arms: most of the time would go into looking for them."""
    large = {name: tables[name] for name in ("ranks", "alignment") if name in tables}
    parts = {name: dict([*table.groupby(["study", "dataset", "arm"], sort=False)]) for name, table in large.items()}
    for claim in claims:
        sides = dict.fromkeys([claim.left, claim.right, *(claim.control or [])])
        keys = [(claim.study, claim.dataset, side) for side in sides]
        some = {name: [part[key] for key in keys if key in part] for name, part in parts.items()}
        yield tables | {name: pd.concat([large[name][:0], *rows]) for name, rows in some.items()}
