"""How often the verdict is wrong, and how often it acquits who deserves it, by simulation.

    python benchmarks/verdict.py [--repetitions 2000] [--markdown FILE]

NumPy draws scores and effects from stated truths. The rule is written out a second time below, for many
repetitions at once and without marshtest; of every scenario a few repetitions are also handed to marshtest,
whose answers must be the same. A scenario whose pilot (not counted) shows an error rate near 5 % is
repeated four times as often.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom, chi2, nct, norm, t

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Random = np.random.Generator

ALPHA, MARGIN, FPR = 0.05, 0.2, 0.01
REMOVED, NOT_REMOVED, INCONCLUSIVE = "REMOVED", "NOT REMOVED", "INCONCLUSIVE"
PILOT, COMPARED = 400, 12  # repetitions
VALUES = 3_000_000  # scores drawn at a time


# The rule once more, of [R] repetitions at once: NumPy and SciPy alone


class Seen(NamedTuple):
    """What one score shows of a model, over all trainings: [R] each."""

    n: Floats
    left: Floats  # −mean
    error: Floats
    excess: Floats  # mean square − 1
    excess_error: Floats
    between: Floats  # of cells, round the mean
    cells: Floats
    tail: Floats
    hidden: Floats
    by_training: Floats  # [R, S] −mean of each


EFFECTS = [(score, effect) for score in (0, 1) for effect in ("mean", "spread", "tail")]


def seen(x: Floats, starts: NDArray[np.int64], hidden: Floats | float = 0.0) -> Seen:
    """Of scores [R, S, P], sorted by class; `starts` are the classes' first poisons."""
    there = ~np.isnan(x)
    y = np.where(there, x, 0.0)
    counts = np.add.reduceat(there, starts, axis=2, dtype=np.float64)
    sums = np.add.reduceat(y, starts, axis=2)
    n, square = counts.sum((1, 2)), np.einsum("rsp,rsp->r", y, y)
    mean, second = sums.sum((1, 2)) / n, square / n
    y *= y
    fourth = np.einsum("rsp,rsp->r", y, y)
    with np.errstate(invalid="ignore", divide="ignore"):
        of_cells = np.where(counts > 0, sums**2 / counts, 0.0).sum((1, 2))
    return Seen(
        n=n,
        left=-mean,
        error=np.sqrt((square - n * mean**2) / (n - 1) / n),
        excess=second - 1,
        excess_error=np.sqrt((fourth - n * second**2) / (n - 1) / n),
        between=of_cells - n * mean**2,
        cells=(counts > 0).sum((1, 2)).astype(np.float64),
        tail=(x < norm.ppf(FPR)).sum((1, 2)).astype(np.float64),
        hidden=np.broadcast_to(hidden, n.shape),
        by_training=-sums.sum(2) / counts.sum(2),
    )


def effect_of(one: Seen, effect: str) -> Floats:
    if effect == "tail":
        return one.tail / one.n - FPR
    return one.left if effect == "mean" else one.excess


def error_of(one: Seen, effect: str) -> Floats:
    if effect == "tail":
        share = one.tail / one.n
        return np.sqrt(share * (1 - share) / one.n)
    return one.error if effect == "mean" else one.excess_error


def exact_tests(one: Seen) -> dict[str, Floats]:
    """p-values of independence by one score; 2 stands for "cannot be asked"."""
    squares, free = one.error**2 * one.n * (one.n - 1), one.n - 1
    sides = np.minimum(chi2.cdf(squares, free), chi2.sf(squares, free))
    classes = chi2.sf(one.between, np.maximum(one.cells - 1, 1))
    return {
        "mean": 2 * norm.sf(np.abs(one.left) * np.sqrt(one.n)),
        "spread": np.minimum(1, 2 * sides),
        "classes": np.where(one.cells > 1, classes, 2.0),
        "tail": binom.sf(one.tail - 1, one.n, FPR),
    }


def bonferroni(p: Floats) -> Floats:
    """Over the first axis; nan and 2 are not asked."""
    asked = p <= 1
    smallest = np.where(asked, p, 2.0).min(0)
    return np.where(asked.any(0), np.minimum(1, asked.sum(0) * smallest), 1.0)


def holm(p: Floats) -> Floats:
    """[F, R] adjusted over the family."""
    order = p.argsort(0, kind="stable")
    steps = np.arange(len(p), 0, -1)[:, None]
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, 0) * steps, 0)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1), 0)
    return adjusted


def power_of_mean(
    allowed: Floats, scale: Floats, level: Floats | float, free: int | None
) -> Floats:
    """That a mean of 0 is shown to be within ± allowed: two one-sided tests, normal or Student's."""
    if free is None:
        return np.maximum(0, 1 - 2 * norm.cdf(norm.isf(level) - allowed * scale))
    missed = np.nan_to_num(nct.cdf(t.isf(level, free), free, allowed * scale))
    return np.maximum(0, 1 - 2 * missed)


