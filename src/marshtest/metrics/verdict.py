"""Verdicts, REMOVED, NOT REMOVED or INCONCLUSIVE, by what is proved of a model's dependence on the poison.

If the null law is known (Gaussian poisons), each score has three *effects*, the mean, the spread and the
tail (marshtest.metrics.dependence), and four exact tests that the model is independent:

    REMOVED       every effect that the verdict rests on is surely at most `margin` of the initial
                  model's; nothing else rejects independence; from three trainings on the means over
                  trainings lie surely within the margin too; every training gave a model; and the
                  initial model is NOT REMOVED
    NOT REMOVED   else, if any exact test rejects independence (Bonferroni over all of them)
    INCONCLUSIVE  else, with the number of poisons that would settle it

*What a verdict rests on* is decided from the initial model and the numbers of poisons and trainings alone:
the mean with most power, and then the other effects, strongest first, as long as a model that never saw
the poison still comes out REMOVED with probability 0.9. An effect without that power can only block, by
rejecting. So can the tests of spread and classes around the mean, which detect a method that keeps some
poisons and pushes others away.

A score that is undefined, because a gradient vanished or losses tie, hides what it would have shown: the
hidden fraction of the poisons is taken to carry the whole initial effect, so the margin shrinks by it.

"p > 0.05" is never read as "removed". REMOVED asks it of every effect (an intersection–union test, no
correction needed). Over several unlearners both answers are corrected by Holm (for effects without a null
law NOT REMOVED is corrected by Westfall and Young), so the chance of even one false NOT REMOVED is at most
α, and so is the chance of even one false REMOVED, given these trainings. The interval over trainings is at
level α for each unlearner, by a t test: where means over trainings spread about normally. A method that
fails whole trainings now and then is told from one that never does by many trainings alone. No
unlearning and full retraining are controls, tested at α outside the family.

A recipe may ask about a model in several *states* (marshtest.experiment.states). Its verdict is that of the
worst, and what may be left in a state is a share of the effect in the initial model itself.

    REMOVED       in every state: an intersection–union test over the states, so that one more costs no
                  correction. Holm steps over the models by the largest p-value of each, so that the chance
                  of even one model that is falsely REMOVED stays at most α: steps in each state by itself,
                  as a state's own verdict has them, would acquit two models that each hide in another
                  state twice as often.
    NOT REMOVED   in some state: as many more chances to reject, so states and unlearners are one family.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr

from marshtest.metrics.binomial import at_most
from marshtest.metrics.dependence import NOTHING, SCORES, Dependence, pooled
from marshtest.metrics.power import detection, poisons_for, removal
from marshtest.metrics.presentation import Score
from marshtest.metrics.trainings import (
    Difference,
    failures,
    p_positive,
    p_within,
    pairs,
    sign_flips,
    trainings_to_reject,
    trainings_to_remove,
)

Floats = NDArray[np.float64]
Answer = Literal["REMOVED", "NOT REMOVED", "INCONCLUSIVE"]
ANSWERS: tuple[Answer, ...] = ("NOT REMOVED", "INCONCLUSIVE", "REMOVED")  # the worst first
Effect = Literal["mean", "spread", "tail"]

POWER = 0.9  # probability that a clean model is REMOVED, and power at the stated numbers of poisons
TRAININGS = 3  # with fewer trainings there is no interval over them
NOT_SHOWN = "the initial model does not surely show the poison"
TINY = 1e-300  # p-values below it are told as "less than this": doubles end soon after
NO_SPREAD = 1e-9  # stands for a deviation of 0, by which nothing could be divided


class Rest(NamedTuple):
    """An effect that a verdict rests on."""

    score: str
    effect: Effect


Judged = TypeVar("Judged")


@dataclass(frozen=True)
class Evidence:
    """What models of one kind show."""

    trainings: Mapping[int, Mapping[str, Dependence]]  # by seed and name of the score
    # what a report must know of each score
    scores: Mapping[str, Score] = field(default_factory=lambda: SCORES)

    @cached_property
    def pooled(self) -> dict[str, Dependence]:
        """The dependence over the poisons of all trainings, by name of the score."""
        names = dict.fromkeys(name for scores in self.trainings.values() for name in scores)
        return {
            name: pooled([scores.get(name, NOTHING) for scores in self.trainings.values()])
            for name in names
        }

    @cached_property
    def absent(self) -> int:
        """Number of trainings that gave no model, or one that answered nothing."""
        of_each = [scores.values() for scores in self.trainings.values() if scores]
        return sum(all(one.n + one.undefined == 0 for one in scores) for scores in of_each)

    def means(self, name: str, others: "Evidence") -> tuple[Floats, Floats]:
        """[S] the dependence here and in `others`, of the trainings in which both are defined."""
        values = [
            (scores[name].value, others.trainings[seed][name].value)
            for seed, scores in self.trainings.items()
            if seed in others.trainings and name in scores and name in others.trainings[seed]
        ]
        # Reshaped, or there would be no columns where no pair is defined.
        defined = np.array([pair for pair in values if not np.isnan(pair).any()]).reshape(-1, 2)
        return defined[:, 0], defined[:, 1]


@dataclass(frozen=True)
class Verdict:
    """The answer for one unlearner."""

    answer: Answer  # REMOVED, NOT REMOVED or INCONCLUSIVE
    p_removed: float  # p-value of "more than the margin is left", Holm-adjusted
    # p-value of "the model does not depend on the poison", adjusted over the family
    p_not_removed: float
    needed: int | None = None  # poisons, or trainings, that would settle it with power 0.9
    # what speaks against REMOVED, in words; of NOT REMOVED what was shown, and by which test
    reasons: tuple[str, ...] = ()
    removed_in: int = 0  # number of trainings in which the estimate is within the margin
    trainings: int = 0  # number of trainings
    p_together: float = 1.0  # as p_removed, adjusted for the claim that all states are REMOVED


def rests_on(
    initial: Evidence, *, margin: float, alpha: float, family: int = 1
) -> tuple[Rest, ...]:
    """The effects that a verdict of REMOVED rests on; none if no mean shows the poison.

    Args:
        initial: evidence of the initial model; nothing else is looked at.
        margin: fraction of the initial effect that may be left.
        alpha: level of the verdict.
        family: number of unlearners that are judged together.
    """
    power = {
        Rest(name, effect): _power(initial, name, effect, margin, alpha, family)
        for name, score in initial.pooled.items()
        for effect in ("mean", "spread", "tail")
        if _effect_of(score, effect) > 0
    }
    means = [rest for rest in power if rest.effect == "mean"]
    if not means:
        return ()
    # Where no mean has any power the largest effect counts: the first name is not the strongest score.
    sizes = {rest: initial.pooled[rest.score].value for rest in means}
    first = max(means, key=lambda rest: (power[rest], sizes[rest]))
    chosen, missed = [first], 1 - power[first]
    for rest in sorted((rest for rest in power if rest != first), key=lambda rest: -power[rest]):
        missed += 1 - power[rest]
        # α more may be lost to the exact tests, which block a clean model as often as that.
        if missed <= 1 - POWER - alpha:
            chosen.append(rest)
    return tuple(chosen)


def verdicts(
    initial: Evidence,
    family: Sequence[Evidence],
    *,
    rests: Sequence[Rest],
    alpha: float = 0.05,
    margin: float = 0.2,
    states: int = 1,
) -> list[Verdict]:
    """Verdicts for a family of unlearners by scores with a known null law; see the module's text.

    Args:
        initial: evidence of the initial model.
        family: evidence of each unlearner; with several states of each state, unlearner by unlearner.
        rests: what the verdicts rest on, from `rests_on`.
        alpha: level of both answers, over the whole family.
        margin: fraction of the initial effect that may be left.
        states: number of states of each unlearner's model.
    """
    shown = _p_independent(initial) <= alpha
    levels = {"margin": margin, "alpha": alpha}
    testable = [_testable(initial, one, rests, levels, len(family) // states) for one in family]
    p_values = [_p_removed(initial, *pair, margin) for pair in zip(family, testable, strict=True)]
    removed, together = _of_each_state(p_values, states), holm(p_values, states)
    not_removed = holm([_p_independent(one) for one in family])
    answers = []
    columns = (family, testable, removed, not_removed, together)
    for one, effects, p_in, p_out, p_all in zip(*columns, strict=True):
        inside = _within(initial, one, effects, margin)
        verdict = Verdict("INCONCLUSIVE", p_in, p_out, None, (), *inside, p_all)
        may = _may_acquit(initial, one, effects, margin, alpha, states)
        # Asked first: enough poisons detect a trace however far it is within the margin.
        if p_in <= alpha and shown and may:
            answers.append(replace(verdict, answer="REMOVED"))
            continue
        if p_out <= alpha:
            reasons = _shown(initial, one, effects, alpha / len(family))
            if one.absent:
                reasons += (f"no model in {one.absent} of {len(one.trainings)} trainings",)
            verdict = replace(verdict, answer="NOT REMOVED")
        else:
            models = len(family) // states
            reasons = _reasons(initial, one, effects, margin, alpha, states)
            if not reasons and p_in > alpha:
                reasons = _lost_to_holm(initial, one, effects, margin, (models, p_in))
            needed = _needed(initial, one, effects, margin, alpha / models, states)
            verdict = replace(verdict, needed=needed)
        answers.append(replace(verdict, reasons=reasons if shown else (NOT_SHOWN, *reasons)))
    return answers


def _may_acquit(
    initial: Evidence,
    one: Evidence,
    rests: Sequence[Rest],
    margin: float,
    alpha: float,
    states: int,
) -> bool:
    """Whether nothing beside what the verdict rests on speaks against REMOVED."""
    # Over the states, or a clean model would be blocked in one of them too often.
    blocked = states * _bonferroni([*_blocking(one, rests).values()]) <= alpha
    together = _p_over_trainings(initial, one, rests, margin) <= alpha
    return together and not blocked and not untestable(one, margin) and not one.absent


def paired_verdicts(
    initial: Difference,
    family: Sequence[Difference],
    *,
    alpha: float = 0.05,
    margin: float = 0.2,
    states: int = 1,
) -> list[Verdict]:
    """Verdicts by an effect that is compared with a clean twin's; see marshtest.metrics.trainings.

    Arguments are those of `verdicts`.
    """
    shown = initial.value > 0 and sign_flips([initial])[0] <= alpha
    p_values = [p_within(initial, one, margin) for one in family]
    removed, together = _of_each_state(p_values, states), holm(p_values, states)
    not_removed = sign_flips(family) if family else []
    answers = []
    for one, p_in, p_out, p_all in zip(family, removed, not_removed, together, strict=True):
        failed, absent = failures(*pairs(initial, one)), one.absent(initial)
        trainings = len(one.defined) + absent
        inside = int((np.abs(one.defined) <= margin * initial.value).sum())
        verdict = Verdict("INCONCLUSIVE", p_in, p_out, None, (), inside, trainings, p_all)
        if p_in <= alpha and shown:
            answers.append(replace(verdict, answer="REMOVED"))
            continue
        lines = [] if shown else [NOT_SHOWN]
        if absent:
            lines.append(_without_model(absent, trainings))
        if p_out <= alpha:
            verdict = replace(verdict, answer="NOT REMOVED")
            lines.append(f"what is left is surely not 0 (sign flips, {_p(p_out)})")
        if trainings and failed and initial.value > 0:
            lines.append(f"half of the effect or more is left in {failed} of {trainings} trainings")
        if p_out <= alpha:
            if one.value < 0:
                lines.append("the clean twin shows more: not the poison's harm, but a trace of it")
        else:
            level = states * alpha / len(family)
            needed = _trainings_needed(initial, one, margin, alpha, level, states)
            verdict = replace(verdict, needed=needed)
        answers.append(replace(verdict, reasons=tuple(lines)))
    return answers


def families(every: Iterable[Judged], family: Sequence[Judged]) -> list[list[Judged]]:
    """What is judged together: the unlearners, which share one error rate, and each control alone.

    Controls check the test, and nobody picks among them.
    """
    return [list(family), *([one] for one in every if one not in family)]


def holm(p_values: Sequence[float], states: int = 1) -> list[float]:
    """Holm's adjusted p-values (1979); nan counts as 1.

    Args:
        p_values: of each model; with several states of each state, model by model.
        states: of a model, all of which must be rejected: a model's place in the order is that of its
            largest p-value, and the largest of its adjusted ones is Holm's of it.
    """
    p = np.where(np.isnan(p_values), 1.0, np.asarray(p_values, dtype=np.float64))
    p = p.reshape(-1, states)
    order = p.max(1).argsort(kind="stable")
    stepped = p[order] * np.arange(len(p), 0, -1)[:, None]
    before = np.maximum.accumulate(np.concatenate([[0.0], stepped.max(1)]))[:-1]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum(stepped, before[:, None]), 1.0)
    return [float(value) for value in adjusted.ravel()]


def _of_each_state(p_values: Sequence[float], states: int) -> list[float]:
    """Holm's adjusted p-values over the models, in each state by itself."""
    adjusted = np.array([holm(p_values[place::states]) for place in range(states)])
    return [float(value) for value in adjusted.T.ravel()]


