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


def series(*values: float) -> pd.Series:
    """Values by seed."""
    return pd.Series(values, dtype=float)


def test_over_seeds_is_scipys_one_sided_t_test(evidence: ModuleType) -> None:
    values = series(*np.random.default_rng(1).normal(0.3, 1, 7))
    expected = stats.ttest_1samp(values, 0, alternative="greater").pvalue
    assert evidence.over_seeds(values, "a").p == pytest.approx(expected)
    assert evidence.over_seeds(series(0.1, 0.1), "a").p == 0.25  # by signs: equal values have no t
    for unknown in (values[:1], series(*values, math.nan)):  # a training may have given no model
        assert evidence.over_seeds(unknown, "a").p == 1
        assert evidence.over_seeds(unknown, "a").seeds(LEVEL) == {"a": math.inf}


@pytest.mark.parametrize("mean", [0.6, 1.5])
def test_the_seeds_that_are_asked_for_show_it_nine_times_in_ten(
    evidence: ModuleType, mean: float
) -> None:
    """Values of the asked mean and deviation, simulated: one training fewer has less power."""
    few = series(*(mean + np.array([-1, 1]) / math.sqrt(2)))  # of deviation 1
    asked = int(evidence.over_seeds(few, "a").seeds(LEVEL)["a"])

    def power(trainings: int) -> float:
        tests = stats.ttest_1samp(drawn(mean, trainings), 0, axis=1, alternative="greater")
        return float((tests.pvalue <= LEVEL).mean())

    assert power(asked) >= 0.9 or within(power(asked), 0.9)
    assert power(asked - 1) < 0.9 or within(power(asked - 1), 0.9)


def test_no_number_of_seeds_turns_a_mean_round(evidence: ModuleType) -> None:
    assert evidence.over_seeds(series(-1.0, -2.0, 0.5), "a").seeds(LEVEL) == {"a": math.inf}
    shown = evidence.over_seeds(series(1.0, 1.1, 0.9, 1.0), "a")
    assert shown.p <= LEVEL
    assert shown.seeds(LEVEL) == {}
    assert shown.seeds(1e-9)["a"] > 4  # what is not shown asks for more than there are


@pytest.mark.parametrize("joined", ["any_of", "all_of"])
def test_what_joins_statements_keeps_their_level(evidence: ModuleType, joined: str) -> None:
    """At the edge: of `any_of` none is so, of `all_of` all but one are as surely so as can be."""
    rng, join = np.random.default_rng(2), getattr(evidence, joined)
    rejected = 0
    for p in rng.uniform(size=(REPETITIONS, 4)):
        if joined == "all_of":
            p[1:] = 0
        rejected += join(evidence.statement(float(one), "a", float) for one in p).p <= LEVEL
    level = 1 - (1 - LEVEL / 4) ** 4 if joined == "any_of" else LEVEL
    assert level <= LEVEL
    assert within(rejected / REPETITIONS, level)


def test_seeds_of_joined_statements(evidence: ModuleType) -> None:
    def asks(level: float = 1.0, **seeds: float) -> object:
        return evidence.Statement(1.0, lambda at: {n: s / at for n, s in seeds.items()})

    few, many, never, shown = asks(a=1), asks(a=3, b=2), asks(c=math.inf), evidence.SHOWN
    assert evidence.all_of([few, many, shown]).seeds(1) == {"a": 3, "b": 2}  # each experiment once
    assert evidence.any_of([many, few, never]).seeds(1) == {"a": 3}  # the cheapest way, at a third
    assert not math.isfinite(max(evidence.all_of([few, never]).seeds(1).values()))
    for join in (evidence.all_of, evidence.any_of):  # of no rows nothing is shown, nor ever will be
        assert join([]).p == 1
        assert math.inf in join([]).seeds(LEVEL).values()


def test_joined_statements_name_the_experiments_that_decide(evidence: ModuleType) -> None:
    sure, unsure = (evidence.statement(p, name, float) for p, name in ((0.01, "a"), (0.2, "b")))
    assert evidence.any_of([unsure, evidence.all_of([sure, sure])]).by == ("a",)
    assert evidence.all_of([sure, unsure, sure]).by == ("a", "b")


