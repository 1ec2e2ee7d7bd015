"""Each figure, by the function that the command line calls, on synthetic tables: what is drawn and said, by hand."""

import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from rankcollapse.render import drawing
from rankcollapse.render import tables as tidy
from rankcollapse.render.figures import (
    accuracy_vs_rank,
    drawn,
    error_set,
    feedback,
    interaction,
    rules,
    titles,
    updates,
)
from rankcollapse.render.joined import heldout, joined
from rankcollapse.render.mediation import rules as rules_of
from rankcollapse.render.text import interval, number, over

ROOT = Path(__file__).parents[1]
FIGURES = sorted(titles())
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
SPECTRA = {
    "error": ["batch", "pooled"], "classifier_input_error": ["pooled"], "activation": ["batch"], "update": ["step"],
    "gradient_trajectory": ["cumulative", "window"],
}  # fmt: skip
PLAIN = {"rule": "bp", "optimizer": "sgd", "normalization": "none", "update": "full", "error": "full", "lr": 0.1}
FROZEN = {
    "frozen+bn": {"rule": "frozen", "normalization": "batch"},
    "frozen-fa+bn": {"rule": "frozen-fa", "normalization": "batch"},
}
LADDER = {"fa+bn-last1": {"rule": "fa", "normalization": "batch", "learning_blocks": 1}}
SAME = ("", "-same")  # a rate of its own, or Muon's
MUON, BOTH = {"optimizer": "muon"}, {"optimizer": "muon", "normalization": "batch"}
RULES, REMEDIES = ("bp", "fa", "dfa", "kp"), {"": {}, "+bn": {"normalization": "batch"}}
RANDOM = ("spread", "fixed", "drawn")
ERRORS = {
    "": {}, "full": {"error": "full_rank"}, "top10": {"error": "top_r"}, "top2": {"error": "top_r"},
    "fixed10": {"error": "fixed_r"},
}  # fmt: skip
STUDIES = {
    "plain": {
        "bp": {}, "fa": {"rule": "fa"}, "fa+bn": {"rule": "fa", "normalization": "batch"},
        "fa+muon": {"rule": "fa", **MUON}, "bp+muon": MUON, **FROZEN, **LADDER,
    },
    "changed": {"bp": {}, "bp-top2": {"update": "top_r", "rank": 2}, "fa": {"rule": "fa"}},
    "resnet18": {
        "fa": {"rule": "fa"}, "fa+bn": {"rule": "fa", "normalization": "batch"}, "fa+muon": {"rule": "fa", **MUON},
        "fa+both": {"rule": "fa", **BOTH},
    },
    "hidden": {
        "fa": {"rule": "fa"}, "fa+muon": {"rule": "fa", **MUON},
        **{f"fa+polar{end}": {"rule": "fa", **MUON, "update": "polar"} for end in SAME},
        **{f"fa+top{r}-unit": {"rule": "fa", **MUON, "update": "top_r", "rank": r, "norm": "spectral"} for r in (1, 5)},
        **{f"fa+top{r}{end}": {"rule": "fa", **MUON, "update": "top_r", "rank": r} for r in (1, 5) for end in SAME},
        **{f"fa+{cut}{r}": {"rule": "fa", **MUON, "update": f"{cut}_r", "rank": r} for r in (1, 5) for cut in RANDOM},
        **{f"fa+frobenius{end}": {"rule": "fa", **MUON, "update": "frobenius"} for end in SAME},
        **{f"fa-rank{r}": {"rule": "fa", "feedback": "rank", "feedback_rank": r} for r in (1, 10)},
        "fa-orthogonal": {"rule": "fa", "feedback": "orthogonal"},
    },
    "ruled": {rule + end: {"rule": rule, **more} for rule in RULES for end, more in REMEDIES.items()},
    "deep": {"fa": {"rule": "fa"}, "bp": {}, "fa+both": {"rule": "fa", **BOTH}, "frozen": {"rule": "frozen"}},
    "rated": {
        f"{arm}{end}": {**more, "lr": lr}
        for arm, more in {"fa": {"rule": "fa"}, "bp": {}, "bp+muon": MUON}.items()
        for end, lr in (("-slow", 0.01), ("", 0.1), ("-fast", 0.3))
    },
    "errors": {
        f"{rule}{f'-error-{name}' * bool(name)}": {"rule": rule, **error}
        for rule in ("fa", "bp") for name, error in ERRORS.items()
    },
}  # fmt: skip
NETS = {"resnet18": {"architecture": "resnet18", "dataset": "cifar100"}, "hidden": {"architecture": "cnn"}}
NETS |= {
    "ruled": {"architecture": "cnn"},
    "deep": {"depth": 6},
    "rated": {"architecture": "cnn"},
    "errors": {"architecture": "cnn"},
}
LOOKS = {
    "arms": {
        arm: {"label": arm.upper(), "colour": f"#{4 * i:02x}40a0", "marker": "os^Dv<>PXdh"[i % 11], "line": "-"}
        for i, arm in enumerate(dict.fromkeys(arm for arms in STUDIES.values() for arm in arms))
    },
    "studies": {
        "plain": "A net",
        "changed": "A net, changed",
        "resnet18": "A ResNet",
        "hidden": "Arms",
        "ruled": "Rules",
        "deep": "Deep",
        "rated": "Rates",
        "errors": "Errors",
    },
    "shown": {study: [*STUDIES[study]] if study in ("plain", "changed") else [] for study in STUDIES},
}
LEARNING = STUDIES["plain"].keys() - FROZEN.keys() - LADDER.keys()
ARMS = {  # by figure of lines or points: the study and the arms that it shows
    "error_rank": ("plain", LEARNING),
    "gradient_rank": ("plain", LEARNING),
    "alignment": ("plain", LEARNING),
    "accuracy_vs_rank": ("plain", LEARNING | FROZEN.keys()),
    "curves": ("plain", LEARNING),
    "depth": ("plain", {"fa+bn"}),
}
POINTS = {"accuracy_vs_rank"}  # the others have lines


