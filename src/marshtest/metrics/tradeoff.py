"""TPR and FPR of telling the scores of poisons from those of fresh noise (paper §4.3, Figure 7)."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]


def tpr_at_fpr(scores: Floats, fpr: float) -> float:
    """TPR of the paper's test |I| > τ, τ = Φ⁻¹(1 − FPR / 2), on scores [P]."""
    return _fraction(np.abs(scores) > -ndtri(fpr / 2), scores)


def tpr_at_fpr_empirical(scores: Floats, fresh: Floats, fpr: float) -> float:
    """TPR of the test |I| > τ on scores [P], where τ is the (1 − FPR) quantile of |Ĩ| over fresh noise."""
    if np.isnan(fresh).all():
        return float("nan")
    return _fraction(np.abs(scores) > np.nanquantile(np.abs(fresh), 1 - fpr), scores)


def tpr_at_fpr_one_sided(scores: Floats, fpr: float) -> float:
    """TPR of the stronger test −x > Φ⁻¹(1 − FPR) on scores [P]: memorised noise has negative scores.

    It is exact for rank scores too, with any number of draws, as ranks are spread over the unit interval.
    """
    return _fraction(-scores > -ndtri(fpr), scores)


def tradeoff(poison: Floats, fresh: Floats) -> tuple[Floats, Floats]:
    """The empirical curve (FPR, TPR) of the test "statistic > τ" over all thresholds τ.

    Args:
        poison: [P] statistics of the poisons: −I for a one-sided test, as memorised noise has negative
            scores; |I| for the paper's two-sided test. nan is left out.
        fresh: the same of fresh noise.
    """
    poison, fresh = poison[~np.isnan(poison)], fresh[~np.isnan(fresh)]
    thresholds = np.sort(np.concatenate([poison, fresh]))[::-1]
    # Negated, since searchsorted needs rising values; "right" counts what equals τ, so the curve ends at
    # (1, 1).
    fpr = np.searchsorted(np.sort(-fresh), -thresholds, side="right") / len(fresh)
    tpr = np.searchsorted(np.sort(-poison), -thresholds, side="right") / len(poison)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def gaussian_tradeoff(mean: float, fpr: Floats) -> Floats:
    """The analytic curve of the test −I > τ: TPR of N(µ, 1) against N(0, 1), 1 − Φ(Φ⁻¹(1 − FPR) − µ)."""
    return np.asarray(ndtr(mean + ndtri(fpr)), dtype=np.float64)


def gaussian_tradeoff_two_sided(mean: float, fpr: Floats) -> Floats:
    """The analytic curve of the test |I| > τ: TPR = Φ(µ − τ) + Φ(−µ − τ), τ = Φ⁻¹(1 − FPR / 2)."""
    threshold = -ndtri(fpr / 2)
    return np.asarray(ndtr(mean - threshold) + ndtr(-mean - threshold), dtype=np.float64)


def _fraction(hits: NDArray[np.bool_], scores: Floats) -> float:
    """Fraction of the defined scores that are hits; nan if no score is defined."""
    defined = ~np.isnan(scores)
    return float(hits[defined].mean()) if defined.any() else float("nan")
