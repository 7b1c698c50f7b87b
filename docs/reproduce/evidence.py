"""Statements about measured rows with their p-values, and what joins them into a claim's answer.

A statement says that something is surely so, and its p-value is of the test that it is not. Statements
of what is left or lost are one-sided t tests over trainings (seeds); those of a verdict have the p-value
of the verdict. A statement that is not shown tells how many seeds of which experiments would show it, if
means and spreads stay what they are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from experiments import Cell, results
from numpy.typing import NDArray

from marshtest.hypotheses.statements import p_values
from marshtest.metrics.power import detection, poisons_for
from marshtest.results.summary import GROUP

LEVEL = 0.05
POWER = 0.9  # with which the stated numbers of seeds would settle a claim
PART = 0.8  # with more of an effect left nothing was helped: REMOVED's margin from the other end

Floats = NDArray[np.float64]
Seeds = Mapping[
    str, float
]  # by experiment, how many seeds would show a statement; infinite if none would


@dataclass(frozen=True)
class Statement:
    """Something about rows.

    Attributes:
        p: of the test that it is not so.
        seeds: tells, for a level, how many seeds would show it there; empty if these rows do.
    """

    p: float
    seeds: Callable[[float], Seeds] = field(default=lambda level: {})


UNSHOWN = Statement(1.0, lambda level: {"": math.inf})


def over_seeds(values: Floats, experiment: str) -> Statement:
    """That a mean over trainings is above 0, by a t test of `values`, one of each training."""
    defined = values[~np.isnan(values)]
    p = p_values(defined)[0]
    p = 1.0 if math.isnan(p) else p

    def seeds(level: float) -> Seeds:
        if p <= level:
            return {}
        return {experiment: _seeds(defined, level)}

    return Statement(p, seeds)


def _seeds(values: Floats, level: float) -> float:
    """How many trainings of this mean and spread a one-sided t test needs."""
    if len(values) < 2 or values.mean() <= 0:
        return math.inf
    spread = float(values.std(ddof=1))
    return float(
        poisons_for(
            POWER,
            # One tail of the two-sided test: the other is below 10⁻³ wherever the power is 0.9.
            lambda n: detection(
                n, float(values.mean()), deviation=spread, alpha=2 * level, estimated=True
            ),
        )
    )


# What one unlearner does in one experiment


def found(of: Cell, verdict: str) -> Statement:
    """That an unlearner is REMOVED, or that it is NOT REMOVED."""
    if of.verdict == verdict:
        return Statement(float(of.line["p_removed" if verdict == "REMOVED" else "p_not_removed"]))
    return Statement(1.0, lambda level: {of.experiment: _needed(of)})


def _needed(of: Cell) -> float:
    """How many seeds would turn INCONCLUSIVE into another verdict."""
    if pd.isna(of.line["needed"]):
        return math.inf
    unit = of.line["forget_size"] if results(of.experiment).unit == "poisons" else 1
    return float(math.ceil(of.line["needed"] / unit))


def helps(of: Cell) -> Statement:
    """That by some score less than PART of the initial effect is left."""
    return any_of(
        over_seeds(PART * before - after, of.experiment) for before, after in _effects(of)
    )


def does_not_help(of: Cell) -> Statement:
    """That there is an effect, and by every score more than PART of it is left."""
    return leaves_more(of, PART)


def leaves_more(of: Cell, part: float) -> Statement:
    """That there is an effect, and by every score more than `part` times it is left."""
    if not of.has_effect:
        return Statement(1.0, lambda level: {of.experiment: math.inf})
    return all_of(
        over_seeds(after - part * before, of.experiment) for before, after in _effects(of)
    )


def costs_more(of: Cell, accuracy: float) -> Statement:
    """That full retraining has more than this much test accuracy more."""
    return over_seeds(_costs(of) - accuracy, of.experiment)


def costs_less(of: Cell, accuracy: float) -> Statement:
    """That full retraining has less than this much test accuracy more."""
    return over_seeds(accuracy - _costs(of), of.experiment)


def of_seeds(of: Cell, line: pd.Series | None = None) -> pd.DataFrame:
    """The rows behind a line of the cell's experiment, its own by default, by seed."""
    told = of.line if line is None else line
    rows = results(of.experiment).chosen(told["poison_budget"])
    at = np.logical_and.reduce([rows[column] == told[column] for column in GROUP])
    return rows[at].set_index("seed").sort_index()


def _effects(of: Cell) -> Iterator[tuple[Floats, Floats]]:
    """[S] for each score the initial effect and what is left of it."""
    attack = results(of.experiment).recipe.attack
    before, after = of_seeds(of, of.initial), of_seeds(of)
    if attack.needs_twin:
        (column,) = attack.shown.reference_columns.values()
        sides = [(rows[column] - rows[f"twin_{column}"]) for rows in (before, after)]
        yield sides[0].to_numpy(), sides[1].to_numpy()
        return
    for name in of.names:
        yield before[f"{name}_dependence"].to_numpy(), after[f"{name}_dependence"].to_numpy()


def _costs(of: Cell) -> Floats:
    """[S] test accuracy that full retraining has more, within each seed."""
    table = results(of.experiment).summary
    at = (table["role"] == "retrained") & (table["poison_budget"] == of.line["poison_budget"])
    full = of_seeds(of, table[at].iloc[0])["test_accuracy"]
    return (full - of_seeds(of)["test_accuracy"]).to_numpy()


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

    return Statement(max(part.p for part in parts), seeds)


def any_of(statements: Iterable[Statement]) -> Statement:
    """That some are so, by Bonferroni."""
    parts = list(statements)
    if not parts:
        return UNSHOWN

    def seeds(level: float) -> Seeds:
        ways = [part.seeds(level / len(parts)) for part in parts]
        return min(ways, key=lambda needed: max(needed.values(), default=0))

    return Statement(min(1.0, len(parts) * min(part.p for part in parts)), seeds)
