"""Numbers as people read them. README, pages, figures and the paper round here, once; summaries keep eight digits.

A value ends at the decimal place of the second significant digit of its uncertainty, which is a standard deviation, or
half of an interval. Without one it has three significant digits, and never fewer than stand before the point.
"""

import math

import pandas as pd

NONE = "–"  # what there is not
# By the value of an interval: its ends.
ENDS = {"difference": ("low", "high"), "measured": ("low", "high"), "rest": ("rest_low", "rest_high")}
ENDS |= {"control_difference": ("control_low", "control_high"), "difference_finished": ("low_finished", "high_finished")}
SIDES = ["left_mean", "right_mean", "detectable"]  # in the unit of `difference`, and as sure
CHANCES = ["p", "p_holm", "p_finished", "p_holm_finished"]
MARKS = {
    "reproduced": "✓ reproduced",
    "explained by the control": "○ explained by the control",
    "not reproduced": "✗ not reproduced",
    "inconclusive": "~ inconclusive",
    "by construction": "by construction, not counted",
    "better": "✓ better",
    "worse": "✗ worse",
    "met": "✓",
    "within noise": "~ within noise",
    "NOT MET": "✗ **not met**",
}


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
    """`43.7 ± 1.1`, without the deviation where there is none."""
    return number(mean, std) + (f" ± {number(std, std)}" if pd.notna(std) else "")


def over(values: pd.Series) -> str:
    return spread(values.mean(), values.std())


def interval(value: float, low: float, high: float) -> str:
    """`−16.1 [−17.9, −14.3]`, without the ends where there are none."""
    half = (high - low) / 2
    return number(value, half) + (f" [{number(low, half)}, {number(high, half)}]" if pd.notna(half) else "")


def chance(p: float) -> str:
    return NONE if pd.isna(p) else "< 0.0001" if p < 1e-4 else number(p, p)


def counted(n: float, diverged: float, missing: float) -> str:
    """`4 (1 diverged)`: how many runs or pairs a mean is over, and what became of runs."""
    lost = [f"{count:.0f} {what}" for count, what in ((diverged, "diverged"), (missing, "missing")) if count > 0]
    return number(n) + (f" ({', '.join(lost)})" if lost else "")


def listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def shown(table: pd.DataFrame, names: dict) -> pd.DataFrame:
    """A summary with every cell as text, and names as `names` label them.

    X_mean and X_std are one column, X, and so are a value and the ends of its interval; n says what became of runs.
    """
    table, made = labelled(table, names), {}
    gone = {end for value, ends in ENDS.items() if value in table for end in ends}
    for column, values in table.items():
        base, _, ending = str(column).rpartition("_")
        start = column.removesuffix("n")
        if ending == "mean" and f"{base}_std" in table:
            made[base] = map(spread, values, table[f"{base}_std"])
        elif column in ENDS:
            made[column] = map(interval, values, *(table[end] for end in ENDS[column]))
        elif column in SIDES:
            made[column] = map(number, values, (table["high"] - table["low"]) / 2)
        elif column in CHANCES:
            made[column] = map(chance, values)
        elif column in ("n", "control_n") and f"{start}diverged" in table:
            made[column] = map(counted, values, *(table.get(f"{start}{k}", values * 0) for k in ("diverged", "missing")))
        elif pd.api.types.is_float_dtype(values):
            made[column] = map(number, values)
        elif ending != "std" and column not in gone:
            made[column] = values.astype(object).where(values.notna(), NONE).map(str)
    made = {column: [*values] for column, values in made.items() if column not in gone and not column.endswith("_std")}
    return pd.DataFrame(made).replace({"verdict": MARKS})


def labelled(table: pd.DataFrame, names: dict) -> pd.DataFrame:
    labels = names.get("labels", {})
    arms = dict.fromkeys(["arm", "left", "right", "control_left", "control_right", "reference"], labels)
    table = table.replace({"study": names.get("studies", {}), "dataset": names.get("datasets", {}), **arms})
    if "rate" in table:  # `as fa+bn`
        table["rate"] = table["rate"].map(lambda rate: f"as {labels.get(rate[3:], rate[3:])}" if rate[:3] == "as " else rate)
    return table
