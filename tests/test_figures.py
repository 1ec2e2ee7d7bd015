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

from rankcollapse.render import drawing
from rankcollapse.render.figures import titles
from rankcollapse.render.text import number, over

ROOT = Path(__file__).parents[1]
FIGURES = sorted(titles())
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
SPECTRA = {
    "error": ["batch", "pooled"], "classifier_input_error": ["pooled"], "activation": ["batch"], "update": ["step"],
    "gradient_trajectory": ["cumulative", "window"],
}  # fmt: skip
PLAIN = {"rule": "bp", "optimizer": "sgd", "normalization": "none", "update": "full", "lr": 0.1}
FROZEN = {
    "frozen+bn": {"rule": "frozen", "normalization": "batch"},
    "frozen-fa+bn": {"rule": "frozen-fa", "normalization": "batch"},
}
LADDER = {"fa+bn-last1": {"rule": "fa", "normalization": "batch", "learning_blocks": 1}}
STUDIES = {
    "plain": {
        "bp": {}, "fa": {"rule": "fa"}, "fa+bn": {"rule": "fa", "normalization": "batch"},
        "fa+muon": {"rule": "fa", "optimizer": "muon"}, "bp+muon": {"optimizer": "muon"}, **FROZEN, **LADDER,
    },
    "changed": {"bp": {}, "bp-top2": {"update": "top_r", "rank": 2}, "fa": {"rule": "fa"}},
}  # fmt: skip
LOOKS = {
    "arms": {
        arm: {"label": arm.upper(), "colour": f"#{20 * i:02x}40a0", "marker": "os^Dv<>PXdh"[i], "line": "-"}
        for i, arm in enumerate(dict.fromkeys(arm for arms in STUDIES.values() for arm in arms))
    },
    "studies": {"plain": "A net", "changed": "A net, changed"},
    "shown": {study: [*arms] for study, arms in STUDIES.items()},
}
LEARNING = STUDIES["plain"].keys() - FROZEN.keys() - LADDER.keys()
ARMS = {  # by figure: the study and the arms that it shows
    "error_rank": ("plain", {"bp", "fa", "fa+bn"}),
    "gradient_rank": ("plain", LEARNING),
    "intervention": ("changed", set(STUDIES["changed"])),
    "remedies": ("plain", {"bp", "fa", "fa+bn", "fa+muon"}),
    "alignment": ("plain", LEARNING),
    "accuracy": ("plain", LEARNING | FROZEN.keys()),
    "accuracy_vs_rank": ("plain", LEARNING),
    "curves": ("plain", LEARNING),
    "depth": ("plain", {"fa+bn"}),
}
POINTS = {"intervention", "accuracy", "accuracy_vs_rank"}  # the others have lines


def tables_of(outcomes: dict | None = None, seeds: int = 3) -> dict[str, pd.DataFrame]:
    """The tables of collect.py with random numbers; outcomes, by arm and seed, are `finished` unless given."""
    g = np.random.default_rng(0)
    rows: dict[str, list] = {name: [] for name in ("runs", "epochs", "ranks", "alignment", "norms", "tuned")}
    keys = [(study, arm, seed) for study, arms in STUDIES.items() for arm in arms for seed in range(seeds)]
    for study, arm, seed in keys:
        key = {"study": study, "dataset": "cifar10", "architecture": "mlp", "arm": arm, "seed": seed}
        outcome = (outcomes or {}).get((arm, seed), "finished")
        accuracies = {} if outcome == "missing" else {"test_accuracy": g.uniform(0.3, 0.6), "validation_accuracy": 0.5}
        knobs = {**PLAIN, "rank": None, "norm": None, "learning_blocks": None, **STUDIES[study][arm]}
        knobs["rate"] = "as fa+bn" if knobs["learning_blocks"] else "tuned"
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
            for quantity, layer in cosines if knobs["rule"] in ("fa", "frozen-fa") else []:
                for kind, most in (("", 1), ("_null", 0.1)):
                    what = {"quantity": quantity + kind, "layer": layer, "step": step}
                    rows["alignment"].append({**key, **what, "value": broken * g.uniform(-most, most)})
            for quantity in ("activation", "weight", "reference"):
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
        drawn.update(made=made, caption=caption)
        drawing.plt.close(made)

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

    return run


# ---- the drawn data ----