def tables_of(outcomes: dict | None = None, seeds: int = 3) -> dict[str, pd.DataFrame]:
    """The tables of collect.py with random numbers; outcomes, by arm and seed, are `finished` unless given."""
    g = np.random.default_rng(0)
    rows: dict[str, list] = {name: [] for name in ("runs", "epochs", "ranks", "alignment", "norms", "tuned")}
    keys = [(study, arm, seed) for study, arms in STUDIES.items() for arm in arms for seed in range(seeds)]
    for study, arm, seed in keys:
        net = {"dataset": "cifar10", "architecture": "mlp", "depth": None, **NETS.get(study, {})}
        key = {"study": study, **{part: net[part] for part in ("dataset", "architecture")}, "arm": arm, "seed": seed}
        outcome = (outcomes or {}).get((arm, seed), "finished")
        accuracies = {} if outcome == "missing" else {"test_accuracy": g.uniform(0.3, 0.6), "validation_accuracy": 0.5}
        free = dict.fromkeys(["rank", "norm", "learning_blocks", "feedback_rank"])
        knobs = {**PLAIN, **free, "feedback": "same", "depth": net["depth"], **STUDIES[study][arm]}
        knobs["rate"] = (
            "fixed"
            if study == "rated"
            else "as fa+bn"
            if knobs["learning_blocks"]
            else "as fa+muon"
            if arm.endswith(("-same", "-unit"))
            else "tuned"
        )
        accuracies |= {"train_loss": g.uniform(1, 2)}
        rows["runs"].append({**key, **knobs, "outcome": outcome, **accuracies})
        if seed == 0 and knobs["rate"] == "tuned":
            rows["tuned"] += candidates(g, study, arm, seeds)
        if outcome == "missing":
            continue
        for step in (10, 20):
            losses = {"train_loss": g.uniform(1, 2), "validation_loss": 1.0, "train_accuracy": 0.5}
            rows["epochs"].append(
                {**key, "epoch": step // 10, "step": step, **losses, "validation_accuracy": g.uniform(0.3, 0.6)}
            )
        for step in (0, 10, 20):
            broken = np.nan if outcome == "diverged" and step == 20 else 1.0
            for quantity, scope in [(quantity, scope) for quantity, scopes in SPECTRA.items() for scope in scopes]:
                for layer in ("all",) if quantity == "gradient_trajectory" else ("hidden1", "hidden2", "head"):
                    what = {"quantity": quantity, "layer": layer, "scope": scope, "step": step, "rows": step + 5}
                    values = {measure: broken * g.uniform(2, 50) for measure in drawing.MEASURES}
                    if quantity != "classifier_input_error" or layer == "head":
                        rows["ranks"].append({**key, **what, **values})
            cosines = [("weight", "hidden2"), ("weight", "head"), ("gradient", "hidden2"), ("gradient", "all")]
            for quantity, layer in cosines if knobs["rule"] in ("fa", "dfa", "kp", "frozen-fa") else []:
                for kind, most in (("", 1), ("_null", 0.1)):
                    what = {"quantity": quantity + kind, "layer": layer, "step": step}
                    rows["alignment"].append({**key, **what, "value": broken * g.uniform(-most, most)})
            for quantity in ("activation", "weight", "reference", "relative_update"):
                for layer in ("hidden1", "hidden2", "head"):
                    what = {"quantity": quantity, "layer": layer, "step": step, "value": broken * g.uniform(1, 9)}
                    rows["norms"].append({**key, **what})
    return {name: pd.DataFrame(found) if found else tables_of()[name].iloc[:0] for name, found in rows.items()}


def candidates(g: np.random.Generator, study: str, arm: str, seeds: int) -> list[dict]:
    """Of one arm, as in tuned.csv: three rates with the middle weight decay, of which the second is the choice."""
    knobs = [(0.01, 0.1), (0.1, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 0.5)]
    key = {"study": study, "dataset": "cifar10", "arm": arm, "epochs": 1, "n": seeds, "diverged": 0}
    std = 1.0 if seeds > 1 else None
    return [
        {**key, "lr": lr, "weight_decay": decay, "validation_percent_mean": g.uniform(20, 50), "full_percent": None}
        | {"validation_percent_std": std, "chosen": (lr, decay) == (0.1, 0.1), "edge": ""}
        for lr, decay in knobs
    ]


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """draw(figure, tables or the results' folder): its figure and caption."""
    drawn = {}

    def keep(made, caption, path):
        drawn.update(made=made, caption="\n".join(filter(None, caption)))

    def run(figure, tables, looks=LOOKS):
        monkeypatch.setattr(drawing, "save", keep)
        results = tables
        if isinstance(tables, dict):
            results = tmp_path
            (results / "tables").mkdir(exist_ok=True)
            for name, table in tables.items():
                packed = ".gz" if name in ("ranks", "alignment", "norms") else ""
                place = results if name == "tuned" else results / "tables"
                table.to_csv(place / f"{name}.csv{packed}", index=False)
        drawing.figure(figure, results, results / "tuned.csv", looks, tmp_path / figure)
        return drawn["made"], drawn["caption"]

    yield run
    drawing.plt.close("all")


# ---- the drawn data ----


def colour(arm: str) -> str:
    return mpl.colors.to_hex(LOOKS["arms"][arm]["colour"])


FROZEN_NETS = drawing.GROUPS[drawing.FROZEN][0]  # one look for all of them


def drawn_lines(axes) -> dict[str, np.ndarray]:
    """By colour the xy of the lines with more than one point."""
    found = {}
    for line in axes.lines:
        if len(line.get_xdata()) > 1 and line.get_marker() not in ("None", "_", "|"):
            found[mpl.colors.to_hex(line.get_color())] = np.array(line.get_xydata(), dtype=float)
    return found


def drawn_points(axes) -> dict[str, np.ndarray]:
    """By colour the xy of the points of finished runs."""
    found: dict[str, list] = {}
    for dots in axes.collections:
        if isinstance(dots, mpl.collections.PathCollection):
            offsets = dots.get_offsets()
            for xy, face in zip(offsets, np.broadcast_to(dots.get_facecolors(), (len(offsets), 4)), strict=True):
                found.setdefault(mpl.colors.to_hex(face), []).append(np.array(xy))
    return {name: np.array(xy) for name, xy in found.items()}


def panels(figure) -> list:
    return [axes for axes in figure.axes if axes.get_visible()]


def mean_lines(table: pd.DataFrame, x: str, y: str, arms: set[str]) -> dict[str, np.ndarray]:
    means = table[table["arm"].isin(arms)].groupby(["arm", x])[y].mean().reset_index()
    return {colour(arm): mine[[x, y]].to_numpy() for arm, mine in means.groupby("arm")}


def expected_lines(figure: str, tables: dict[str, pd.DataFrame]) -> list[dict[str, np.ndarray]]:
    """By hand, for each of the axes in reading order, what lines it should have; seeds are averaged."""
    study, arms = ARMS[figure]
    names = ("ranks", "alignment", "norms", "epochs", "runs")
    ranks, cosines, norms, epochs, runs = (tables[name][tables[name]["study"] == study] for name in names)
    ranks, cosines, norms = (table.assign(epoch=table["step"] / 10) for table in (ranks, cosines, norms))

    def of(**wanted):
        return ranks[(ranks[list(wanted)] == pd.Series(wanted)).all(axis=1)]

    if figure == "error_rank":
        parts = [of(quantity="error", scope="batch", layer=layer) for layer in ("hidden1", "hidden2")]
        return [mean_lines(p, "epoch", "entropy_s", arms) for p in [*parts, of(quantity="classifier_input_error")]]
    if figure == "gradient_rank":
        parts = [of(quantity="gradient_trajectory", scope=scope) for scope in ("cumulative", "window")]
        return [mean_lines(part.assign(T=part["step"] + 5), "T", "entropy_s2", arms) for part in parts]
    if figure == "alignment":
        wanted = [("weight", "hidden2"), ("gradient", "hidden2"), ("gradient", "all")]
        parts = [cosines[(cosines["quantity"] == q) & (cosines["layer"] == layer)] for q, layer in wanted]
        found = [mean_lines(part, "epoch", "value", arms) for part in parts]
        wide = norms.pivot(index=["arm", "seed", "epoch"], columns=["quantity", "layer"], values="value")
        start = wide["weight", "hidden2"].groupby(["arm", "seed"]).transform("first")
        sizes = wide["reference", "hidden1"] / wide["weight", "hidden1"], wide["activation", "head"]
        for size in (*sizes, wide["weight", "hidden2"] / start):
            logs = mean_lines(np.log(size).rename("log").reset_index(), "epoch", "log", arms)
            found.append({arm: np.column_stack([xy[:, 0], np.exp(xy[:, 1])]) for arm, xy in logs.items()})
        return found
    if figure == "depth":
        ks = {"frozen+bn": 0, "fa+bn-last1": 1, "fa+bn": 2}
        runs = runs.assign(k=runs["arm"].map(ks), percent=100 * runs["test_accuracy"]).dropna(subset="k")
        return [mean_lines(runs.assign(arm="fa+bn"), "k", "percent", arms)]
    epochs = epochs.assign(percent=100 * epochs["validation_accuracy"])
    return [mean_lines(epochs, "epoch", column, arms) for column in ("train_loss", "percent")]


def check_lines(figure: str, made, tables: dict[str, pd.DataFrame]) -> None:
    wanted = expected_lines(figure, tables)
    assert len(panels(made)) == len(wanted)
    for axes, lines in zip(panels(made), wanted, strict=True):
        found = drawn_lines(axes)
        assert found.keys() == lines.keys()
        for key, xy in lines.items():
            np.testing.assert_allclose(found[key], xy, err_msg=key)


@pytest.mark.parametrize("figure", sorted(ARMS.keys() - POINTS))
def test_the_drawn_lines_are_the_means_of_runs_in_the_arms_own_colours(figure, draw):
    tables = tables_of()
    check_lines(figure, draw(figure, tables)[0], tables)


def crosses(axes) -> list[str]:
    """The colours of the marks of diverged runs: those are drawn by their edge alone, as wide as no other."""
    marks = [dots for dots in axes.collections if isinstance(dots, mpl.collections.PathCollection)]
    return [
        mpl.colors.to_hex(dots.get_edgecolors()[0])
        for dots in marks
        if max(dots.get_linewidths()) > 1
        for _ in dots.get_offsets()
    ]


@pytest.mark.parametrize("figure", sorted(ARMS.keys() - POINTS - {"depth"}))
def test_a_diverged_run_is_in_no_mean_and_ends_in_a_cross_within_the_limits(figure, draw):
    tables = tables_of({("fa", 0): "diverged"})
    lost = (tables["ranks"]["arm"] == "fa") & (tables["ranks"]["seed"] == 0)
    tables["ranks"].loc[lost, list(drawing.MEASURES)] *= 100
    made, _ = draw(figure, tables)
    others = {name: table.query("arm != 'fa' or seed > 0") for name, table in tables.items() if name != "tuned"}
    without, _ = draw(figure, {**others, "tuned": tables["tuned"]})
    for axes, alone in zip(panels(made), panels(without), strict=True):
        means = {
            mpl.colors.to_hex(line.get_color()): line.get_xydata() for line in axes.lines if line.get_linewidth() > 1
        }
        np.testing.assert_allclose(means[colour("fa")], drawn_lines(alone)[colour("fa")])
        assert axes.get_ylim() == alone.get_ylim()
    assert {arm for axes in panels(made) for arm in crosses(axes)} == {colour("fa")}


def test_finished_runs_are_points_beside_rank_and_diverged_ones_crosses_and_an_arm_has_its_slope(draw):
    tables, (study, arms) = tables_of({("fa", 0): "diverged"}), ARMS["accuracy_vs_rank"]
    made, caption = draw("accuracy_vs_rank", tables)
    axes = panels(made)[0]
    runs = tables["runs"].query(f"study == '{study}'").assign(percent=lambda r: 100 * r["test_accuracy"])
    ranks = tables["ranks"].query(f"study == '{study}' and quantity == 'gradient_trajectory' and step == 20")
    ranks = ranks.query("scope == 'cumulative'")[["arm", "seed", "entropy_s2"]]
    runs = runs.merge(ranks).query("outcome == 'finished' and arm in @arms and not rule.str.startswith('frozen')")
    points = drawn_points(axes)
    assert points.keys() == {*map(colour, LEARNING)}, "of a frozen net there are no gradients of the whole"
    assert crosses(axes) == [colour("fa")]
    for arm in arms - FROZEN.keys():
        mine = runs[runs["arm"] == arm]
        np.testing.assert_allclose(
            points[colour(arm)][: len(mine)], np.stack([np.log2(mine["entropy_s2"]), mine["percent"]], 1)
        )
    (line,) = [line for line in axes.lines if mpl.colors.to_hex(line.get_color()) == colour("bp")]
    mine = runs[runs["arm"] == "bp"]
    slope = stats.linregress(np.log2(mine["entropy_s2"]), mine["percent"]).slope
    np.testing.assert_allclose(np.diff(line.get_ydata()) / np.diff(line.get_xdata()), slope)
    means = runs.groupby("arm")[["entropy_s2", "percent"]].agg(
        {"entropy_s2": lambda r: np.log(r).mean(), "percent": "mean"}
    )
    rho = f"{means.corr().iloc[0, 1]:.2f}".replace("-", "−")
    assert f"A net, CIFAR-10, ρ = {rho} [" in caption
    assert axes.get_title().startswith(f"ρ = {rho} between, ")
    assert "\n" not in made.get_suptitle()


# ---- means with intervals ----


def dots(axes) -> dict[tuple, list]:
    """By colour and place on the axis of names or dials, and by whether that is y: the mean and the interval's ends."""
    found = {}
    for bar in axes.containers:
        (x,), (y,) = bar.lines[0].get_data()
        ends = bar.lines[2][0].get_segments()[0] if bar.lines[2] else np.full((2, 2), np.nan)
        across = bar.has_xerr
        at, mean = (y, x) if across else (x, y)
        found[mpl.colors.to_hex(bar.lines[0].get_color()), round(float(at), 6)] = [mean, *ends[:, 0 if across else 1]]
    return found


def sure(values) -> list[float]:
    """By hand: the mean, and its 95 % interval by Student's t."""
    return [np.mean(values), *stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))]


