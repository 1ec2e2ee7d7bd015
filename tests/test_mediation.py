"""Does accuracy go with rank? Against NumPy's correlations, on tables made to have one, and none."""

import numpy as np
import pandas as pd
import pytest

from rankcollapse.render import mediation as mediating
from rankcollapse.render.mediation import LEARNING, correlations, mediation, rules
from rankcollapse.render.tables import MEASURES

RNG = np.random.Generator(np.random.PCG64(1))
ARMS = [f"arm{i}" for i in range(6)]


def runs(seeds=4, slope=1.0, noise=0.1, within=0.0, missing=()):
    """Arms whose accuracy rises with the log of the rank by `slope`, and within an arm by `within`."""
    rows = []
    for i, arm in enumerate(ARMS):
        for seed in range(seeds):
            if (arm, seed) in missing:
                continue
            own = RNG.normal()
            accuracy = 50 + slope * i + within * own + noise * RNG.normal()
            rows.append({"arm": arm, "seed": seed, "log_rank": i + own / 4, "test_accuracy": accuracy})
    return pd.DataFrame(rows).assign(train_loss=lambda t: 1 + RNG.normal(size=len(t)))


def means(part):
    return part.groupby("arm")[["log_rank", "test_accuracy", "train_loss"]].mean()


@pytest.mark.parametrize("missing", [(), [("arm0", 1), ("arm4", 0), ("arm4", 3)]])
def test_the_three_correlations_are_numpys(missing):
    """Between: of arm means; within: of deviations; given the loss: of what a line through the losses leaves."""
    part = runs(missing=missing, within=0.5)
    found, arm = correlations(part), means(part)
    assert (found["arms"], found["n"]) == (6, 24 - len(missing))
    assert found["between"] == pytest.approx(np.corrcoef(arm["log_rank"], arm["test_accuracy"])[0, 1])
    apart = part.set_index("arm")[["log_rank", "test_accuracy"]] - arm[["log_rank", "test_accuracy"]].loc[part["arm"]]
    assert found["within"] == pytest.approx(np.corrcoef(apart.T)[0, 1])
    left = [arm[v] - np.polyval(np.polyfit(arm["train_loss"], arm[v], 1), arm["train_loss"]) for v in arm.columns[:2]]
    assert found["given_loss"] == pytest.approx(np.corrcoef(left)[0, 1])


def test_intervals_hold_what_is_there_and_are_the_same_twice():
    part = runs(slope=2.0, noise=0.5, within=1.0)
    found = correlations(part)
    assert found == correlations(part)
    for name in ("between", "within", "given_loss"):
        assert -1 <= found[f"{name}_low"] <= found[name] <= found[f"{name}_high"] <= 1
    assert found["between_low"] > 0.8
    assert found["within_low"] > 0.2


def test_where_arms_do_not_differ_by_rank_the_intervals_hold_zero():
    found = [correlations(runs(slope=0.0, noise=1.0)) for _ in range(20)]
    held = [each["between_low"] <= 0 <= each["between_high"] for each in found]
    assert sum(held) >= 14, "a bootstrap over six arms holds it somewhat less often than 95 %"


def test_an_accuracy_that_the_loss_explains_has_nothing_left_for_the_rank():
    """Rank and accuracy both follow the loss, and apart from it neither the other."""
    rows = [
        {"arm": f"arm{i}", "seed": s, "train_loss": 3 - i / 9, "test_accuracy": 5 * i + RNG.normal(), "log_rank": a}
        for i in range(27)
        for s, a in enumerate(i / 9 + RNG.normal(size=3) / 5)
    ]
    found = correlations(pd.DataFrame(rows))
    assert found["between"] > 0.9
    assert found["given_loss_low"] < 0 < found["given_loss_high"]


def test_three_arms_are_too_few_and_one_without_spread_has_no_correlation():
    part = runs()
    assert correlations(part[part["arm"].isin(ARMS[:3])]) == {}
    flat = correlations(part.assign(test_accuracy=7.0))
    assert np.isnan([flat["between"], flat["within"], flat["given_loss"]]).all()


def test_rounding_is_no_correlation():
    """0.1 three times has another mean than twice; of two arms, drawn again, a line through the losses tells all."""
    part = runs(missing=[("arm0", 1), ("arm4", 0)])
    flat = correlations(part.assign(test_accuracy=0.1))
    assert np.isnan([flat["between"], flat["between_low"], flat["within"], flat["within_low"]]).all()
    alike = correlations(part.assign(log_rank=part["arm"].map(dict(zip(ARMS, np.arange(6) / 10, strict=True)))))
    assert np.isfinite(alike["between"])
    assert np.isnan([alike["within"], alike["within_low"], alike["within_high"]]).all()
    for _ in range(10):
        one = runs(seeds=1, noise=5.0)[2:]
        wide = [one.pivot(index="arm", columns="seed", values=v) for v in ("log_rank", "test_accuracy", "train_loss")]
        found = mediating._given_loss(mediating._drawn(np.stack(wide), [np.array([i]) for i in range(len(wide[0]))]))
        assert np.abs(found[np.isfinite(found)]).max() <= 1 + 1e-6


