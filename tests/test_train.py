import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rankcollapse
from rankcollapse import data as datasets
from rankcollapse import feedback, models, probes
from rankcollapse.config import InputError, RunConfig
from rankcollapse.training import deterministic, evaluate, load_checkpoint, make_model, pick_device, train

FILES = {"config.json", "metrics.csv", "alignment.csv", "checkpoint.pt", "spectra.npz", "run.json"}
PROBES = {"gradient_every": 1, "gradient_stride": 4, "gradient_window": 8, "signals_every": 1}
ARMS = {
    "bp": {"rule": "bp", "normalization": "batch"},
    "fa": {"rule": "fa", "normalization": "batch"},
    "fa+muon": {"rule": "fa", "normalization": "batch", "optimizer": "muon", "lr": 0.01},
    "fa, top_r": {"rule": "fa", "update": "top_r", "rank": 2},
    "fa, cnn4, crop, flip": {
        "rule": "fa",
        "architecture": "cnn4",
        "width": 4,
        "normalization": "batch",
        "crop": 1,
        "flip": True,
    },
}


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def spectra(folder, quantity, layer, scope):
    found = probes.read_spectra(folder / "spectra.npz")
    return [s for s in found if (s.quantity, s.layer, s.scope) == (quantity, layer, scope)]


@pytest.fixture(scope="module")
def probed(tiny, tmp_path_factory):
    """A run folder of feedback alignment, and one of backpropagation, with every probe on, over two epochs."""
    folder = tmp_path_factory.mktemp("probed")
    configs = {rule: tiny(rule=rule, epochs=2, train_images=None, **PROBES) for rule in ("fa", "bp")}
    for rule, config in configs.items():
        train(config, folder / rule)
    return folder, configs


# ---- the same bits ----


