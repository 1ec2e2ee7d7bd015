"""18. Alignment."""

from matplotlib.ticker import LogLocator
from pandas import concat

from rankcollapse.render import drawing
from rankcollapse.render.drawing import last_hidden
from rankcollapse.render.tables import FLOOR, KEYS, finished, last, select
from rankcollapse.render.text import number, over

SHOWN = "shown and (aligned or rule == 'bp') and not (intervention or ladder or control)"
SPREAD = "bands"
COSINES = ["cos(W, B)", "cos(∇, ∇BP)"]
SIZES = ["‖∇BP‖ / ‖W‖", "rms activation", "‖W‖ / at start"]
OF = ["panel", "quantity", "layer"]


def data(tables):
    """A row per run, probe and curve, its `kind`; a cosine has its null's mean and deviation, and its `own` arm's."""
    cosines = tables["alignment"]
    null = finished(cosines[cosines["quantity"].str.endswith("_null")])
    null = null.assign(quantity=null["quantity"].str.removesuffix("_null"))
    pooled = null.groupby([*OF, "epoch"])["value"].agg(["mean", "std"])
    own = null.groupby([*OF, "arm"])["value"].std().rename("own")
    weights, gradients = (select(cosines, quantity=quantity) for quantity in ("weight", "gradient"))
    whole = select(gradients, layer="all").assign(name="whole net")
    table = concat([last_hidden(weights), last_hidden(gradients), whole])
    table = table.join(pooled, on=[*OF, "epoch"]).join(own, on=[*OF, "arm"])
    table["kind"] = table["quantity"].map(dict(zip(["weight", "gradient"], COSINES, strict=True)))
    at, norms = [*KEYS, "layer", "step"], drawing.by_layer(tables["norms"])
    weight, reference = (select(norms, quantity=quantity) for quantity in ("weight", "reference"))
    first, top = select(reference, place=0), last_hidden(select(tables["norms"], quantity="weight"))
    first = first.assign(value=first["value"] / first[at].join(weight.set_index(at)["value"], on=at)["value"])
    top = top.assign(value=top["value"] / top.sort_values("step").groupby(KEYS)["value"].transform("first"))
    sizes = first, select(norms, quantity="activation", layer="head"), top
    sizes = concat(part.assign(kind=kind) for kind, part in zip(SIZES, sizes, strict=True))
    table = concat([table, sizes.assign(value=sizes["value"].clip(lower=FLOOR / 8))])  # a logarithmic axis has no 0
    return table.assign(head=table["kind"] + "\n" + table["name"])


def draw(table, looks):
    grid = drawing.facets(table, 1.3)
    drawing.share(grid, "kind")
    for axes, part in drawing.cells(grid):
        if part["kind"].iloc[0] in SIZES:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if part["kind"].iloc[0] == SIZES[2] else (1,)))
            axes.yaxis.set_major_formatter("{x:g}")  # in plain digits
            axes.minorticks_off()
            continue
        band = part.groupby("epoch")[["mean", "std"]].first()
        low, high = (band["mean"] + sign * 2 * band["std"] for sign in (-1, 1))
        axes.fill_between(band.index, low, high, color=drawing.GREY, alpha=0.25, linewidth=0)
        axes.axhline(0, color=drawing.GREY, linewidth=0.5, zorder=0)
    for axes, _ in drawing.cells(grid, kind=SIZES[0]):
        axes.axhline(FLOOR, **drawing.DOTTED)
    drawing.lines(grid, "epoch", "value", looks, xlim=(0, None))
    return grid.set_axis_labels("epoch", "")


def caption(table):
    gradients = finished(select(table, quantity="gradient"))
    here = select(drawing.first(table), quantity="gradient", layer="all")
    ends = last(here, "value").groupby("arm", sort=False)
    values = [f"{arm} {over(mine['value'])} ({number(*mine['own'].iloc[[0, 0]])})" for arm, mine in ends]
    what = (
        f"Cosines of W and B, and of an arm's gradient and BP's on one batch. Grey is the same with an untrained B, "
        f"mean ± 2 standard deviations: a cosine in it shows no alignment. Right, in logarithms: the size of BP's "
        f"gradient, whose cosine is left out below the floor of float32 (dotted; {gradients['struck'].sum()} of "
        f"{len(gradients)}), of activations into the classifier, and of W."
    )
    net = f"{drawing.first(table)['panel'].iloc[0]}, whole net after training"
    return what, f"{net}, in brackets the deviation of the arm's null: {', '.join(values) or 'none'}."
