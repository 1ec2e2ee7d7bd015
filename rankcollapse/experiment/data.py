"""A run's data, whole on the training device as uint8; batches are drawn, augmented and normalised there."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from rankcollapse.experiment import datasets
from rankcollapse.experiment.config import RunConfig


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


def load(config: RunConfig, folder: Path | str, device: torch.device | str = "cpu") -> Data:
    """The data of a run on `device`: a fixed, stratified validation split, and a training subset drawn by the seed.

    The images set apart for tuning are another fixed, stratified split; a candidate draws its own from it, and its test
    split is empty. `folder` is that of `datasets.prepare`. Raises InputError if it is not what the set's record says.
    """
    record = datasets.SETS[config.dataset]
    images, labels = map(torch.from_numpy, datasets.mapped(config.dataset, folder))
    fixed = generator(0, f"validation of {config.dataset}")
    held_out = stratified(labels[: record.train], config.validation_images, fixed)
    rest = torch.ones(record.train, dtype=torch.bool)
    rest[held_out] = False
    if config.tuning_images:
        apart = rest.nonzero().flatten()
        fixed = generator(0, f"tuning of {config.dataset}")
        rest[apart[stratified(labels[apart], config.tuning_images, fixed)]] = False
    chosen = rest.nonzero().flatten()
    if config.tuning and config.tuning_images:
        chosen = apart[~rest[apart]]
    if config.train_images is not None:
        chosen = chosen[stratified(labels[chosen], config.train_images, generator(config.seed, "subset"))]
    whole, test = Split(images, labels), torch.arange(record.train, record.train if config.tuning else len(labels))
    train, validation, test = (whole[index].to(device) for index in (chosen, held_out, test))
    return Data(train, validation, test, *scale(config.dataset, device), config.channels_last)


def scale(dataset: str, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a set's pixels per channel, on a scale of 0 to 255."""
    record = datasets.SETS[dataset]
    return 255 * torch.tensor(record.mean, device=device), 255 * torch.tensor(record.std, device=device)


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


def batches(data: Data, config: RunConfig, generator: torch.Generator, skip: int = 0) -> Iterator[tuple]:
    """One epoch of batches, (pixels, labels), shuffled and augmented, but the first `skip` and the last incomplete one.

    All draws of the epoch are made at once on the CPU: the same on every device, and one transfer.
    """
    size = config.batch_size
    count = datasets.steps_per_epoch(config) * size
    device = data.train.labels.device
    order = torch.randperm(len(data.train), generator=generator)[:count].to(device)
    flips = (torch.rand(count, generator=generator) < 0.5).to(device) if config.flip else None
    shifts = torch.randint(0, 2 * config.crop + 1, (count, 2), generator=generator).to(device) if config.crop else None
    for start in range(skip * size, count, size):
        batch = slice(start, start + size)
        chosen = data.train[order[batch]]
        images = flip(chosen.images, flips[batch]) if config.flip else chosen.images
        images = crop(images, shifts[batch], config.crop) if config.crop else images
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