# Scores with a known null law


def _effect_of(score: Dependence, effect: Effect) -> float:
    """The size of an effect, 0 in expectation if the model is independent of the poison; may be nan."""
    if effect == "mean":
        return score.value
    return score.spread if effect == "spread" else score.tail_excess


def _error_of(score: Dependence, effect: Effect) -> float:
    if effect == "mean":
        return score.error
    share = score.tail / score.n
    return score.spread_error if effect == "spread" else math.sqrt(share * (1 - share) / score.n)


def _allowed(initial: Dependence, score: Dependence, effect: Effect, margin: float) -> float:
    """How much of the initial effect may be left, less what the score may hide."""
    before = _within_reach(initial, score) if effect == "mean" else _effect_of(initial, effect)
    return max(0.0, margin - score.hidden) * before


def _within_reach(initial: Dependence, score: Dependence) -> float:
    """The initial mean, or the most that a model's own could be, if that is less."""
    # A share of more than a model can show would let one pass that remembers all.
    return min(initial.value, score.reach)


def _p_effect(initial: Dependence, score: Dependence, effect: Effect, margin: float) -> float:
    """p-value of "more of an effect is left than is allowed"."""
    allowed = _allowed(initial, score, effect, margin)
    if math.isnan(score.value) or not allowed > 0:
        return 1.0
    # The error of the initial effect is added as if the two estimates were independent. They share the
    # noise: if that makes them agree, the true level is below the stated one; only a model whose scores run
    # against the initial model's can gain by it.
    of_initial = margin * _error_of(initial, effect)
    if effect == "tail":
        share = min(1.0, score.fpr + allowed)
        error = max(math.sqrt(share * (1 - share) / score.n), NO_SPREAD)
        # The exact p-value as a z, to whose error that of the initial effect can be added.
        z = ndtri(at_most(score.tail, score.n, share))
        return float(ndtr(z * error / math.hypot(error, of_initial)))
    error = math.hypot(_error_of(score, effect), of_initial)
    return float(stdtr(score.n - 1, (abs(_effect_of(score, effect)) - allowed) / error))


