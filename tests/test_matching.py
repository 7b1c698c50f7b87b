"""Gradient matching: targets, bounds, the augmentation inside, and that it works."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import shift as shifted_image
from torch import nn
from torch.nn import functional as F

from marshtest.attacks import GradientMatching, Knowledge, parse_attack
from marshtest.attacks.crafting import craft
from marshtest.attacks.gradient_matching import matching
from marshtest.attacks.kernel import Kernel
from marshtest.data.load import load
from marshtest.data.samples import Dataset, Samples
from marshtest.metrics.accuracy import probabilities
from marshtest.models.table import build, parse_model
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import generator
from marshtest.training.loop import Training, fit
from marshtest.training.tasks import Classification

TRAINING = Training(epochs=15, batch_size=64, lr=0.1)


def task_of(data: Dataset) -> Classification:
    return Classification(mean=data.mean, std=data.std)


def trained(data: Dataset, samples: Samples, seed: int) -> nn.Module:
    model = build(parse_model({"name": "mlp", "width": 128}), (1, 8, 8), 10, seed)
    fit(model, samples, task_of(data), TRAINING, seed)
    return model


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def clean(digits: Dataset) -> nn.Module:
    return trained(digits, digits.train, 0)


@pytest.fixture
def victim(digits: Dataset, clean: nn.Module) -> Knowledge:
    return Knowledge(task_of(digits), digits.test, clean=lambda: clean)


def attack(**options: Any) -> GradientMatching:
    return GradientMatching(**{"epsilon": 96, "restarts": 1, "steps": 20, **options})


def test_poisons_lower_the_objective_and_stay_in_their_bounds(
    digits: Dataset, victim: Knowledge
) -> None:
    poisoned = attack(targets=3).poison(digits.train, 40, victim, seed=1)
    shifts, pixels = poisoned.samples.perturbation(), poisoned.samples.x / 255
    assert shifts is not None
    assert digits.std is not None
    change = shifts * digits.std[0]
    assert float(change.abs().max()) <= 96 / 255 + 1e-6
    assert float((pixels + change).min()) >= -1e-6
    assert float((pixels + change).max()) <= 1 + 1e-6
    changed = poisoned.samples.ids[change.flatten(1).any(1)]
    assert set(changed.tolist()) == set(poisoned.forget_ids.tolist())
    assert len(poisoned.forget) == 40
    assert poisoned.adversarial is not None
    sizes = [14, 13, 13]
    labels = poisoned.adversarial.repeat_interleave(torch.tensor(sizes))
    order = torch.searchsorted(poisoned.samples.ids, poisoned.forget_ids)
    assert torch.equal(poisoned.samples.y[order], labels)  # labels look right
    for target in range(3):
        values = [line["objective"] for line in poisoned.history if line["target"] == target]
        assert len(values) == 21
        assert values[-1] < 0.7 * values[0]


def test_targets_are_test_images_of_other_classes_that_the_clean_model_gets_right(
    digits: Dataset, victim: Knowledge, clean: nn.Module
) -> None:
    for options, seed in (({}, 0), ({"adversarial_label": 3}, 1), ({"target_class": 5}, 2)):
        made = attack(steps=1, targets=4, **options).poison(digits.train, 20, victim, seed)
        targets, labels = made.targets, made.adversarial
        assert targets is not None
        assert labels is not None
        assert len(set(targets.ids.tolist())) == 4
        found = probabilities(clean, victim.task, targets)
        assert torch.equal(found.argmax(1), targets.y)
        assert not bool((targets.y == labels).any())
        assert set(labels.tolist()) == {3} or "adversarial_label" not in options
        assert set(targets.y.tolist()) == {5} or "target_class" not in options
    made = attack(steps=1, adversarial_label="nearest").poison(digits.train, 20, victim, 3)
    assert made.targets is not None
    assert made.adversarial is not None
    found = probabilities(clean, victim.task, made.targets)
    assert int(found.argsort(1, descending=True)[0, 1]) == int(made.adversarial[0])


def test_a_model_trained_from_scratch_on_the_poisons_says_the_attackers_label(
    digits: Dataset, victim: Knowledge
) -> None:
    """And one trained on the same perturbations in random order does not."""
    made = attack(epsilon=128, steps=60, targets=2, adversarial_label="nearest")
    poisoned = made.poison(digits.train, 140, victim, seed=5)
    task = victim.task
    hit = made.effect(trained(digits, poisoned.samples, 7), poisoned, task).figures
    missed = made.effect(trained(digits, made.shuffled(poisoned, 0), 7), poisoned, task).figures
    without = made.effect(trained(digits, poisoned.retain, 8), poisoned, task).figures
    assert hit["target_success"] == hit["target_misclassified"] == 1
    assert hit["target_probability"] > 0.5
    assert missed["target_success"] == without["target_success"] == 0


def test_same_seed_same_poisons_and_the_best_restart_is_taken(
    digits: Dataset, victim: Knowledge
) -> None:
    made = attack(restarts=3, steps=8)
    one, two = (made.poison(digits.train, 20, victim, seed) for seed in (1, 1))
    assert one.samples.perturbations is not None
    assert two.samples.perturbations is not None
    assert torch.equal(one.samples.perturbations, two.samples.perturbations)
    last = [line["objective"] for line in one.history if line["step"] == 8]
    assert len(last) == 3
    assert one.figures["objective"] == min(last)


def test_an_objective_that_turns_nan_stops_with_the_best_so_far(
    digits: Dataset, clean: nn.Module
) -> None:
    task, bases = task_of(digits), digits.train[:10]
    kernel = Kernel(clean, task)
    plain, calls = matching(kernel.gradient(digits.test[:1])), []

    def breaking(total: torch.Tensor) -> tuple[float, torch.Tensor]:
        value, slope = plain(total)
        calls.append(value)
        return (value, slope) if len(calls) < 6 else (float("nan"), slope)

    box = task.box(clean, bases, 96)
    crafted = craft(
        kernel,
        bases,
        breaking,
        torch.zeros_like(box[0]),
        box,
        steps=20,
        lr=0.1,
        signed=True,
        seed=0,
    )
    assert crafted.stopped
    assert crafted.history == calls[:5]
    assert crafted.objective == min(calls[:5])
    inputs = task.inputs(clean, bases) + crafted.perturbation
    assert Kernel(clean, task)(inputs, bases, plain)[0] == pytest.approx(min(calls[:5]), abs=1e-5)


def test_views_are_flips_and_shifts_by_fractions_of_a_pixel() -> None:
    """Against SciPy's linear interpolation, and the derivative is the transpose."""
    task = Classification(augment=("flip", "crop"))
    x = torch.randn(6, 2, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    views = task.view(x, generator(0))
    draws = generator(0)
    mirrored = torch.randint(2, (6,), generator=draws).bool()
    moves = (2 * torch.rand(6, 2, generator=draws) - 1) * 2
    assert float(moves.abs().max()) <= 2  # an eighth of the width
    for image, view, flip, (dx, dy) in zip(x.numpy(), views.numpy(), mirrored, moves.tolist()):
        moved = [shifted_image(channel, (-dy, -dx), order=1) for channel in image]
        expected = np.stack(moved)[..., ::-1] if flip else np.stack(moved)
        inner = (slice(None), slice(3, -3), slice(3, -3))
        np.testing.assert_allclose(view[inner], expected[inner], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target_class": 3, "adversarial_label": 3}, "3 is the target's own class"),
        ({"epsilon": 0}, "attack.epsilon: Input should be greater than 0"),
        ({"epsilon": -4}, "attack.epsilon"),
        ({"restarts": 0}, "attack.restarts"),
        ({"adversarial_label": "closest"}, "attack.adversarial_label"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MarshtestError, match=says) as error:
        parse_attack({"name": "gradient-matching", **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "count", "says"),
    [
        ({"adversarial_label": 12}, 20, r"attack.adversarial_label: no .* label 12; there are \[0"),
        ({"target_class": 11}, 20, "attack.target_class: no training sample has label 11"),
        ({"adversarial_label": 3}, 200, "asks for 200 poisons of class 3, which has 14"),
        ({"targets": 500}, 600, "500 are asked for"),
        ({"targets": 4}, 3, "poison_budgets: 3 poisons are fewer than attack.targets, 4"),
    ],
)
def test_what_the_data_cannot_give_is_one_line(
    digits: Dataset, victim: Knowledge, options: dict[str, Any], count: int, says: str
) -> None:
    with pytest.raises(MarshtestError, match=says):
        attack(**options).poison(digits.train, count, victim, seed=0)


def test_a_clean_model_at_chance_is_refused(digits: Dataset) -> None:
    blank = build(parse_model({"name": "mlp", "width": 8}), (1, 8, 8), 10, 0)
    victim = Knowledge(task_of(digits), digits.test, clean=lambda: blank)
    with pytest.raises(MarshtestError, match="at chance .* nothing to poison"):
        attack().poison(digits.train, 20, victim, seed=0)


def test_probability_is_the_softmax_at_the_attackers_label(
    digits: Dataset, victim: Knowledge, clean: nn.Module
) -> None:
    made = attack(steps=1, targets=3)
    poisoned = made.poison(digits.train, 30, victim, seed=0)
    effect = made.effect(clean, poisoned, victim.task)
    assert poisoned.targets is not None
    assert poisoned.adversarial is not None
    with torch.no_grad():
        logits = clean(victim.task.inputs(clean, poisoned.targets))
    expected = F.softmax(logits, 1)[torch.arange(3), poisoned.adversarial]
    np.testing.assert_allclose(effect.scores["target"], expected, rtol=1e-6)
    assert effect.ids.tolist() == poisoned.targets.ids.tolist()
    assert effect.figures["target_misclassified"] == 0
