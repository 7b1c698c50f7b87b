"""A lower bound on ε from one training run (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846).

Each poison is one coin. Two noises ξ⁰ and ξ¹ were drawn alike, and chance decided which of them went into
the training set and which nobody has seen. The auditor sees the model and guesses, or abstains. If the
algorithm that made the model is (ε, δ)-differentially private, then with m coins, r guesses and
W ~ Binomial(r, q), q = 1 / (1 + e^−ε),

    P[v or more right] ≤ P[W ≥ v] + 2 m δ · max_i (P[v > W ≥ v − i] / i),

so many right guesses refute a small ε. *Unit of privacy*: one training sample's input, replaced by the
same base with other noise, all other samples and every label as they are. A replacement is a removal and
an addition, so what is (ε, δ)-private for adding or removing a sample is (2ε, (1 + e^ε) δ)-private here:
half of a bound for a replacement would refute an add/remove claim at a smaller δ only, so that claim has a
bound of its own (`unit`).
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom

Floats = NDArray[np.float64]
Unit = Literal["replacement", "add_remove"]

GUESSED = (1.0, 0.5, 0.25, 0.125, 0.0625)  # fractions of the coins that are guessed, surest first
MOST = 30.0  # no sample of this world refutes a larger ε


def epsilon_bound(
    advantages: Floats,
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
    unit: Unit = "replacement",
) -> float:
    """The largest ε that the guesses refute at the confidence; 0 if they refute none.

    Args:
        advantages: [m] one for each coin: positive if the noise that was trained on looks more familiar
            than the other. The sign says whether the guess is right, the size how sure it is; nan abstains.
        delta: δ of the privacy that is refuted.
        confidence: over all fractions of GUESSED together (Bonferroni); the best of them counts.
        unit: what ε is of; a replacement, which is what a coin is, or adding or removing a sample.
    """
    sure = np.nan_to_num(advantages)
    # Stable, so that equal advantages are guessed in the same order on every machine.
    order = np.argsort(-np.abs(sure), kind="stable")
    level = (1 - confidence) / len(GUESSED)  # the best of several fractions is taken
    bounds = [0.0]
    for fraction in GUESSED:
        guesses = sure[order[: max(1, round(fraction * len(sure)))]]
        guesses = guesses[guesses != 0]
        right = int((guesses > 0).sum())
        bounds.append(refuted(len(sure), len(guesses), right, delta, level, unit))
    return max(bounds)


def refuted(
    coins: int, guesses: int, right: int, delta: float, level: float, unit: Unit = "replacement"
) -> float:
    """The largest ε whose p-value is at most `level`; 0 if there is none."""
    replacement = (
        of_replacement if unit == "add_remove" else lambda epsilon, delta: (epsilon, delta)
    )

    def excess(epsilon: float) -> float:
        return p_value(coins, guesses, right, *replacement(epsilon, delta)) - level

    if excess(0.0) > 0:
        return 0.0
    if excess(MOST) <= 0:
        return MOST
    return float(brentq(excess, 0.0, MOST))


def of_replacement(epsilon: float, delta: float) -> tuple[float, float]:
    """(ε, δ) of a replacement, under a mechanism that has these for a removal and for an addition."""
    return 2 * epsilon, (1 + math.exp(epsilon)) * delta


def p_value(coins: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of `right` or more right guesses under (ε, δ)-differential privacy."""
    chance = 1 / (1 + np.exp(-epsilon))
    below = binom.pmf(np.arange(right - 1, -1, -1), guesses, chance)  # P[W = v − 1], …, P[W = 0]
    steps = np.arange(1, right + 1)
    worst = float((below.cumsum() / steps).max(initial=0.0))
    tail = float(binom.sf(right - 1, guesses, chance))
    return min(1.0, tail + 2 * coins * delta * worst)
