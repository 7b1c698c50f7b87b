"""Statements about measured rows with their p-values, and what joins them into a claim's answer.

A statement says that something is surely so, and its p-value is of the test that it is not. Statements
of what is left or lost are one-sided t tests over trainings (seeds), paired within them; where the effect
is a difference to a clean twin, whose values may all be nearly 0 or 1, the share of trainings is tested
too, as for REMOVED. A statement that is not shown tells about how many seeds of which experiments would
show it, if means and spreads stay what they are.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import pandas as pd
from experiments import Cell, results

from marshtest.metrics.power import detection, poisons_for, removal
from marshtest.metrics.trainings import (
    failures,
    p_positive,
    p_rarely_fails,
    trainings_to_reject,
    trainings_to_remove,
)
from marshtest.results.summary import GROUP

LEVEL = 0.05
POWER = 0.9  # with which the stated numbers of seeds would settle a claim
MARGIN = 0.2  # REMOVED leaves less of the effect; who takes away less does not help

Series: TypeAlias = "pd.Series[float]"
# By experiment, how many seeds would show a statement; infinite if none would.
Seeds: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Statement:
    """Something about rows.

    Attributes:
        p: of the test that it is not so.
        seeds: tells, for a level, how many seeds would show it there; empty if these rows do.
        by: the experiments that it rests on; of several ways in which it may be so, those of the surest.
    """

    p: float
    seeds: Callable[[float], Seeds]
    by: tuple[str, ...] = ()


SHOWN = Statement(0.0, lambda level: {})
UNSHOWN = Statement(1.0, lambda level: {"": math.inf})


def statement(p: float, experiment: str, needed: Callable[[float], float]) -> Statement:
    """A statement on one experiment.

    Args:
        needed: tells, for a level, how many seeds would show it there.
    """
    return Statement(
        p, lambda level: {} if p <= level else {experiment: needed(level)}, (experiment,)
    )


def over_seeds(values: Series, experiment: str) -> Statement:
    """That a mean over trainings is above 0, by a t test of `values`, one of each training."""
    # A training without a model is not left out: nobody knows what its value would have been.
    if len(values) < 2 or values.isna().any():
        return statement(1.0, experiment, lambda level: math.inf)
    mean, spread = float(values.mean()), _spread(values)

    def needed(level: float) -> float:
        if mean <= 0:
            return math.inf
        # One tail of the two-sided test: the other is below 10⁻³ wherever the power is 0.9.
        power = partial(detection, effect=mean, deviation=spread, alpha=2 * level, estimated=True)
        return max(poisons_for(POWER, power), len(values) + 1)

    return statement(p_positive(values.to_numpy()), experiment, needed)


# What one unlearner does in one experiment


def of_seeds(of: Cell, line: pd.Series | None = None) -> pd.DataFrame:
    """The rows behind a line of the cell's experiment, its own by default, by seed."""
    told = of.line if line is None else line
    rows = results(of.experiment).chosen(told["poison_budget"])
    at = np.logical_and.reduce([rows[column] == told[column] for column in GROUP])
    return rows[at].set_index("seed").sort_index()


def is_retraining(of: Cell) -> bool:
    """Whether an unlearner ends with one model for poisoned and clean data: it keeps nothing of a model."""
    rows = of_seeds(of)
    return "twin_same" in rows and bool(rows["twin_same"].all())


@dataclass(frozen=True)
class Effect:
    """A poison's effect by one score in the trainings of an experiment."""

    before: Series  # of the initial model, by seed
    after: Series  # what an unlearner leaves of it

    @property
    def works(self) -> float:
        """In which share of the trainings the attack works: more than half of the mean effect shows."""
        return float((self.before > self.before.mean() / 2).mean())


def effects(of: Cell) -> list[Effect]:
    """By each score of the attack; where there is a clean twin, the one difference to it."""
    attack = results(of.experiment).recipe.attack
    sides = of_seeds(of, of.initial), of_seeds(of)
    if _has_twin(of):
        (column,) = attack.shown.reference_columns.values()
        return [Effect(*(rows[column] - rows[f"twin_{column}"] for rows in sides))]
    return [Effect(*(rows[f"{name}_dependence"] for rows in sides)) for name in of.names]


