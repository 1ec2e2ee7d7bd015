"""20. Rank at equal progress."""

import numpy as np
from pandas import concat

from rankcollapse.experiment.datasets import SETS
from rankcollapse.render import drawing
from rankcollapse.render.tables import ARM, KEYS, finished, loss_step, select

SHOWN = "shown and not (intervention or ladder or control)"
SPREAD = "bands"
LOSSES = 40  # along the axis of a panel, down from that of a guess


def data(tables):
    """A row per finished run, quantity and loss of its panel, where all finished seeds of the arm have reached that."""
    ranks, epochs = finished(tables["ranks"]), finished(tables["epochs"])
    gradients = select(ranks, quantity="gradient_trajectory", layer="all", scope="window").assign(name="whole net")
    parts = {
        "latest gradients": gradients.assign(rank=gradients["entropy_s2"]),
        "errors": drawing.last_hidden(select(ranks, quantity="error", scope="batch")),
        "activations": drawing.by_layer(select(ranks, quantity="activation", scope="batch", layer="head")),
        "updates": drawing.last_hidden(select(ranks, quantity="update", scope="step")),
    }
    table = concat(part.assign(head=head + "\n" + part["name"]) for head, part in parts.items())
    table["rank"] = table["rank"].fillna(table["entropy_s"])
    curves, lowest, found = dict([*epochs.groupby(KEYS)]), epochs.groupby("panel")["train_loss"].min(), []
    for (*key, _), part in table.groupby([*KEYS, "head"], sort=False):
        guess = -np.log(SETS[part["dataset"].iloc[0]].chance)
        losses = np.linspace(guess, lowest[part["panel"].iloc[0]], LOSSES)
        steps = [loss_step(curves[tuple(key)], loss) for loss in losses]
        ranks = np.interp(steps, part["step"], part["rank"], left=np.nan, right=np.nan)
        found.append(part.iloc[[0] * LOSSES].assign(loss=losses, rank=ranks))
    table = concat(found, ignore_index=True)
    seeds = table.groupby([*ARM, "head", "loss"])["rank"]
    return table[seeds.transform("count") == seeds.transform("size")]


def draw(table, looks):
    grid = drawing.facets(table, 1.4, sharex="row")
    drawing.lines(grid, "loss", "rank", looks, ylim=(0, None))
    for axes, _ in drawing.cells(grid):
        axes.xaxis.set_inverted(True)
    return grid.set_axis_labels("training loss", "effective rank")


def caption(table):
    return (
        f"Effective rank at the training loss, in nats, that a run first reached, as far as all finished seeds did: "
        f"{drawing.MEASURES['entropy_s2']} of gradients, {drawing.MEASURES['entropy_s']} of all else."
    )
