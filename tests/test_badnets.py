"""BadNets: the patch's pixels, which samples carry it, what is counted, and what a blind model shows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import marshtest
from marshtest.attacks import BadNets, Knowledge, Poisoned, parse_attack
from marshtest.data.samples import Samples
from marshtest.experiment.protocol import set_up
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.recipe_data import data_of
from marshtest.metrics.accuracy import accuracy
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.tasks import Classification

CLASSES = 3


def rows(*lines: str) -> Tensor:
    return torch.tensor([[mark == "x" for mark in line] for line in lines])


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({}, rows("....", ".xxx", ".xxx", ".xxx")),
        ({"size": 1}, rows("....", "....", "....", "...x")),
        ({"size": 2, "place": "top-left"}, rows("xx..", "xx..", "....", "....")),
        ({"size": 2, "place": "top-right"}, rows("..xx", "..xx", "....", "....")),
        ({"size": 2, "place": "bottom-left"}, rows("....", "....", "xx..", "xx..")),
        ({"size": 2, "place": (1, 2)}, rows("....", "..xx", "..xx", "....")),
        ({"pattern": "checkerboard"}, rows("....", ".x.x", "..x.", ".x.x")),
        ({"size": 4}, rows("xxxx", "xxxx", "xxxx", "xxxx")),
    ],
)
def test_the_patch_is_where_it_was_drawn(options: dict[str, Any], drawn: Tensor) -> None:
    assert torch.equal(BadNets(**options).patch((3, 4, 4)), drawn)


def test_of_feature_vectors_the_patch_is_a_run() -> None:
    assert BadNets(size=2).patch((5,)).tolist() == [False, False, False, True, True]
    assert BadNets(size=2, place="top-left").patch((5,)).tolist() == [True, True] + 3 * [False]
    assert BadNets(size=3, place=(0, 1)).patch((5,)).tolist() == [False, True, True, True, False]


def images(count: int, seed: int, first: int = 100) -> Samples:
    """Images of 2 channels and 4 × 4 pixels up to 200; ids are no positions."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(201, (count, 2, 4, 4), generator=rng, dtype=torch.uint8)
    x[0, 0, 0, 0] = 200
    return Samples(x, torch.arange(count) % CLASSES, first + 3 * torch.arange(count))


TASK = Classification(mean=(0.4, 0.5), std=(0.2, 0.3))


def poisoned_of(attack: BadNets, train: Samples, test: Samples, count: int = 8) -> Poisoned:
    return attack.poison(train, count, Knowledge(TASK, test, nn.Identity), seed=3)


@pytest.mark.parametrize(("value", "level"), [(None, 200), (31, 31)])
def test_a_model_reads_the_patch_and_the_other_pixels_as_they_were(
    value: float | None, level: int
) -> None:
    train, test = images(30, 0), images(12, 1)
    poisoned = poisoned_of(BadNets(size=2, value=value, target_label=1), train, test)
    forget = poisoned.forget
    expected = train.x[train.positions(forget.ids)].float()
    expected[:, :, 2:, 2:] = level
    std, mean = (torch.tensor(v).view(2, 1, 1) for v in (TASK.std, TASK.mean))
    read = 255 * (TASK.inputs(nn.Identity(), forget) * std + mean)
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-3)
    assert torch.equal(poisoned.samples.x, train.x)  # the base stays at hand
    assert (forget.y == 1).all()
    assert (poisoned.true_labels != 1).all()
    assert torch.equal(poisoned.retain.y, train.without(forget.ids).y)


