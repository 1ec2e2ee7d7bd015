"""3. Intervention on the rank of updates."""

from rankcollapse.render import drawing
from rankcollapse.render.tables import ARM, ended
from rankcollapse.render.text import over

SHOWN = "intervention and not ladder"
SPREAD = "bars"
OVER = ended
ORDER = {"top_r": 0, "full": 1}  # of an update in its rule, others after these


def data(tables):
    runs = tables["runs"].assign(kind=tables["runs"]["update"].map(ORDER).fillna(2))
    rates = runs.groupby(ARM)["lr"].transform("first")  # a missing run has none yet
    runs["name"] = runs["arm"] + " (lr " + rates.map("{:g})".format)
    return runs.sort_values(["rule", "kind", "rank"], kind="stable")


def draw(table, looks):
    return drawing.accuracies(table, looks, "name")


def caption(table):
    here = drawing.first(table, OVER)
    values = [f"{arm} {over(mine['test_accuracy'])}" for arm, mine in here.groupby("arm", sort=False)]
    return (
        f"Test accuracy against the rank of the updates; {drawing.MARKED}; dotted: chance; –: no run. "
        f"{here['panel'].iloc[0]}, %: {'; '.join(values)}."
    )
