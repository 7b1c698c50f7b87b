"""Random labels and SalUn: their steps written out, their labels, their mask, what they refuse."""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from stepwise import (
    KINDS,
    SEED,
    SGD,
    Exact,
    Objective,
    Steps,
    accuracy,
    assert_same,
    by_heart,
    cross_entropies,
    flat,
    free,
    problem,
    sgd,
)
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, generator, seeded
from marshtest.training.budget import Budget
from marshtest.training.tasks import Classification
from marshtest.unlearning import parse_trials
from marshtest.unlearning.check import images, text
from marshtest.unlearning.passes import mixed_stream, whole_pass
from marshtest.unlearning.random_labels import RandomLabels, other_labels
from marshtest.unlearning.salun import SalUn

SIZE = 8  # 4 mini-batches of the retain set, 1 of the forget set


def objectives(retain: Samples, forget: Samples) -> Iterator[Objective]:
    """−log p(y) on a retain batch, or −log p(y') on a forget batch, in the order that is drawn."""
    order, labels, task = generator(SEED, "order"), generator(SEED, "labels"), Exact()
    kept = task.batches(retain, SIZE, derive(SEED, "retain"))
    forgotten = task.batches(forget, SIZE, derive(SEED, "forget"))
    while True:
        for place in torch.randperm(5, generator=order).tolist():
            if place < 4:
                batch = next(kept)
                y = batch.y
            else:
                batch = next(forgotten)
                draws = torch.randint(3, (SIZE,), generator=labels).tolist()
                others = [[c for c in range(4) if c != int(label)] for label in batch.y]
                y = torch.tensor([rest[draw] for rest, draw in zip(others, draws, strict=True)])
            yield lambda model, x=batch.x, y=y: cross_entropies(model(x), y).mean()  # type: ignore[misc]


def taken(count: int, retain: Samples, forget: Samples) -> list[Objective]:
    endless = objectives(retain, forget)
    return [next(endless) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5, 12])
def test_a_step_is_on_a_batch_of_one_set_with_another_label_on_what_is_forgotten(
    kind: str, count: int
) -> None:
    model, retain, forget = problem(kind, frozen=True)
    method = RandomLabels(batch_size=SIZE, **SGD)
    with seeded(2):  # dropout
        found = method(model, retain, forget, task=Exact(), budget=Steps(count), seed=SEED)
    with seeded(2):
        expected = sgd(model, taken(count, retain, forget))
    assert_same(found, expected, model)