def rests(initial: Sequence[Seen], family: int) -> Bools:
    """[R, 6] which of EFFECTS a verdict rests on: from the initial model alone."""
    trainings = initial[0].by_training.shape[1]
    powers, there = [], []
    for score, effect in EFFECTS:
        one = initial[score]
        allowed, root = MARGIN * effect_of(one, effect), np.sqrt(one.n)
        share = np.clip(FPR + allowed, 0, 1)
        deviation = {"mean": 1.0, "spread": np.sqrt(2), "tail": np.sqrt(share * (1 - share))}[
            effect
        ]
        with np.errstate(divide="ignore"):
            own_and_initial = np.hypot(1, MARGIN * error_of(one, effect) * root / deviation)
        level = norm.sf(norm.isf(ALPHA / family) * own_and_initial)
        there.append(allowed > 0)
        if effect == "tail":
            most = binom.ppf(level, one.n, share)
            most = most - (binom.cdf(most, one.n, share) > level)
            powers.append(binom.cdf(most, one.n, FPR))
        elif effect == "spread":
            powers.append(power_of_mean(allowed, root / np.sqrt(2), level, None))
        else:
            power = power_of_mean(allowed, root, level, None)
            if trainings >= 3:
                power = power + power_of_mean(allowed, root, ALPHA, trainings - 1) - 1
            powers.append(np.maximum(0, power))
    power, can = np.stack(powers, 1), np.stack(there, 1)
    of_means = np.array([effect == "mean" for _, effect in EFFECTS])
    first = np.where(can & of_means, power, -1.0).argmax(1)
    rows = np.arange(len(power))
    any_mean = (can & of_means).any(1)
    others = np.where(can, power, -1.0)
    others[rows, first] = -1.0
    order = (-others).argsort(1, kind="stable")
    ranked = np.take_along_axis(others, order, 1)
    missed = (1 - power[rows, first])[:, None] + np.cumsum(1 - ranked, 1)
    kept = np.zeros_like(can)
    np.put_along_axis(kept, order, (ranked >= 0) & (missed <= 1 - 0.9 - ALPHA), 1)
    kept[rows, first] = True
    return kept & any_mean[:, None]


def p_left(initial: Seen, one: Seen, effect: str) -> Floats:
    """For "more than the margin is left"; the initial effect's own error is added."""
    allowed = np.maximum(0, MARGIN - one.hidden) * effect_of(initial, effect)
    other = MARGIN * error_of(initial, effect)
    if effect == "tail":
        share = np.clip(FPR + allowed, 0, 1 - 1e-12)
        own = np.sqrt(share * (1 - share) / one.n)
        p = norm.sf(norm.isf(binom.cdf(one.tail, one.n, share)) * own / np.hypot(own, other))
    else:
        room = allowed - np.abs(effect_of(one, effect))
        p = t.sf(room / np.hypot(error_of(one, effect), other), one.n - 1)
    return np.where(allowed > 0, p, 1.0)


