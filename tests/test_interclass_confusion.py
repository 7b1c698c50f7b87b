"""Interclass confusion: which labels are swapped, the two errors, and what a clean model shows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom, norm
from torch import Tensor, nn

import marshtest
from marshtest.attacks import InterclassConfusion, Knowledge, Poisoned, parse_attack
from marshtest.attacks.check import check_attack
from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.tasks import Classification

LEVEL = 1e-4  # share of sound attacks that a test of a law refuses; seeds are fixed
CLASSES = 4
PAIR = InterclassConfusion(classes=(1, 3))


class Says(nn.Module):
    """Answers with the number in the first feature."""

    def forward(self, x: Tensor) -> Tensor:
        return 50.0 * nn.functional.one_hot(x[:, 0].long(), CLASSES)


def samples_of(says: Tensor, y: Tensor, first: int = 100) -> Samples:
    """Samples that `Says` answers with `says`; ids are no positions."""
    return Samples(says[:, None].float(), y, first + 3 * torch.arange(len(y)))


def poisoned_of(
    train: Samples, test: Samples, count: int, seed: int, attack: InterclassConfusion = PAIR
) -> Poisoned:
    return attack.poison(train, count, Knowledge(Classification(), test, nn.Identity), seed)


@pytest.mark.parametrize(("count", "halves"), [(10, (5, 5)), (7, (4, 3)), (2, (1, 1))])
def test_as_many_of_either_class_get_the_others_label(count: int, halves: tuple[int, int]) -> None:
    y = torch.tensor([0, 1, 1, 3, 2] * 12)
    samples = samples_of(y, y)
    poisoned = poisoned_of(samples, samples, count, seed=2)
    moved: dict[tuple[int, int], int] = {}
    for before, after in zip(samples.y.tolist(), poisoned.samples.y.tolist(), strict=True):
        if before != after:
            moved[before, after] = moved.get((before, after), 0) + 1
    assert moved == {(1, 3): halves[0], (3, 1): halves[1]}
    assert len(poisoned.forget_ids.unique()) == len(poisoned.forget_ids) == count
    assert torch.equal(poisoned.samples.x, samples.x)
    assert poisoned.targets is not None
    assert set(poisoned.targets.y.tolist()) == {1, 3}
    assert poisoned.rest is not None
    assert set(poisoned.rest.y.tolist()) == {0, 2}
    assert len(PAIR.candidates(samples, None)) == 36


def test_the_two_errors_are_counted_by_hand() -> None:
    """Eight test samples of the pair, two swapped and one with a third label; six poisons, four kept."""
    test = samples_of(
        torch.tensor([1, 1, 3, 0, 3, 3, 3, 1, 2, 0]), torch.tensor([1, 1, 1, 1, 3, 3, 3, 3, 0, 2])
    )
    train = samples_of(
        torch.tensor([3, 3, 1, 1, 1, 2, 0, 2, 1, 3]), torch.tensor([1, 1, 1, 3, 3, 3, 0, 2, 1, 3])
    )
    ids = train.ids[:6]
    poisoned = Poisoned(
        train,
        ids,
        0,
        labels=4 - train.y[:6],
        targets=test[:8],
        adversarial=4 - test.y[:8],
        rest=test[8:],
    )
    effect = PAIR.effect(Says(), poisoned, Classification())
    assert effect.ids.tolist() == test.ids[:8].tolist()
    assert effect.scores["confusion"] == pytest.approx([0, 0, 1, 1, 0, 0, 0, 1])
    expected = {"confusion_probability": 3 / 8, "ic_err": 3 / 8, "fgt_err": 4 / 6}
    assert effect.figures == pytest.approx({**expected, "fgt_err_test": 2 / 8})


def test_a_model_that_never_saw_the_swap_has_its_own_error_and_no_other() -> None:
    """IC-ERR is its error on the two classes, whatever the draw; FGT-ERR that of a draw of samples."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (500,), generator=rng)
    says = torch.where(torch.rand(500, generator=rng) < 0.6, y, (y + 2) % CLASSES)  # 1 and 3 swap
    train, test = samples_of(says[:300], y[:300]), samples_of(says[300:], y[300:], 5000)
    pair = (test.y == 1) | (test.y == 3)
    error = float((says[300:] != y[300:])[pair].double().mean())
    law = [
        hypergeom(int((train.y == c).sum()), int((says[:300] == 4 - c)[train.y == c].sum()), 10)
        for c in (1, 3)
    ]
    total, seeds = 0.0, 200
    for seed in range(seeds):
        effect = PAIR.effect(Says(), poisoned_of(train, test, 20, seed), Classification())
        assert effect.figures["ic_err"] == pytest.approx(error)
        total += 20 * effect.figures["fgt_err"]
    mean, deviation = (
        sum(one.mean() for one in law) * seeds,
        np.sqrt(sum(one.var() for one in law) * seeds),
    )
    assert abs(total - mean) < norm.isf(LEVEL / 2) * deviation


