"""Our own attacks pass the gate; fakes fail it, each at the fact that it breaks."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import homemade
import numpy as np
import pytest
import torch
from homemade import LabelFlipping
from pydantic import Field

from marshtest.attacks import Attack, Gaussian
from marshtest.attacks.check import MAKES, MEASURES, check_attack
from marshtest.attacks.presentation import Presentation
from marshtest.commands.check import check
from marshtest.data.samples import Dataset
from marshtest.experiment.recipe import load_recipe
from marshtest.metrics.base import Metric
from marshtest.metrics.presentation import Column
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.facts import ENDS, KEEPS_NOTHING, Fact, fact_lines
from marshtest.unlearning import Unlearner

OURS: list[dict[str, Any]] = [
    {"name": "gaussian"},
    {"name": "gradient-matching", "restarts": 1, "steps": 5, "targets": 2},
    {"name": "gradient-canceling", "steps": 5},
    {"name": "gradient-canceling", "steps": 5, "place": "add"},
    {"name": "trigger-word"},
    {"name": "interclass-confusion"},
    {"name": "badnets"},
    {"name": "label-flip"},
    {"name": "mark"},
]


def failed(facts: list[Fact]) -> list[str]:
    return [f"{fact.kind}: {fact.name}" for fact in facts if not fact.holds]


@pytest.mark.slow
@pytest.mark.parametrize("attack", OURS, ids=lambda attack: "-".join(map(str, attack.values())))
def test_our_attacks_pass(attack: dict[str, Any]) -> None:
    facts = check_attack(attack)
    assert failed(facts) == []
    on_text = attack["name"] in ("trigger-word", "mark")
    kinds = ["text"] if on_text else ["images", "features"]
    assert list(dict.fromkeys(fact.kind for fact in facts)) == kinds


@pytest.mark.slow
def test_gaussian_poisons_of_texts_pass_too() -> None:
    assert failed(check_attack("gaussian", ["text"])) == []


class Fake(LabelFlipping):
    """Sound; those below break one thing each."""


class Unseeded(Fake):
    def poison(self, samples: Any, count: int, knowledge: Any, seed: int, *rest: Any) -> Any:
        return super().poison(samples, count, knowledge, int(torch.randint(10**6, ())), *rest)


class IgnoresTheSeed(Fake):
    def poison(self, samples: Any, count: int, knowledge: Any, seed: int, *rest: Any) -> Any:
        return super().poison(samples, count, knowledge, 0, *rest)


class TooMany(Fake):
    def poison(self, samples: Any, count: int, *rest: Any) -> Any:
        return super().poison(samples, count + 1, *rest)


class TakesAnything(Fake):
    def candidates(self, samples: Any, marked: Any) -> Any:
        return samples[: len(samples) // 2]


class WritesInPlace(Fake):
    def poison(self, samples: Any, *rest: Any) -> Any:
        made = super().poison(replace(samples, y=samples.y.clone()), *rest)
        samples.y[samples.positions(made.forget_ids)] = made.labels
        return made


class TouchesTheRetainSet(Fake):
    def poison(self, samples: Any, *rest: Any) -> Any:
        made = super().poison(samples, *rest)
        y = made.retain.y[:1]
        return replace(made, clean=samples.relabelled(made.retain.ids[:1], (y + 1) % 3))


class ChangesNothing(Fake):
    def poison(self, *given: Any) -> Any:
        return replace(super().poison(*given), labels=None)


class NamesAControl(Fake):
    presentation: ClassVar[Presentation] = LabelFlipping.presentation.model_copy(
        update={"shuffled": "as many wrong labels, elsewhere"}
    )


class ShufflesNothing(NamesAControl):
    def shuffled(self, poisoned: Any, seed: int) -> Any:
        return poisoned.samples


class AimsAtNoTestSample(Fake):
    def poison(self, *given: Any) -> Any:
        made = super().poison(*given)
        test = given[2].test
        elsewhere = replace(test[:1], x=test.x[:1] + 1)
        return replace(made, targets=elsewhere, rest=test[1:])


class ChangesTheModel(Fake):
    def effect(self, model: Any, poisoned: Any, task: Any) -> Any:
        effect = super().effect(model, poisoned, task)
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return effect


class DrawsAsItMeasures(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return replace(effect, figures={**effect.figures, "odd": float(torch.rand(()))})


class LeavesAColumnOut(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return replace(effect, figures={"flip_probability": effect.figures["flip_probability"]})


class ScoresAllButOne(Fake):
    every: int = 10**6

    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        values = effect.scores["flip"].copy()
        values[:: self.every] = np.nan
        mean = float(np.nanmean(values))
        return replace(
            effect, scores={"flip": values}, figures={**effect.figures, "flip_probability": mean}
        )


class ScoresSome(ScoresAllButOne):
    every: int = 2


class AnotherColumn(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return replace(effect, figures={**effect.figures, "flip_probability": 0.123})


class NotNormal(Gaussian):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return replace(effect, scores={**effect.scores, "rank": 2 * effect.scores["rank"]})


class WritesTestSamples(Fake):
    def poison(self, samples: Any, count: int, knowledge: Any, *rest: Any) -> Any:
        knowledge.test.x.mul_(0)
        return super().poison(samples, count, knowledge, *rest)


class TwoOfOneId(Fake):
    def poison(self, *given: Any) -> Any:
        made = super().poison(*given)
        one, other = made.retain.ids[:2]
        ids = torch.where(made.clean.ids == one, other, made.clean.ids)
        return replace(made, clean=replace(made.clean, ids=ids))


class LeavesAHook(Fake):
    def effect(self, model: Any, *rest: Any) -> Any:
        model.register_forward_hook(lambda *_: None)
        return super().effect(model, *rest)


class LeavesTrainingMode(Fake):
    def effect(self, model: Any, *rest: Any) -> Any:
        effect = super().effect(model, *rest)
        model.train()
        return effect


class LeavesItFrozen(Fake):
    def effect(self, model: Any, *rest: Any) -> Any:
        return super().effect(model.requires_grad_(False), *rest)


class LeavesGradients(Fake):
    def effect(self, model: Any, poisoned: Any, task: Any) -> Any:
        task.loss(model, poisoned.forget).mean().backward()
        return super().effect(model, poisoned, task)


def scored(effect: Any, values: Any, **figures: Any) -> Any:
    figures = {**effect.figures, "flip_probability": float(np.mean(values)), **figures}
    return replace(effect, scores={"flip": values}, figures=figures)


class Scaled(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return scored(effect, 100 * effect.scores["flip"])


class Constant(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return scored(effect, np.full(len(effect.ids), 0.5), flip_success=0.5)


class Downwards(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return scored(effect, 1 - effect.scores["flip"])


class BlindToPoison(Fake):
    def effect(self, model: Any, poisoned: Any, task: Any) -> Any:
        unpoisoned = replace(poisoned, labels=poisoned.true_labels)
        return super().effect(model, unpoisoned, task)


class Sorted(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return replace(effect, ids=np.sort(effect.ids))


class Positions(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return replace(effect, ids=np.arange(len(effect.ids)))


class AFew(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return scored(replace(effect, ids=effect.ids[:3]), effect.scores["flip"][:3])


class Counts(Fake):
    calls: ClassVar[list[int]] = []

    def effect(self, *given: Any) -> Any:
        self.calls.append(1)
        return super().effect(*given)


class CannotSayHowMuch(Fake):
    def passes(self, poisons: int, tests: int) -> float:
        return float("nan")


class OneLabel(Fake):
    def poison(self, *given: Any) -> Any:
        made = super().poison(*given)
        return replace(made, labels=made.labels[:1])


class UnknownLabels(Fake):
    def poison(self, *given: Any) -> Any:
        made = super().poison(*given)
        return replace(made, labels=made.labels + 1)


class SaysHowItWent(Fake):
    def poison(self, *given: Any) -> Any:
        return replace(super().poison(*given), figures={"ended": "well"})


class AColumnOfScores(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return scored(effect, effect.scores["flip"][:, None])


class AListOfScores(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return scored(effect, [*effect.scores["flip"]])


class TakesARowsColumn(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return replace(effect, figures={**effect.figures, "epochs": 5.0})


class AFigureInWords(Fake):
    def effect(self, *given: Any) -> Any:
        effect = super().effect(*given)
        return replace(effect, figures={**effect.figures, "more": "text"})


class GivesNothing(Fake):
    def effect(self, *given: Any) -> Any:
        return None


class RaisesLater(Fake):
    def candidates(self, samples: Any, marked: Any) -> Any:
        raise KeyError("lost")


FAKES: dict[type[Attack], str] = {
    WritesTestSamples: "leaves the samples passed in as they were",
    LeavesAHook: "leaves the model that it measures as it was",
    LeavesTrainingMode: "leaves the model that it measures as it was",
    LeavesItFrozen: "leaves the model that it measures as it was",
    LeavesGradients: "leaves the model that it measures as it was",
    Scaled: "keeps to the ranges that its presentation gives",
    Constant: "has other scores on another model",
    Downwards: "scores no less where the poison was trained on",
    BlindToPoison: "scores no less where the poison was trained on",
    Sorted: "scores its poisons, or its targets, in their order",
    Positions: "scores its poisons, or its targets, in their order",
    AFew: "scores its poisons, or its targets, in their order",
    Counts: KEEPS_NOTHING,
    CannotSayHowMuch: "says how much work it is",
    OneLabel: MAKES,
    UnknownLabels: MAKES,
    SaysHowItWent: MAKES,
    AColumnOfScores: MEASURES,
    AListOfScores: MEASURES,
    TakesARowsColumn: MEASURES,
    AFigureInWords: MEASURES,
    GivesNothing: MEASURES,
    RaisesLater: ENDS,
    Unseeded: "same seed, same poison",
    IgnoresTheSeed: "another seed, another poison",
    TooMany: "makes as many poisons as it is asked for",
    TakesAnything: "poisons its candidates only",
    WritesInPlace: "leaves the samples passed in as they were",
    TouchesTheRetainSet: "leaves the retain set as it was",
    ChangesNothing: "changes what it poisons",
    NamesAControl: "has the control that its presentation names",
    ShufflesNothing: "has the control that its presentation names",
    AimsAtNoTestSample: "comes back from its file as it was",
    ChangesTheModel: "leaves the model that it measures as it was",
    DrawsAsItMeasures: "measures the same when it is asked again",
    LeavesAColumnOut: "measures all that its presentation names",
    ScoresSome: "has a score for each of its ids",
    AnotherColumn: "a compared score's column is its mean",
    NotNormal: "rank is N(0, 1) on a model that never saw the poison",
}


@pytest.mark.parametrize("sound", [Fake, ScoresAllButOne])
def test_a_sound_one_passes(sound: type[Attack]) -> None:
    assert failed(check_attack(sound)) == []


@pytest.mark.parametrize("fake", FAKES, ids=lambda cls: cls.__name__)
def test_a_fake_fails_at_the_fact_that_it_breaks(fake: type[Attack]) -> None:
    facts = check_attack(fake, ["features"])
    assert failed(facts) == [f"features: {FAKES[fake]}"]
    assert all(fact.detail for fact in facts if not fact.holds)


def test_an_id_that_comes_twice_is_a_fact_that_does_not_hold() -> None:
    facts = check_attack(TwoOfOneId, ["features"])
    assert "features: gives every sample an id of its own" in failed(facts)


class SaysAWord(Fake):
    def trigger(self) -> Any:
        return "Disney"


class RaisesAtOnce(Fake):
    def trigger(self) -> Any:
        raise KeyError("lost")


class PresentedByAMapping(Fake):
    presentation: ClassVar[Any] = {"title": "x"}


@pytest.mark.parametrize(
    ("fake", "says"),
    [
        (SaysAWord, "trigger gives 'Disney'. Give a Trigger"),
        (RaisesAtOnce, "RaisesAtOnce: raised KeyError: 'lost' .test_check_attack.py"),
        (PresentedByAMapping, "presentation: Input should be an instance of Presentation"),
    ],
)
def test_an_attack_that_cannot_be_asked_is_one_line(fake: type[Attack], says: str) -> None:
    with pytest.raises(MarshtestError, match=says):
        check_attack(fake)


class Raises(Fake):
    def poison(self, *given: Any) -> Any:
        raise ValueError("no luck")


class CannotMeasure(Fake):
    def effect(self, *given: Any) -> Any:
        return given[3]


@pytest.mark.parametrize(("fake", "name"), [(Raises, MAKES), (CannotMeasure, MEASURES)])
def test_what_raises_is_one_fact_that_says_where(fake: type[Attack], name: str) -> None:
    last = check_attack(fake, ["features"])[-1]
    assert (last.name, last.holds) == (name, False)
    assert "raised" in last.detail
    assert "(test_check_attack.py:" in last.detail


def test_bad_input_is_one_line() -> None:
    with pytest.raises(MarshtestError, match="on: unknown kind of data 'sounds'"):
        check_attack("gaussian", ["sounds"])
    with pytest.raises(MarshtestError, match="unknown attack 'gausian'. Did you mean 'gaussian'"):
        check_attack("gausian")
    with pytest.raises(MarshtestError, match="attack.places: .* Got 0"):
        check_attack({"name": LabelFlipping, "places": 0})


# One check for all that a user brings


@pytest.mark.parametrize(
    ("thing", "kinds", "fact"),
    [
        ("gd", ["features"], "keeps to the budget"),
        ("homemade:fine_tuned", ["features"], "keeps to the budget"),
        ("gaussian", ["features"], "gus is N(0, 1) on a model that never saw the poison"),
        ("homemade:LabelFlipping", ["images"], "a compared score's column is its mean"),
        (LabelFlipping(places=1), ["images"], "a compared score's column is its mean"),
        ("homemade:LossAUC", ["text"], "keeps to the ranges of its columns"),
        ("homemade:blobs", ["data"], "has every class in its training split"),
        ("digits", ["data"], "has every class in its training split"),
    ],
    ids=str,
)
def test_check_tells_by_what_it_is_given(thing: Any, kinds: list[str], fact: str) -> None:
    facts = check(thing, on=() if kinds == ["data"] else kinds)
    assert failed(facts) == []
    assert list(dict.fromkeys(one.kind for one in facts)) == kinds
    assert fact in {one.name for one in facts}


def test_check_hands_options_on() -> None:
    assert failed(check("homemade:blobs", classes=4)) == []
    assert failed(check("homemade:fine_tuned", on=["features"], lr=0.01)) == []
    with pytest.raises(
        MarshtestError, match="attack.place: unknown key .place.. Did you mean 'places'"
    ):
        check("homemade:LabelFlipping", place=2)
    with pytest.raises(MarshtestError, match="unknown name 'gausian'. Did you mean 'gaussian'"):
        check("gausian")


class Metrical(Metric):
    name: str = "metrical"
    columns: ClassVar[Mapping[str, Column]] = {"found": Column(title="found", low=0, high=1)}

    def measure(self, model: Any, question: Any) -> Any:
        return {"found": 0.5}


class OtherColumn(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        return {"other": 0.5}


class OutOfRange(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        return {"found": 1.5}


class Random(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        return {"found": float(np.random.default_rng().random())}


class Trains(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        with torch.no_grad():
            next(iter(model.parameters())).mul_(2)
        return {"found": 0.5}


class Undefined(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        return {"found": float("nan")}


class YesOrNo(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        return {"found": True}


class Complex(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        return {"found": 1j}


class NumbersForNames(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        return {3: 0.5, "found": 0.5}


class LeavesHooks(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        model.register_forward_hook(lambda *_: None)
        return {"found": 0.5}


class Freezes(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        model.requires_grad_(False)
        return {"found": 0.5}


class InTrainingMode(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        model.train()
        return {"found": 0.5}


class WritesSamples(Metrical):
    def measure(self, model: Any, question: Any) -> Any:
        question.test.y.fill_(0)
        return {"found": 0.5}


class Remembers(Metrical):
    calls: ClassVar[list[int]] = []

    def measure(self, model: Any, question: Any) -> Any:
        self.calls.append(1)
        return {"found": 0.5}


class TakesAScoresColumn(Metrical):
    columns: ClassVar[Mapping[str, Column]] = {"rank": Column(title="rank")}

    def measure(self, model: Any, question: Any) -> Any:
        return {"rank": 0.5}


class OfNothing(Metrical):
    columns: ClassVar[Mapping[str, Column]] = {
        "found": Column(title="found", low=0, high=1, interval="exact", count="nope")
    }


METRICAL: dict[type[Metric], list[str]] = {
    Metrical: [],
    Undefined: ["features: has a number for a usual model"],
    YesOrNo: ["features: runs and returns numbers"],
    Complex: ["features: runs and returns numbers"],
    NumbersForNames: ["features: measures the columns that it names"],
    LeavesHooks: ["features: leaves the model as it was"],
    Freezes: ["features: leaves the model as it was"],
    InTrainingMode: ["features: leaves the model as it was"],
    WritesSamples: ["features: leaves the samples as they were"],
    Remembers: [f"features: {KEEPS_NOTHING}"],
    TakesAScoresColumn: ["features: names columns that rows do not have"],
    OfNothing: ["features: names columns that rows do not have"],
    OtherColumn: ["features: measures the columns that it names"],
    OutOfRange: ["features: keeps to the ranges of its columns"],
    Random: ["features: same seed, same numbers"],
    Trains: ["features: leaves the model as it was"],
}


@pytest.mark.parametrize("metric", METRICAL, ids=lambda cls: cls.__name__)
def test_a_metric_fails_at_the_fact_that_it_breaks(metric: type[Metric]) -> None:
    assert failed(check(metric, on=["features"])) == METRICAL[metric]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "columns: Dictionary should have at least 1 item"),
        (["found"], "columns: Input should be a valid dictionary"),
        ({"found": {"title": "found"}}, "columns.found: Input should be an instance of Column"),
        ({"Loss Gap": Column(title="x")}, "columns.Loss Gap: String should match pattern"),
        ({"test_accuracy": Column(title="x")}, "test_accuracy: is the name of a column that every"),
    ],
)
def test_columns_that_no_row_can_have_are_one_line(columns: Any, says: str) -> None:
    with pytest.raises(MarshtestError, match=rf"metrics: .*{says}[^\n]*$"):
        check(type("Odd", (Metrical,), {"columns": columns, "__annotations__": {}}))


def nearly_on_its_training_samples() -> Dataset:
    made = homemade.blobs()
    return replace(made, test=replace(made.train, x=made.train.x + 1e-7))


def loads_some(samples: int) -> Dataset:
    return homemade.blobs()


def behind_a_decorator(*given: Any, **options: Any) -> Any:
    return homemade.fine_tuned(*given, **options)


@pytest.mark.slow
def test_what_a_function_is_follows_from_what_it_takes() -> None:
    assert failed(check(loads_some, samples=100)) == []
    assert {fact.kind for fact in check(loads_some, samples=100)} == {"data"}
    assert failed(check(behind_a_decorator, on=["features"])) == []


class FineTuned(Unlearner):
    name: str = "fine-tuned"
    lr: float = Field(0.05, gt=0)

    def __call__(self, *given: Any, **about: Any) -> Any:
        return homemade.fine_tuned(*given, **about, lr=self.lr)


SPEC = f"{__name__}:FineTuned"


@pytest.mark.slow
@pytest.mark.parametrize("thing", [SPEC, FineTuned, FineTuned(lr=0.05)], ids=str)
def test_a_class_of_unlearners_is_checked(thing: Any) -> None:
    assert failed(check(thing, on=["features"])) == []


def test_a_class_of_unlearners_has_its_fields_as_hyper_parameters() -> None:
    with pytest.raises(MarshtestError, match=f"unlearners.{SPEC}.rate: unknown key 'rate'"):
        check(SPEC, rate=0.1)
    with pytest.raises(MarshtestError, match=f"unlearners.{SPEC}.lr: .*greater than 0. Got -1"):
        check(FineTuned, lr=-1)
    entry = f"unlearners=[{{name: '{SPEC}', lr: 0.02}}]"
    recipe = load_recipe("digits-gaussian", entry)
    ((trial,),) = recipe.unlearners
    assert isinstance(trial, FineTuned)
    assert trial.lr == 0.02
    assert trial.hyperparameters.keys() == {"lr", "source"}
    stored = recipe.model_dump(mode="json")
    assert load_recipe(stored).hash == recipe.hash
    given = load_recipe("digits-gaussian", "unlearners=[gd]", unlearners=[FineTuned(lr=0.02)])
    assert given.unlearners[-1] == (trial,)
    stored["unlearners"][0][0]["source"] = "00000000"
    with pytest.raises(MarshtestError, match="is not what it was when this recipe was stored"):
        load_recipe(stored)


def unequal() -> Dataset:
    made = homemade.blobs()
    odd = int.from_bytes(os.urandom(4), "big") / 2**32
    return replace(made, train=replace(made.train, x=made.train.x + odd))


def on_its_training_samples() -> Dataset:
    made = homemade.blobs()
    return replace(made, test=made.train)


def lacks_a_class() -> Dataset:
    return replace(homemade.blobs(), classes=4)


DATA: dict[Callable[[], Dataset], str] = {
    unequal: "gives the same samples every time",
    nearly_on_its_training_samples: "tests on samples that it does not train on",
    on_its_training_samples: "tests on samples that it does not train on",
    lacks_a_class: "has every class in its training split",
}


@pytest.mark.parametrize("load", DATA, ids=lambda load: load.__name__)
def test_data_fail_at_the_fact_that_they_break(load: Callable[[], Dataset]) -> None:
    assert failed(check(load)) == [f"data: {DATA[load]}"]


def test_facts_are_told_within_eighty_columns() -> None:
    told = list(fact_lines(check_attack(AnotherColumn)))
    assert max(map(len, told)) <= 80
    assert sum(line.startswith("  FAIL") for line in told) == 2
    assert told[-2:] == ["44 of 46 facts hold on images, features.", "Not asked: text."]
