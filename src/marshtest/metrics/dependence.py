"""What is left of the poison by one score, and four exact tests that a model does not depend on it.

    x_z                    score of poison z: I_z, or the normal score of its rank
    D = −mean x            dependence; larger = more left

If the model does not depend on the noise, the x_z are independent and N(0, 1), given the model, so

    mean       √n x̄                     ~ N(0, 1)
    spread     Σ (x − x̄)²               ~ χ²_{n−1}          some poisons kept, others pushed away
    classes    Σ_c n_c (x̄_c − x̄)²       ~ χ²_{C−1}          classes, or trainings, against each other
    tail       #{x < Φ⁻¹(FPR)}           ~ Binomial(n, FPR)  the paper's "TPR equals FPR", one-sided

Scores of several trainings are pooled exactly from what the rows of each say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2, norm, t

from marshtest.metrics.presentation import Score

Floats = NDArray[np.float64]

SCORES = {  # both N(0, 1) under the null, exactly
    "gus": Score(title="GUS", low=-5, high=5, hidden="gradients vanish", fresh="gus_fresh"),
    "rank": Score(title="rank score", low=-5, high=5, hidden="losses tie or are not numbers"),
}
TINY = 1e-12  # spread of scores that are all equal


@dataclass(frozen=True)
class Dependence:
    """What is left of the poison by one score.

    Attributes:
        value: the dependence D, −mean of the score over n poisons.
        error: its standard error given the models, from the scores' own spread.
        n: poisons with a defined score.
        undefined: poisons without one (vanished gradient).
        hidden: share of the poisons that the score cannot tell: undefined, or tied by chance.
        spread: mean of x² − 1; 0 under the null.
        spread_error: its standard error.
        between: Σ n_c (x̄_c − x̄)² over cells: classes, of each training its own.
        cells: how many there are.
        tail: poisons beyond the threshold Φ⁻¹(FPR).
        fpr: share of them under the null.
    """

    value: float
    error: float
    n: int
    undefined: int = 0
    hidden: float = 0.0
    spread: float = math.nan
    spread_error: float = math.nan
    between: float = 0.0
    cells: int = 1
    tail: int = 0
    fpr: float = 0.01

    @property
    def p_value(self) -> float:
        """Two-sided, of the test of the mean."""
        return float(2 * norm.sf(abs(self.value) * math.sqrt(self.n)))

    @property
    def tests(self) -> dict[str, float]:
        """p-values of the four tests, for "the model does not depend on the poison"; nan if undefined."""
        if math.isnan(self.value):
            return dict.fromkeys(("mean", "spread", "classes", "tail"), math.nan)
        squares = self.error**2 * self.n * (self.n - 1)  # Σ (x − x̄)²
        below = float(chi2.cdf(squares, self.n - 1))
        above = float(chi2.sf(squares, self.n - 1))
        several = self.cells > 1
        return {
            "mean": self.p_value,
            "spread": min(1.0, 2 * min(below, above)),
            "classes": float(chi2.sf(self.between, self.cells - 1)) if several else math.nan,
            "tail": float(binom.sf(self.tail - 1, self.n, self.fpr)),
        }

    @property
    def tail_excess(self) -> float:
        """Share of the poisons beyond the threshold, less the FPR."""
        return self.tail / self.n - self.fpr if self.n else math.nan

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the dependence of these very models."""
        half = float(t.isf((1 - level) / 2, self.n - 1)) * self.error
        return self.value - half, self.value + half

    def columns(self, name: str) -> dict[str, float]:
        """Its columns in a row, by the score's name; `of` reads them back."""
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

    @staticmethod
    def columns_of(name: str) -> list[str]:
        """The columns of a row that tell it again."""
        derived = {f"{name}_{part}" for part in ("low", "high", "p")}
        return [column for column in NOTHING.columns(name) if column not in derived]

    @classmethod
    def of(cls, row: Any, name: str, fpr: float) -> "Dependence":
        """The same again from its columns."""
        if math.isnan(row[f"{name}_poisons"]):  # of a model that does not exist
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

    Args:
        scores: x_z of each poison.
        classes: [P] labels of the poisons; one class if not given.
        fpr: of the tail.
        ties: [P] share of each score that chance decided.
    """
    there = ~np.isnan(scores)
    x, n = scores[there], int(there.sum())
    hidden = float(np.where(there, ties, 1.0).mean()) if len(scores) else 0.0
    if n < 2:
        return Dependence(math.nan, math.nan, n, len(scores) - n, hidden, fpr=fpr)
    _, cell = np.unique(np.zeros(n) if classes is None else classes[there], return_inverse=True)
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
        tail=int((x < norm.ppf(fpr)).sum()),
        fpr=fpr,
    )


def _error(values: Floats) -> float:
    return max(float(values.std(ddof=1)), TINY) / math.sqrt(len(values))


def pooled(parts: Sequence[Dependence]) -> Dependence:
    """The dependence over all poisons of several trainings, exactly, from each training's own."""
    told = [part for part in parts if not math.isnan(part.value)]
    asked = sum(part.n + part.undefined for part in parts)
    hidden = sum(part.hidden * (part.n + part.undefined) for part in parts) / max(asked, 1)
    undefined = sum(part.undefined for part in parts)
    if not told:
        return Dependence(math.nan, math.nan, 0, undefined, hidden)
    sizes = np.array([part.n for part in told])
    means = np.array([part.value for part in told])
    value, error = _over(sizes, means, [part.error for part in told])
    spread, spread_error = _over(
        sizes, np.array([part.spread for part in told]), [part.spread_error for part in told]
    )
    return Dependence(
        value=value,
        error=error,
        n=int(sizes.sum()),
        undefined=undefined,
        hidden=hidden,
        spread=spread,
        spread_error=spread_error,
        between=sum(part.between for part in told) + float((sizes * (means - value) ** 2).sum()),
        cells=sum(part.cells for part in told),
        tail=sum(part.tail for part in told),
        fpr=told[0].fpr,
    )


def _over(sizes: NDArray[np.int64], means: Floats, errors: Sequence[float]) -> tuple[float, float]:
    """Mean over all poisons and its standard error, from those of each training."""
    n = sizes.sum()
    mean = float((sizes * means).sum() / n)
    within = sizes * (sizes - 1) * np.square(errors)
    squares = float((within + sizes * (means - mean) ** 2).sum())
    return mean, math.sqrt(squares / (n - 1) / n)


def dependences(
    scores: Mapping[str, Floats], classes: NDArray[np.int64], fpr: float
) -> dict[str, Dependence]:
    """Dependence by each of SCORES that is there; the share that chance decided is in `<name>_ties`."""
    return {
        name: dependence(scores[name], classes, fpr=fpr, ties=scores.get(f"{name}_ties", 0.0))
        for name in SCORES
        if name in scores
    }
