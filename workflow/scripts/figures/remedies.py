"""What Muon and normalisation do to ranks, layer by layer at the end of training: errors pooled over training,
activations of one probe batch, and the update of one step. FA arms, and BP for reference; a strip per study and data
set.
"""

import common
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MEASURE = "entropy_s2"
QUANTITIES = {  # scope, name
    "error": ("pooled", "errors, pooled"),
    "activation": ("batch", "activations"),
    "update": ("step", "updates"),
}
TICKS = 5  # layers named on an axis


def at_end(ranks: pd.DataFrame) -> pd.DataFrame:
    """The last rank of every run, quantity and layer, with `position`: the layer's place in the net, from 0."""
    wanted = {(quantity, scope) for quantity, (scope, _) in QUANTITIES.items()}
    ranks = ranks[[pair in wanted for pair in zip(ranks["quantity"], ranks["scope"], strict=True)]]
    places = ranks.groupby(["study", "dataset"])["layer"].transform(lambda layers: pd.factorize(layers)[0])
    return common.last(ranks.assign(position=places), MEASURE, ["quantity", "layer"])


def layer_axis(axes: Axes, table: pd.DataFrame) -> None:
    """Names some layers: conv 1, 2, 3, 4, classifier."""
    layers = table.drop_duplicates("position").set_index("position")["layer"].sort_index()
    ticks = common.evenly(list(layers.index), TICKS)
    names = [common.layer_name(layers[place].split(".")[0]) for place in ticks]
    kinds = [name.split(" ")[0] for name in names]
    short = [name.removeprefix(f"{before} ") for before, name in zip(["", *kinds], names, strict=False)]
    axes.set_xticks(ticks, short)
    axes.set_xlabel("layer")
    axes.margins(x=0.1)


def draw(tables: common.Tables, grid: dict) -> Figure:
    ends = at_end(tables["ranks"])
    found = common.panels(ends, grid)
    if not found:
        return common.nothing("ranks of errors, activations and updates")
    heads = [[name for _, name in QUANTITIES.values()]] * len(found)
    made, strips = common.strips(found, heads, f"effective rank,\n{common.MEASURES[MEASURE]}", tables, grid, 1.45)
    common.rank_scale(strips[0][0], ends[MEASURE])
    drawn = []
    for panel, strip in zip(found, strips, strict=True):
        here = common.of(ends, panel)
        for axes, quantity in zip(strip, QUANTITIES, strict=True):
            layer_axis(axes, here)
            drawn.append((axes, here[here["quantity"] == quantity]))
    common.lines(drawn, "position", MEASURE, grid)
    common.legend(made, common.arms_in(ends, grid).values())
    return made


def caption(tables: common.Tables, grid: dict) -> str:
    ends, runs = at_end(tables["ranks"]), tables["runs"]
    found = common.panels(common.finished(ends), grid)
    if not found:
        return f"Ranks of errors, activations and updates: {common.standing(runs, grid)}."
    here = common.finished(common.of(ends, found[0]))
    here = here[here["position"] == sorted(here["position"].unique())[-2:][0]]
    arms = common.arms_in(here, grid)
    means = here.groupby(["quantity", "arm"])[MEASURE].mean().unstack()
    parts = [
        f"{name} {' / '.join(f'{means.loc[quantity, arm]:.3g}' for arm in arms)}"
        for quantity, (_, name) in QUANTITIES.items()
        if quantity in means.index
    ]
    return (
        f"Effective rank ({common.MEASURES[MEASURE]}, logarithmic axis) at the end of training. Means in "
        f"{common.layer_name(here['layer'].iloc[0])} of the {common.panel_name(found[0], grid)}, for "
        f"{' / '.join(look['label'] for look in arms.values())}: {'; '.join(parts)}; "
        f"{common.standing(runs, grid)}."
    )


if __name__ == "__main__":
    common.main(__doc__, draw, caption)
