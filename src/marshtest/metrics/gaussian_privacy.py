"""What Gaussian noise certifies: (ε, δ) of two Gaussians that are `distance` deviations apart, exactly.

Two models of random outputs P and Q are (ε, δ)-indistinguishable if P[S] ≤ e^ε Q[S] + δ for every set S of
outputs, and the other way. For N(0, 1) and N(μ, 1) the least such δ is (Balle & Wang, arXiv 1805.06530)

    δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ).
"""

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr


def gaussian_delta(distance: float, epsilon: float) -> float:
    """δ at which N(0, 1) and N(distance, 1) are (ε, δ)-indistinguishable."""
    near, far = distance / 2 - epsilon / distance, -distance / 2 - epsilon / distance
    return math.exp(log_ndtr(near)) - math.exp(epsilon + log_ndtr(far))


def gaussian_distance(epsilon: float, delta: float) -> float:
    """μ, the largest distance at which two unit Gaussians are (ε, δ)-indistinguishable."""
    largest = 10 + math.sqrt(100 + 2 * epsilon)  # δ is 1 there, but for rounding
    solution: float = brentq(
        lambda distance: gaussian_delta(distance, epsilon) - delta, 1e-9, largest, xtol=1e-15
    )
    return solution


def gaussian_epsilon(distance: float, delta: float) -> float:
    """ε, the least at which N(0, 1) and N(distance, 1) are (ε, δ)-indistinguishable, for δ > 0."""
    if gaussian_delta(distance, 0.0) <= delta:
        return 0.0
    # Beyond it the first term alone, which is larger than δ(ε), is below the least double.
    largest = distance * (distance / 2 + 40)
    solution: float = brentq(
        lambda epsilon: gaussian_delta(distance, epsilon) - delta, 0.0, largest, xtol=1e-12
    )
    return solution
