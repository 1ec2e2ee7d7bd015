"""Feedback alignment, effective rank and the grid of arXiv:2606.11123.

    import torch, rankcollapse
    model = rankcollapse.convert(model, rule="fa", generator=torch.Generator().manual_seed(0))
    assert not rankcollapse.check(model, inputs)

`library` serves any model: `feedback` changes the backward pass, `rules` says where, `laws` how B is drawn, `check`
whether it all did; `error_signal` sets the rank of errors; `updates` makes the step; `measure` and `trajectory` measure
any training, `signals` the grid's.
`experiment` runs the grid with it: `config`, `grid` and `plan` say what, `datasets` and `data` make its images,
`network` and `training` train, `job` writes a run's `folder`, `collect` and `tuning` write the tables.
`render` reads tables alone, and makes figures, pages and the paper.
"""

import importlib

__version__ = "0.3.0"

# Imported on first use: the workflow reads configs without paying the seconds that torch takes to load.
_NAMES = {
    "errors": ["InputError"],
    "library.check": ["check"],
    "library.feedback": ["FeedbackConv2d", "FeedbackLinear"],
    "library.laws": ["low_rank", "orthogonal", "scaled"],
    "library.measure": ["measure"],
    "library.ranks": ["MEASURES", "measures"],
    "library.rules": ["RULES", "SignSymmetry", "WeightMirror", "convert", "exact_feedback"],
    "library.spectra": ["singular_values"],
    "library.trajectory": ["Trajectory"],
    "library.updates": ["MomentumSGD", "Muon", "split"],
    "experiment.config": ["RunConfig"],
    "experiment.data": ["load"],
    "experiment.datasets": ["SETS"],
    "experiment.identity": ["identity"],
    "experiment.job": ["load_checkpoint", "train"],
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'rankcollapse' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rankcollapse.{_HOME[name]}"), name)
    globals()[name] = value
    return value