def _has_twin(of: Cell) -> bool:
    return bool(results(of.experiment).recipe.attack.needs_twin)


def shows(of: Cell) -> Statement:
    """That the initial model shows the poison at all."""
    initial = Cell(of.experiment, of.initial, of.initial, of.names)
    harm = [effect.before.mean() for effect in effects(of)]
    p = float(of.initial["p_not_removed"]) if harm and min(harm) > 0 else 1.0
    return statement(p, of.experiment, lambda level: _to_reject(initial, level, 1))


def removed(of: Cell) -> Statement:
    """That an unlearner is REMOVED."""
    p = float(of.line["p_removed"]) if of.verdict == "REMOVED" else 1.0
    verdict = statement(p, of.experiment, lambda level: _to_remove(of, level, _family(of)))
    # A verdict's p-value is given these trainings, but where there is a twin it is of trainings to come.
    return all_of([verdict, shows(of) if _has_twin(of) else comes_close(of)])


def not_removed(of: Cell) -> Statement:
    """That an unlearner is NOT REMOVED."""
    p = float(of.line["p_not_removed"]) if of.verdict == "NOT REMOVED" else 1.0

    def needed(level: float) -> float:
        seeds = _to_reject(of, level, _family(of))
        # REMOVED is asked first, so a trace that it allows is never NOT REMOVED.
        return seeds if seeds < _to_remove(of, level, _family(of)) else math.inf

    return statement(p, of.experiment, needed)


def helps(of: Cell) -> Statement:
    """That there is an effect, and by some score surely less than 1 − MARGIN of it is left."""
    less = (
        within(of.experiment, (1 - MARGIN) * effect.before, effect.after) for effect in effects(of)
    )
    return all_of([shows(of), any_of(less)])


def does_not_help(of: Cell) -> Statement:
    """That there is an effect, and by every score surely more than 1 − MARGIN of it is left."""
    parts = [shows(of)]
    for effect in effects(of):
        parts.append(over_seeds(effect.after - (1 - MARGIN) * effect.before, of.experiment))
        if _has_twin(of):
            # Never negative: an effect that has grown is not gone.
            gone = (effect.before - effect.after).clip(lower=0)
            parts.append(_rarely(of, effect, gone))
    return all_of(parts)


def _rarely(of: Cell, effect: Effect, part: Series) -> Statement:
    """That in fewer than MARGIN of the trainings this part of the effect is half of it or more."""
    before, sizes = effect.before.to_numpy(), part.to_numpy()

    def needed(level: float) -> float:
        often = failures(before, sizes)
        return math.inf if often else trainings_to_remove(MARGIN, level, effect.works)

    return statement(p_rarely_fails(before, sizes, MARGIN), of.experiment, needed)


def comes_close(of: Cell) -> Statement:
    """That there is an effect, and by every score surely less than MARGIN of it is left."""
    parts = [shows(of)]
    for one in effects(of):
        parts.append(within(of.experiment, MARGIN * one.before, one.after))
        if _has_twin(of):
            parts.append(_rarely(of, one, one.after))
    return all_of(parts)


def stays_far(of: Cell) -> Statement:
    """That there is an effect, and by some score surely more than MARGIN of it is left."""
    more = (over_seeds(one.after - MARGIN * one.before, of.experiment) for one in effects(of))
    return all_of([shows(of), any_of(more)])


def enlarges(of: Cell) -> Statement:
    """That there is an effect, and by every score surely more than that is left."""
    more = (over_seeds(effect.after - effect.before, of.experiment) for effect in effects(of))
    return all_of([shows(of), *more])


def lessens(of: Cell) -> Statement:
    """That by every score surely less than the whole effect is left."""
    return all_of(over_seeds(one.before - one.after, of.experiment) for one in effects(of))


def beats_noise(of: Cell) -> Statement:
    """That the poison costs surely more than its own perturbations do in random order."""
    (effect,), table = effects(of), results(of.experiment).summary
    at = (table["role"] == "shuffled") & (table["poison_budget"] == of.line["poison_budget"])
    rows = of_seeds(of, table[at].iloc[0])
    (column,) = results(of.experiment).recipe.attack.shown.reference_columns.values()
    return over_seeds(effect.before - (rows[column] - rows[f"twin_{column}"]), of.experiment)


