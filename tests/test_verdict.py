"""The rule behind a verdict, by cases whose answer is known, and its tests against SciPy's."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from marshtest.metrics import power
from marshtest.metrics.binomial import interval_of_share
from marshtest.metrics.dependence import NOTHING, Dependence, dependence
from marshtest.metrics.tradeoff import (
    gaussian_tradeoff,
    gaussian_tradeoff_two_sided,
    tpr_at_fpr,
    tpr_at_fpr_empirical,
    tpr_at_fpr_one_sided,
    tradeoff,
)
from marshtest.metrics.trainings import Difference, usable
from marshtest.metrics.verdict import (
    NOT_SHOWN,
    Evidence,
    Rest,
    Verdict,
    _left,
    _share_left,
    holm,
    paired_verdicts,
    rests_on,
    verdicts,
)

LEVELS = {"margin": 0.2, "alpha": 0.05}


def test_dependence_equals_scipys_tests() -> None:
    rng = np.random.default_rng(0)
    scores, classes = rng.normal(-0.3, 1.2, 200), rng.integers(0, 5, 200)
    found = dependence(scores, classes, fpr=0.05)
    assert found.value == pytest.approx(-scores.mean())
    assert found.error == pytest.approx(stats.sem(scores))
    assert found.spread == pytest.approx((scores**2).mean() - 1)
    assert found.spread_error == pytest.approx(stats.sem(scores**2))
    assert found.interval() == pytest.approx(
        stats.ttest_1samp(-scores, 0).confidence_interval(0.95)
    )
    z = scores.mean() * math.sqrt(200)
    squares = ((scores - scores.mean()) ** 2).sum()
    cells = [scores[classes == c] for c in range(5)]
    between = sum(len(cell) * (cell.mean() - scores.mean()) ** 2 for cell in cells)
    beyond = int((scores < stats.norm.ppf(0.05)).sum())
    expected = {
        "mean": 2 * stats.norm.sf(abs(z)),
        "spread": 2 * min(stats.chi2(199).cdf(squares), stats.chi2(199).sf(squares)),
        "classes": stats.chi2(4).sf(between),
        "tail": stats.binomtest(beyond, 200, 0.05, "greater").pvalue,
    }
    assert found.tests == pytest.approx(expected)


def test_one_class_has_no_test_of_classes() -> None:
    assert math.isnan(dependence(np.random.default_rng(0).normal(size=20)).tests["classes"])


def test_undefined_scores_are_counted_and_left_out() -> None:
    found = dependence(np.array([1.0, np.nan, 3.0, np.nan]), np.array([0, 1, 2, 3]))
    assert (found.value, found.n, found.undefined, found.cells) == (-2.0, 2, 2, 2)
    nothing = dependence(np.array([np.nan]))
    assert math.isnan(nothing.value)
    assert all(map(math.isnan, nothing.tests.values()))


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


def of(value: float, n: int, variance: float = 1.0) -> Dependence:
    """Normal scores of mean −value and a variance, in ten classes alike."""
    deviation = math.sqrt(variance)
    tail = round(n * stats.norm.cdf((stats.norm.ppf(0.01) + value) / deviation))
    squares = value**2 + variance
    kurtosis = 2 * variance**2 + 4 * variance * value**2
    return Dependence(
        value,
        deviation / math.sqrt(n),
        n,
        spread=squares - 1,
        spread_error=math.sqrt(kurtosis / n),
        between=9.0,
        cells=10,
        tail=tail,
    )


def one(gus: float, rank: float, n: int, variance: float = 1.0) -> Evidence:
    return Evidence({0: {"gus": of(gus, n), "rank": of(rank, n, variance)}})


def several(ranks: list[float], n: int) -> Evidence:
    return Evidence({seed: {"rank": of(rank, n)} for seed, rank in enumerate(ranks)})


def judged(initial: Evidence, *family: Evidence) -> list[Verdict]:
    rests = rests_on(initial, family=len(family), **LEVELS)  # type: ignore[arg-type]
    return verdicts(initial, family, rests=rests, **LEVELS)


INITIAL = one(0.5, 1.0, 4000)


@pytest.mark.parametrize(
    ("gus", "rank", "n", "answer"),
    [
        (0.0, 0.0, 4000, "REMOVED"),
        (0.0, 0.08, 4000, "REMOVED"),  # significant, yet surely within the margin: order matters
        (0.5, 1.0, 1000, "NOT REMOVED"),
        (0.0, 0.4, 1000, "NOT REMOVED"),  # one score suffices to convict
        (0.0, 0.1, 200, "INCONCLUSIVE"),  # neither surely within the margin, nor surely there
        (0.0, 0.0, 60, "INCONCLUSIVE"),
        (-0.5, -1.0, 4000, "NOT REMOVED"),  # over-unlearning leaves a trace as well
    ],
)
def test_verdicts_follow_the_stated_order(gus: float, rank: float, n: int, answer: str) -> None:
    assert judged(one(0.5, 1.0, n), one(gus, rank, n))[0].answer == answer


def test_a_verdict_rests_on_what_has_power_and_a_weak_score_only_blocks() -> None:
    """CIFAR-10 in full, one seed: GUS would need 7,316 poisons to show its own fifth; there are 750."""
    weak = one(0.195, 0.869, 750, variance=0.72)
    rests = rests_on(weak, **LEVELS)  # type: ignore[arg-type]
    assert rests[0] == Rest("rank", "mean")
    assert Rest("gus", "mean") not in rests
    assert judged(weak, one(-0.004, 0.015, 750))[0].answer == "REMOVED"
    assert judged(weak, one(0.16, 0.015, 750))[0].answer == "NOT REMOVED"  # GUS rejects
    strong = rests_on(one(0.5, 1.0, 40_000), **LEVELS)  # type: ignore[arg-type]
    assert {Rest("gus", "mean"), Rest("rank", "mean"), Rest("rank", "tail")} <= set(strong)


def test_poisons_kept_and_pushed_away_are_seen_though_the_mean_is_zero() -> None:
    hidden = Evidence({0: {"gus": of(0.0, 4000), "rank": of(0.0, 4000, variance=1.4)}})
    (verdict,) = judged(INITIAL, hidden)
    assert verdict.answer == "NOT REMOVED"
    assert any("kept and others pushed away" in reason for reason in verdict.reasons)


def test_a_tail_that_is_kept_is_said_in_words() -> None:
    kept = replace(of(0.0, 4000), tail=128)
    (verdict,) = judged(INITIAL, Evidence({0: {"gus": of(0.0, 4000), "rank": kept}}))
    assert verdict.answer == "NOT REMOVED"
    assert "a part of the poisons is kept whole: 3.2% lie beyond the 1% threshold" in " ".join(
        verdict.reasons
    )


def test_fewer_beyond_the_threshold_than_by_chance_is_nothing_that_is_kept() -> None:
    few, whole = replace(of(0.0, 4000), tail=0), replace(of(1.0, 4000), tail=400)
    initial, one = (Evidence({0: {"rank": score}}) for score in (whole, few))
    assert _share_left(initial, one, Rest("rank", "tail")) == 0
    narrow = Evidence({0: {"rank": of(0.0, 4000, variance=0.6)}})
    assert "the mean square's deficit is" in _left(narrow, Rest("rank", "spread"), 0.4)
    assert "the mean square's excess is" in _left(INITIAL, Rest("rank", "spread"), 0.4)


def test_from_three_trainings_on_they_must_agree() -> None:
    before = several([1.0] * 4, 1000)
    assert judged(before, several([0.0, 0.01, -0.01, 0.0], 1000))[0].answer == "REMOVED"
    apart = judged(before, several([0.4, -0.4, 0.4, -0.4], 1000))[0]
    assert apart.answer != "REMOVED"
    assert (apart.removed_in, apart.trainings) == (0, 4)
    some = judged(before, several([0.0, 0.0, 0.0, 0.3], 1000))[0]
    assert (some.answer, some.removed_in) == ("NOT REMOVED", 3)


def test_without_an_initial_effect_nothing_is_called_removed() -> None:
    nothing = one(-0.01, -0.01, 10_000)
    (verdict,) = judged(nothing, one(0.0, 0.0, 10_000))
    assert verdict.answer == "INCONCLUSIVE"
    assert NOT_SHOWN in verdict.reasons


def test_a_model_that_does_not_exist_is_inconclusive() -> None:
    missing = Evidence({0: {"gus": dependence(np.array([])), "rank": dependence(np.array([]))}})
    (verdict,) = judged(INITIAL, missing)
    assert (verdict.answer, verdict.needed) == ("INCONCLUSIVE", None)


def test_a_black_box_is_judged_by_the_scores_that_it_has() -> None:
    assert judged(INITIAL, Evidence({0: {"rank": of(0.0, 4000)}}))[0].answer == "REMOVED"


def test_a_black_box_is_asked_for_a_mean_of_its_own() -> None:
    """800 models that keep 0.3 of a mean that is known by heart; GUS, which they lack, has more power."""
    rng, removed, runs = np.random.default_rng(0), 0, 800
    for _ in range(runs):
        ranks = stats.norm.ppf(rng.random(15) / 200)
        initial = Evidence(
            {0: {"gus": dependence(rng.normal(-6, 1, 15)), "rank": dependence(ranks)}}
        )
        box = Evidence({0: {"rank": dependence(rng.normal(0.3 * ranks.mean(), 1, 15))}})
        rests = rests_on(initial, margin=0.2, alpha=0.05)
        removed += verdicts(initial, [box], rests=rests)[0].answer == "REMOVED"
    assert stats.binomtest(removed, runs, 0.05, "greater").pvalue > 1e-3


@pytest.mark.parametrize(("true", "answer"), [(0.0, "REMOVED"), (0.45, "NOT REMOVED")])
def test_the_stated_number_of_poisons_has_the_stated_power(true: float, answer: str) -> None:
    """At the needed n, the cheaper of the two answers comes in at least 90 % of 1,000 simulated cases."""
    needed = judged(several([1.0], 1000), several([true], 30))[0].needed
    assert needed is not None
    initial = several([1.0], needed)
    rng = np.random.default_rng(2)
    drawn = rng.normal(true, 1 / math.sqrt(needed), 1000)
    answers = [judged(initial, several([float(x)], needed))[0].answer for x in drawn]
    slack = 4 * math.sqrt(0.09 / 1000) + 0.02  # the initial model's own error, and Bonferroni
    assert answers.count(answer) / 1000 > 0.9 - slack


def test_poisons_that_would_settle_it_are_more_than_there_are() -> None:
    """Ten seeds of the initial model have the tail acquit too, for which one with three has too few."""
    before, clean = several([1.0] * 10, 420), several([0.01, -0.01] * 5, 420)
    few = Evidence({s: {"rank": replace(clean.trainings[s]["rank"], tail=7)} for s in range(3)})
    (alone,) = judged(several([1.0] * 3, 420), few)
    assert alone.answer == "REMOVED"
    together = judged(before, *[before] * 9, few)[-1]
    assert together.answer == "INCONCLUSIVE"
    assert together.needed is not None
    assert together.needed > 3 * 420
    assert "beyond the 1% threshold" in together.reasons[0]
    # With as many poisons it is answered indeed.
    more = Evidence({0: {"rank": of(0.0, together.needed)}})
    assert judged(before, *[before] * 9, more)[-1].answer == "REMOVED"


def test_without_power_a_verdict_rests_on_the_score_that_shows_most() -> None:
    """A weak dose of 539 poisons: no score has power, and GUS, named first, shows less."""
    weak = one(0.153, 0.358, 539)
    rests = rests_on(weak, **LEVELS)  # type: ignore[arg-type]
    assert rests == (Rest("rank", "mean"),)
    (verdict,) = judged(weak, one(0.003, 0.01, 539))
    assert verdict.answer == "INCONCLUSIVE"
    (reason,) = verdict.reasons
    assert reason.startswith("rank score: what is left is 3% of the initial model's")
    assert verdict.needed is not None
    assert verdict.needed > 539


def test_not_removed_says_what_was_shown_and_by_which_test() -> None:
    half, (verdict,) = one(0.0, 0.2, 400), judged(INITIAL, one(0.0, 0.2, 400))
    assert verdict.answer == "NOT REMOVED"
    p = 2 * stats.norm.sf(0.2 * math.sqrt(400))
    assert half.pooled["rank"].tests["mean"] == pytest.approx(p)
    assert verdict.reasons == (
        "rank score: what is left is 20% of the initial model's, surely not 0 (test of the mean, p "
        f"{p:.1g})",
    )


def test_what_holms_correction_alone_took_away_is_said() -> None:
    """p ≤ 0.05 by itself, and above it among ten: neither is left too much, nor are the poisons few."""
    before, clean = several([0.5], 400), several([0.0], 400)
    alone = judged(before, clean)[0].p_removed
    (reason,) = judged(before, *[clean] * 10)[0].reasons
    assert alone <= 0.05 < 10 * alone
    assert f"p {alone:.1g} alone, but by p {10 * alone:.1g} among 10 unlearners" in reason


def paired(*values: float) -> Difference:
    return Difference(np.array(values))


def test_effects_that_are_compared_need_all_three_proofs() -> None:
    initial = paired(*([0.9, 0.95, 1.0, 0.85] * 6))
    rng = np.random.default_rng(0)
    gone = Difference(rng.normal(0, 0.01, 24))
    rare = Difference(np.where(np.arange(24) < 3, 0.9, 0.0) + rng.normal(0, 1e-4, 24))
    removed, failing, left = paired_verdicts(initial, [gone, rare, initial], **LEVELS)
    assert removed.answer == "REMOVED"
    assert failing.answer == "INCONCLUSIVE"  # the mean is within the margin; 3 of 24 trainings fail
    assert "half of the effect or more is left in 3 of 24 trainings" in failing.reasons
    assert left.answer == "NOT REMOVED"
    flipped = paired_verdicts(initial, [Difference(-initial.values)], **LEVELS)
    assert flipped[0].answer == "NOT REMOVED"


def test_nothing_is_removed_whose_initial_effect_was_not_shown() -> None:
    initial = paired(*([0.9, -0.7, 0.1, 0.0] * 6))
    (verdict,) = paired_verdicts(initial, [paired(*[0.0] * 24)], **LEVELS)
    assert (verdict.answer, verdict.reasons[0]) == ("INCONCLUSIVE", NOT_SHOWN)


def test_where_the_poison_never_showed_no_half_of_it_is_left() -> None:
    initial = paired(-0.01, -0.02, -0.005, 0.0)
    (verdict,) = paired_verdicts(initial, [paired(0.0, 0.001, -0.001, 0.0)], **LEVELS)
    assert verdict.reasons == (NOT_SHOWN,)


def test_a_training_without_a_model_lets_nothing_be_removed() -> None:
    """A method that raises where it fails would be judged by the trainings in which it did not."""
    initial = paired(*np.random.default_rng(2).uniform(0.8, 1, 24))
    left = np.random.default_rng(3).normal(0, 0.01, 24)
    assert paired_verdicts(initial, [Difference(left)], **LEVELS)[0].answer == "REMOVED"
    left[:2] = np.nan
    (verdict,) = paired_verdicts(initial, [Difference(left)], **LEVELS)
    assert (verdict.answer, verdict.trainings, verdict.needed) == ("INCONCLUSIVE", 24, None)
    assert verdict.removed_in == 22
    assert verdict.reasons[0].startswith("no model in 2 of 24 trainings")
    # What neither side has is no failure of the unlearner's.
    without = Difference(np.where(np.isnan(left), np.nan, initial.values))
    assert paired_verdicts(without, [Difference(left)], **LEVELS)[0].answer == "REMOVED"

    before, clean = several([1.0] * 5, 400), several([0.0] * 5, 400)
    assert judged(before, clean)[0].answer == "REMOVED"
    for gone in (1, 4):  # with one or two trainings there is no interval over them
        few = Evidence(
            {s: {"rank": NOTHING} if s < gone else scores for s, scores in clean.trainings.items()}
        )
        (verdict,) = judged(before, few)
        assert (verdict.answer, verdict.trainings, verdict.needed) == ("INCONCLUSIVE", 5, None)
        assert verdict.reasons[0].startswith(f"no model in {gone} of 5 trainings")


def test_a_model_is_not_called_usable_by_the_trainings_that_gave_one() -> None:
    cost = np.array([0.0, 0.001, -0.001, 0.0005])
    assert usable(cost, 0.05, 0.05) == "yes"
    assert usable(np.append(cost, np.nan), 0.05, 0.05) == "unclear"
    assert usable(np.append(cost + 0.2, np.nan), 0.05, 0.05) == "no"  # as surely as they say


def test_arms_that_are_one_model_are_removed_if_the_poison_shows() -> None:
    """Retraining looks at no model: its differences are 0 by construction, and need no error."""
    shown, hidden = np.random.default_rng(1).uniform(0.7, 1, 6), np.array([0.9, -0.9, 0, 0, 0, 0])
    one_model = Difference(np.zeros(6), same=True)
    assert paired_verdicts(Difference(shown), [one_model], **LEVELS)[0].answer == "REMOVED"
    assert paired_verdicts(Difference(hidden), [one_model], **LEVELS)[0].answer == "INCONCLUSIVE"
    chance = Difference(np.zeros(6))  # six trainings without a difference prove nothing of others
    assert paired_verdicts(Difference(shown), [chance], **LEVELS)[0].answer == "INCONCLUSIVE"


def test_as_many_trainings_as_there_are_would_not_settle_what_they_left_open() -> None:
    """Six can reject for one unlearner, and not beside 31 others of which each flip aligns one."""
    flips = 1 - 2 * (np.arange(1, 32)[:, None] >> np.arange(6) & 1)  # [31, 6], none of equal signs
    effect = np.array([1, 1, 1, 1, 1, 1.01])
    initial, others = Difference(np.full(6, 8.0)), [Difference(row / 9) for row in flips]
    assert paired_verdicts(initial, [Difference(effect)], **LEVELS)[0].answer == "NOT REMOVED"
    left = paired_verdicts(initial, [Difference(effect), *others], **LEVELS)
    assert left[0].answer == "INCONCLUSIVE"
    assert all(one.needed is None or one.needed > 6 for one in left)
    assert left[0].needed is not None
    # With so many it is settled, however the others' differences go on.
    more, rng = left[0].needed - 6, np.random.default_rng(0)
    others = [Difference(np.append(row / 9, rng.normal(0, 0.1, more))) for row in flips]
    target = Difference(np.append(effect, effect[:more]))
    initial = Difference(np.full(6 + more, 8.0))
    assert paired_verdicts(initial, [target, *others], **LEVELS)[0].answer == "NOT REMOVED"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[], [0.0], [0.9], [0.9, 0.9, np.nan]])
def test_few_trainings_or_undefined_ones_settle_nothing(values: list[float]) -> None:
    initial = paired(*[0.9] * len(values))
    (verdict,) = paired_verdicts(initial, [paired(*values)], **LEVELS)
    assert verdict.answer == "INCONCLUSIVE"


@pytest.mark.parametrize("left", [0.0, 0.05])
def test_power_of_removal_is_that_of_simulated_equivalence_tests(left: float) -> None:
    rng, n, margin = np.random.default_rng(5), 900, 0.12
    samples = rng.normal(left, 1.0, (2000, n))
    sides = [
        stats.ttest_1samp(samples, margin, axis=1, alternative="less").pvalue,
        stats.ttest_1samp(samples, -margin, axis=1, alternative="greater").pvalue,
    ]
    passed = np.maximum(*sides) <= 0.05
    expected = power.removal(n, margin, left=left)
    assert passed.mean() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 2000))


def test_power_of_detection_is_that_of_scipys_normal_tail() -> None:
    shift = 0.2 * math.sqrt(250)
    outside = stats.norm(shift).sf(1.959964) + stats.norm(shift).cdf(-1.959964)
    assert power.detection(250, -0.2) == pytest.approx(outside, abs=1e-6)
    n = power.poisons_for(0.8, lambda n: power.detection(n, 0.2))
    assert power.detection(n - 1, 0.2) < 0.8 <= power.detection(n, 0.2)
    assert power.poisons_for(0.8, lambda n: power.detection(n, 0.0)) == math.inf


def test_tpr_of_exact_scores_is_the_fpr() -> None:
    scores = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    assert tpr_at_fpr(scores, 0.01) == pytest.approx(0.01, abs=1e-4)
    assert tpr_at_fpr_one_sided(scores, 0.01) == pytest.approx(0.01, abs=1e-4)
    assert tpr_at_fpr_empirical(scores, scores, 0.01) == pytest.approx(0.01, abs=1e-4)


def test_tpr_of_shifted_scores_is_the_gaussian_tradeoff() -> None:
    scores = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000) - 1.5
    expected = float(gaussian_tradeoff(1.5, np.array([0.01]))[0])
    assert expected == pytest.approx(1 - stats.norm.cdf(stats.norm.ppf(0.99) - 1.5))
    assert tpr_at_fpr_one_sided(scores, 0.01) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mean", [-1.2, 0.0, 0.7, 3.0])
def test_the_two_sided_gaussian_tradeoff_is_the_noncentral_chi_square(mean: float) -> None:
    """I² of N(µ, 1) has one degree of freedom and noncentrality µ²; the null's has none."""
    fpr = np.array([0.001, 0.01, 0.3, 1.0])
    expected = stats.ncx2.sf(stats.chi2.isf(fpr, 1), 1, mean**2) if mean else fpr
    assert np.allclose(gaussian_tradeoff_two_sided(mean, fpr), expected, rtol=1e-9)