@pytest.mark.parametrize("arm", ARMS)
def test_a_config_gives_the_same_bits_twice_with_and_without_probes_and_other_bits_with_another_seed(
    tiny, tmp_path, arm
):
    first, again, probed, other = (tmp_path / name for name in ("first", "again", "probed", "other"))
    train(tiny(**ARMS[arm]), first)
    train(tiny(**ARMS[arm]), again)
    train(tiny(**ARMS[arm], **PROBES), probed)
    train(tiny(**ARMS[arm], seed=1), other)
    for folder in (again, probed):
        assert_same_bits(weights(first), weights(folder))  # with the running statistics of batch norm
        assert (first / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()
    assert probes.read_spectra(first / "spectra.npz") == []
    assert len(probes.read_spectra(probed / "spectra.npz")) > 20
    assert not torch.equal(weights(first)["head.weight"], weights(other)["head.weight"])


def test_training_leaves_global_state_alone(tiny, tmp_path, global_random_state):
    before = global_random_state()
    torch.use_deterministic_algorithms(False)
    train(tiny(**PROBES, flip=True, crop=1), tmp_path / "run")
    assert global_random_state() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_puts_the_callers_warn_only_back():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic():
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_global_random_state_does_not_reach_a_run(tiny, tmp_path):
    for seed in (1, 2):
        torch.manual_seed(seed)
        train(tiny(), tmp_path / str(seed))
    assert_same_bits(weights(tmp_path / "1"), weights(tmp_path / "2"))


# ---- training is what it says ----


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_a_run_is_sgd_under_a_cosine_and_its_trajectory_spectra_are_numpys(tiny, probed, rule):
    """An independent loop: torch's own SGD and a cosine written out, gradients collected by hand."""
    folder, configs = probed
    config = configs[rule]
    data, model = datasets.load(config), make_model(config)
    optimizer = torch.optim.SGD(model.parameters(), momentum=config.momentum)
    order = datasets.generator(config.seed, "order")
    collected, losses = [], []
    for step in range(config.steps):
        if step % config.steps_per_epoch == 0:
            epoch = datasets.batches(data, config, order)
        images, labels = next(epoch)
        optimizer.param_groups[0]["lr"] = config.lr * (1 + np.cos(np.pi * step / config.steps)) / 2
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        matrices = models.matrices(model)
        collected.append({name: w.grad.flatten().double().numpy().copy() for name, w in matrices.items()})
    trained, _ = load_checkpoint(folder / rule / "checkpoint.pt")
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    metrics = table(folder / rule / "metrics.csv")
    assert float(metrics[0]["train_loss"]) == pytest.approx(np.mean(losses[: config.steps_per_epoch]), rel=1e-5)
    assert float(metrics[-1]["validation_accuracy"]) == evaluate(model, data, data.validation, config)[1]

    rows = {name: np.stack([g[name] for g in collected]) for name in matrices}
    rows["all"] = np.concatenate(list(rows.values()), axis=1)
    total = config.steps
    for name, matrix in rows.items():
        for scope in ("cumulative", "window"):
            found = spectra(folder / rule, "gradient_trajectory", name, scope)
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


def test_trajectory_rows_are_those_of_every_nth_step(tiny, tmp_path):
    config = tiny(train_images=640, batch_size=64, gradient_every=3, gradient_stride=2)  # steps 0, 3, 6, 9
    train(config, tmp_path)
    found = spectra(tmp_path, "gradient_trajectory", "head", "cumulative")
    assert [(s.step, s.rows) for s in found] == [(3, 2), (9, 4)]


@pytest.mark.parametrize("rule", ["bp", "fa"])
@pytest.mark.parametrize("architecture", ["mlp", "cnn4", "resnet18"])
def test_bfloat16_rows_lose_nothing_of_a_gradient_under_autocast(architecture, rule):
    config = RunConfig(architecture=architecture, rule=rule, dataset="cifar10", width=4, precision="bfloat16")
    model, g = make_model(config), torch.Generator().manual_seed(1)
    images, labels = torch.randn(64, 3, 32, 32, generator=g), torch.randint(0, 10, (64,), generator=g)
    probe = probes.Probes(model, images, labels, config)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    F.cross_entropy(logits.float(), labels).backward()
    probe.gradient(0)
    for name, weight in models.matrices(model).items():
        assert probe.rows[name].dtype == torch.bfloat16
        assert torch.equal(probe.rows[name][0].float().view(weight.shape), weight.grad), name


@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (3, 8192), (7, 8193), (50, 20_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gram_matrix_of_rows_is_numpys(rows, columns, dtype):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)
    found, a = probes._gram(matrix), matrix.double().numpy()
    np.testing.assert_allclose(found.numpy(), a @ a.T, atol=1e-5 * columns)
    assert torch.equal(found, found.t())


def test_signals_before_the_first_step_are_those_of_the_initial_net(tiny, probed):
    """Errors, activations and the classifier's input error at step 0, worked by hand for the mlp."""
    folder, configs = probed
    config = configs["fa"]
    data, model = datasets.load(config), make_model(config)
    order = torch.randperm(len(data.train), generator=datasets.generator(config.seed, "probe"))[: config.probe_images]
    h = [data.pixels(data.train.images[order]).flatten(1).double().numpy()]
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    names = ["hidden1", "hidden2", "head"]
    for name in names:
        a = h[-1] @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        h.append(np.maximum(a, 0) if name != "head" else a)
    delta = np.exp(h[3]) / np.exp(h[3]).sum(1, keepdims=True)
    delta[np.arange(len(delta)), data.train.labels[order].numpy()] -= 1
    delta /= len(delta)
    expected = {("error", "head"): delta, ("classifier_input_error", "head"): delta @ state["head.feedback"]}
    expected["error", "hidden2"] = expected["classifier_input_error", "head"] * (h[2] > 0)
    expected["error", "hidden1"] = expected["error", "hidden2"] @ state["hidden2.feedback"] * (h[1] > 0)
    expected |= {("activation", name): h[i] for i, name in enumerate(names)}
    for (quantity, name), matrix in expected.items():
        s = spectra(folder / "fa", quantity, name, "batch")[0]
        values = np.linalg.svd(matrix, compute_uv=False)
        assert (s.step, s.rows) == (0, config.probe_images)
        np.testing.assert_allclose(s.values, values, atol=2e-6 * values[0])


def test_under_feedback_alignment_the_pooled_error_at_the_classifiers_input_has_rank_of_classes_less_one(probed):
    """δ of softmax sums to zero over the classes and B is fixed: rank 9 in any pool. W moves, so BP exceeds it."""
    folder, _ = probed
    for rule, most in (("fa", 9), ("bp", 16)):
        for s in spectra(folder / rule, "classifier_input_error", "head", "pooled"):
            rank = int((s.values > 1e-5 * s.values[0]).sum())
            assert rank <= most
    assert rank > 9, "the last pool of backpropagation holds errors of several W"
    assert [s.rows for s in spectra(folder / "fa", "classifier_input_error", "head", "pooled")] == [32, 64, 96]


def test_updates_are_the_difference_of_weights_over_the_step(tiny, tmp_path):
    """One step of SGD without momentum: the update is lr times the gradient."""
    config = tiny(train_images=64, batch_size=64, momentum=0.0, lr=0.5, rule="bp", **PROBES | {"gradient_every": 0})
    train(config, tmp_path)
    data, model = datasets.load(config), make_model(config)
    images, labels = next(datasets.batches(data, config, datasets.generator(config.seed, "order")))
    F.cross_entropy(model(images), labels).backward()
    for name, weight in models.matrices(model).items():
        (s,) = spectra(tmp_path, "update", name, "step")
        expected = 0.5 * np.linalg.svd(weight.grad.double().numpy(), compute_uv=False)
        np.testing.assert_allclose(s.values, expected, atol=1e-5 * expected[0])


def test_a_probe_leaves_the_model_its_mode_its_statistics_and_its_gradients(tiny):
    config = tiny(normalization="batch", signals_every=1)
    data, model = datasets.load(config), make_model(config).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    probe = probes.Probes(model, data.pixels(data.train.images[:64]), data.train.labels[:64], config)
    probe.signals(0)
    assert len(probe.spectra) == 7  # errors and activations of three layers, and the classifier's input
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert_same_bits(model.state_dict(), state)


def test_alignment_at_the_start_is_the_cosine_worked_by_hand(probed):
    folder, configs = probed
    config = configs["fa"]
    data, model = datasets.load(config), make_model(config)
    state = model.state_dict()
    plain = models.build(config, datasets.SHAPES["digits"], 10, datasets.generator(config.seed, "weights"))
    order = torch.randperm(len(data.train), generator=datasets.generator(config.seed, "probe"))[: config.probe_images]
    for net in (model, plain):
        F.cross_entropy(net(data.pixels(data.train.images[order])), data.train.labels[order]).backward()

    def cosine(a, b):
        a, b = (v.detach().double().flatten().numpy() for v in (a, b))
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    grads = [{name: w.grad for name, w in models.matrices(net).items()} for net in (model, plain)]
    expected = {("weight", n): cosine(state[f"{n}.weight"], state[f"{n}.feedback"]) for n in ("hidden2", "head")}
    expected |= {("gradient", n): cosine(grads[0][n], grads[1][n]) for n in ("hidden1", "hidden2")}
    whole = [torch.cat([g["hidden1"].flatten(), g["hidden2"].flatten()]) for g in grads]
    expected["gradient", "all"] = cosine(*whole)
    found = [row for row in table(folder / "fa" / "alignment.csv") if row["step"] == "0"]
    assert {(row["quantity"], row["layer"]): float(row["value"]) for row in found} == pytest.approx(expected, abs=1e-6)


def test_backpropagation_has_no_alignment_to_measure(probed):
    folder, _ = probed
    assert table(folder / "bp" / "alignment.csv") == []
    assert len(table(folder / "fa" / "alignment.csv")) == 3 * 5  # three probes of two weights, two gradients and all


@pytest.mark.parametrize(
    ("arm", "least"),
    [({"rule": "bp"}, 0.8), ({"rule": "fa"}, 0.6), ({"rule": "fa", "optimizer": "muon", "lr": 0.02}, 0.4)],
    ids=["bp", "fa", "fa+muon"],
)
def test_training_learns_the_digits(tiny, tmp_path, arm, least):
    result = train(tiny(**{"lr": 0.1, "epochs": 6, "train_images": None, **arm}), tmp_path)
    metrics = table(tmp_path / "metrics.csv")
    assert float(metrics[-1]["train_loss"]) < 0.7 * float(metrics[0]["train_loss"])
    assert float(metrics[-1]["validation_accuracy"]) > least
    assert [row["step"] for row in metrics] == ["19", "38", "57", "76", "95", "114"]
    assert result["parameters"] == 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    model, config = load_checkpoint(tmp_path / "checkpoint.pt")
    data = datasets.load(config)
    assert result["outcome"] == "finished"
    assert result["test_accuracy"] == pytest.approx(evaluate(model, data, data.test, config)[1])
    assert result["validation_accuracy"] == float(metrics[-1]["validation_accuracy"])


def test_evaluation_is_mean_cross_entropy_and_accuracy_in_evaluation_mode(tiny):
    config = tiny(normalization="batch", train_images=None)
    data, model = datasets.load(config), make_model(config)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    loss, accuracy = evaluate(model, data, data.train, config)  # more than one batch of 1,000
    assert_same_bits(model.state_dict(), state)
    logits = model.eval()(data.pixels(data.train.images)).detach()
    assert loss == pytest.approx(float(F.cross_entropy(logits, data.train.labels)), rel=1e-5)
    assert accuracy == pytest.approx(float((logits.argmax(1) == data.train.labels).double().mean()))


def test_bfloat16_trains_float32_weights(tiny, tmp_path):
    result = train(tiny(precision="bfloat16", **PROBES), tmp_path / "low")
    train(tiny(), tmp_path / "full")
    assert result["outcome"] == "finished"
    low, full = weights(tmp_path / "low"), weights(tmp_path / "full")
    assert {value.dtype for value in low.values()} == {torch.float32}
    assert not torch.equal(low["head.weight"], full["head.weight"])
    assert torch.cosine_similarity(low["head.weight"].flatten(), full["head.weight"].flatten(), dim=0) > 0.99


def test_report_is_called_after_every_step_and_with_a_note_after_every_epoch(tiny, tmp_path):
    calls = []
    train(tiny(epochs=2, train_images=192, probe_images=2), tmp_path, lambda *call: calls.append(call))
    assert [step for step, note in calls if not note] == [1, 2, 3, 4, 5, 6]
    assert [step for step, note in calls if note.startswith("loss ")] == [3, 6]


# ---- outcomes and folders ----


def test_a_finished_folder_holds_every_file_and_no_other(probed):
    folder, configs = probed
    assert {path.name for path in (folder / "fa").iterdir()} == FILES
    assert json.loads((folder / "fa" / "config.json").read_text()) == dataclasses.asdict(configs["fa"])


@pytest.mark.parametrize("arm", ["bp", "fa", "fa, top_r", "fa+muon"])
def test_divergence_is_an_outcome_with_a_complete_folder(tiny, tmp_path, arm):
    calls = []
    options = {"epochs": 3, "normalization": "none", **PROBES, **ARMS[arm], "lr": 1e4, "auxiliary_lr": 1e4}
    result = train(tiny(**options | {"normalization": "none"}), tmp_path, lambda *call: calls.append(call))
    assert result["outcome"] == json.loads((tmp_path / "run.json").read_text())["outcome"] == "diverged"
    assert result["epochs"] == len(table(tmp_path / "metrics.csv")) < 3
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert len(probes.read_spectra(tmp_path / "spectra.npz")) > 10
    load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_folder_of_another_config_is_refused_naming_the_key(tiny, tmp_path, one_sentence):
    train(tiny(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError) as caught:
        train(tiny(lr=0.5), tmp_path)
    one_sentence(caught.value, str(tmp_path), "lr is 0.03 there, 0.5 here")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_complete_folder_is_returned_as_it_is(tiny, tmp_path):
    result = train(tiny(), tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert train(tiny(), tmp_path) == json.loads((tmp_path / "run.json").read_text()) == result
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("value", [1e-5, 5e-05, 1e-3, 2e20])
def test_a_folder_knows_its_config_again_whatever_its_numbers_look_like(tiny, tmp_path, value):
    config = tiny(auxiliary_lr=value)
    result = train(config, tmp_path)
    assert train(config, tmp_path) == result


def test_a_folder_that_was_cut_off_is_trained_anew(tiny, tmp_path):
    train(tiny(), tmp_path)
    expected = weights(tmp_path)
    (tmp_path / "run.json").unlink()
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    assert train(tiny(), tmp_path)["outcome"] == "finished"
    assert_same_bits(weights(tmp_path), expected)


def test_run_json_is_written_last(tiny, tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(probes, "save_spectra", broken)
    with pytest.raises(OSError, match="No space left"):
        train(tiny(), tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_cuda_without_a_gpu_is_refused(monkeypatch, one_sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError) as caught:
        pick_device("cuda")
    one_sentence(caught.value, "device is 'cuda'")
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


# ---- checkpoints and spectra ----


def test_a_checkpoint_gives_the_net_and_its_config_back(probed):
    folder, configs = probed
    model, config = load_checkpoint(folder / "fa" / "checkpoint.pt")
    assert config == configs["fa"]
    assert isinstance(config, RunConfig)
    assert_same_bits(model.state_dict(), weights(folder / "fa"))
    assert list(feedback.feedback_layers(model)) == ["hidden1", "hidden2", "head"]
    assert isinstance(model.head, nn.Linear)


def test_feedback_weights_of_a_checkpoint_are_those_of_the_start(tiny, probed):
    folder, configs = probed
    start = make_model(configs["fa"]).state_dict()
    for name, value in weights(folder / "fa").items():
        assert torch.equal(value, start[name]) == name.endswith("feedback"), name


CUTS = {"empty": 0, "two bytes": 2, "half": 0.5, "all but the end": -10}


def cut(path, copy, size):
    blob = path.read_bytes()
    copy.write_bytes(blob[: int(len(blob) * size) if isinstance(size, float) else size])
    return copy


@pytest.mark.parametrize("size", CUTS.values(), ids=CUTS)
def test_a_truncated_checkpoint_is_refused_by_name(probed, tmp_path, one_sentence, size):
    path = cut(probed[0] / "fa" / "checkpoint.pt", tmp_path / "checkpoint.pt", size)
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    one_sentence(caught.value, str(path), "not a readable checkpoint")


@pytest.mark.parametrize("content", [None, torch.ones(3), {"model": {}}, {"config": {"lr": -1}, "model": {}}], ids=str)
def test_a_file_that_holds_something_else_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("blob", [b"hello world", b"\x80\x04K\x01.", b"\x00" * 100], ids=["text", "pickle", "zeros"])
def test_a_file_of_other_bytes_is_no_checkpoint(tmp_path, blob):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(blob)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_named(tmp_path, one_sentence):
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "none.pt")
    one_sentence(caught.value, str(tmp_path / "none.pt"))


def test_spectra_survive_the_file(tmp_path):
    rng = np.random.default_rng(0)
    spectra = [
        probes.Spectrum("error", "head", "batch", step, 64, rng.random(n).astype(np.float32).astype(np.float64))
        for step, n in ((0, 5), (7, 1), (14, 3))
    ]
    probes.save_spectra(tmp_path / "spectra.npz", spectra)
    found = probes.read_spectra(tmp_path / "spectra.npz")
    assert [dataclasses.astuple(s)[:-1] for s in found] == [dataclasses.astuple(s)[:-1] for s in spectra]
    for s, expected in zip(found, spectra, strict=True):
        np.testing.assert_array_equal(s.values, expected.values)


@pytest.mark.parametrize("size", CUTS.values(), ids=CUTS)
def test_a_truncated_spectra_file_is_refused_by_name(probed, tmp_path, one_sentence, size):
    path = cut(probed[0] / "fa" / "spectra.npz", tmp_path / "spectra.npz", size)
    with pytest.raises(InputError) as caught:
        probes.read_spectra(path)
    one_sentence(caught.value, str(path), "not a readable spectra file")


# ---- the package's front ----


def test_train_is_the_function_whatever_was_imported_before_it():
    code = "from rankcollapse import load_checkpoint, train; assert callable(train), train"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_every_public_name_of_the_package_is_there():
    assert [name for name in rankcollapse.__all__ if not hasattr(rankcollapse, name)] == []
    with pytest.raises(AttributeError, match="'nothing'"):
        rankcollapse.nothing  # noqa: B018
