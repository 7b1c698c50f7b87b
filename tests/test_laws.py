"""Probabilities by SciPy's special functions are those of scipy.stats, to 1e-12."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from marshtest.attacks.gaussian import figures_of
from marshtest.metrics import power
from marshtest.metrics.binomial import at_least, at_most, interval_of_share
from marshtest.metrics.dependence import Dependence, dependence
from marshtest.metrics.trainings import Difference, p_positive, p_rarely_fails, t_statistic
from marshtest.metrics.verdict import Evidence, _power
from marshtest.results.comparison import _p_of_mean

close = pytest.approx
EXACT = {"rel": 1e-12, "abs": 0.0}
SIZES = [1, 2, 5, 19, 60, 281, 750, 4200]
CHANCES = [0.0, 0.01, 0.05, 0.2, 0.5, 0.81, 0.999, 1.0]
DRAWS = np.random.default_rng(0)


@pytest.mark.parametrize("chance", CHANCES)
@pytest.mark.parametrize("n", SIZES)
def test_binomial_tails(n: int, chance: float) -> None:
    middle, spread = n * chance, math.sqrt(n * chance * (1 - chance))
    near = {round(middle + step * spread) for step in (-3, -1, 0, 1, 3)}
    for hits in sorted({-1, 0, 1, n - 1, n, n + 1, *near}):
        law = stats.binom(n, chance)
        assert at_least(hits, n, chance) == close(law.sf(hits - 1), **EXACT), hits
        assert at_most(hits, n, chance) == close(law.cdf(hits), **EXACT), hits


@pytest.mark.parametrize("method", ["exact", "wilson"])
@pytest.mark.parametrize("n", SIZES)
def test_intervals_of_shares(n: int, method: str) -> None:
    """SciPy looks for the exact one's ends by a search that stops within 2e-12."""
    for hits in sorted({0, 1, n // 10, n // 2, n - 1, n}):
        low, high = interval_of_share(hits / n, n, method=method)  # type: ignore[arg-type]
        expected = stats.binomtest(hits, n).proportion_ci(method=method)  # type: ignore[arg-type]
        assert (low, high) == close((expected.low, expected.high), rel=0, abs=2e-12)


def test_rows_hold_the_interval_that_a_summary_gives() -> None:
    scores = {"rank": DRAWS.normal(-1, 1, 80), "rank_ties": np.zeros(80)}
    row = figures_of(scores, np.zeros(80, dtype=np.int64), np.full((80, 1), np.nan), 0.05)
    given = interval_of_share(row["tpr_rank"], 80)
    assert (row["tpr_rank_low"], row["tpr_rank_high"]) == close(given, rel=0, abs=2e-12)


@pytest.mark.parametrize("n", [2, 3, 20, 750])
def test_p_values_and_intervals_of_a_dependence(n: int) -> None:
    classes = np.arange(n) % 2
    shown = dependence(DRAWS.normal(-0.1, 1.2, n), classes, fpr=0.05)
    squares = shown.error**2 * n * (n - 1)
    chi2 = stats.chi2(n - 1)
    assert shown.tests == close(
        {
            "mean": 2 * stats.norm.sf(abs(shown.value) * math.sqrt(n)),
            "spread": 2 * min(chi2.cdf(squares), chi2.sf(squares)),
            "classes": stats.chi2(1).sf(shown.between),
            "tail": stats.binom.sf(shown.tail - 1, n, 0.05),
        },
        **EXACT,
    )
    expected = stats.t.interval(0.9, n - 1, shown.value, shown.error)
    assert shown.interval(0.9) == close(expected, **EXACT)


def test_a_lone_poison_has_no_interval() -> None:
    for n in (0, 1):
        assert all(map(math.isnan, Dependence(1.0, 1.0, n).interval()))


@pytest.mark.parametrize("n", [2, 3, 16, 100])
def test_t_tests(n: int) -> None:
    values = DRAWS.normal(0.2, 1, n)
    greater, either = (
        stats.ttest_1samp(values, 0, alternative=a) for a in ("greater", "two-sided")
    )
    assert t_statistic(values) == close(either.statistic, **EXACT)
    assert p_positive(values) == close(greater.pvalue, **EXACT)
    assert _p_of_mean(values) == close(either.pvalue, **EXACT)
    shown = Difference(values).columns("effect")
    ends = either.confidence_interval(0.95)
    assert (shown["effect_low"], shown["effect_high"]) == close((ends.low, ends.high), **EXACT)


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_no_number_shows_nothing(odd: float) -> None:
    assert p_positive(np.array([1.0, odd, 3.0, 4.0, 5.0])) == 1


def test_values_that_are_all_equal_have_the_sign_tests_p() -> None:
    assert _p_of_mean(np.ones(4)) == stats.binomtest(4, 4).pvalue
    assert _p_of_mean(-np.ones(4)) == stats.binomtest(0, 4).pvalue
    assert _p_of_mean(np.zeros(4)) == 1


@pytest.mark.parametrize("fails", [0, 1, 4, 16])
def test_trainings_that_fail(fails: int) -> None:
    left = np.repeat([1.0, 0.0], [fails, 16 - fails])
    expected = stats.binom.cdf(fails, 16, 0.2)
    assert p_rarely_fails(np.ones(16), left, 0.2) == close(expected, **EXACT)


@pytest.mark.parametrize("n", [2, 5, 40, 200])
@pytest.mark.parametrize("effect", [0.0, 0.1, 1.0])
def test_power(n: int, effect: float) -> None:
    shift = effect * math.sqrt(n)
    for estimated, law, null in (
        (False, stats.norm(shift), stats.norm),
        (True, stats.nct(n - 1, shift), stats.t(n - 1)),
    ):
        reject, within = null.isf(0.025), null.isf(0.05)
        given = power.detection(n, effect, estimated=estimated)
        assert given == close(law.sf(reject) + law.cdf(-reject), rel=1e-10)
        given = power.removal(n, effect, estimated=estimated)
        assert given == close(max(0.0, 1 - 2 * law.cdf(within)), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.999])
def test_as_many_poisons_as_a_power_needs_and_no_more(wanted: float) -> None:
    n = power.poisons_for(wanted, lambda n: power.detection(n, 0.02))
    assert power.detection(n, 0.02) >= wanted > power.detection(n - 1, 0.02)
    assert power.poisons_for(wanted, lambda n: power.detection(n, 10)) == 2
    assert math.isinf(power.poisons_for(wanted, lambda n: 0.1))


@pytest.mark.parametrize("tail", [40, 100, 400, 4000])
def test_power_of_the_tail_is_that_of_the_binomial_law(tail: int) -> None:
    """The most poisons beyond the threshold that still acquit, and how often a clean model has no more."""
    n, fpr, margin, alpha = 4000, 0.01, 0.2, 0.05
    seen = Dependence(0.1, 0.01, n, tail=tail, fpr=fpr)
    allowed = fpr + margin * (tail / n - fpr)
    of_initial = margin * math.sqrt(tail / n * (1 - tail / n))
    stricter = math.hypot(1, of_initial / math.sqrt(allowed * (1 - allowed)))
    level = stats.norm.sf(stats.norm.isf(alpha) * stricter)
    acquitting = np.flatnonzero(stats.binom.cdf(np.arange(n + 1), n, allowed) <= level)
    expected = stats.binom.cdf(acquitting.max(initial=-1), n, fpr)
    given = _power(Evidence({0: {"rank": seen}}), "rank", "tail", margin, alpha, 1)
    assert given == close(expected, **EXACT)


def test_a_normal_density() -> None:
    for x in (-5.0, 0.3, 4.0):
        assert NormalDist(1.5, 0.7).pdf(x) == close(stats.norm.pdf(x, 1.5, 0.7), **EXACT)
