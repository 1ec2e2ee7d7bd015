"""The gradient trajectory: minibatch gradients of a training run as rows of a file, and the spectra of that matrix."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rankcollapse.library.ranks import Spectrum
from rankcollapse.library.spectra import from_gram, gram

ALL = "all"  # in place of a layer's name: the whole net


class Trajectory:
    """Gradients of `weights`, by layer name, kept as rows of the file `path`, which only grows.

    Under bfloat16 autocast a gradient is a bfloat16 tensor cast to float32: kept in that `dtype`, all of it stays.
    """

    def __init__(self, weights: dict[str, Tensor], path: Path, dtype: torch.dtype = torch.float32):
        sizes, device = [w.numel() for w in weights.values()], next(iter(weights.values())).device
        self.weights, self.path = weights, path
        self.row = torch.empty(sum(sizes), dtype=dtype, device=device)
        self.parts = dict(zip(weights, self.row.split(sizes), strict=True))
        self.steps: list[int] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.file = path.open("r+b")

    @property
    def size(self) -> int:
        """Bytes of the file that the rows so far take."""
        return len(self.steps) * self.row.nbytes

    def add(self, step: int) -> None:
        """The gradient of step `step`, after its backward pass, as a row; zeros of a weight without one."""
        for name, weight in self.weights.items():
            there = self.parts[name].view(weight.shape)
            there.zero_() if weight.grad is None else there.copy_(weight.grad)
        self.file.seek(self.size)
        self.file.write(self.row.cpu().view(torch.uint8).numpy())
        self.steps.append(step)

    def state_dict(self) -> dict:
        """The steps; their rows are on disk when this returns."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return {"steps": list(self.steps)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`; rows that the file got after it are written anew."""
        self.steps = list(state["steps"])

    def spectra(self, stride: int, window: int) -> Iterator[Spectrum]:
        """Of the first T gradients and of the latest `window`, at every `stride`-th T and at the last; none of one."""
        total = len(self.steps)
        if total < 2:
            return
        self.file.flush()
        rows = torch.from_file(str(self.path), size=total * len(self.row), dtype=self.row.dtype).view(total, -1)
        # The rows are full-rank with minibatch noise, so float32 products resolve them.
        columns = rows.split([len(part) for part in self.parts.values()], dim=1)
        grams = {name: gram(part, self.row.device) for name, part in zip(self.parts, columns, strict=True)}
        grams[ALL] = torch.stack(list(grams.values())).sum(0)
        for t in sorted({*range(stride, total, stride), total} - {1}):
            for name, products in grams.items():
                for scope, first in (("cumulative", 0), ("window", t - window)):
                    if first >= 0:
                        values: np.ndarray = from_gram(products[first:t, first:t])
                        yield Spectrum("gradient_trajectory", name, scope, self.steps[t - 1], t - first, values)

    def close(self) -> None:
        self.file.close()
