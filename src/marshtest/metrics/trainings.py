"""Verdicts by effects whose null law is unknown: each training is compared with its clean twin.

    d_s  = effect(updated model) − effect(the same on the clean twin)     of training s; d0_s: no unlearning
    twin = the same experiment, the same draws, the base samples in the poisons' places

The accuracy that a method itself costs is in both arms and cancels, as far as it is the same in both.

    NOT REMOVED   some d ≠ 0. If the poison does nothing, the two arms of a training can be exchanged, so
                  every sign of d_s is as likely as the other: the sign-flip test is exact, whatever the
                  law of d. For several unlearners the signs of a training are all flipped together
                  (Westfall and Young's step-down), which takes the unlearners' dependence into account.
    REMOVED       (i) paired one-sided t tests of d_s − m d0_s < 0 and d_s + m d0_s > 0: the mean left is
                  within the margin m, the initial effect's own noise paired away; and
                  (ii) an exact binomial bound: of the trainings in which the attack works, the fraction
                  in which half of the effect or more is left is below m. Means of outcomes that are
                  nearly 0 or 1 hide rare failures: (i) alone would acquit a method that fails in 20 % of
                  the trainings in 14 of 100 cases at S = 16.
                  A training without a model lets nothing be REMOVED.
                  If both arms end with the same parameters, bit for bit, the poison had no way into the
                  model, and no test is needed. Retraining ends so: it looks at no model, and has the same
                  draws and the same retain set in both arms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from marshtest.metrics.binomial import at_least, at_most

Floats = NDArray[np.float64]

TINY = 1e-12  # a spread up to this is rounding: the differences are all equal
ALL_FLIPS = 14  # up to so many trainings all patterns of signs are tried
FLIPS = 20_000  # random patterns for more trainings
MOST = 10_000  # trainings; the search for a number ends there


@dataclass(frozen=True)
class Difference:
    """The effect that is left in the poisoned arm, less the same in the clean twin."""

    values: Floats  # [S] d_s, one a training; nan if a model of the training is missing
    same: bool = False  # whether in each training both arms ended with the same parameters

    @property
    def defined(self) -> Floats:
        """The differences of the trainings that have both models."""
        return self.values[~np.isnan(self.values)]

    def absent(self, initial: "Difference") -> int:
        """Number of trainings that have the initial model's difference, and not this one."""
        return int((np.isnan(self.values) & ~np.isnan(initial.values)).sum())

    @property
    def value(self) -> float:
        """Mean difference over the trainings; nan if there is none."""
        return float(self.defined.mean()) if len(self.defined) else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean, over trainings to come; nan if all differences are equal."""
        error = error_of_mean(self.defined)
        return error if error * math.sqrt(len(self.defined)) > TINY else math.nan

    def columns(self, name: str) -> dict[str, float]:
        """The columns of a summary, for the effect `name`; the p-value is for this unlearner alone."""
        n = len(self.defined)
        low, high = interval_over(n, self.value, self.error)
        return {
            f"{name}_dependence": self.value,
            f"{name}_error": self.error,
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_p": sign_flips([self])[0],
            f"{name}_trainings": float(n),
        }


def error_of_mean(values: Floats) -> float:
    """Standard error of the mean of values [S], one a training; nan of fewer than two."""
    n = len(values)
    return float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def interval_over(trainings: int, value: float, error: float) -> tuple[float, float]:
    """The 95 % t interval of trainings to come about a value with this error; nan of fewer than two."""
    half = -float(stdtrit(trainings - 1, 0.025)) * error if trainings > 1 else math.nan
    return value - half, value + half


def sign_flips(family: Sequence[Difference]) -> list[float]:
    """Two-sided p-values of "d is symmetric about 0", adjusted over the family by step-down.

    The statistic is |Σ d| / √Σ d², whose denominator is the same under every flip. A p-value is at least
    2^(1 − S).
    """
    d = np.stack([np.nan_to_num(one.values) for one in family])  # [F, S]
    scale = np.sqrt((d**2).sum(1))
    d = d / np.where(scale > TINY, scale, np.inf)[:, None]
    observed = np.abs(d.sum(1))
    flipped = np.abs(_signs(d.shape[1]) @ d.T)  # [B, F]; the first pattern is the observed one
    order = np.argsort(observed, kind="stable")
    adjusted = np.ones(len(observed))
    largest = np.zeros(len(flipped))
    for place in order:  # the smallest first: each is compared with the largest of those up to it
        largest = np.maximum(largest, flipped[:, place])
        # Rounding must not tell equal sums of flipped signs apart.
        adjusted[place] = float((largest >= observed[place] - 1e-9).mean())
    adjusted[order[::-1]] = np.maximum.accumulate(adjusted[order[::-1]])
    return adjusted.tolist()


def _signs(trainings: int) -> Floats:
    """[B, S] patterns of signs, the first of them without a flip."""
    if trainings <= ALL_FLIPS:
        flips = np.arange(2**trainings)[:, None] >> np.arange(trainings) & 1
        return np.where(flips, -1.0, 1.0)
    # Always seed 0: the same differences have the same p-value each time a report is drawn.
    signs: Floats = np.random.default_rng(0).choice([-1.0, 1.0], (FLIPS + 1, trainings))
    signs[0] = 1.0  # so that no p-value is 0 (Phipson and Smyth 2010)
    return signs


def pairs(initial: Difference, left: Difference) -> tuple[Floats, Floats]:
    """(d0, d) of the trainings that have both differences."""
    both = ~np.isnan(initial.values) & ~np.isnan(left.values)
    return initial.values[both], left.values[both]


def p_within(initial: Difference, left: Difference, margin: float) -> float:
    """p-value of "more than the margin is left": the larger of (i) and (ii) of the module's text.

    It is 0 if both arms are one model, and 1 if a training gave none: what fails in some trainings must
    not be judged by the others.
    """
    if left.same:
        return 0.0
    d0, d = pairs(initial, left)
    if not len(d) or left.absent(initial):
        return 1.0
    return max(
        p_positive(margin * d0 - d), p_positive(margin * d0 + d), p_rarely_fails(d0, d, margin)
    )


def p_positive(values: Floats) -> float:
    """p-value of a one-sided t test for a positive mean; of the sign test, if all values are equal.

    It is 1 where a value is not finite.
    """
    if not np.isfinite(values).all():
        return 1.0
    n = len(values)
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    if spread > TINY:
        return float(stdtr(n - 1, -t_statistic(values)))
    return 0.5**n if n and values[0] > TINY else 1.0


@np.errstate(divide="ignore", invalid="ignore")
def t_statistic(values: Floats) -> float:
    """The mean over its standard error; infinite if all values are equal, nan if they are 0."""
    return float(values.mean() / np.float64(error_of_mean(values)))


def p_rarely_fails(d0: Floats, d: Floats, margin: float) -> float:
    """p-value of "half of the effect is left in a fraction `margin` of the trainings that it works in"."""
    half = d0.mean() / 2
    if not half > 0:
        return 1.0
    works = float((d0 > half).mean())
    return at_most(failures(d0, d), len(d), margin * works)


def failures(d0: Floats, d: Floats) -> int:
    """Number of trainings in which half of the mean initial effect or more is left, in either direction."""
    return int((np.abs(d) >= d0.mean() / 2).sum()) if len(d) else 0


def trainings_to_remove(margin: float, alpha: float, works: float = 1.0, power: float = 0.9) -> int:
    """The fewest trainings, at most MOST, with which an unlearner that never fails is REMOVED by (ii).

    In each training the attack works with probability `works`; REMOVED has probability `power`.
    """
    always = math.log(alpha) / math.log1p(-margin)  # needed if the attack always works
    trainings = math.ceil(always - 1e-9)
    while trainings < MOST:
        worked = np.arange(trainings + 1)
        too_few = int(((1 - margin * worked / trainings) ** trainings > alpha).sum())
        if at_least(too_few, trainings, works) >= power:
            return trainings
        trainings += 1 + trainings // 200  # exact up to 200
    return MOST


def trainings_to_reject(alpha: float) -> int:
    """The fewest trainings with which an unlearner can be NOT REMOVED: 2^(1 − S) ≤ α."""
    return math.ceil(1 - math.log2(alpha) - 1e-9)


def usable(cost: Floats, margin: float, alpha: float) -> str:
    """Whether the accuracy lost, `cost` [S], is within the margin: surely "yes" or "no", or "unclear".

    It is nan in a training that gave no model: then nothing is "yes".
    """
    defined = cost[~np.isnan(cost)]
    if len(defined) < 2:
        return "unclear"
    if len(defined) == len(cost) and p_positive(margin - defined) <= alpha:
        return "yes"
    return "no" if p_positive(defined - margin) <= alpha else "unclear"