def of(tables, study: str, **arms: float) -> dict[tuple, list]:
    """What dots should be of accuracies: places by arm, with `_` for + and -."""
    runs = tables["runs"].query(f"study == '{study}'").groupby("arm")["test_accuracy"]
    names = {re.sub(r"\W", "_", arm): arm for arm in STUDIES[study]}
    return {(colour(names[arm]), round(at, 6)): sure(100 * runs.get_group(names[arm])) for arm, at in arms.items()}


def check(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        np.testing.assert_allclose(found[key], values, err_msg=str(key))


def gain(tables, study: str, arm: str, base: str) -> np.ndarray:
    wide = tables["runs"].query(f"study == '{study}'").pivot(index="seed", columns="arm", values="test_accuracy")
    return 100 * (wide[arm] - wide[base]).to_numpy()


def open_marks(axes) -> list[tuple]:
    return [
        tuple(*line.get_xydata()) for line in axes.lines if line.get_marker() == "D" and line.get_fillstyle() == "none"
    ]


def test_an_arm_stands_above_its_frozen_net_and_a_diverged_run_counts(draw):
    tables = tables_of({("fa", 0): "diverged"})
    made, caption = draw("accuracy", tables)
    (axes,) = panels(made)
    rows = [label.get_text() for label in axes.get_yticklabels()]
    at = {arm: rows.index(arm.upper()) for arm in ("bp", "fa", "fa+bn", "fa+muon", "bp+muon")}
    assert len(rows) == len(at)
    wanted = of(tables, "plain", **{re.sub(r"\W", "_", arm): row - 0.18 for arm, row in at.items()})
    (frozen,) = of(tables, "plain", frozen_bn=at["fa+bn"] + 0.18).values()
    check(dots(axes), wanted | {(FROZEN_NETS, round(at["fa+bn"] + 0.18, 6)): frozen})
    assert crosses(axes) == [colour("fa")]
    texts = {round(text.get_position()[1]): text.get_text() for text in axes.texts}
    halves = [drawing.shortly(*wanted[colour("fa+bn"), round(at["fa+bn"] - 0.18, 6)])]
    assert texts[at["fa+bn"]] == " | ".join([*halves, drawing.shortly(*frozen)])
    assert texts[at["fa+muon"]].endswith(" | –")
    fa = 100 * tables["runs"].query("study == 'plain' and arm == 'fa'")["test_accuracy"]
    assert f"{over(fa)} under FA" in caption
    assert "a diverged one with the accuracy that it ended with: n = 3 an arm" in caption
    assert [text.get_text() for text in made.legends[0].texts] == [f"{drawing.FROZEN} (second number)", "diverged"]


def test_panels_of_one_data_set_share_an_axis_that_holds_all_their_accuracies(draw):
    tables = tables_of()
    plain = tables["runs"].query("study == 'plain'").assign(test_accuracy=0.4)
    better = plain.query("arm in ('bp', 'fa')").assign(study="changed", test_accuracy=0.8)
    tables["runs"] = pd.concat([plain, better])
    made, _ = draw("accuracy", tables)
    first, second = panels(made)
    assert first.get_xlim() == second.get_xlim()
    assert second.get_xlim()[1] > 80


def test_a_grid_without_frozen_nets_has_its_accuracies_alone(draw):
    tables = {name: table[~table["arm"].str.startswith("frozen")] for name, table in tables_of().items()}
    made, _ = draw("accuracy", tables)
    assert {arm for arm, _ in dots(panels(made)[0])} == {colour(arm) for arm in LEARNING}
    assert made.legends == []


def test_interventions_are_over_the_rank_of_their_updates_with_rate_and_size(draw):
    tables = tables_of({("fa", 0): "diverged"})
    made, caption = draw("intervention", tables)
    (axes,) = panels(made)
    ranks = tables["ranks"].query("study == 'changed' and quantity == 'update' and step == 20 and layer != 'head'")
    ranks = ranks.query("arm != 'fa' or seed > 0")
    runs = np.log2(ranks["entropy_s"]).groupby([ranks["arm"], ranks["seed"]]).mean()
    at = np.log2(np.exp2(runs).groupby("arm").mean())
    check(dots(axes), of(tables, "changed", **{arm.replace("-", "_"): round(at[arm], 6) for arm in at.index}))
    assert crosses(axes) == [colour("fa")]
    sizes = tables["norms"].query(
        "study == 'changed' and quantity == 'relative_update' and arm == 'bp' and layer != 'head'"
    )
    probes = np.exp(np.log(sizes["value"]).groupby([sizes["seed"], sizes["step"]]).mean())
    size = probes.groupby("seed").mean().mean()
    settings = f"(lr 0.1, ‖ΔW‖/‖W‖ {number(size)})"
    assert f"BP {settings}" in [text.get_text() for text in made.legends[0].texts]
    assert f"at rank {number(2 ** at['bp'])} {settings}" in caption
    without = tables | {"norms": tables["norms"].query("quantity != 'relative_update'")}
    assert "BP (lr 0.1)" in [text.get_text() for text in draw("intervention", without)[0].legends[0].texts]


def test_remedies_are_ratios_to_fa_of_the_same_seed_side_by_side(draw):
    tables = tables_of({("fa", 0): "diverged"})
    made, caption = draw("remedies", tables)
    assert [axes.get_title() for axes in panels(made)] == ["errors, pooled", "activations", "updates"]
    ranks = tables["ranks"].query("study == 'plain' and step == 20 and seed > 0")
    for axes, (quantity, scope) in zip(
        panels(made), [("error", "pooled"), ("activation", "batch"), ("update", "step")], strict=True
    ):
        found = dots(axes)
        part = ranks[(ranks["quantity"] == quantity) & (ranks["scope"] == scope)]
        wide = np.log2(part.pivot(index=["layer", "seed"], columns="arm", values="entropy_s2"))
        for place, layer in enumerate(["hidden1", "hidden2", "head"], 1):
            for arm in ("fa+bn", "fa+muon"):
                (mine,) = [values for (who, at), values in found.items() if who == colour(arm) and round(at) == place]
                logs = (wide[arm] - wide["fa"]).loc[layer]
                np.testing.assert_allclose(mine, sure(logs))
                assert (layer != "hidden2") or f"FA+{arm[3:].upper()} {interval(*np.exp2(sure(logs)))}" in caption
        assert len({at for _, at in found}) == len(found) == 6  # no arm hides another


def test_the_ceiling_of_a_rank_is_drawn_and_no_classifier(draw):
    made, _ = draw("error_rank", tables_of())
    assert [axes.get_title() for axes in panels(made)] == ["hidden 1", "hidden 2", "classifier input"]
    levels = [line.get_ydata()[0] for axes in panels(made) for line in axes.lines if line.get_color() == drawing.GREY]
    assert levels == [25, 25, 9]  # as many rows as the last probe has, and the classes of CIFAR-10 less one


def test_the_papers_accuracies_and_differences_stand_beside_ours(draw):
    tables = tables_of({("fa", 0): "diverged"})
    made, caption = draw("headline", tables)
    left, right = panels(made)
    check(dots(left), of(tables, "resnet18", fa=0, fa_bn=1, fa_muon=2, fa_both=3))
    theirs = {0: 1.4, 1: 37.1, 2: 25.3, 3: 46.1}
    assert open_marks(left) == [(value, at) for at, value in theirs.items()]
    assert crosses(left) == [colour("fa")]
    steps = {
        "Normalisation adds": ("fa+bn", "fa", 35.7),
        "Muon adds": ("fa+muon", "fa", 23.9),
        "Muon on top adds": ("fa+both", "fa+bn", 9),
    }
    above = of(tables, "resnet18", fa=0)[colour("fa"), 0]
    wanted = {(colour("fa"), 0): np.array(above) - 1}
    wanted |= {
        (colour(arm), at): sure(gain(tables, "resnet18", arm, base))
        for at, (arm, base, _) in enumerate(steps.values(), 1)
    }
    check(dots(right), wanted)
    np.testing.assert_allclose([x for x, _ in open_marks(right)], [0.4, *(paper for _, _, paper in steps.values())])
    for at, (words, (arm, _, paper)) in enumerate(steps.items(), 1):
        assert f"{words} {interval(*wanted[colour(arm), at])} ({paper})" in caption


def test_the_dials_of_updates_are_by_size_and_rate_and_by_which_directions_beside_sgds_step(draw):
    tables = tables_of({("fa+top1", 0): "diverged"})
    made, caption = draw("updates", tables)
    sizes, which = panels(made)
    assert [axes.get_title() for axes in (sizes, which)] == ["The largest directions", "Which directions?"]
    means = tables["runs"].query("study == 'hidden'").groupby("arm")["test_accuracy"].mean() * 100
    pairs, colours = {}, {}
    for dial, (own, _, _, shift, arm, whole) in updates.DIALS.items():
        pairs[dial], colours[dial] = (arm.format(1), whole), mpl.colors.to_hex(own)
        for axes, names in ((sizes, updates.NAMES[:3]), (which, [updates.NAMES[0], *updates.NAMES[3:]])):
            lines = {line.get_color(): line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 3}
            assert (own in lines) == (dial in names)
            if dial in names:
                np.testing.assert_allclose(lines[own], means[[arm.format(1), arm.format(5), whole]])
                for r, place in ((1, 0), (5, 2)):
                    (wanted,) = of(tables, "hidden", **{re.sub(r"\W", "_", arm.format(r)): 0}).values()
                    check({0: dots(axes)[colours[dial], round(place + shift, 6)]}, {0: wanted})
    assert crosses(sizes) == crosses(which) == [colours[updates.NAMES[0]]]
    levels = {line.get_color(): line.get_ydata() for line in sizes.lines if len(line.get_ydata()) == 2}
    for dial, arm in zip(updates.NAMES[:2], ("fa+frobenius", "fa+frobenius-same"), strict=True):
        np.testing.assert_allclose(levels[updates.DIALS[dial][0]], means[arm])
    assert levels[colour("fa")][0] == pytest.approx(means["fa"])
    gains = {dial: interval(*sure(gain(tables, "hidden", *pair))) for dial, pair in pairs.items()}
    five = [(pairs[dial][0].replace("1", "5"), "fa+polar") for dial in (updates.NAMES[0], *updates.NAMES[3:])]
    told = [drawing.shortly(*sure(gain(tables, "hidden", *pair))) for pair in five]
    assert made.get_suptitle() == "5 directions in place of all: ● {}, ◆ {}, ▼ {}, ✚ {} points".format(*told)
    said = ", ".join(f"{gain} points ({dial})" for dial, gain in gains.items())
    assert f"with one direction in place of all accuracy changes by {said}" in caption


@pytest.mark.parametrize("figure", FIGURES)
def test_a_grid_of_fa_alone_has_every_figure_or_says_that_it_has_no_runs_for_it(draw, figure):
    alone = {name: table.query("study == 'plain' and arm == 'fa'") for name, table in tables_of(seeds=1).items()}
    _, caption = draw(figure, alone)
    assert caption.strip()


def test_accuracy_and_the_rank_of_the_error_go_over_the_rank_of_b(draw):
    tables = tables_of()
    made, caption = draw("feedback", tables)
    left, right = panels(made)
    random, orthogonal = (look[0] for look in feedback.LAWS.values())
    places = {"fa-rank1": (random, 0), "fa-rank10": (random, 3), "fa": (random, 4), "fa-orthogonal": (orthogonal, 4.12)}
    accuracies = tables["runs"].query("study == 'hidden'").groupby("arm")["test_accuracy"]
    check(dots(left), {place: sure(100 * accuracies.get_group(arm)) for arm, place in places.items()})
    ranks = tables["ranks"].query("study == 'hidden' and quantity == 'error' and scope == 'pooled' and step == 20")
    ranks = ranks[ranks["layer"] != "head"]
    runs = np.exp(np.log(ranks["entropy_s"]).groupby([ranks["arm"], ranks["seed"]]).mean())
    check(dots(right), {place: sure(runs[arm]) for arm, place in places.items()})
    less = interval(*sure(gain(tables, "hidden", "fa-rank1", "fa")))
    assert (
        f"test accuracy, % {less}, effective rank of the error {interval(*sure(runs['fa-rank1'] - runs['fa']))}"
        in caption
    )


def test_accuracy_and_the_rank_of_the_error_go_over_the_rank_that_is_set(draw):
    tables = tables_of({("bp-error-full", 0): "diverged"})
    made, caption = draw("error_set", tables)
    accuracy, batch, pooled = panels(made)
    places = {
        f"{rule}-error-{name}": at for rule in ("fa", "bp") for name, at in zip(ERRORS, (4, 5, 2, 1, 0), strict=True)
    }
    places = {arm.removesuffix("-error-"): at for arm, at in places.items()}
    looks = {arm: (error_set.RULES[arm[:2].upper()][0], at + 0.12 * (arm[:2] == "bp")) for arm, at in places.items()}
    accuracies = tables["runs"].query("study == 'errors'").groupby("arm")["test_accuracy"]
    check(dots(accuracy), {look: sure(100 * accuracies.get_group(arm)) for arm, look in looks.items()})
    for axes, scope in ((batch, "batch"), (pooled, "pooled")):
        ranks = tables["ranks"].query("study == 'errors' and quantity == 'error' and step == 20 and layer != 'head'")
        ranks = ranks[ranks["scope"] == scope]
        runs = np.exp(np.log(ranks["entropy_s"]).groupby([ranks["arm"], ranks["seed"]]).mean())
        check(dots(axes), {look: sure(runs[arm].dropna()) for arm, look in looks.items()})
    for arm, name in (("fa-error-full", "FA full"), ("bp-error-fixed10", "BP 10, fixed")):
        assert f"{name} {interval(*sure(gain(tables, 'errors', arm, arm[:2])))}" in caption


def test_accuracy_goes_over_rank_and_alignment_of_rules(draw, tmp_path):
    tables = tables_of({("dfa+bn", 0): "diverged"})
    made, caption = draw("rules", tables)
    left, right = panels(made)
    assert [axes.get_xlabel() for axes in (left, right)] == [*rules.HEADS]
    ended = {axes: np.concatenate([each.get_offsets() for each in axes.collections]) for axes in (left, right)}
    kp = joined(tidy.load(tmp_path / "tables")).query("study == 'ruled' and arm == 'kp' and seed == 1").iloc[0]
    for axes, x in ((left, np.log2(kp["whole_gradient_rank"])), (right, kp["alignment"])):
        assert any(np.allclose(point, (x, kp["test_percent"])) for point in ended[axes])
    assert (ended[right][:, 0] == 1).sum() == 6, "BP with itself, in its two arms"
    both = rules_of(joined(tidy.load(tmp_path / "tables"))).query("study == 'ruled'").set_index("predictor")
    ends = {name: [name, f"{name}_low", f"{name}_high"] for name in ("between", "given_other")}
    said = [[drawing.shortly(*both.loc[name, of]) for of in ends.values()] for name in rules.HEADS.values()]
    (rank, rank_given), (cosine, cosine_given) = said
    title = f"ρ = {rank} with rank, {rank_given} given the cosine; {cosine} with the cosine, {cosine_given} given rank"
    assert made.get_suptitle() == f"Between learning rules {title}"
    given = interval(*both.loc["alignment", ends["given_other"]])
    assert f"({given} given the other), with 95 % intervals" in caption
    assert "Rules, CIFAR-10: over learning rules with a B accuracy correlates by" in caption


def test_gains_under_fa_stand_above_those_under_bp(draw):
    tables = tables_of()
    made, caption = draw("interaction", tables)
    (axes,) = panels(made)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Muon", "batch norm", "both"]
    fa, bp = (look[0] for look in interaction.RULES.values())
    gains = {(fa, -0.15): ("fa+muon", "fa"), (bp, 0.15): ("bp+muon", "bp"), (fa, 0.85): ("fa+bn", "fa")}
    check(dots(axes), {place: sure(gain(tables, "plain", *pair)) for place, pair in gains.items()})
    assert [text.get_text().split(" | ")[1] for text in axes.texts][1:] == ["–", "–"]
    assert f"BP+MUON {interval(*sure(gain(tables, 'plain', 'bp+muon', 'bp')))}" in caption


def test_accuracy_and_gradient_rank_go_over_depth(draw):
    tables = tables_of({("bp", 0): "diverged"})
    made, caption = draw("depths", tables)
    accuracies, ranks = panels(made)
    plain = of(tables, "plain", fa=3, fa_bn=3, fa_muon=3, bp=3)
    wanted = plain | of(tables, "deep", fa=6, bp=6, fa_both=6, frozen=6)
    check(dots(accuracies), wanted)
    assert crosses(accuracies) == [colour("bp")] * 2
    assert crosses(ranks) == []  # of a diverged run the accuracy alone counts
    last = tables["ranks"].query(
        "quantity == 'gradient_trajectory' and scope == 'cumulative' and step == 20 and study == 'deep'"
    )
    last = last.query("arm != 'bp' or seed > 0").groupby("arm")["entropy_s2"]
    found = dots(ranks)
    for arm in STUDIES["deep"].keys() - {"frozen"}:  # of which there is no gradient of the whole net
        np.testing.assert_allclose(found[colour(arm), 6], sure(last.get_group(arm)))
    fa = 100 * tables["runs"].query("study == 'deep' and arm == 'fa'")["test_accuracy"]
    assert f", {over(fa)} with 6" in caption


def test_the_summary_has_a_panel_for_all_that_the_preset_has_data_for(draw, tmp_path):
    tables = tables_of()
    made, caption = draw("summary", tables)
    titles = [axes.get_title(loc="left") for axes in panels(made)]
    assert titles == [
        "The paper's accuracies and ours",
        "All methods: rank of gradients",
        "Learning rules: cosine with BP",
        "Muon's step, cut to r directions",
        "Gains predicted across architectures",
    ]
    headline, _, aligned, dials, told = panels(made)
    check(dots(headline), of(tables, "resnet18", fa=0, fa_bn=1, fa_muon=2, fa_both=3))
    assert (updates.DIALS[updates.NAMES[0]][0], -0.07) in dots(dials)
    assert {mpl.colors.to_hex(each.get_facecolor()[0]) for each in aligned.collections} == {
        drawing.GROUPS[drawing.OTHERS][0]
    }
    assert sum(len(each.get_offsets()) for each in aligned.collections) == 24, "eight arms of a study that shows none"
    loaded = tidy.load(tmp_path / "tables")
    rows = heldout(joined(loaded), loaded["runs"])
    found = np.concatenate([marks.get_offsets()[:, 0] for marks in told.collections])
    np.testing.assert_allclose(np.sort(found), np.sort(rows["r2"].clip(lower=-1)))
    assert "with one direction in place of all" in caption
    assert "over learning rules with a B accuracy correlates by" in caption
    less = {name: table.query("study in ('plain', 'changed')") for name, table in tables.items()}
    made, caption = draw("summary", less)
    assert [axes.get_title(loc="left") for axes in panels(made)] == ["All methods: rank of gradients"]
    assert "one direction" not in caption
    few = {name: table.query("arm in ('bp', 'fa')") for name, table in less.items()}
    assert "In numbers: " not in draw("summary", few)[1], "of two methods there is no correlation to tell"


UP, NO, DOWN = (0.5, 0.3, 0.7), (0.1, -0.1, 0.3), (-0.5, -0.7, -0.3)  # a correlation and its interval


@pytest.mark.parametrize(
    ("between", "within", "words"),
    [
        ([UP], [NO], ("goes with rank", "no link is shown")),
        ([NO], [UP], ("is not shown to go with rank", "it does so too")),
        ([DOWN], [DOWN], ("goes against rank", "it goes against it")),
        ([UP, NO], [NO, DOWN], ("goes with rank in 1 of 2 nets", "it goes against it in 1 of 2 nets")),
    ],
)
def test_the_finding_is_worded_by_the_signs_of_intervals_that_exclude_0(between, within, words, monkeypatch):
    ends = ("", "_low", "_high")
    sides = {"between": between, "within": within}
    nets = [
        {side + end: told[net][i] for side, told in sides.items() for i, end in enumerate(ends)}
        for net in range(len(between))
    ]
    monkeypatch.setattr(accuracy_vs_rank, "found", lambda table: dict(enumerate(nets)))
    said = f"Between methods accuracy {words[0]}, within one {words[1]}"
    assert accuracy_vs_rank.finding(None) == said


def test_where_each_method_has_one_run_no_correlation_within_is_said(monkeypatch):
    none = [np.nan] * 3
    net = {
        side + end: value
        for side, three in (("between", UP), ("within", none))
        for end, value in zip(("", "_low", "_high"), three, strict=True)
    }
    monkeypatch.setattr(accuracy_vs_rank, "found", lambda table: {"A net": net})
    assert accuracy_vs_rank.told(None, interval) == {"A net": "ρ = 0.50 [0.30, 0.70] between"}


def test_an_arm_that_its_study_does_not_show_is_in_no_figure_that_does_not_ask_for_it(draw):
    looks = {**LOOKS, "shown": {**LOOKS["shown"], "plain": ["fa", "fa+bn"]}}
    tables = tables_of()
    assert drawn_lines(panels(draw("gradient_rank", tables, looks)[0])[0]).keys() == {colour("fa"), colour("fa+bn")}
    others = drawn_points(panels(draw("accuracy_vs_rank", tables, looks)[0])[0])[drawing.GROUPS[drawing.OTHERS][0]]
    percents = 100 * tables["runs"].query("study == 'plain' and arm in ['bp', 'fa+muon', 'bp+muon']")["test_accuracy"]
    np.testing.assert_allclose(np.sort(others[:, 1]), np.sort(percents))


# ---- what single figures add ----


def shaded(axes) -> np.ndarray:
    """The corners of the grey band."""
    grey = [mpl.colors.to_hex(drawing.GREY)]
    bands = [dots for dots in axes.collections if isinstance(dots, mpl.collections.PolyCollection)]
    (band,) = [b for b in bands if [mpl.colors.to_hex(face) for face in b.get_facecolors()] == grey]
    return band.get_paths()[0].vertices


def test_the_null_of_a_cosine_is_a_band_over_the_finished_runs_of_the_arms_shown(draw):
    tables = tables_of({("fa", 0): "diverged"})
    made, caption = draw("alignment", tables)
    a = tables["alignment"].query("study == 'plain' and step == 10 and arm in ['fa', 'fa+bn', 'fa+muon']")
    a = a.query("arm != 'fa' or seed > 0")
    wanted = [("weight_null", "hidden2"), ("gradient_null", "hidden2"), ("gradient_null", "all")]
    for axes, (quantity, layer) in zip(panels(made)[:3], wanted, strict=True):
        null = a[(a["quantity"] == quantity) & (a["layer"] == layer)]["value"]
        corners = shaded(axes)
        at = corners[corners[:, 0] == 1, 1]
        np.testing.assert_allclose([at.min(), at.max()], null.mean() + np.array([-2, 2]) * null.std())
    own = tables["alignment"].query("study == 'plain' and arm == 'fa+bn' and quantity == 'gradient_null'")
    own = own[own["layer"] == "all"]["value"].std()
    assert f"({number(own, own)})" in caption.split("FA+BN")[1]


def test_candidates_are_lines_over_the_rate_with_the_choice_marked(draw):
    tables = tables_of()
    tuned = tables["tuned"]
    mine = (tuned["study"] == "plain") & (tuned["arm"] == "fa")
    tuned.loc[mine & (tuned["lr"] == 1), "diverged"] = 1
    tuned.loc[mine & tuned["chosen"], "edge"] = "lr largest"
    made, caption = draw("tuning", tables)
    assert [axes.get_title() for axes in panels(made)] == ["SGD", "SGD", "Muon"]
    axes = panels(made)[0]
    fa = [line for line in axes.lines if mpl.colors.to_hex(line.get_color()) == colour("fa")]
    at = {(row.lr, row.weight_decay): row.validation_percent_mean for row in tuned[mine].itertuples()}
    joined, points, choice, lost = (np.array(line.get_xydata(), dtype=float) for line in fa)
    np.testing.assert_allclose(joined, [[0.01, at[0.01, 0.1]], [0.1, at[0.1, 0.1]]])
    assert {*map(tuple, points)} == {(lr, y) for (lr, _), y in at.items() if lr < 1}
    np.testing.assert_allclose(choice, [[0.1, at[0.1, 0.1]]])
    np.testing.assert_allclose(lost, [[1, at[1, 0.1]]])
    assert fa[2].get_markeredgecolor() == "black"
    assert fa[2].get_markersize() > fa[1].get_markersize()
    assert fa[3].get_marker() == "x"
    assert "the 1 that diverged with a seed" in caption
    assert "A net, CIFAR-10, lr largest: FA" in caption


def test_depth_goes_from_the_frozen_net_to_all_blocks_beside_those_that_learn_norms_alone(draw):
    tables = tables_of()
    made, caption = draw("depth", tables)
    (axes,) = panels(made)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "all"]
    runs = tables["runs"].groupby("arm")["test_accuracy"].mean() * 100
    (level,) = [line for line in axes.lines if mpl.colors.to_hex(line.get_color()) == colour("frozen-fa+bn")]
    np.testing.assert_allclose(level.get_ydata(), runs["frozen-fa+bn"])
    frozen = 100 * tables["runs"].query("arm == 'frozen+bn'")["test_accuracy"]
    assert f"FA+BN {over(frozen)} with 0" in caption
    assert "ended with: n = 3 an arm, 12 in all" in caption


