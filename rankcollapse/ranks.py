"""Effective rank: four measures of a spectrum, in NumPy.

"Effective rank" is Roy & Vetterli's (2007) exp of the entropy of a normalised spectrum. Public code disagrees on what
is normalised, singular values or their squares, so both are here under names of their own.
"""

import numpy as np


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
    """All four measures of a spectrum; 0 for a matrix of zeros, NaN for one with entries that are not finite."""
    s = np.asarray(s, dtype=np.float64)
    if not np.isfinite(s).all():
        return dict.fromkeys(MEASURES, float("nan"))
    if not s.any():
        return dict.fromkeys(MEASURES, 0.0)
    s = s / s.max()  # scale-free, and so safe from under- and overflow in the fourth power
    return {name: measure(s) for name, measure in MEASURES.items()}
