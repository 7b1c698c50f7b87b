"""The audit's verdicts: on honest models, on models that hide, and on the test's own controls."""

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from subjects import SOUND, audited
from torch import nn

from marshtest.attacks.base import Poisoned
from marshtest.attacks.gaussian import Gaussian
from marshtest.data.samples import Samples
from marshtest.kit.audit import Audit, audit
from marshtest.kit.judging import Question, judge
from marshtest.kit.key import Bases
from marshtest.kit.measure import Measured, measure
from marshtest.kit.model import FunctionModel
from marshtest.kit.noise import Noise, Scaling
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.tasks import Classification

DRAWS = 39


@cache
def asked(*models: str, **rest: Any) -> Audit:
    case = audited()
    names = [f"subjects:{model}" for model in models]
    if "retrained" in rest:
        rest["retrained"] = f"subjects:{rest['retrained']}"
    # The modules are this process's own, and other tests ask them on the CPU.
    rest |= {"scaling": Scaling(), "draws": DRAWS, "in_process": True, "device": "cpu"}
    return audit(case.done.key_file, case.source, *names, **rest)


@pytest.mark.slow
def test_a_model_that_kept_the_dose_and_one_that_never_had_it() -> None:
    found = asked("before", "before", "retrained", retrained="retrained")
    assert [judged.verdict.answer for judged in found.models] == [
        "NOT REMOVED",
        "NOT REMOVED",
        "REMOVED",
        "REMOVED",
    ]
    assert (found.answer, found.exit_code) == ("NOT REMOVED", 1)
    assert asked("before", "retrained").exit_code == 0
    assert asked("before").exit_code == 1
    epsilons = [judged.epsilon for judged in found.models]
    assert epsilons[0] > 1 > 0 == epsilons[2]


@pytest.mark.slow
def test_every_column_of_a_table_is_explained_beneath_it() -> None:
    for found in (asked("before"), asked("before", "retrained", retrained="retrained")):
        explained = found.legend()
        for column in found.table().columns.drop(["model", "verdict"]):
            assert column.casefold() in explained.casefold()
    assert "of the retrained model's" in explained
    assert "of the model before unlearning's" in asked("before").legend()


@pytest.mark.slow
def test_a_model_that_keeps_a_tenth_whole_and_pushes_the_others_away_does_not_pass() -> None:
    """Both means are within the margin; the tenth shows in the spread and in the tail."""
    before, after = asked("before", "keeping_a_tenth").models
    initial, scores = before.measured.dependences(), after.measured.dependences()
    for name, score in scores.items():
        assert abs(score.value) < 0.1 * initial[name].value
        assert score.tests["mean"] > 0.05
    assert after.verdict.answer == "NOT REMOVED"
    assert any("kept and others pushed away" in reason for reason in after.reasons)
    assert any("a part of the poisons is kept whole" in reason for reason in after.reasons)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["saturated", "rounded", "clipped", "flat", "random"])
def test_a_model_that_hides_the_signal_is_caught_or_untestable_and_never_passes(
    model: str,
) -> None:
    """The memory is all there; only what shows of it at the base points is masked."""
    found = asked("before", model).models[1]
    assert found.verdict.answer != "REMOVED"
    if model == "saturated":
        assert found.verdict.answer == "NOT REMOVED"
    if model == "flat":
        assert found.measured.figures["vanished"] == len(audited().bases)
        assert found.measured.figures["ties"] > 0.5 * len(audited().bases)
    if model == "rounded":
        assert found.measured.figures["vanished"] > 0
        assert found.measured.figures["ties"] > 0
    if model == "random":
        assert any("asked again" in reason for reason in found.reasons)


@pytest.mark.parametrize("model", ["rounded", "clipped", "flat"])
def test_hiding_is_not_taken_for_forgetting_even_where_nothing_is_left(model: str) -> None:
    """Scores of a masked model are near zero whether it forgot or not: it must stay untestable."""
    measured = asked("before", model).models[1].measured
    shares = {name: score.hidden for name, score in measured.dependences().items()}
    assert max(shares.values()) > 0.2
    reasons = asked("before", model).models[1].reasons
    assert any(reason.startswith("untestable by") for reason in reasons)
    if model == "flat":
        assert "GUS undefined" in asked("before", model).sentences()[1]


def test_gradients_that_are_refused_now_and_then_count_as_hidden() -> None:
    case = audited()
    calls: list[int] = []

    class Fitful(FunctionModel):
        def gradients(self, values: Any, labels: Any) -> Any:
            calls.append(len(values))
            return super().gradients(values, labels) if len(calls) < 2 else None

    asked_model = Fitful("fitful", case.before, lambda x: x / 255, 10, torch.device("cpu"))
    found = measure(asked_model, case.bases, draws=9)
    assert found.figures["vanished"] == len(case.bases)
    assert found.dependences()["gus"].hidden == 1


