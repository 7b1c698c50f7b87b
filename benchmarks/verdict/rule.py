"""The verdict's rule written out a second time, for [R] repetitions at once: NumPy and SciPy alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2, nct, norm, t

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ALPHA, MARGIN, FPR = 0.05, 0.2, 0.01
REMOVED, NOT_REMOVED, INCONCLUSIVE = "REMOVED", "NOT REMOVED", "INCONCLUSIVE"


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
