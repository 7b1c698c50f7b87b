"""A lower bound on privacy from one training run, by trade-off curves (Mahloujifar, Melis, Chaudhuri 2025).

Each of m coins has one of k candidates, all drawn alike, and an auditor who sees the model guesses c′ of
them. (For k = 2 a guess says which of two noises was trained on; for k = K + 1 which one among the poison's
own and K fresh ones.) A mechanism has the *blow-up* F if P[S] ≤ F(Q[S]) for the laws P, Q of the model
under any two candidates of one coin, and any set S of models; F = 1 − f for the trade-off curve f of f-DP.
Then, with p_i the probability of i right guesses, and for every i

    Σ_{l>i} l/m p_l ≤ F( 1/(k − 1) · Σ_{l≥i} (c′ − l)/m p_l ).

Suppose that c or more right guesses had probability τ. The least that follows for fewer right ones is

    r, h ← τ c/m, τ (c′ − c)/m
    for i = c − 1, …, 0:
        h′ ← max(h, (k − 1) F⁻¹(r))
        r, h ← r + i/(c′ − i) · (h′ − h), h′

and r + h = c′/m · Σ p_i ≤ c′/m. Where it comes out larger, τ was too large: the mechanism gives c or more
right guesses with probability below τ, and F is rejected at the level τ.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from marshtest.metrics.gaussian_privacy import gaussian_epsilon
from marshtest.metrics.privacy import GUESSED, MOST, Unit

Floats = NDArray[np.float64]
Shrink = Callable[
    [float], float
]  # F⁻¹, from the probability of a set to the least under another candidate

NORMAL = NormalDist()
NOTHING = 1e-15  # relative to what there is: more steps would add nothing that a double holds
CLOSE = 1e-8  # to which a parameter is searched


class Guesses(NamedTuple):
    """Guesses in one game, and how sure each is.

    Attributes:
        sureness: [m] size: how sure a guess is; sign: whether it is right. A coin that is 0 or nan is
            guessed last, and counts as guessed wrongly.
        candidates: k, among how many each guess was made.
    """

    sureness: Floats
    candidates: int = 2


class Counted(NamedTuple):
    """The right guesses among so many guessed coins, which is all that a bound needs."""

    coins: int
    guesses: int
    right: int
    candidates: int


def of_gaussian(mu: float) -> Shrink:
    """F⁻¹ of μ-Gaussian privacy: N(0, 1) and N(μ, 1) are as hard to tell apart."""

    def shrink(chance: float) -> float:
        if not 0 < chance < 1:
            return float(chance >= 1)
        return NORMAL.cdf(NORMAL.inv_cdf(chance) - mu)

    return shrink


def of_epsilon(epsilon: float, delta: float) -> Shrink:
    """F⁻¹ of (ε, δ)-differential privacy."""
    fall, rise = math.exp(-epsilon), math.exp(epsilon)

    def shrink(chance: float) -> float:
        return max(0.0, fall * (chance - delta), 1 - delta - rise * (1 - chance))

    return shrink


def twice(shrink: Shrink) -> Shrink:
    """F⁻¹ of a replacement under a mechanism that has F for a removal and for an addition."""
    return lambda chance: shrink(shrink(chance))


def rejects(shrink: Shrink, counted: Counted, level: float) -> bool:
    """Whether so many right guesses or more have a probability of at most `level` under F."""
    coins, guesses, right, candidates = counted
    all_of_it = guesses / coins
    r, h = level * right / coins, level * (guesses - right) / coins
    for i in range(right - 1, -1, -1):
        step = (candidates - 1) * shrink(r) - h
        if step <= NOTHING * h:  # h does not grow, so r does not, and neither ever will
            break
        r, h = r + i / (guesses - i) * step, h + step
        if r + h > all_of_it:
            return True
    return r + h > all_of_it


@lru_cache(maxsize=4096)
def largest_rejected(
    curve: Callable[[float], Shrink], counted: Counted, level: float, start: float = 0.0
) -> float:
    """The largest parameter from `start` to MOST whose curve is rejected; `start` if that one is not.

    The larger the parameter, the less private the curve.
    """
    if not rejects(curve(start), counted, level):
        return start
    if rejects(curve(MOST), counted, level):
        return MOST
    low, high = start, MOST
    while high - low > CLOSE:
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(curve(middle), counted, level) else (low, middle)
    return low


@lru_cache(maxsize=64)
def _approximate(delta: float, unit: Unit) -> Callable[[float], Shrink]:
    of_one = {"replacement": lambda shrink: shrink, "add_remove": twice}[unit]
    return lambda epsilon: of_one(of_epsilon(epsilon, delta))


def counts(games: Sequence[Guesses]) -> list[Counted]:
    """What is right among each of GUESSED of the coins, the surest first, in each game.

    The number guessed is fixed before a model is seen, as the theorem asks.
    """
    counted = []
    for sureness, candidates in games:
        sure = np.nan_to_num(sureness)
        right = (sure > 0)[np.argsort(-np.abs(sure), kind="stable")].cumsum()
        for fraction in GUESSED:
            guesses = max(1, round(fraction * len(sure)))
            counted.append(Counted(len(sure), guesses, int(right[guesses - 1]), candidates))
    return counted


def epsilon_bound(
    games: Sequence[Guesses], *, delta: float, confidence: float, unit: Unit = "replacement"
) -> float:
    """The largest ε refuted at the confidence, for any mechanism: (ε, δ)-privacy is a trade-off curve too.

    Args:
        games: one or more, in which the same coins were guessed.
        delta: δ of the privacy that is refuted.
        confidence: over all games and GUESSED together (Bonferroni).
        unit: what ε is of; a replacement, which is what the coins are, or adding or removing a sample.
    """
    return _best(_approximate(delta, unit), games, confidence)


def gaussian_bound(games: Sequence[Guesses], *, confidence: float) -> float:
    """The largest μ so that no mechanism of μ-Gaussian privacy, for a replacement, guesses so well.

    A mechanism of μ-Gaussian privacy for adding or removing a sample has 2μ for a replacement.
    """
    return _best(of_gaussian, games, confidence)


def _best(curve: Callable[[float], Shrink], games: Sequence[Guesses], confidence: float) -> float:
    counted = counts(games)
    level, best = (1 - confidence) / len(counted), 0.0
    for one in counted:
        best = largest_rejected(curve, one, level, best)
    return best


def epsilon_of_gaussian(mu: float, delta: float) -> float:
    """The ε of μ-Gaussian privacy at δ; 0 where μ is 0, infinite where δ is."""
    if mu == 0:
        return 0.0
    return gaussian_epsilon(mu, delta) if delta else math.inf
