"""CIFAR-10, CIFAR-100 and scikit-learn's digits, whole on the training device as uint8; batches are made there."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from rankcollapse.config import InputError, RunConfig

# Mean and standard deviation of the official training images per channel, on a scale of 0 to 1. Fixed, so that every
# subset is normalised alike.
PIXELS = {
    "cifar10": ((0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    "cifar100": ((0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)),
    "digits": ((0.30560,), (0.37602,)),
}
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
SHAPES = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "digits": (1, 8, 8)}


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each purpose of a run, so that no draw of one can shift another's."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class Split:
    """Images, uint8 [n, height, width, channels], and labels, int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Split":
        """The samples at `index`, int64 [m]."""
        return Split(self.images.index_select(0, index), self.labels.index_select(0, index))

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    train: Split
    validation: Split
    test: Split
    mean: Tensor
    std: Tensor
    channels_last: bool

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised float32 [n, channels, height, width] from uint8 [n, height, width, channels]."""
        # One long row per image: broadcasting over a last dimension of three is slow on a CPU.
        mean, std = (values.expand(images.shape[1:]).contiguous() for values in (self.mean, self.std))
        x = images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


def load(config: RunConfig, device: torch.device | str = "cpu") -> Data:
    """The data of a run on `device`: a fixed, stratified validation split, and a training subset drawn by the seed.

    Raises InputError for files that are missing, altered or out of reach.
    """
    train, test = LOADERS[config.dataset](config)
    held_out = stratified(train.labels, config.validation_images, generator(0, f"validation of {config.dataset}"))
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[held_out] = False
    validation, train = train[held_out], train[rest.nonzero().flatten()]
    if config.train_images is not None:
        train = train[stratified(train.labels, config.train_images, generator(config.seed, "subset"))]
    mean, std = (255 * torch.tensor(values, device=device) for values in PIXELS[config.dataset])
    return Data(train.to(device), validation.to(device), test.to(device), mean, std, config.channels_last)


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of `count` samples in random order, each class in its share to within one sample."""
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels[order]
    # Place of each sample within its class, as a fraction of the class: the `count` smallest are stratified.
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (shuffled == label).nonzero().flatten()
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    chosen = place.argsort(stable=True)[:count]
    return order[chosen.sort().values]


def batches(data: Data, config: RunConfig, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of training batches, shuffled and augmented; the last incomplete batch is left out.

    All draws of the epoch are made at once on the CPU: the same on every device, and one transfer.
    """
    count, size = config.steps_per_epoch * config.batch_size, config.batch_size
    device = data.train.labels.device
    order = torch.randperm(len(data.train), generator=generator)[:count].to(device)
    flips = (torch.rand(count, generator=generator) < 0.5).to(device) if config.flip else None
    shifts = torch.randint(0, 2 * config.crop + 1, (count, 2), generator=generator).to(device) if config.crop else None
    for start in range(0, count, size):
        batch = slice(start, start + size)
        chosen = data.train[order[batch]]
        images = chosen.images
        if flips is not None:
            images = flip(images, flips[batch])
        if shifts is not None:
            images = crop(images, shifts[batch], config.crop)
        yield data.pixels(images), chosen.labels


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen (bool [n]) of [n, height, width, channels] images left to right."""
    both = torch.cat([images, images.flip(2)])
    n = len(images)
    return both.index_select(0, torch.arange(n, device=images.device) + n * chosen)


def crop(images: Tensor, shifts: Tensor, padding: int) -> Tensor:
    """Cut each image back out of its zero-padded self at its own shift, int [n, 2] of 0 to 2 * padding."""
    n, height, width, _ = images.shape
    padded = pad(images, (0, 0, padding, padding, padding, padding))
    rows = shifts[:, 0, None] + torch.arange(height, device=images.device)
    columns = shifts[:, 1, None] + torch.arange(width, device=images.device)
    return padded[torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


# ---- where the sets come from ----


def _digits(config: RunConfig) -> tuple[Split, Split]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, which come with the package; a fixed fifth is the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(-1)
    whole = Split(images, torch.from_numpy(digits.target.astype(np.int64)))
    held_out = stratified(whole.labels, 360, generator(0, "test of digits"))
    rest = torch.ones(len(whole), dtype=torch.bool)
    rest[held_out] = False
    return whole[rest.nonzero().flatten()], whole[held_out]


def _cifar(config: RunConfig) -> tuple[Split, Split]:
    sets = fetch(config.dataset, config.data_dir, config.download)
    return tuple(
        Split(torch.from_numpy(np.ascontiguousarray(s.data)), torch.tensor(s.targets, dtype=torch.int64)) for s in sets
    )


def fetch(dataset: str, data_dir: str, download: bool) -> tuple:
    """torchvision's training and test sets, downloaded if absent, every file checked against its official md5.

    Raises InputError that names the missing or altered file.
    """
    import torchvision
    from torchvision.datasets.utils import check_integrity

    make = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[dataset]
    folder = Path(data_dir) / make.base_folder
    if not folder.exists():
        if not download:
            raise InputError(f"{folder} does not exist and download is false: put the {dataset} files there")
        _download(make, dataset, folder)
    try:
        return make(data_dir, train=True), make(data_dir, train=False)  # each checks every file of the set
    except RuntimeError as error:
        for name, md5 in [*make.train_list, *make.test_list, [make.meta["filename"], make.meta["md5"]]]:
            if not check_integrity(str(folder / name), md5):
                state = "altered or truncated" if (folder / name).exists() else "missing"
                raise InputError(
                    f"{folder / name} is {state} (its md5 is not the official {md5}): replace it, or delete {folder} "
                    "to download the set anew"
                ) from error
        raise


# Training and test set of each name, or InputError. A new set is a function here, with its constants above.
LOADERS: dict[str, Callable[[RunConfig], tuple[Split, Split]]] = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
}


def _download(make: type, dataset: str, folder: Path) -> None:
    """Into a folder beside, then renamed: a download that is cut off leaves nothing that looks like a data set."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=f".{dataset}.", dir=folder.parent)
    try:
        make(temporary, download=True)
        with contextlib.suppress(FileExistsError):  # another process was faster, with the same files
            os.rename(Path(temporary) / make.base_folder, folder)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{folder} does not exist and {dataset} could not be downloaded ({error}): put the official python-version "
            "files there, or set run.data_dir to the folder that holds them"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