def test_accuracies_of_two_unlearners_are_paired_by_seed(evidence: ModuleType) -> None:
    experiments = importlib.import_module("experiments")
    one, other = (experiments.cell("digits-gaussian", name) for name in ("gd", "scrub"))
    rows = experiments.results("digits-gaussian").rows
    values = [
        rows[rows["unlearner"] == name].set_index("seed")["test_accuracy"].sort_index()
        for name in ("gd", "scrub")
    ]
    expected = stats.ttest_rel(*values, alternative="greater").pvalue
    assert evidence.beats(one, other).p == pytest.approx(expected)


def test_a_poison_is_held_against_its_own_perturbations_in_random_order(
    evidence: ModuleType,
) -> None:
    """On two layers noise costs more than the poison; on one it costs next to nothing."""
    experiments = importlib.import_module("experiments")
    rows = experiments.results("digits-indiscriminate-hidden").rows
    cost = {
        role: (of["test_error"] - of["twin_test_error"]).set_axis(of["seed"]).sort_index()
        for role, of in rows[rows["role"].isin(["initial", "shuffled"])].groupby("role")
    }
    expected = stats.ttest_rel(cost["initial"], cost["shuffled"], alternative="greater").pvalue
    found = evidence.beats_noise(experiments.cell("digits-indiscriminate-hidden", "gd"))
    assert found.p == pytest.approx(expected)
    assert found.p > 0.9
    assert evidence.beats_noise(experiments.cell("digits-indiscriminate", "gd")).p < 1e-6


# Of rows


@pytest.fixture
def copied(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., object]]:
    """Gives a cell of an experiment whose rows were copied, and changed."""
    experiments = importlib.import_module("experiments")
    monkeypatch.setattr(experiments, "ROWS", tmp_path)

    def made(name: str, change: Callable[[pd.DataFrame], object], unlearner: str = "gd") -> object:
        shutil.copytree(FOLDER / name, tmp_path / name, dirs_exist_ok=True)
        rows = read_file(tmp_path / name)
        changed = change(rows.frame)
        write_rows(rows.frame if changed is None else changed, rows.path, rows.runs)
        experiments.results.cache_clear()
        return experiments.cell(name, unlearner)

    yield made
    experiments.results.cache_clear()


def leaves(
    column: str, share: float, base: str | None = None, noise: float = 0.02
) -> Callable[[pd.DataFrame], None]:
    """Makes GD leave a share of the initial effect by a score."""

    def change(frame: pd.DataFrame) -> None:
        seeds = frame[frame["role"] == "initial"].set_index("seed")
        own = frame["unlearner"] == "gd"
        before = seeds[column] - (seeds[base] if base else 0)
        shares = share + np.random.default_rng(3).normal(0, noise, own.sum())
        left = shares * frame.loc[own, "seed"].map(before)
        frame.loc[own, column] = left + (frame.loc[own, base] if base else 0)

    return change


def by_both(share: float, gus: float | None = None) -> Callable[[pd.DataFrame], None]:
    """Makes GD leave a share of a Gaussian poison's effect by the rank score, and by GUS."""

    def change(frame: pd.DataFrame) -> None:
        leaves("rank_dependence", share)(frame)
        leaves("gus_dependence", share if gus is None else gus)(frame)

    return change


def test_a_gaussian_poison_is_asked_by_the_papers_score_too(
    evidence: ModuleType, copied: Callable[..., object]
) -> None:
    of = copied("digits-gaussian", by_both(0.97, gus=0.5))
    assert evidence.helps(of).p <= LEVEL < evidence.does_not_help(of).p
    far = copied("digits-gaussian", by_both(0.05, gus=0.5))
    assert evidence.stays_far(far).p <= LEVEL < evidence.comes_close(far).p


@pytest.mark.parametrize(
    ("experiment", "unlearner", "so"),
    [
        ("cifar10-indiscriminate", "euk", True),  # of one layer, all of which is drawn anew
        ("cifar10-indiscriminate", "gd", False),
        ("digits-gaussian", "euk", False),
    ],
)
def test_euk_is_retraining_where_the_model_has_one_layer(
    evidence: ModuleType, experiment: str, unlearner: str, so: bool
) -> None:
    cell = importlib.import_module("experiments").cell(experiment, unlearner)
    assert evidence.is_retraining(cell) is so


