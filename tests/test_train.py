"""Training is what it says, its probes measure what they say and leave no trace, and a run's folder is whole."""

import csv
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from rankcollapse import identity, load_checkpoint, train
from rankcollapse.experiment import data as batching
from rankcollapse.experiment import files
from rankcollapse.experiment import folder as folders
from rankcollapse.experiment.config import RunConfig, run_config
from rankcollapse.experiment.folder import read_spectra
from rankcollapse.experiment.identity import MEASURES, TRAINING, code
from rankcollapse.experiment.network import make_model
from rankcollapse.experiment.training import deterministic, evaluate, fit, pick_device
from rankcollapse.library import feedback, models, rules, signals, trajectory

FILES = {*folders.RUN, "run.json", ".run.json", ".lock"}
PROBES = {"gradient_every": 1, "gradient_stride": 4, "gradient_window": 8, "signals_every": 1}
CNN = {"architecture": "cnn", "width": 4, "normalization": "batch"}
ARMS = {
    "bp": {"rule": "bp", "normalization": "batch"},
    "fa+bn, cnn, flip, crop": {**CNN, "rule": "fa", "flip": True, "crop": 1},
    "kp, decay": {"rule": "kp", "weight_decay": 0.5},
    "frozen-fa": {**CNN, "rule": "frozen-fa"},
    "fa+muon": {"rule": "fa", "normalization": "batch", "optimizer": "muon", "lr": 0.01, "weight_decay": 0.5},
    "fa, top_r": {"rule": "fa", "update": "top_r", "rank": 2},
    "fa, full_rank": {"rule": "fa", "update": "full_rank", "norm": "spectral", "momentum": 0.0},
    "fa, bfloat16": {"rule": "fa", "precision": "bfloat16"},
    "fa+bn, compiled": {"rule": "fa", "normalization": "batch", "compile": True},
}
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
compiles = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")["model"]


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    assert [key for key, value in a.items() if not torch.equal(value, b[key])] == []


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def chosen(found, quantity, layer, scope):
    return [s for s in found if (s.quantity, s.layer, s.scope) == (quantity, layer, scope)]


def probe_batch(config, data):
    order = torch.randperm(len(data.train), generator=batching.generator(config.seed, "probe"))[: config.probe_images]
    return data.pixels(data.train.images[order]), data.train.labels[order]


@pytest.fixture(scope="module")
def run(data_dir):
    """A function that trains a config into a folder, on the CPU unless told."""
    return lambda config, folder, device="cpu", **options: train(
        config, folder, data_dir=data_dir, device=device, **options
    )


@pytest.fixture(scope="module")
def probed(tiny, run, tmp_path_factory, device):
    """A run folder of feedback alignment, and one of backpropagation, with every probe on, over two epochs."""
    folder = tmp_path_factory.mktemp("probed")
    configs = {rule: tiny(rule=rule, epochs=2, train_images=None, **PROBES) for rule in ("fa", "bp")}
    for rule, config in configs.items():
        run(config, folder / rule, device)
    return folder, configs


# ---- the same bits ----


