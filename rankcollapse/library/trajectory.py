"""The gradient trajectory: minibatch gradients of a training run as rows of a file, and the spectra of that matrix."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from rankcollapse.library import models
from rankcollapse.library.ranks import Spectrum, measures
from rankcollapse.library.spectra import from_gram, gram

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"  # in place of a layer's name: the whole net


class Trajectory:
    """The rank of the gradients of a training run: those of `every`-th steps as rows [T, parameters], by layer.

    The layers are the Linear and Conv2d ones whose weight learns when this is made. `add` is called after each backward
    pass, by the loop or by a hook: `optimizer.register_step_pre_hook(lambda *_: trajectory.add())`.

    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> trajectory = Trajectory(net, every=5)
    >>> for step in range(20):
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.cross_entropy(net(torch.randn(32, 8)), torch.arange(32) % 3).backward()
    ...     trajectory.add()
    ...     optimizer.step()
    >>> found = trajectory.table()
    >>> [*found["layer"].unique()], {*found["rows"]}
    (['0', '2', 'all'], {4})
    >>> bool(found["value"].between(1, 4).all())
    True
    """

    def __init__(self, model: nn.Module, every: int, path: Path | None = None, dtype: torch.dtype = torch.float32):
        """`path`: the file of the rows, which only grows; a temporary one by default, gone with this object.

        Under bfloat16 autocast a gradient is a bfloat16 tensor cast to float32: kept in that `dtype`, all of it stays.
        `every` of 0 keeps none. Raises ValueError for a model without such layers.
        """
        self.weights = {name: w for name, w in models.matrices(model).items() if w.requires_grad}
        if not self.weights:
            raise ValueError("the model has no gradients to keep: the weight of no Linear or Conv2d layer learns")
        sizes, device = [w.numel() for w in self.weights.values()], next(iter(self.weights.values())).device
        self.row = torch.empty(sum(sizes), dtype=dtype, device=device)
        self.parts = dict(zip(self.weights, self.row.split(sizes), strict=True))
        self.steps: list[int] = []
        self.every, self.calls = every, 0
        if path is None:
            self.file = tempfile.NamedTemporaryFile(prefix="gradients-")  # noqa: SIM115 (it lives as long as this does)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self.file = path.open("r+b")
        self.path = Path(self.file.name)

    @property
    def size(self) -> int:
        """Bytes of the file that the rows so far take."""
        return len(self.steps) * self.row.nbytes

    def due(self, step: int) -> bool:
        """Whether the gradient of a step, counted from 0, is kept: of 0, `every`, 2 `every`, ..."""
        return bool(self.every) and step % self.every == 0

    def add(self, step: int | None = None) -> None:
        """After the backward pass of a step, by default the n-th at call n: its gradient if due, zeros without one."""
        step = self.calls if step is None else step
        self.calls += 1
        if not self.due(step):
            return
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
        return {"steps": list(self.steps), "calls": self.calls}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`, with its file at `path`; rows that the file got after it are written anew."""
        self.steps, self.calls = list(state["steps"]), state["calls"]

    def spectra(self, stride: int | None = None, window: int | None = None) -> Iterator[Spectrum]:
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
        for t in sorted({*(range(stride, total, stride) if stride else ()), total} - {1}):
            for name, products in grams.items():
                for scope, first in (("cumulative", 0), ("window", -1 if window is None else t - window)):
                    if first >= 0:
                        values: np.ndarray = from_gram(products[first:t, first:t])
                        yield Spectrum("gradient_trajectory", name, scope, self.steps[t - 1], t - first, values)

    def table(self, stride: int | None = None, window: int | None = None) -> "pd.DataFrame":
        """Effective ranks of `spectra`: columns layer, scope, step (of the last row), rows (T), measure and value.

        The measures are those of `rankcollapse.MEASURES`. Layer `all` is all layers side by side. Products are float32:
        singular values below about 3e-4 of the largest are noise. Empty before the second row.
        """
        import pandas as pd  # which training does without: it takes a while to load

        columns = ["layer", "scope", "step", "rows"]
        found = [([getattr(s, key) for key in columns], s.values) for s in self.spectra(stride, window)]
        rows = [(*about, *each) for about, values in found for each in measures(values).items()]
        return pd.DataFrame(rows, columns=[*columns, "measure", "value"])

    def close(self) -> None:
        self.file.close()
