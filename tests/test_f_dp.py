"""The f-DP bound of one run against its definition, a public implementation, and mechanisms of known ε."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from marshtest.kit.measure import advantages
from marshtest.kit.privacy import bounds, reconstruction
from marshtest.metrics.f_dp import (
    Counted,
    Guesses,
    Shrink,
    counts,
    epsilon_of_gaussian,
    largest_rejected,
    of_epsilon,
    of_gaussian,
    rejects,
    twice,
)
from marshtest.metrics.gaussian_privacy import gaussian_delta
from marshtest.metrics.privacy import GUESSED, of_replacement, p_value, refuted

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import privacy as known

# ε at δ by jax_privacy (google-deepmind, commit 8967688), which searches it to 1e-6.
JAX = [  # coins, guesses, right, δ, level, ε
    (100, 100, 90, 1e-5, 0.05, 3.587927),
    (1000, 1000, 690, 1e-5, 0.05, 1.288365),
    (1000, 250, 215, 1e-5, 0.05, 2.465613),
    (1000, 62, 62, 1e-5, 0.05, 4.502292),
    (719, 90, 90, 1e-5, 0.05, 5.550507),
    (5000, 5000, 4000, 1e-5, 0.05, 2.333739),
    (60, 40, 31, 1e-5, 0.05, 1.206547),
    (1000, 500, 260, 1e-5, 0.05, 0.0),
]


@pytest.mark.parametrize("line", JAX)
def test_gaussian_bounds_are_those_of_a_public_implementation(line: tuple[float, ...]) -> None:
    coins, guesses, right, delta, level, expected = line
    counted = Counted(int(coins), int(guesses), int(right), 2)
    mu = largest_rejected(of_gaussian, counted, level)
    assert epsilon_of_gaussian(mu, delta) == pytest.approx(expected, abs=2e-6)


def literal(shrink: Shrink, counted: Counted, level: float) -> bool:
    """The recursion as it is written, over all i, without stopping early."""
    m, c_, c, k = counted
    r, h = [0.0] * (c + 1), [0.0] * (c + 1)
    r[c], h[c] = level * c / m, level * (c_ - c) / m
    for i in range(c - 1, -1, -1):
        h[i] = max(h[i + 1], (k - 1) * shrink(min(1.0, r[i + 1])))
        r[i] = r[i + 1] + i / (c_ - i) * (h[i] - h[i + 1])
    return r[0] + h[0] > c_ / m


def test_a_curve_is_rejected_where_the_written_recursion_rejects_it() -> None:
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(300):
        m = int(rng.integers(20, 300))
        c_ = int(rng.integers(5, m + 1))
        k = int(rng.choice([2, 3, 20]))
        counted = Counted(m, c_, int(rng.integers(0, c_ + 1)), k)
        size = float(rng.uniform(0.1, 4))
        shrink = of_gaussian(size) if rng.random() < 0.5 else of_epsilon(size, 1e-4)
        answers.append(rejects(shrink, counted, 0.01))
        assert answers[-1] == literal(shrink, counted, 0.01)
    assert 0.1 < np.mean(answers) < 0.9


def test_a_blow_up_undoes_what_its_inverse_does() -> None:
    """F of (ε, δ) is min(1, e^ε x + δ, 1 − e^−ε (1 − δ − x)); of N(μ, 1) it is Φ(Φ⁻¹(x) + μ)."""
    x = np.linspace(0.01, 0.98, 50)
    fall = of_epsilon(1.3, 1e-3)
    blown = np.minimum(math.exp(1.3) * x + 1e-3, 1 - math.exp(-1.3) * (1 - 1e-3 - x))
    assert [fall(y) for y in blown] == pytest.approx(x)
    blown = stats.norm.cdf(stats.norm.ppf(x) + 0.7)
    assert [of_gaussian(0.7)(y) for y in blown] == pytest.approx(x)


def test_without_delta_the_binary_bound_is_binomial() -> None:
    """For pure ε the recursion meets the binomial law's own, so it rejects where that has no chance."""
    counted = Counted(200, 200, 160, 2)
    epsilon = largest_rejected(lambda e: of_epsilon(e, 0.0), counted, 0.05)
    assert epsilon == pytest.approx(refuted(200, 200, 160, 0.0, 0.05), abs=0.02)
    assert epsilon <= refuted(200, 200, 160, 0.0, 0.05) + 1e-6


