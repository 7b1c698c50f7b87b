"""Whether an unlearned model passes an attack of membership inference, by equivalence to retraining.

    d_s    AUC of the updated model − AUC of the retrained model, in training s, by the same attack on the
           same samples; of KLoM the divergence from retraining, less what chance gives
    d0_s   the same of the initial model

    PASSES      the mean of d is surely within ± m of the mean of d0, over poisons, and from three trainings
                on over trainings too; and the initial model is surely told from the retrained one
    FAILS       else, if d is surely not 0, over poisons and, from three trainings on, over trainings
    UNSETTLED   else

Over poisons: DeLong's variance of m d0 ± d, with what the models share, in a t test by as many degrees of
freedom as the fewer of members and non-members leave. Members are others in each training; non-members
are the same, so their part of the variance does not shrink with the trainings. Over trainings: paired t
tests. Holm's correction over the unlearners, for each answer. Where non-members do not follow the
poisons' law, d of two models differs by more than the choice of samples, and nothing FAILS from fewer
than three trainings. A training without a model lets nothing pass.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr

from marshtest.metrics.membership_columns import FORMS, PARTS, column_of
from marshtest.metrics.repeats_columns import FEWEST
from marshtest.metrics.trainings import TINY, p_positive
from marshtest.metrics.verdict import TRAININGS, families, holm

Floats = NDArray[np.float64]
PASSES, FAILS, UNSETTLED = "PASSES", "FAILS", "UNSETTLED"
ANSWERS = (FAILS, UNSETTLED, PASSES)


@dataclass(frozen=True)
class Left:
    """What models of one kind show by one attack: arrays [S], one value a training, nan without a model."""

    left: Floats  # d_s; of the initial model d0_s
    variance: Floats  # of d_s, by the members
    shared_variance: Floats  # of d_s, by the non-members
    covariance: Floats  # of d_s and d0_s, by the members
    shared_covariance: Floats  # of d_s and d0_s, by the non-members
    freedom: float = math.inf  # degrees of freedom of the variances
    pairs: int = 1  # number of trainings that each value stands for, at least

    @classmethod
    def of(cls, rows: pd.DataFrame, form: str, seeds: list[int]) -> "Left":
        """The evidence in rows, one a seed, in the order of `seeds`."""
        placed = rows.set_index("seed").reindex(seeds)
        parts = [placed[column_of(form, part)].to_numpy(dtype=np.float64) for part in PARTS]
        if form in FORMS:
            freedom = min((rows["mia_members"] - 1).sum(), rows["mia_others"].min() - 1)
        else:
            freedom = math.inf
        left, variance, shared, covariance, shared_covariance = parts
        pairs = 1 if form in FORMS else FEWEST
        return cls(left, variance, shared, covariance, shared_covariance, float(freedom), pairs)

    @property
    def comparisons(self) -> float:
        """How many pairs with nothing in common it rests on: of models, or of a member and a non-member."""
        if math.isfinite(self.freedom):
            return self.freedom + 1
        return float(self.pairs * (~np.isnan(self.left)).sum())

    @property
    def value(self) -> float:
        """Mean of d over the trainings that have one; nan of none."""
        return float(np.nanmean(self.left)) if (~np.isnan(self.left)).any() else math.nan

    @property
    def error(self) -> float:
        """Standard error of `value` over the poisons, given these models."""
        defined = ~np.isnan(self.left)
        return math.sqrt(_variance(self.variance[defined], self.shared_variance[defined]))


def _variance(parts: Floats, shared: Floats) -> float:
    """Variance of a mean over trainings, whose non-members' parts vary together; nan if one is unknown."""
    if not len(parts):
        return math.nan
    return float(np.maximum(0.0, parts.sum() / len(parts) ** 2 + shared.mean()))


def p_within(initial: Left, one: Left, margin: float) -> float:
    """p-value of "more than the margin is left"; 1 where a training has no model."""
    if np.isnan(initial.left).any() or np.isnan(one.left).any() or not len(one.left):
        return 1.0
    return max(_p_below(initial, one, margin, sign) for sign in (1.0, -1.0))


def _p_below(initial: Left, one: Left, margin: float, sign: float) -> float:
    """p-value of "m d0 − sign · d is not above 0"."""
    room = margin * initial.left - sign * one.left
    parts = margin**2 * initial.variance + one.variance - 2 * sign * margin * one.covariance
    shared = (
        margin**2 * initial.shared_variance
        + one.shared_variance
        - 2 * sign * margin * one.shared_covariance
    )
    p = _p_positive_over_poisons(float(room.mean()), _variance(parts, shared), one)
    return max(p, _p_over_trainings(room, one.pairs)) if len(room) >= TRAININGS else p


