"""After-care in rows: the rows of one state, and a model's verdict, which is that of its worst state."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from marshtest.experiment.cells import STATE
from marshtest.experiment.states import ITSELF
from marshtest.metrics.verdict import ANSWERS, Verdict

NOT_TOGETHER = "each state is REMOVED by itself, and not surely all of them together"


def in_state(table: pd.DataFrame, state: str) -> pd.DataFrame:
    """The lines of a table on models in a state; without a column for it, all are on models themselves."""
    if STATE not in table:
        return table if state == ITSELF else table.head(0)
    return table[table[STATE] == state]


def worst(verdicts: Mapping[str, Verdict], alpha: float) -> tuple[str, Verdict]:
    """The state that decides, and the verdict of the model.

    Of equally bad states the first decides. Estimates are those of the model itself; reasons and what would
    settle the verdict are those of the state that decides.

    Args:
        verdicts: by state, the model itself first.
        alpha: level of the verdict.
    """
    decides = min(verdicts, key=lambda state: ANSWERS.index(verdicts[state].answer))
    worst = verdicts[decides]
    together = max(verdict.p_together for verdict in verdicts.values())
    if worst.answer == "REMOVED" and together > alpha:
        worst = replace(worst, answer="INCONCLUSIVE", reasons=(NOT_TOGETHER,))
    mark = f"{decides}: " if decides else ""
    model = replace(
        verdicts[ITSELF],
        answer=worst.answer,
        p_removed=together,
        p_not_removed=min(verdict.p_not_removed for verdict in verdicts.values()),
        needed=worst.needed,
        reasons=tuple(f"{mark}{reason}" for reason in worst.reasons),
    )
    return decides, model
