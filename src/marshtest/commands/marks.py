"""Which marks a small model remembers: a study that a plan can quote.

The rows were measured by benchmarks/marks.py; docs/marks.md has them as tables. An initial model learns to
write 600 reviews, some of which are marked, and its rank score is read.
"""

import math
from importlib import resources
from pathlib import Path

import pandas as pd

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