def p_same(one: Left, *, dosed: bool = True) -> float:
    """Two-sided p-value of "the model is as retraining leaves it"."""
    left = one.left[~np.isnan(one.left)]
    if not len(left) or (not dosed and len(left) < TRAININGS):
        return 1.0
    p_values = [
        _p_positive_over_poisons(sign * one.value, one.error**2, one) for sign in (1.0, -1.0)
    ]
    if len(left) >= TRAININGS:
        p_values = [
            max(p, _p_over_trainings(sign * left, one.pairs))
            for p, sign in zip(p_values, (1.0, -1.0), strict=True)
        ]
    return min(1.0, 2 * min(p_values))


def _p_over_trainings(values: Floats, pairs: int) -> float:
    """p-value of the t test; where all values are equal, of the sign test over the pairs behind them."""
    p = p_positive(values)
    return p if np.ptp(values) > TINY else p**pairs


def _p_positive_over_poisons(value: float, variance: float, of: Left) -> float:
    if math.isnan(value) or math.isnan(variance) or not of.freedom > 0:
        return 1.0
    if variance > 0:
        return float(stdtr(of.freedom, -value / math.sqrt(variance)))
    # All pairs are told alike: the sign test over those that have nothing in common.
    return 0.5**of.comparisons if value > 0 else 1.0


@dataclass(frozen=True)
class Answer:
    """The answer for one unlearner by one attack, with Holm-adjusted p-values."""

    answer: str
    p_passes: float
    p_fails: float


def answers(
    initial: Left, family: Sequence[Left], *, alpha: float, margin: float, dosed: bool = True
) -> list[Answer]:
    """Answers for a family of unlearners; see the module's text.

    Args:
        initial: evidence of the initial model.
        family: evidence of each unlearner.
        alpha: level of both answers, over the whole family.
        margin: share of the initial model's lead over the retrained that may be left.
        dosed: whether the non-members follow the poisons' law.
    """
    shown = initial.value > 0 and p_same(initial, dosed=dosed) <= alpha
    passes = holm([p_within(initial, one, margin) for one in family])
    fails = holm([p_same(one, dosed=dosed) for one in family])
    said = []
    for p_in, p_out in zip(passes, fails, strict=True):
        answer = PASSES if shown and p_in <= alpha else FAILS if p_out <= alpha else UNSETTLED
        said.append(Answer(answer, p_in, p_out))
    return said


def judged(
    rows: pd.DataFrame,
    cells: Mapping[tuple[Any, ...], pd.DataFrame],
    form: str,
    *,
    alpha: float,
    margin: float,
) -> list[dict[str, Any]]:
    """A summary's columns for a form, one mapping a cell: the answer and what is left with its error.

    Args:
        rows: all rows at one poison budget.
        cells: the rows of each line of the summary, by its key, whose first part is the role.
        form: of the attack.
        alpha: level of the answers.
        margin: share of the initial model's lead that may be left.
    """
    seeds = rows["seed"].unique().tolist()
    evidence = {key: Left.of(of_cell, form, seeds) for key, of_cell in cells.items()}
    # The retrained model is what others are compared with; the second one stands for it as the control.
    again = rows[rows["role"] == "reference"]
    for key in evidence:
        if key[0] == "retrained" and len(again) and form in FORMS:
            evidence[key] = Left.of(again, form, seeds)
    blank = np.full(len(seeds), np.nan)
    nothing = Left(blank, blank, blank, blank, blank)
    initial = next((one for key, one in evidence.items() if key[0] == "initial"), nothing)
    dosed = form not in FORMS or bool((rows["mia_dosed"].dropna() == 1).all())
    levels = {"alpha": alpha, "margin": margin}
    family = [key for key in evidence if key[0] == "updated"]
    given: dict[tuple[Any, ...], Answer] = {}
    for keys in families(evidence, family):
        of_keys = answers(initial, [evidence[key] for key in keys], dosed=dosed, **levels)
        given |= zip(keys, of_keys, strict=True)
    return [
        {
            column_of(form, "verdict"): given[key].answer,
            column_of(form, "left"): one.value,
            column_of(form, "left_error"): one.error,
            column_of(form, "p_passes"): given[key].p_passes,
            column_of(form, "p_fails"): given[key].p_fails,
        }
        for key, one in evidence.items()
    ]
