"""1. Is it the rank?"""

from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.figures import accuracy_vs_rank, headline, updates
from rankcollapse.render.joined import heldout, joined
from rankcollapse.render.tables import finished, select

SHOWN = None
SPREAD = None
PARTS = {"The paper's numbers and ours": headline, "Accuracy and rank": accuracy_vs_rank, "Rank at one size": updates}
HELDOUT = "What tells the accuracy of another net"
PREDICTORS = {
    "gradient_rank": "rank of gradients", "whole_gradient_rank": "the same, whole net",
    "error_rank": "rank of errors, pooled", "batch_error_rank": "rank of errors",
    "activation_rank": "rank of activations", "update_rank": "rank of updates", "relative_update": "size of steps",
    "alignment": "alignment",
    "train_loss": "training loss",
}  # fmt: skip


def data(tables):
    """The rows of the first panel of each of PARTS, by `part`, and those of joined.heldout."""
    found = {HELDOUT: heldout(joined(tables), tables["runs"]).assign(outcome="finished")}
    for title, figure in PARTS.items():
        rows = figure.data(drawing.only(tables, figure.SHOWN))
        found[title] = rows if finished(rows).empty else select(rows, panel=finished(rows)["panel"].iloc[0])
    return concat([found[title].assign(part=title) for title in (*PARTS, HELDOUT)])


def told(axes, table, looks):
    """R² of what is measured, for each architecture that it was not fitted on; what is lower stands at -1."""
    for row, (net, part) in enumerate(table.groupby("architecture", sort=False)):
        at = part["predictor"].map([*PREDICTORS].index) + 0.25 * (row - 1)
        axes.scatter(part["r2"].clip(lower=-1), at, 12, "black", marker="os^Dv"[row], label=f"held out: {net}")
    axes.axvline(0, **drawing.DOTTED)
    axes.set(xlim=(-1.1, 1.05), xlabel="R², −1: or less", ylim=(len(PREDICTORS) - 0.5, -0.5))
    axes.set_yticks(range(len(PREDICTORS)), PREDICTORS.values())


def draw(table, looks):
    parts, named = dict([*table.groupby("part", sort=False)]), {}
    rows = -(-len(parts) // 2)
    made = drawing.plt.figure(figsize=(drawing.WIDTH, 2.4 * rows))
    for place, (title, part) in enumerate(parts.items(), 1):
        axes = made.add_subplot(rows, min(len(parts), 2), place)
        (told if title == HELDOUT else PARTS[title].panel)(axes, part, looks)
        axes.set_title(title, **drawing.TITLE)
        handles = axes.get_legend_handles_labels()[0] if title == HELDOUT else PARTS[title].handles(part, looks)
        named |= {each.get_label(): each for each in handles}
    drawing.explain(made, [*named.values()], table)
    made.suptitle(accuracy_vs_rank.finding(parts["Accuracy and rank"]), fontsize=8)
    return made


def caption(table):
    parts = dict([*table.groupby("part", sort=False)])
    said = [PARTS[title].finding(part).replace("\n", " ") for title, part in parts.items() if title != HELDOUT]
    said += [f"{HELDOUT}: fitted on the others alone; 0 is a guess of no gain (heldout.csv)"] * (HELDOUT in parts)
    return ". ".join(said) + "."
