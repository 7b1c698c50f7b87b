"""Paired comparisons and the leaderboard, against SciPy and against what must hold."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from numpy.typing import NDArray
from scipy import stats

import marshtest
from marshtest.experiment.recorded import RecordedNamed
from marshtest.metrics.dependence import SCORES
from marshtest.metrics.verdict import holm
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting import charts
from marshtest.reporting.tables import comparison_table
from marshtest.results.comparison import ACCURACY, _names, _tested, compare, sentences, unpaired
from marshtest.results.leaderboard import (
    Measure,
    Trial,
    _lost,
    _share,
    _worst,
    leaderboard,
)
from marshtest.results.merging import together
from marshtest.results.naming import differing
from marshtest.results.summary import Results

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """Two versions of GD, and SCRUB as it is in both; four seeds."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = {**TINY, "seeds": 4}
    one, two = (
        marshtest.run(
            {**recipe, "unlearners": [{"name": "gd", "lr": lr}, "scrub"]},
            out=folder / name,
            report=False,
        )
        for name, lr in (("a", 0.001), ("b", 0.3))
    )
    return one, two


def of_gd(results: Results, column: str) -> np.ndarray:
    rows = results.rows[results.rows["unlearner"] == "gd"].sort_values("seed")
    return rows[column].to_numpy()


def test_tests_over_seeds_are_scipys_paired_t_tests(pair: tuple[Results, Results]) -> None:
    table = compare(*pair)
    own = table[(table["unit"] == "seeds") & (table["a"] == "gd lr=0.001")].set_index("measure")
    assert (own["b"] == "gd lr=0.3").all()
    assert list(own.index) == ["test_accuracy", "gus", "rank"]
    for measure, column in (("test_accuracy",) * 2, ("rank", "rank_dependence")):
        a, b = (of_gd(results, column) for results in pair)
        expected = stats.ttest_rel(b, a)
        line = own.loc[measure]
        assert line["n"] == 4
        assert line["difference"] == pytest.approx((b - a).mean())
        low, high = expected.confidence_interval(0.95)
        assert (line["low"], line["high"]) == pytest.approx((low, high))
        raw = [  # of all three measures; SCRUB's lines do not differ, so they have no p-value
            stats.ttest_rel(of_gd(pair[1], c), of_gd(pair[0], c)).pvalue
            for c in ("test_accuracy", "gus_dependence", "rank_dependence")
        ]
        corrected = holm([*raw, 1.0, 1.0, 1.0])[["test_accuracy", "gus", "rank"].index(measure)]
        assert line["p"] == pytest.approx(corrected)


def test_a_training_without_a_model_leaves_nothing_to_say_of_others(
    pair: tuple[Results, Results],
) -> None:
    rows = pair[1].rows.copy()
    lost = (rows["unlearner"] == "gd") & (rows["seed"] == 2)
    rows.loc[lost, ["test_accuracy", "gus_dependence", "rank_dependence"]] = np.nan
    table = compare(pair[0], replace(pair[1], rows=rows))
    own = table[(table["unit"] == "seeds") & (table["a"] == "gd lr=0.001")]
    assert (own["n"] == 3).all()
    assert own["p"].isna().all()
    assert (comparison_table(own)["p"] == "–").all()
    assert (own["better"] == "").all()


def test_tests_over_poisons_pair_each_poison_with_itself(pair: tuple[Results, Results]) -> None:
    table = compare(*pair)
    of_rank = (table["unit"] == "poisons") & (table["measure"] == "rank")
    line = table[of_rank & table["a"].str.startswith("gd")].iloc[0]
    a, b = (
        -results.scores.query("unlearner == 'gd'").sort_values(["seed", "id"])["rank"].to_numpy()
        for results in pair
    )
    assert line["n"] == len(a) == 160
    assert line["difference"] == pytest.approx((b - a).mean())
    assert line["high"] == pytest.approx(stats.ttest_rel(b, a).confidence_interval(0.95)[1])


def test_a_run_does_not_differ_from_itself(pair: tuple[Results, Results]) -> None:
    table = compare(pair[0], pair[0])
    assert (table["difference"] == 0).all()
    assert (table["better"] == "").all()
    assert all(said.endswith(": neither is shown to be better.") for said in sentences(table))


