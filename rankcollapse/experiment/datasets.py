"""The data sets: a record each, and the files that training reads. Without torch: the workflow plans with it.

The official files are checked by md5 and converted once, to two arrays that a training job maps in milliseconds:
DIR/NAME/images.npy, uint8 [n, height, width, channels], and labels.npy, int64 [n]; the training images come first.
A new set is a record in SETS, with a function that returns its training and its test images and labels.
"""

import contextlib
import functools
import http.client
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankcollapse.errors import InputError
from rankcollapse.experiment import files

Arrays = tuple[np.ndarray, np.ndarray]  # images and labels
ARRAYS = ("images.npy", "labels.npy")
STALLED = 60.0  # seconds without a byte after which a download is given up


@dataclass(frozen=True)
class DataSet:
    name: str
    label: str
    classes: int
    shape: tuple[int, int, int]  # channels, height, width
    train: int  # images
    test: int
    # Of the official training images per channel, on a scale of 0 to 1. Fixed, so that every subset is treated alike.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: Callable[[Path, bool], tuple[Arrays, Arrays]]  # (data_dir, download) -> training set, test set

    @property
    def chance(self) -> float:
        """Accuracy of a guess, 0 to 1; every set here has classes of equal size."""
        return 1 / self.classes


# ---- how many images a run sees. `config`: a RunConfig ----


def training_images(config) -> int:
    """Training images per epoch, before the last incomplete batch is left out."""
    return config.train_images or available(config)


def available(config) -> int:
    """Training images that a run may draw from: those set apart for tuning, or what these and validation leave."""
    if config.tuning and config.tuning_images:
        return config.tuning_images
    return SETS[config.dataset].train - config.validation_images - config.tuning_images


def steps_per_epoch(config) -> int:
    return training_images(config) // config.batch_size


# ---- converted files ----


def prepare(
    name: str,
    data_dir: Path | str,
    ready: Path | str | None = None,
    download: bool = True,
    tell: files.Tell = lambda text: None,
) -> Path:
    """The folder NAME of `ready`, by default data_dir/ready, with the set's two arrays as they were sealed when made.

    They are made from the files in `data_dir` if they are not there or damaged since, which `tell` says. Raises
    InputError for files that are missing, altered or out of reach, and for a record that they contradict.
    """
    s, data_dir = SETS[name], Path(data_dir).expanduser()
    folder = Path(ready or data_dir / "ready") / name
    seal = folder / "seal.json"
    if not [*files.damage(seal, folder)]:
        return folder
    with files.lock(folder.with_name(f".{name}.lock"), tell):
        wrong = [*files.damage(seal, folder)]  # none if another process was faster
        for path, what in wrong if seal.exists() else ():
            tell(f"{path} is {what} since it was sealed: the set is converted anew")
        if wrong:
            seal.unlink(missing_ok=True)
            train, test = s.source(data_dir, download)
            for part, arrays, count in (("training", train, s.train), ("test", test, s.test)):
                _check(s, arrays, count, f"the {part} set of {name}", "mend its record in experiment/datasets.py")
            for array, parts in zip(ARRAYS, zip(train, test, strict=True), strict=True):
                files.write(folder / array, functools.partial(np.save, arr=np.concatenate(parts)))
            files.seal(seal, {}, ARRAYS, folder)
    return folder


def mapped(name: str, folder: Path | str) -> Arrays:
    """The arrays of `prepare`, mapped from disk. Raises InputError if they are not what the record says."""
    s, again = SETS[name], f"delete {folder} to have it made anew"
    try:  # copy on write, since torch takes no read-only memory
        arrays = tuple(np.lib.format.open_memmap(Path(folder) / array, "c") for array in ARRAYS)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder} cannot be read ({error}): {again}") from error
    _check(s, arrays, s.train + s.test, str(folder), again)
    return arrays


def _check(s: DataSet, arrays: Arrays, count: int, what: str, mend: str) -> None:
    images, labels = arrays
    shape, classes = (count, *s.shape[1:], s.shape[0]), np.unique(labels)
    if images.shape != shape or images.dtype != np.uint8:
        raise InputError(f"{what} has {images.dtype} images {images.shape}, and not uint8 {shape}: {mend}")
    if labels.shape != (count,) or labels.dtype != np.int64 or not np.array_equal(classes, np.arange(s.classes)):
        found = f"{labels.dtype} labels {labels.shape} of {len(classes)} classes"
        raise InputError(f"{what} has {found}, and not int64 ({count},) of 0 to {s.classes - 1}: {mend}")


# ---- where the sets come from ----


def _digits(data_dir: Path, download: bool) -> tuple[Arrays, Arrays]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, which come with the package; a fixed fifth is the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = (digits.images * (255 / 16)).round().astype(np.uint8)[..., None], digits.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
    for label in range(10):
        test[order[labels[order] == label][:36]] = True
    return (images[~test], labels[~test]), (images[test], labels[test])


def _cifar(kind: str, data_dir: Path, download: bool) -> tuple[Arrays, Arrays]:
    """torchvision's sets, downloaded if absent, every file checked against its official md5."""
    import torchvision
    from torchvision.datasets.utils import check_integrity

    make = getattr(torchvision.datasets, kind)
    folder = data_dir / make.base_folder
    try:
        if not folder.exists():
            if not download:
                raise InputError(f"{folder} does not exist and download is false: put the official {kind} files there")
            _download(make, folder)
        return tuple((s.data, np.array(s.targets)) for s in (make(data_dir, train=True), make(data_dir, train=False)))
    except RuntimeError as error:  # torchvision's word for a file that is not the official one
        for name, md5 in [*make.train_list, *make.test_list, [make.meta["filename"], make.meta["md5"]]]:
            if not check_integrity(str(folder / name), md5):
                state = "altered or truncated" if (folder / name).exists() else "missing"
                what = f"{folder / name} is {state} (its md5 is not the official {md5})"
                raise InputError(f"{what}: replace it, or delete {folder} to download the set anew") from error
        raise
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error}): set data_dir to a folder that can") from error


def _download(make: type, folder: Path) -> None:
    """Into a folder beside, then renamed: a download that is cut off leaves nothing that looks like a data set."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True) as new:
        before = socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(STALLED)
            make(new, download=True)
            with contextlib.suppress(FileExistsError):  # another process was faster, with the same files
                os.rename(Path(new) / make.base_folder, folder)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            mend = "put the official python-version files there, or set data_dir to the folder that holds them"
            raise InputError(f"{folder} does not exist and could not be downloaded ({error!r}): {mend}") from error
        finally:
            socket.setdefaulttimeout(before)


SETS = {s.name: s for s in (
    DataSet(
        "cifar10", "CIFAR-10", 10, (3, 32, 32), 50_000, 10_000,
        (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159), functools.partial(_cifar, "CIFAR10"),
    ),
    DataSet(
        "cifar100", "CIFAR-100", 100, (3, 32, 32), 50_000, 10_000,
        (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615), functools.partial(_cifar, "CIFAR100"),
    ),
    DataSet("digits", "digits", 10, (1, 8, 8), 1_437, 360, (0.30493,), (0.37571,), _digits),
)}  # fmt: skip