@pytest.mark.parametrize(
    ("share", "helps", "does_not"),
    [(0.9, False, True), (0.7, True, False), (0.8, False, False), (-0.1, True, False)],
)
def test_an_unlearner_helps_or_does_not(
    evidence: ModuleType,
    copied: Callable[..., object],
    share: float,
    helps: bool,
    does_not: bool,
) -> None:
    of = copied("digits-gaussian", by_both(share))
    assert (evidence.helps(of).p <= LEVEL) is helps
    assert (evidence.does_not_help(of).p <= LEVEL) is does_not
    assert evidence.enlarges(of).p > LEVEL


@pytest.mark.parametrize(
    ("share", "close", "far"),
    [(0.1, True, False), (-0.1, True, False), (0.2, False, False), (0.5, False, True)],
)
def test_an_unlearner_comes_close_or_stays_far(
    evidence: ModuleType, copied: Callable[..., object], share: float, close: bool, far: bool
) -> None:
    of = copied("digits-gaussian", by_both(share))
    assert (evidence.comes_close(of).p <= LEVEL) is close
    assert (evidence.stays_far(of).p <= LEVEL) is far


def test_an_effect_that_turned_round_is_not_gone(
    evidence: ModuleType, copied: Callable[..., object]
) -> None:
    of = copied("digits-gaussian", by_both(-2))
    assert evidence.helps(of).p > LEVEL
    assert evidence.helps(of).seeds(LEVEL) == {"digits-gaussian": math.inf}
    more = copied("digits-gaussian", by_both(1.3))
    assert evidence.enlarges(more).p <= LEVEL


@pytest.mark.parametrize(("share", "helps"), [(0.95, False), (0.5, True)])
def test_an_effect_with_a_twin_is_the_difference_to_it(
    evidence: ModuleType, copied: Callable[..., object], share: float, helps: bool
) -> None:
    change = leaves("target_probability", share, "twin_target_probability")
    of = copied("digits-targeted", change)
    assert (evidence.helps(of).p <= LEVEL) is helps
    assert (evidence.does_not_help(of).p <= LEVEL) is not helps


@pytest.mark.parametrize("trainings", [6, 12, 30])
@pytest.mark.parametrize(("says", "kept"), [("does_not_help", 0.8), ("comes_close", 0.2)])
def test_what_works_in_most_trainings_is_not_taken_for_all(
    evidence: ModuleType, monkeypatch: pytest.MonkeyPatch, trainings: int, says: str, kept: float
) -> None:
    """All of the effect is left in some trainings, or none: a t test alone is wrong in a quarter."""
    before, rng = pd.Series(np.ones(trainings)), np.random.default_rng(4)
    of = importlib.import_module("experiments").cell("digits-targeted", "gd")
    monkeypatch.setattr(evidence, "shows", lambda of: evidence.SHOWN)
    wrong = 0
    for _ in range(500):
        after = pd.Series((rng.uniform(size=trainings) < kept) + rng.normal(0, 0.001, trainings))
        monkeypatch.setattr(evidence, "effects", lambda of, a=after: [evidence.Effect(before, a)])
        wrong += getattr(evidence, says)(of).p <= LEVEL
    assert wrong / 500 <= LEVEL + 4 * math.sqrt(LEVEL * (1 - LEVEL) / 500)


def test_without_an_effect_nothing_is_said_of_it(
    evidence: ModuleType, copied: Callable[..., object]
) -> None:
    def no_effect(frame: pd.DataFrame) -> None:
        columns = ["target_probability", "twin_target_probability"]
        frame.loc[frame["role"] == "initial", columns] = 0.3

    of = copied("digits-targeted", no_effect)
    for says in (
        *(evidence.helps, evidence.does_not_help, evidence.enlarges, evidence.removed),
        *(evidence.comes_close, evidence.stays_far),
    ):
        assert says(of).p == 1
        assert says(of).seeds(LEVEL) == {"digits-targeted": math.inf}