def test_the_path_of_a_method_goes_through_its_means_at_each_rate(draw):
    tables = tables_of({("bp-fast", 0): "diverged"})
    runs, ranks = (tables[name][tables[name]["study"] == "rated"] for name in ("runs", "ranks"))
    ranks = ranks[(ranks["scope"] == "cumulative") & (ranks["step"] == 20)].set_index(["arm", "seed"])["entropy_s2"]
    means = runs.set_index(["arm", "seed"]).assign(log=np.log2(ranks)).dropna(subset="log").groupby("arm")
    means = means[["log", "test_accuracy"]].mean() * [1, 100]
    made, caption = draw("rates", tables)
    axes, latest = panels(made)
    assert [each.get_title() for each in (axes, latest)] == ["gradients of the whole run", "latest gradients"]
    paths = {mpl.colors.to_hex(line.get_color()): line.get_xydata() for line in axes.lines}
    together = 0
    for arm in ("fa", "bp", "bp+muon"):
        path = means.loc[[f"{arm}-slow", arm, f"{arm}-fast"]].to_numpy()
        np.testing.assert_allclose(paths[colour(arm)], path)
        together += (np.diff(path, axis=0).prod(axis=1) > 0).sum()
    said = f"As the rate rises, mean rank and accuracy move the same way in {together} of 6 steps"
    assert said == made.get_suptitle()
    assert said in caption