def _testable(
    initial: Evidence,
    one: Evidence,
    rests: Sequence[Rest],
    levels: Mapping[str, float],
    family: int,
) -> tuple[Rest, ...]:
    """The effects that a model's verdict rests on, by the scores that it has: a black box has no GUS."""
    if all(rest.score in one.pooled for rest in rests):
        return tuple(rests)
    trainings = {
        seed: {name: score for name, score in scores.items() if name in one.pooled}
        for seed, scores in initial.trainings.items()
    }
    # Chosen anew, or the mean of the missing score would have nothing in its place.
    return rests_on(replace(initial, trainings=trainings), family=family, **levels)


def _means(rests: Sequence[Rest]) -> list[str]:
    """The names of the scores whose mean the verdict rests on."""
    return [rest.score for rest in rests if rest.effect == "mean"]


def _p_removed(initial: Evidence, one: Evidence, rests: Sequence[Rest], margin: float) -> float:
    """p-value of "more than the margin is left", the largest over the effects that the verdict rests on."""
    pairs = [(initial.pooled[rest.score], one.pooled[rest.score], rest.effect) for rest in rests]
    return max((_p_effect(*pair, margin) for pair in pairs), default=1.0)


def _p_independent(one: Evidence) -> float:
    """p-value of "the model does not depend on the poison", by all exact tests (Bonferroni)."""
    return _bonferroni([p for score in one.pooled.values() for p in score.tests.values()])


