"""A user's attack or metric that answers amiss, raises or changes what others use is one line."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from homemade import RECIPE, LabelFlipping
from pydantic import ValidationError
from torch import nn

import marshtest
from marshtest.attacks import Effect, Knowledge, Poisoned
from marshtest.attacks.base import ALONE, CraftingContext
from marshtest.data.samples import Samples
from marshtest.metrics.base import Metric, Question
from marshtest.metrics.presentation import Column
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.tables import table
from marshtest.training.tasks import Task

QUICK: dict[str, Any] = {
    **RECIPE,
    "seeds": 1,
    "training": {"epochs": 2, "batch_size": 32, "lr": 0.1},
}


class Hostile(LabelFlipping):
    """Flips labels, and does one thing more."""

    fault: str = ""

    def candidates(self, samples: Samples, marked: Any) -> Samples:
        if self.fault == "candidates":
            raise KeyError("lost")
        return samples

    def passes(self, poisons: int, tests: int) -> float:
        return "many" if self.fault == "passes" else 1.0  # type: ignore[return-value]

    def trigger(self) -> Any:
        return "Disney" if self.fault == "trigger" else None

    def poison(
        self,
        samples: Samples,
        count: int,
        knowledge: Knowledge,
        seed: int,
        context: CraftingContext = ALONE,
    ) -> Poisoned:
        poisoned = super().poison(samples, count, knowledge, seed, context)
        assert poisoned.labels is not None
        if self.fault == "in place":
            knowledge.test.x.numpy()[:] = 0  # which PyTorch does not count
        if self.fault == "short labels":
            return replace(poisoned, labels=poisoned.labels[:1])
        if self.fault == "labels out of range":
            return replace(poisoned, labels=poisoned.labels + 3)
        return poisoned

    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        if self.fault == "exit":
            raise SystemExit(0)
        if self.fault == "interrupt":
            raise KeyboardInterrupt
        effect = super().effect(model, poisoned, task)
        more: dict[str, Any] = {
            "taken": {"spent": 99.0},
            "layer": {"layer": 1.0},
            "infinite": {"flip_success": float("inf")},
            "beyond": {"flip_success": 1.5},
            "text": {"odd": "text"},
        }
        if self.fault == "score id":
            return replace(effect, scores={**effect.scores, "id": effect.scores["flip"]})
        if self.fault == "not measured":
            return replace(effect, figures={"flip_probability": 0.5})
        return replace(effect, figures={**effect.figures, **more.get(self.fault, {})})


class Odd(Metric):
    """A constant, under a heading that tables have already."""

    name: str = "odd"
    value: Any = 0.5
    columns: ClassVar[Mapping[str, Column]] = {"odd": Column(title="accuracy", low=0, high=1)}

    def measure(self, model: nn.Module, question: Question) -> Mapping[str, float]:
        if self.value == "zeros":
            for parameter in model.parameters():
                parameter.data.zero_()
            return {"odd": 0.0}
        if self.value == "labels":
            question.test.y.zero_()
        return {"odd": self.value}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("candidates", "raised KeyError: 'lost' .test_hostile.py"),
        ("passes", "raised ValueError"),
        ("trigger", "`trigger` must return Trigger"),
        ("in place", "changed samples in place"),
        ("short labels", r"labels must be an int64 tensor \[40\]. Got torch.int64 \[1\]"),
        ("labels out of range", "labels must lie in 0..2"),
        ("exit", "raised SystemExit"),
        ("interrupt", "raised KeyboardInterrupt"),
        ("taken", "'spent'"),
        ("layer", "'layer'"),
        ("infinite", "'flip_success' is inf, and must be"),
        ("beyond", "'flip_success' is 1.5, and must be a share"),
        ("text", "'odd' is 'text', not a number"),
        ("score id", "'id'"),
        ("not measured", "did not measure 'flip_success'"),
    ],
)
def test_an_attack_is_refused_in_one_line_and_nothing_of_it_is_scored(
    fault: str, words: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(MarshtestError, match=words) as refused:
        marshtest.run({**QUICK, "attack": {"name": Hostile, "fault": fault}}, out=out, report=False)
    assert "Hostile" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (out / "rows.parquet").exists()
    assert not list(tmp_path.rglob("score-*/*"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("1e999"), "inf"),
        (7.0, "'odd' is 7.0, and must be a share"),
        ("abc", "raised ValueError"),
        ("labels", "changed samples in place"),
    ],
)
def test_a_metric_is_refused_in_one_line(value: Any, words: str, tmp_path: Path) -> None:
    metrics = [{"name": Odd, "value": value}]
    with pytest.raises(MarshtestError, match=words):
        marshtest.run({**QUICK, "metrics": metrics}, out=tmp_path / "run", report=False)
    assert not list(tmp_path.rglob("score-*/*"))


def test_a_metric_that_zeroes_a_model_changes_no_number_and_no_heading(tmp_path: Path) -> None:
    plain, zeroed = (
        marshtest.run({**QUICK, "metrics": metrics}, out=tmp_path / name, report=False)
        for name, metrics in (("plain", []), ("zeroed", [{"name": Odd, "value": "zeros"}]))
    )
    assert zeroed.rows["test_accuracy"].tolist() == plain.rows["test_accuracy"].tolist()
    columns = table(zeroed)
    assert columns["accuracy"].tolist() == table(plain)["accuracy"].tolist()
    assert "accuracy (odd)" in columns


def test_a_range_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="not below"):
        Column(title="i", low=2, high=1)
