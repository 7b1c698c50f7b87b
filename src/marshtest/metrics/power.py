"""How many poisons a verdict needs: the power of its two tests, and the number for a wanted power.

    detection   two-sided z test of D = 0:     Φ(|D|√n/s − z_{α/2}) + Φ(−|D|√n/s − z_{α/2})
    removal     two one-sided tests of |D| < M: Φ((M − |D|)√n/s − z_α) + Φ((M + |D|)√n/s − z_α) − 1

D is the true dependence, s the standard deviation of one poison's score (1 under the null). Normal
approximation, good from some dozens of poisons on; where the unit is a seed, and s is estimated from a
few of them, Student's t with n − 1 degrees of freedom takes the normal's place (`estimated`).
"""

import math
from collections.abc import Callable

from scipy.optimize import brentq
from scipy.stats import norm, t

MOST = 1e12  # poisons; beyond it the answer is "never"


def detection(
    n: float,
    effect: float,
    *,
    deviation: float = 1.0,
    alpha: float = 0.05,
    estimated: bool = False,
) -> float:
    """Power to reject independence with n poisons, at level `alpha`, for a true dependence."""
    law = t(n - 1) if estimated else norm
    shift, threshold = abs(effect) * math.sqrt(n) / deviation, law.isf(alpha / 2)
    return float(law.sf(threshold - shift) + law.sf(threshold + shift))


def removal(
    n: float,
    margin: float,
    *,
    left: float = 0.0,
    deviation: float = 1.0,
    alpha: float = 0.05,
    estimated: bool = False,
) -> float:
    """Power to show |D| < margin with n poisons, at level `alpha`, where D = `left` is true."""
    law = t(n - 1) if estimated else norm
    scale, threshold = math.sqrt(n) / deviation, law.isf(alpha)
    inside = law.cdf((margin - left) * scale - threshold)
    return max(0.0, float(inside + law.cdf((margin + left) * scale - threshold) - 1))


def poisons_for(power: float, of: Callable[[float], float]) -> float:
    """The least n with of(n) ≥ power, for a power that grows with n; infinite if there is none."""
    if of(2) >= power:
        return 2.0
    if of(MOST) < power:
        return math.inf
    return math.ceil(brentq(lambda n: of(n) - power, 2, MOST, xtol=0.01))