def colour(arm: str) -> str:
    return mpl.colors.to_hex(LOOKS["arms"][arm]["colour"])


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
        parts = [of(quantity="error", scope="batch", layer=layer) for layer in ("hidden1", "hidden2", "head")]
        return [mean_lines(p, "epoch", "entropy_s", arms) for p in [*parts, of(quantity="classifier_input_error")]]
    if figure == "gradient_rank":
        parts = [of(quantity="gradient_trajectory", scope=scope) for scope in ("cumulative", "window")]
        return [mean_lines(part.assign(T=part["step"] + 5), "T", "entropy_s2", arms) for part in parts]
    if figure == "remedies":
        places = {"hidden1": 0, "hidden2": 1, "head": 2}
        wanted = [("error", "pooled"), ("activation", "batch"), ("update", "step")]
        parts = [of(quantity=quantity, scope=scope, step=20) for quantity, scope in wanted]
        return [mean_lines(part.assign(place=part["layer"].map(places)), "place", "entropy_s2", arms) for part in parts]
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
        mpl.colors.to_hex(edge) for dots in marks if max(dots.get_linewidths()) > 1 for edge in dots.get_edgecolors()
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


@pytest.mark.parametrize("figure", sorted(POINTS))
def test_finished_runs_are_points_and_diverged_ones_crosses_which_count_in_accuracies(figure, draw):
    tables, (study, arms) = tables_of({("fa", 0): "diverged"}), ARMS[figure]
    made, caption = draw(figure, tables)
    axes, at = panels(made)[0], 1 if figure == "accuracy_vs_rank" else 0
    runs = tables["runs"].query(f"study == '{study}'").assign(percent=lambda r: 100 * r["test_accuracy"])
    points, bars = drawn_points(axes), [line for line in axes.lines if line.get_marker() in "_|"]
    assert points.keys() == {colour(arm) for arm in arms}
    assert crosses(axes) == [colour("fa")]
    for arm in arms:
        mine = runs[runs["arm"] == arm]
        done = mine[mine["outcome"] == "finished"]["percent"]
        np.testing.assert_allclose(points[colour(arm)][:, at][: len(done)], done)
        if figure != "accuracy_vs_rank":
            (bar,) = [line for line in bars if mpl.colors.to_hex(line.get_color()) == colour(arm)]
            np.testing.assert_allclose(np.nanmean(bar.get_xdata()), mine["percent"].mean())
            assert over(mine["percent"]) in [text.get_text() for text in axes.texts]
            assert arm not in ("bp", "fa") or over(mine["percent"]) in caption
            assert "a diverged one with the accuracy that it ended with: n = 3 an arm" in caption


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
    assert "the 1 that diverged" in caption
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


@pytest.mark.parametrize("figure", sorted({*FIGURES} - {"tuning", "depth"}))  # the one of candidates, without FA
def test_diverged_and_missing_runs_are_counted_in_the_caption(figure, draw):
    _, caption = draw(figure, tables_of({("fa", 0): "diverged", ("fa", 1): "missing"}))
    studies = 2 if figure == "accuracy_vs_rank" else 1
    assert f"; {studies} diverged (FA); {studies} missing (FA)" in caption


@pytest.mark.parametrize("figure", FIGURES)
def test_a_single_seed_has_no_spread(figure, draw):
    _, caption = draw(figure, tables_of(seeds=1))
    assert "over seeds" not in caption
    assert not re.search(r"\d ± \d|± 1", caption)
    assert "n = 1 a" in caption


@pytest.mark.parametrize("figure", FIGURES)
def test_a_grid_without_a_finished_run_is_said_to_be_one(figure, draw):
    outcomes = ["diverged", "missing", "missing"]
    lost = {(arm, s): outcomes[s] for arms in STUDIES.values() for arm in arms for s in range(3)}
    made, caption = draw(figure, tables_of(lost))
    assert re.search(r": no finished run among \d+ of this kind\.$", caption)
    assert "no finished run" in made.texts[0].get_text()


@pytest.mark.parametrize("figure", FIGURES)
def test_the_committed_results_are_drawn_at_the_width_of_the_page(figure, draw):
    quick = yaml.safe_load((ROOT / "presets/quick.yaml").read_text(encoding="utf-8"))["studies"]
    looks = {"arms": CONFIG["arms"], "studies": {study["name"]: study["title"] for study in quick}}
    looks["shown"] = {study["name"]: [*study["arms"]] for study in quick}
    made, caption = draw(figure, ROOT / "results/quick", looks)
    assert made.get_figwidth() == drawing.WIDTH
    assert made.get_figheight() <= drawing.PAGE
    sizes = [text.get_fontsize() for text in made.findobj(mpl.text.Text) if text.get_text()]
    assert min(sizes) >= drawing.SMALL
    assert "\n" not in caption


def test_the_titles_are_numbered_and_read_without_matplotlib():
    assert [title.partition(". ")[0] for title in titles().values()] == [f"{n}" for n in range(1, len(FIGURES) + 1)]
    words = "import sys; from rankcollapse.render.figures import titles; titles(); print('matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", words], cwd=ROOT, text=True) == "False\n"


def test_the_look_of_every_arm_is_its_own():
    arms = CONFIG["arms"].values()
    assert len({look["colour"] for look in arms}) == len({look["label"] for look in arms}) == len(arms)