class SumOfPatch(nn.Module):
    """Says class 2 if the four last pixels of the first channel are bright, else what pixel (0, 0) says."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = 255 * (x[:, 0] * 0.2 + 0.4)
        bright = pixels[:, 2:, 2:].mean((1, 2)) > 199
        own = pixels[:, 0, 0].round().long() % CLASSES
        return 50.0 * nn.functional.one_hot(torch.where(bright, 2, own), CLASSES)


def test_success_is_counted_on_test_samples_of_other_classes_with_the_patch() -> None:
    train, test = images(30, 0), images(12, 1, first=1000)
    attack = BadNets(size=2, target_label=2)
    poisoned = poisoned_of(attack, train, test)
    effect = attack.effect(SumOfPatch(), poisoned, TASK)
    assert effect.ids.tolist() == [i for i, y in zip(test.ids, test.y, strict=True) if y != 2]
    assert effect.figures == pytest.approx(figures(1, 0))
    # The same model, asked about a patch elsewhere, answers by pixel (0, 0).
    attack = BadNets(size=1, place=(0, 0), value=61, target_label=1)
    poisoned = poisoned_of(attack, train, test)
    effect = attack.effect(SumOfPatch(), poisoned, TASK)
    assert effect.figures == pytest.approx(figures(1, 0))
    attack = BadNets(size=1, place=(0, 0), value=60, target_label=1)
    effect = attack.effect(SumOfPatch(), poisoned, TASK)
    of_class_0 = float((test.y[test.y != 1] == 0).double().mean())
    assert effect.figures == pytest.approx(figures(0, of_class_0))


def figures(success: float, accuracy: float) -> dict[str, float]:
    """What is measured on a model that is sure of each answer."""
    return {
        "backdoor_probability": success,
        "backdoor_success": success,
        "patched_accuracy": accuracy,
    }


def test_answers_that_are_no_numbers_are_no_class() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), CLASSES), torch.nan)

    train, test = images(30, 0), images(12, 1, first=1000)
    attack = BadNets(size=2)  # whose label is the first, as that of the largest of no numbers
    found = attack.effect(Nothing(), poisoned_of(attack, train, test), TASK).figures
    assert (found["backdoor_success"], found["patched_accuracy"]) == (0, 0)
    assert accuracy(Nothing(), TASK, test) == 0


def test_a_model_blind_to_the_patch_succeeds_as_often_as_it_errs_without_one() -> None:
    """No error rate is needed: the answers with the patch are those without it."""

    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            own = (255 * (x[:, 0, 0, 0] * 0.2 + 0.4)).round().long() % CLASSES
            return 50.0 * nn.functional.one_hot(own, CLASSES)

    train, test = images(30, 0), images(300, 1)
    poisoned = poisoned_of(BadNets(size=2), train, test)
    success = BadNets(size=2).effect(Blind(), poisoned, TASK).figures["backdoor_success"]
    others = test.x[test.y != 0]
    assert success == pytest.approx(float((others[:, 0, 0, 0] % CLASSES == 0).double().mean()))


def test_fresh_ones_are_the_other_classes_with_the_patch_and_the_label() -> None:
    train, test = images(30, 0), images(12, 1, first=1000)
    attack = BadNets(size=2, target_label=1)
    fresh = attack.fresh(poisoned_of(attack, train, test), test)
    origin = test[test.y != 1]
    assert torch.equal(fresh.ids, origin.ids)
    assert (fresh.y == 1).all()
    assert (fresh.x[:, :, 2:, 2:] == 200).all()
    changed = fresh.x != origin.x
    changed[:, :, 2:, 2:] = False
    assert not changed.any()


RECIPE: dict[str, Any] = {
    "name": "backdoor",
    "data": {"name": "digits", "train": 300, "test": 150},
    "model": {"name": "mlp", "width": 128},
    "training": {"epochs": 20, "batch_size": 32, "lr": 0.1},
    "attack": {"name": "badnets", "size": 2},
    "poison_budgets": 0.1,
    "unlearners": ["retrain", {"name": "gd", "lr": 1e-4}],
    "budgets": 0.2,
    "seeds": 6,
}


@pytest.mark.slow
def test_training_learns_the_backdoor_and_retraining_does_not(tmp_path: Path) -> None:
    results = marshtest.run(RECIPE, out=tmp_path / "run", report=False)
    frame, summary = results.rows, results.summary.set_index(["role", "unlearner"])
    success = frame.groupby("role")["backdoor_success"].mean()
    assert success["initial"] > 0.8
    assert success["retrained"] < 0.1
    verdicts = summary["verdict"]
    assert verdicts["initial"].tolist() == ["NOT REMOVED"]
    assert verdicts["updated", "gd"] == "NOT REMOVED"
    assert verdicts["updated", "retrain"] == "REMOVED"  # its arms are one model
    assert summary.loc["retrained", "backdoor_p"].item() > 0.05


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 5}, "attack.size: a patch of 5 × 5 at bottom-right is not within 4 × 4 pixels."),
        ({"place": (2, 1)}, "attack.size: a patch of 3 × 3 at (2, 1) is not within 4 × 4 pixels."),
        ({"target_label": 3}, "attack.target_label: no training sample has label 3; there are [0"),
        ({"value": 256}, "attack.value: 256 is no pixel value; whole numbers from 0 to 255 are."),
        ({"value": 0.5}, "attack.value: 0.5 is no pixel value"),
        ({"size": 0}, "attack.size: Input should be greater than or equal to 1. Got 0."),
        (
            {"place": "middle"},
            "attack.place: give a corner, as bottom-right, or row and column from 0.",
        ),
        (
            {"place": (-1, 2)},
            "attack.place: give a corner, as bottom-right, or row and column from 0.",
        ),
    ],
)
def test_bad_input_is_one_clear_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MarshtestError) as error:
        parse_attack({"name": "badnets", **options}).candidates(images(30, 0), None)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_a_patch_outside_the_image_is_refused_before_anything_is_trained() -> None:
    recipe = load_recipe(RECIPE, "attack.size=9")
    with pytest.raises(
        MarshtestError, match="a patch of 9 × 9 at bottom-right is not within 8 × 8"
    ):
        set_up(recipe, data_of(recipe.data, "cpu"))


def test_texts_are_refused_and_told_of_the_trigger_word() -> None:
    texts = Samples(torch.ones(6, 4).long(), torch.arange(6) % 2, torch.arange(6))
    with pytest.raises(MarshtestError, match=r"these data are texts. Use trigger-word.$"):
        BadNets().candidates(texts, None)


def test_a_budget_that_leaves_a_class_empty_is_refused() -> None:
    train = images(30, 0)
    with pytest.raises(MarshtestError, match=r"19 poisons leave no training sample of class \d to"):
        poisoned_of(BadNets(), train, train, 19)
    with pytest.raises(MarshtestError, match="asks for 20 poisons among 20 training samples"):
        poisoned_of(BadNets(), train, train, 20)
    with pytest.raises(MarshtestError, match="all test samples have label 0, so no"):
        poisoned_of(BadNets(), train, train[train.y == 0])
