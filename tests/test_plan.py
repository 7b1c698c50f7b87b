"""A plan's numbers against simulated verdicts."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from marshtest.cli.app import app
from marshtest.commands.marks import STUDY
from marshtest.commands.plan import (
    EFFECTS,
    FAMILY,
    Plan,
    Trainings,
    effects_of,
    plan,
    poisons_of_one_run,
)
from marshtest.metrics.dependence import dependence
from marshtest.metrics.verdict import Evidence, rests_on, verdicts
from marshtest.plumbing.errors import MarshtestError
from marshtest.results.summary import Results

PLAN = Plan({"gus": 0.5, "rank": 0.8}, unlearners=4)


def share_of(answer: str, gus: float, rank: float, n: int) -> float:
    """How often one of four unlearners, the others left as they were, gets the answer."""
    rng, hits, repetitions = np.random.default_rng(0), 0, 400

    def drawn(gus: float, rank: float) -> Evidence:
        scores = {"gus": rng.normal(-gus, 1, n), "rank": rng.normal(-rank, 1, n)}
        return Evidence({0: {name: dependence(values) for name, values in scores.items()}})

    for _ in range(repetitions):
        initial, own = drawn(*PLAN.effects.values()), drawn(gus, rank)
        rests = rests_on(initial, margin=PLAN.margin, alpha=PLAN.alpha, family=4)
        family = [own, initial, initial, initial]
        hits += verdicts(initial, family, rests=rests)[0].answer == answer
    return hits / repetitions


SLACK = 4 * math.sqrt(0.09 / 400)


@pytest.mark.slow
def test_the_planned_number_shows_removal_with_at_least_the_wanted_power() -> None:
    n = int(PLAN.table().set_index("score").loc["verdict", "poisons to show removal"])
    assert share_of("REMOVED", 0.0, 0.0, n) > 0.9 - SLACK
    assert share_of("REMOVED", 0.0, 0.0, n // 4) < 0.5


def test_the_planned_number_detects_with_at_least_the_wanted_power() -> None:
    n = int(PLAN.table().set_index("score").loc["verdict", "poisons to detect"])
    assert share_of("NOT REMOVED", 0.5, 0.8, n) > 0.9 - SLACK


def test_planned_trainings_show_removal_with_the_wanted_power() -> None:
    """An attack that works in 90 % of the trainings, an unlearner that never fails: exact enumeration."""
    line = Trainings(0.9, unlearners=8).table().iloc[0]
    needed = int(line["trainings to show removal"])

    def power(n: int) -> float:
        worked = [k for k in range(n + 1) if (1 - 0.2 * k / n) ** n <= 0.05 / 8]
        return sum(math.comb(n, k) * 0.9**k * 0.1 ** (n - k) for k in worked)

    assert power(needed) >= 0.9 > max(power(n) for n in range(1, needed))
    assert line["trainings to detect, at least"] == 6  # 2 of 64 sign patterns, 1 of 32
    for bad in ({"works": 0.0}, {"works": 1.1}, {"works": 0.9, "unlearners": 0}):
        with pytest.raises(MarshtestError, match=r"plan: (works|unlearners) must"):
            Trainings(**bad)  # type: ignore[arg-type]


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
    assert plan(pilot=tiny_run.folder) == Plan(effects)
    plan(pilot=tiny_run.folder).save(tmp_path / "plan")
    assert {file.name for file in (tmp_path / "plan").iterdir()} == {
        "plan.csv",
        "plan.png",
        "plan.pdf",
    }


def test_a_plan_says_in_runs_what_the_verdict_needs() -> None:
    planned = plan(gus=0.5, rank=1.0, samples=2000)  # 30 poisons a run
    needed = planned.table()["poisons to show removal"].iloc[-1]
    (sentence,) = planned.sentences()
    assert f"needs {needed:,.0f} poisons in all" in sentence
    assert f"{math.ceil(needed / 30)} runs of 30" in sentence
    (sentence,) = plan(gus=0.9, rank=1.0, samples=1797, fraction=0.4).sentences()
    assert sentence.endswith("1 run of 719.")
    planned = plan(works=0.9, unlearners=8)
    (sentence,) = planned.sentences()
    assert f"needs {planned.table()['trainings to show removal'][0]} trainings" in sentence


def test_an_audit_has_one_training_and_so_one_dose(tmp_path: Path) -> None:
    """0.0715 is a fifth of 0.3576: (z at 0.95 + z at 0.975)² / 0.0715² poisons, and no runs."""
    models = [{"gus_dependence": 0.153, "rank_dependence": 0.3576}]
    (tmp_path / "audit.json").write_text(json.dumps({"models": models, "samples": 1797}))
    needed = math.ceil(((1.6448536 + 1.959964) / 0.07152) ** 2)
    few, many = (plan(pilot=tmp_path / "audit.json", samples=n) for n in (None, 10_000))
    for planned, says in (
        (few, "more than can be dosed of its 1,797 samples"),
        (many, "--fraction 0.26 of its 10,000"),
    ):
        (sentence,) = planned.sentences()
        assert f"needs {needed:,} poisons in one dose" in sentence
        assert says in sentence
        assert "runs to show removal" not in planned.table()


def test_the_study_of_marks_says_how_many_records_each_needs() -> None:
    """As many as a plan for the measured effect, of which each seed's rows are as good as another's."""
    study = pd.read_csv(STUDY)
    usual = (study["place"] == "end") & (study["copies"] == 1) & (study["records"] == 120)
    words = study[usual & (study["family"] == "{words:4}") & (study["way"] == "LoRA 32")]
    table = plan(marks=True, unlearners=3).table()
    line = table.set_index(["mark", "training"]).loc[("{words:4}", "LoRA 32, 10 epochs")]
    assert line["rank score"] == pytest.approx(words["dependence"].mean())
    assert line["error"] == pytest.approx(np.sqrt((words["error"] ** 2).sum()) / len(words))
    alone = plan(rank=line["rank score"], unlearners=3).poisons
    assert line["records to show removal"] == alone
    assert table["records to show removal"].is_monotonic_increasing
    assert set(study["family"]) >= set(table["mark"]) - {"capitalised words redrawn"}
    with pytest.raises(MarshtestError, match="says what to expect, so that --rank means nothing"):
        plan(marks=True, rank=1.0)


def test_what_cannot_be_planned_is_refused() -> None:
    for bad, says in (
        ({"effects": {"gus": 0.0}}, "must be above 0, from 0.001 to 100. Got 0"),
        ({"effects": {}}, "give an expected effect"),
        ({"effects": {"gus": 1.0}, "power": 1.0}, "power must lie between 0 and 1. Got 1"),
        ({"effects": {"gus": 1.0}, "power": 0.95}, "power must be below 1 − alpha = 0.95"),
        ({"effects": {"gus": 1.0}, "unlearners": 0}, "unlearners must be from 1 to"),
        ({"effects": {"gus": 1.0}, "unlearners": 10**24}, "unlearners must be from 1 to 1,000,000"),
        ({"effects": {"gus": math.inf}}, "from 0.001 to 100. Got inf"),
        ({"effects": {"gus": math.nan}}, "from 0.001 to 100. Got nan"),
        ({"effects": {"gus": 1e-300}}, "from 0.001 to 100. Got 1e-300"),
    ):
        with pytest.raises(MarshtestError, match=says):
            Plan(**bad)  # type: ignore[arg-type]
    assert poisons_of_one_run(50_000, 0.015) == 750
    for fraction in (0.0, 1.0, 1e-9):
        with pytest.raises(MarshtestError, match="makes no poison"):
            poisons_of_one_run(50_000, fraction)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--gus inf", "Got inf"),
        ("--gus 1e-300", "Got 1e-300"),
        ("--gus nan", "Got nan"),
        ("--rank -1", "Got -1"),
        ("--gus 0", "Got 0"),
        ("", "give an expected effect"),
        ("--gus 1 --unlearners 999999999999999999999999", "unlearners must be from 1 to"),
        ("--gus 1 --unlearners -1", "unlearners must be from 1 to"),
        ("--gus 1 --samples 0", "samples must be at least 1. Got 0"),
        ("--gus 1 --samples -5", "samples must be at least 1. Got -5"),
        ("--gus 1 --samples 100 --fraction 0", "makes no poison"),
        ("--gus 1 --samples 100 --fraction 2", "makes no poison"),
        ("--gus 1 --samples 100 --fraction nan", "makes no poison"),
        ("--works 0.9 --samples 0", "samples must be at least 1"),
        ("--works 0.9 --rank 1", "--rank means nothing"),
        *((f"--works {bad}", "works must lie") for bad in ("0", "1.1", "inf", "nan", "-1")),
        *(
            (f"{of} --{level} {bad}", f"{level} must lie between 0 and 1")
            for of in ("--gus 1", "--works 0.9")
            for level in ("alpha", "power", "margin")
            for bad in ("0", "1", "nan", "inf", "-0.1")
        ),
        ("--gus 0.001 --margin 1e-9", "no number of poisons would do"),
    ],
)
def test_a_plan_out_of_bounds_is_one_line_and_exit_code_2(options: str, says: str) -> None:
    said = CliRunner().invoke(app, ["plan", *options.split()])
    assert said.exit_code == 2
    assert says in " ".join(said.output.split())
    assert len(said.output.splitlines()) == 1


@pytest.mark.parametrize("samples", ["0", "-3", "1e999", "null", '"many"'])
def test_an_audit_of_no_samples_is_none(samples: str, tmp_path: Path) -> None:
    text = f'{{"samples": {samples}, "models": [{{"gus_dependence": 1.0, "gus_poisons": 10}}]}}'
    (tmp_path / "audit.json").write_text(text)
    said = CliRunner().invoke(app, ["plan", "--pilot", str(tmp_path / "audit.json")])
    assert said.exit_code == 2
    assert len(said.output.splitlines()) == 1
    assert "is not the audit.json" in said.output


def test_the_largest_plans_are_finite() -> None:
    for effect in EFFECTS:
        table = Plan({"gus": effect}, unlearners=FAMILY).table()
        assert np.isfinite(table["poisons to show removal"]).all()
