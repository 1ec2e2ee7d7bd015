"""The data sets, converted and split, and the batches that are drawn of them."""

import dataclasses
import functools
import http.client
import io
import pickle
import shutil
import socket
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from rankcollapse.experiment import datasets
from rankcollapse.experiment.data import Data, Split, batches, crop, flip, generator, load, stratified


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- generators ----


def test_every_purpose_and_seed_has_a_generator_of_its_own():
    draws = {(seed, purpose): torch.rand(4, generator=generator(seed, purpose)).tolist()
             for seed in (0, 1, 10) for purpose in ("weights", "feedback", "1:weights")}  # fmt: skip
    assert len({tuple(draw) for draw in draws.values()}) == 9
    assert torch.rand(4, generator=generator(0, "weights")).tolist() == draws[0, "weights"]


# ---- stratified subsets ----


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.data())
def test_a_stratified_subset_has_every_class_in_its_share_to_within_one(labels, data):
    labels = torch.tensor(labels)
    count = data.draw(st.integers(0, len(labels)))
    chosen = stratified(labels, count, gen(data.draw(st.integers(0, 9))))
    assert len(set(chosen.tolist())) == len(chosen) == count
    for label in labels.unique():
        share = count * float((labels == label).float().mean())
        assert abs(int((labels[chosen] == label).sum()) - share) <= 1 + 1e-4


