"""REMOVED, NOT REMOVED or INCONCLUSIVE: what a set of scores proves, with its error rate.

    D  = dependence, −mean of the scores; 0 is what retraining leaves, exactly, in expectation
    M  = margin × the initial model's D
    REMOVED       D lies within ± M: two one-sided t tests at level α (equivalence)
    NOT REMOVED   else, if D = 0 is rejected: two-sided z test, the scores' null variance is known
    INCONCLUSIVE  else, with the number of poisons that would settle it

Where no law under the null is known (is the target mistaken? how many errors?) the score is compared with
that of a retrained model of the same seed: D is the mean difference over seeds, the unit is the seed, and a
t test takes the z test's place.

A score that cannot be told, because a gradient vanished or losses tie, hides what it would have shown:
the hidden share of the poisons is taken to carry the whole initial effect, so M shrinks by that share
of D₀. A model that is flat or coarse where it is asked cannot pass for one that has forgotten.

"p > 0.05" is never read as "removed". REMOVED asks it of every score (an intersection–union test, no
correction needed); NOT REMOVED of the best one, Bonferroni-corrected. Over several unlearners both
are corrected by Holm, so the chance of even one false NOT REMOVED, and of even one false REMOVED, is
at most α each. No unlearning and full retraining are controls, tested at α outside that family.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from marshtest.metrics.power import detection, poisons_for, removal

Floats = NDArray[np.float64]
Answer = Literal["REMOVED", "NOT REMOVED", "INCONCLUSIVE"]
ANSWERS: tuple[Answer, ...] = ("NOT REMOVED", "INCONCLUSIVE", "REMOVED")  # the worst first

TINY = 1e-12  # spread of scores that are all equal, as where every rank is the lowest
_RESTS_ON = ("poisons", "undefined", "hidden")
POWER = 0.9  # with which the stated number of poisons would settle an inconclusive case


@dataclass(frozen=True)
class Dependence:
    """What is left of the poison by a score; larger = more.

    Attributes:
        value: the dependence D: −mean of the score over n poisons, or the mean difference to retraining
            over n seeds.
        error: its standard error, from the scores' own spread.
        null_error: its standard error if the model does not depend on the noise (exact), or None.
        n: poisons with a defined score, or seeds.
        undefined: poisons without one (vanished gradient).
        hidden: share of the poisons that the score cannot tell: undefined, or tied by chance.
    """

    value: float
    error: float
    null_error: float | None
    n: int
    undefined: int = 0
    hidden: float = 0.0

    @property
    def p_value(self) -> float:
        """Two-sided, for "the model does not depend on the poison"."""
        if self.null_error is None:
            return float(2 * t.sf(abs(self.value) / self.error, self.n - 1))
        return float(2 * norm.sf(abs(self.value) / self.null_error))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the dependence."""
        half = float(t.isf((1 - level) / 2, self.n - 1)) * self.error
        return self.value - half, self.value + half

    def columns(self, name: str) -> dict[str, float]:
        """Its columns in a row, by the score's name: value, error, interval, p-value, what it rests on."""
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
        }

    @staticmethod
    def columns_of(name: str) -> list[str]:
        """The columns of a row that tell it again."""
        return [f"{name}_{part}" for part in ("dependence", "error", *_RESTS_ON)]

    @classmethod
    def of(cls, row: Any, name: str, null_deviation: float) -> "Dependence":
        """The same again from its columns, of a score whose law under the null is known."""
        if math.isnan(row[f"{name}_poisons"]):  # of a model that does not exist
            return cls(math.nan, math.nan, math.nan, 0)
        n = int(row[f"{name}_poisons"])
        return cls(
            value=float(row[f"{name}_dependence"]),
            error=float(row[f"{name}_error"]),
            null_error=null_deviation / math.sqrt(n) if n else math.nan,
            n=n,
            undefined=int(row[f"{name}_undefined"]),
            hidden=float(row[f"{name}_hidden"]),
        )

    def p_equivalence(self, margin: float) -> float:
        """For "|D| ≥ margin": the larger of two one-sided t tests. Small = surely within."""
        if not margin > 0:
            return 1.0
        return float(t.sf((margin - abs(self.value)) / self.error, self.n - 1))


def dependence(
    scores: Floats, null_deviation: float = 1.0, ties: Floats | float = 0.0
) -> Dependence:
    """Dependence of a set of scores [P]; nan scores are counted and left out.

    `ties` [P] is the share of each score that chance decided.
    """
    defined = scores[~np.isnan(scores)]
    n = len(defined)
    hidden = float(np.where(np.isnan(scores), 1.0, ties).mean()) if len(scores) else 0.0
    if n < 2:
        return Dependence(math.nan, math.nan, math.nan, n, len(scores) - n, hidden)
    return Dependence(
        value=-float(defined.mean()),
        error=max(float(defined.std(ddof=1)), TINY) / math.sqrt(n),
        null_error=null_deviation / math.sqrt(n),
        n=n,
        undefined=len(scores) - n,
        hidden=hidden,
    )