def test_hidden_layers_have_no_mean_where_one_has_no_rank():
    """Not that of the others: it would be of other layers than in other runs."""
    part = runs(seeds=2)
    keys = {"study": "a", "dataset": "digits", "architecture": "cnn", "outcome": "finished"}
    all_runs = part.assign(**keys, learning_blocks=np.nan)
    values = {"conv1": np.exp(part["log_rank"]).where(part["arm"] != "arm5", 0.0), "conv2": np.exp(part["log_rank"])}
    ranks = [
        part.assign(**keys, quantity="error", layer=layer, scope="batch", step=1, **dict.fromkeys(MEASURES, rank))
        for layer, rank in values.items()
    ]
    found = mediation({"runs": all_runs, "ranks": pd.concat(ranks, ignore_index=True)}).groupby("layer")["arms"].first()
    assert found.to_dict() == {"hidden": 5, "conv1": 5, "conv2": 6}


def test_of_tables_it_takes_finished_runs_at_their_end_and_the_mean_of_hidden_layers():
    part = runs()
    keys = {"study": "a", "dataset": "digits", "architecture": "cnn"}
    all_runs = part.assign(**keys, outcome="finished", learning_blocks=np.nan).drop(columns="log_rank")
    all_runs.loc[all_runs["seed"] == 3, "outcome"] = "diverged"
    ladder = all_runs[all_runs["arm"] == "arm0"].assign(arm="ladder", learning_blocks=1.0)
    all_runs = pd.concat([all_runs, ladder])
    ranks = [
        part.assign(
            **keys, quantity="error", layer=layer, scope="batch", step=step, value=np.exp(part["log_rank"] + add)
        )
        for layer, add in (("conv1", 0.0), ("conv2", 2.0), ("head", -7.0))
        for step in (0, 10)
    ]
    ranks = pd.concat(ranks).assign(
        **dict.fromkeys(["entropy_s", "entropy_s2", "participation_ratio", "stable_rank"], 1.0)
    )
    at_end = ranks["step"] == 10
    ranks.loc[at_end, "entropy_s"] = ranks.loc[at_end, "value"]
    ranks = ranks.merge(all_runs[["arm", "seed", "outcome"]], on=["arm", "seed"])
    found = mediation({"runs": all_runs, "ranks": ranks}).set_index(["layer", "measure"])
    assert [*found.index.get_level_values(0).unique()] == ["hidden", "conv1", "conv2", "head"]
    expected = correlations(part[part["seed"] < 3])
    for layer in ("hidden", "conv1", "conv2", "head"):  # a factor on all ranks changes nothing
        row = found.loc[layer, "entropy_s"]
        assert (row["arms"], row["n"]) == (6, 18)
        assert row["between"] == pytest.approx(expected["between"])
        assert row["within"] == pytest.approx(expected["within"])
    assert np.isnan(found.loc[("conv1", "stable_rank"), "between"])


def test_rank_and_alignment_of_learning_rules_are_each_told_given_the_other():
    """Accuracy follows the cosine, and rank has a part in it through that alone."""
    arms = [(arm, i, seed) for i, arm in enumerate(LEARNING) for seed in range(3)]
    table = pd.DataFrame(arms, columns=["arm", "at", "seed"])
    cosine = table["at"] / 30 + 0.01 * RNG.normal(size=len(table))
    log_rank = 2 + 2 * cosine + 0.3 * RNG.normal(size=len(LEARNING))[table["at"]]
    table = table.assign(study="cnn", dataset="cifar10", architecture="cnn", outcome="finished", alignment=cosine)
    table = table.assign(
        whole_gradient_rank=np.exp(log_rank), test_percent=40 + 20 * cosine + RNG.normal(size=len(table))
    )
    lost = pd.concat([table, table[:3].assign(arm="bp", alignment=1), table[3:4].assign(seed=3, outcome="diverged")])
    found = rules(lost).set_index("predictor")
    means = table.assign(log_rank=log_rank).groupby("arm")[["log_rank", "alignment", "test_percent"]].mean()
    assert found["arms"].to_list() == [len(LEARNING)] * 2
    for name, column, other in (
        ("whole_gradient_rank", "log_rank", "alignment"),
        ("alignment", "alignment", "log_rank"),
    ):
        assert found.loc[name, "between"] == pytest.approx(np.corrcoef(means[column], means["test_percent"])[0, 1])
        left = [
            means[v] - np.polyval(np.polyfit(means[other], means[v], 1), means[other]) for v in (column, "test_percent")
        ]
        assert found.loc[name, "given_other"] == pytest.approx(np.corrcoef(left)[0, 1])
    assert found.loc["alignment", "given_other"] > 0.9
    assert rules(table[table["at"] < 3]).empty


def test_arms_of_one_rule_are_drawn_together_so_that_repeating_them_makes_nothing_surer():
    points = RNG.normal(size=(6, 3))
    table = pd.DataFrame(points, columns=["log_rank", "test_accuracy", "train_loss"])
    alone = table.assign(arm=[f"arm {i}" for i in range(6)], seed=0)
    twice = pd.concat([alone, alone.assign(arm=alone["arm"] + " again")])
    together = correlations(twice.assign(together=twice["arm"].str.removesuffix(" again")))
    expected = correlations(alone)
    assert [together.pop(name) for name in ("arms", "n")] == [2 * expected.pop(name) for name in ("arms", "n")]
    assert together == pytest.approx(expected, nan_ok=True)
    assert correlations(twice)["between_low"] > expected["between_low"]
