"""SCRUB: its steps against the published formulas written out, its values, its turns, its cost."""

import copy
import itertools
from collections.abc import Iterator
from functools import partial
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
    assert_same,
    log_softmax,
    problem,
    sgd,
)
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.seeds import derive, generator, seeded
from marshtest.training.budget import Budget, flops_of
from marshtest.unlearning import parse_trials
from marshtest.unlearning.check import images, text
from marshtest.unlearning.scrub import Scrub, ScrubRepository, divergence_and_loss

GAMMA, ALPHA, BETA, TEMPERATURE = 0.7, 0.4, 0.3, 3.0
OPTIMIZER: dict[str, Any] = {**SGD, "batch_size": 16}


def kl_and_loss(
    teacher: Tensor, student: Tensor, y: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Σ_c p_c (log p_c − log q_c) and −log q_y at T = 1, from logits; means over the batch."""
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    kl = (log_p.exp() * (log_p - log_q)).sum() / len(y)
    return kl, -log_softmax(student)[torch.arange(len(y)), y].sum() / len(y)


def joint(model: nn.Module, retain: Samples, forget: Samples, count: int) -> list[Objective]:
    """γ ℓ(retain) + α T² KL(teacher ‖ student; retain) − β T² KL(teacher ‖ student; forget)."""
    teacher, task = copy.deepcopy(model).eval(), Exact()
    kept = task.batches(retain, 16, derive(SEED, "retain"))
    forgotten = task.batches(forget, 16, derive(SEED, "forget"))

    def step(keep: Samples, drop: Samples) -> Objective:
        def objective(student: nn.Module) -> Tensor:
            with torch.no_grad():
                told = [teacher(part.x) for part in (keep, drop)]
            said = [student(part.x) for part in (keep, drop)]
            near, loss = kl_and_loss(told[0], said[0], keep.y, TEMPERATURE)
            far, _ = kl_and_loss(told[1], said[1], drop.y, TEMPERATURE)
            return GAMMA * loss + ALPHA * 3 * 3 * near - BETA * 3 * 3 * far

        return objective

    return [step(next(kept), next(forgotten)) for _ in range(count)]


def alternating(
    model: nn.Module, retain: Samples, forget: Samples, with_max_steps: bool = True
) -> Iterator[Objective]:
    """−T² KL(teacher ‖ student; forget), then γ ℓ(retain) + α T² KL(teacher ‖ student; retain)."""
    teacher, task = copy.deepcopy(model).eval(), Exact()
    draws = generator(SEED, "scrub")

    def compared(student: nn.Module, batch: Samples) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            told = teacher(batch.x)
        return kl_and_loss(told, student(batch.x), batch.y, TEMPERATURE)

    def max_step(batch: Samples) -> Objective:
        return lambda student: -3 * 3 * compared(student, batch)[0]

    def min_step(batch: Samples) -> Objective:
        def objective(student: nn.Module) -> Tensor:
            kl, loss = compared(student, batch)
            return GAMMA * loss + ALPHA * 3 * 3 * kl

        return objective

    while True:
        if with_max_steps:
            yield from [max_step(batch) for batch in task.epoch(forget, 4, draws)]
        yield from [min_step(batch) for batch in task.epoch(retain, 16, draws)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5])
def test_a_joint_step_lowers_loss_and_divergence_on_retain_and_raises_divergence_on_forget(
    kind: str, count: int
) -> None:
    model, retain, forget = problem(kind)
    method = Scrub(
        loss_weight=GAMMA, kl_weight=ALPHA, forget_weight=BETA, temperature=3, **OPTIMIZER
    )
    with seeded(2):  # dropout
        found = method(model, retain, forget, task=Exact(), budget=Steps(count), seed=SEED)
    with seeded(2):
        expected = sgd(model, joint(model, retain, forget, count))
    assert_same(found, expected, model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("count", "max_share"),
    [(1, 1), (2, 1), (3, 1), (9, 1), (1, 0), (5, 0)],
    ids=["first max step", "max", "first min after max", "all", "first min step", "min"],
)
def test_an_alternating_step_is_against_divergence_on_forget_or_for_loss_and_divergence_on_retain(
    kind: str, count: int, max_share: float
) -> None:
    model, retain, forget = problem(kind)
    method = ScrubRepository(
        loss_weight=GAMMA,
        kl_weight=ALPHA,
        temperature=3,
        max_share=max_share,
        forget_batch_size=4,
        **OPTIMIZER,
    )
    with seeded(2):  # dropout
        found = method(model, retain, forget, task=Exact(), budget=Steps(count), seed=SEED)
    with seeded(2):
        steps = alternating(model, retain, forget, with_max_steps=max_share > 0)
        expected = sgd(model, itertools.islice(steps, count))
    assert_same(found, expected, model)


@pytest.mark.parametrize("given", [images(), text()], ids=["images", "text"])
def test_the_divergence_is_of_the_label_alone(given: Any) -> None:
    """In a causal model too, whose loss is over all tokens; the student is off its teacher."""
    task, batch = given.task, given.retain[:16]
    teacher, student = copy.deepcopy(given.model).eval(), copy.deepcopy(given.model).eval()
    with torch.no_grad():
        for number, weight in enumerate(student.parameters()):
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator(number)))
        divergence, loss = divergence_and_loss(teacher, student, batch, task, 3.0)
        told, said = (task.label_logits(task(m, batch), batch).double() for m in (teacher, student))
        kl, _ = kl_and_loss(told, said, torch.zeros(16, dtype=torch.int64), 3.0)
        assert kl > 0.01
        assert float(divergence) == pytest.approx(9 * float(kl), rel=1e-4)
        assert float(loss) == pytest.approx(float(task.loss(student, batch).mean()), rel=1e-6)


def test_scrub_has_the_papers_values_and_scrub_repository_its_authors() -> None:
    (paper,), (authors,) = parse_trials("scrub"), parse_trials("scrub-repository")
    shared = {"optimizer": "sgd", "lr": 5e-4, "momentum": 0.9, "weight_decay": 5e-4}
    shared |= {"batch_size": 128, "loss_weight": 0.99}
    assert paper.hyperparameters == shared | {
        "kl_weight": 0.999,
        "forget_weight": 0.001,
        "temperature": 1.0,
    }
    assert authors.hyperparameters == shared | {
        "kl_weight": 0.001,
        "temperature": 4.0,
        "max_share": 2 / 3,
        "forget_batch_size": 32,
    }


def test_max_and_min_steps_take_turns_by_epochs() -> None:
    _, retain, forget = problem("plain")
    method = ScrubRepository(batch_size=16, forget_batch_size=4)
    steps = method.steps(retain, forget, Exact(), Budget(1e9, 1.0), 0)
    taken = [next(steps) for _ in range(8)]
    assert [is_max for is_max, _ in taken] == [True, True, False, False] * 2  # 8 / 4 and 32 / 16
    for epoch, samples in ((taken[:2], forget), (taken[2:4], retain)):
        ids = torch.cat([batch.ids for _, batch in epoch])
        assert ids.sort().values.tolist() == samples.ids.sort().values.tolist()


def test_max_steps_end_at_max_share_of_the_budget() -> None:
    _, retain, forget = problem("plain")
    budget = Budget(10.0, 1.0)
    method = ScrubRepository(batch_size=16, forget_batch_size=4, max_share=0.5)
    steps = method.steps(retain, forget, Exact(), budget, 0)
    first = [next(steps)[0] for _ in range(4)]
    with budget:
        torch.ones(1, 1) @ torch.ones(1, 3)  # 6 of 10
    assert any(first)
    assert not any(next(steps)[0] for _ in range(12))


def test_a_step_costs_a_forward_of_the_teacher_beside_the_students_forward_and_backward() -> None:
    model, retain, forget = problem("plain")
    batches, task = (retain[:16], forget), Exact()
    forward = backward = 0
    for part in batches:
        forward += flops_of(partial(task.loss, model, part))
        backward += flops_of(task.loss(copy.deepcopy(model), part).sum().backward)
    budget = Budget(1.5 * (2 * forward + backward), 1.0)
    with budget:
        Scrub(batch_size=16)(model, retain, forget, task=task, budget=budget, seed=SEED)
    assert budget.flops == 2 * forward + backward