def pooled(parts: Sequence[Dependence]) -> Dependence:
    """The dependence over all poisons of several seeds, exactly, from each seed's own."""
    told = [part for part in parts if not math.isnan(part.value)]
    asked = sum(part.n + part.undefined for part in parts)
    hidden = sum(part.hidden * (part.n + part.undefined) for part in parts) / max(asked, 1)
    n, undefined = sum(part.n for part in told), sum(part.undefined for part in parts)
    if not told:
        return Dependence(math.nan, math.nan, math.nan, n, undefined, hidden)
    value = sum(part.n * part.value for part in told) / n
    squares = sum(  # within seeds, and between them
        part.n * ((part.n - 1) * part.error**2 + (part.value - value) ** 2) for part in told
    )
    null = told[0].null_error
    return Dependence(
        value=value,
        error=math.sqrt(squares / (n - 1) / n),
        null_error=None if null is None else null * math.sqrt(told[0].n / n),
        n=n,
        undefined=undefined,
        hidden=hidden,
    )


def compared(scores: Floats, reference: Floats) -> Dependence:
    """Dependence of scores that have no null law: [n] one a seed, less those of retrained models.

    Differences that are all equal have no error to judge by: two seeds may miss equally many images.
    """
    differences = scores - reference
    n = len(differences)
    value = float(differences.mean()) if n else math.nan
    spread = float(differences.std(ddof=1)) if n > 1 else math.nan
    return Dependence(value, spread / math.sqrt(n) if spread > TINY else math.nan, None, n)


def dependences(
    scores: Mapping[str, Floats], null_deviations: Mapping[str, float]
) -> dict[str, Dependence]:
    """Dependence by each score that is there; the share that chance decided stands in `<name>_ties`."""
    return {
        name: dependence(scores[name], deviation, scores.get(f"{name}_ties", 0.0))
        for name, deviation in null_deviations.items()
        if name in scores
    }


@dataclass(frozen=True)
class Verdict:
    """The answer for one unlearner.

    Attributes:
        answer: REMOVED, NOT REMOVED or INCONCLUSIVE.
        p_removed: Holm-adjusted, of the equivalence test.
        p_not_removed: Holm-adjusted, of the test of independence.
        poisons_needed: how many would settle an inconclusive case (power 0.9, at this estimate);
            seeds, where scores are compared with retrained models'.
    """

    answer: Answer
    p_removed: float
    p_not_removed: float
    poisons_needed: int | None = None


def verdicts(
    initial: Mapping[str, Dependence],
    family: Sequence[Mapping[str, Dependence]],
    *,
    alpha: float = 0.05,
    margin: float = 0.2,
) -> list[Verdict]:
    """Verdicts for a family of unlearners, by score name; see the module's text.

    Args:
        initial: dependence of the initial model, for each score.
        family: the same scores for each unlearner.
        alpha: level of both tests, over the whole family.
        margin: share of the initial effect that may be left.
    """
    effects = {name: score.value for name, score in initial.items()}
    removed = holm([_p_removed(scores, effects, margin) for scores in family])
    not_removed = holm([_p_not_removed(scores) for scores in family])
    answers = []
    for scores, p_in, p_out in zip(family, removed, not_removed, strict=True):
        if p_in <= alpha:
            answers.append(Verdict("REMOVED", p_in, p_out))
        elif p_out <= alpha:
            answers.append(Verdict("NOT REMOVED", p_in, p_out))
        else:
            needed = _poisons_needed(scores, effects, margin, alpha / len(family))
            answers.append(Verdict("INCONCLUSIVE", p_in, p_out, needed))
    return answers


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979); nan counts as 1."""
    p = np.where(np.isnan(p_values), 1.0, np.asarray(p_values, dtype=np.float64))
    order = p.argsort(kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def _margin(score: Dependence, effect: float, margin: float) -> float:
    """What a score may leave, less what it may hide."""
    return max(0.0, margin - score.hidden) * effect


def _p_removed(
    scores: Mapping[str, Dependence], effects: Mapping[str, float], margin: float
) -> float:
    return max(
        _or_one(score.p_equivalence(_margin(score, effects[name], margin)))
        for name, score in scores.items()
    )


def _p_not_removed(scores: Mapping[str, Dependence]) -> float:
    return min(1.0, len(scores) * min(_or_one(score.p_value) for score in scores.values()))


def _or_one(p: float) -> float:
    return 1.0 if math.isnan(p) else p


def _poisons_needed(
    scores: Mapping[str, Dependence], effects: Mapping[str, float], margin: float, alpha: float
) -> int | None:
    """Fewest poisons, or seeds, at which this estimate would pass either test with power 0.9."""
    to_remove, to_reject = 0.0, math.inf
    for name, score in scores.items():
        if math.isnan(score.error) or math.isnan(effects[name]):
            return None
        left, deviation = abs(score.value), score.error * math.sqrt(score.n)
        allowed = _margin(score, effects[name], margin)
        few = score.null_error is None
        removed = partial(
            removal, margin=allowed, left=left, deviation=deviation, alpha=alpha, estimated=few
        )
        level = alpha / len(scores)
        rejected = partial(detection, effect=left, deviation=deviation, alpha=level, estimated=few)
        to_remove = max(to_remove, poisons_for(POWER, removed))
        to_reject = min(to_reject, poisons_for(POWER, rejected))
    needed = min(to_remove, to_reject)
    return int(needed) if math.isfinite(needed) else None