def test_progress_is_told_from_nothing_to_all() -> None:
    told: list[tuple[str, float]] = []
    asked("before", "retrained", progress=lambda share, stage="": told.append((stage, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert {stage for stage, _ in told} == {"ask subjects:before", "ask subjects:retrained"}


@pytest.mark.slow
def test_a_failed_control_lets_nobody_pass() -> None:
    found = asked("before", "retrained", retrained="before")
    after = found.models[1]
    assert after.verdict.answer == "INCONCLUSIVE"
    assert after.reasons == ("the retrained model, which never saw the dose, came out NOT REMOVED",)
    assert found.exit_code == 3


@pytest.mark.slow
def test_a_control_that_is_in_doubt_is_a_failed_one() -> None:
    found = asked("before", "retrained", retrained="untrained")
    assert [judged.verdict.answer for judged in found.models[1:]] == ["INCONCLUSIVE"] * 2
    assert "the retrained model" in found.models[1].reasons[0]


def test_without_a_dose_in_the_model_before_nothing_is_removed() -> None:
    found = asked("retrained", "retrained")
    assert found.exit_code == 3
    assert "does not show in the model before" in found.sentences()[1]


@pytest.mark.slow
def test_near_chance_is_an_error_before_and_a_doubt_after() -> None:
    with pytest.raises(MarshtestError, match="near chance .* It cannot be tested"):
        asked("untrained", "before")
    found = asked("before", "untrained")
    assert found.models[1].verdict.answer == "INCONCLUSIVE"
    assert "near chance" in found.models[1].reasons[0]


def test_wrong_scaling_is_noticed() -> None:
    case = audited()
    with pytest.raises(
        MarshtestError, match="wrongly scaled inputs: right for .* cannot be tested"
    ):
        audit(
            case.done.key_file,
            case.source,
            "subjects:before",
            scaling=Scaling(std=(1e5,)),  # inputs of no size
            draws=3,
            in_process=True,
            device="cpu",
        )


def test_without_rounding_the_scores_are_those_of_the_protocols_attack() -> None:
    """One implementation against the other: same noise, same model, floating-point inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4)).eval()
    x, y = torch.randn(50, 3, 4), torch.arange(50) % 4
    attack = Gaussian(variance=0.5, draws=19)
    ids = torch.arange(50)
    poisoned = Poisoned(Samples(x, y, ids).perturbed(ids, attack.noise(11, ids, (3, 4))), ids, 11)
    theirs = attack.effect(model, poisoned, Classification())

    noise = Noise(seed=11, variance=0.5, scaling=Scaling(), pixels=False)
    asked_model = FunctionModel("m", model, lambda x: x, 4, torch.device("cpu"))
    ours = measure(asked_model, Bases(ids.numpy(), x.numpy(), y.numpy(), noise), draws=19)
    assert np.allclose(ours.scores["gus"], theirs.scores["gus"], atol=1e-5)
    assert np.allclose(ours.scores["gus_fresh"], theirs.scores["gus_fresh"], atol=1e-5)
    assert (ours.scores["rank"] == theirs.scores["rank"]).all()


def test_scores_of_written_noise_are_standard_under_the_null() -> None:
    """Half black images, so that clipping bites: mean 0, variance 1, uniform ranks."""
    rng = np.random.default_rng(2)
    values = rng.integers(0, 256, (2000, 1, 6, 6), dtype=np.uint8) * rng.integers(
        0, 2, (2000, 1, 6, 6), dtype=np.uint8
    )
    labels = rng.integers(0, 5, 2000)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
    noise = Noise(seed=1, variance=2.0, scaling=Scaling(std=(0.3,)), pixels=True)
    asked_model = FunctionModel("m", model, lambda x: x / 255, 5, torch.device("cpu"))
    found = measure(asked_model, Bases(np.arange(2000), values, labels, noise), draws=DRAWS)
    scores = found.scores["gus"]
    assert abs(scores.mean()) < 4 / math.sqrt(2000)
    assert scores.var() == pytest.approx(1, abs=4 * math.sqrt(2 / 2000))
    assert abs(found.dependences()["rank"].value) < 4 / math.sqrt(2000)


def test_a_batch_dependent_model_keeps_the_rank_score_exact() -> None:
    """BatchNorm left in training mode sees who is asked together; the order of questions is random."""
    rng = np.random.default_rng(4)
    values, labels = rng.integers(0, 256, (1500, 1, 4, 4), dtype=np.uint8), np.arange(1500) % 3
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)).train()
    noise = Noise(seed=2, variance=1.0, scaling=Scaling(std=(0.3,)), pixels=True)
    asked_model = FunctionModel("m", model, lambda x: x / 255, 3, torch.device("cpu"))
    found = measure(asked_model, Bases(np.arange(1500), values, labels, noise), draws=19)
    assert abs(found.dependences()["rank"].value) < 4 / math.sqrt(1500)
    assert any("training mode" in doubt for doubt in found.doubts)


def test_nobody_can_tell_the_dosed_question_by_its_place() -> None:
    places = []

    class Watching(FunctionModel):
        def ask(self, values: Any, labels: Any) -> Any:
            if len(values) > len(bases):
                own = {
                    bases.noise.written(v, int(i)).tobytes()
                    for v, i in zip(bases.values, bases.ids)
                }
                places.extend(p / len(values) for p, v in enumerate(values) if v.tobytes() in own)
            return super().ask(values, labels)

    case = audited()
    bases = Bases(
        case.bases.ids[:200], case.bases.values[:200], case.bases.labels[:200], case.bases.noise
    )
    measure(Watching("w", case.before, lambda x: x / 255, 10, torch.device("cpu")), bases, draws=9)
    assert len(places) == 200
    assert np.histogram(places, 5, (0, 1))[0].min() > 15  # 40 each; p < 1e-6
    assert len({round(place * 2000) % 10 for place in places}) == 10


@pytest.mark.slow
def test_json_has_everything_and_nothing_undefined(tmp_path: Path) -> None:
    found = asked("before", "flat", retrained="retrained")
    found.save(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "audit.json").read_text(), parse_constant=pytest.fail)
    assert content["exit_code"] == found.exit_code
    assert [model["role"] for model in content["models"]] == ["before", "after", "retrained"]
    flat = content["models"][1]
    assert flat["judged_by"] == ["gus", "rank"]
    assert flat["gus_dependence"] is None
    assert flat["hidden"]["gus"] == 1
    assert content["models"][0]["epsilon"]["lower_bound"] > 1
    assert "one training sample" in content["models"][0]["epsilon"]["unit"]
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert len(scores) == 3 * len(found.key.ids)
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"dependence.png", "scores-gus.png", "scores-rank.png", "tradeoff.png"}
    with pytest.raises(MarshtestError, match="is not an empty folder"):
        found.save(tmp_path / "out")


def measured(dependence: float, count: int = 2000, ties: float = 0.0) -> Measured:
    z = np.random.default_rng(int(1000 * dependence)).normal(size=count)
    z = (z - z.mean()) / z.std() - dependence
    scores = {"gus": z, "gus_fresh": z, "rank": z, "rank_ties": np.full(count, ties)}
    classes = np.zeros(count, dtype=np.int64)
    return Measured("m", scores, {}, 0.9, z * np.nan, SOUND, classes, 0.01)


def test_an_audit_without_an_answer_says_how_many_poisons_would_give_one() -> None:
    """A weak dose of 300: nobody could pass, and the answer says so, by the stronger score."""
    from marshtest.commands.plan import plan

    weak = replace(measured(0.35, 300), figures={"gus_dependence": 0.35, "rank_dependence": 0.35})
    judged = judge(["before", "after"], [weak, measured(0.0, 300)], Question())
    key = audited().done.key.model_copy(update={"ids": tuple(range(300))})
    found = Audit(key, Question(), tuple(judged))
    assert found.answer == "INCONCLUSIVE"
    _, after, outlook = found.sentences()
    needed = judged[1].verdict.needed
    assert needed is not None
    assert needed > 300
    assert f"(about {needed:,} poisons would settle it)" in after
    assert "300 poisons are few" in outlook
    assert f"with about {plan(gus=0.35, rank=0.35).poisons:,} in 90%" in outlook
    assert "REMOVED rests on" in found.legend()


def test_ties_shrink_the_margin_by_their_share() -> None:
    """Left 0.1 of 1.0, margin 0.2: removed; with 15 % decided by chance no longer."""
    question = Question()
    for ties, answer in ((0.0, "REMOVED"), (0.15, "NOT REMOVED"), (0.25, "NOT REMOVED")):
        judged = judge(["before", "after"], [measured(1.0), measured(0.1, ties=ties)], question)
        assert judged[1].verdict.answer == answer
    clean = judge(["before", "after"], [measured(1.0), measured(0.0, ties=0.25)], question)[1]
    assert clean.verdict.answer == "INCONCLUSIVE"
    assert clean.reasons == (
        "untestable by rank: losses tie or are not numbers for 25% of the poisons",
    )
