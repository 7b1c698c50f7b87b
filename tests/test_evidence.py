"""The statements that the paper's claims are answered by: their levels, and the seeds that they ask for."""

import importlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from marshtest.experiment.row_file import read_file, write_rows

FOLDER = Path(__file__).parents[1] / "docs" / "reproduce"
LEVEL = 0.05
REPETITIONS = 4_000


@pytest.fixture(scope="module")
def evidence() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("evidence")
    sys.path.remove(str(FOLDER))
    for name in ("evidence", "experiments"):
        sys.modules.pop(name, None)


def within(share: float, truth: float) -> bool:
    """Whether a share of simulations is what it should be, but for one in 15,000 such tests."""
    return abs(share - truth) <= 4 * math.sqrt(truth * (1 - truth) / REPETITIONS)


def drawn(mean: float, trainings: int) -> np.ndarray:
    """[REPETITIONS, trainings] normal values of deviation 1."""
    return np.random.default_rng(0).normal(mean, 1, (REPETITIONS, trainings))


def test_over_seeds_is_scipys_one_sided_t_test(evidence: ModuleType) -> None:
    values = np.random.default_rng(1).normal(0.3, 1, 7)
    expected = stats.ttest_1samp(values, 0, alternative="greater").pvalue
    assert evidence.over_seeds(values, "a").p == pytest.approx(expected)
    undefined = evidence.over_seeds(np.array([*values, math.nan]), "a")
    assert undefined.p == pytest.approx(expected)  # a training without a model tells nothing
    assert evidence.over_seeds(values[:1], "a").p == 1


@pytest.mark.parametrize("mean", [0.6, 1.5])
def test_the_seeds_that_are_asked_for_show_it_nine_times_in_ten(
    evidence: ModuleType, mean: float
) -> None:
    """Values of the asked mean and deviation, simulated: one training fewer has less power."""
    few = mean + np.array([-1, 1]) / math.sqrt(2)  # of deviation 1
    asked = int(evidence.over_seeds(few, "a").seeds(LEVEL)["a"])

    def power(trainings: int) -> float:
        tests = stats.ttest_1samp(drawn(mean, trainings), 0, axis=1, alternative="greater")
        return float((tests.pvalue <= LEVEL).mean())

    assert power(asked) >= 0.9 or within(power(asked), 0.9)
    assert power(asked - 1) < 0.9 or within(power(asked - 1), 0.9)


def test_no_number_of_seeds_turns_a_mean_round(evidence: ModuleType) -> None:
    assert evidence.over_seeds(np.array([-1.0, -2.0, 0.5]), "a").seeds(LEVEL) == {"a": math.inf}
    shown = evidence.over_seeds(np.array([1.0, 1.1, 0.9, 1.0]), "a")
    assert shown.p <= LEVEL
    assert shown.seeds(LEVEL) == {}


@pytest.mark.parametrize("joined", ["any_of", "all_of"])
def test_what_joins_statements_keeps_their_level(evidence: ModuleType, joined: str) -> None:
    """At the edge: of `any_of` none is so, of `all_of` all but one are as surely so as can be."""
    rng, join = np.random.default_rng(2), getattr(evidence, joined)
    rejected = 0
    for p in rng.uniform(size=(REPETITIONS, 4)):
        if joined == "all_of":
            p[1:] = 0
        rejected += join(evidence.Statement(float(one)) for one in p).p <= LEVEL
    level = 1 - (1 - LEVEL / 4) ** 4 if joined == "any_of" else LEVEL
    assert level <= LEVEL
    assert within(rejected / REPETITIONS, level)


def test_seeds_of_joined_statements(evidence: ModuleType) -> None:
    def asks(level: float = 1.0, **seeds: float) -> object:
        return evidence.Statement(1.0, lambda at: {n: s / at for n, s in seeds.items()})

    few, many, never = asks(a=1), asks(a=3, b=2), asks(c=math.inf)
    shown = evidence.Statement(0.001)
    assert evidence.all_of([few, many, shown]).seeds(1) == {"a": 3, "b": 2}  # each experiment once
    assert evidence.any_of([many, few, never]).seeds(1) == {"a": 3}  # the cheapest way, at a third
    assert not math.isfinite(max(evidence.all_of([few, never]).seeds(1).values()))
    for join in (evidence.all_of, evidence.any_of):  # of no rows nothing is shown, nor ever will be
        assert join([]).p == 1
        assert math.inf in join([]).seeds(LEVEL).values()


# Of rows