def _blocking(one: Evidence, rests: Sequence[Rest]) -> dict[tuple[str, str], float]:
    """p-values of the exact tests that the verdict does not rest on, by score and test."""
    # Spread and classes always block: they are tested around the mean, so a mean within the margin does
    # not make them reject.
    return {
        (name, test): p
        for name, score in one.pooled.items()
        for test, p in score.tests.items()
        if not math.isnan(p) and (test in ("spread", "classes") or (name, test) not in rests)
    }


def _bonferroni(p_values: Sequence[float]) -> float:
    defined = [p for p in p_values if not math.isnan(p)]
    return min(1.0, len(defined) * min(defined)) if defined else 1.0


def _p_over_trainings(
    initial: Evidence, one: Evidence, rests: Sequence[Rest], margin: float
) -> float:
    """p-value of "in trainings to come the mean that is left is beyond the margin".

    It is 0, and asks nothing, with fewer than three trainings; 1 if there are three, but fewer in which
    both models have a mean.
    """
    if min(len(initial.trainings), len(one.trainings)) < TRAININGS:
        return 0.0
    p_values = [0.0]
    for name in _means(rests):
        d, d0 = one.means(name, initial)
        allowed = max(0.0, margin - one.pooled[name].hidden) * d0
        several = len(d) >= TRAININGS
        p = max(p_positive(allowed - d), p_positive(allowed + d)) if several else 1.0
        p_values.append(p)
    return max(p_values)


