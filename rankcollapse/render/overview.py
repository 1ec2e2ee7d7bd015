"""What README and report open on: accuracy and rank of the main arms, a column for each network."""

from pathlib import Path

import pandas as pd

from rankcollapse.experiment.collect import read
from rankcollapse.render.text import NONE, number, shown

ARMS = ("fa", "fa+bn", "fa+muon", "fa+both", "bp", "bp+bn", "bp+muon", "bp+both", "frozen", "frozen-bp+bn")
ASKED = {"fa", "fa+both"}  # a study without them is about something else
APART = ("why",)  # has many studies, and figures of its own
CAPTION = """Test accuracy in %, mean ± standard deviation over n seeds; in parentheses the effective rank of a run's
minibatch gradients, stacked as rows of a matrix, in which large ones weigh most. Compare ranks within a column alone,
and with care where there is normalisation: there the first gradients may outweigh the others. BP is backpropagation,
BN batch normalisation, both is BN and Muon. Frozen hidden weights stay as they were initialised; in the last row
normalisation learns in such a net, by exact errors."""


def overview(presets: dict[str, dict], results: Path) -> list[list[str]]:
    """A head, and a row for each arm that some network was trained with; `presets` has of each what things are called.

    A cell is the test accuracy in %, over all runs, and in parentheses the mean effective rank of the gradients. The
    last column has what is quoted for the paper, if anything is.
    """
    labels, columns, quoted = {}, {}, {}
    for preset, names in presets.items():
        if preset in APART:
            continue
        labels |= names["labels"]
        accuracy = read(results / preset / "summary" / "accuracy.csv").query("n > 0")
        for (study, dataset), rows in accuracy.groupby(["study", "dataset"], sort=False):
            if set(rows["arm"]) >= ASKED:
                head = (
                    f"{names['studies'].get(study, study)}, {names['datasets'].get(dataset, dataset)} ({_seeds(rows)})"
                )
                columns[head] = dict(zip(rows["arm"], _cells(rows), strict=True))
                quoted |= dict(rows.dropna(subset="paper_percent").set_index("arm")["paper_percent"].map(number))
    columns |= {"ResNet-18, CIFAR-100: the paper's, by an unverified note": quoted} if quoted else {}
    arms = [arm for arm in ARMS if any(arm in column for column in columns.values())]
    return [["", *columns], *([labels[arm], *(column.get(arm, NONE) for column in columns.values())] for arm in arms)]


def _seeds(rows: pd.DataFrame) -> str:
    return "n = " + " to ".join(map(str, sorted({rows["n"].min(), rows["n"].max()})))


def _cells(rows: pd.DataFrame) -> list[str]:
    cells = []
    for accuracy, row in zip(shown(rows, {})["test_percent"], rows.itertuples(), strict=True):
        about = [number(row.whole_gradient_rank_mean)] if pd.notna(row.whole_gradient_rank_mean) else []
        about += [f"{row.diverged:.0f} diverged"] if row.diverged else []
        cells.append(accuracy + f" ({'; '.join(about)})" * bool(about))
    return cells