@pytest.fixture
def with_left(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, float, float], object]]:
    """Makes a cell of rows in which GD leaves these shares of the effect by each of two scores."""
    experiments = importlib.import_module("experiments")
    monkeypatch.setattr(experiments, "ROWS", tmp_path)

    def change(frame: pd.DataFrame, column: str, share: float, base: str | None) -> None:
        seeds = frame[frame["role"] == "initial"].set_index("seed")
        own = frame["unlearner"] == "gd"
        before = seeds[column] - (seeds[base] if base else 0)
        noise = np.random.default_rng(3).normal(0, 0.02, own.sum())
        left = (share + noise) * frame.loc[own, "seed"].map(before)
        frame.loc[own, column] = left + (frame.loc[own, base] if base else 0)

    def made(name: str, *shares: float) -> object:
        shutil.copytree(FOLDER / name, tmp_path / name, dirs_exist_ok=True)
        rows = read_file(tmp_path / name)
        columns = (
            [("gus_dependence", None), ("rank_dependence", None)]
            if len(shares) == 2
            else [("target_probability", "twin_target_probability")]
        )
        for (column, base), share in zip(columns, shares, strict=True):
            change(rows.frame, column, share, base)
        write_rows(rows.frame, rows.path, rows.runs)
        experiments.results.cache_clear()
        return experiments.cell(name, "gd")

    yield made
    experiments.results.cache_clear()


@pytest.mark.parametrize(
    ("shares", "helps", "does_not"),
    [
        ((0.9, 0.9), False, True),
        ((0.9, 0.7), True, False),  # one score is enough to help, and all are asked not to
        ((0.8, 0.8), False, False),
        ((-0.1, 0.1), True, False),
    ],
)
def test_helping_is_by_some_score_and_not_helping_by_all(
    evidence: ModuleType,
    with_left: Callable[..., object],
    shares: tuple[float, float],
    helps: bool,
    does_not: bool,
) -> None:
    of = with_left("digits-gaussian", *shares)
    assert (evidence.helps(of).p <= LEVEL, evidence.does_not_help(of).p <= LEVEL) == (
        helps,
        does_not,
    )


@pytest.mark.parametrize(("share", "helps"), [(0.95, False), (0.5, True)])
def test_an_effect_with_a_twin_is_the_difference_to_it(
    evidence: ModuleType, with_left: Callable[..., object], share: float, helps: bool
) -> None:
    of = with_left("digits-targeted", share)
    assert (evidence.helps(of).p <= LEVEL) is helps
    assert (evidence.does_not_help(of).p <= LEVEL) is not helps
    assert (evidence.leaves_more(of, 1.0).p <= LEVEL) is False


def test_without_an_effect_nothing_is_left_of_it(
    evidence: ModuleType, with_left: Callable[..., object]
) -> None:
    of = with_left("digits-gaussian", 0.9, 0.9)
    of.initial["verdict"] = "INCONCLUSIVE"
    assert evidence.does_not_help(of).p == 1
    assert evidence.does_not_help(of).seeds(LEVEL) == {"digits-gaussian": math.inf}


def test_accuracy_is_compared_within_seeds(
    evidence: ModuleType, with_left: Callable[..., object]
) -> None:
    of = with_left("digits-gaussian", 0.9, 0.9)
    experiments = importlib.import_module("experiments")
    rows = experiments.results("digits-gaussian").rows
    full = rows[rows["role"] == "retrained"].set_index("seed")["test_accuracy"]
    own = rows[rows["unlearner"] == "gd"].set_index("seed")["test_accuracy"]
    for allowed in (-0.01, 0.0, 0.01):
        less = stats.ttest_1samp(full - own, allowed, alternative="less").pvalue
        assert evidence.costs_less(of, allowed).p == pytest.approx(less)
        assert evidence.costs_more(of, allowed).p == pytest.approx(1 - less)


def test_a_verdict_has_its_own_p_value(evidence: ModuleType) -> None:
    experiments = importlib.import_module("experiments")
    of = experiments.cell("digits-targeted", "euk")
    assert of.verdict == "REMOVED"
    assert evidence.found(of, "REMOVED").p == of.line["p_removed"]
    # A trace can be detected that is surely within the margin: REMOVED is not NOT REMOVED too.
    assert of.line["p_not_removed"] <= LEVEL
    assert evidence.found(of, "NOT REMOVED").p == 1
    open_one = experiments.cell("digits-targeted", "ga")
    assert open_one.verdict == "INCONCLUSIVE"
    assert evidence.found(open_one, "REMOVED").seeds(LEVEL) == {
        "digits-targeted": open_one.line["needed"]
    }