@pytest.mark.parametrize("epsilon", [0.5, 1.5])
def test_two_steps_of_a_mechanism_are_what_group_privacy_says(epsilon: float) -> None:
    """(2ε, (1 + e^ε) δ) for small sets, and 2μ for a Gaussian one."""
    both, delta = of_replacement(epsilon, 1e-4)
    assert (both, delta) == (2 * epsilon, pytest.approx((1 + math.exp(epsilon)) * 1e-4))
    for chance in (0.01, 0.03, 0.05):
        expected = math.exp(-both) * (chance - delta)
        assert twice(of_epsilon(epsilon, 1e-4))(chance) == pytest.approx(max(0.0, expected))
        assert twice(of_gaussian(epsilon))(chance) == pytest.approx(of_gaussian(both)(chance))


def test_half_of_a_bound_speaks_of_add_and_remove_at_a_smaller_delta_only() -> None:
    """The add/remove bound at δ is below half of the replacement's at δ, and is rejected as stated."""
    coins, guesses, right, delta = 1000, 250, 240, 1e-5
    replaced = refuted(coins, guesses, right, delta, 0.05)
    alone = refuted(coins, guesses, right, delta, 0.05, "add_remove")
    assert 0 < alone < replaced / 2
    assert p_value(coins, guesses, right, *of_replacement(alone, delta)) == pytest.approx(0.05)


def test_epsilon_of_a_gaussian_is_the_least_at_its_delta() -> None:
    for mu in (0.5, 1.0, 3.0, 12.0):
        assert gaussian_delta(mu, epsilon_of_gaussian(mu, 1e-5)) == pytest.approx(1e-5, rel=1e-6)
    assert epsilon_of_gaussian(1e-6, 1e-5) == epsilon_of_gaussian(0.0, 1e-5) == 0
    assert epsilon_of_gaussian(1.0, 0.0) == math.inf


def test_abstentions_are_guessed_last_and_wrongly() -> None:
    """The number of guesses may not depend on the model."""
    sure = np.array([3.0, -2.0, 1.0, np.nan, 0.0, np.nan, np.nan, np.nan])
    counted = counts([Guesses(sure)])
    assert [one.guesses for one in counted] == [max(1, round(8 * share)) for share in GUESSED]
    assert [one.right for one in counted] == [2, 2, 1, 1, 1]


def test_the_smallest_of_k_losses_is_guessed_and_ties_are_not() -> None:
    own = np.array([1.0, 2.0, 1.0, np.nan, -np.inf])
    fresh = np.array([[2.0, 5.0], [1.0, 5.0], [1.0, 5.0], [1.0, 5.0], [0.0, 1.0]])
    sureness, candidates = reconstruction(own, fresh)
    assert candidates == 3
    assert sureness[:2] == pytest.approx([1 / np.std([1, 2, 5]), -1 / np.std([1, 2, 5])])
    assert np.isnan(sureness[2:4]).all()
    assert sureness[4] == np.inf


def test_many_candidates_refute_more_of_a_strong_memoriser_and_few_of_a_weak_one() -> None:
    rng = np.random.default_rng(0)
    for mu, better in ((4.0, "many"), (0.5, "few")):
        losses = known.gaussian(mu)(rng)
        own, fresh = losses[:, 0], losses[:, 1:]
        pairs, among = advantages(own, fresh), reconstruction(own, fresh)
        few = bounds(pairs, None, delta=1e-5, confidence=0.95).replacement["f_dp"]
        many = bounds(pairs, among, delta=1e-5, confidence=0.95).replacement["f_dp"]
        assert (many > few) == (better == "many")


def test_bounds_hold_on_mechanisms_of_known_epsilon() -> None:
    """A quick version of benchmarks/privacy.py: the ε of a mechanism is seldom exceeded, of any kind."""
    above = {"larger": 0, "gaussian": 0}
    for name in ("Gaussian, μ = 1", "randomised response"):
        for line in known.lines(name, 8):
            if line["bound"] == "larger" or (line["bound"], name) == (
                "gaussian",
                "Gaussian, μ = 1",
            ):
                above[str(line["bound"])] += int(str(line["above"]))
    assert above["larger"] <= stats.binom.ppf(1 - 1e-4, 16, 0.05)
    assert above["gaussian"] <= stats.binom.ppf(1 - 1e-4, 8, 0.05)


def test_a_gaussian_bound_may_be_false_of_another_mechanism() -> None:
    """Why it stands beside the bound and not in it."""
    (line,) = (one for one in known.lines("randomised response", 8) if one["bound"] == "gaussian")
    assert int(str(line["above"])) >= 2


def test_an_audit_of_many_poisons_is_bounded_quickly() -> None:
    """Counted, not timed: the recursion stops where the probability that is left is no number."""
    steps = 0

    def counting(chance: float) -> float:
        nonlocal steps
        steps += 1
        return of_gaussian(1.0)(chance)

    assert not rejects(counting, Counted(50_000, 50_000, 34_000, 2), 0.005)
    assert steps < 10_000