@pytest.mark.parametrize("arm", [pytest.param(arm, marks=compiles if "compiled" in arm else []) for arm in ARMS])
def test_a_config_gives_the_same_bits_twice_with_and_without_probes_and_other_bits_with_another_seed(
    tiny, run, tmp_path, device, arm
):
    first, again, probed, other = (tmp_path / name for name in ("first", "again", "probed", "other"))
    run(tiny(**ARMS[arm]), first, device)
    run(tiny(**ARMS[arm]), again, device)
    run(tiny(**ARMS[arm], **PROBES), probed, device)
    run(tiny(**ARMS[arm], seed=1), other, device)
    for folder in (again, probed):
        assert_same_bits(weights(first), weights(folder))  # with the running statistics of batch norm
        assert (first / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()
    assert read_spectra(first / "spectra.npz") == []
    assert len(read_spectra(probed / "spectra.npz")) > 20
    assert not torch.equal(weights(first)["head.weight"], weights(other)["head.weight"])


@pytest.mark.parametrize("architecture", ["cnn", "resnet18"])
def test_convolutions_in_bfloat16_give_the_same_bits_twice_and_nearly_those_of_float32(
    tiny, fake_cifar, tmp_path, device, architecture
):
    """As the presets for CIFAR train on a GPU, and the digits cannot."""
    options = {"dataset": "cifar10", "train_images": 128, "validation_images": 50, "flip": True, "crop": 4, "width": 8}
    options |= {"architecture": architecture, "rule": "fa", "normalization": "batch", "batch_size": 32, **PROBES}
    for name, precision in {"first": "bfloat16", "again": "bfloat16", "full": "float32"}.items():
        train(tiny(**options, precision=precision), tmp_path / name, data_dir=fake_cifar, device=device)
    first, full = (weights(tmp_path / name) for name in ("first", "full"))
    for name in {*folders.RUN}:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    low, high = (each["head.weight"].flatten() for each in (first, full))
    assert low.dtype == torch.float32
    assert not torch.equal(low, high)
    assert torch.cosine_similarity(low, high, dim=0) > 0.99


def test_a_run_neither_hears_nor_touches_the_callers_state(tiny, run, tmp_path, global_random_state, device):
    """Deterministic, and float32 that is float32, while it trains; then all is as it was."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    settings = (cudnn, "benchmark"), (cudnn, "allow_tf32"), (matmul, "allow_tf32")

    def state():
        modes = torch.get_deterministic_debug_mode(), torch.get_num_threads()
        return global_random_state(), modes, [getattr(*setting) for setting in settings]

    first = [getattr(*setting) for setting in settings]
    torch.set_deterministic_debug_mode("warn")
    try:
        for setting in settings:
            setattr(*setting, True)
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = state()
            run(tiny(**ARMS["fa+bn, cnn, flip, crop"], **PROBES), tmp_path / str(seed), device)
            assert state() == before
        with deterministic():
            assert (torch.get_deterministic_debug_mode(), state()[2]) == (2, [False] * 3), "an error"
        assert state() == before
    finally:
        torch.set_deterministic_debug_mode("default")
        for setting, value in zip(settings, first, strict=True):
            setattr(*setting, value)
    for name in folders.RUN:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


# ---- training is what it says ----


def test_while_a_run_trains_numbers_below_the_normal_ones_are_zeros_on_a_cpu():
    """They would slow matrix products 10 to 25 times where units are dead."""
    least = torch.tensor([torch.finfo(torch.float32).tiny])
    with deterministic():
        assert not (least / 2).any()
        assert least.any()
    assert (least / 2).any(), "put back"


def test_every_rate_rises_along_a_line_in_the_epochs_of_warm_up_and_falls_along_a_cosine(tiny, new_state):
    """Ten steps an epoch: 1/21 to 20/21 of the peak, then all of it, and half of it midway."""
    state, rates = new_state(tiny(optimizer="muon", normalization="batch", epochs=6, warmup=2, lr=0.5)), []
    expected = [(s + 1) / 21 for s in range(20)] + [(1 + np.cos(np.pi * s / 40)) / 2 for s in range(40)]
    assert [expected[s] for s in (0, 19, 20, 40)] == pytest.approx([1 / 21, 20 / 21, 1, 0.5])
    assert [state.rate(step) for step in range(60)] == pytest.approx(expected)
    assert [o.param_groups[0]["lr"] for o in state.optimizers] == pytest.approx([0.5 / 21, 0.001 / 21])
    fit(state, lambda step, note: note or rates.append([o.param_groups[0]["lr"] for o in state.optimizers]))
    assert np.array(rates[:-1]) == pytest.approx(np.outer(expected[1:], [0.5, 0.001]))
    assert new_state(tiny()).rate(0) == 1, "without warm-up it starts at the peak"
    flat = new_state(tiny(epochs=6, warmup=2, schedule="constant"))
    assert [flat.rate(step) for step in range(60)] == pytest.approx(expected[:20] + [1.0] * 40)


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_a_run_is_sgd_under_a_cosine_and_its_trajectory_spectra_are_numpys(digits, probed, device, rule):
    """An independent loop: torch's own SGD and a cosine written out, gradients collected by hand."""
    folder, configs = probed
    config = configs[rule]
    data, model = batching.load(config, digits, device), make_model(config, device)
    optimizer = torch.optim.SGD(model.parameters(), momentum=config.momentum)
    order = batching.generator(config.seed, "order")
    collected, losses, total = [], [], 2 * 19  # two epochs of 1,237 images, 64 to a batch
    for step, (images, labels) in enumerate(b for _ in range(2) for b in batching.batches(data, config, order)):
        optimizer.param_groups[0]["lr"] = config.lr * (1 + np.cos(np.pi * step / total)) / 2
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        matrices = models.matrices(model)
        collected.append({name: w.grad.flatten().double().cpu().numpy().copy() for name, w in matrices.items()})
    trained, _ = load_checkpoint(folder / rule / "checkpoint.pt", device)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    metrics = table(folder / rule / "metrics.csv")
    assert float(metrics[0]["train_loss"]) == pytest.approx(np.mean(losses[:19]), rel=1e-5)
    assert float(metrics[-1]["validation_accuracy"]) == evaluate(model, data, data.validation, config)[1]

    rows = {name: np.stack([g[name] for g in collected]) for name in matrices}
    rows["all"] = np.concatenate(list(rows.values()), axis=1)
    for name, matrix in rows.items():
        for scope in ("cumulative", "window"):
            found = chosen(read_spectra(folder / rule / "spectra.npz"), "gradient_trajectory", name, scope)
            lengths = [*range(4, total, 4), total]
            if scope == "window":
                lengths = [t for t in lengths if t >= config.gradient_window]
            assert [s.step for s in found] == [t - 1 for t in lengths]
            for s, t in zip(found, lengths, strict=True):
                measured = matrix[:t] if scope == "cumulative" else matrix[t - config.gradient_window : t]
                assert s.rows == len(measured)
                expected = np.linalg.svd(measured, compute_uv=False)
                expected = np.pad(expected, (0, len(s.values) - len(expected)))  # more steps than parameters
                np.testing.assert_allclose(s.values, expected, atol=1e-3 * expected[0])


def test_trajectory_rows_are_those_of_every_nth_step_kept_in_a_file(tiny, new_state):
    config = tiny(epochs=2, batch_size=64, gradient_every=3, gradient_stride=2)  # steps 0, 3, 6, 9, 12, 15, 18
    state = new_state(config)
    path, size = state.trajectory.path, 4 * (64 * 16 + 16 * 16 + 16 * 10)
    sizes, notes = [], []

    def report(step, note):
        sizes.append(state.trajectory.state_dict() and path.stat().st_size // size)
        notes.append((step, note[:5]))

    fit(state, report)
    assert sizes == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7]
    first, second = ([(step, "") for step in steps] for steps in (range(1, 11), range(11, 21)))
    assert notes == [*first, (10, "loss "), *second, (20, "loss ")]
    found = chosen(state.spectra(), "gradient_trajectory", "head", "cumulative")
    assert [(s.step, s.rows) for s in found] == [(3, 2), (9, 4), (15, 6), (18, 7)]


@pytest.mark.parametrize("rule", ["bp", "fa"])
@pytest.mark.parametrize("architecture", ["mlp", "cnn", "resnet18"])
def test_bfloat16_rows_lose_nothing_of_a_gradient_under_autocast(tmp_path, architecture, rule):
    config = run_config({"architecture": architecture, "rule": rule, "dataset": "cifar10", "width": 4})
    model, g = make_model(config), torch.Generator().manual_seed(1)
    images, labels = torch.randn(64, 3, 32, 32, generator=g), torch.randint(0, 10, (64,), generator=g)
    matrices = models.matrices(model)
    rows = trajectory.Trajectory(model, 1, tmp_path / "gradients.bin", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    F.cross_entropy(logits.float(), labels).backward()
    rows.add(0)
    rows.close()
    row = torch.from_file(str(tmp_path / "gradients.bin"), size=len(rows.row), dtype=torch.bfloat16)
    parts = row.split([weight.numel() for weight in matrices.values()])
    for part, weight in zip(parts, matrices.values(), strict=True):
        assert torch.equal(part.float().view(weight.shape), weight.grad)


@pytest.fixture
def drawn(monkeypatch):
    """The weights, by layer, of every context in which errors travel back through others than the run's."""
    seen, through = [], rules.through

    def watched(model, weights):
        seen.append({name: w.detach().clone() for name, w in weights.items()})
        return through(model, weights)

    monkeypatch.setattr(rules, "through", watched)
    return seen


def cosine(a, b):
    return a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("arm", [{"rule": "fa"}, {"rule": "kp", "weight_decay": 0.5}], ids=str)
def test_signals_cosines_and_norms_are_those_worked_by_hand_before_training_and_after(tiny, new_state, drawn, arm):
    """For a net with ReLU, in NumPy: with B, with W in its place, and with the untrained B that was drawn."""
    state, names, kept = new_state(tiny(**arm, signals_every=1, train_images=None)), ["hidden1", "hidden2", "head"], []

    def keep(*_):
        kept.append({n: v.double().numpy().copy() for n, v in state.model.state_dict().items()})

    keep()
    fit(state, lambda step, note: keep() if step == 19 and not note else None)
    images, labels = probe_batch(state.config, state.data)
    for step, values, fresh in zip((0, 19), kept, drawn[1::2], strict=True):  # each probe sees W, then a fresh B
        h = [images.flatten(1).double().numpy()]
        for name in names:
            a = h[-1] @ values[f"{name}.weight"].T + values[f"{name}.bias"]
            h.append(np.maximum(a, 0) if name != "head" else a)
        delta = np.exp(h[3]) / np.exp(h[3]).sum(1, keepdims=True)
        delta[np.arange(len(delta)), labels.numpy()] -= 1
        delta /= len(delta)

        def errors(back, h=h, delta=delta):
            below = delta @ back["head"]
            second = below * (h[2] > 0)
            return {"hidden1": second @ back["hidden2"] * (h[1] > 0), "hidden2": second, "head": delta, "input": below}

        w, b = ({name: values[f"{name}.{kind}"] for name in names} for kind in ("weight", "feedback"))
        null = {name: draw.double().numpy() for name, draw in fresh.items()}
        by_w, by_b, by_null = (errors(back) for back in (w, b, null))
        expected = {("activation", name): h[i] for i, name in enumerate(names)}
        expected |= {("error", name): by_b[name] for name in names} | {
            ("classifier_input_error", "head"): by_b["input"]
        }
        for (quantity, name), matrix in expected.items():
            (found,) = [s for s in chosen(state.signals.spectra, quantity, name, "batch") if s.step == step]
            singular = np.linalg.svd(matrix, compute_uv=False)
            assert found.rows == state.config.probe_images
            np.testing.assert_allclose(found.values, singular, atol=2e-6 * singular[0])
        cosines = {}
        for kind, back, wrong in (("", b, by_b), ("_null", null, by_null)):
            cosines |= {(f"weight{kind}", name): cosine(w[name], back[name]) for name in names[1:]}
            two = [[found[name].T @ h[i] for i, name in enumerate(names[:2])] for found in (wrong, by_w)]
            cosines |= {(f"gradient{kind}", name): cosine(two[0][i], two[1][i]) for i, name in enumerate(names[:2])}
            cosines[f"gradient{kind}", "all"] = cosine(*(np.concatenate([g.ravel() for g in each]) for each in two))
        norms = {("activation", name): np.sqrt(np.mean(h[i] ** 2)) for i, name in enumerate(names)}
        norms |= {("weight", name): np.linalg.norm(w[name]) for name in names}
        for quantity, errors in (("gradient", by_b), ("reference", by_w)):
            norms |= {(quantity, name): np.linalg.norm(errors[name].T @ h[i]) for i, name in enumerate(names)}
        for rows, values in ((state.signals.alignment, cosines), (state.signals.norms, norms)):
            found = {(of, layer): x for of, layer, when, x in rows if when == step and of != "relative_update"}
            assert found == pytest.approx(values, rel=1e-5, abs=1e-6)


def test_under_feedback_alignment_the_pooled_error_at_the_classifiers_input_has_rank_of_classes_less_one(probed):
    """δ of softmax sums to zero over the classes and B is fixed: rank 9 in any pool. W moves, so BP exceeds it."""
    folder, _ = probed
    for rule, most in (("fa", 9), ("bp", 16)):
        found = chosen(read_spectra(folder / rule / "spectra.npz"), "classifier_input_error", "head", "pooled")
        assert [s.rows for s in found] == [32, 64, 96]
        for s in found:
            rank = int((s.values > 1e-5 * s.values[0]).sum())
            assert rank <= most
    assert rank > 9, "the last pool of backpropagation holds errors of several W"
    assert table(folder / "bp" / "alignment.csv") == []


@pytest.mark.parametrize("arm", ["bp", "kp, decay", "frozen-fa", "fa+muon", "fa, top_r", "fa, full_rank"])
def test_an_update_is_what_the_last_step_of_an_epoch_added_to_the_weights(tiny, new_state, device, arm):
    """Per unit of learning rate and decay aside, as NumPy sees it, after each epoch and so after the last step."""
    config = tiny(**{"lr": 0.1, **ARMS[arm], "epochs": 3, "batch_size": 64, "signals_every": 2})
    state = new_state(config, device)
    group, before, expected, relative = state.optimizers[0].param_groups[0], {}, {}, {}

    def now():
        return {n: w.detach().flatten(1).double().cpu().numpy() for n, w in models.matrices(state.model).items()}

    def report(step, note):
        if step % 10 == 9:
            before.update(now(), rate=group["lr"])
        elif not note and step in (20, 30):
            rate = before.pop("rate")
            for name, after in now().items():
                change = (1 - rate * config.weight_decay) * before[name] - after
                expected[name, step] = np.linalg.svd(change, compute_uv=False) / rate
                relative[name, step] = np.linalg.norm(change) / np.linalg.norm(after)

    fit(state, report)
    learning = [name for name, w in models.matrices(state.model).items() if w.requires_grad]
    for name in learning:
        found = chosen(state.signals.spectra, "update", name, "step")
        assert [s.step for s in found] == [20, 30]
        for s in found:
            assert s.rows == len(models.matrices(state.model)[name])
            np.testing.assert_allclose(s.values, expected[name, s.step], atol=2e-3 * s.values[0])
    assert {s.layer for s in state.signals.spectra if s.quantity == "update"} == set(learning)
    found = {(layer, step): value for what, layer, step, value in state.signals.norms if what == "relative_update"}
    assert found == pytest.approx({key: relative[key] for key in relative if key[0] in learning}, rel=2e-3)


def nulls(state):
    return [row for row in state.signals.alignment if row[0].endswith("_null")]


@pytest.mark.parametrize("rule", ["fa", "frozen-fa"])
def test_every_probe_draws_a_b_of_its_own_from_the_runs_seed_alone_and_leaves_the_run_as_it_is(
    tiny, new_state, drawn, global_random_state, rule
):
    """Its B, its weights, their gradients, its mode, its running statistics, and every generator."""
    config = tiny(**CNN, rule=rule, signals_every=1)
    first, again, other = (new_state(c) for c in (config, config, config.model_copy(update={"seed": 1})))
    model = first.model.eval()
    own = {name: layer.feedback for name, layer in feedback.feedback_layers(model).items()}
    before, kept = global_random_state(), {name: value.clone() for name, value in model.state_dict().items()}
    learns = [p.requires_grad for p in model.parameters()]
    for step in (0, 10):
        first.signals.measure(step)
    assert global_random_state() == before
    assert all(layer.feedback is own[name] for name, layer in feedback.feedback_layers(model).items())
    assert_same_bits(model.state_dict(), kept)
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == learns
    assert not any(module._forward_hooks for name, module in model.named_modules() if name)
    (_, early), (_, late) = drawn[:2], drawn[2:]  # each probe sees W in place of B, then the fresh B
    for name, b in own.items():
        bound = 1 / np.sqrt(b[0].numel())
        for draw in (early[name], late[name]):
            assert not torch.equal(draw, b)
            assert 0.5 * bound < float(draw.abs().max()) <= bound, "of the law of B"
            assert abs(float((draw * b).sum() / draw.norm() / b.norm())) < 5 / np.sqrt(b.numel())
        assert not torch.equal(early[name], late[name])
    torch.rand(3, generator=again.order)  # whatever the run itself has drawn by then
    again.signals.measure(10)
    other.signals.measure(10)
    assert nulls(again) == [row for row in nulls(first) if row[2] == 10]
    assert nulls(again) != nulls(other)


@pytest.mark.parametrize(
    ("arm", "least"),
    [
        ({"rule": "bp"}, 0.8),
        ({"rule": "fa"}, 0.6),
        ({"rule": "kp", "weight_decay": 0.1}, 0.6),
        ({"rule": "frozen", "lr": 3.0}, 0.5),
        ({"rule": "fa", "optimizer": "muon", "lr": 0.02}, 0.4),
    ],
    ids=["bp", "fa", "kp", "frozen", "fa+muon"],
)
def test_training_learns_the_digits(tiny, run, digits, tmp_path, device, arm, least):
    result = run(tiny(**{"lr": 0.1, "epochs": 6, "train_images": None, **arm}), tmp_path, device)
    metrics = table(tmp_path / "metrics.csv")
    assert float(metrics[-1]["train_loss"]) < 0.7 * float(metrics[0]["train_loss"])
    assert float(metrics[-1]["validation_accuracy"]) > least
    assert [row["step"] for row in metrics] == ["19", "38", "57", "76", "95", "114"]
    assert result["parameters"] == 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    model, config = load_checkpoint(tmp_path / "checkpoint.pt", device)
    data = batching.load(config, digits, device)
    assert result["outcome"] == "finished"
    assert result["test_accuracy"] == pytest.approx(evaluate(model, data, data.test, config)[1])
    assert result["validation_accuracy"] == float(metrics[-1]["validation_accuracy"])


def test_evaluation_is_mean_cross_entropy_and_accuracy_in_evaluation_mode(tiny, digits):
    config = tiny(normalization="batch", train_images=None)
    data, model = batching.load(config, digits), make_model(config)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    loss, accuracy = evaluate(model, data, data.train, config)  # more than one batch of 1,000
    assert_same_bits(model.state_dict(), state)
    logits = model.eval()(data.pixels(data.train.images)).detach()
    assert loss == pytest.approx(float(F.cross_entropy(logits, data.train.labels)), rel=1e-5)
    assert accuracy == pytest.approx(float((logits.argmax(1) == data.train.labels).double().mean()))


@compiles
def test_compiled_training_is_training(tiny, run, tmp_path, device):
    torch.compiler.reset()
    counters.clear()
    run(tiny(rule="fa", compile=True), tmp_path / "compiled", device)
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    run(tiny(rule="fa"), tmp_path / "plain", device)
    for name, value in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights(tmp_path / "compiled")[name], value, rtol=1e-3, atol=1e-4)


# ---- the ladder: the last blocks alone learn ----

# Of each network with batch normalisation the children that hold parameters, by block, the classifier last.
BLOCKS = {
    "mlp": ["hidden1 2", "hidden2 5", "head"],
    "cnn": ["conv1 1", "conv2 4", "conv3 7", "conv4 10", "head"],
    "resnet18": ["stem 1", *(f"block{i}" for i in range(1, 9)), "head"],
}
RUNGS = [("mlp", 1), ("cnn", 3), ("resnet18", 6), ("resnet18", 9)]


def learning(model, architecture, count):
    """The parameters of the last `count` blocks and of the classifier, by the names above."""
    children = " ".join(BLOCKS[architecture][-1 - count :]).split()
    found = {name for name, _ in model.named_parameters() if name.split(".")[0] in children}
    assert {name.split(".")[0] for name in found} == {*children}
    return found


@pytest.mark.parametrize(("architecture", "count"), RUNGS)
@pytest.mark.parametrize("arm", [{"rule": "bp"}, {"rule": "fa"}, {"rule": "fa", "optimizer": "muon"}], ids=str)
def test_the_last_blocks_learn_by_the_gradients_of_the_whole_net_and_all_others_keep_their_bits(
    tiny, new_state, architecture, count, arm
):
    options = {"architecture": architecture, "normalization": "batch", "width": 8, "train_images": 128, **arm}
    part, whole = (new_state(tiny(**options, learning_blocks=k, weight_decay=0.5)) for k in (count, None))
    before = {name: p.detach().clone() for name, p in part.model.named_parameters()}
    for state in (part, whole):
        state.take_step(*next(state.batches()))
    found, expected = ({n: p.grad for n, p in s.model.named_parameters() if p.grad is not None} for s in (part, whole))
    assert found.keys() == learning(part.model, architecture, count)
    assert len(expected) == len([*whole.model.parameters()])
    assert_same_bits(found, {name: expected[name] for name in found})
    fit(part)
    moved = {name for name, p in part.model.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert (part.step, moved) == (2, {*found})


@pytest.mark.parametrize(
    ("arm", "own"),
    [({"rule": "fa", "learning_blocks": 1}, ["conv4", "head"]), ({"rule": "frozen-fa"}, ["head"])],
    ids=str,
)
def test_signals_are_measured_in_all_layers_and_gradients_and_updates_in_those_that_learn(tiny, new_state, arm, own):
    state = new_state(tiny(**CNN, **arm, **PROBES))
    fit(state)
    learns = [p.requires_grad for p in state.model.parameters()]
    found, every = state.spectra(), {"conv1", "conv2", "conv3", "conv4", "head"}
    assert [p.requires_grad for p in state.model.parameters()] == learns
    expected = {"error": every, "activation": every, "gradient_trajectory": {*own, "all"}, "update": {*own}}
    for quantity, layers in expected.items():
        assert {s.layer for s in found if s.quantity == quantity} == layers
    assert {layer for _, layer, *_ in state.signals.norms} == every
    aligned = {layer for quantity, layer, *_ in state.signals.alignment if quantity == "gradient"}
    assert aligned == every - {"head"} | {"all"}
    if own == ["head"]:
        whole, head = (chosen(found, "gradient_trajectory", layer, "cumulative") for layer in ("all", "head"))
        assert [s.values.tolist() for s in whole] == [s.values.tolist() for s in head]


# ---- candidates of the tuning ----


def test_tuning_cannot_reach_test_images(tiny, digits, data_dir, tmp_path):
    """A candidate is the same to the bit whatever the test images are; a run has another test accuracy, and no more."""
    tampered = tmp_path / "tampered" / "ready" / "digits"
    shutil.copytree(digits, tampered)
    rng, made = np.random.default_rng(0), {}
    for name in ("images", "labels"):
        array = np.load(tampered / f"{name}.npy")
        array[1437:] = rng.integers(0, 256, array[1437:].shape) if name == "images" else rng.permutation(array[1437:])
        np.save(tampered / f"{name}.npy", array)
    files.seal(tampered / "seal.json", {}, ["images.npy", "labels.npy"], tampered)
    passing = {"seconds", "train_seconds", "probe_seconds", "images_per_second", "memory_mb", "started", "finished"}
    for tuning in (True, False):
        for where in (data_dir, tmp_path / "tampered"):
            config, out = tiny(tuning_images=400, train_images=None, tuning=tuning), tmp_path / f"{tuning}{where.name}"
            result = train(config, out, data_dir=where, device="cpu")
            lasting = {key: value for key, value in result.items() if key not in {*passing, "files"}}
            made[tuning, where.name] = lasting, {path.name: path.read_bytes() for path in out.iterdir()}
    (told, there), other = made[True, data_dir.name], made[True, "tampered"]
    assert {*there} == {*folders.CANDIDATE, "run.json", ".run.json", ".lock"}
    assert {name: there[name] for name in folders.CANDIDATE} == {name: other[1][name] for name in folders.CANDIDATE}
    assert told == other[0]
    assert [key for key in told if "accuracy" in key or "test" in key] == ["validation_accuracy"]
    (told, there), other = made[False, data_dir.name], made[False, "tampered"]
    assert {name for name in folders.RUN if there[name] != other[1][name]} == set()
    assert {key for key in told if told[key] != other[0][key]} == {"test_loss", "test_accuracy"}


# ---- what a run costs ----


def test_the_clock_of_training_stands_still_while_probes_run(tiny, new_state, monkeypatch):
    clock = [0]

    def taking(seconds, work):
        def slow(*args):
            clock[0] += seconds
            return work(*args)

        return slow

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    for where, name in ((trajectory.Trajectory, "add"), (signals.Signals, "measure"), (signals.Signals, "update")):
        monkeypatch.setattr(where, name, taking(100, getattr(where, name)))
    state = new_state(tiny(epochs=2, **PROBES))
    state.forward = taking(1, state.model)
    fit(state)
    assert state.seconds == {"train": 20, "probes": 100 * (20 + 3 + 2)}  # rows, signals, updates


def test_memory_is_the_peak_of_training_and_not_of_what_came_before(tiny, run, tmp_path):
    status = Path("/proc/self/status")
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system cannot reset the peak")
    block = np.ones(50_000_000)  # 400 MB
    peak = int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 1024
    assert peak > 400
    del block
    assert 50 < run(tiny(), tmp_path)["memory_mb"] < peak - 300


# ---- outcomes and folders ----


def test_run_json_says_what_was_run_on_what_in_what_time_and_standard_error_how_far_it_is(tiny, run, tmp_path, capsys):
    config = tiny(epochs=2, **PROBES)
    result = run(config, tmp_path, about={"study": "ünit", "arm": "fa+bn"}, name="ünit/fa")
    out, err = capsys.readouterr()
    assert (out, "\r" in err) == ("", False)
    assert all(line.startswith("ünit/fa: ") for line in err.splitlines())
    assert re.search("step 20/20.*validation", err.splitlines()[-1])
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert {key: value for key, value in json.loads(text).items() if key != "seal"} == result
    assert "ünit" in text
    assert (result["measures"], result["resumed"]) == (code(MEASURES), 0)
    assert (result["study"], result["arm"], result["epochs"], result["outcome"]) == ("ünit", "fa+bn", 2, "finished")
    assert (result["identity"], result["code"]) == (identity(config), code(TRAINING))
    assert 2 * 640 / result["images_per_second"] == pytest.approx(result["train_seconds"], abs=1e-3)
    assert result["train_seconds"] + result["probe_seconds"] < result["seconds"]
    assert (result["torch"], result["threads"]) == (torch.__version__, torch.get_num_threads())


@pytest.mark.parametrize("arm", ["bp", "kp, decay", "fa, top_r", "fa+muon"])
def test_divergence_is_an_outcome_with_a_complete_folder(tiny, run, tmp_path, device, arm):
    options = {"epochs": 3, "normalization": "none", **PROBES, **ARMS[arm], "lr": 1e4, "auxiliary_lr": 1e4}
    result = run(tiny(**options | {"normalization": "none"}), tmp_path, device)
    assert result["outcome"] == json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["outcome"] == "diverged"
    assert result["epochs"] == len(table(tmp_path / "metrics.csv")) < 3
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert len(read_spectra(tmp_path / "spectra.npz")) > 10
    load_checkpoint(tmp_path / "checkpoint.pt")


def reseal(folder, result):
    files.seal(folder / "run.json", {k: v for k, v in result.items() if k != "files"}, result["files"], folder)
    (folder / ".run.json").unlink()


def test_a_whole_folder_is_returned_as_it_is_and_that_of_another_config_is_refused(tiny, run, tmp_path, refused):
    """A folder from before a knob came is that of the knob at its default: its identity is the same."""
    config = tiny(auxiliary_lr=1e-5)  # which JSON writes in another way than YAML reads
    result = run(config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == config.model_dump()
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    assert run(config, tmp_path) == files.sealed(tmp_path / "run.json") == result
    refused(lambda: run(tiny(auxiliary_lr=1e-5, lr=0.5), tmp_path), str(tmp_path), "lr is 0.03 there, 0.5 here")
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()} == before

    older = {key: value for key, value in config.model_dump().items() if key != "compile"}
    files.write_json(tmp_path / "config.json", older)
    reseal(tmp_path, result)
    assert run(config, tmp_path) == files.sealed(tmp_path / "run.json")
    refused(lambda: run(tiny(auxiliary_lr=1e-5, compile=True), tmp_path), str(tmp_path), "compile")
    (tmp_path / "config.json").write_text('{"lr": 0.03', encoding="utf-8")  # it may be another's
    refused(lambda: run(config, tmp_path), str(tmp_path / "config.json"))


def test_a_folder_of_other_code_is_trained_anew_and_so_is_another_configs_that_is_to_be_replaced(tiny, run, tmp_path):
    result = run(tiny(), tmp_path)
    reseal(tmp_path, result | {"identity": "of the code before", "outcome": "odd"})
    assert run(tiny(), tmp_path)["outcome"] == "finished"
    assert files.sealed(tmp_path / "run.json")["identity"] == identity(tiny())
    assert run(tiny(lr=0.5), tmp_path, replace=True)["identity"] == identity(tiny(lr=0.5))
    assert run(tiny(lr=0.5), tmp_path, as_planned="of a plan", replace=True)["identity"] == "of a plan"


@pytest.mark.parametrize("damage", ["one bit", "missing"])
@pytest.mark.parametrize("name", [*folders.RUN, "run.json"])
def test_a_folder_with_a_damaged_file_is_named_and_trained_anew_to_the_same_bits(
    tiny, run, tmp_path, capsys, name, damage
):
    """But run.json is made again from its copy: Snakemake deletes it of a process that is killed after writing it."""
    config = tiny(**PROBES, train_images=192)
    run(config, tmp_path)
    before, path = {file: (tmp_path / file).read_bytes() for file in {*FILES} - {".lock"}}, tmp_path / name
    made = before[name]
    path.write_bytes(made[:-9] + bytes([made[-9] ^ 1]) + made[-8:]) if damage == "one bit" else path.unlink()
    if (name, damage) == ("config.json", "one bit"):
        path.write_bytes(made.replace(b'"seed": 0', b'"seed":  0'))  # as altered, and the same config
    run(config, tmp_path)
    what = f"{path} is {'missing' if damage == 'missing' else 'altered'}: the run is trained anew"
    assert (f"{path} is made again from its copy" if name == "run.json" else what) in capsys.readouterr().err
    same = {*folders.RUN} if name != "run.json" else {*before}
    assert {file: (tmp_path / file).read_bytes() for file in same} == {file: before[file] for file in same}
    assert [*files.damage(tmp_path / "run.json", tmp_path)] == []


def test_run_json_is_written_last_and_a_tilde_in_the_data_folder_is_home(tiny, tmp_path, monkeypatch):
    written, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (written.append(target.name), replace(source, target)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train(tiny(), tmp_path / "run", data_dir="~/data", device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "data"}
    made = [name for name in written if name in FILES]
    assert (made[0], made[-1], {*made}) == ("config.json", "run.json", FILES - {".lock"})


def test_cuda_without_a_gpu_is_refused(monkeypatch, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(lambda: pick_device("cuda"), "device is 'cuda'")
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


# ---- checkpoints ----


def test_a_checkpoint_gives_the_net_and_its_config_back(tiny, run, probed, tmp_path):
    """Its feedback weights are those of the start, but by Kolen-Pollack."""
    folder, configs = probed
    model, config = load_checkpoint(folder / "fa" / "checkpoint.pt")
    assert config == configs["fa"]
    assert isinstance(config, RunConfig)
    assert_same_bits(model.state_dict(), weights(folder / "fa"))
    assert list(feedback.feedback_layers(model)) == ["hidden1", "hidden2", "head"]
    run(tiny(**ARMS["kp, decay"]), tmp_path)
    trained = {"feedback": (folder / "fa", config), "nothing": (tmp_path, tiny(**ARMS["kp, decay"]))}
    for fixed, (where, made) in trained.items():
        start = make_model(made).state_dict()
        for name, value in weights(where).items():
            assert torch.equal(value, start[name]) == name.endswith(fixed), name


@pytest.mark.parametrize(
    "content",
    [0, 0.5, -10, torch.ones(3), {"config": {"lr": -1}, "model": {}}, {"config": {}, "model": {}}, b"hello", "nothing"],
    ids=str,
)  # fmt: skip
def test_a_file_that_is_no_checkpoint_is_refused_by_name(probed, tmp_path, refused, content):
    """A number: one that is cut off there."""
    path = tmp_path / "checkpoint.pt"
    blob = (probed[0] / "fa" / "checkpoint.pt").read_bytes()
    if isinstance(content, int | float):
        path.write_bytes(blob[: int(len(blob) * content) if isinstance(content, float) else content])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content != "nothing":
        torch.save(content, path)
    refused(lambda: load_checkpoint(path), str(path), "not a readable checkpoint")
