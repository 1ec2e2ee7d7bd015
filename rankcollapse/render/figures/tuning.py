"""19. Tuning."""

import numpy as np

from rankcollapse.render import drawing
from rankcollapse.render.tables import finished, select
from rankcollapse.render.text import number

SHOWN = "shown and rate == 'tuned'"
SPREAD = None
NAMES = {"sgd": "SGD", "muon": "Muon", "adam": "Adam"}
CHOICE = {"markersize": 6, "markeredgewidth": 1, "markeredgecolor": "black", "zorder": 4}


def data(tables):
    """A row per candidate: its outcome is that of its worst seed, `path` whether its weight decay is the middle one."""
    table = tables["tuned"].rename(columns={"validation_percent_mean": "mean", "validation_percent_std": "std"})
    middle = table.groupby(["panel", "arm"])["weight_decay"].transform(lambda decays: decays.mode().iloc[0])
    table = table.assign(outcome=np.where(table["diverged"] > 0, "diverged", "finished"))
    return table.assign(path=table["weight_decay"] == middle, head=table["optimizer"].map(NAMES))


def draw(table, looks):
    grid = drawing.facets(table, 1.35)
    drawing.share(grid, "dataset")
    for axes, panel in drawing.cells(grid):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")  # a power would have small digits
        for arm, part in panel.groupby("arm", sort=False):
            colour, marker = looks["palette"][arm], looks["markers"][arm]
            look = {"color": colour, "marker": marker, "markeredgewidth": 0, "linestyle": "none"}
            sound, lost = finished(part), select(part, outcome="diverged")
            path, best = select(sound, path=True).sort_values("lr"), select(sound, chosen=True)
            axes.plot("lr", "mean", data=path, color=colour, dashes=looks["dashes"][arm] or (None, None))
            span = path["mean"] - path["std"], path["mean"] + path["std"]
            axes.fill_between(path["lr"], *span, color=colour, alpha=0.18, linewidth=0)
            axes.plot("lr", "mean", data=sound, **look)
            axes.plot("lr", "mean", data=best, **look | CHOICE)
            axes.plot(lost["lr"], lost["mean"].fillna(0), **look | {"marker": "x", "markeredgewidth": 1.3})
    drawing.chance(grid)
    drawing.legend(grid, looks)
    return grid.set_axis_labels("learning rate", "accuracy, %")


def caption(table):
    epochs, seeds = (" to ".join(map(str, sorted({*table[column].agg(["min", "max"])}))) for column in ("epochs", "n"))
    spread = ", mean ± 1 standard deviation" if table["std"].notna().any() else ""
    best, checked = select(table, chosen=True), table.dropna(subset="full_percent")
    tops = checked.groupby(["panel", "arm"])["full_percent"].max()
    behind = tops - checked[checked["chosen"]].groupby(["panel", "arm"])["full_percent"].max()
    ends = best[best["edge"] != ""].groupby(["panel", "edge"], sort=False)["arm"]
    edges = [f"{panel}, {edge}: {', '.join(arms)}" for (panel, edge), arms in ends]
    what = (
        f"Validation accuracy after {epochs} epochs of the {len(table)} candidates of {len(best)} tuned arms; n = "
        f"{seeds} a candidate, with seeds that no run has{spread}. Large marks are the choices, crosses the "
        f"{len(select(table, outcome='diverged'))} that diverged with a seed, unjoined ones have another weight decay. "
        f"Dotted is chance."
    )
    return what, (
        f"choices at an end of the values tried: {'; '.join(edges) or 'none'}."
        + f" Trained to full length, the choice is best in {(behind == 0).sum()} of {len(tops)} arms, and at most "
        f"{number(behind.max())} points below the best." * bool(len(tops))
    )
