"""Truths as effects in pairs, poisoned arm less clean twin: what each training shows before and after."""

from collections.abc import Callable

import numpy as np
from rule import MARGIN, Bools, Floats
from scores import Random, halves


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