def _within(
    initial: Evidence, one: Evidence, rests: Sequence[Rest], margin: float
) -> tuple[int, int]:
    """(trainings in which all means that the verdict rests on are within the margin, trainings in all)."""
    names = _means(rests)
    inside = []
    for scores in one.trainings.values():
        left = [scores[name].value for name in names]
        if not np.isnan(left).any():
            most = [_within_reach(initial.pooled[name], scores[name]) for name in names]
            inside.append(
                bool(names) and all(abs(v) <= margin * m for v, m in zip(left, most, strict=True))
            )
    return sum(inside), len(one.trainings)


def _shown(
    initial: Evidence, one: Evidence, rests: Sequence[Rest], alpha: float
) -> tuple[str, ...]:
    """What convicts a model, and by which test, in words; if a mean is not 0, the surest mean alone."""
    tests = {
        (name, test): p
        for name, score in one.pooled.items()
        for test, p in score.tests.items()
        if not math.isnan(p)
    }
    # Holm's later steps are less strict: the smallest p is what the answer was given by.
    level = max(alpha / len(tests), min(tests.values()))
    rejecting = {key: p for key, p in tests.items() if p <= level}
    means = [name for name, test in rejecting if test == "mean"]
    if not means:
        return tuple(
            f"{one.scores[name].title}: {_rejected(one.pooled[name], test)} ({_p(p)})"
            for (name, test), p in rejecting.items()
        )
    strongest = _means(rests)[:1]  # of several p that are 0 as numbers
    name = min(means, key=lambda name: (rejecting[name, "mean"], name not in strongest))
    score, before = one.pooled[name], initial.pooled.get(name, NOTHING)
    left = f"a dependence of {score.value:.3f}"
    if before.value > 0:
        left = f"{score.value / before.value:.0%} of the initial model's"
    surely = (
        f"what is left is {left}, surely not 0 (test of the mean, {_p(rejecting[name, 'mean'])})"
    )
    return (f"{one.scores[name].title}: {surely}",)


def _p(p: float) -> str:
    return f"p {p:.1g}" if p >= TINY else f"p < {TINY:.0e}"


def _reasons(
    initial: Evidence,
    one: Evidence,
    rests: Sequence[Rest],
    margin: float,
    alpha: float,
    states: int,
) -> tuple[str, ...]:
    """What speaks against REMOVED, in words; if a mean's estimate is beyond the margin, the means alone."""
    if one.absent:
        return (_without_model(one.absent, len(one.trainings)),)
    if hidden := untestable(one, margin):
        return tuple(hidden)
    p_values = _p_effects(initial, one, rests, margin)
    failed = [rest for rest, p in p_values.items() if p > alpha]
    shares = {rest: _share_left(initial, one, rest) for rest in failed}
    lines = [f"{_left(one, r, shares[r])}, not surely under {margin:.0%}" for r in failed]
    if any(rest.effect == "mean" and shares[rest] > margin for rest in failed):
        return tuple(text for text, r in zip(lines, failed, strict=True) if r.effect == "mean")
    tests = _blocking(one, rests)
    for (name, test), p in tests.items():
        if states * len(tests) * p <= alpha:
            what = _rejected(one.pooled[name], test)
            lines.append(f"{one.scores[name].title}: {what} ({_p(p)})")
    if not lines and _p_over_trainings(initial, one, rests, margin) > alpha:
        lines.append("trainings differ too much to tell what is left in others")
    return tuple(lines)