def test_a_difference_that_is_the_same_in_each_training_has_the_sign_tests_p() -> None:
    pairs = pd.DataFrame({"x_a": np.linspace(0.5, 0.6, 6)}).eval("x_b = x_a - 0.01")
    found = _tested(pairs, "x", ACCURACY, "seeds")
    assert found["p"] == pytest.approx(stats.binomtest(0, 6).pvalue)
    assert np.isnan(found["low"])
    assert _tested(pairs.assign(x_b=pairs["x_a"]), "x", ACCURACY, "seeds")["p"] == 1


def beside(pair: tuple[Results, Results], a: float, b: float, jitter: float) -> pd.DataFrame:
    """Two versions of GD whose rank score is a and b in every seed, but for a jitter."""
    one = replace(pair[0], scores=pd.DataFrame())
    gd = one.rows["unlearner"] == "gd"
    noise = np.linspace(-jitter, jitter, int(gd.sum()))
    rows = [one.rows.copy(), one.rows.copy()]
    for frame, value, sign in zip(rows, (a, b), (1, -0.5), strict=True):
        frame.loc[gd, "rank_dependence"] = value + sign * noise
    table = compare(*(replace(one, rows=frame) for frame in rows))
    return table[(table["measure"] == "rank") & (table["a"] == "gd")]


@pytest.mark.parametrize(
    ("a", "b", "better"),
    [(1.0, 0.5, "B"), (-1.0, -0.5, "B"), (-1.0, 0.5, "B"), (0.5, -1.0, "A"), (0.3, -0.3, "")],
)
def test_the_better_score_is_the_nearer_to_zero(
    a: float, b: float, better: str, pair: tuple[Results, Results]
) -> None:
    """A version that pushes scores as far to the other side is not better, though it surely differs."""
    line = beside(pair, a, b, 1e-3).iloc[0]
    assert line["p"] < 1e-4
    assert line["better"] == better


def test_opposite_scores_are_as_near_to_zero() -> None:
    """Seed by seed: their sum is 0 without any spread, and no t test can be made of it."""
    values = np.array([0.9, 1.0, 1.1])
    pairs = pd.DataFrame({"x_a": values, "x_b": -values})
    found = _tested(pairs, "x", "rank", "seeds")
    assert found["p"] < 0.01
    assert found["p_better"] == 1


def called(
    pair: tuple[Results, Results], draws: Iterator[Sequence[Floats]], columns: Sequence[str]
) -> int:
    """How many comparisons call one of two better, where GD's figures are these [column, seed]."""
    one = pair[0].rows[pair[0].rows["seed"] == 0]
    rows = pd.concat([one.assign(seed=seed) for seed in range(6)], ignore_index=True)
    results = replace(pair[0], rows=rows, scores=pd.DataFrame())
    summary, gd, better = results.summary, rows["unlearner"] == "gd", 0
    for figures in draws:
        versions = []
        for values in figures:
            own = rows.copy()
            for column, of_seeds in zip(columns, values, strict=True):
                own.loc[gd, column] = of_seeds
            versions.append(replace(results, rows=own))
            vars(versions[-1])["summary"] = summary  # slow to make, and of no weight here
        better += bool((compare(*versions)["better"] != "").any())
    return better


@pytest.mark.slow
def test_who_is_no_nearer_to_zero_is_rarely_called_better(pair: tuple[Results, Results]) -> None:
    """|A| = |B| on either side of 0, in six seeds: at most α of the comparisons call one, by chance."""
    rng, count = np.random.default_rng(1), 40
    draws = ([rng.normal(1, 1, (1, 6)), rng.normal(-1, 1, (1, 6))] for _ in range(count))
    assert called(pair, draws, ["rank_dependence"]) <= stats.binom.isf(1e-4, count, 0.05)


@pytest.mark.slow
def test_false_differences_happen_at_the_stated_rate(pair: tuple[Results, Results]) -> None:
    """Two versions differ by chance alone, in three measures: at most α of the comparisons call one."""
    rng, count = np.random.default_rng(0), 60
    columns = ["test_accuracy", "gus_dependence", "rank_dependence"]
    draws = (list(rng.normal(size=(2, 3, 6))) for _ in range(count))
    assert called(pair, draws, columns) <= stats.binom.isf(1e-4, count, 0.05)


