"""How well scores tell members from non-members: the area under the ROC curve, and TPRs at low FPRs.

    V_i = share of the non-members below member i            ties count half
    W_j = share of the members above non-member j
    AUC = mean V = mean W,   variance = var V / P + var W / N     (DeLong et al. 1988)

The difference of two AUCs over the same samples has the same form with the differences of V and of W, so
what two models share cancels.

The threshold of a TPR is the k-th largest of the N non-members, k = ⌊FPR · (N + 1)⌋: a further non-member
lies above it with probability k / (N + 1) ≤ FPR, exactly. Given the threshold, the members above it are
binomial, and the interval for the TPR is Clopper and Pearson's. If members and non-members are exchangeable
the number of members above it is beta-binomial(P, k, N + 1 − k).
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def placements(members: Floats, others: Floats) -> tuple[Floats, Floats]:
    """V [P] and W [N] of scores [P] and [N], of which members have the larger; nan if any score is."""
    if np.isnan(members).any() or np.isnan(others).any() or not len(members) or not len(others):
        return np.full(len(members), np.nan), np.full(len(others), np.nan)
    return _below(members, others), 1 - _below(others, members)


def _below(values: Floats, among: Floats) -> Floats:
    """[B] the share of `among` below each value; ties count half."""
    ordered = np.sort(among)
    sides = (np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right"))
    shares: Floats = (sides[0] + sides[1]) / (2 * len(ordered))
    return shares


def variance_of_mean(a: Floats, b: Floats | None = None) -> float:
    """The variance of the mean of values [B], or the covariance of two means over the same samples."""
    if len(a) < 2:
        return math.nan
    b = a if b is None else b
    return float(((a - a.mean()) * (b - b.mean())).sum() / (len(a) - 1) / len(a))


def auc(members: Floats, others: Floats) -> float:
    """The probability that a member scores above a non-member, ties half; nan if it is undefined."""
    above = placements(members, others)[0]
    return float(above.mean()) if len(above) else math.nan


def auc_error(members: Floats, others: Floats) -> float:
    """DeLong's standard error of the AUC."""
    return math.sqrt(sum(variance_of_mean(part) for part in placements(members, others)))


def tpr_at_fpr(members: Floats, others: Floats, fpr: float) -> float:
    """Share of the members above the non-members' threshold; nan where they are too few to set one."""
    rank = math.floor(fpr * (len(others) + 1) + 1e-9)
    if rank < 1 or np.isnan(members).any() or np.isnan(others).any() or not len(members):
        return math.nan
    return float((members > np.sort(others)[-rank]).mean())
