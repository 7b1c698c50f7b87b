"""What the guesses of an audit prove of differential privacy, in two units and under two claims."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from marshtest.kit.noise import Floats
from marshtest.metrics import f_dp, privacy
from marshtest.metrics.f_dp import Guesses
from marshtest.metrics.privacy import Unit

METHODS = {
    "steinke": "Steinke, Nasr, Jagielski 2023",
    "f_dp": "Mahloujifar, Melis, Chaudhuri 2025",
}


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on ε, at one δ and confidence.

    Attributes:
        replacement: by method of METHODS, for one sample's input replaced by another; of any mechanism.
        add_remove: the same for adding or removing a sample.
        mu: of Gaussian privacy, for a replacement, if the mechanism's trade-off curve is a Gaussian one.
    """

    replacement: dict[str, float]
    add_remove: dict[str, float]
    mu: float
    delta: float

    @property
    def largest(self) -> float:
        """The larger of the bounds that hold for any mechanism, of a replacement."""
        return max(self.replacement.values())

    @property
    def gaussian(self) -> float:
        """The bound for a mechanism whose trade-off curve is a Gaussian one, of a replacement."""
        return f_dp.epsilon_of_gaussian(self.mu, self.delta)

    def figures(self) -> dict[str, Any]:
        """The bounds as `audit.json` has them, beside δ, confidence and unit."""
        best = max(self.replacement, key=lambda name: self.replacement[name])
        return {
            "lower_bound": self.largest,
            "by": METHODS[best] if self.largest > 0 else None,
            "replacement": {"lower_bound": self.largest, **self.replacement},
            "add_remove": {"lower_bound": max(self.add_remove.values()), **self.add_remove},
            "if_gaussian": {
                "mu": self.mu,
                "replacement": self.gaussian,
                # A removal and an addition of μ/2 each are a replacement of μ.
                "add_remove": f_dp.epsilon_of_gaussian(self.mu / 2, self.delta),
            },
        }


def bounds(advantages: Floats, among: Guesses | None, *, delta: float, confidence: float) -> Bounds:
    """What the guesses of both games prove.

    Args:
        advantages: [P] of the game with two candidates, positive where the guess is right.
        among: of the game with K + 1 candidates, or None if it was not played.
        delta: δ of the privacy that is refuted.
        confidence: of the larger of the two methods' bounds: each has half of the error (Bonferroni).
            That for a Gaussian mechanism is another claim, with this confidence of its own.
    """
    games = [Guesses(advantages), *([] if among is None else [among])]
    of_each = 1 - (1 - confidence) / len(METHODS)

    def of_any(unit: Unit) -> dict[str, float]:
        return {
            "steinke": privacy.epsilon_bound(
                advantages, delta=delta, confidence=of_each, unit=unit
            ),
            "f_dp": f_dp.epsilon_bound(games, delta=delta, confidence=of_each, unit=unit),
        }

    mu = f_dp.gaussian_bound(games, confidence=confidence)
    return Bounds(of_any("replacement"), of_any("add_remove"), mu, delta)


def reconstruction(at_poison: Floats, at_fresh: Floats) -> Guesses:
    """Guesses which of K + 1 losses is the poison's: the smallest one, as sure as it lies below the next.

    Args:
        at_poison: [P] losses at the poisons.
        at_fresh: [P, K] losses at fresh noises.
    """
    losses = np.column_stack([at_poison, at_fresh])
    two = np.partition(losses, 1, axis=1)[:, :2]
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = two[:, 1] - two[:, 0]
        sureness = np.where(np.isinf(gap), gap, gap / losses.std(1))
    # nan, which is guessed last, where losses tie or are no numbers. What is sure must not tell which
    # loss is the poison's, so all K + 1 are treated alike.
    sureness = np.where((gap > 0) & ~np.isnan(losses).any(1), sureness, np.nan)
    return Guesses(np.where(at_poison <= two[:, 0], sureness, -sureness), losses.shape[1])