def test_tradeoff_equals_scikit_learns_roc_curve() -> None:
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(4)
    poison, fresh = rng.normal(-1, 1, 80).round(1), rng.normal(0, 1, 120).round(1)
    fpr, tpr = tradeoff(-np.append(poison, np.nan), -fresh)
    expected = roc_curve(
        [1] * 80 + [0] * 120, -np.concatenate([poison, fresh]), drop_intermediate=False
    )
    points = {(round(a, 9), round(b, 9)) for a, b in zip(fpr, tpr, strict=True)}
    assert points == {(round(a, 9), round(b, 9)) for a, b in zip(*expected[:2], strict=True)}


def test_undefined_stays_undefined() -> None:
    nan = np.array([np.nan])
    assert math.isnan(tpr_at_fpr(nan, 0.01))
    assert math.isnan(tpr_at_fpr_empirical(nan, nan, 0.01))


def test_an_interval_of_a_tpr_is_clopper_and_pearsons() -> None:
    low, high = interval_of_share(0.05, 60)
    assert stats.binom.sf(2, 60, low) == pytest.approx(0.025)
    assert stats.binom.cdf(3, 60, high) == pytest.approx(0.025)
    assert all(map(math.isnan, interval_of_share(math.nan, 60)))


def test_trainings_that_were_never_compared_acquit_nobody() -> None:
    """The initial models are of other seeds, or too few have a partner: nothing is known of the pairs."""
    before = several([1.0] * 5, 1000)
    elsewhere = Evidence(
        {seed + 5: scores for seed, scores in several([0.0] * 5, 1000).trainings.items()}
    )
    assert judged(before, elsewhere)[0].answer == "INCONCLUSIVE"
    assert judged(before, several([0.0] * 5, 1000))[0].answer == "REMOVED"


def test_a_score_that_cannot_be_told_acquits_nobody_even_where_nothing_rests_on_it() -> None:
    weak = one(0.08, 1.0, 750)
    assert Rest("gus", "mean") not in rests_on(weak, **LEVELS)  # type: ignore[arg-type]
    scores = {"gus": replace(of(0.0, 750), hidden=0.9), "rank": of(0.0, 750)}
    (verdict,) = judged(weak, Evidence({0: scores}))
    assert verdict.answer == "INCONCLUSIVE"
    assert verdict.reasons == ("untestable by gus: gradients vanish for 90% of the poisons",)
