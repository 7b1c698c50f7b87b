"""The power of a verdict's two tests, and how many poisons give a wanted power.

    detection   two-sided z test of D = 0:     Φ(|D|√n/s − z_{α/2}) + Φ(−|D|√n/s − z_{α/2})
    removal     two one-sided tests of |D| < M: Φ((M − |D|)√n/s − z_α) + Φ((M + |D|)√n/s − z_α) − 1

D is the true dependence, s the standard deviation of one poison's score (1 under the null). The normal law
is good from some dozens of poisons on; where the unit is a training, and s is estimated from a few of them,
the noncentral t law with n − 1 degrees of freedom takes its place (`estimated`).
"""

import math
from bisect import bisect_left
from collections.abc import Callable

from scipy.special import nctdtr, ndtr, ndtri, stdtrit

MOST = 10**12  # poisons; beyond it the answer is "never"
MANY = 200  # trainings from which on Student's t is taken for normal


def detection(
    n: float, effect: float, *, deviation: float = 1.0, alpha: float = 0.05, estimated: bool = False
) -> float:
    """Power to reject independence with n poisons at level `alpha`, if the true dependence is `effect`."""
    shift, threshold = abs(effect) * math.sqrt(n) / deviation, _threshold(alpha / 2, n, estimated)
    beyond = 1 - _below(threshold, shift, n, estimated)
    return min(1.0, beyond + _below(-threshold, shift, n, estimated))


def removal(
    n: float,
    margin: float,
    *,
    left: float = 0.0,
    deviation: float = 1.0,
    alpha: float = 0.05,
    estimated: bool = False,
) -> float:
    """Power to show |D| < margin with n poisons at level `alpha`, if the true dependence is `left`.

    It is a lower bound if s is estimated: both one-sided tests may miss together.
    """
    scale, threshold = math.sqrt(n) / deviation, _threshold(alpha, n, estimated)
    sides = ((margin - left) * scale, (margin + left) * scale)
    return max(0.0, 1 - sum(_below(threshold, side, n, estimated) for side in sides))


def _threshold(alpha: float, n: float, estimated: bool) -> float:
    return -float(stdtrit(n - 1, alpha) if estimated else ndtri(alpha))


def _below(threshold: float, shift: float, n: float, estimated: bool) -> float:
    """Probability that a test statistic shifted by `shift` stays below its threshold."""
    if not estimated or n > MANY:
        return float(ndtr(threshold - shift))
    below = float(nctdtr(n - 1, shift, threshold))
    return 0.0 if math.isnan(below) else below  # SciPy gives nan if the shift is huge


def poisons_for(power: float, power_of: Callable[[float], float]) -> float:
    """The least n with power_of(n) ≥ power, where power_of grows with n; infinite if there is none."""
    if power_of(MOST) < power:
        return math.inf
    return 2 + bisect_left(range(2, MOST), power, key=power_of)
