"""The line to beat: retraining in the budget, the tuned one where the rows have it, and who beats it.

Retraining never saw what is to be removed, so an unlearner is worth its trouble only if it ends above
retraining at the same poison and compute budget, or costs less. A line that nobody tuned is too low.

    d_s       accuracy of the unlearner − accuracy of the line, in training s
    beats     REMOVED, for no more compute, and d is surely above 0 *
    ties      REMOVED, and d is surely within ± SAME
    loses     NOT REMOVED, or d is surely below 0
    unclear   none of these

    * above −SAME for an unlearner that spends a tenth less than the line, or still less

Surely: by paired one-sided t tests over trainings to come, Holm-corrected over the unlearners at a poison
budget. An unlearner that gave no model in some training, or was tried in too few, makes no claim.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marshtest.metrics.trainings import p_positive
from marshtest.metrics.verdict import TRAININGS, holm

TUNED = "retrain-tuned"
RIVALS = (TUNED, "retrain")  # retraining in the budget, the best line first
LINE = "line"
SAME = 0.005  # accuracies that differ by no more count as the same: half a point
LESS = 0.1  # compute that differs by no more than this share of the line's counts as the same


def line_to_beat(lines: pd.DataFrame) -> "pd.Series | None":
    """The summary's line that is to be beaten; None without retraining in the budget.

    Of several entries of tuned retraining it is the first one, and of a search the trial that it chose.

    Args:
        lines: of a summary, at one poison budget and one compute budget.
    """
    updated = lines[lines["role"] == "updated"]
    for name in RIVALS:
        retrained = updated[updated["unlearner"] == name]
        if len(retrained):
            return retrained.iloc[0]
    return None


def standings(
    table: pd.DataFrame, accuracies: Sequence["pd.Series[float]"], alpha: float
) -> list[str]:
    """How each line of a summary stands to the line to beat, in a word; "" for what is not compared.

    Args:
        table: the summary at one poison budget, with verdicts, numbered from 0.
        accuracies: on the test set by seed, of each line of the table.
        alpha: level of the tests.
    """
    words = [""] * len(table)
    lines: dict[int, int] = {}  # by place of an unlearner, that of its line to beat
    for _, own in table[table["role"] == "updated"].groupby("budget", sort=False):
        line = line_to_beat(own)
        if line is not None:
            lines |= dict.fromkeys(own.index, int(str(line.name)))
            words[int(str(line.name))] = LINE
    contenders = [place for place, line in lines.items() if place != line]
    pairs = [_differences(accuracies[place], accuracies[lines[place]]) for place in contenders]
    spent = [table["spent"][place] / table["spent"][lines[place]] for place in contenders]
    slack = [SAME if share <= 1 - LESS else 0.0 for share in spent]
    above = holm([p_positive(d + more) for d, more in zip(pairs, slack, strict=True)])
    below = holm([p_positive(-d) for d in pairs])
    within = holm([max(p_positive(SAME - d), p_positive(SAME + d)) for d in pairs])
    for place, share, *p in zip(contenders, spent, above, below, within, strict=True):
        higher, lower, same = (value <= alpha for value in p)
        removed = table["verdict"][place] == "REMOVED"
        if table["verdict"][place] == "NOT REMOVED" or lower:
            words[place] = "loses"
        elif removed and higher and share <= 1 + LESS:
            words[place] = "beats"
        else:
            words[place] = "ties" if removed and same else "unclear"
    return words


def has_tuned(summary: pd.DataFrame) -> bool:
    """Whether tuned retraining is a line to beat: against retraining that nobody tuned nothing is said."""
    return bool(((summary["standing"] == LINE) & (summary["unlearner"] == TUNED)).any())


def _differences(one: "pd.Series[float]", other: "pd.Series[float]") -> NDArray[np.float64]:
    """Accuracy of the one less the other's in each seed of both; empty where that can show nothing."""
    own, line = one.align(other, join="inner")
    values: NDArray[np.float64] = (own - line).to_numpy(dtype=np.float64)
    return values if len(values) >= TRAININGS and not np.isnan(values).any() else values[:0]
