"""Feedback alignment, effective rank and the grid of arXiv:2606.11123.

    import torch, rankcollapse
    model = rankcollapse.convert(model, rule="fa", generator=torch.Generator().manual_seed(0))

The files follow the data: `config` and `grid` say what to run, `data` and `models` make its parts, `feedback`
changes the backward pass, `optim` the update, `probes` and `ranks` measure, and `training` makes one run of it all.
"""

import importlib

__version__ = "0.1.0"

# Imported on first use: the workflow reads configs without paying the seconds that torch takes to load.
_HOME = {
    "RunConfig": "config",
    "InputError": "config",
    "runs": "grid",
    "load": "data",
    "build": "models",
    "convert": "feedback",
    "exact_feedback": "feedback",
    "FeedbackLinear": "feedback",
    "FeedbackConv2d": "feedback",
    "MomentumSGD": "optim",
    "FlatMuon": "optim",
    "MEASURES": "ranks",
    "singular_values": "ranks",
    "train": "training",
    "load_checkpoint": "training",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'rankcollapse' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rankcollapse.{_HOME[name]}"), name)
    globals()[name] = value
    return value
