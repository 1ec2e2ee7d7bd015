import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from rankcollapse import data as datasets
from rankcollapse.config import InputError
from rankcollapse.data import Data, Split, batches, crop, flip, generator, load, stratified


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(images):
    """The images as a list of bytes, to compare sets of them."""
    return [image.tobytes() for image in images.numpy()]


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


# ---- splits ----


def test_digits_have_1437_training_and_360_test_images(tiny):
    data = load(tiny(train_images=None))
    assert (len(data.train), len(data.validation), len(data.test)) == (1237, 200, 360)
    assert data.train.images.shape[1:] == (8, 8, 1)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64


def test_digits_are_those_of_scikit_learn(tiny):
    from sklearn.datasets import load_digits

    whole = load_digits()
    data = load(tiny(train_images=None))
    found = sorted(
        (int(label), image.squeeze(-1).tolist())
        for split in (data.train, data.validation, data.test)
        for image, label in zip(split.images, split.labels, strict=True)
    )
    official = np.rint(whole.images * 255 / 16).astype(int).tolist()
    assert found == sorted(zip(whole.target.tolist(), official, strict=True))


def test_validation_and_test_images_are_the_same_for_every_seed(tiny):
    first, other = (load(tiny(seed=seed)) for seed in (0, 1))
    for a, b in ((first.validation, other.validation), (first.test, other.test)):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
    assert not torch.equal(first.train.images, other.train.images)


