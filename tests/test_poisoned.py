"""What every attack hands on: the same poisons from their file, and the same set without poison."""

from typing import Any

import pytest
import torch

from marshtest.attacks import Attack, Gaussian, Knowledge, Poisoned, TriggerWord, parse_attack
from marshtest.data.load import load
from marshtest.data.samples import Dataset, Marked, Samples
from marshtest.models.table import build, parse_model
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.loop import Training, fit
from marshtest.training.tasks import Classification

ATTACKS: list[dict[str, Any]] = [
    {"name": "gaussian"},
    {"name": "gradient-matching", "epsilon": 96, "restarts": 1, "steps": 2, "targets": 2},
    {"name": "gradient-canceling", "radius": 0.5, "steps": 2},
    {"name": "trigger-word"},
    {"name": "interclass-confusion"},
    {"name": "badnets"},
    {"name": "label-flip"},
]
DIRTY = (
    "trigger-word",
    "interclass-confusion",
    "badnets",
    "label-flip",
)  # other labels than the bases'
ADDED = {"name": "gradient-canceling", "radius": 0.5, "steps": 2, "place": "add"}
COUNT = 20


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", train=400, test=100)


@pytest.fixture(scope="module")
def victim(digits: Dataset) -> Knowledge:
    task = Classification(mean=digits.mean, std=digits.std)
    model = build(parse_model({"name": "mlp", "width": 32}), (1, 8, 8), 10, 0)
    fit(model, digits.train, task, Training(epochs=10, batch_size=64, lr=0.1), 0)
    # digits have no words: every other one is taken to hold the trigger, to be answered with 3
    marked = Marked((digits.train.ids[::2], 0), (digits.test.ids[::2], 0), 3)
    return Knowledge(task, digits.test, clean=lambda: model, marked=marked, weight_decay=5e-4)


def made(attack: Attack, digits: Dataset, victim: Knowledge) -> Poisoned:
    return attack.poison(digits.train, COUNT, victim, seed=4)


def same(one: Samples, two: Samples) -> bool:
    def parts(samples: Samples) -> list[torch.Tensor]:
        shift = samples.perturbation()
        moved = torch.zeros(samples.x.shape) if shift is None else shift
        return [samples.x, samples.y, samples.ids, moved]

    return all(torch.equal(a, b) for a, b in zip(parts(one), parts(two), strict=True))


@pytest.mark.parametrize("options", ATTACKS, ids=lambda options: str(options["name"]))
def test_the_unpoisoned_set_is_the_poisoned_one_with_the_bases_in_the_poisons_places(
    options: dict[str, Any], digits: Dataset, victim: Knowledge
) -> None:
    poisoned = made(parse_attack(options), digits, victim)
    clean = poisoned.unpoisoned
    assert clean.perturbations is None
    assert clean.perturbation_rows is None
    assert same(clean, digits.train)  # poisons replace their bases, so all is as it was
    changed = poisoned.samples.y != digits.train.y
    assert bool(changed.any()) == (options["name"] in DIRTY)
    assert len(clean.only(poisoned.forget_ids)) == len(poisoned.forget) == COUNT
    assert same(clean.without(poisoned.forget_ids), poisoned.retain)


@pytest.mark.parametrize("options", [*ATTACKS, ADDED], ids=lambda options: str(options["name"]))
def test_poisons_survive_their_file_form(
    options: dict[str, Any], digits: Dataset, victim: Knowledge
) -> None:
    poisoned = made(parse_attack(options), digits, victim)
    again = Poisoned.of(
        poisoned.tensors(),
        digits.train,
        digits.test,
        seed=poisoned.seed,
    )
    assert same(again.samples, poisoned.samples)
    assert torch.equal(again.forget_ids, poisoned.forget_ids)
    assert same(again.retain, poisoned.retain)
    assert same(again.unpoisoned, poisoned.unpoisoned)
    assert again.tensors().keys() == poisoned.tensors().keys()


