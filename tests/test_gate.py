"""Our own unlearners pass the gate; fakes fail it, each at the fact that it breaks."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from marshtest.budget import Budget
from marshtest.gate import check_unlearner, convex, objective
from marshtest.unlearning import UNLEARNERS, Custom, parse_trials
from marshtest.unlearning.harness import unlearn


@pytest.mark.parametrize("name", UNLEARNERS)
def test_our_unlearners_pass(name: str) -> None:
    assert [fact for fact in check_unlearner(parse_trials(name)[0]) if not fact.holds] == []


def descend(
    model: Any, retain: Any, task: Any, budget: Any, seed: int, sign: float = 1.0, size: int = 64
) -> Any:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    for batch in budget.stream(task.batches(retain, size, seed)):
        optimizer.zero_grad()
        (sign * task.loss(model, batch).mean()).backward()
        optimizer.step()
    return model


def no_op(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return copy.deepcopy(model)


def shares_the_weights(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    shallow = copy.copy(model)  # the known peer bug: teacher and student are one
    return descend(shallow.train(), retain, task, budget, seed)


def ascends(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return descend(copy.deepcopy(model).train(), retain, task, budget, seed, sign=-1.0)


def overspends(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    for batch in task.batches(retain, 64, seed):
        optimizer.zero_grad()
        task.loss(model, batch).mean().backward()
        optimizer.step()


def unseeded(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    import os

    odd = int.from_bytes(os.urandom(4), "big")
    model = copy.deepcopy(model).train()
    return descend(model, retain, task, budget, odd, size=16)  # no batch is all of the retain set


def thaws(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    model = copy.deepcopy(model).train().requires_grad_(True)
    return descend(model, retain, task, budget, seed)


def writes_samples(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    made = descend(copy.deepcopy(model).train(), retain, task, budget, seed)
    forget.x.zero_()
    return made


def raises(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    raise RuntimeError("no such thing")


@pytest.mark.parametrize(
    ("fake", "fact"),
    [
        (no_op, "images: changes the model"),
        (no_op, "convex: ends nearer to the retrained solution than it began"),
        (shares_the_weights, "images: leaves model and samples passed in as they were"),
        (shares_the_weights, "text: shares no weights with the model passed in"),
        (ascends, "convex: ends nearer to the retrained solution than it began"),
        (overspends, "images: keeps to the budget"),
        (unseeded, "text: same seed, same result"),
        (thaws, "images: leaves frozen parameters as they were"),
        (writes_samples, "images: leaves model and samples passed in as they were"),
        (raises, "images: runs and returns a model"),
    ],
)
def test_fakes_fail(fake: Any, fact: str) -> None:
    failed = {found.name for found in check_unlearner(fake) if not found.holds}
    assert fact in failed


def test_the_convex_answer_is_a_minimum_to_a_stated_gradient_norm() -> None:
    problem, answer = convex()
    slope = torch.autograd.grad(objective(answer, problem.retain), list(answer.parameters()))
    assert sum(float((g**2).sum()) for g in slope) ** 0.5 < 1e-3
    descent = torch.autograd.grad(
        problem.task.loss(problem.model, problem.retain).sum(), list(problem.model.parameters())
    )
    ascent = torch.autograd.grad(
        problem.task.loss(problem.model, problem.forget).sum(), list(problem.model.parameters())
    )
    one, other = (torch.cat([g.flatten() for g in gs]) for gs in (descent, ascent))
    assert nn.functional.cosine_similarity(-one, other, dim=0) > 0.9  # one direction, as stated


def run(fake: Any, share: float = 0.2) -> Any:
    problem, _ = convex()
    budget = Budget(share * problem.passes, problem.flops_per_pass)
    (outcome,) = unlearn(
        Custom.wrap(fake),
        problem.model,
        problem.retain,
        problem.forget,
        task=problem.task,
        budgets=[budget],
        seed=0,
    )
    return outcome, budget, problem


def test_one_that_overspends_is_stopped_and_its_model_as_of_then_is_kept() -> None:
    outcome, budget, problem = run(overspends)
    kept, _, _ = run(descend_within)
    assert outcome.note == "stopped at the budget"
    assert budget.spent <= budget.passes
    one, other, start = (
        torch.cat([p.flatten() for p in m.parameters()])
        for m in (outcome.model, kept.model, problem.model)
    )
    assert not torch.equal(one, start)
    torch.testing.assert_close(one, other)  # what an honest loop had after as many steps


def descend_within(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    return descend(copy.deepcopy(model).train(), retain, task, budget, seed)


def returns_text(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return "done"


def returns_nan(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model


def returns_other_classes(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    return nn.Linear(12, 7)


def returns_other_inputs(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    return nn.Linear(5, 3)


@pytest.mark.parametrize(
    ("fake", "note"),
    [
        (returns_other_classes, "returned a model of logits (2, 7), not (2, 3)"),
        (returns_other_inputs, "returned a model that raises RuntimeError: mat1 and mat2"),
        (raises, "raised RuntimeError: no such thing"),
        (returns_text, "returned str, not a model"),
        (returns_nan, "NaN or infinite weights"),
    ],
)
def test_what_an_unlearner_does_wrong_is_a_note_and_no_model(fake: Any, note: str) -> None:
    outcome, _, _ = run(fake)
    assert outcome.model is None
    assert outcome.note.startswith(note)