def p_above(values: Floats) -> Floats:
    """One-sided t test of a positive mean over the last axis."""
    n = values.shape[-1]
    spread = values.std(-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = t.sf(values.mean(-1) / (spread / np.sqrt(n)), n - 1)
    return np.where(spread > 1e-12, p, np.where(values[..., 0] > 1e-12, 0.5**n, 1.0))


def answers(initial: Sequence[Seen], family: Sequence[Sequence[Seen]]) -> NDArray[np.str_]:
    """[F, R] of models that GUS and rank score see."""
    on = rests(initial, len(family))
    shown = bonferroni(np.stack([p for s in initial for p in exact_tests(s).values()])) <= ALPHA
    tests = [[exact_tests(score) for score in one] for one in family]
    rejected = holm(
        np.stack([bonferroni(np.stack([p for s in one for p in s.values()])) for one in tests])
    )
    removed, fine = [], []
    for one, of_one in zip(family, tests, strict=True):
        p = np.stack([p_left(initial[s], one[s], effect) for s, effect in EFFECTS], 1)
        removed.append(np.where(on.any(1), np.where(on, p, 0.0).max(1), 1.0))
        blocking, over = [], np.zeros(len(on))
        for place, (score, effect) in enumerate(EFFECTS):
            ask = effect == "spread"  # in any case; mean and tail where nothing rests on them
            blocking.append(np.where(ask | ~on[:, place], of_one[score][effect], 2.0))
            if effect == "mean" and one[score].by_training.shape[1] >= 3:
                room = np.maximum(0, MARGIN - one[score].hidden)[:, None]
                room = room * initial[score].by_training
                d = one[score].by_training
                worst = np.maximum(p_above(room - d), p_above(room + d))
                over = np.maximum(over, np.where(on[:, place], worst, 0.0))
        blocking += [score["classes"] for score in of_one]
        told = np.all([score.hidden < MARGIN for score in one], 0)
        fine.append((bonferroni(np.stack(blocking)) > ALPHA) & (over <= ALPHA) & told)
    acquitted = (holm(np.stack(removed)) <= ALPHA) & np.stack(fine) & shown
    return np.where(acquitted, REMOVED, np.where(rejected <= ALPHA, NOT_REMOVED, INCONCLUSIVE))


def sign_patterns(trainings: int) -> Floats:
    """All, of up to 14 trainings; else the very random ones of marshtest, so that answers compare."""
    if trainings > 14:
        flips = np.random.default_rng(0).choice([-1.0, 1.0], (20_001, trainings))
        flips[0] = 1
        return flips
    return np.stack(np.meshgrid(*[[1.0, -1.0]] * trainings, indexing="ij"), -1).reshape(
        -1, trainings
    )


def p_flipped(d: Floats) -> Floats:
    """[F, R] step-down p-values of [F, R, S]: every sign pattern on all of a family together."""
    size = np.sqrt((d**2).sum(2, keepdims=True))
    d = d / np.where(size > 1e-12, size, np.inf)
    patterns = sign_patterns(d.shape[2])
    found = np.abs(d.sum(2))
    p = np.empty_like(found)
    for r in range(d.shape[1]):
        order = np.argsort(-found[:, r], kind="stable")  # the largest statistic first
        flipped = np.abs(patterns @ d[order, r].T)  # [B, F]
        largest = np.maximum.accumulate(flipped[:, ::-1], 1)[:, ::-1]  # of it and all smaller ones
        share = (largest >= found[order, r] - 1e-9).mean(0)
        p[order, r] = np.maximum.accumulate(share)
    return p


def paired_answers(d0: Floats, d: Floats) -> NDArray[np.str_]:
    """[F, R] of effects [R, S] before and [F, R, S] after, poisoned arm less clean twin."""
    trainings, half = d0.shape[1], d0.mean(1) / 2
    works = (d0 > half[:, None]).mean(1)
    p_removed = np.stack(
        [
            np.maximum.reduce(
                [
                    p_above(MARGIN * d0 - one),
                    p_above(MARGIN * d0 + one),
                    np.where(
                        half > 0,
                        binom.cdf((np.abs(one) >= half[:, None]).sum(1), trainings, MARGIN * works),
                        1.0,
                    ),
                ]
            )
            for one in d
        ]
    )
    removed = holm(p_removed) <= ALPHA
    asked = removed.any(0) & (half > 0)  # whether the poison shows matters there only
    shown = np.zeros(len(d0), dtype=bool)
    if asked.any():
        shown[asked] = p_flipped(d0[None, asked])[0] <= ALPHA
    removed &= shown
    rejected = p_flipped(d) <= ALPHA
    return np.where(removed, REMOVED, np.where(rejected, NOT_REMOVED, INCONCLUSIVE))


# marshtest's own answers


def marshtest_answers(
    initial: Sequence[Floats],
    family: Sequence[Sequence[Floats]],
    labels: NDArray[np.int64],
    ties: Sequence[Floats],
) -> list[str]:
    """Of one repetition: scores [S, P] by name, of the initial model and of each unlearner."""
    from marshtest.metrics.dependence import dependence
    from marshtest.metrics.verdict import Evidence, rests_on, verdicts

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
    from marshtest.metrics.trainings import Difference
    from marshtest.metrics.verdict import paired_verdicts

    family = [Difference(one) for one in d]
    return [v.answer for v in paired_verdicts(Difference(d0), family, alpha=ALPHA, margin=MARGIN)]


# Truths: scores with a known law


@dataclass(frozen=True)
class Size:
    name: str
    trainings: int
    poisons: int
    gus: float  # mean of the memorised, as dependence
    rank: float
    variance: float  # of their rank scores
    classes: int = 10

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.sort(np.arange(self.poisons) % self.classes)

    @property
    def starts(self) -> NDArray[np.int64]:
        return np.searchsorted(self.labels, np.unique(self.labels))

    @property
    def shape(self) -> tuple[int, int]:
        return self.trainings, self.poisons

    def __str__(self) -> str:
        return f"{self.name}, {self.trainings} × {self.poisons:,}"


DIGITS = Size("digits-gaussian", 10, 420, 0.368, 1.32, 0.27)
SMALL = Size("cifar10-small-gaussian", 3, 200, 1.0, 1.6, 0.5)
KIT_150 = Size("one model", 1, 150, 1.0, 1.6, 0.5)
KIT_600 = Size("one model", 1, 600, 1.0, 1.6, 0.5)
STRONG = Size("one model, known by heart", 1, 150, 5.0, 2.8, 0.03)
FULL = Size("CIFAR-10 full", 1, 750, 0.195, 0.869, 0.72)
SIZES = (DIGITS, SMALL, KIT_600, KIT_150, FULL)

Pair = tuple[Floats, Floats]  # GUS and rank scores [R, S, P]
Draw = Callable[[Random, Size, Pair], Pair]


def clean(rng: Random, shape: tuple[int, ...]) -> Pair:
    return rng.standard_normal(shape), rng.standard_normal(shape)


def memorised(rng: Random, size: Size, shape: tuple[int, ...]) -> Pair:
    gus, rank = clean(rng, shape)
    rank *= np.sqrt(size.variance)
    gus -= size.gus
    rank -= size.rank
    return gus, rank


def shifted(by: Callable[[Size], Floats | float], *, scores: str = "both") -> Draw:
    """Dependence `by` rank units (shape [S, P] or less), GUS in proportion; variance 1."""

    def draw(rng: Random, size: Size, before: Pair) -> Pair:
        gus, rank = clean(rng, before[0].shape)
        units = np.asarray(by(size))
        if scores != "rank":
            gus -= units * size.gus / size.rank
        if scores != "gus":
            rank -= units
        return gus, rank

    return draw


def kept(share: float, *, pushed: bool = False, to: float = 0.0, scores: str = "both") -> Draw:
    """Each poison keeps its score with chance `share` (or one of mean `to`); the others are clean, or
    pushed away so that the mean is 0."""  # fmt: skip

    def draw(rng: Random, size: Size, before: Pair) -> Pair:
        fresh, stay = clean(rng, before[0].shape), rng.random(before[0].shape) < share
        found = []
        for x, old, name, unit in zip(
            fresh, before, ("gus", "rank"), (size.gus, size.rank), strict=True
        ):
            strength = to * unit / size.rank - unit if to else 0.0
            if scores in ("both", name):
                away = share * (unit + strength) / (1 - share) if pushed else 0.0
                x += away
                np.copyto(x, old - strength, where=stay)
            found.append(x)
        return found[0], found[1]

    return draw


def one_class(rng: Random, size: Size, before: Pair) -> Pair:
    fresh = clean(rng, before[0].shape)
    for x, old in zip(fresh, before, strict=True):
        x[..., size.labels < size.classes // 5] = old[..., size.labels < size.classes // 5]
    return fresh


def single_class(rng: Random, size: Size, before: Pair) -> Pair:
    fresh = clean(rng, before[0].shape)
    for x, old in zip(fresh, before, strict=True):
        x[..., size.labels == 0] = old[..., size.labels == 0]
    return fresh


def flipped(rng: Random, size: Size, before: Pair) -> Pair:
    return -before[0], -before[1]


def mirrored(rng: Random, size: Size, before: Pair) -> Pair:
    sign = np.where(rng.random(before[0].shape) < 0.5, 1.0, -1.0)
    return before[0] * sign, before[1] * sign


def by_training(share: float, mean: float, *, fixed: bool) -> Draw:
    """In a share of the trainings the poison is left, in the others not; `mean` of the effect in all."""

    def draw(rng: Random, size: Size, before: Pair) -> Pair:
        gus, rank = clean(rng, before[0].shape)
        chance = rng.random((len(gus), size.trainings))
        hit = chance.argsort(1) < round(share * size.trainings) if fixed else chance < share
        level = mean / (round(share * size.trainings) / size.trainings if fixed else share)
        return gus - (hit * level * size.gus)[..., None], rank - (hit * level * size.rank)[
            ..., None
        ]

    return draw


def widened(rng: Random, size: Size, before: Pair) -> Pair:
    """No mean is left, but a fifth of the mean square's excess."""
    gus, rank = clean(rng, before[0].shape)
    excess = size.rank**2 + size.variance - 1
    return gus * np.sqrt(1 + MARGIN * size.gus**2), rank * np.sqrt(1 + MARGIN * excess)


def tail_alone(share: float) -> Draw:
    """Beyond the rank score's threshold lies `share` of the initial excess; mean 0 and variance 1."""

    def draw(rng: Random, size: Size, before: Pair) -> Pair:
        gus, rank = clean(rng, before[0].shape)
        threshold = norm.ppf(FPR)
        excess = share * (norm.cdf((threshold + size.rank) / np.sqrt(size.variance)) - FPR)
        # a part lies just beyond; what the mean and variance gain by it the others lose
        more = excess / (1 - FPR)
        for _ in range(20):
            at = threshold - 0.05
            mean = -more * at / (1 - more)
            spread = np.sqrt((1 - more * at**2) / (1 - more) - mean**2)
            beyond = norm.cdf((threshold - mean) / spread)
            more = (FPR + excess - beyond) / (1 - beyond)
        beyond = rng.random(rank.shape) < more
        return gus, np.where(beyond, at, mean + spread * rank)

    return draw


def against(correlation: float, scores: str = "both") -> Draw:
    """The margin is left, and scores lie against the initial model's, poison by poison."""

    def draw(rng: Random, size: Size, before: Pair) -> Pair:
        gus, rank = clean(rng, before[0].shape)
        rest = np.sqrt(1 - correlation**2)
        if scores != "rank":
            gus = rest * gus + correlation * (before[0] + size.gus) - MARGIN * size.gus
        if scores != "gus":
            old = (before[1] + size.rank) / np.sqrt(size.variance)
            rank = rest * rank + correlation * old - MARGIN * size.rank
        return gus, rank

    return draw


def hidden_part(share: float, of_kept: float) -> Draw:
    """A share of the poisons is kept, and of these a part hidden: gradient gone, losses tied."""

    def draw(rng: Random, size: Size, before: Pair) -> Pair:
        gus, rank = kept(share)(rng, size, before)
        # the kept ones are those of the initial model
        hide = (gus == before[0]) & (rng.random(gus.shape) < of_kept)
        fresh = rng.standard_normal(gus.shape)
        return np.where(hide, np.nan, gus), np.where(hide, fresh, rank)

    return draw


def retrained(rng: Random, size: Size, before: Pair) -> Pair:
    return clean(rng, before[0].shape)


def halves(count: int) -> Floats:
    return np.where(np.arange(count) < count // 2, 1.0, -1.0)


def classes_apart(by: float) -> Draw:
    return shifted(lambda size: by * np.where(size.labels < size.classes // 2, 1.0, -1.0))


def trainings_apart(by: float) -> Draw:
    def units(size: Size) -> Floats:
        signs = halves(size.trainings)
        return by * size.rank * (signs - signs.mean())[:, None]

    return shifted(units)


# Truths: effects in pairs


def outcome(rng: Random, hit: Bools) -> Floats:
    """A probability, nearly 1 where the attack hits and nearly 0 where not."""
    return np.where(hit, rng.uniform(0.7, 1, hit.shape), 10 ** rng.uniform(-6, -2, hit.shape))


PairedDraw = Callable[[Random, int, int], tuple[Floats, Floats]]  # R, S → [R, S] and [F, R, S]


def attacked(rng: Random, works: float, shape: tuple[int, int]) -> tuple[Bools, Floats, Floats]:
    hit, base = rng.random(shape) < works, outcome(rng, np.zeros(shape, bool))
    return hit, base, outcome(rng, hit) - base


def fails_in(works: float, share: float, family: int = 1, *, sides: bool = False) -> PairedDraw:
    """Where the attack works the unlearner fails with chance `share`; `sides`: either way, at random."""

    def draw(rng: Random, repetitions: int, trainings: int) -> tuple[Floats, Floats]:
        hit, base, d0 = attacked(rng, works, (repetitions, trainings))
        again = rng.random((family, *hit.shape)) < share
        d = outcome(rng, hit & again) - base
        if sides:
            d = d * np.where(rng.random(d.shape) < 0.5, 1.0, -1.0)
        return d0, d

    return draw


def partly(share: float, level: float) -> PairedDraw:
    """In a share of the trainings `level` of the effect is left."""

    def draw(rng: Random, repetitions: int, trainings: int) -> tuple[Floats, Floats]:
        _, base, d0 = attacked(rng, 1.0, (repetitions, trainings))
        left = rng.random(d0.shape) < share
        rest = outcome(rng, np.zeros(d0.shape, bool)) - base
        return d0, (np.where(left, level * d0, 0.0) + rest)[None]

    return draw


def noisy(rng: Random, repetitions: int, trainings: int) -> tuple[Floats, Floats]:
    d0 = 0.40 + 0.45 * rng.standard_normal((repetitions, trainings))
    return d0, 0.08 + 0.02 * rng.standard_normal((1, repetitions, trainings))


def margin_each(sign: float = 1.0, share: float = MARGIN) -> PairedDraw:
    def draw(rng: Random, repetitions: int, trainings: int) -> tuple[Floats, Floats]:
        _, _, d0 = attacked(rng, 1.0, (repetitions, trainings))
        return d0, (sign * share * d0 + 0.02 * rng.standard_normal(d0.shape))[None]

    return draw


def whole(rng: Random, repetitions: int, trainings: int) -> tuple[Floats, Floats]:
    """Half of the trainings keep all, half are turned round."""
    _, _, d0 = attacked(rng, 1.0, (repetitions, trainings))
    return d0, (d0 * halves(trainings))[None]


def turned(rng: Random, repetitions: int, trainings: int) -> tuple[Floats, Floats]:
    _, _, d0 = attacked(rng, 1.0, (repetitions, trainings))
    return d0, -d0[None]


def gone(works: float, family: int = 1) -> PairedDraw:
    """Truly removed, by the first; the others of the family keep all."""

    def draw(rng: Random, repetitions: int, trainings: int) -> tuple[Floats, Floats]:
        hit, base, d0 = attacked(rng, works, (repetitions, trainings))
        rest = outcome(rng, np.zeros(hit.shape, bool)) - base
        others = [outcome(rng, hit) - base for _ in range(family - 1)]
        return d0, np.stack([rest, *others])

    return draw


def broken(chance: float, family: int = 1) -> PairedDraw:
    """No poison is left: in each arm the outcome is 0 or 1 at random. Members share half of the draws."""

    def draw(rng: Random, repetitions: int, trainings: int) -> tuple[Floats, Floats]:
        shape = (family, repetitions, trainings)
        common = [rng.random(shape[1:]) < chance for _ in range(2)]
        own = [np.where(rng.random(shape) < 0.5, c, rng.random(shape) < chance) for c in common]
        d = outcome(rng, own[0]) - outcome(rng, own[1])
        return np.zeros(shape[1:]), d

    return draw


def faint(family: int = 1) -> PairedDraw:
    def draw(rng: Random, repetitions: int, trainings: int) -> tuple[Floats, Floats]:
        shape = (family, repetitions, trainings)
        d = 0.01 * (rng.standard_normal(shape) + rng.standard_normal(shape[1:]))
        return np.zeros(shape[1:]), d

    return draw


# Scenarios


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
        self._count(pilot, np.random.default_rng([seed, 0]), PILOT, 0)
        near = self.promised.startswith("≤") and 0.025 < pilot.share < 0.2
        self._count(
            tally, np.random.default_rng([seed, 1]), repetitions * (4 if near else 1), COMPARED
        )
        return tally

    def _count(self, tally: Tally, rng: Random, repetitions: int, compare: int) -> None:
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


ERROR, GAIN = "≤ 5 %", "≥ 90 %"


def cheats() -> list[Scenario]:
    """Truths in which the poison is left."""
    everywhere: list[tuple[str, Draw]] = [
        ("a fifth left of each mean", shifted(lambda size: MARGIN * size.rank)),
        ("a fifth left of GUS alone", shifted(lambda size: MARGIN * size.rank, scores="gus")),
        ("a fifth left of the rank score alone", shifted(lambda size: MARGIN * size.rank, scores="rank")),
        ("a fifth left of each, turned round", shifted(lambda size: -MARGIN * size.rank)),
        ("a fifth left of the mean square, no mean", widened),
        ("a fifth left of the rank score's tail alone", tail_alone(MARGIN)),
        ("a fifth left of each, against the initial scores (correlation −0.3)", against(-0.3)),
        ("the same, of GUS alone, correlation −1", against(-1.0, "gus")),
        ("the same, of the rank score alone, correlation −1", against(-1.0, "rank")),
        ("20 % of the poisons kept whole", kept(0.2)),
        ("25 % kept whole", kept(0.25)),
        ("20 % kept, the rest pushed away", kept(0.2, pushed=True)),
        ("10 % kept at 1.9, the rest pushed away", kept(0.1, to=1.9, pushed=True)),
        ("half kept, half mirrored", mirrored),
        ("3 % kept at 2.5", kept(0.03, to=2.5)),
        ("two classes of ten kept whole", one_class),
        ("one class of ten kept whole", single_class),
        ("classes ± 0.25", classes_apart(0.25)),
        ("classes ± 0.5", classes_apart(0.5)),
        ("sign turned round", flipped),
        ("GUS kept, rank score clean", kept(1.0, scores="gus")),
        ("rank score kept, GUS clean", kept(1.0, scores="rank")),
        ("30 % kept, half of these hidden", hidden_part(0.3, 0.5)),
        ("20 % kept and hidden", hidden_part(0.2, 1.0)),
    ]  # fmt: skip
    found = [
        Scenario(name, str(size), REMOVED, promise(name, size), (size, [draw]))
        for size in (*SIZES, STRONG)
        for name, draw in everywhere
        if size is not STRONG or "tail" not in name  # no such scores there
    ]
    for size in (DIGITS, SMALL):
        for name, draw in [
            ("trainings ± D", trainings_apart(1.0)),
            ("trainings ± D/2", trainings_apart(0.5)),
            ("a third of the trainings keeps 60 %: 20 %", by_training(1 / 3, 0.2, fixed=True)),
            ("a third of the trainings keeps 90 %: 30 %", by_training(1 / 3, 0.3, fixed=True)),
        ]:
            found.append(Scenario(name, str(size), REMOVED, ERROR, (size, [draw])))
        for mean in (0.2, 0.3):
            draw = by_training(1 / 3, mean, fixed=False)
            name = f"each training keeps {3 * mean:.0%} with chance 1/3: {mean:.0%}"
            found.append(
                Scenario(
                    f"{name}, of these trainings",
                    str(size), "REMOVED, a third or more left", ERROR, (size, [draw]), given=True,
                )
            )  # fmt: skip
            found.append(
                Scenario(f"{name}, of trainings to come", str(size), REMOVED, "—", (size, [draw]))
            )
        eight = [shifted(lambda size: MARGIN * size.rank, scores="rank")] * 8
        name = "eight, each leaves a fifth of the rank score"
        found.append(Scenario(name, str(size), "any REMOVED", ERROR, (size, eight)))
    return found


def unrested() -> list[Scenario]:
    """A fifth left of GUS alone, by eight: where no verdict rests on GUS it only blocks, at α for each."""
    eight = [shifted(lambda size: MARGIN * size.rank, scores="gus")] * 8
    name = "eight, each leaves a fifth of GUS"
    return [
        Scenario(name, str(size), "any REMOVED", "—", (size, eight)) for size in (DIGITS, SMALL)
    ]


def promise(name: str, size: Size) -> str:
    """What is promised; "—" where too few poisons cannot tell, a limit that the manual states."""
    weak = {
        # no verdict rests on GUS, or on the spread, there
        "a fifth left of GUS alone": (KIT_150, FULL),
        # scores against the initial ones: the stated level takes the two models' errors for independent
        "the same, of GUS alone, correlation −1": (*SIZES, STRONG),
        "the same, of the rank score alone, correlation −1": (*SIZES, STRONG),
        "a fifth left of the mean square, no mean": (KIT_150, FULL),
        "a fifth left of the rank score's tail alone": (DIGITS, KIT_150, FULL),
        "20 % kept, the rest pushed away": (KIT_150, FULL),
        "10 % kept at 1.9, the rest pushed away": (SMALL, KIT_600, KIT_150, FULL),
        "3 % kept at 2.5": (SMALL, KIT_600, KIT_150, FULL, STRONG),
        "one class of ten kept whole": (KIT_150, FULL, STRONG),
        "classes ± 0.25": (KIT_150, FULL, KIT_600, SMALL, STRONG),
        "classes ± 0.5": (KIT_150, STRONG),
    }
    return "—" if size in weak.get(name, ()) else ERROR


def independent() -> list[Scenario]:
    """Truths in which nothing is left, by scores."""
    found = []
    for poisons in (2, 5, 20, 100, 600, 4200):
        for draws in (1, 3, 19, 199):
            for family in (1, 8):
                if family == 8 and draws in (3, 19):
                    continue
                size = Size("null", 1, poisons, 0, 0, 1, classes=min(10, max(1, poisons // 2)))
                unlearners = [ranked(draws)] * family
                found.append(
                    Scenario(
                        f"independent, K = {draws}, family of {family}",
                        f"1 × {poisons:,}", "any NOT REMOVED", ERROR, (size, unlearners),
                        initial=retrained, answer=NOT_REMOVED,
                    )
                )  # fmt: skip
    for family in (1, 8):
        size = Size("null", 10, 42, 0, 0, 1)
        found.append(
            Scenario(
                f"independent, K = 19, family of {family}",
                "10 × 42", "any NOT REMOVED", ERROR, (size, [ranked(19)] * family),
                initial=retrained, answer=NOT_REMOVED,
            )
        )  # fmt: skip
    return found


def ranked(draws: int) -> Draw:
    """Scores of a model that never saw the poison: GUS N(0, 1), ranks of random losses by marshtest."""
    from marshtest.metrics.rank import rank_scores

    def draw(rng: Random, size: Size, before: Pair) -> Pair:
        shape = before[0].shape
        poisons = int(np.prod(shape))
        rank = np.empty(poisons)
        for start in range(0, poisons, at_once := max(1, 2_000_000 // draws)):
            count = min(at_once, poisons - start)
            if size.poisons * draws <= 20_000:  # losses, coarse enough to tie now and then
                losses = np.floor(50 * rng.standard_exponential((count, draws + 1)))
                scores, _ = rank_scores(losses[:, 0], losses[:, 1:], rng)
            else:  # the place among the K + 1 is as likely as any other: the same law, cheaper
                place = rng.integers(0, draws + 1, count)
                scores = norm.ppf((place + rng.random(count) + 2.0**-54) / (draws + 1))
            rank[start : start + count] = scores
        return rng.standard_normal(shape), rank.reshape(shape)

    return draw


def acquittals() -> list[Scenario]:
    """Truths in which nothing is left, and REMOVED is deserved: by scores, and in pairs."""

    def gets(name: str, size: Size, draws: Sequence[Draw], promised: str = GAIN) -> Scenario:
        return Scenario(name, str(size), REMOVED, promised, (size, draws), first_only=True)

    same: Draw = kept(1.0)
    found = [
        gets("retrained, alone", DIGITS, [retrained]),
        gets("retrained, beside seven that keep all", DIGITS, [retrained] + [same] * 7),
        gets("retrained, alone", SMALL, [retrained]),
        gets("retrained, beside seven that keep all", SMALL, [retrained] + [same] * 7),
        gets("retrained, alone", KIT_600, [retrained]),
        gets("retrained, alone", KIT_150, [retrained]),
        gets("retrained, alone", STRONG, [retrained]),
        gets("retrained, alone", FULL, [retrained]),
        gets("retrained, beside seven that keep all", FULL, [retrained] + [same] * 7, "—"),
    ]
    for works in (1.0, 0.95, 0.9):
        found += [
            Scenario(
                f"truly removed, attack works in {works:.0%}, alone",
                f"{trainings} trainings", REMOVED,
                GAIN if trainings > 16 or works >= 0.95 else "—",
                paired=(trainings, gone(works)), first_only=True,
            )
            for trainings in (16, 24)
        ]  # fmt: skip
        found += [
            Scenario(
                f"truly removed, attack works in {works:.0%}, beside seven that keep all",
                f"{trainings} trainings", REMOVED,
                GAIN if trainings >= 28 and works >= 0.95 else "—",
                paired=(trainings, gone(works, 8)), first_only=True,
            )
            for trainings in (24, 28, 32)
        ]  # fmt: skip
    return found


def paired() -> tuple[list[Scenario], list[Scenario]]:
    """In pairs: false REMOVED, and false NOT REMOVED."""
    cheating: list[tuple[str, PairedDraw, str]] = [
        (f"works in {works:.0%}, fails in {share:.0%} of these", fails_in(works, share), REMOVED)
        for works in (1.0, 0.8, 0.5)
        for share in (0.2, 0.25, 1 / 3)
    ]
    cheating += [
        ("works in 90 %, eight fail in 25 % of these", fails_in(0.9, 0.25, 8), "any REMOVED"),
        ("fails in 20 %, either way", fails_in(1.0, 0.2, sides=True), REMOVED),
        ("fails in 33 %, either way", fails_in(1.0, 1 / 3, sides=True), REMOVED),
        ("49 % left in 41 % of the trainings", partly(0.41, 0.49), REMOVED),
        ("40 % left in half of the trainings", partly(0.5, 0.4), REMOVED),
        ("noisy before (0.40 ± 0.45), 0.08 ± 0.02 left", noisy, REMOVED),
        ("a fifth left in each", margin_each(), REMOVED),
        ("a fifth left in each, turned round", margin_each(-1.0), REMOVED),
        ("sign turned round", turned, REMOVED),
        ("half of the trainings keep all, half are turned round", whole, REMOVED),
    ]
    wrong = [
        Scenario(name, f"{s} trainings", counted, ERROR, paired=(s, draw))
        for name, draw, counted in cheating
        for s in (4, 6, 8, 16, 24, 32)
    ]
    innocent: list[tuple[str, PairedDraw, int]] = [
        (f"outcomes 0 or 1, chance {chance:.0%}", broken(chance, family), family)
        for chance in (0.05, 0.2, 0.5)
        for family in (1, 8)
    ]
    innocent += [("small differences", faint(family), family) for family in (1, 8)]
    convicted = [
        Scenario(
            f"{name}, family of {family}", f"{s} trainings", "any NOT REMOVED", ERROR,
            paired=(s, draw), answer=NOT_REMOVED,
        )
        for name, draw, family in innocent
        for s in (2, 4, 6, 8, 16, 24, 32)
    ]  # fmt: skip
    return wrong, convicted


PAGE = """# Error rates of the verdict

How often each answer is false where the truth is known, by simulation, and how often a model that never
saw the poison is REMOVED. `python benchmarks/verdict.py --markdown docs/verdict-rates.md` writes this page.
A share is held if the lower end of its exact interval is at most what is promised and the upper end at most
6.5 %. A limit is promised by nobody: the poisons, or the trainings, are too few for a test to tell, or what
is left is within the margin. *A fifth* is the margin; sizes and initial effects are those of the recipes
named.
"""
HEAD = (
    "| scenario | size | repetitions | counted | share | 99 % interval | promised | held |\n"
    "| --- | --- | ---: | --- | ---: | --- | --- | --- |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Error rates and power of the verdict.")
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--markdown", help="file that gets the tables, too")
    parser.add_argument("--only", default="", help="scenarios whose name or size has this in it")
    options = parser.parse_args()
    began = time.perf_counter()
    cheating, convicted = paired()
    tables = {
        "False REMOVED, scores with a known law": cheats(),
        "False NOT REMOVED, scores with a known law": independent(),
        "False REMOVED, effects in pairs": cheating,
        "False NOT REMOVED, effects in pairs": convicted,
        "Power": acquittals(),
        "False REMOVED in a family by a score that it mostly does not rest on": unrested(),
    }
    text, tallies, seed = [], [], 0
    for title, scenarios in tables.items():
        rows = [title, "", HEAD]
        print("\n".join(["", *rows]), flush=True)
        for scenario in scenarios:
            seed += 1
            if options.only not in f"{scenario.name} | {scenario.size}":
                continue
            tallies.append(scenario.run(seed, options.repetitions))
            rows.append(tallies[-1].row)
            print(rows[-1], flush=True)
        text += [*rows, ""]
    broken_promises = [tally for tally in tallies if tally.verdict == "NO"]
    text.append(
        f"{len(tallies)} scenarios, {sum(tally.of for tally in tallies):,} repetitions. "
        f"marshtest answered {sum(tally.compared for tally in tallies):,} of them itself, "
        f"{sum(tally.disagreements for tally in tallies)} differently from the rule written out here. "
        f"{len(broken_promises)} promises broken. {time.perf_counter() - began:.0f} s."
    )
    print("\n" + text[-1])
    if options.markdown:
        Path(options.markdown).write_text("\n".join([PAGE, *text]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