def test_ranks_are_at_equal_loss_as_far_as_all_seeds_got(draw):
    tables = tables_of(seeds=2)
    epochs, ranks = tables["epochs"], tables["ranks"]
    last = epochs["epoch"] == 2
    epochs["train_loss"] = np.where(last, np.where(epochs["seed"] == 0, 1.0, 1.5), 2.0)
    epochs.loc[last & (epochs["arm"] == "bp"), "train_loss"] = 0.5
    ranks[["entropy_s", "entropy_s2"]] = ranks[["step", "step"]].to_numpy() + np.array([1.0, 2.0])
    made, _ = draw("progress", tables)
    fa = [drawn_lines(axes)[colour("fa")] for axes in panels(made)]
    assert all(axes.xaxis.get_inverted() for axes in panels(made))
    for xy, more in zip(fa, (2, 1, 1, 1), strict=True):
        loss, rank = xy.T
        assert 1.5 <= loss.min() < 1.55
        assert 1.95 < loss.max() <= 2
        # The loss falls from 2 in the middle of epoch 1, step 5, to that of epoch 2 at step 15: at different speeds.
        np.testing.assert_allclose(rank, 5 + 10 * (2 - loss) * (1 / 1 + 1 / 0.5) / 2 + more)


# ---- words and files ----