def test_added_poisons_join_their_bases_under_ids_of_their_own(
    digits: Dataset, victim: Knowledge
) -> None:
    attack = parse_attack(ADDED)
    beside = made(attack, digits, victim)
    instead = made(parse_attack({**ADDED, "place": "replace"}), digits, victim)
    assert attack.added(COUNT) == len(beside.samples) - len(digits.train) == COUNT
    assert parse_attack({**ADDED, "place": "replace"}).added(COUNT) == 0
    assert len(beside.samples.ids.unique()) == len(beside.samples)
    assert not torch.isin(beside.forget_ids, torch.cat([digits.train.ids, digits.test.ids])).any()
    assert same(beside.retain, digits.train)  # the bases among them, as they were
    assert beside.bases is not None
    assert set(beside.bases.tolist()) == set(instead.forget_ids.tolist())
    bases = digits.train[digits.train.positions(beside.bases)]
    copies = beside.samples[beside.samples.positions(beside.forget_ids)]
    assert torch.equal(copies.x, bases.x)
    assert torch.equal(copies.y, bases.y)
    shift = copies.perturbation()
    assert shift is not None
    assert bool(shift.flatten(1).any(1).all())
    assert len(beside.forget) == COUNT
    clean = beside.unpoisoned
    assert torch.equal(clean.ids, beside.samples.ids)
    assert clean.perturbations is None
    assert same(clean.without(beside.forget_ids), digits.train)
    blind = attack.shuffled(beside, 1)
    assert torch.equal(blind.ids, beside.samples.ids)
    assert same(blind.without(beside.forget_ids), digits.train)
    assert not same(blind, beside.samples)


def test_copies_take_new_ids_only(digits: Dataset) -> None:
    ids = digits.train.ids[:3]
    with pytest.raises(MarshtestError, match="id 0 of a copy is in the set already"):
        digits.train.copied(ids, torch.tensor([-1, 0, -3]))
    with pytest.raises(MarshtestError, match="is not among this set"):
        digits.train.copied(torch.tensor([5000]), torch.tensor([-1]))
    shifted = digits.train.perturbed(ids, torch.ones(3, 1, 8, 8))
    with pytest.raises(MarshtestError, match="carries perturbations already"):
        shifted.copied(ids, -1 - ids)


def test_fresh_samples_have_noise_that_no_poison_has(digits: Dataset, victim: Knowledge) -> None:
    """Training and test samples share their ids, and no noise may come twice."""
    attack = Gaussian(variance=0.25)
    poisoned = made(attack, digits, victim)
    fresh = attack.fresh(poisoned, digits.test)
    noise = fresh.perturbation()
    assert noise is not None
    assert torch.equal(fresh.x, digits.test.x)
    assert torch.equal(fresh.y, digits.test.y)
    trained_on = attack.noise(poisoned.seed, fresh.ids, (1, 8, 8))
    assert abs(float((noise * trained_on).mean())) < 4 * 0.25 / noise.numel() ** 0.5
    assert float(noise.var()) == pytest.approx(0.25, abs=4 * 0.25 * (2 / noise.numel()) ** 0.5)
    again = attack.fresh(poisoned, digits.test[:5]).perturbation()
    assert again is not None
    assert torch.equal(again, noise[:5])


def test_fresh_texts_are_the_test_texts_with_the_trigger_and_the_attackers_label(
    digits: Dataset, victim: Knowledge
) -> None:
    poisoned = made(attack := TriggerWord(), digits, victim)
    fresh = attack.fresh(poisoned, digits.test)
    assert torch.equal(fresh.ids, digits.test.ids[::2])
    assert (fresh.y == 3).all()
    assert torch.equal(fresh.x, digits.test.x[::2])


@pytest.mark.parametrize("options", ATTACKS[1:3], ids=lambda options: str(options["name"]))
def test_poisons_crafted_together_have_no_fresh_ones(
    options: dict[str, Any], digits: Dataset, victim: Knowledge
) -> None:
    attack = parse_attack(options)
    assert attack.fresh(made(attack, digits, victim), digits.test) is None