def test_what_seeds_are_too_few_for_is_said_apart_from_what_these_models_show() -> None:
    about = {"a": "gd", "b": "gd", "measure": "rank", "mean_a": 1.0, "mean_b": 0.5}
    lines = [
        {"unit": "seeds", "n": 2, "p_better": 0.4, "better": ""},
        {"unit": "poisons", "n": 400, "p_better": 1e-9, "better": "B"},
    ]
    (said,) = sentences(pd.DataFrame([about | line for line in lines]))
    assert said == (
        "gd: in trainings to come neither is shown to be better; in these models B is better by rank "
        "(1.000 and 0.500, p 1e-09, 400 poisons)."
    )


def test_better_is_less_left_and_more_accuracy(pair: tuple[Results, Results]) -> None:
    one, two = pair
    gd = two.rows["unlearner"] == "gd"
    jitter = np.linspace(-1e-4, 1e-4, int(gd.sum()))
    rows = one.rows.copy()
    for column in ("test_accuracy", "rank_dependence", "gus_dependence"):
        rows.loc[gd, column] = one.rows.loc[gd, column] + 0.1 + jitter  # better, worse, worse
    table = compare(replace(one, scores=pd.DataFrame()), replace(one, rows=rows))
    better = table[table["a"] == "gd"].set_index("measure")["better"].to_dict()
    assert better == {"test_accuracy": "B", "gus": "A", "rank": "A"}
    swapped = compare(replace(one, rows=rows), replace(one, scores=pd.DataFrame()))
    assert swapped[swapped["a"] == "gd"].set_index("measure")["better"].to_dict() == {
        "test_accuracy": "A", "gus": "B", "rank": "B",
    }  # fmt: skip


def test_who_has_no_partner_is_named(tmp_path: Path) -> None:
    lists: dict[str, list[Any]] = {
        "a": ["retrain", {"name": "gd", "lr": 0.1}, {"name": "gd", "lr": 0.2}],
        "b": ["retrain", "ga"],
    }
    one, two = (
        marshtest.run({**TINY, "unlearners": of}, out=tmp_path / name, report=False)
        for name, of in lists.items()
    )
    assert unpaired(one, two) == (
        "Not compared, for want of a partner: A has gd lr=0.1, gd lr=0.2; B has ga."
    )
    assert unpaired(one, one) == ""


