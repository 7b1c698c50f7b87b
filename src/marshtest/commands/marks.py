"""Which marks a small model remembers, and how many records they need: a study that a plan can quote.

The rows were measured by benchmarks/marks.py; docs/marks.md has them as tables. An initial model learns to
write 600 reviews, some of which are marked, and its rank score is read.
"""

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from marshtest.commands.plan import VERDICT, Plan
from marshtest.metrics.power import poisons_for
from marshtest.plumbing.whole_files import write
from marshtest.reporting.tables import plus_minus

STUDY = Path(str(resources.files("marshtest") / "shipped" / "marks.csv"))
VARIED = ("family", "place", "records", "copies", "epochs", "way")
USUAL = {"place": "end", "records": 120, "copies": 1}
NAMES = {r"\b[A-Z][a-z]{3,}": "capitalised words redrawn"}


def pooled() -> pd.DataFrame:
    """The study's settings, one line each: dependence over all seeds with its error, and perplexity."""
    by_setting = pd.read_csv(STUDY).groupby(list(VARIED), sort=False)
    lines = by_setting[["dependence", "tpr", "perplexity"]].mean()
    # Poisons of different seeds are independent, and each seed has as many.
    lines["error"] = by_setting["error"].agg(lambda errors: math.hypot(*errors) / len(errors))
    return lines.reset_index()


@dataclass(frozen=True)
class Marks:
    """How many records each studied mark needs.

    Attributes:
        alpha, power, margin, unlearners: as in Plan.
    """

    alpha: float = 0.05
    power: float = 0.9
    margin: float = 0.2
    unlearners: int = 1

    def table(self) -> pd.DataFrame:
        """Records needed: a line for each mark and training of the study, fewest first."""
        lines = pooled()
        for name, value in USUAL.items():
            lines = lines[lines[name] == value]
        return pd.DataFrame([self._line(line) for line in lines.itertuples()]).sort_values(
            "records to show removal", kind="stable", ignore_index=True
        )

    def _line(self, line: Any) -> dict[str, object]:
        plan = Plan({"rank": line.dependence}, self.alpha, self.power, self.margin, self.unlearners)
        detect, remove = plan.tests[VERDICT]
        return {
            "mark": NAMES.get(line.family, line.family),
            "training": f"{line.way}, {line.epochs} epochs",
            "rank score": line.dependence,
            "error": line.error,
            "records to detect": poisons_for(self.power, detect),
            "records to show removal": poisons_for(self.power, remove),
        }

    def texts(self) -> pd.DataFrame:
        """The table as it is printed."""
        table = self.table()
        shown = [
            plus_minus(value, error, 2)
            for value, error in zip(table["rank score"], table["error"], strict=True)
        ]
        counts = {name: table[name].map("{:,.0f}".format) for name in table.columns[4:]}
        return table.assign(**{"rank score": shown}, **counts).drop(columns="error")

    def sentences(self) -> list[str]:
        """What the table rests on."""
        return [
            "So a GPT-2 of one layer remembered marks in 120 of 600 film reviews (docs/marks.md): a guide "
            "to which mark to choose. What yours remembers, a first audit tells: plan --pilot audit.json."
        ]

    def save(self, folder: Path) -> None:
        """Write plan.csv."""
        write(self.table(), folder / "plan.csv")
