"""How often labels alone acquit, at the number of poisons that `plan` names: python benchmarks/labels.py

A base's losses are normal over its noises, and lower by `rank` deviations at the noise that was trained on;
bases differ by SPREAD of these deviations, and a model trained anew moves each by another 0.3. Verdicts are
counted on a model anew, and on one that keeps a random fifth of the poisons whole: just the margin.

Counts go to docs/reproduce/labels/verdicts.csv, and from there into docs/mathematics.md.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from marshtest.commands.plan import DRAWS, SPREAD, plan
from marshtest.metrics.labels import LABEL, OF_AUDITS, label_dependence, label_scores
from marshtest.metrics.verdict import Evidence, rests_on, verdicts

ROWS = Path(__file__).parents[1] / "docs" / "reproduce" / "labels" / "verdicts.csv"
RANK, RIGHT = 1.0, (0.6, 0.8, 0.9)
MOVED = 0.3  # deviations that a training anew moves a base
MARGIN, ALPHA = 0.2, 0.05
Floats = NDArray[np.float64]


def shown(
    rng: np.random.Generator, place: Floats, shift: Floats | float, before: Floats | None = None
) -> tuple[Evidence, Floats]:
    """What labels show of bases at these places, whose losses at own noises are lower by `shift`."""
    right = rng.random((len(place), DRAWS + 1)) < ndtr(place)[:, None]
    right[:, 0] = rng.random(len(place)) < ndtr(place + shift)
    scores = label_scores(right)
    share = scores["label_share"]
    found = label_dependence(scores["label_right"], share, before)
    return Evidence({0: {LABEL: found}}, OF_AUDITS), share


def answers(
    poisons: int, rank: float, right: float, runs: int
) -> Iterator[tuple[str, str, float, Floats]]:
    """(verdict on a model anew, on one that keeps a fifth, D before, shares before) of each run."""
    rng = np.random.default_rng(1)
    for _ in range(runs):
        place = ndtri(right) * math.hypot(1, SPREAD) + SPREAD * rng.standard_normal(poisons)
        before, share = shown(rng, place, rank)
        rests = rests_on(before, margin=MARGIN, alpha=ALPHA)
        said = []
        for kept in (0.0, MARGIN):
            moved = place + MOVED * rng.standard_normal(poisons)
            shift = np.where(rng.permutation(poisons) < kept * poisons, rank, 0.0)
            after, _ = shown(rng, moved, shift, share)
            (verdict,) = verdicts(before, [after], rests=rests, alpha=ALPHA, margin=MARGIN)
            said.append(verdict.answer)
        yield said[0], said[1], before.pooled[LABEL].value, share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    rows = []
    for right in RIGHT:
        poisons = plan(rank=RANK, right=right).poisons  # type: ignore[union-attr]
        found = [*answers(poisons, RANK, right, options.runs)]
        anew = sum(clean == "REMOVED" for clean, *_ in found)
        fifth = sum(dirty == "REMOVED" for _, dirty, *_ in found)
        rows.append({"right": right, "poisons": poisons, "runs": options.runs})
        rows[-1] |= {"anew_removed": anew, "fifth_removed": fifth}
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(ROWS, index=False)


if __name__ == "__main__":
    main()
