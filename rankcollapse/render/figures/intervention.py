"""3. Intervention on the rank of updates.

What rank costs: test accuracy with updates cut to their top r singular directions, unchanged, and made full rank; with
each arm its learning rate. A panel per study and data set.
"""

from pandas import DataFrame
from seaborn import FacetGrid

from rankcollapse.render import drawing
from rankcollapse.render.tables import ARM, Tables, ended
from rankcollapse.render.text import over

SHOWN = "intervention and not ladder"
SPREAD = "bars"
OVER = ended
UPDATES = ["top_r", "full", "full_rank"]


def data(tables: Tables) -> DataFrame:
    """A row per run, by rule, kind of update and rank."""
    runs = tables["runs"].assign(kind=tables["runs"]["update"].map(UPDATES.index))
    rates = runs.groupby(ARM)["lr"].transform("first")  # a missing run has none yet
    runs["name"] = runs["arm"] + " (lr " + rates.map("{:g})".format)
    return runs.sort_values(["rule", "kind", "rank"], kind="stable")


def draw(table: DataFrame, looks: dict) -> FacetGrid:
    return drawing.accuracies(table, looks, "name")


def caption(table: DataFrame) -> str:
    here = drawing.first(table, OVER)
    values = [f"{arm} {over(mine['test_accuracy'])}" for arm, mine in here.groupby("arm", sort=False)]
    return (
        f"Test accuracy against the rank of the updates; {drawing.MARKED}; dotted: chance; –: no run. "
        f"{here['panel'].iloc[0]}, %: {'; '.join(values)}."
    )
