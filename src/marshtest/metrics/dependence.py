"""The dependence of a model on the poison by one score, and four exact tests that there is none.

    x_z                    score of poison z: I_z, or the normal score of its rank
    D = −mean x            dependence; larger = more left

If the model does not depend on the noise, the x_z are independent and N(0, 1), given the model, so

    mean       √n x̄                     ~ N(0, 1)
    spread     Σ (x − x̄)²               ~ χ²_{n−1}          some poisons kept, others pushed away
    classes    Σ_c n_c (x̄_c − x̄)²       ~ χ²_{C−1}          classes, or trainings, against each other
    tail       #{x < Φ⁻¹(FPR)}           ~ Binomial(n, FPR)  the paper's "TPR equals FPR", one-sided

The dependence over several trainings is pooled exactly from the rows of each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtr, chdtrc, ndtr, ndtri, stdtrit

from marshtest.metrics.binomial import at_least
from marshtest.metrics.presentation import Score

Floats = NDArray[np.float64]

SCORES = {  # both N(0, 1) under the null, exactly
    "gus": Score(title="GUS", low=-5, high=5, hidden="gradients vanish", fresh="gus_fresh"),
    "rank": Score(title="rank score", low=-5, high=5, hidden="losses tie or are not numbers"),
}
TINY = 1e-12  # spread of scores that are all equal


@dataclass(frozen=True)
class Dependence:
    """The dependence by one score, and the sums that the four tests need."""

    value: float  # the dependence D, −mean of the score over n poisons
    error: float  # standard error of `value` given the models, from the spread of the scores
    n: int  # number of poisons with a defined score
    undefined: int = 0  # number of poisons without a defined score (the gradient vanished)
    hidden: float = 0.0  # share of the poisons that the score says nothing of: undefined, or tied
    spread: float = math.nan  # mean of x² − 1; 0 under the null
    spread_error: float = math.nan  # standard error of `spread`
    between: float = 0.0  # Σ n_c (x̄_c − x̄)² over cells c: the classes of each training
    cells: int = 1  # number of cells
    tail: int = 0  # number of poisons beyond the threshold Φ⁻¹(FPR)
    fpr: float = 0.01  # fraction of poisons beyond the threshold under the null
    exact: float = math.nan  # of a score that is not normal: the exact p-value of its one test
    # the largest and the smallest value that this model could have, whatever it remembers
    most: float = math.inf
    least: float = -math.inf

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the test of the mean."""
        if not math.isnan(self.exact):
            return self.exact
        return float(2 * ndtr(-abs(self.value) * math.sqrt(self.n)))

    @property
    def reach(self) -> float:
        """How far from 0 the value could be, on the side where it is."""
        return self.most if self.value >= 0 else -self.least

    @property
    def tests(self) -> dict[str, float]:
        """p-values of the four tests of "the model does not depend on the poison"; nan if undefined."""
        none = dict.fromkeys(("mean", "spread", "classes", "tail"), math.nan)
        if math.isnan(self.value):
            return none
        if not math.isnan(self.exact):
            return none | {"mean": self.exact}
        squares = self.error**2 * self.n * (self.n - 1)  # Σ (x − x̄)²
        smaller = min(float(law(self.n - 1, squares)) for law in (chdtr, chdtrc))
        several = self.cells > 1
        return {
            "mean": self.p_value,
            "spread": min(1.0, 2 * smaller),  # χ² is skewed: twice the smaller tail
            "classes": float(chdtrc(self.cells - 1, self.between)) if several else math.nan,
            "tail": at_least(self.tail, self.n, self.fpr),
        }

    @property
    def tail_excess(self) -> float:
        """Fraction of the poisons beyond the threshold, less the FPR."""
        return self.tail / self.n - self.fpr if self.n else math.nan

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval (low, high) of the dependence of these very models."""
        half = -float(stdtrit(self.n - 1, (1 - level) / 2)) * self.error
        return self.value - half, self.value + half

    def columns(self, name: str) -> dict[str, float]:
        """The columns of a row that hold the dependence by the score `name`; `of` reads them back."""
        low, high = self.interval()
        return {
            f"{name}_dependence": self.value,
            f"{name}_error": self.error,
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_p": self.p_value,
            f"{name}_poisons": float(self.n),
            f"{name}_undefined": float(self.undefined),
            f"{name}_hidden": self.hidden,
            f"{name}_spread": self.spread,
            f"{name}_spread_error": self.spread_error,
            f"{name}_between": self.between,
            f"{name}_cells": float(self.cells),
            f"{name}_tail": float(self.tail),
        }

    @classmethod
    def of(cls, row: Any, name: str, fpr: float) -> "Dependence":
        """The dependence by the score `name` that a row holds."""
        if math.isnan(row[f"{name}_poisons"]):  # the unlearner returned no model
            return NOTHING
        return cls(
            value=float(row[f"{name}_dependence"]),
            error=float(row[f"{name}_error"]),
            n=int(row[f"{name}_poisons"]),
            undefined=int(row[f"{name}_undefined"]),
            hidden=float(row[f"{name}_hidden"]),
            spread=float(row[f"{name}_spread"]),
            spread_error=float(row[f"{name}_spread_error"]),
            between=float(row[f"{name}_between"]),
            cells=int(row[f"{name}_cells"]),
            tail=int(row[f"{name}_tail"]),
            fpr=fpr,
        )


NOTHING = Dependence(math.nan, math.nan, 0)


def dependence(
    scores: Floats,
    classes: NDArray[np.int64] | None = None,
    *,
    fpr: float = 0.01,
    ties: Floats | float = 0.0,
) -> Dependence:
    """Dependence of a set of scores [P]; nan scores are counted and left out.

    `classes` are the poisons' labels [P], `fpr` sets the tail's threshold, and `ties` [P] is the fraction
    of each score's draws that tie, so that chance decided.
    """
    defined = ~np.isnan(scores)
    x, n = scores[defined], int(defined.sum())
    # A missing score hides all that it would have shown; a tied one, what chance decided.
    hidden = float(np.where(defined, ties, 1.0).mean()) if len(scores) else 0.0
    if n < 2:
        return Dependence(math.nan, math.nan, n, len(scores) - n, hidden, fpr=fpr)
    _, cell = np.unique(np.zeros(n) if classes is None else classes[defined], return_inverse=True)
    sizes = np.bincount(cell)
    means = np.bincount(cell, x) / sizes
    return Dependence(
        value=-float(x.mean()),
        error=_error(x),
        n=n,
        undefined=len(scores) - n,
        hidden=hidden,
        spread=float((x**2).mean() - 1),
        spread_error=_error(x**2),
        between=float((sizes * (means - x.mean()) ** 2).sum()),
        cells=len(sizes),
        tail=int((x < ndtri(fpr)).sum()),
        fpr=fpr,
    )


def _error(values: Floats) -> float:
    """Standard error of a mean; above 0 even if all values are equal, for it divides."""
    return max(float(values.std(ddof=1)), TINY) / math.sqrt(len(values))


def pooled(parts: Sequence[Dependence]) -> Dependence:
    """The dependence over the poisons of several trainings, exactly, from that of each training."""
    if len(parts) == 1 and not math.isnan(parts[0].exact):
        return parts[0]
    defined = [part for part in parts if not math.isnan(part.value)]
    poisons = sum(part.n + part.undefined for part in parts)
    hidden = sum(part.hidden * (part.n + part.undefined) for part in parts) / max(poisons, 1)
    undefined = sum(part.undefined for part in parts)
    if not defined:
        return Dependence(math.nan, math.nan, 0, undefined, hidden)
    sizes = np.array([part.n for part in defined])
    means = np.array([part.value for part in defined])
    value, error = _over(sizes, means, [part.error for part in defined])
    spread, spread_error = _over(
        sizes, np.array([part.spread for part in defined]), [part.spread_error for part in defined]
    )
    return Dependence(
        value=value,
        error=error,
        n=int(sizes.sum()),
        undefined=undefined,
        hidden=hidden,
        spread=spread,
        spread_error=spread_error,
        # What trainings differ by is added: in the pooled set each training's classes are cells.
        between=sum(part.between for part in defined) + float((sizes * (means - value) ** 2).sum()),
        cells=sum(part.cells for part in defined),
        tail=sum(part.tail for part in defined),
        fpr=defined[0].fpr,
    )


def _over(sizes: NDArray[np.int64], means: Floats, errors: Sequence[float]) -> tuple[float, float]:
    """(mean over all poisons, its standard error) from the mean and the error of each training."""
    # Spread within trainings and between their means: exact, though no row holds a poison's own score.
    n = sizes.sum()
    mean = float((sizes * means).sum() / n)
    within = sizes * (sizes - 1) * np.square(errors)
    squares = float((within + sizes * (means - mean) ** 2).sum())
    return mean, math.sqrt(squares / (n - 1) / n)


def dependences(
    scores: Mapping[str, Floats], classes: NDArray[np.int64], fpr: float
) -> dict[str, Dependence]:
    """The dependence by each of SCORES that `scores` holds; `<name>_ties` holds what chance decided."""
    return {
        name: dependence(scores[name], classes, fpr=fpr, ties=scores.get(f"{name}_ties", 0.0))
        for name in SCORES
        if name in scores
    }