def test_the_training_subset_follows_the_seed(tiny):
    first, again = (load(tiny(seed=3, lr=lr)).train for lr in (0.1, 0.2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)


@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_unpickled_and_split_without_overlap(tiny, fake_cifar, dataset, classes):
    data = load(tiny(dataset=dataset, data_dir=str(fake_cifar), validation_images=50, train_images=100, download=False))
    assert (len(data.train), len(data.validation), len(data.test)) == (100, 50, 50)
    assert data.train.images.shape == (100, 32, 32, 3)
    train, validation = set(rows(data.train.images)), set(rows(data.validation.images))
    assert len(train) == 100
    assert train.isdisjoint(validation)
    if dataset == "cifar10":
        assert torch.bincount(data.train.labels).tolist() == [10] * classes
        assert torch.bincount(data.validation.labels).tolist() == [5] * classes


def test_cifar_images_and_labels_stay_together_and_upright(tiny, fake_cifar):
    data = load(tiny(dataset="cifar10", data_dir=str(fake_cifar), validation_images=50, train_images=None))
    official = {}
    for i in range(1, 6):
        content = pickle.loads((fake_cifar / "cifar-10-batches-py" / f"data_batch_{i}").read_bytes())
        for row, label in zip(content["data"], content["labels"], strict=True):
            official[row.tobytes()] = label  # channel by channel, row by row
    for split in (data.train, data.validation):
        for image, label in zip(split.images, split.labels, strict=True):
            assert official[image.permute(2, 0, 1).numpy().tobytes()] == label


@pytest.mark.parametrize("channels_last", [True, False])
def test_pixels_are_normalised_by_the_constants_of_the_set(tiny, fake_cifar, channels_last):
    config = tiny(dataset="cifar10", data_dir=str(fake_cifar), validation_images=50, channels_last=channels_last)
    data = load(config)
    images = data.test.images[:3]
    found = data.pixels(images)
    mean, std = (np.array(values) for values in datasets.PIXELS["cifar10"])
    expected = ((images.numpy() / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_pixels_come_in_the_memory_layout_asked_for(layout):
    images = torch.randint(0, 256, (3, 4, 5, 2), generator=gen(), dtype=torch.uint8)
    split = Split(images, torch.zeros(3, dtype=torch.int64))
    data = Data(split, split, split, torch.zeros(2), torch.ones(2), layout == torch.channels_last)
    found = data.pixels(images)
    assert found.is_contiguous(memory_format=layout)
    assert torch.equal(found, images.permute(0, 3, 1, 2).float())


def test_the_constants_of_digits_are_their_mean_and_deviation(tiny):
    data = load(tiny(train_images=None))
    pixels = torch.cat([data.train.images, data.validation.images]).double() / 255
    (mean,), (std,) = datasets.PIXELS["digits"]
    assert abs(float(pixels.mean()) - mean) < 1e-4
    assert abs(float(pixels.std(correction=0)) - std) < 1e-4


# ---- files that are not as they should be ----


FILES = [
    ("cifar10", "cifar-10-batches-py/data_batch_3"),
    ("cifar10", "cifar-10-batches-py/test_batch"),
    ("cifar10", "cifar-10-batches-py/batches.meta"),
    ("cifar100", "cifar-100-python/train"),
    ("cifar100", "cifar-100-python/test"),
    ("cifar100", "cifar-100-python/meta"),
]


@pytest.mark.parametrize(("dataset", "name"), FILES)
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_cifar_file_is_named(tiny, fake_cifar, one_sentence, dataset, name, damage):
    file = fake_cifar / name
    blob = file.read_bytes()
    if damage == "altered":
        file.write_bytes(blob[:-2] + bytes([blob[-2] ^ 1]) + blob[-1:])
    elif damage == "truncated":
        file.write_bytes(blob[: len(blob) // 2])
    else:
        file.unlink()
    with pytest.raises(InputError) as caught:
        load(tiny(dataset=dataset, data_dir=str(fake_cifar), validation_images=50))
    one_sentence(caught.value, str(file), "missing" if damage == "missing" else "altered or truncated")


def test_absent_data_that_may_not_be_downloaded_is_named(tiny, tmp_path, one_sentence):
    with pytest.raises(InputError) as caught:
        load(tiny(dataset="cifar10", data_dir=str(tmp_path), download=False))
    one_sentence(caught.value, str(tmp_path / "cifar-10-batches-py"), "download is false")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_download_is_explained_and_leaves_nothing(tiny, tmp_path, monkeypatch, one_sentence):
    def unreachable(self):
        (tmp_path / next(tmp_path.iterdir()).name / "half").write_text("of a file")
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR100, "download", unreachable)
    with pytest.raises(InputError) as caught:
        load(tiny(dataset="cifar100", data_dir=str(tmp_path)))
    one_sentence(caught.value, str(tmp_path / "cifar-100-python"), "no route to host")
    assert list(tmp_path.iterdir()) == []


def test_a_download_ends_under_the_official_name(tiny, fake_cifar, tmp_path, monkeypatch):
    source = fake_cifar / "cifar-10-batches-py"
    target = tmp_path / "new"
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10, "download", lambda self: source.rename(f"{self.root}/cifar-10-batches-py")
    )
    data = load(tiny(dataset="cifar10", data_dir=str(target), validation_images=50))
    assert len(data.test) == 50
    assert [path.name for path in target.iterdir()] == ["cifar-10-batches-py"]


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


def test_batches_follow_the_generator_and_change_from_epoch_to_epoch(tiny):
    config, data = tiny(train_images=96, batch_size=32, probe_images=2, flip=True, crop=1), numbered(96)

    def epochs(seed):
        order = gen(seed)
        return [[torch.cat([x.flatten(1), y[:, None]], 1) for x, y in batches(data, config, order)] for _ in range(2)]

    first, again, other = epochs(0), epochs(0), epochs(1)
    assert torch.equal(torch.stack(first[0] + first[1]), torch.stack(again[0] + again[1]))
    assert not torch.equal(torch.stack(first[0]), torch.stack(first[1]))
    assert not torch.equal(torch.stack(first[0]), torch.stack(other[0]))


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


def test_flip_mirrors_the_chosen_images_alone():
    images = torch.randint(0, 256, (5, 3, 4, 2), generator=gen(), dtype=torch.uint8)
    chosen = torch.tensor([True, False, True, False, False])
    found = flip(images, chosen)
    for n in range(5):
        for row in range(3):
            for column in range(4):
                source = 3 - column if chosen[n] else column
                assert torch.equal(found[n, row, column], images[n, row, source])


def test_crop_is_the_window_of_the_zero_padded_image():
    images = torch.randint(1, 256, (9, 3, 4, 2), generator=gen(), dtype=torch.uint8)
    shifts = torch.tensor([[i, j] for i in (0, 2, 4) for j in (0, 1, 4)])
    found = crop(images, shifts, 2)
    assert found.dtype == torch.uint8
    for n, (down, right) in enumerate(shifts.tolist()):
        for row in range(3):
            for column in range(4):
                i, j = row + down - 2, column + right - 2
                inside = 0 <= i < 3 and 0 <= j < 4
                assert torch.equal(
                    found[n, row, column], images[n, i, j] if inside else torch.zeros(2, dtype=torch.uint8)
                )


def test_a_crop_at_the_shift_of_the_padding_is_the_image_itself():
    images = torch.randint(0, 256, (3, 5, 4, 1), generator=gen(), dtype=torch.uint8)
    assert torch.equal(crop(images, torch.full((3, 2), 2), 2), images)


def test_loading_leaves_global_random_state_alone(tiny, global_random_state):
    before = global_random_state()
    config = tiny(flip=True, crop=1)
    list(batches(load(config), config, gen()))
    assert global_random_state() == before
