"""The binomial law, by SciPy's special functions.

`scipy.stats` has the law too, but takes longer to import than a command that only reads rows may take.
"""

import math
from typing import Literal

from scipy.special import betainc, betaincc, betainccinv, betaincinv, ndtri


def at_least(hits: int, n: int, chance: float) -> float:
    """P[Binomial(n, chance) ≥ hits]."""
    if not 0 < hits <= n:
        return float(hits <= 0)
    return float(betainc(hits, n - hits + 1, chance))


def at_most(hits: int, n: int, chance: float) -> float:
    """P[Binomial(n, chance) ≤ hits]."""
    if not 0 <= hits < n:
        return float(hits >= n)
    return float(betaincc(hits + 1, n - hits, chance))


def interval_of_share(
    share: float, n: float, level: float = 0.95, method: Literal["exact", "wilson"] = "exact"
) -> tuple[float, float]:
    """The interval for a share of n: Clopper and Pearson's exact one, or Wilson's; nan if n is 0."""
    if not n > 0 or math.isnan(share):
        return math.nan, math.nan
    hits, tail = round(share * n), (1 - level) / 2
    low, high = (_exact if method == "exact" else _wilson)(hits, int(n), tail)
    return low if hits else 0.0, high if hits < n else 1.0


def _exact(hits: int, n: int, tail: float) -> tuple[float, float]:
    """The chances under which as many hits, or as few, have probability `tail`."""
    return float(betaincinv(hits, n - hits + 1, tail)), float(betainccinv(hits + 1, n - hits, tail))


def _wilson(hits: int, n: int, tail: float) -> tuple[float, float]:
    """The chances p from which hits / n lies z standard errors √(p (1 − p) / n) away."""
    z = float(ndtri(1 - tail))
    centre = (hits + z**2 / 2) / (n + z**2)
    half = z * math.sqrt(hits * (n - hits) / n + z**2 / 4) / (n + z**2)
    return centre - half, centre + half
