"""Effective rank: spectra as records, and four measures of one, in NumPy.

"Effective rank" is Roy & Vetterli's (2007) exp of the entropy of a normalised spectrum. Public code disagrees on what
is normalised, singular values or their squares, so both are here under names of their own.
"""

from dataclasses import dataclass

import numpy as np

COLUMNS = ("quantity", "layer", "scope", "step", "rows")  # of a Spectrum, all but its values


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one measured matrix, after `step` steps of training. The quantities and their scopes:

    gradient_trajectory, cumulative | window: [T, P], minibatch gradients of the weights at T steps of training
    error, batch | pooled: [samples, features], δ = ∂L/∂a of a layer, of one probe, or of all probes so far
    classifier_input_error, batch | pooled: [samples, features], ∂L/∂h of the classifier's input, pooled at each probe
    activation, batch: [samples, features], the input h of a layer
    update, step: [out, in * kh * kw], what the last step added to W per unit of rate, decay aside
    """

    quantity: str
    layer: str
    scope: str
    step: int
    rows: int
    values: np.ndarray


def entropy_s(s: np.ndarray) -> float:
    """exp(H(p)), p = s / Σs (Roy & Vetterli 2007)."""
    p = s / s.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def entropy_s2(s: np.ndarray) -> float:
    """exp(H(p)), p = s² / Σs²: the one that gives the paper's picture for gradient trajectories."""
    return entropy_s(s**2)


def participation_ratio(s: np.ndarray) -> float:
    """(Σs²)² / Σs⁴."""
    return float((s**2).sum() ** 2 / (s**4).sum())


def stable_rank(s: np.ndarray) -> float:
    """‖A‖²_F / ‖A‖²_2 = Σs² / s²_max."""
    return float((s**2).sum() / s.max() ** 2)


MEASURES = {measure.__name__: measure for measure in (entropy_s, entropy_s2, participation_ratio, stable_rank)}


def measures(s: np.ndarray) -> dict[str, float]:
    """All four measures of a spectrum; 0 for a matrix of zeros, NaN for one with entries that are not finite.

    >>> {name: round(value, 2) for name, value in measures(np.array([1.0, 1.0, 0.0])).items()}
    {'entropy_s': 2.0, 'entropy_s2': 2.0, 'participation_ratio': 2.0, 'stable_rank': 2.0}
    """
    s = np.asarray(s, dtype=np.float64)
    if not np.isfinite(s).all():
        return dict.fromkeys(MEASURES, float("nan"))
    if not s.any():
        return dict.fromkeys(MEASURES, 0.0)
    s = s / s.max()  # scale-free, and so safe from under- and overflow in the fourth power
    return {name: measure(s) for name, measure in MEASURES.items()}
