"""A scenario is drawn many times, and its wrong answers are counted; marshtest answers a few times, too."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pairs import PairedDraw
from rule import ALPHA, FPR, MARGIN, REMOVED, Bools, Floats, answers, paired_answers, seen
from scipy.stats import beta
from scores import Draw, Random, Size, clean, memorised

from marshtest.metrics.dependence import dependence
from marshtest.metrics.trainings import Difference
from marshtest.metrics.verdict import Evidence, paired_verdicts, rests_on, verdicts

PILOT, COMPARED = 400, 12  # repetitions
VALUES = 3_000_000  # scores drawn at a time


@dataclass
class Tally:
    """One row of a table."""

    scenario: str
    size: str
    counted: str
    promised: str
    hits: int = 0
    of: int = 0
    compared: int = 0
    disagreements: int = 0

    @property
    def share(self) -> float:
        return self.hits / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper and Pearson's, 99 %."""
        low = beta.ppf(0.005, self.hits, self.of - self.hits + 1) if self.hits else 0.0
        missed = self.of - self.hits
        high = beta.ppf(0.995, self.hits + 1, missed) if missed else 1.0
        return float(low), float(high)

    @property
    def verdict(self) -> str:
        """Whether the promise is kept."""
        low, high = self.interval
        if self.promised.startswith("≤"):
            return "yes" if low <= 0.05 and high <= 0.065 else "NO"
        if self.promised.startswith("≥"):
            return "yes" if self.share >= 0.9 else "NO"
        return "limit"

    @property
    def row(self) -> str:
        low, high = self.interval
        return (
            f"| {self.scenario} | {self.size} | {self.of:,} | {self.counted} | {self.share:.2%} "
            f"| {low:.2%} to {high:.2%} | {self.promised} | {self.verdict} |"
        )


@dataclass(frozen=True)
class Scenario:
    name: str
    size: str
    counted: str  # "REMOVED" or "NOT REMOVED", by whom in a family
    promised: str
    scores: tuple[Size, Sequence[Draw]] | None = None
    initial: Draw | None = None
    paired: tuple[int, PairedDraw] | None = None
    first_only: bool = False  # the family's first is counted, else any
    answer: str = REMOVED
    given: bool = False  # count it where what is left in these very trainings is beyond the margin
    values: int = field(default=0)

    def batch(
        self, rng: Random, repetitions: int, compare: int
    ) -> tuple[NDArray[np.str_], list[tuple[int, list[str]]], Bools]:
        """Answers [F, R], marshtest's of `compare` random repetitions, and which repetitions count."""
        picked = rng.permutation(repetitions)[:compare]
        everywhere = np.ones(repetitions, dtype=bool)
        if self.paired:
            trainings, draw_pairs = self.paired
            d0, d = draw_pairs(rng, repetitions, trainings)
            theirs = [(int(r), marshtest_paired(d0[r], d[:, r])) for r in picked]
            return paired_answers(d0, d), theirs, everywhere
        assert self.scores is not None
        size, draws = self.scores
        shape = (repetitions, *size.shape)
        before = self.initial(rng, size, clean(rng, shape)) if self.initial else None
        before = before or memorised(rng, size, shape)
        after = [draw(rng, size, before) for draw in draws]
        gone = [np.isnan(gus) for gus, _ in after]
        shares = [nans.mean((1, 2)) for nans in gone]
        starts = size.starts
        initial = [seen(x, starts) for x in before]
        family = [
            [seen(x, starts, share) for x in pair]
            for pair, share in zip(after, shares, strict=True)
        ]
        theirs = [
            (
                int(r),
                marshtest_answers(
                    [x[r] for x in before],
                    [[x[r] for x in pair] for pair in after],
                    size.labels,
                    [nans[r].astype(np.float64) for nans in gone],
                ),
            )
            for r in picked
        ]
        if self.given:
            everywhere = self._too_much(after[0][1], size)
        return answers(initial, family), theirs, everywhere

    @staticmethod
    def _too_much(rank: Floats, size: Size) -> Bools:
        """Where the truth over these trainings is beyond the margin; told from the trainings' means."""
        of_training = -rank.mean(2)
        truth = np.where(of_training > size.rank / 4, 1.0, 0.0)
        return truth.mean(1) * 0.6 >= MARGIN - 1e-9

    def run(self, seed: int, repetitions: int) -> Tally:
        tally = Tally(self.name, self.size, self.counted, self.promised)
        pilot = Tally("", "", "", "")
        self.count(pilot, np.random.default_rng([seed, 0]), PILOT, 0)
        near = self.promised.startswith("≤") and 0.025 < pilot.share < 0.2
        self.count(
            tally, np.random.default_rng([seed, 1]), repetitions * (4 if near else 1), COMPARED
        )
        return tally

    def count(self, tally: Tally, rng: Random, repetitions: int, compare: int) -> None:
        values = 4096
        if self.scores:
            values = self.scores[0].trainings * self.scores[0].poisons * (1 + len(self.scores[1]))
        at_once = max(1, min(repetitions, VALUES // values))
        while repetitions > 0:
            ours, theirs, counts = self.batch(rng, min(at_once, repetitions), compare)
            repetitions -= ours.shape[1]
            hits = ours == self.answer
            tally.hits += int(((hits[0] if self.first_only else hits.any(0)) & counts).sum())
            tally.of += ours.shape[1]
            for r, found in theirs:
                tally.compared += 1
                tally.disagreements += list(ours[:, r]) != found
            compare = 0


def marshtest_answers(
    initial: Sequence[Floats],
    family: Sequence[Sequence[Floats]],
    labels: NDArray[np.int64],
    ties: Sequence[Floats],
) -> list[str]:
    """Of one repetition: scores [S, P] by name, of the initial model and of each unlearner."""

    def evidence(scores: Sequence[Floats], tied: Floats | float) -> Evidence:
        gus, rank = scores
        return Evidence(
            {
                s: {
                    "gus": dependence(gus[s], labels, fpr=FPR),
                    "rank": dependence(
                        rank[s], labels, fpr=FPR, ties=tied if np.isscalar(tied) else tied[s]
                    ),
                }
                for s in range(len(gus))
            }
        )

    before = evidence(initial, 0.0)
    rest = rests_on(before, margin=MARGIN, alpha=ALPHA, family=len(family))
    after = [evidence(one, tied) for one, tied in zip(family, ties, strict=True)]
    found = verdicts(before, after, rests=rest, alpha=ALPHA, margin=MARGIN)
    return [verdict.answer for verdict in found]


def marshtest_paired(d0: Floats, d: Floats) -> list[str]:
    """Of one repetition: [S] before and [F, S] after."""
    family = [Difference(one) for one in d]
    return [v.answer for v in paired_verdicts(Difference(d0), family, alpha=ALPHA, margin=MARGIN)]
