"""Label flips: which labels, what is counted, and what a model that never saw them answers."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest, chisquare
from torch import Tensor, nn

import marshtest
from marshtest.attacks import Knowledge, LabelFlip, Poisoned
from marshtest.attacks.check import check_attack
from marshtest.attacks.label_flip import flipped
from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.tasks import Classification

LEVEL = 1e-4  # share of sound attacks that a test of a law refuses; seeds are fixed
CLASSES = 5


class Says(nn.Module):
    """Answers with the number in the first feature."""

    def forward(self, x: Tensor) -> Tensor:
        return 50.0 * nn.functional.one_hot(x[:, 0].long(), CLASSES)


class Leaning(nn.Module):
    """Fixed answers, with something added to the logit of the last class, which is no label."""

    def __init__(self, towards: float) -> None:
        super().__init__()
        self.towards = towards

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.sin(x[:, :1] * torch.arange(1, CLASSES + 1))
        logits[:, -1] += self.towards
        return logits


def samples_of(says: Tensor, y: Tensor) -> Samples:
    """Samples that `Says` answers with `says`; ids are no positions."""
    return Samples(says[:, None].float(), y, 100 + 3 * torch.arange(len(y)))


def poisoned_of(samples: Samples, count: int, seed: int) -> Poisoned:
    knowledge = Knowledge(Classification(), samples[:0], nn.Identity)
    return LabelFlip().poison(samples, count, knowledge, seed)


def test_a_wrong_label_is_uniform_among_the_others_whatever_their_numbers() -> None:
    labels = torch.tensor([2, 5, 9, 40])
    y = labels.repeat_interleave(3000)
    wrong = flipped(y, labels, seed=3)
    for label in labels.tolist():
        counts = Counter(wrong[y == label].tolist())
        assert sorted(counts) == [one for one in labels.tolist() if one != label]
        assert chisquare(list(counts.values())).pvalue > LEVEL


def test_a_label_that_training_does_not_have_is_as_far_from_all_that_it_has() -> None:
    labels = torch.tensor([0, 1, 3])
    for strange in (2, 5):
        counts = Counter(flipped(torch.full((3000,), strange), labels, seed=4).tolist())
        assert sorted(counts) == labels.tolist()
        assert chisquare(list(counts.values())).pvalue > LEVEL


def test_only_the_poisons_labels_change() -> None:
    y = torch.arange(50) % CLASSES
    samples = samples_of(y, y)
    poisoned = poisoned_of(samples, 20, seed=1)
    changed = poisoned.samples.y != samples.y
    assert set(samples.ids[changed].tolist()) == set(poisoned.forget_ids.tolist())
    assert int(changed.sum()) == 20
    assert torch.equal(poisoned.samples.x, samples.x)
    assert poisoned.perturbations is None
    assert torch.equal(poisoned.unpoisoned.y, samples.y)


def test_the_effect_is_counted_by_hand() -> None:
    """Six poisons, of which the model gives three the wrong label, two the true one, one a third one."""
    says, true = torch.tensor([1, 1, 1, 0, 0, 2]), torch.zeros(6, dtype=torch.int64)
    clean = samples_of(says, true)
    others = samples_of(torch.arange(1, CLASSES), torch.arange(1, CLASSES))
    clean = Samples(
        torch.cat([clean.x, others.x]), torch.cat([clean.y, others.y]), torch.arange(10)
    )
    poisoned = Poisoned(clean, torch.arange(6), 0, labels=torch.ones(6, dtype=torch.int64))
    effect = LabelFlip().effect(Says(), poisoned, Classification())
    assert effect.ids.tolist() == list(range(6))
    assert effect.scores["flip"] == pytest.approx([1, 1, 1, 0, 0, 0])
    expected = {"flip_probability": 3 / 6, "flip_success": 3 / 6, "flip_restored": 2 / 6}
    assert effect.figures == pytest.approx(expected)


def test_a_model_that_says_what_is_no_label_has_forgotten_nothing_by_it() -> None:
    """As a language model may whose answers are any words: flips are asked for among the labels."""
    y = torch.arange(CLASSES - 1).repeat(10)
    poisoned = poisoned_of(samples_of(y, y), 12, seed=0)
    before, after = (
        LabelFlip().effect(Leaning(towards), poisoned, Classification()) for towards in (0.0, 90.0)
    )
    assert after.scores["flip"] == pytest.approx(before.scores["flip"], rel=1e-5)
    assert after.figures == pytest.approx(before.figures, rel=1e-5)


def test_a_model_that_never_saw_them_keeps_a_wrong_label_as_often_as_it_guesses_it() -> None:
    """Of the poisons that it mistakes one in C − 1 has its wrong label by chance, of the others none."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (400,), generator=rng)
    says = torch.where(torch.rand(400, generator=rng) < 0.7, y, (y + 1) % CLASSES)
    samples = samples_of(says, y)
    kept = mistaken = 0
    for seed in range(100):
        poisoned = poisoned_of(samples, 60, seed)
        effect = LabelFlip().effect(Says(), poisoned, Classification())
        wrong = samples.only(poisoned.forget_ids)
        mistaken += int((wrong.x[:, 0].long() != wrong.y).sum())
        kept += round(60 * effect.figures["flip_success"])
    assert mistaken > 1000
    assert binomtest(kept, mistaken, 1 / (CLASSES - 1)).pvalue > LEVEL