NEITHER = {"tuning", "summary"}  # captions that say themselves what they stand on


@pytest.mark.parametrize("figure", sorted({*FIGURES} - NEITHER - {"depth"}))  # the one without FA
def test_diverged_and_missing_runs_are_counted_in_the_caption(figure, draw):
    _, caption = draw(figure, tables_of({("fa", 0): "diverged", ("fa", 1): "missing"}))
    studies = 2 if figure in ("accuracy_vs_rank", "depths") else 1
    if figure != "updates":  # which has no FA without Muon
        assert f"; {studies} diverged (FA); {studies} missing (FA)" in caption


@pytest.mark.parametrize("figure", FIGURES)
def test_a_single_seed_has_no_spread(figure, draw):
    _, caption = draw(figure, tables_of(seeds=1))
    assert "over seeds" not in caption
    assert not re.search(r"\d ± \d|± 1", caption)
    assert figure == "summary" or "n = 1 a" in caption


@pytest.mark.parametrize("figure", FIGURES)
def test_a_grid_without_a_finished_run_is_said_to_be_one_and_left_out(figure, draw, tmp_path):
    outcomes = ["diverged", "missing", "missing"]
    lost = {(arm, s): outcomes[s] for arms in STUDIES.values() for arm in arms for s in range(3)}
    made, caption = draw(figure, tables_of(lost))
    assert ": this preset has no finished runs for it.\nDrawn by " in caption
    assert made.texts[0].get_text() == caption.splitlines()[0]
    for name in titles():
        (tmp_path / f"{name}.txt").write_text(caption if name == figure else "A caption.")
    assert drawn(tmp_path) == [name for name in titles() if name != figure]


