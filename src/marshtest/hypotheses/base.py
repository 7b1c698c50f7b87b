"""What the hypotheses share."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_1samp
from torch import Tensor

Line = dict[str, float | str]
ALPHA = 0.05  # level of the tests behind a statement


def norms(vector: Tensor) -> dict[str, float]:
    """Two of them."""
    return {"l1": float(vector.norm(1)), "l2": float(vector.norm(2))}


def answer(holds: float, fails: float) -> str:
    """In words, from the p values of the tests that it does not hold, and that it does not fail."""
    if holds < ALPHA:
        return "holds"
    return "does not hold" if fails < ALPHA else "is not settled"


def p_values(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Of one-sided t tests that the mean is not above zero, and that it is not below; nan of one value."""
    if len(differences) < 2:
        return math.nan, math.nan
    above = float(ttest_1samp(differences, 0, alternative="greater").pvalue)
    return above, 1 - above