def _lost_to_holm(
    initial: Evidence,
    one: Evidence,
    rests: Sequence[Rest],
    margin: float,
    corrected: tuple[int, float],
) -> tuple[str, ...]:
    """What a model would pass by itself, and not among others, in words.

    Args:
        corrected: number of unlearners that are judged together, and the p-value among them.
    """
    p_values = _p_effects(initial, one, rests, margin)
    if not p_values:
        return ()
    worst = max(p_values, key=lambda rest: p_values[rest])
    left = _left(one, worst, _share_left(initial, one, worst))
    return (
        f"{left}, under {margin:.0%} by {_p(p_values[worst])} alone, but by {_p(corrected[1])} among "
        f"{corrected[0]} unlearners judged together (Holm)",
    )


def _p_effects(
    initial: Evidence, one: Evidence, rests: Sequence[Rest], margin: float
) -> dict[Rest, float]:
    """p-values of "more than the margin is left", by the effects that the model has."""
    return {
        rest: _p_effect(initial.pooled[rest.score], one.pooled[rest.score], rest.effect, margin)
        for rest in rests
        if not math.isnan(one.pooled[rest.score].value)
    }


def _without_model(absent: int, trainings: int) -> str:
    return f"no model in {absent} of {trainings} trainings, and the others cannot speak for them"


def untestable(one: Evidence, margin: float) -> list[str]:
    """The scores that cannot acquit, because too many poisons have none, in words."""
    return [
        f"untestable by {name}: {one.scores[name].hidden} for {score.hidden:.0%} of the poisons"
        for name, score in one.pooled.items()
        if score.hidden >= margin
    ]


def _share_left(initial: Evidence, one: Evidence, rest: Rest) -> float:
    before, score = initial.pooled[rest.score], one.pooled[rest.score]
    left = _effect_of(score, rest.effect)
    # Fewer beyond the threshold than by chance is nothing that was kept.
    return (max(0.0, left) if rest.effect == "tail" else abs(left)) / _effect_of(
        before, rest.effect
    )


def _left(one: Evidence, rest: Rest, share: float) -> str:
    """How much of an effect is left, in words."""
    score, title = one.pooled[rest.score], one.scores[rest.score].title
    of_initial = f"{share:.0%} of the initial model's"
    what = {
        "mean": f"what is left is {of_initial}",
        "spread": f"the mean square's {'excess' if _effect_of(score, 'spread') >= 0 else 'deficit'} is "
        f"{of_initial}",
        "tail": f"a part of the poisons may be kept whole: {_beyond(score)}, an excess of {of_initial}",
    }[rest.effect]
    return f"{title}: {what}"


def _beyond(score: Dependence) -> str:
    return f"{score.tail / max(score.n, 1):.1%} lie beyond the {score.fpr:.0%} threshold"


def _rejected(score: Dependence, test: str) -> str:
    variance = score.error**2 * score.n
    measured = f"(variance {variance:.2f} where 1 is expected)"
    kept, alike = "some poisons are kept and others pushed away", "its values are too much alike"
    how = kept if variance > 1 else alike
    return {
        "mean": "the mean is surely not 0",
        "spread": f"{how} {measured}",
        "classes": "classes, or trainings, differ from each other",
        "tail": f"a part of the poisons is kept whole: {_beyond(score)}",
    }[test]


def _power(
    initial: Evidence, name: str, effect: Effect, margin: float, alpha: float, family: int
) -> float:
    """Probability that a model that never saw the poison is shown to have an effect within the margin."""
    score, n = initial.pooled[name], initial.pooled[name].n
    allowed = _allowed(score, replace(score, hidden=0.0), effect, margin)
    share = min(1.0, score.fpr + allowed)
    # Of x, of x² and of "x is in the tail", where x is N(0, 1).
    deviation = {"mean": 1.0, "spread": math.sqrt(2), "tail": math.sqrt(share * (1 - share))}[
        effect
    ]
    of_initial = margin * _error_of(score, effect) * math.sqrt(n)
    # The test adds the initial effect's own error, which asks of the estimate what a stricter level would.
    stricter = math.hypot(1, of_initial / max(deviation, NO_SPREAD))
    level = float(ndtr(ndtri(alpha / family) * stricter))
    if effect == "tail":
        # The test passes up to the largest count of probability at most `level`.
        passing = bisect_right(range(n + 1), level, key=partial(at_most, n=n, chance=share))
        return at_most(passing - 1, n, score.fpr)
    power = removal(n, allowed, deviation=deviation, alpha=level)
    trainings = sum(not math.isnan(scores[name].value) for scores in initial.trainings.values())
    if effect == "mean" and trainings >= TRAININGS:
        of_one = math.sqrt(trainings / n)  # deviation of a training's mean
        over = removal(trainings, allowed, deviation=of_one, alpha=alpha, estimated=True)
        # Both tests pass at least this often, however they depend on each other.
        return max(0.0, power + over - 1)
    return power