@pytest.mark.parametrize("figure", FIGURES)
def test_the_committed_results_are_drawn_at_the_width_of_the_page(figure, draw):
    quick = yaml.safe_load((ROOT / "presets/quick.yaml").read_text(encoding="utf-8"))["studies"]
    looks = {"arms": CONFIG["arms"], "studies": {study["name"]: study["title"] for study in quick}}
    looks["shown"] = {study["name"]: [*study["arms"]] for study in quick}
    made, caption = draw(figure, ROOT / "results/quick", looks)
    assert made.get_figwidth() == drawing.WIDTH
    assert "\n" not in made.get_suptitle()
    assert made.get_figheight() <= drawing.PAGE
    sizes = [text.get_fontsize() for text in made.findobj(mpl.text.Text) if text.get_text()]
    assert min(sizes) >= drawing.SMALL
    what, *more, script = caption.splitlines()
    assert what.endswith(".")
    assert not re.search(r"\d\.\d|\[", what)  # the numbers have a line of their own
    assert [line.startswith("In numbers: ") for line in more] in ([True], [True, False], [False], [])
    assert script == f"Drawn by rankcollapse/render/figures/{figure}.py."
    names = [axes.get_title(loc="left").strip("\n") for axes in made.axes]
    assert not any("\n" in name or "diverged" in name for name in names)
    made.canvas.draw()
    words = [text for axes in made.axes for text in (axes.title, axes._left_title, *axes.texts)]
    words += [text for each in made.findobj(mpl.legend.Legend) for text in each.texts] + made.texts
    boxes = [text.get_window_extent() for text in words if text.get_text()]
    assert min((box.x0 for box in boxes), default=0) >= -3  # pixels: a letter is 6
    assert max((box.x1 for box in boxes), default=0) <= made.bbox.x1 + 3


def test_the_titles_are_numbered_and_read_without_matplotlib():
    assert [title.partition(". ")[0] for title in titles().values()] == [f"{n}" for n in range(1, len(FIGURES) + 1)]
    order = "summary headline accuracy accuracy_vs_rank updates feedback error_set rules rates interaction depths"
    order += " error_rank gradient_rank intervention remedies depth curves alignment tuning progress"
    assert [*titles()] == order.split()
    words = "import sys; from rankcollapse.render.figures import titles; titles(); print('matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", words], cwd=ROOT, text=True) == "False\n"


def test_the_look_of_every_arm_is_its_own():
    arms = CONFIG["arms"].values()
    assert len({look["colour"] for look in arms}) == len({look["label"] for look in arms}) == len(arms)
