"""Feedback alignment, effective rank and the grid of arXiv:2606.11123.

    import torch, rankcollapse
    model = rankcollapse.convert(model, rule="fa", generator=torch.Generator().manual_seed(0))
    assert not rankcollapse.check(model, inputs)

The files follow the data: `config` and `grid` say what to run and which runs are the same, `datasets` and `data` make
its images, `models` its network; `feedback` changes the backward pass and `rules` says where, `check` whether it did;
`optim` makes the update, `probes` measures, `spectra` keeps and `ranks` evaluates what was measured; `training` is the
loop, and `folder` what a run leaves.
"""

import importlib

__version__ = "0.2.0"

# Imported on first use: the workflow reads configs without paying the seconds that torch takes to load.
_HOME = {
    "RunConfig": "config",
    "InputError": "errors",
    "runs": "grid",
    "identity": "grid",
    "SETS": "datasets",
    "load": "data",
    "build": "models",
    "convert": "rules",
    "exact_feedback": "rules",
    "RULES": "rules",
    "check": "check",
    "FeedbackLinear": "feedback",
    "FeedbackConv2d": "feedback",
    "MomentumSGD": "optim",
    "FlatMuon": "optim",
    "MEASURES": "ranks",
    "measures": "ranks",
    "singular_values": "probes",
    "train": "folder",
    "load_checkpoint": "folder",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'rankcollapse' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rankcollapse.{_HOME[name]}"), name)
    globals()[name] = value
    return value
