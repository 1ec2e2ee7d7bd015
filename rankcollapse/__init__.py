"""Feedback alignment, effective rank and the grid of arXiv:2606.11123.

    import torch, rankcollapse
    model = rankcollapse.convert(model, rule="fa", generator=torch.Generator().manual_seed(0))
    assert not rankcollapse.check(model, inputs)

The files follow the data: `config` and `grid` say what to run, `datasets` and `data` make its images, `models` its
network; `feedback` changes the backward pass, `rules` says where, `check` whether it did; `optim` makes the update;
`probes` measures, `spectra` keeps, `ranks` evaluates; `training` is the loop, `job` one run of it, `saves` what that
goes on from, `lock` its claim to be the only one, `folder` what it leaves, and `seals` what shows that this is whole.
"""

import importlib

__version__ = "0.2.0"

# Imported on first use: the workflow reads configs without paying the seconds that torch takes to load.
_NAMES = {
    "config": ["RunConfig"],
    "errors": ["InputError"],
    "grid": ["runs", "identity"],
    "datasets": ["SETS"],
    "data": ["load"],
    "models": ["build"],
    "rules": ["convert", "exact_feedback", "RULES"],
    "check": ["check"],
    "feedback": ["FeedbackLinear", "FeedbackConv2d"],
    "optim": ["MomentumSGD", "Muon"],
    "ranks": ["MEASURES", "measures"],
    "probes": ["singular_values"],
    "job": ["train", "load_checkpoint"],
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'rankcollapse' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rankcollapse.{_HOME[name]}"), name)
    globals()[name] = value
    return value