def test_fresh_ones_are_test_samples_with_wrong_labels_of_the_same_law() -> None:
    y = torch.arange(4000) % CLASSES
    train, test = samples_of(y[:50], y[:50]), samples_of(y, y)
    poisoned = poisoned_of(train, 20, seed=1)
    fresh = LabelFlip().fresh(poisoned, test)
    assert torch.equal(fresh.ids, test.ids)
    assert torch.equal(fresh.x, test.x)
    steps = (fresh.y - test.y) % CLASSES
    assert chisquare(steps.bincount(minlength=CLASSES)[1:]).pvalue > LEVEL
    assert int((steps == 0).sum()) == 0


RECIPE: dict[str, Any] = {
    "name": "flips",
    "data": {"name": "digits", "train": 300, "test": 150},
    "model": {"name": "mlp", "width": 128},
    "training": {"epochs": 30, "batch_size": 32, "lr": 0.1},
    "attack": "label-flip",
    "poison_budgets": 0.1,
    "unlearners": ["retrain", {"name": "gd", "lr": 1e-4}],
    "budgets": 0.2,
    "seeds": 6,
}


@pytest.mark.slow
def test_training_keeps_the_flips_and_retraining_does_not(tmp_path: Path) -> None:
    results = marshtest.run(RECIPE, out=tmp_path / "run", report=False)
    rows, summary = results.rows, results.summary.set_index(["role", "unlearner"])
    success = rows.groupby("role")["flip_success"].mean()
    assert success["initial"] > 0.9
    assert success["retrained"] < 0.1
    assert (rows[rows["role"] == "initial"]["twin_flip_probability"] < 0.2).all()
    verdicts = summary["verdict"]
    assert verdicts["initial"].tolist() == ["NOT REMOVED"]
    assert verdicts["updated", "gd"] == "NOT REMOVED"
    assert verdicts["updated", "retrain"] == "REMOVED"  # its arms are one model
    assert summary.loc["retrained", "flip_p"].item() > 0.05


def test_texts_have_labels_too() -> None:
    assert [fact.name for fact in check_attack("label-flip", ["text"]) if not fact.holds] == []


@pytest.mark.parametrize(
    ("y", "count", "says"),
    [
        ([0, 1], 2, "poison_budgets: asks for 2 poisons among 2 training samples"),
        ([0, 1, 1, 1], 3, "poison_budgets: 3 poisons leave no training sample of class"),
    ],
)
def test_bad_input_is_one_clear_line(y: list[int], count: int, says: str) -> None:
    labels = torch.tensor(y)
    with pytest.raises(MarshtestError) as error:
        poisoned_of(samples_of(labels, labels), count, seed=0)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)
