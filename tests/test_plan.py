"""A plan's numbers against simulated verdicts."""

import math
from pathlib import Path

import numpy as np
import pytest

from marshtest.errors import MarshtestError
from marshtest.metrics.verdict import Dependence, verdicts
from marshtest.plan import Plan, effects_of, poisons_of_one_run, save_plan
from marshtest.results import Results

PLAN = Plan({"gus": 0.5, "rank": 0.8}, unlearners=4)


def share_of(answer: str, gus: float, rank: float, n: int) -> float:
    """How often one of four unlearners, the others left as they were, gets the answer."""
    rng, error = np.random.default_rng(0), 1 / math.sqrt(n)
    initial = {name: Dependence(v, error, error, n) for name, v in PLAN.effects.items()}
    hits = 0
    for _ in range(1000):
        drawn = {"gus": rng.normal(gus, error), "rank": rng.normal(rank, error)}
        own = {name: Dependence(float(v), error, error, n) for name, v in drawn.items()}
        hits += verdicts(initial, [own, initial, initial, initial])[0].answer == answer
    return hits / 1000


def test_the_planned_number_shows_removal_with_the_wanted_power() -> None:
    n = int(PLAN.table().set_index("score").loc["verdict", "poisons to show removal"])
    slack = 4 * math.sqrt(0.09 / 1000)
    assert share_of("REMOVED", 0.0, 0.0, n) == pytest.approx(0.9, abs=slack + 0.02)
    assert share_of("REMOVED", 0.0, 0.0, n // 4) < 0.5


def test_the_planned_number_detects_with_the_wanted_power() -> None:
    n = int(PLAN.table().set_index("score").loc["verdict", "poisons to detect"])
    found = share_of("NOT REMOVED", 0.5, 0.8, n)
    assert 0.9 - 4 * math.sqrt(0.09 / 1000) < found  # GUS and Holm's easier steps help on


def test_power_grows_with_the_poisons_and_more_unlearners_need_more() -> None:
    curve = PLAN.curve([10, 100, 1000, 10_000])
    for _, lines in curve.groupby("score"):
        assert lines["detection"].is_monotonic_increasing
        assert lines["removal"].is_monotonic_increasing
    more = Plan(PLAN.effects, unlearners=40).table()["poisons to show removal"]
    assert (more > PLAN.table()["poisons to show removal"]).all()


def test_a_pilots_effects_are_its_initial_models(tiny_run: Results, tmp_path: Path) -> None:
    effects = effects_of(tiny_run)
    assert effects["rank"] == tiny_run.summary["rank_dependence"].iloc[0]
    save_plan(Plan(effects), tmp_path / "plan")
    assert {file.name for file in (tmp_path / "plan").iterdir()} == {
        "plan.csv",
        "plan.png",
        "plan.pdf",
    }


def test_what_cannot_be_planned_is_refused() -> None:
    for bad, says in (
        ({"effects": {"gus": 0.0}}, "must be above 0. Got 0"),
        ({"effects": {}}, "give an expected effect"),
        ({"effects": {"gus": 1.0}, "power": 1.0}, "power must lie between 0 and 1. Got 1"),
        ({"effects": {"gus": 1.0}, "unlearners": 0}, "at least one unlearner"),
    ):
        with pytest.raises(MarshtestError, match=says):
            Plan(**bad)  # type: ignore[arg-type]
    assert poisons_of_one_run(50_000, 0.015) == 750
    for fraction in (0.0, 1.0, 1e-9):
        with pytest.raises(MarshtestError, match="makes no poison"):
            poisons_of_one_run(50_000, fraction)