def beats(of: Cell, other: Cell) -> Statement:
    """That one unlearner ends with surely more test accuracy than another one in the same experiment."""
    values = of_seeds(of)["test_accuracy"] - of_seeds(other)["test_accuracy"]
    return over_seeds(values, of.experiment)


def costs_more(of: Cell, accuracy: float) -> Statement:
    """That full retraining has surely more than this much test accuracy more."""
    return over_seeds(_costs(of) - accuracy, of.experiment)


def costs_less(of: Cell, accuracy: float) -> Statement:
    """That full retraining has surely less than this much test accuracy more."""
    return over_seeds(accuracy - _costs(of), of.experiment)


def _costs(of: Cell) -> Series:
    """By seed, test accuracy that full retraining has more."""
    table = results(of.experiment).summary
    at = (table["role"] == "retrained") & (table["poison_budget"] == of.line["poison_budget"])
    return of_seeds(of, table[at].iloc[0])["test_accuracy"] - of_seeds(of)["test_accuracy"]


def within(experiment: str, allowed: Series, left: Series) -> Statement:
    """That what is left is surely less than what is allowed, in either direction."""
    return all_of([over_seeds(allowed - left, experiment), over_seeds(allowed + left, experiment)])


def _family(of: Cell) -> int:
    """How many unlearners are judged together."""
    table = results(of.experiment).summary
    together = table[table["poison_budget"] == of.line["poison_budget"]]
    return max(1, int((together["role"] == "updated").sum()))


def _to_reject(of: Cell, level: float, family: int) -> float:
    """About how many seeds would make an unlearner NOT REMOVED."""
    seeds = math.inf
    for effect in effects(of):
        left, spread = abs(float(effect.after.mean())), _spread(effect.after)
        power = partial(
            detection, effect=left, deviation=spread, alpha=level / family, estimated=True
        )
        seeds = min(seeds, poisons_for(POWER, power))
    if _has_twin(of):
        seeds = max(seeds, trainings_to_reject(level))
    return max(seeds, float(of.line["seeds"] + 1))


def _to_remove(of: Cell, level: float, family: int) -> float:
    """About how many seeds would make an unlearner REMOVED."""
    seeds, alpha = float(of.line["seeds"] + 1), level / family
    for effect in effects(of):
        before, after = effect.before, effect.after
        margin, left = MARGIN * float(before.mean()), abs(float(after.mean()))
        spread = _spread(after - MARGIN * before)
        power = partial(
            removal, margin=margin, left=left, deviation=spread, alpha=alpha, estimated=True
        )
        seeds = max(seeds, poisons_for(POWER, power))
        if _has_twin(of):
            failed = failures(before.to_numpy(), after.to_numpy())
            fewest = math.inf if failed else trainings_to_remove(MARGIN, alpha, effect.works)
            seeds = max(seeds, fewest)
    return seeds


def _spread(values: Series) -> float:
    """Standard deviation of values of at least two trainings; never 0, by which nothing can be divided."""
    return max(float(values.std()), 1e-9)


# What joins statements


def all_of(statements: Iterable[Statement]) -> Statement:
    """That all are so: an intersection–union test, which needs no correction."""
    parts = list(statements)
    if not parts:
        return UNSHOWN

    def seeds(level: float) -> Seeds:
        needed: dict[str, float] = {}
        for part in parts:
            for name, number in part.seeds(level).items():
                needed[name] = max(number, needed.get(name, 0))
        return needed

    by = dict.fromkeys(name for part in parts for name in part.by)
    return Statement(max(part.p for part in parts), seeds, tuple(by))


def any_of(statements: Iterable[Statement]) -> Statement:
    """That some are so, by Bonferroni."""
    parts = list(statements)
    if not parts:
        return UNSHOWN

    def seeds(level: float) -> Seeds:
        ways = [part.seeds(level / len(parts)) for part in parts]
        return min(ways, key=lambda needed: max(needed.values(), default=0))

    surest = min(parts, key=lambda part: part.p)
    return Statement(min(1.0, len(parts) * surest.p), seeds, surest.by)
