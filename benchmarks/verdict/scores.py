"""Truths as scores with a known law: what GUS and rank scores are where so much of the poison is left."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rule import FPR, MARGIN, Floats
from scipy.stats import norm

from marshtest.metrics.rank import rank_scores

Random = np.random.Generator


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


def ranked(draws: int) -> Draw:
    """Scores of a model that never saw the poison: GUS N(0, 1), ranks of random losses by marshtest."""

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
