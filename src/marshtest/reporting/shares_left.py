"""What is left of the poison, as a share of what the initial model shows."""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marshtest.metrics.trainings import TINY
from marshtest.results.summary import Results

PARTS = ("left", "left_low", "left_high")


def shares_left(results: Results, lines: pd.DataFrame) -> pd.DataFrame:
    """One line for each of `lines`: the share `left`, its interval's ends, and `by` which score.

    Of the scores that REMOVED rests on it is the one that shows most. The ends, `left_low` and `left_high`,
    are of the 95 % interval of trainings to come; where nothing tells it, of that given these models. All
    are nan where the initial model does not surely show the poison.

    Args:
        lines: of `Results.summary` or `Results.states`.
    """
    table = pd.DataFrame(math.nan, lines.index, [*PARTS]).assign(by="")
    for share in results.poison_budgets:
        here = lines["poison_budget"] == share
        names = results.telling(share) or list(results.scores_shown)
        parts = np.stack([_shares(results, share, lines[here], name) for name in names])
        size = np.abs(parts[:, :, 0])
        worst = np.where(np.isnan(size), -1.0, size).argmax(0)
        table.loc[here, [*PARTS]] = parts[worst, np.arange(len(worst))]
        table.loc[here, "by"] = [results.scores_shown[names[at]].title for at in worst]
    return table


def _shares(results: Results, share: float, lines: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """[lines, 3] of what is left by one score, and the ends of its interval."""
    of = results.summary
    initial = of[(of["poison_budget"] == share) & (of["role"] == "initial")]
    low, high = (lines[f"{name}_{end}"] for end in ("low", "high"))
    if f"{name}_trainings_low" in lines:
        low = lines[f"{name}_trainings_low"].fillna(low)
        high = lines[f"{name}_trainings_high"].fillna(high)
    effect = _effect(initial.iloc[0], name) if len(initial) else math.nan
    return np.stack([lines[f"{name}_dependence"], low, high], axis=1).astype(np.float64) / effect


def _effect(initial: pd.Series, name: str) -> float:
    """The initial model's dependence; nan where its interval holds 0: a share of noise says nothing."""
    effect, low, high = (float(initial[f"{name}_{part}"]) for part in ("dependence", "low", "high"))
    return math.nan if low <= 0 <= high or abs(effect) <= TINY else effect
