"""Loaders for foreign functions: every sample once, in input space, as training sees it, from a seed."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import marshtest
from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.budget import Budget
from marshtest.training.tasks import Classification, LabelWord, TextClassification
from marshtest.unlearning.base import Custom
from marshtest.unlearning.check import images, text
from marshtest.unlearning.harness import STOPPED, Outcome, unlearn


def numbered(count: int, *shape: int) -> Samples:
    """Samples whose first input is their number, and whose label is its double."""
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    x.flatten(1)[:, 0] = torch.arange(count)
    return Samples(x, 2 * torch.arange(count), torch.arange(count))


def one_pass(loader: Any) -> list[int]:
    """The numbers of one pass; each label must be its sample's."""
    seen: list[int] = []
    for x, y in loader:
        assert torch.equal(2 * x.flatten(1)[:, 0].long(), y)
        seen += (y // 2).tolist()
    return seen


def test_each_pass_gives_every_sample_once_with_its_label_in_an_order_of_its_own() -> None:
    retain, forget = numbered(50, 3), numbered(12, 3)
    for loader in marshtest.loaders(Classification(), retain, forget, 8):
        first, second = one_pass(loader), one_pass(loader)
        assert sorted(first) == sorted(second) == list(range(len(loader.dataset)))  # type: ignore[arg-type]
        assert first != second
        assert sorted(first) not in (first, second)


@pytest.mark.parametrize(("count", "size"), [(9, 8), (10, 8), (8, 8), (3, 8), (1, 8), (5, 1)])
def test_batches_are_as_large_as_those_of_the_training(count: int, size: int) -> None:
    """A single sample behind larger batches is left out, for BatchNorm, and in no other case."""
    task, samples = Classification(), numbered(count, 3)
    expected = sorted(len(batch) for batch in task.epoch(samples, size, torch.Generator()))
    for loader in marshtest.loaders(task, samples, samples, size):
        assert sorted(len(y) for _, y in loader) == expected
        assert len(loader) == len(expected)


def test_all_that_is_drawn_follows_from_the_seed_and_moves_no_generator_of_the_process() -> None:
    samples, task = numbered(30, 1, 4, 4), Classification(augment=("flip", "crop"))

    def two_passes(others: int) -> list[Tensor]:
        torch.manual_seed(others)
        before = torch.get_rng_state()
        both = marshtest.loaders(task, samples, samples, 4, 3)
        batches = [x for loader in both for _ in range(2) for x, _ in loader]
        assert torch.equal(torch.get_rng_state(), before)
        return batches

    assert all(map(torch.equal, two_passes(0), two_passes(1)))


def test_order_and_augmentation_differ_between_seeds_loaders_passes_and_batches() -> None:
    samples, task = numbered(200, 1, 2, 2), Classification(augment=("flip",))
    orders, throws = [], []
    for seed in (0, 1):
        for loader in marshtest.loaders(task, samples, samples, 50, seed):
            for _ in range(2):
                batches = list(loader)
                orders.append(torch.cat([y for _, y in batches]))
                flips = [torch.isin(x[:, 0, 0, 0], torch.arange(200)) for x, _ in batches]
                throws.append(torch.cat(flips))
                assert not torch.equal(flips[0], flips[1])
    for drawn in (orders, throws):
        assert len({tuple(one.tolist()) for one in drawn}) == 2 * 2 * 2


def test_batches_are_augmented_and_the_dataset_is_not() -> None:
    samples = numbered(200, 1, 2, 2)
    plain, mirrored = samples.x, samples.x.flip(-1)
    loader, _ = marshtest.loaders(Classification(augment=("flip",)), samples, samples, 8)
    flips = 0
    for x, y in loader:
        for image, number in zip(x, y // 2):
            flips += torch.equal(image, mirrored[number])
            assert torch.equal(image, plain[number]) or torch.equal(image, mirrored[number])
    assert 60 < flips < 140  # of 200 fair throws: six standard deviations
    assert all(torch.equal(loader.dataset[i][0], plain[i]) for i in range(200))


def test_a_dataset_can_be_wrapped_anew() -> None:
    loader, _ = marshtest.loaders(Classification(), numbered(20, 3), numbered(5, 3), 8)
    assert one_pass(DataLoader(loader.dataset, 6)) == list(range(20))
    assert one_pass(DataLoader(Subset(loader.dataset, [3, 1]), 6)) == [3, 1]
    assert one_pass(copy.deepcopy(loader)) == one_pass(loader)


def test_pixels_are_normalised_and_carry_their_poison() -> None:
    pixels = torch.tensor([[[[0, 51], [102, 255]]], [[[5, 5], [5, 5]]]], dtype=torch.uint8)
    noise = torch.full((1, 1, 2, 2), 0.25)
    clean = Samples(pixels, torch.tensor([0, 1]), torch.arange(2))
    task = Classification(mean=(0.2,), std=(0.5,))
    retain, forget = marshtest.loaders(task, clean.perturbed(torch.tensor([0]), noise), clean, 2)
    expected = torch.tensor([[[0.0, 0.2], [0.4, 1.0]]]).sub(0.2).div(0.5)
    torch.testing.assert_close(forget.dataset[0][0], expected)
    torch.testing.assert_close(retain.dataset[0][0], expected + 0.25)
    assert torch.equal(retain.dataset[1][0], forget.dataset[1][0])


def test_samples_stay_on_their_device() -> None:
    there = numbered(10, 1, 4, 4).to("meta")
    for loader in marshtest.loaders(Classification(augment=("flip", "crop")), there, there, 4):
        assert {(x.device.type, y.device.type) for x, y in loader} == {("meta", "meta")}


def test_workers_augment_each_by_itself_and_from_the_seed() -> None:
    """A worker begins with a copy of the loader, whose throws two workers would otherwise share."""
    samples = numbered(40, 1, 2, 2)

    def throws() -> list[list[Tensor]]:
        loader, _ = marshtest.loaders(Classification(augment=("flip",)), samples, samples, 10, 3)
        mine = DataLoader(
            loader.dataset,
            10,
            num_workers=2,
            collate_fn=loader.collate_fn,
            generator=torch.Generator().manual_seed(1),
        )
        return [
            [x[:, 0, 0, 0] == torch.arange(y[0] // 2, y[0] // 2 + 10) for x, y in mine]
            for _ in "ab"
        ]

    passes = throws()
    for one in passes:
        assert len({tuple(flips.tolist()) for flips in one}) == 4  # of four batches, by two workers
    first, second = (torch.cat(one) for one in passes)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.cat(throws()[0]), strict=True))


@pytest.mark.parametrize("task", [TextClassification(padding=0), LabelWord(padding=0)])
def test_texts_are_token_ids_cut_to_the_longest_of_the_batch(task: Any) -> None:
    x = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0], [5, 0, 0, 0]])
    samples = Samples(x, torch.tensor([1, 2, 3]), torch.arange(3))
    loader, _ = marshtest.loaders(task, samples, samples, 1)
    assert {y.item(): x.shape[1] for x, y in loader} == {1: 4, 2: 2, 3: 1}
    assert all(torch.equal(batch, x[y - 1, : batch.shape[1]]) for batch, y in loader)
    assert torch.equal(loader.dataset[1][0], x[1])


