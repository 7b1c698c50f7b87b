"""The verdict's error rates in a few scenarios of benchmarks/verdict, and the exactness of its parts.

Each rate is held against a binomial bound that a rate of 5 % (a power of 90 %) passes once in 10,000 runs.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from marshtest.metrics.dependence import Dependence, dependence, pooled
from marshtest.metrics.rank import rank_scores
from marshtest.metrics.trainings import (
    Difference,
    failures,
    p_rarely_fails,
    sign_flips,
    trainings_to_reject,
    trainings_to_remove,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "verdict"))
import scenarios
from simulation import Scenario, Tally

ALARM = 1e-4


def most(repetitions: int, rate: float = 0.05) -> float:
    return float(stats.binom.ppf(1 - ALARM, repetitions, rate))


def by_name(name: str, size: str) -> Scenario:
    wrong, convicted = scenarios.paired()
    alone = [*scenarios.cheats(), *scenarios.independent(), *scenarios.acquittals()]
    every = [*alone, *wrong, *convicted]
    (found,) = [one for one in every if (one.name, one.size) == (name, size)]
    return found


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("a fifth left of the rank score alone", "one model, 1 × 600"),
        ("the same, of GUS alone, correlation −1", "one model, 1 × 600"),
        ("the same, of the rank score alone, correlation −1", "CIFAR-10 full, 1 × 750"),
        ("20 % of the poisons kept whole", "CIFAR-10 full, 1 × 750"),
        ("20 % kept, the rest pushed away", "cifar10-small-gaussian, 3 × 200"),
        ("half kept, half mirrored", "one model, 1 × 150"),
        ("classes ± 0.5", "cifar10-small-gaussian, 3 × 200"),
        ("trainings ± D/2", "cifar10-small-gaussian, 3 × 200"),
        ("20 % kept and hidden", "one model, known by heart, 1 × 150"),
        ("independent, K = 1, family of 1", "1 × 5"),
        ("independent, K = 1, family of 8", "1 × 100"),
        ("works in 100%, fails in 20% of these", "24 trainings"),
        ("a fifth left in each", "16 trainings"),
        ("noisy before (0.40 ± 0.45), 0.08 ± 0.02 left", "24 trainings"),
        ("outcomes 0 or 1, chance 20%, family of 8", "8 trainings"),
        ("outcomes 0 or 1, chance 50%, family of 1", "6 trainings"),
    ],
)
def test_wrong_answers_are_given_in_at_most_five_percent(name: str, size: str) -> None:
    counted = Tally("", "", "", "")
    by_name(name, size).count(counted, np.random.default_rng(7), 1000, 6)
    assert counted.hits <= most(counted.of)
    assert (counted.compared, counted.disagreements) == (6, 0)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("retrained, alone", "cifar10-small-gaussian, 3 × 200"),
        ("retrained, alone", "CIFAR-10 full, 1 × 750"),
        ("retrained, beside seven that keep all", "cifar10-small-gaussian, 3 × 200"),
        ("truly removed, attack works in 95%, alone", "16 trainings"),
        ("truly removed, attack works in 95%, beside seven that keep all", "28 trainings"),
    ],
)
def test_who_removed_the_poison_is_acquitted_in_nine_of_ten(name: str, size: str) -> None:
    counted = Tally("", "", "", "")
    by_name(name, size).count(counted, np.random.default_rng(8), 500, 4)
    assert counted.of - counted.hits <= most(counted.of, 0.1)
    assert (counted.compared, counted.disagreements) == (4, 0)


# Exactness


@pytest.mark.parametrize(("n", "draws"), [(6, 1), (6, 199), (400, 1), (400, 199)])
def test_each_test_of_independence_is_exact(n: int, draws: int) -> None:
    """Of rank scores of random losses in two classes: p-values uniform, the tail's of size at most α."""
    rng, repetitions, classes = np.random.default_rng(n + draws), 1500, np.arange(n) % 2
    found: dict[str, list[float]] = {}
    for _ in range(repetitions):
        losses = rng.standard_exponential((n, draws + 1))
        scores, _ = rank_scores(losses[:, 0], losses[:, 1:], rng)
        for test, p in dependence(scores, classes, fpr=0.05).tests.items():
            found.setdefault(test, []).append(p)
    for test in ("mean", "spread", "classes"):
        assert stats.kstest(found[test], "uniform").pvalue > ALARM, test
    for level in (0.01, 0.05, 0.2):
        assert np.sum(np.array(found["tail"]) <= level) <= most(repetitions, level)


