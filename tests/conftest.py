"""What the tests share: one thread, repeatable property tests, small runs, and CIFAR sets of a few images."""

import hashlib
import pickle
import random
import re

import hypothesis
import numpy as np
import pytest
import torch

from rankcollapse.config import RunConfig

torch.set_num_threads(1)
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=40)
hypothesis.settings.load_profile("tests")

TINY = {
    "device": "cpu",
    "architecture": "mlp",
    "width": 16,
    "depth": 2,
    "epochs": 1,
    "validation_images": 200,
    "train_images": 640,
    "gradient_every": 0,
    "signals_every": 0,
}


@pytest.fixture(scope="session")
def tiny():
    """A function from overrides to the config of a run of a fraction of a second, without probes."""
    return lambda **overrides: RunConfig(**{**TINY, **overrides})


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


@pytest.fixture
def global_random_state():
    """A function that reads the state of every global generator, in a form to compare with ==."""

    def read():
        numpy_state = pickle.dumps(np.random.get_state())  # noqa: NPY002
        return torch.get_rng_state().tolist(), numpy_state, random.getstate()

    return read


@pytest.fixture
def fake_cifar(tmp_path, monkeypatch):
    """A folder with CIFAR-10 and CIFAR-100 of 200 + 50 random images, whose md5 sums pass for the official ones."""
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

    for make, classes, key, train, test in (
        (torchvision.datasets.CIFAR10, 10, "labels", [f"data_batch_{i}" for i in range(1, 6)], "test_batch"),
        (torchvision.datasets.CIFAR100, 100, "fine_labels", ["train"], "test"),
    ):
        folder = tmp_path / make.base_folder
        lists = [dump(folder, name, images(200 // len(train), classes, key)) for name in train]
        meta = dict(make.meta)
        names = dump(folder, meta["filename"], {meta["key"]: [f"class {i}" for i in range(classes)]})
        monkeypatch.setattr(make, "train_list", lists)
        monkeypatch.setattr(make, "test_list", [dump(folder, test, images(50, classes, key))])
        monkeypatch.setattr(make, "meta", {**meta, "md5": names[1]})
    return tmp_path