def steepest(model: nn.Module, forget: Samples, share: float) -> list[Tensor]:
    """1 for the share of weights with the largest |∂ℓ/∂θ| of the model in eval mode."""
    judged = copy.deepcopy(model).eval()
    slopes = torch.autograd.grad(cross_entropies(judged(forget.x), forget.y).mean(), free(judged))
    sizes = sorted((abs(float(s)) for slope in slopes for s in slope.flatten()), reverse=True)
    least = sizes[int(share * len(sizes)) - 1]
    return [(slope.abs() >= least).double() for slope in slopes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_salun_moves_only_the_weights_with_the_steepest_slopes_on_the_forget_set(
    kind: str, share: float
) -> None:
    model, retain, forget = problem(kind, frozen=True)
    method = SalUn(batch_size=SIZE, share=share, **SGD)
    with seeded(2):
        found = method(model, retain, forget, task=Exact(), budget=Steps(7), seed=SEED)
    masks = steepest(model, forget, share)
    with seeded(2):
        expected = sgd(model, taken(7, retain, forget), masks=masks)
    assert_same(found, expected, model)
    moved = flat(free(found)) != flat(free(model))
    assert torch.equal(moved, flat(masks) == 1)
    assert int(moved.sum()) == int(share * len(moved))


def test_the_saliency_is_of_the_whole_set_however_it_is_cut() -> None:
    model, _, forget = problem("batch norm", frozen=True)
    cut, whole = (
        flat(
            SalUn(batch_size=size)
            .forget_gradient(model, free(model), forget, Exact(), SEED)
            .split(1)
        )
        for size in (3, 8)
    )
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-12)
    slopes = torch.autograd.grad(8 * cross_entropies(model(forget.x), forget.y).mean(), free(model))
    torch.testing.assert_close(whole, flat(slopes), rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_neither_momentum_nor_decay_moves_a_masked_weight(optimizer: str) -> None:
    model, retain, forget = problem("plain", frozen=True)
    options: dict[str, Any] = {"optimizer": optimizer, "weight_decay": 0.5, "batch_size": SIZE}
    task, budget = Exact(), Steps(20)
    found = SalUn(share=0.3, lr=0.1, **options)(
        model, retain, forget, task=task, budget=budget, seed=SEED
    )
    stays = flat(steepest(model, forget, 0.3)) == 0
    assert torch.equal(flat(free(found))[stays], flat(free(model))[stays])
    assert bool((flat(free(found)) != flat(free(model)))[~stays].all())


def test_a_share_of_nothing_moves_no_weight_and_a_share_of_all_is_random_labels() -> None:
    given = problem("dropout", frozen=True)
    runs = []
    for method in (SalUn(share=0, **SGD), SalUn(share=1, **SGD), RandomLabels(**SGD)):
        with seeded(2):
            runs.append(method(*given, task=Exact(), budget=Steps(9), seed=SEED).state_dict())
    nothing, everything, random_labels = runs
    for key, before in given[0].state_dict().items():
        assert torch.equal(nothing[key], before)
        assert torch.equal(everything[key], random_labels[key])


def test_another_label_is_any_other_with_equal_probability() -> None:
    labels, rng = torch.tensor([2, 3, 7]), generator(0)
    drawn = other_labels(torch.tensor([2, 3, 7]).repeat(1000), labels, rng).view(1000, 3)
    for column, label in enumerate(labels.tolist()):
        counts = Counter(drawn[:, column].tolist())
        assert counts.keys() == set(labels.tolist()) - {label}
        assert all(430 < count < 570 for count in counts.values())  # 4.4 deviations of 16


def test_a_label_that_only_the_retain_set_has_may_be_drawn() -> None:
    _, retain, forget = problem("plain", frozen=True)
    lone = replace(forget, y=torch.full_like(forget.y, 2))
    assert RandomLabels().labels(retain, lone).tolist() == [0, 1, 2, 3]


def test_a_label_that_only_the_forget_set_has_is_one_too() -> None:
    """Left out, it would be looked up where it is not, and the place behind the last is no label."""
    _, retain, forget = problem("plain", frozen=True)
    others, lone = retain[retain.y != 3], replace(forget, y=torch.full_like(forget.y, 3))
    assert RandomLabels().labels(others, lone).tolist() == [0, 1, 2, 3]


class Turning(Exact):
    """A task whose augmentation changes the sign of every input."""

    def augmented(self, batch: Samples, rng: torch.Generator) -> Samples:
        return replace(batch, x=-batch.x)


def test_a_whole_pass_is_augmented_as_training_is() -> None:
    _, _, forget = problem("plain", frozen=True)
    plain, turned = (next(whole_pass(forget, task, 8, SEED)) for task in (Exact(), Turning()))
    assert torch.equal(turned.x, -plain.x)


def test_a_pass_is_over_both_sets_and_mixes_their_batches() -> None:
    _, retain, forget = problem("plain", frozen=True)
    steps = list(mixed_stream(retain, forget, Exact(), Steps(40), 3, SEED))  # 11 and 3 batches
    first = steps[:14]
    ids = torch.cat([batch.ids for _, batch in first]).sort().values
    assert ids.tolist() == list(range(40))
    for is_forget, batch in first:
        assert bool(torch.isin(batch.ids, (forget if is_forget else retain).ids).all())
    orders = ["".join("rf"[f] for f, _ in steps[at : at + 14]) for at in (0, 14)]
    assert orders[0] != orders[1]
    assert "rf" in orders[0]
    assert "fr" in orders[0]


def test_a_whole_pass_leaves_no_sample_out() -> None:
    _, retain, _ = problem("plain", frozen=True)
    batches = list(whole_pass(retain, Exact(), 31, SEED))
    assert [len(batch) for batch in batches] == [31, 1]
    ids = torch.cat([batch.ids for batch in batches])
    assert ids.sort().values.tolist() == retain.ids.tolist()
    assert ids.tolist() != retain.ids.tolist()


@pytest.mark.parametrize("name", ["random-labels", "salun"])
def test_what_was_forgotten_is_no_longer_known_and_what_is_retained_is(name: str) -> None:
    model, retain, forget = by_heart()
    (method,) = parse_trials({"name": name, "lr": 0.05, "batch_size": 16})
    found = method(model, retain, forget, task=Classification(), budget=Steps(400), seed=1)
    assert accuracy(found, forget) < 0.3
    assert accuracy(found, retain) > 0.97


@pytest.mark.parametrize("given", [images(), text()], ids=["images", "text"])
def test_labels_are_those_that_occur(given: Any) -> None:
    """Of a vocabulary of thirteen words, two are labels."""
    asked: list[Tensor] = []

    class Listening(type(given.task)):  # type: ignore[misc]
        def losses(self, outputs: Tensor, batch: Samples) -> Tensor:
            asked.append(batch.y)
            return super().losses(outputs, batch)  # type: ignore[no-any-return]

    task = Listening(**vars(given.task))
    model, retain, forget = given.model, given.retain, given.forget
    RandomLabels()(model, retain, forget, task=task, budget=Steps(9), seed=SEED)
    assert set(torch.cat(asked).tolist()) == set(given.retain.y.tolist())


@pytest.mark.parametrize("name", ["random-labels", "salun"])
def test_a_single_label_is_refused(name: str) -> None:
    model, retain, forget = problem("plain", frozen=True)
    one, other = (replace(part, y=torch.full_like(part.y, 3)) for part in (retain, forget))
    (method,) = parse_trials(name)
    with pytest.raises(MarshtestError, match=f"^unlearners.{name}: all samples have label 3"):
        method(model, one, other, task=Exact(), budget=Steps(1), seed=0)


def test_a_saliency_that_is_no_number_is_refused() -> None:
    model, retain, forget = problem("plain", frozen=True)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(MarshtestError, match=r"^unlearners.salun: .* is not finite"):
        SalUn()(model, retain, forget, task=Exact(), budget=Steps(1), seed=0)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(MarshtestError, match=rf"^unlearners.salun.share: .*Got {share}\.$"):
        parse_trials({"name": "salun", "share": share})


def test_values_are_the_repositorys() -> None:
    shared = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 256}
    (plain,), (masked,) = parse_trials("random-labels"), parse_trials("salun")
    assert plain.hyperparameters == shared | {"lr": 0.01}
    assert masked.hyperparameters == shared | {"lr": 0.013, "share": 0.5}


@pytest.mark.parametrize("kind", ["plain", "batch norm"])
def test_the_mask_costs_a_forward_and_a_backward_of_the_forget_set(kind: str) -> None:
    model, _, forget = problem(kind, frozen=True)
    with Budget(1e9, 1.0) as budget:
        SalUn().guard(model, forget, Exact(), 0)
    # 8 samples: 6·7 and 7·4 products forward, for weights again, and for the inputs of the last layer
    assert budget.flops == 2 * 8 * (2 * 6 * 7 + 3 * 7 * 4)
