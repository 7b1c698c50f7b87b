"""The tests behind a verdict against SciPy's, and their error rates by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from marshtest.metrics import power
from marshtest.metrics.rank import rank_scores
from marshtest.metrics.tradeoff import (
    gaussian_tradeoff,
    tpr_at_fpr,
    tpr_at_fpr_empirical,
    tpr_at_fpr_one_sided,
    tpr_at_fpr_rank,
    tradeoff,
)
from marshtest.metrics.verdict import Dependence, dependence, holm, verdicts


def test_dependence_equals_scipys_tests() -> None:
    scores = np.random.default_rng(0).normal(-0.3, 1, 200)
    found = dependence(scores)
    assert found.value == pytest.approx(-scores.mean())
    assert found.error == pytest.approx(stats.sem(scores))
    z = scores.mean() * math.sqrt(200)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(z)))
    low, high = stats.ttest_1samp(-scores, 0).confidence_interval(0.95)
    assert found.interval() == pytest.approx((low, high))
    sides = [
        stats.ttest_1samp(-scores, 0.5, alternative="less").pvalue,
        stats.ttest_1samp(-scores, -0.5, alternative="greater").pvalue,
    ]
    assert found.p_equivalence(0.5) == pytest.approx(max(sides))


def test_undefined_scores_are_counted_and_left_out() -> None:
    found = dependence(np.array([1.0, np.nan, 3.0, np.nan]))
    assert (found.value, found.n, found.undefined) == (-2.0, 2, 2)
    assert math.isnan(dependence(np.array([np.nan])).value)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_equals_the_step_down_procedure(p: list[float]) -> None:
    adjusted = holm(p)
    for alpha in (0.01, 0.05, 0.2, 0.7):
        rejected, order = set(), sorted(range(len(p)), key=lambda i: p[i])
        for step, i in enumerate(order):
            if p[i] * (len(p) - step) > alpha:
                break
            rejected.add(i)
        assert {i for i in range(len(p)) if adjusted[i] <= alpha} == rejected


def test_scores_that_are_all_equal_still_get_a_verdict() -> None:
    same = {"rank": dependence(np.full(6, -1.2), 0.9)}
    assert verdicts(same, [same])[0].answer == "NOT REMOVED"
    assert same["rank"].p_equivalence(1.0) == 1.0
    assert same["rank"].p_equivalence(1.3) < 1e-6


def of(value: float, n: int, deviation: float = 1.0) -> Dependence:
    error = deviation / math.sqrt(n)
    return Dependence(value, error, error, n)


INITIAL = {"gus": of(0.5, 1000), "rank": of(1.0, 1000)}


@pytest.mark.parametrize(
    ("gus", "rank", "n", "answer"),
    [
        (0.0, 0.0, 5000, "REMOVED"),
        (0.05, 0.1, 50_000, "REMOVED"),  # significant, yet surely within the margin: order matters
        (0.5, 1.0, 1000, "NOT REMOVED"),
        (0.0, 0.4, 1000, "NOT REMOVED"),  # one score suffices to convict
        (0.12, 0.0, 300, "INCONCLUSIVE"),  # neither: both are needed to acquit
        (0.0, 0.0, 100, "INCONCLUSIVE"),
        (-0.5, -0.5, 1000, "NOT REMOVED"),  # over-unlearning leaves a trace as well
    ],
)
def test_verdicts_follow_the_stated_order(gus: float, rank: float, n: int, answer: str) -> None:
    assert verdicts(INITIAL, [{"gus": of(gus, n), "rank": of(rank, n)}])[0].answer == answer


def test_without_an_initial_effect_nothing_is_called_removed() -> None:
    nothing = {"gus": of(-0.01, 10_000)}
    assert verdicts(nothing, [{"gus": of(0.0, 10_000)}])[0].answer == "INCONCLUSIVE"


def test_a_model_that_does_not_exist_is_inconclusive() -> None:
    missing = dependence(np.array([]))
    verdict = verdicts(INITIAL, [{"gus": missing, "rank": missing}])[0]
    assert (verdict.answer, verdict.poisons_needed) == ("INCONCLUSIVE", None)


@pytest.mark.parametrize(
    ("true", "answer"), [(0.0, "REMOVED"), (0.03, "REMOVED"), (0.25, "NOT REMOVED")]
)
def test_the_stated_number_of_poisons_has_the_stated_power(true: float, answer: str) -> None:
    """At the needed n, the cheaper of the two tests passes in 90 % of 2,000 simulated cases."""
    initial = {"gus": of(0.5, 1000)}
    needed = verdicts(initial, [{"gus": of(true, 40)}])[0].poisons_needed
    assert needed is not None
    rng = np.random.default_rng(2)
    drawn = rng.normal(true, 1 / math.sqrt(needed), 2000)
    answers = [verdicts(initial, [{"gus": of(float(x), needed)}])[0].answer for x in drawn]
    assert answers.count(answer) / 2000 == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 2000))


@pytest.mark.parametrize("left", [0.0, 0.05])
def test_power_of_removal_is_that_of_simulated_equivalence_tests(left: float) -> None:
    rng, n, margin = np.random.default_rng(5), 900, 0.12
    samples = rng.normal(left, 1.0, (2000, n))
    passed = [dependence(-sample).p_equivalence(margin) <= 0.05 for sample in samples]
    expected = power.removal(n, margin, left=left)
    assert np.mean(passed) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 2000))


def test_power_of_detection_is_that_of_scipys_normal_tail() -> None:
    shift = 0.2 * math.sqrt(250)
    outside = stats.norm(shift).sf(1.959964) + stats.norm(shift).cdf(-1.959964)
    assert power.detection(250, -0.2) == pytest.approx(outside, abs=1e-6)
    n = power.poisons_for(0.8, lambda n: power.detection(n, 0.2))
    assert power.detection(n - 1, 0.2) < 0.8 <= power.detection(n, 0.2)
    assert power.poisons_for(0.8, lambda n: power.detection(n, 0.0)) == math.inf


def test_false_removed_is_at_most_alpha_at_the_margin_over_a_family() -> None:
    """Eight unlearners that each leave exactly the margin: one or more false REMOVED in ≤ 5 %."""
    rng, margin = np.random.default_rng(3), 0.2 * 0.5
    initial, wrong = {"gus": of(0.5, 1000)}, 0
    for _ in range(2000):
        family = [{"gus": of(float(x), 4000)} for x in rng.normal(margin, 1 / math.sqrt(4000), 8)]
        wrong += any(v.answer == "REMOVED" for v in verdicts(initial, family))
    assert wrong <= stats.binom.ppf(1 - 1e-4, 2000, 0.05)


def test_tpr_of_exact_scores_is_the_fpr() -> None:
    scores = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    assert tpr_at_fpr(scores, 0.01) == pytest.approx(0.01, abs=1e-4)
    assert tpr_at_fpr_one_sided(scores, 0.01) == pytest.approx(0.01, abs=1e-4)
    assert tpr_at_fpr_empirical(scores, scores, 0.01) == pytest.approx(0.01, abs=1e-4)
    assert tpr_at_fpr_rank(rank_scores(np.arange(200), 199), 199, 0.01) == 0.01


def test_tpr_of_shifted_scores_is_the_gaussian_tradeoff() -> None:
    scores = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000) - 1.5
    expected = float(gaussian_tradeoff(1.5, np.array([0.01]))[0])
    assert expected == pytest.approx(1 - stats.norm.cdf(stats.norm.ppf(0.99) - 1.5))
    assert tpr_at_fpr_one_sided(scores, 0.01) == pytest.approx(expected, abs=1e-4)


def test_tradeoff_equals_scikit_learns_roc_curve() -> None:
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(4)
    poison, fresh = rng.normal(-1, 1, 80).round(1), rng.normal(0, 1, 120).round(1)
    fpr, tpr = tradeoff(np.append(poison, np.nan), fresh)
    expected = roc_curve(
        [1] * 80 + [0] * 120, -np.concatenate([poison, fresh]), drop_intermediate=False
    )
    points = {(round(a, 9), round(b, 9)) for a, b in zip(fpr, tpr, strict=True)}
    assert points == {(round(a, 9), round(b, 9)) for a, b in zip(*expected[:2], strict=True)}


def test_undefined_stays_undefined() -> None:
    nan = np.array([np.nan])
    assert math.isnan(tpr_at_fpr(nan, 0.01))
    assert math.isnan(tpr_at_fpr_empirical(nan, nan, 0.01))
