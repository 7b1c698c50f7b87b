"""Control questions for texts: is a language model behind the answers, and one as good as before?

Some records without a dose are asked as they are, and with the words of their text in random order. A
language model finds nearly all of the latter more surprising; a table, noise, or a model that was destroyed
does not. And a variant of each dosed record is asked twice, in other company.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom, norm

from marshtest.kit.controls import CHANCE, KEPT_AUC, SURELY, UNSTEADY, alike
from marshtest.kit.records.base import Floats

FEW = (
    10  # records from which on the order of words can tell anything: all of nine right has p 0.002
)
WORDS = 4  # a text of fewer words may be as likely in another order


@dataclass(frozen=True)
class TextControls:
    """A model's answers to the control questions."""

    share: float  # of the records, that are less surprising than their words in random order
    records: int  # of which that is known
    steady: bool  # whether questions asked twice were answered alike

    @classmethod
    def of(cls, plain: Floats, shuffled: Floats, first: Floats, again: Floats) -> "TextControls":
        """Statistics of the answers.

        Args:
            plain: [n] losses of records without a dose.
            shuffled: [n] losses with their words in random order; nan where that says nothing.
            first: [P] losses of one variant of each dosed record.
            again: [P] losses of the same, asked once more.
        """
        known = ~np.isnan(plain - shuffled)
        wins = (plain < shuffled)[known]
        return cls(float(wins.mean()) if len(wins) else np.nan, len(wins), alike(first, again))

    def figures(self) -> dict[str, float]:
        """The statistics, by name."""
        return {"word_order": self.share}

    def doubts(self) -> list[str]:
        """Reasons to doubt that a model is behind the answers, in words."""
        doubts = [] if self.steady else [UNSTEADY]
        hits = round(self.share * self.records) if self.records else 0
        if self.records >= FEW and binom.sf(hits - 1, self.records, 0.5) > CHANCE:
            doubts.append(
                f"words in random order are as likely as the texts (only {self.share:.0%} of "
                f"{self.records} texts are likelier, guessing 50%): destroyed, not trained, or no language "
                "model at all"
            )
        return doubts

    def unlike(self, before: Any) -> list[str]:
        """Reasons why a model cannot be an update or a retraining of the one before, in words."""
        if min(self.records, before.records) < FEW:
            return []
        slack = norm.isf(SURELY) * 0.5 / np.sqrt(self.records)
        if self.share - 0.5 >= KEPT_AUC * (before.share - 0.5) - slack:
            return []
        return [
            f"texts are told from their words in random order much worse than by the model before "
            f"({self.share:.0%} after {before.share:.0%}): asked otherwise, or destroyed"
        ]