def test_one_unlearner_left_over_on_each_side_is_a_pair(tmp_path: Path) -> None:
    recipe = {**TINY, "unlearners": ["gd"]}
    one = marshtest.run(recipe, out=tmp_path / "a", report=False)
    two = marshtest.run({**recipe, "unlearners": ["scrub"]}, out=tmp_path / "b", report=False)
    table = compare(one, two)
    assert set(table["a"]) == {"gd"}
    assert set(table["b"]) == {"scrub"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"training": {**TINY["training"], "epochs": 5}}, "training.epochs is 6 and 5"),
        ({"first_seed": 7}, r"share no seed \(A has 0, 1, 2, 3, B 7, 8, 9, 10\)"),
        ({"unlearners": []}, "no unlearner of A"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused(
    change: dict[str, Any], says: str, pair: tuple[Results, Results], tmp_path: Path
) -> None:
    recipe = {**TINY, "seeds": 4, "unlearners": ["gd"], **change}
    other = marshtest.run(recipe, out=tmp_path / "x", report=False)
    with pytest.raises(MarshtestError, match=says):
        compare(pair[0], other)


def board(results: Results, **figures: dict[str, float]) -> pd.DataFrame:
    """The leaderboard of a run in which some unlearners' figures are other ones in every seed."""
    rows = results.rows.copy()
    for name, values in figures.items():
        for column, value in values.items():
            rows.loc[rows["unlearner"] == name, column] = value
    return leaderboard([replace(results, rows=rows)]).set_index("unlearner")


NOTHING_LEFT = {"gus_dependence": 0.0, "rank_dependence": 0.0}


def test_doing_nothing_and_ruining_the_model_both_miss_by_one(
    pair: tuple[Results, Results],
) -> None:
    chance = pair[0].rows["chance"].iloc[0]
    found = board(pair[0], scrub={"test_accuracy": chance, **NOTHING_LEFT})
    assert found.loc["none", "misses"] == 1
    assert found.loc["scrub", "left"] == pytest.approx(0)
    assert found.loc["scrub", "lost"] == pytest.approx(1)
    assert found.loc["scrub", "misses"] == pytest.approx(1)
    assert found.loc["retrain (full)", "lost"] == 0


def test_ranks_follow_what_is_left_and_overlapping_intervals_tie(
    pair: tuple[Results, Results],
) -> None:
    retrained = pair[0].rows.query("role == 'retrained'")["test_accuracy"].mean()
    small = {"gus_error": 0.001, "rank_error": 0.001}
    clean = {"test_accuracy": retrained, **NOTHING_LEFT, **small}
    assert board(pair[0], gd=clean)["rank"].to_dict() == pytest.approx(
        {"gd": 1, "scrub": 2, "none": np.nan, "retrain (full)": np.nan}, nan_ok=True
    )
    tied = board(pair[0], gd=clean, scrub=clean)
    assert tied["rank"].dropna().to_dict() == {"gd": 1, "scrub": 1}


def test_the_error_of_a_share_is_the_delta_methods_with_the_wider_errors() -> None:
    """Given these models 0.02 and 0.01, of trainings to come 0.1 and (of one seed) unknown."""
    line = pd.Series(
        {"role": "updated", "x_dependence": 0.3, "x_error": 0.02, "x_trainings_error": 0.1}
        | {"x_trainings": 5.0, "x_poisons": 100.0, "seeds": 5}
    )
    initial = pd.Series(
        {"role": "initial", "x_dependence": 0.6, "x_error": 0.01, "x_trainings_error": np.nan}
        | {"x_trainings": 1.0, "x_poisons": 100.0, "seeds": 1}
    )
    rng = np.random.default_rng(0)
    shares = rng.normal(0.3, 0.1, 200_000) / rng.normal(0.6, 0.01, 200_000)
    assert _share(line, initial, "x").error == pytest.approx(shares.std(), rel=0.01)
    loud = initial.replace(0.01, 0.06)  # the second term must not be lost
    shares = rng.normal(0.3, 0.1, 200_000) / rng.normal(0.6, 0.06, 200_000)
    assert _share(line, loud, "x").error == pytest.approx(shares.std(), rel=0.04)
    assert _share(line, loud, "x").error > 1.03 * _share(line, initial, "x").error
    assert _share(initial, initial, "x").error == 0
    # The larger error is one of five trainings; the smaller is told by a law, and has degrees without end.
    assert _share(line, initial, "x").degrees == pytest.approx(4, rel=0.01)
    assert _share(line.replace(0.1, 0.001), initial, "x").degrees == np.inf


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_the_interval_of_a_share_holds_for_trainings_to_come(seeds: int, times: float) -> None:
    """3,000 experiments: means of trainings vary `times` as much as the law given a model says."""
    given, rng, inside = 0.1, np.random.default_rng(0), 0
    initial = pd.Series(
        {"role": "initial", "seeds": seeds, "x_dependence": 1.0, "x_error": 0.0, "x_poisons": 9.0}
        | {"x_trainings": float(seeds), "x_trainings_error": 0.0}
    )
    for _ in range(3000):
        means = 0.5 + times * given * np.sqrt(seeds) * rng.normal(size=seeds)
        line = initial.replace("initial", "updated")
        line["x_dependence"], line["x_error"] = means.mean(), given
        line["x_trainings_error"] = stats.sem(means)
        low, high = _share(line, initial, "x").interval()
        inside += bool(low <= 0.5 <= high)
    assert inside / 3000 > 0.94


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_unlearners_are_ranked_apart_in_few_experiments_however_few_the_seeds(
    seeds: int,
) -> None:
    """4,000 experiments of two unlearners: intervals apart in fewer than 5 %, each true in 95 %."""
    values = np.random.default_rng(0).normal(size=(4000, 2, seeds))
    means, errors = values.mean(2), values.std(2, ddof=1) / np.sqrt(seeds)
    ends = np.array(
        [
            [Measure(m, e, seeds - 1).interval() for m, e in zip(*both, strict=True)]
            for both in zip(means, errors, strict=True)
        ]
    )
    holds = (ends[..., 0] <= 0) & (ends[..., 1] >= 0)
    assert holds.mean() == pytest.approx(0.95, abs=0.01)  # 8,000 intervals: s.d. 0.0024
    apart = (ends[:, 0, 1] < ends[:, 1, 0]) | (ends[:, 1, 1] < ends[:, 0, 0])
    assert apart.mean() < 0.05


def test_a_mean_over_attacks_has_welchs_degrees_of_freedom() -> None:
    """Of two parts with errors s/√n they are those of Welch's t test, as scipy has them."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, 4), rng.normal(0, 3, 9)
    parts = [Measure(x.mean(), stats.sem(x), len(x) - 1) for x in (one, other)]
    expected = stats.ttest_ind(one, other, equal_var=False).df
    assert Measure.mean(parts).degrees == pytest.approx(expected)
    assert Measure.mean([parts[0], Measure(0.0, 0.0)]).degrees == pytest.approx(3)
    assert Measure.mean([Measure(1.0, 0.1), Measure(1.0, 0.2)]).degrees == np.inf


def test_a_share_is_by_the_scores_that_removed_rests_on(pair: tuple[Results, Results]) -> None:
    """A weak score's share, however large, does not count."""
    (name,) = pair[0].telling(0.2)
    other = {"gus": "rank", "rank": "gus"}[name]
    rows = pair[0].rows.copy()
    rows.loc[rows["role"] == "initial", f"{other}_dependence"] = 0.01
    weak = replace(pair[0], rows=rows)
    assert weak.telling(0.2) == [name]
    found, summary = leaderboard([weak]).set_index("unlearner"), weak.summary.set_index("unlearner")
    values = summary[f"{name}_dependence"]
    assert found.loc["gd", "left"] == pytest.approx(abs(values["gd"]) / values["none"])
    assert found.loc["gd", "left"] < 2
    shown = charts.models(weak).set_index("model")
    assert shown.loc["GD", "left"] == pytest.approx(values["gd"] / values["none"])
    assert shown.loc["GD", "by"] == SCORES[name].title


def test_effects_with_a_clean_twin_are_compared_by_their_differences_to_it(
    matching: Results,
) -> None:
    """A twin that moved by as much as its model leaves no difference."""
    shifted = matching.rows.copy()
    gd = shifted["unlearner"] == "gd"
    jitter = np.linspace(0, 0.01, int(gd.sum()))
    for column in ("target_probability", "twin_target_probability"):
        shifted.loc[gd, column] += 0.3 + jitter
    both = replace(matching, rows=shifted)
    line = compare(matching, both).query("measure == 'target' and a == 'gd'").iloc[0]
    assert line["difference"] == pytest.approx(0, abs=1e-12)
    rows = matching.rows.query("unlearner == 'gd'")
    left = rows["target_probability"] - rows["twin_target_probability"]
    assert line["mean_a"] == pytest.approx(left.mean())


def test_an_unlearner_without_every_attack_has_no_rank(tiny_run: Results) -> None:
    other = tiny_run.recipe.attack.model_copy(update={"name": "another"})
    recipe = tiny_run.recipe.model_copy(update={"attack": other})
    rows = tiny_run.rows[tiny_run.rows["unlearner"] != "euk"].reset_index(drop=True)
    table = leaderboard([tiny_run, replace(tiny_run, recipe=recipe, rows=rows)])
    found = table.set_index("unlearner")
    assert found.loc["euk", "experiments"] == 1
    assert np.isnan(found.loc["euk", "rank"])
    assert found.loc["gd", "experiments"] == 2
    assert set(table["unlearner"].tail(2)) == {"none", "retrain (full)"}
    ranks = table["rank"].dropna().tolist()
    assert all(before <= after for before, after in pairwise(ranks))


def test_an_unlearner_without_a_model_in_one_training_has_no_rank(tiny_run: Results) -> None:
    rows = tiny_run.rows.copy()
    lost = (rows["unlearner"] == "euk") & (rows["seed"] == rows["seed"].max())
    rows.loc[lost, "test_accuracy"] = np.nan
    found = leaderboard([replace(tiny_run, rows=rows)])
    assert "gd" in set(found["unlearner"])
    assert "euk" not in set(found["unlearner"])


def test_an_unlearner_tried_on_some_of_the_data_has_no_rank(tiny_run: Results) -> None:
    """One attack on two data sets: whoever was tried on the easier alone is not ranked by it."""
    rows = tiny_run.rows[tiny_run.rows["unlearner"] != "euk"].reset_index(drop=True)
    other = replace(tiny_run, rows=rows.assign(data="another"))
    found = leaderboard([tiny_run, other]).set_index("unlearner")
    assert np.isnan(found.loc["euk", "rank"])
    assert not np.isnan(found.loc["gd", "rank"])


@pytest.mark.parametrize(
    ("trials", "shown"),
    [
        ([("REMOVED", True), ("INCONCLUSIVE", False)], "REMOVED"),
        ([("REMOVED", True), ("INCONCLUSIVE", True)], "INCONCLUSIVE"),
        ([("REMOVED", True), ("NOT REMOVED", False)], "NOT REMOVED"),
        ([("INCONCLUSIVE", False)], "INCONCLUSIVE"),
        ([], "–"),
    ],
)
def test_an_experiment_too_small_for_anybody_takes_no_acquittal_away(
    trials: list[tuple[str, bool]], shown: str
) -> None:
    unknown = Measure(0.0, 0.0)
    assert _worst([Trial(unknown, unknown, 0.1, *of) for of in trials]) == shown


def test_whoever_misses_by_an_accuracy_of_one_seed_has_no_rank(tiny_run: Results) -> None:
    """Its error is not known, so nobody would be surely better than a ruined model."""
    rows = tiny_run.rows[tiny_run.rows["seed"] == 0].reset_index(drop=True)
    ruined = rows.assign(test_accuracy=rows["test_accuracy"].mask(rows["unlearner"] == "gd", 0.0))
    found = leaderboard([replace(tiny_run, rows=ruined)]).set_index("unlearner")
    assert found.loc["gd", "misses"] == found.loc["gd", "lost"] > 1
    assert np.isnan(found.loc["gd", "rank"])
    low, high = Measure(0.5, 0.1).interval()
    assert (low, high) == pytest.approx((0.5 - 0.196, 0.5 + 0.196), abs=1e-4)


def test_where_retraining_is_no_better_than_chance_no_accuracy_is_lost(tiny_run: Results) -> None:
    spread = tiny_run.rows["seed"].map({0: -0.2, 1: 0.2}).fillna(0.0)
    rows = tiny_run.rows.assign(test_accuracy=tiny_run.rows["chance"] + 0.01 + spread)
    ruined = rows.assign(test_accuracy=rows["test_accuracy"].mask(rows["unlearner"] == "gd", 0.0))
    found = leaderboard([replace(tiny_run, rows=ruined)]).set_index("unlearner")
    assert found.loc["gd", "lost"] == 0
    assert found.loc["gd", "misses"] == found.loc["gd", "left"]


def test_the_error_of_what_is_lost_is_that_of_a_quotient() -> None:
    """Against a simulation of both means, of independent seeds."""
    rng = np.random.default_rng(0)
    retrained = pd.Series(
        {"role": "retrained", "test_accuracy": 0.9, "test_accuracy_sd": 0.06, "seeds": 4}
    )
    line = pd.Series(
        {"role": "updated", "accuracy_cost": 0.3, "test_accuracy_sd": 0.08, "seeds": 4}
    )
    found = _lost(line, retrained, 0.1)
    full, own = rng.normal(0.9, 0.03, 200_000), rng.normal(0.6, 0.04, 200_000)
    shares = (full - own) / (full - 0.1)
    assert found.value == pytest.approx(0.375)
    assert found.error == pytest.approx(shares.std(), rel=0.02)
    assert _lost(retrained, retrained, 0.1) == Measure(0.0, 0.0)


def test_without_controls_or_an_effect_nothing_is_ranked(tiny_run: Results) -> None:
    assert leaderboard([]).empty
    rows = tiny_run.rows
    without = rows[rows["role"] != "retrained"].reset_index(drop=True)
    assert leaderboard([replace(tiny_run, rows=without)]).empty
    blind = rows.assign(test_accuracy=np.nan)
    assert leaderboard([replace(tiny_run, rows=blind)]).empty
    initial = rows["role"] == "initial"
    flat = rows.assign(
        **{c: rows[c].mask(initial, 0.0) for c in ("gus_dependence", "rank_dependence")}
    )
    assert leaderboard([replace(tiny_run, rows=flat)]).empty
    other_way = rows.assign(
        **{c: rows[c].mask(initial, -9.0) for c in ("gus_dependence", "rank_dependence")}
    )
    assert leaderboard([replace(tiny_run, rows=other_way)]).empty


def test_two_versions_are_told_apart_by_what_they_differ_in() -> None:
    def cell(name: str, given: str) -> tuple[str, str]:
        return name, given

    mine = [f'{{"options": {{"lr": {lr}, "k": 3}}, "source": "0a"}}' for lr in (0.02, 0.08)]
    one, two = (cell("myunl:mine", given) for given in mine)
    alone: tuple[dict[str, set[str]], ...] = ({}, {})
    assert _names(one, two, alone) == ("myunl:mine lr=0.02", "myunl:mine lr=0.08")
    changed = cell("myunl:mine", mine[0].replace("0a", "0b"))
    assert _names(one, changed, alone) == ("myunl:mine source=0a", "myunl:mine source=0b")
    assert _names(cell("gd", '{"lr": 1}'), cell("ga", '{"lr": 2}'), alone) == ("gd", "ga")
    # and from other entries of their runs
    gd = cell("gd", '{"lr": 1, "momentum": 0}')
    assert _names(gd, gd, ({"gd": {"lr"}}, {})) == ("gd lr=1", "gd")


def test_a_search_beside_a_single_setting_differs_in_what_it_searches_alone() -> None:
    alone, first, second = (
        RecordedNamed.model_validate({"name": "gd", "lr": lr, "momentum": 0.9}) for lr in (1, 2, 3)
    )
    assert differing([[alone], [first, second]]) == {"gd": {"lr"}}
    assert differing([[alone], [alone, alone]]) == {"gd": set()}


def test_a_trial_that_stands_alone_in_one_run_stays_in_the_others_search(tiny_run: Results) -> None:
    ((alone,),) = (trials for trials in tiny_run.recipe.unlearners if trials[0].name == "gd")
    other = RecordedNamed.model_validate({**alone.model_dump(), "lr": 0.5})
    searched = tiny_run.recipe.model_copy(update={"unlearners": ((alone, other),)})
    search = replace(tiny_run, recipe=searched)
    for merged in (together(tiny_run, search), together(search, tiny_run)):
        assert [of for of in merged.recipe.unlearners if of[0].name == "gd"] == [(alone, other)]


def test_searches_that_share_a_trial_are_one_search(tiny_run: Results) -> None:
    """Whichever comes first: a trial of both has one row, and one search chooses among all."""
    ((gd,),) = (trials for trials in tiny_run.recipe.unlearners if trials[0].name == "gd")
    lrs = [RecordedNamed.model_validate({**gd.model_dump(), "lr": lr}) for lr in (0.1, 0.2, 0.3)]
    one, other = (
        replace(tiny_run, recipe=tiny_run.recipe.model_copy(update={"unlearners": (tuple(of),)}))
        for of in (lrs[:2], lrs[1:])
    )
    for merged in (together(one, other), together(other, one)):
        (search,) = merged.recipe.unlearners
        assert sorted(search, key=lambda trial: trial.hyperparameters["lr"]) == lrs


def test_what_one_run_alone_was_asked_for_stays_whichever_comes_first(tiny_run: Results) -> None:
    asked = replace(tiny_run, rows=tiny_run.rows.assign(perplexity=2.0))
    for merged in (together(tiny_run, asked), together(asked, tiny_run)):
        assert len(merged.rows) == len(tiny_run.rows)
        assert (merged.rows["perplexity"] == 2.0).all()


def test_trainings_that_are_all_alike_have_a_share_without_an_error() -> None:
    """As of whoever ends with its twin's very parameters; of a single training nothing is known."""
    alike = {"x_error": np.nan, "x_trainings_error": np.nan, "x_trainings": 4.0}
    initial = pd.Series({"role": "initial", "x_dependence": 0.5, "seeds": 4, **alike})
    line = pd.Series({"role": "updated", "x_dependence": 0.0, "seeds": 4, **alike})
    assert _share(line, initial, "x").error == 0
    assert np.isnan(_share(line.replace(4, 1), initial, "x").error)
    noisy = pd.Series({**line, "x_dependence": 0.2, "x_error": 0.1})
    assert _share(noisy, initial, "x").error == pytest.approx(0.1 / 0.5)


def test_retraining_in_fewer_seeds_is_compared_within_those(pair: tuple[Results, Results]) -> None:
    rows = pair[0].rows
    full = rows[rows["role"] == "retrained"].set_index("seed")["test_accuracy"]
    gd = rows[rows["unlearner"] == "gd"].set_index("seed")["test_accuracy"]
    fewer = rows[(rows["role"] != "retrained") | (rows["seed"] < 2)].reset_index(drop=True)
    summary = replace(pair[0], rows=fewer).summary.set_index("unlearner")
    assert summary.loc["gd", "accuracy_cost"] == pytest.approx((full - gd)[[0, 1]].mean())