def _needed(
    initial: Evidence,
    one: Evidence,
    rests: Sequence[Rest],
    margin: float,
    alpha: float,
    states: int,
) -> int | None:
    """Fewest poisons with which these estimates would be answered with power 0.9.

    None where no number would do, or fewer than there are: then something else than their number is
    missing, and the reasons tell what.

    Args:
        alpha: corrected over the models.
    """
    if one.absent or any(math.isnan(score.error) for score in one.pooled.values()):
        return None
    to_remove, to_reject = 0.0 if rests else math.inf, math.inf
    tests = sum(not math.isnan(p) for score in one.pooled.values() for p in score.tests.values())
    for score in one.pooled.values():
        left, deviation = abs(score.value), score.error * math.sqrt(score.n)
        level = alpha / (tests * states)  # Bonferroni, as `_p_independent` corrects
        rejected = partial(detection, effect=left, deviation=deviation, alpha=level)
        to_reject = min(to_reject, poisons_for(POWER, rejected))
    for rest in rests:
        before, score = initial.pooled[rest.score], one.pooled[rest.score]
        removed = _removal_of(before, score, rest.effect, margin, alpha)
        to_remove = max(to_remove, poisons_for(POWER, removed))
    needed = min(to_remove, to_reject)
    there = max(score.n for score in one.pooled.values())
    return int(needed) if math.isfinite(needed) and needed > there else None


def _removal_of(
    before: Dependence, score: Dependence, effect: Effect, margin: float, alpha: float
) -> Callable[[float], float]:
    """Power to show that an effect is within the margin, by the number of poisons, if this much is left."""
    allowed, left = _allowed(before, score, effect, margin), _effect_of(score, effect)
    deviation = _error_of(score, effect) * math.sqrt(score.n)
    if effect == "tail":  # one-sided, and tested by the deviation at the margin
        share = min(1.0, score.fpr + allowed)
        left, deviation = max(0.0, left), math.sqrt(share * (1 - share))
    both = math.hypot(deviation, margin * _error_of(before, effect) * math.sqrt(before.n))
    return partial(removal, margin=allowed, left=abs(left), deviation=both, alpha=alpha)


# Effects without a null law


def _trainings_needed(
    initial: Difference, one: Difference, margin: float, alpha: float, level: float, states: int
) -> int | None:
    """Fewest trainings with which this estimate would be answered with power 0.9, beyond those there are.

    None where no number would do, or where something else than their number is missing.

    Args:
        level: alpha, corrected over the models.
    """
    there = len(one.defined)
    if math.isnan(one.value) or one.absent(initial) or not initial.value > 0:
        return None
    left, error = abs(one.value), one.error
    deviation = NO_SPREAD if math.isnan(error) else error * math.sqrt(len(one.defined))
    works = float((initial.defined > initial.value / 2).mean())
    allowed = margin * initial.value
    removed = partial(
        removal, margin=allowed, left=left, deviation=deviation, alpha=level, estimated=True
    )
    rejected = partial(
        detection, effect=left, deviation=deviation, alpha=level / states, estimated=True
    )
    to_remove, to_reject = poisons_for(POWER, removed), poisons_for(POWER, rejected)
    if failures(*pairs(initial, one)) == 0:
        to_remove = max(to_remove, trainings_to_remove(margin, level, works))
    else:
        to_remove = math.inf
    to_reject = max(to_reject, trainings_to_reject(alpha))
    if to_reject <= there:  # they did not do: under some flips another unlearner's are as large
        to_reject = max(to_reject, trainings_to_reject(level / states))  # whatever the others' are
    needed = min((number for number in (to_remove, to_reject) if number > there), default=math.inf)
    return int(needed) if math.isfinite(needed) else None
