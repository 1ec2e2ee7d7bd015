"""Numbers as people read them. README, pages, figures and the paper round here, once; summaries keep eight digits.

A value ends at the decimal place of the second significant digit of its uncertainty, which is a standard deviation, or
half of an interval. Without one it has three significant digits, and never fewer than stand before the point.
"""

import math

import pandas as pd

NONE = "–"  # what there is not
# By the value of an interval: its ends.
ENDS = {"difference": ("low", "high"), "measured": ("low", "high"), "rest": ("rest_low", "rest_high")}
ENDS |= {
    "control_difference": ("control_low", "control_high"),
    "difference_finished": ("low_finished", "high_finished"),
    **{
        value: (f"{value}_low", f"{value}_high")
        for value in ("between", "within", "given_loss", "given_other", "gain", "change", "carried")
    },
}
SIDES = ["left_mean", "right_mean", "detectable"]  # in the unit of `difference`, and as sure
CHANCES = ["p", "p_holm", "p_finished", "p_holm_finished"]
MARKS = {"reproduced": "✓", "better": "✓", "met": "✓", "not reproduced": "✗", "worse": "✗", "NOT MET": "✗"}
MARKS |= {"explained by the control": "○", "inconclusive": "~", "within noise": "~"}
OURS = {"reproduced": "supported", "not reproduced": "contradicted"}  # of a question that we add: nothing is replicated
MARKS |= {ours: MARKS[verdict] for verdict, ours in OURS.items()}


def number(value: float, uncertainty: float = math.nan) -> str:
    if pd.isna(value) or math.isinf(value):
        return NONE if pd.isna(value) else "∞" if value > 0 else "−∞"
    known = 0 < uncertainty < math.inf
    place = 1 - _magnitude(uncertainty, 1) if known else max(2 - _magnitude(value, 2), 0)
    words = f"{round(float(value), place):.{max(place, 0)}f}"
    words = words if known or "." not in words else words.rstrip("0").rstrip(".")
    return words.lstrip("-") if float(words) == 0 else words.replace("-", "−")


def _magnitude(value: float, digits: int) -> int:
    """The power of ten of its first digit, once it is rounded: that of 9.96 with two digits is 1."""
    return int(f"{value:.{digits}e}".partition("e")[2])


def spread(mean: float, std: float) -> str:
    """`43.7 ± 1.1`, without the deviation where there is none. Of the mean four digits at most are shown.

    Two seeds may agree by chance to more digits than either is good for.
    """
    if pd.isna(std) or std == 0 or math.isinf(mean):
        return number(mean, std) + (f" ± {number(std, std)}" if pd.notna(std) else "")
    shown = max(std, 10.0 ** (_magnitude(mean, 3) - 2))
    return f"{number(mean, shown)} ± {number(std, shown)}"


def over(values: pd.Series) -> str:
    return spread(values.mean(), values.std())


def interval(value: float, low: float, high: float) -> str:
    """`−16.1 [−17.9, −14.3]`, without the ends where there are none."""
    half = (high - low) / 2
    return number(value, half) + (f" [{number(low, half)}, {number(high, half)}]" if half > 0 else "")


def chance(p: float) -> str:
    """With two digits, or with three where these would hide on which side of 0.05 it lies."""
    return "< 0.0001" if p < 1e-4 else number(p, p / 10 if number(p, p) == "0.050" else p)


def counted(n: float, diverged: float) -> str:
    """`4 (1 diverged)`: how many runs or pairs a mean is over, and how many runs diverged."""
    return number(n) + (f" ({diverged:.0f} diverged)" if diverged > 0 else "")


def word(value: object) -> str:
    return NONE if pd.isna(value) else f"{MARKS.get(value, '')} {value}".strip()


def unmarked(words: str) -> str:
    """A verdict without the mark that `word` puts before it."""
    return words.lstrip("".join({*MARKS.values()}) + " ")


def shown(table: pd.DataFrame, names: dict) -> pd.DataFrame:
    """A summary with every cell as text, what is named as `names` label it, and verdicts marked.

    X_mean and X_std are one column, X, and so are a value and the ends of its interval; n says how many runs diverged.
    """
    labels, made = names.get("labels", {}), {}
    arms = dict.fromkeys(["arm", "left", "right", "control_left", "control_right", "reference", "base"], labels)
    arms["rate"] = {f"as {arm}": f"as {label}" for arm, label in labels.items()}
    if {"source", "verdict"} <= {*table}:
        table = table.assign(verdict=table["verdict"].mask(table["source"] == "ours", table["verdict"].replace(OURS)))
    table = table.replace({"study": names.get("studies", {}), "dataset": names.get("datasets", {}), **arms})
    gone = {end for value, ends in ENDS.items() if value in table for end in ends}
    for column in table.columns[~table.columns.isin(gone) & ~table.columns.str.endswith("_std")]:
        values, base, start = table[column], column.removesuffix("_mean"), column.removesuffix("n")
        given = [values]
        if f"{base}_std" in table:
            column, tell, given = base, spread, [values, table[f"{base}_std"]]
        elif column in ENDS:
            tell, given = interval, [values, *(table[end] for end in ENDS[column])]
        elif column in SIDES:
            tell, given = number, [values, (table["high"] - table["low"]) / 2]
        elif f"{start}diverged" in table and column in ("n", "control_n"):
            tell, given = counted, [values, table[f"{start}diverged"]]
        elif column in CHANCES:
            tell = chance
        else:
            tell = number if pd.api.types.is_float_dtype(values) else word
        made[column] = [*map(tell, *given)]
    return pd.DataFrame(made)


def markdown(rows: list[list[str]]) -> list[str]:
    """A table, its head first."""
    head, *rows = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [head, "|---" * (head.count(" | ") + 1) + "|", *rows]
