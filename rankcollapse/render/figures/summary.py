"""1. Is it the rank?"""

from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.figures import accuracy_vs_rank, headline, rules, updates
from rankcollapse.render.joined import heldout, joined
from rankcollapse.render.tables import finished, select
from rankcollapse.render.text import interval

SHOWN = None
SPREAD = None
PARTS = {"The paper's accuracies and ours": headline, "All methods: rank of gradients": accuracy_vs_rank}
PARTS |= {"Learning rules: cosine with BP": rules}
STEPS = "Muon's step, cut to r directions"
PARTS |= {STEPS: updates}
HELDOUT = "Gains predicted across architectures"
NAMED = {
    "gradient_rank": "gradient rank, layers", "whole_gradient_rank": "gradient rank, net",
    "recent_gradient_rank": "gradient rank, latest",
    "error_rank": "error rank, pooled", "batch_error_rank": "error rank, batch", "activation_rank": "activation rank",
    "update_rank": "update rank", "relative_update": "size of steps", "alignment": "cosine with BP",
    "train_loss": "training loss",
}  # fmt: skip


def data(tables):
    """The rows of the first panel of each of PARTS, by `part`, and those of joined.heldout."""
    found = {title: figure.data(drawing.only(tables, figure.SHOWN)) for title, figure in PARTS.items()}
    found = {title: select(rows, panel=next(iter(finished(rows)["panel"]), None)) for title, rows in found.items()}
    found[STEPS] = select(found[STEPS], head=next(iter(found[STEPS]["head"].unique()[::-1]), None))  # the last of them
    found[HELDOUT] = heldout(joined(tables), tables["runs"]).assign(outcome="finished")
    return concat([part.assign(part=title) for title, part in found.items()])


def told(axes, table, looks):
    """R² of what is measured, best first, for each architecture that it was not fitted on; lower ones stand at -1."""
    order = [*table.groupby("predictor")["r2"].median().sort_values(ascending=False).index]
    axes.axvspan(-1.1, 0, color="0.93", zorder=0)
    for row, (net, part) in enumerate(table.groupby("architecture", sort=False)):
        at, look = part["predictor"].map(order.index) + 0.22 * (row - 1), {"edgecolor": "black", "linewidth": 0.9}
        look |= {"facecolor": ("black", "white", "0.6")[row % 3], "marker": "os^"[row % 3]}
        axes.scatter(part["r2"].clip(lower=-1), at, 16, label=f"the {drawing.NETS.get(net, net)}", **look)
    axes.set(xlim=(-1.1, 1.05), xlabel="R² (grey: worse than guessing no gain)", ylim=(len(order) - 0.5, -0.5))
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["≤ −1", "−0.5", "0", "0.5", "1"])
    axes.set_yticks(range(len(order)), [NAMED[name] for name in order])
    return axes.get_legend_handles_labels()[0]


def draw(table, looks):
    parts = dict([*table.groupby("part", sort=False)])
    rows = -(-len(parts) // 2)
    made = drawing.plt.figure(figsize=(drawing.WIDTH, 2.75 * rows))
    places = made.add_gridspec(rows, 2)
    for place, (title, part) in enumerate(parts.items()):
        wide = place % 2 == 0 and place + 1 == len(parts)  # the last has the row for itself
        inset = made.add_subfigure(places[place // 2, :] if wide else places[place])
        axes = inset.subplots()
        axes.set_title(title, **drawing.TITLE)
        handles = (told if title == HELDOUT else PARTS[title].panel)(axes, part, looks)
        seen = part.dropna(subset="x") if PARTS.get(title) is rules else part  # a diverged run has no cosine
        drawing.explain(inset, handles, seen, drawing.WIDTH / (2 - wide))
    rank = parts[[*PARTS][1]]
    heads = [f"Accuracy and rank of gradients, all methods: {head}" for head in rank["head"].unique() if head]
    heads += [rules.title(part) for title, part in parts.items() if PARTS.get(title) is rules]
    made.suptitle("\n".join(filter(None, heads or [accuracy_vs_rank.finding(rank)])), fontsize=8)
    return made


def caption(table):
    parts = dict([*table.groupby("part", sort=False)])
    rank = parts[[*PARTS][1]].assign(arm=lambda t: t["own"])
    nets = "; ".join(f"{panel}, {both}" for panel, both in accuracy_vs_rank.told(rank, interval).items())
    said = {
        title: nets if figure is accuracy_vs_rank else figure.finding(parts[title])
        for title, figure in PARTS.items()
        if title in parts
    }
    what = "Test accuracy over what each panel names. A point is a run, a line the slope within a method; ρ is a "
    what += "correlation, between means of methods or within them, or given another quantity."
    fit = " Last, R² of the gains in one architecture by a line through those in others (1: exact, 0: as good as none)."
    numbers = " ".join(f"{title}: {text}." for title, text in said.items() if text)
    return what + fit * (HELDOUT in parts), numbers, drawing.standing(rank, "", finished)
