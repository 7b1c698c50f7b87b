"""Whether a hypothesis holds, from the rows of its study alone."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marshtest.metrics.trainings import p_positive

ALPHA = 0.05  # level of the tests behind a statement
RANDOM = "random"  # the set of clean samples


def of_shift(rows: pd.DataFrame) -> str:
    """Say whether the first hypothesis holds for each set, taken out whole, by one-sided t tests.

    The tests are on log(shift / shift of as many random samples), L1, paired over seeds, at level 0.05.
    """
    # The first λ is the study's own; smaller ones have one seed, of which no test can be made. Ratios
    # are tested as logarithms, where twice as far and half as far are the same distance from 1.
    main = rows[rows["weight_decay"] == rows["weight_decay"].iloc[0]]
    shifts = main.pivot_table("l1", "seed", "set", sort=False)
    return " ".join(
        _verdict(str(name), np.log(shifts[name] / shifts[RANDOM]).dropna().to_numpy())
        for name in shifts
        if name != RANDOM
    )


def _verdict(name: str, logs: NDArray[np.float64]) -> str:
    """The sentence on one set, from the log ratio of each seed."""
    further, nearer = p_values(logs)
    return (
        f"Hypothesis 1 {answer(further, nearer)} here for {name}: taking it out shifts θ "
        f"{np.exp(logs.mean()):.2f} times as far as taking out as many random samples "
        f"({_told(further, 'it is no further')})."
    )


def of_orthogonality(rows: pd.DataFrame) -> str:
    """Say whether the second hypothesis holds, by one-sided paired t tests over seeds, both at level 0.05.

    The hypothesis holds if the poisons' cosine lies surely below that of random samples, and below that of
    descent from a random start; it does not hold if the poisons' cosine lies surely above one of the two.
    """
    sets = {name: lines.set_index("seed") for name, lines in rows.groupby("set")}
    poison, random = sets["poisons"], sets[RANDOM]
    cosine = poison["cosine_corrupted"]
    rivals = (random["cosine_corrupted"], poison["cosine_random"])
    tests = [p_values((rival - cosine).dropna().to_numpy()) for rival in rivals]
    below, above = max(p for p, _ in tests), min(p for _, p in tests)
    return (
        f"Hypothesis 2 {answer(below, above)} here: the cosine of clean gradients with the "
        f"way to be unlearned is {cosine.mean():.3f} for poisons, {rivals[0].mean():.3f} for random "
        f"samples that shift as far, {rivals[1].mean():.3f} from a random start "
        f"({_told(below, 'the first is no smaller')})."
    )


def _told(p: float, null: str) -> str:
    """A p-value in words."""
    return "no test, for want of a second seed" if math.isnan(p) else f"p {p:.2g} that {null}"


def answer(holds: float, fails: float) -> str:
    """'holds', 'does not hold' or 'is not settled', from two one-sided p-values.

    Args:
        holds: p-value of the test that the hypothesis does not hold.
        fails: p-value of the test that the hypothesis does not fail.
    """
    if holds < ALPHA:
        return "holds"
    return "does not hold" if fails < ALPHA else "is not settled"


def p_values(differences: NDArray[np.float64]) -> tuple[float, float]:
    """p-values of two t tests, that the mean is not above zero, and not below; nan for one value."""
    if len(differences) < 2:
        return math.nan, math.nan
    return p_positive(differences), p_positive(-differences)


STATEMENTS: dict[str, Callable[[pd.DataFrame], str]] = {
    "shift": of_shift,
    "orthogonality": of_orthogonality,
}
