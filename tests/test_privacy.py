"""The one-run privacy bound against a literal recomputation and a mechanism of known ε."""

import math

import numpy as np
import pytest
from scipy import stats

from marshtest.kit.measure import advantages
from marshtest.metrics.privacy import GUESSED, epsilon_bound, p_value, refuted


def literal(coins: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The theorem, term by term, from binomial coefficients."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(guesses + 1)]
    tail = sum(mass[right:])
    worst = max([sum(mass[right - i : right]) / i for i in range(1, right + 1)], default=0.0)
    return min(1.0, tail + 2 * coins * delta * worst)


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize(("guesses", "right"), [(40, 40), (40, 31), (40, 12), (7, 0)])
def test_p_value_is_the_theorems(guesses: int, right: int, delta: float) -> None:
    for epsilon in (0.0, 0.4, 1.0, 3.0):
        expected = literal(60, guesses, right, epsilon, delta)
        assert p_value(60, guesses, right, epsilon, delta) == pytest.approx(expected, rel=1e-9)


def test_without_delta_the_bound_is_that_of_clopper_and_pearson() -> None:
    """q ≥ its one-sided binomial lower bound, and ε = logit q."""
    low = stats.binomtest(88, 100, alternative="greater").proportion_ci(0.95).low
    assert refuted(100, 100, 88, 0.0, 0.05) == pytest.approx(math.log(low / (1 - low)), abs=1e-6)


def test_a_larger_delta_refutes_less() -> None:
    bounds = [refuted(500, 100, 95, delta, 0.05) for delta in (0.0, 1e-6, 1e-4, 1e-2)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[-1]


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_randomised_response_is_never_refuted_more_often_than_stated(epsilon: float) -> None:
    """Each coin answered truly with probability q: exactly ε-private; 400 audits at 95 %."""
    rng = np.random.default_rng(0)
    q = 1 / (1 + math.exp(-epsilon))
    wrong = 0
    for _ in range(400):
        right = rng.random(200) < q
        advantages = np.where(right, 1.0, -1.0) * rng.exponential(size=200)
        wrong += epsilon_bound(advantages, delta=0.0) > epsilon
    assert wrong <= stats.binom.ppf(1 - 1e-4, 400, 0.05)


def test_a_guess_between_losses_that_do_not_vary_is_infinitely_sure() -> None:
    """The K − 1 losses that tell how losses vary are all alike, or the poison's is infinite."""
    inf, nan = math.inf, math.nan
    fresh = np.array(
        [[2.0, 2, 2, 2], [3, 1, 1, 1], [1, 1, 1, 1], [nan, 1, 1, 1], [0, 1, 1, 1], [4, 1, 2, 3]]
    )
    found = advantages(np.array([1.0, 1.0, 1.0, 1.0, 1.0, -inf]), fresh)
    assert found[[0, 1, 4, 5]].tolist() == [inf, inf, -inf, inf]
    assert np.isnan(found[[2, 3]]).all()  # no difference, or no number: an abstention


def test_infinitely_sure_guesses_count_before_all_others() -> None:
    """An eighth of 800 is infinitely sure and right; the others are guesses by chance."""
    others = np.tile([0.1, -0.1], 350)
    sure = epsilon_bound(np.concatenate([np.full(100, math.inf), others]), delta=0.0)
    assert sure == epsilon_bound(np.concatenate([np.full(100, 9.0), others]), delta=0.0) > 2
    wrong = epsilon_bound(np.concatenate([np.full(100, -math.inf), others]), delta=0.0)
    assert wrong == 0
    assert epsilon_bound(np.full(800, math.nan), delta=0.0) == 0


def test_sure_guesses_that_are_all_right_give_the_best_of_the_stated_shares() -> None:
    advantages = np.concatenate([np.full(100, 9.0), np.tile([0.1, -0.1], 350)])  # 1 in 8 is sure
    level = 0.05 / len(GUESSED)
    assert epsilon_bound(advantages, delta=0.0) == pytest.approx(
        refuted(800, 100, 100, 0.0, level), rel=1e-6
    )


def test_abstaining_everywhere_refutes_nothing() -> None:
    assert epsilon_bound(np.full(50, np.nan)) == epsilon_bound(np.zeros(50)) == 0.0