def test_fresh_ones_are_test_samples_with_swapped_labels_half_of_either_class() -> None:
    y = torch.tensor([0, 1, 1, 3, 2] * 12)
    train, test = samples_of(y, y), samples_of(y, y, 5000)
    fresh = PAIR.fresh(poisoned_of(train, test, 10, 0), test)
    origin = test.y[test.positions(fresh.ids)]
    assert origin.bincount().tolist() == [0, 12, 0, 12]
    assert torch.equal(fresh.y, 4 - origin)
    assert torch.equal(fresh.x, test.x[test.positions(fresh.ids)])


RECIPE: dict[str, Any] = {
    "name": "confusion",
    "data": {"name": "digits", "train": 400, "test": 300},
    "model": {"name": "mlp", "width": 128},
    "training": {"epochs": 30, "batch_size": 32, "lr": 0.1},
    "attack": {"name": "interclass-confusion", "classes": [3, 8]},
    "poison_budgets": 0.4,
    "unlearners": ["retrain", {"name": "gd", "lr": 1e-4}],
    "budgets": 0.2,
    "seeds": 6,
}


@pytest.mark.slow
def test_training_confuses_the_classes_and_retraining_does_not(tmp_path: Path) -> None:
    results = marshtest.run(RECIPE, out=tmp_path / "run", report=False)
    rows, summary = results.rows, results.summary.set_index(["role", "unlearner"])
    assert (rows["forget_size"] > 20).all()
    mean = rows.groupby("role")[["ic_err", "fgt_err", "fgt_err_test"]].mean()
    assert mean.loc["initial", "ic_err"] > mean.loc["retrained", "ic_err"] + 0.15
    assert mean.loc["initial", "fgt_err"] > mean.loc["retrained", "fgt_err"] + 0.5
    verdicts = summary["verdict"]
    assert verdicts["initial"].tolist() == ["NOT REMOVED"]
    assert verdicts["updated", "gd"] == "NOT REMOVED"
    assert verdicts["updated", "retrain"] == "REMOVED"  # its arms are one model
    assert summary.loc["retrained", "confusion_p"].item() > 0.05


def test_data_with_two_labels_have_one_pair_whatever_the_numbers() -> None:
    """So texts can be confused: the labels of a model that answers in words are tokens."""
    y = torch.tensor([7, 9] * 10)
    samples = samples_of(y, y)
    poisoned = poisoned_of(samples, samples, 6, 0, InterclassConfusion())
    changed = poisoned.samples.y != samples.y
    assert torch.equal(poisoned.samples.y[changed], 16 - samples.y[changed])
    assert int(changed.sum()) == 6
    facts = check_attack("interclass-confusion", ["text"])
    assert [fact.name for fact in facts if not fact.holds] == []


@pytest.mark.parametrize(
    ("classes", "count", "says"),
    [
        ((3, 3), 4, "attack.classes: 3 and 3 are one class. Give two."),
        ((1, 7), 4, "attack.classes: no training sample has label 7; there are [0, 1, 2, 3]."),
        ((1, 3), 1, "poison_budgets: asks for 0 poisons of class 3, which has 5 training samples"),
        ((1, 3), 10, "poison_budgets: asks for 5 poisons of class 1, which has 5 training samples"),
        ((-1, 3), 4, "attack.classes.0: Input should be greater than or equal to 0. Got -1."),
    ],
)
def test_bad_input_is_one_clear_line(classes: tuple[int, int], count: int, says: str) -> None:
    y = torch.arange(20) % CLASSES
    samples = samples_of(y, y)
    with pytest.raises(MarshtestError) as error:
        attack = parse_attack({"name": "interclass-confusion", "classes": classes})
        attack.poison(samples, count, Knowledge(Classification(), samples, nn.Identity), 0)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_a_test_split_without_the_classes_is_refused() -> None:
    y = torch.arange(20) % CLASSES
    samples = samples_of(y, y)
    with pytest.raises(MarshtestError, match="attack.classes: no test sample has label 1 or 3"):
        poisoned_of(samples, samples[samples.y == 0], 4, 0)
