"""What the tests share: one thread, repeatable property tests, small runs, and CIFAR sets of a few images."""

import dataclasses
import hashlib
import itertools
import os
import pickle
import platform
import random
import re

import hypothesis
import numpy as np
import pytest
import torch

from rankcollapse.errors import InputError
from rankcollapse.experiment import data, datasets, network, training
from rankcollapse.experiment.config import run_config
from rankcollapse.library import models

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before a first test touches a GPU
torch.set_num_threads(1)
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=40)
hypothesis.settings.load_profile("tests")

DEVICES = ["cpu"] + ([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])
TINY = {
    "architecture": "mlp",
    "width": 16,
    "depth": 2,
    "epochs": 1,
    "validation_images": 200,
    "train_images": 640,
    "gradient_every": 0,
    "signals_every": 0,
}


def pytest_collection_modifyitems(items):
    """The files that run Snakemake first: workers that take a file at a time then end at about the same time."""
    items.sort(key=lambda item: "workflow" not in item.keywords)


def pytest_terminal_summary(terminalreporter):
    """Where there is a GPU, what ran on it: a report to send."""
    if not torch.cuda.is_available():
        return
    kinds = "passed", "failed", "error", "skipped"
    reports = {kind: terminalreporter.stats.get(kind, []) for kind in kinds}
    counts = {kind: sum("gpu" in getattr(one, "keywords", ()) for one in found) for kind, found in reports.items()}
    major, minor = torch.cuda.get_device_capability()
    terminalreporter.section("on the GPU")
    name, count = torch.cuda.get_device_name(), torch.cuda.device_count()
    terminalreporter.line(f"{name}, capability {major}.{minor}, the first of {count}")
    cudnn = torch.backends.cudnn.version()
    terminalreporter.line(f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}, {platform.platform()}")
    terminalreporter.line(", ".join(f"{number} {kind}" for kind, number in counts.items()))


@pytest.fixture(scope="session", params=DEVICES)
def device(request):
    """The CPU, and a GPU where there is one: a test that takes it runs on both."""
    return request.param


@pytest.fixture(scope="session")
def tiny():
    """A function from overrides to the config of a run of a fraction of a second, without probes.

    An architecture that is named has its own depth, but for the mlp of TINY.
    """

    def make(**overrides):
        other = overrides.get("architecture", "mlp") != "mlp"
        return run_config({**TINY, **({"depth": None} if other else {}), **overrides})

    return make


@pytest.fixture(scope="session")
def plain(tiny):
    """A function from a seed and overrides to a small network of the grid that learns by backpropagation."""

    def make(seed=0, **overrides):
        net = network.skeleton(tiny(**{"width": 4, **overrides})).to_empty(device="cpu")
        return models.initialize(net, torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A data folder with the digits converted in it."""
    folder = tmp_path_factory.mktemp("data")
    datasets.prepare("digits", folder, folder / "ready")
    return folder


@pytest.fixture(scope="session")
def digits(data_dir):
    """The folder of the converted digits."""
    return data_dir / "ready" / "digits"


@pytest.fixture
def new_state(digits, tmp_path):
    """A function from a config of the digits to a run before its first step, with a file of gradients of its own."""
    numbers = itertools.count()

    def make(config, device="cpu", gradients=None):
        path = gradients or tmp_path / f"gradients{next(numbers)}.bin"
        return training.State(config, data.load(config, digits, device), path)

    return make


@pytest.fixture(scope="session")
def one_sentence():
    """A function that checks an error's text: one line, one sentence, and every given word in it.

    A cause in brackets may be in the words, and sentences, of another library.
    """

    def check(error: BaseException | str, *words: str) -> None:
        text = str(error)
        assert text
        assert "\n" not in text
        assert not re.search(r"[.!?]\s+[A-Z]", re.sub(r"\(.*\)", "", text)), f"more than one sentence: {text}"
        assert "Traceback" not in text
        for word in words:
            assert word in text, f"{word!r} is not in: {text}"

    return check


@pytest.fixture(scope="session")
def refused(one_sentence):
    """A function that checks that a call is refused in one sentence with these words in it."""

    def check(call, *words, error=InputError):
        with pytest.raises(error) as caught:
            call()
        one_sentence(caught.value, *words)

    return check


@pytest.fixture
def global_random_state():
    """A function that reads the state of every global generator, in a form to compare with ==."""

    def read():
        numpy_state = pickle.dumps(np.random.get_state())  # noqa: NPY002
        return torch.get_rng_state().tolist(), numpy_state, random.getstate()

    return read


@pytest.fixture
def fake_cifar(tmp_path, monkeypatch):
    """A folder with CIFAR-10 and CIFAR-100 of 200 + 100 random images, which pass for the official ones."""
    import torchvision

    pixels = np.random.default_rng(0)

    def dump(folder, name, content):
        folder.mkdir(exist_ok=True)
        blob = pickle.dumps(content)
        (folder / name).write_bytes(blob)
        return [name, hashlib.md5(blob).hexdigest()]

    def images(count, classes, key):
        return {
            "data": pixels.integers(0, 256, (count, 3072), dtype=np.uint8),
            key: [i % classes for i in range(count)],
        }

    for name, make, classes, key, train, test in (
        ("cifar10", torchvision.datasets.CIFAR10, 10, "labels", [f"data_batch_{i}" for i in range(1, 6)], "test_batch"),
        ("cifar100", torchvision.datasets.CIFAR100, 100, "fine_labels", ["train"], "test"),
    ):
        folder = tmp_path / make.base_folder
        lists = [dump(folder, file, images(200 // len(train), classes, key)) for file in train]
        meta = dict(make.meta)
        names = dump(folder, meta["filename"], {meta["key"]: [f"class {i}" for i in range(classes)]})
        monkeypatch.setattr(make, "train_list", lists)
        monkeypatch.setattr(make, "test_list", [dump(folder, test, images(100, classes, key))])
        monkeypatch.setattr(make, "meta", {**meta, "md5": names[1]})
        monkeypatch.setitem(datasets.SETS, name, dataclasses.replace(datasets.SETS[name], train=200, test=100))
    return tmp_path