def test_sign_flips_hold_their_size_on_two_sided_outcomes() -> None:
    rng, repetitions = np.random.default_rng(1), 1500
    for trainings in (6, 9):
        signs = rng.choice([-1.0, 1.0], (repetitions, trainings))
        d = signs * rng.choice([0.001, 0.9], (repetitions, trainings))
        p = np.array([sign_flips([Difference(one)])[0] for one in d])
        for level in (0.05, 0.2):
            assert (p <= level).sum() <= most(repetitions, level)


def test_adjusted_p_values_are_those_of_a_literal_enumeration() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        d = rng.normal(rng.normal(0, 1, (3, 1)), 1, (3, 6))
        statistic = [abs(one.sum()) / np.sqrt((one**2).sum()) for one in d]
        order = sorted(range(3), key=lambda f: -statistic[f])
        expected, before = [0.0] * 3, 0.0
        for place, f in enumerate(order):
            reached = 0
            for signs in itertools.product((1, -1), repeat=6):
                flipped = [
                    abs(sum(s * x for s, x in zip(signs, d[g]))) / np.sqrt((d[g] ** 2).sum())
                    for g in order[place:]
                ]
                reached += max(flipped) >= statistic[f] - 1e-9
            before = expected[f] = max(before, reached / 64)
        assert sign_flips([Difference(one) for one in d]) == pytest.approx(expected)


def test_pooled_equals_the_dependence_of_all_scores_together() -> None:
    rng = np.random.default_rng(3)
    sizes, parts, scores, cells, ties = (7, 30, 12), [], [], [], []
    for training, size in enumerate(sizes):
        x = rng.normal(-0.5 * training, 1 + training, size)
        x[rng.random(size) < 0.2] = np.nan
        classes, tied = rng.integers(0, 3, size), rng.random(size)
        parts.append(dependence(x, classes, fpr=0.05, ties=tied))
        scores.append(x)
        cells.append(10 * training + classes)
        ties.append(tied)
    together = dependence(
        np.concatenate(scores), np.concatenate(cells), fpr=0.05, ties=np.concatenate(ties)
    )
    found = pooled(parts)
    for name in Dependence.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(
            getattr(together, name), rel=1e-9, nan_ok=True
        ), name
    assert found.tests == pytest.approx(together.tests)


def test_rare_failures_are_counted_against_scipys_binomial_law() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        trainings = int(rng.integers(2, 40))
        works, fails = rng.random(trainings) < 0.8, rng.random(trainings) < 0.2
        d0, d = np.where(works, 0.9, 0.001), np.where(works & fails, -0.8, 0.002)
        if not works.any():
            continue
        assert failures(d0, d) == (works & fails).sum()
        law = stats.binom(trainings, 0.2 * works.mean())
        assert p_rarely_fails(d0, d, 0.2) == pytest.approx(law.cdf((works & fails).sum()))
    assert p_rarely_fails(np.full(30, -0.9), np.zeros(30), 0.2) == 1.0


def acquitted(trainings: int, margin: float, alpha: float, works: float) -> float:
    """Probability that an attack works often enough for the bound to acquit who never fails."""
    chances = stats.binom.pmf(np.arange(trainings + 1), trainings, works)
    return sum(
        float(chance)
        for worked, chance in enumerate(chances)
        if stats.binom.cdf(0, trainings, margin * worked / trainings) <= alpha
    )


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8, 0.01, 0.25])
def test_the_fewest_trainings_are_those_of_brute_force(alpha: float) -> None:
    for margin, works in itertools.product((0.1, 0.2, 0.5), (1.0, 0.9, 0.5)):
        assert trainings_to_remove(margin, alpha, works) == next(
            s for s in range(1, 999) if acquitted(s, margin, alpha, works) >= 0.9
        )
    least = trainings_to_reject(alpha)
    one = [sign_flips([Difference(np.ones(s))])[0] for s in range(1, 12)]
    assert least == next(s for s, p in enumerate(one, 1) if p <= alpha)