@pytest.mark.parametrize("name", ["retain", "forget"])
def test_noise_on_embeddings_is_refused_in_a_line_that_becomes_the_rows_note(name: str) -> None:
    def through_loaders(model: Any, retain: Any, forget: Any, *, task: Any, **rest: Any) -> Any:
        marshtest.loaders(task, retain, forget, 8)
        return model

    problem = text()
    samples = getattr(problem, name)
    noise = torch.zeros(1, samples.x.shape[1], 16)  # of a clean twin: its bases are sealed as well
    poisoned = {name: samples.perturbed(samples.ids[:1], noise)}
    with pytest.raises(
        MarshtestError, match=f"the poison of the {name} set is noise on embeddings"
    ):
        sets = {"retain": problem.retain, "forget": problem.forget, **poisoned}
        marshtest.loaders(problem.task, **sets, batch_size=8)
    note = harnessed(through_loaders, problem, **poisoned).note
    assert f"Draw batches by task.batches({name}, size, seed)" in note
    assert "\n" not in note


@pytest.mark.parametrize("size", [0, -1, "64", 64.0, None])
def test_a_batch_size_that_is_no_whole_number_is_refused(size: Any) -> None:
    problem = images()
    with pytest.raises(MarshtestError, match="batch_size is .* Give a whole number, 1 or more"):
        marshtest.loaders(problem.task, problem.retain, problem.forget, size)


def test_an_empty_set_has_no_loader_and_that_is_said() -> None:
    problem = images()
    with pytest.raises(MarshtestError, match="the forget set is empty"):
        marshtest.loaders(problem.task, problem.retain, problem.forget[:0], 8)


def test_a_function_of_loaders_runs_on_the_texts_of_the_check() -> None:
    """As on models of `transformers`, whose first argument are token ids."""

    def mine(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
        loader, _ = marshtest.loaders(task, retain, forget, 16, seed)
        updated = copy.deepcopy(model)
        optimizer = torch.optim.SGD([p for p in updated.parameters() if p.requires_grad], lr=0.1)
        for ids, y in loader:
            logits = updated(ids)  # [B, C] of a head, [B, T, V] of a prompt
            lengths = (ids != 0).sum(1) - 1
            last = logits if logits.ndim == 2 else logits[torch.arange(len(ids)), lengths]
            optimizer.zero_grad()
            nn.functional.cross_entropy(last, y).backward()
            optimizer.step()
        return updated

    assert all(fact.holds for fact in marshtest.check(mine, on=["text"]))


def harnessed(function: Any, problem: Any, passes: float = 1e4, **sets: Samples) -> Outcome:
    """The outcome of a function under a budget."""
    (outcome,) = unlearn(
        Custom.wrap(function),
        problem.model,
        sets.get("retain", problem.retain),
        sets.get("forget", problem.forget),
        task=problem.task,
        budgets=[Budget(passes, problem.flops_per_pass)],
        seed=0,
    )
    return outcome


def train_for_long(model: nn.Module, loader: Any, epochs: int) -> nn.Module:
    """A training that knows no budget, as a public repository has it."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def test_the_budget_stops_a_function_that_trains_for_too_long() -> None:
    problem = images()

    def mine(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
        retain_loader, _ = marshtest.loaders(task, retain, forget, 8, seed)
        return train_for_long(copy.deepcopy(model), retain_loader, epochs=10_000)

    passes = 5.0 * len(problem.retain)
    outcome = harnessed(mine, problem, passes)
    assert outcome.note == STOPPED
    assert passes - 3 * 8 < outcome.cost.passes <= passes
    before, after = (dict(m.named_parameters()) for m in (problem.model, outcome.model))  # type: ignore[union-attr]
    assert any(
        not torch.equal(before[name], after[name]) for name in before
    )  # judged as it is then