def test_trainings_are_paired_by_their_seed(
    evidence: ModuleType, copied: Callable[..., object]
) -> None:
    """A seed that lacks a model is never compared with another's."""

    def without(frame: pd.DataFrame) -> pd.DataFrame:
        gone = (frame["unlearner"] == "gd") & (frame["seed"] == 1)
        return frame[~(gone | (frame["role"] == "initial") & (frame["seed"] == 0))]

    of = copied("digits-gaussian", without)
    assert evidence.does_not_help(of).p == 1
    assert evidence.costs_less(of, 0.5).p == 1
    reordered = copied("digits-gaussian", lambda frame: frame.sample(frac=1, random_state=0))
    experiments = importlib.import_module("experiments")
    shuffled = evidence.does_not_help(reordered).p
    experiments.results.cache_clear()
    in_order = evidence.does_not_help(copied("digits-gaussian", lambda frame: None)).p
    assert shuffled == pytest.approx(in_order)


def test_accuracy_is_compared_within_seeds(evidence: ModuleType) -> None:
    experiments = importlib.import_module("experiments")
    of = experiments.cell("digits-gaussian", "gd")
    rows = experiments.results("digits-gaussian").rows
    full = rows[rows["role"] == "retrained"].set_index("seed")["test_accuracy"]
    own = rows[rows["unlearner"] == "gd"].set_index("seed")["test_accuracy"]
    for allowed in (-0.01, 0.0, 0.01):
        less = stats.ttest_1samp(full - own, allowed, alternative="less").pvalue
        assert evidence.costs_less(of, allowed).p == pytest.approx(less)
        assert evidence.costs_more(of, allowed).p == pytest.approx(1 - less)


# Of verdicts


def test_a_verdict_has_its_own_p_value(evidence: ModuleType) -> None:
    of = importlib.import_module("experiments").cell("digits-targeted", "euk")
    assert of.verdict == "REMOVED"
    assert evidence.removed(of).p == of.line["p_removed"]
    # A trace can be detected that is surely within the margin: REMOVED is not NOT REMOVED too.
    assert of.line["p_not_removed"] <= LEVEL
    assert evidence.not_removed(of).p == 1
    kept = importlib.import_module("experiments").cell("digits-targeted", "gd")
    assert evidence.not_removed(kept).p == kept.line["p_not_removed"]
    assert evidence.removed(kept).p == 1


def test_a_gaussian_verdict_is_of_trainings_to_come_too(
    evidence: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings whose means lie about the margin: a p-value given the trainings could be any."""
    of = importlib.import_module("experiments").cell("digits-gaussian", "gd")
    of.line["verdict"], of.line["p_removed"] = "REMOVED", 1e-9
    before = pd.Series(np.ones(4))
    monkeypatch.setattr(evidence, "shows", lambda of: evidence.SHOWN)
    rejected = 0
    for left in np.random.default_rng(5).normal(evidence.MARGIN, 0.08, (500, 4)):
        effect = evidence.Effect(before, pd.Series(left))
        monkeypatch.setattr(evidence, "effects", lambda of, effect=effect: [effect])
        rejected += evidence.removed(of).p <= LEVEL / 28
    assert rejected / 500 <= LEVEL / 28 + 4 * math.sqrt(LEVEL / 28 / 500)


@pytest.mark.parametrize(
    ("name", "unlearner", "verdict"),
    [("digits-targeted", "euk", "removed"), ("digits-targeted", "gd", "not_removed")],
)
def test_the_seeds_that_a_verdict_asks_for_give_it(
    evidence: ModuleType, copied: Callable[..., object], name: str, unlearner: str, verdict: str
) -> None:
    """A few of an experiment's trainings ask for a number; copies of them up to it give the verdict."""
    few = range(4)

    def cut(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["seed"].isin(few)]

    def filled(number: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
        def change(frame: pd.DataFrame) -> pd.DataFrame:
            own = cut(frame)
            copies = [
                own[own["seed"] == seed % len(few)].assign(seed=seed) for seed in range(number)
            ]
            return pd.concat(copies, ignore_index=True)

        return change

    before = getattr(evidence, verdict)(copied(name, cut, unlearner))
    assert before.p > LEVEL
    (number,) = before.seeds(LEVEL).values()
    after = getattr(evidence, verdict)(copied(name, filled(int(number)), unlearner))
    assert after.p <= LEVEL