def test_a_stratified_subset_follows_its_generator_and_is_not_sorted():
    labels = torch.arange(10).repeat_interleave(30)
    first, again, other = (stratified(labels, 100, gen(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert set(first.tolist()) != set(other.tolist())
    assert 75 < (labels[first].diff() != 0).sum() < 97  # 9 if sorted by class, 99 if class after class, 89 at random


# ---- conversion ----


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100"])
def test_a_set_is_converted_once_to_arrays_of_its_record(fake_cifar, tmp_path, monkeypatch, name):
    record = datasets.SETS[name]
    folder = datasets.prepare(name, fake_cifar, tmp_path / "ready")
    assert folder == tmp_path / "ready" / name
    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "labels.npy", "seal.json"]
    images, labels = datasets.mapped(name, folder)
    channels, height, width = record.shape
    assert (images.dtype, images.shape) == (np.uint8, (record.train + record.test, height, width, channels))
    assert (labels.dtype, labels.shape) == (np.int64, (record.train + record.test,))
    assert isinstance(images, np.memmap)
    assert record.chance == pytest.approx(float(np.mean(labels[record.train :] == 0))), "classes of equal size"

    def again(data_dir, download):
        raise AssertionError("converted twice")

    monkeypatch.setitem(datasets.SETS, name, dataclasses.replace(record, source=again))
    assert datasets.prepare(name, fake_cifar, tmp_path / "ready") == folder


@pytest.mark.parametrize("damage", ["images.npy", "labels.npy", "seal.json", None])
def test_a_damaged_converted_set_is_converted_anew_from_the_files_that_are_there(fake_cifar, tmp_path, damage, refused):
    """Once, and without a download where none is wanted. `None`: a conversion that was cut off."""
    where, told = (fake_cifar, tmp_path / "elsewhere", False), []
    folder = datasets.prepare("cifar10", *where, told.append)
    assert folder == tmp_path / "elsewhere" / "cifar10"
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {*made} == {"images.npy", "labels.npy", "seal.json"}
    if damage:
        (folder / damage).write_bytes(made[damage][:-20] + bytes(20))
    else:
        (folder / "seal.json").unlink()
        (folder / "labels.npy").unlink()
    for _ in range(2):
        assert datasets.prepare("cifar10", *where, told.append) == folder
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == made
    named = [f"{folder / damage} is altered since it was sealed: the set is converted anew"] if damage else []
    assert told == named
    (folder / "labels.npy").write_bytes(b"")
    shutil.rmtree(fake_cifar / "cifar-10-batches-py")
    refused(lambda: datasets.prepare("cifar10", *where, told.append), "does not exist and download is false")


def a_part(count, classes=10, shape=(8, 8, 1), dtype=np.uint8):
    return np.zeros((count, *shape), dtype), np.arange(count) % classes


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (a_part(1400), a_part(360), ["training set", "images", "1400", "1437"]),
        (a_part(1437), (a_part(360)[0], a_part(359)[1]), ["test set", "labels", "359", "360"]),
        (a_part(1437), a_part(360, classes=11), ["test set", "labels", "11 classes"]),
        (a_part(1437, shape=(1, 8, 8)), a_part(360), ["training set", "images", "1, 8, 8)", "8, 8, 1)"]),
        (a_part(1437, dtype=np.float64), a_part(360), ["training set", "images", "float64", "uint8"]),
        ((a_part(1437)[0], a_part(1437)[1] + 1), a_part(360), ["training set", "labels", "0 to 9"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_files_that_contradict_the_record_are_refused(tmp_path, monkeypatch, refused, train, test, words):
    changed = dataclasses.replace(datasets.SETS["digits"], source=lambda data_dir, download: (train, test))
    monkeypatch.setitem(datasets.SETS, "digits", changed)
    refused(lambda: datasets.prepare("digits", tmp_path, tmp_path / "ready"), "digits", *words)
    assert [path.name for path in tmp_path.rglob("*.*")] == [".digits.lock"]


def as_bytes(save, *values):
    file = io.BytesIO()
    save(file, *values)
    return file.getvalue()


ARRAY = as_bytes(np.save, np.zeros((1797, 8, 8, 1), np.uint8))
FOREIGN = {
    "empty": b"",
    "all but a byte": ARRAY[:-1],
    "an npz": as_bytes(np.savez, np.zeros(3)),
    "objects": as_bytes(np.save, np.array([{}], dtype=object)),
    "too few": as_bytes(np.save, np.zeros((1796, 8, 8, 1), np.uint8)),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_arrays_that_are_not_those_of_the_record_are_refused(digits, tmp_path, refused, content):
    (tmp_path / "labels.npy").write_bytes((digits / "labels.npy").read_bytes())
    path = tmp_path / "images.npy"
    path.write_bytes(content)
    refused(lambda: datasets.mapped("digits", tmp_path), str(tmp_path), f"delete {tmp_path}")
    path.unlink()
    refused(lambda: datasets.mapped("digits", tmp_path), str(path))
    before = (digits / "images.npy").read_bytes()
    datasets.mapped("digits", digits)[0][:] = 0
    assert (digits / "images.npy").read_bytes() == before, "writing to what is mapped does not reach the file"


# ---- splits ----


def test_digits_are_those_of_scikit_learn_and_36_test_images_are_of_each_class(tiny, digits):
    from sklearn.datasets import load_digits

    official = load_digits()
    data = load(tiny(train_images=None), digits)
    splits = data.train, data.validation, data.test
    assert [len(split) for split in splits] == [1237, 200, 360]
    assert torch.bincount(data.test.labels).tolist() == [36] * 10
    found = sorted((int(y), x.squeeze(-1).tolist()) for s in splits for x, y in zip(s.images, s.labels, strict=True))
    images = np.rint(official.images * 255 / 16).astype(int).tolist()
    assert found == sorted(zip(official.target.tolist(), images, strict=True))
    pixels = torch.cat([data.train.images, data.validation.images]).double() / 255
    record = datasets.SETS["digits"]
    assert (float(pixels.mean()), float(pixels.std(correction=0))) == pytest.approx(
        (*record.mean, *record.std), abs=1e-4
    )


# ---- images set apart for tuning ----

TUNING = {"tuning_images": 300, "train_images": None}


@pytest.fixture(scope="module")
def numbered_digits(digits, tmp_path_factory):
    """The digits, each with its number in place of its pixels."""
    folder, (images, labels) = tmp_path_factory.mktemp("numbered"), datasets.mapped("digits", digits)
    images[:] = 0
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(len(labels)), 256)
    for name, array in (("images", images), ("labels", labels)):
        np.save(folder / f"{name}.npy", array)
    return folder


def numbers(split):
    return (256 * split.images[:, 0, 0, 0].long() + split.images[:, 0, 1, 0]).tolist()


def test_images_for_tuning_for_validation_and_for_runs_are_disjoint_and_the_same_for_every_seed(tiny, numbered_digits):
    run, candidate = (load(tiny(**TUNING, tuning=tuning), numbered_digits) for tuning in (False, True))
    parts = [numbers(split) for split in (candidate.train, run.validation, run.train)]
    assert [len(part) for part in parts] == [300, 200, 937]
    assert sorted(number for part in parts for number in part) == list(range(1437))
    assert sorted(numbers(run.test)) == list(range(1437, 1797))
    assert numbers(candidate.validation) == numbers(run.validation)
    assert len(candidate.test) == len(candidate.test.images) == 0
    counts, rest = (torch.bincount(data.train.labels) for data in (candidate, run))
    assert float((counts - 300 * (counts + rest) / 1237).abs().max()) <= 1
    for tuning in (False, True):
        other = load(tiny(**TUNING, tuning=tuning, seed=5), numbered_digits)
        for split in ("train", "validation", "test"):
            assert numbers(getattr(other, split)) == numbers(getattr(candidate if tuning else run, split))


def test_a_candidate_draws_its_subset_by_its_seed_from_the_images_for_tuning_alone(tiny, numbered_digits):
    whole, first, other, run = (
        load(tiny(tuning_images=300, train_images=count, tuning=tuning, seed=seed), numbered_digits).train
        for count, tuning, seed in ((None, True, 0), (100, True, 0), (100, True, 1), (100, False, 0))
    )
    assert len({*numbers(first)}) == len({*numbers(other)}) == len({*numbers(run)}) == 100
    assert {*numbers(first), *numbers(other)} <= {*numbers(whole)}
    assert {*numbers(run)}.isdisjoint(numbers(whole))
    assert {*numbers(first)} != {*numbers(other)}
    assert float((torch.bincount(first.labels) - torch.bincount(whole.labels) / 3).abs().max()) <= 1


@pytest.mark.parametrize("tuning", [False, True])
def test_without_images_set_apart_a_run_has_those_that_it_always_had(tiny, numbered_digits, tuning):
    """As worked from the labels: validation first, then a subset of the rest, by the generators of old."""
    labels = torch.from_numpy(np.load(numbered_digits / "labels.npy"))[:1437]
    validation = stratified(labels, 200, generator(0, "validation of digits")).tolist()
    rest = torch.tensor([i for i in range(1437) if i not in validation])
    train = rest[stratified(labels[rest], 640, generator(3, "subset"))].tolist()
    data = load(tiny(seed=3, tuning=tuning), numbered_digits)
    assert (numbers(data.train), numbers(data.validation)) == (train, validation)
    assert numbers(data.test) == ([] if tuning else list(range(1437, 1797)))


@pytest.fixture
def prepared(fake_cifar, tmp_path):
    """A function from a CIFAR set's name to the folder of its converted arrays."""
    return lambda name, **options: datasets.prepare(name, fake_cifar, tmp_path / "ready", **options)


def test_cifar_images_and_labels_stay_together_and_upright_and_no_image_is_in_two_splits(tiny, fake_cifar, prepared):
    data = load(tiny(dataset="cifar10", validation_images=50, train_images=None), prepared("cifar10", download=False))
    official, seen = {}, []
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = pickle.loads((fake_cifar / "cifar-10-batches-py" / name).read_bytes())
        for row, label in zip(content["data"], content["labels"], strict=True):
            official[row.tobytes()] = (name == "test_batch", label)  # channel by channel, row by row
    for split in (data.train, data.validation, data.test):
        for image, label in zip(split.images, split.labels, strict=True):
            seen.append(image.permute(2, 0, 1).numpy().tobytes())
            assert official[seen[-1]] == (split is data.test, label)
    assert len(official) == len(seen) == len({*seen}) == 300


@pytest.mark.parametrize("channels_last", [True, False])
def test_pixels_are_normalised_by_the_constants_of_the_set(tiny, prepared, device, channels_last):
    config = tiny(dataset="cifar10", validation_images=50, train_images=100, channels_last=channels_last)
    data = load(config, prepared("cifar10"), device)
    images = data.test.images[:3]
    found = data.pixels(images)
    mean, std = (np.array(values) for values in (datasets.SETS["cifar10"].mean, datasets.SETS["cifar10"].std))
    expected = ((images.cpu().numpy() / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.cpu(), expected, rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


# ---- files that are not as they should be ----


FILES = [
    ("cifar10", "cifar-10-batches-py/data_batch_3"),
    ("cifar10", "cifar-10-batches-py/batches.meta"),
    ("cifar100", "cifar-100-python/test"),
]


@pytest.mark.parametrize(("dataset", "name"), FILES)
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "a folder"])
def test_a_damaged_cifar_file_is_named(fake_cifar, prepared, refused, dataset, name, damage):
    file = fake_cifar / name
    blob = file.read_bytes()
    if damage == "altered":
        file.write_bytes(blob[:-2] + bytes([blob[-2] ^ 1]) + blob[-1:])
    elif damage == "truncated":
        file.write_bytes(blob[: len(blob) // 2])
    else:
        file.unlink()
        if damage == "a folder":
            file.mkdir()
    state = "missing" if damage == "missing" else "altered or truncated"
    refused(lambda: prepared(dataset), str(file), state)
    assert not (fake_cifar / "ready" / dataset).exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [(URLError("no route to host"), "no route to host"), (http.client.IncompleteRead(b"half"), "IncompleteRead")],
)
def test_a_failing_download_is_explained_and_leaves_nothing(tmp_path, monkeypatch, refused, error, words):
    def unreachable(self):
        assert socket.getdefaulttimeout() == datasets.STALLED
        (next((tmp_path / "data").iterdir()) / "half").write_text("of a file", encoding="utf-8")
        raise error

    monkeypatch.setattr(torchvision.datasets.CIFAR100, "download", unreachable)
    prepare = functools.partial(datasets.prepare, "cifar100", tmp_path / "data", tmp_path / "ready")
    refused(prepare, str(tmp_path / "data" / "cifar-100-python"), "could not be downloaded", words)
    assert socket.getdefaulttimeout() is None
    refused(lambda: prepare(download=False), str(tmp_path / "data" / "cifar-100-python"), "download is false")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_download_ends_under_the_official_name_in_the_home_that_a_tilde_means(fake_cifar, tmp_path, monkeypatch):
    source = fake_cifar / "cifar-10-batches-py"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10, "download", lambda self: source.rename(f"{self.root}/cifar-10-batches-py")
    )
    folder = datasets.prepare("cifar10", "~/new", tmp_path / "ready")
    assert len(datasets.mapped("cifar10", folder)[1]) == 300
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar-10-batches-py"]


# ---- batches ----


def numbered(count, channels_last=True, side=6):
    """Images that each hold their own number, so that a batch tells which it has."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, side, side, 1).contiguous()
    split = Split(images, torch.arange(count))
    return Data(split, split, split, torch.zeros(1), torch.ones(1), channels_last)


def test_batches_take_each_image_at_most_once_and_leave_out_the_last_incomplete_batch(tiny):
    config = tiny(train_images=100, batch_size=32, probe_images=2, flip=True)
    found = list(batches(numbered(100), config, gen()))
    assert [len(labels) for _, labels in found] == [32, 32, 32]
    labels = torch.cat([labels for _, labels in found])
    assert len(labels.unique()) == 96
    for images, own in found:
        assert torch.equal(images, own.float()[:, None, None, None].expand(32, 1, 6, 6))


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"crop": 2}, {"flip": True, "crop": 1}], ids=str)
def test_an_epoch_without_its_first_batches_is_the_tail_of_the_whole(tiny, options):
    config, data = tiny(train_images=100, batch_size=16, probe_images=2, **options), numbered(100)
    whole, state = list(batches(data, config, first := gen(3))), first.get_state()
    for skip in (0, 1, 5, 6):
        tail = list(batches(data, config, order := gen(3), skip))
        assert len(tail) == 6 - skip
        for (images, labels), (expected, own) in zip(tail, whole[skip:], strict=True):
            assert torch.equal(images, expected)
            assert torch.equal(labels, own)
        assert torch.equal(order.get_state(), state), "the next epoch starts where it would have"
    for other in (gen(4), first):  # another seed, the next epoch
        assert not all(torch.equal(a, b) for (_, a), (_, b) in zip(whole, batches(data, config, other), strict=True))


def test_about_half_of_the_images_are_flipped_and_every_shift_occurs(tiny):
    """Each image of a batch is one of 2 flips x 9 shifts of its original, and all 18 occur."""
    images = torch.randint(1, 256, (200, 4, 4, 1), generator=gen(1), dtype=torch.uint8)
    split = Split(images, torch.arange(200))
    data = Data(split, split, split, torch.zeros(1), torch.ones(1), False)
    config = tiny(train_images=200, batch_size=100, flip=True, crop=1)
    seen = []
    for batch, labels in batches(data, config, gen(2)):
        for image, number in zip(batch.squeeze(1).numpy(), labels, strict=True):
            original = images[number, :, :, 0].numpy()
            for flipped in (False, True):
                padded = np.pad(original[:, ::-1] if flipped else original, 1)
                seen += [(flipped, i, j) for i in range(3) for j in range(3)
                         if np.array_equal(padded[i : i + 4, j : j + 4], image)]  # fmt: skip
    assert len(seen) == 200
    assert len(set(seen)) == 18
    assert 70 < sum(flipped for flipped, _, _ in seen) < 130


def test_flip_and_crop_are_those_of_numpy():
    images = torch.randint(1, 256, (9, 3, 4, 2), generator=gen(), dtype=torch.uint8)
    chosen, shifts = torch.arange(9) % 2 == 0, torch.tensor([[i, j] for i in (0, 2, 4) for j in (0, 1, 4)])
    flipped, cropped = flip(images, chosen), crop(images, shifts, 2)
    assert flipped.dtype == cropped.dtype == torch.uint8
    for n, image in enumerate(images.numpy()):
        np.testing.assert_array_equal(flipped[n], image[:, ::-1] if chosen[n] else image)
        down, right = shifts[n].tolist()
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        np.testing.assert_array_equal(cropped[n], padded[down : down + 3, right : right + 4])
