"""Runs any unlearner under its budget: the harness measures and stops, the method does not."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from marshtest.budget import Budget, BudgetSpent, Cost
from marshtest.data import Samples
from marshtest.seeds import seeded
from marshtest.tasks import Task
from marshtest.unlearning.base import Unlearner

STOPPED = "stopped at the budget"


@dataclass(frozen=True)
class Outcome:
    """What an unlearner returned, or why it returned nothing.

    Attributes:
        model: the updated model, or None.
        cost: measured by the harness.
        note: "" or one line: stopped at the budget, raised, returned no sound model, ran much that is not
            counted.
    """

    model: nn.Module | None
    cost: Cost
    note: str = ""


def unlearn(
    unlearner: Unlearner,
    model: nn.Module,
    retain: Samples,
    forget: Samples,
    *,
    task: Task,
    budgets: Sequence[Budget],
    seed: int,
) -> list[Outcome]:
    """Run `unlearner` on copies of `model`, one outcome a budget; never raises for what it does.

    One that would overspend is stopped at the limit, and its model as of then is the outcome. Where the
    method `goes_on`, the outcomes of smaller budgets are taken on the way to the largest's.
    """
    given: dict[float, Outcome] = {}
    for budget in sorted(budgets, key=lambda of: of.size, reverse=True):
        if budget.size not in given:
            others = [of.size for of in budgets if of.size < budget.size]
            milestones = others if unlearner.goes_on else []
            last, on_the_way = _run(
                unlearner, model, retain, forget, task, budget, seed, milestones
            )
            given = {**on_the_way, budget.size: last, **given}
    return [given[budget.size] for budget in budgets]


def _run(
    unlearner: Unlearner,
    model: nn.Module,
    retain: Samples,
    forget: Samples,
    task: Task,
    budget: Budget,
    seed: int,
    milestones: Sequence[float],
) -> tuple[Outcome, dict[float, Outcome]]:
    """The outcome, and those at the milestones that were seen, by their sizes."""
    given = copy.deepcopy(model)
    witness = _Witness(given)
    started, note = time.perf_counter(), ""
    updated: Any = None
    seen: dict[float, tuple[nn.Module, Cost]] = {}
    copying = 0.0

    def cost() -> Cost:
        return Cost(budget.spent, budget.flops, time.perf_counter() - started - copying)

    def look(milestone: float) -> None:
        nonlocal copying
        spent, before = cost(), time.perf_counter()
        on_the_way = copy.deepcopy(given)
        on_the_way.load_state_dict(witness.last.state_dict())
        seen[milestone] = on_the_way, spent
        copying += time.perf_counter() - before

    budget.on_the_way(milestones, look)
    try:
        with seeded(seed), witness, budget:
            updated = unlearner(given, retain, forget, task=task, budget=budget, seed=seed)
    except BudgetSpent:
        updated, note = witness.last, STOPPED
    except (Exception, SystemExit) as error:
        note = f"raised {type(error).__name__}: {_one_line(error)}"
    total = cost()
    if updated is not None and updated is not witness.last:
        seen = {}  # what was seen on the way is not what it returns
    on_the_way = {
        milestone: _outcome(found, spent, "", given, retain, task)
        for milestone, (found, spent) in seen.items()
    }
    last = _outcome(updated, total, note, given, retain, task)
    return _noted(last, budget), {size: _noted(on, budget) for size, on in on_the_way.items()}


def _noted(outcome: Outcome, budget: Budget) -> Outcome:
    """With a note where much ran that the budget could not count."""
    notes = [note for note in (outcome.note, budget.mismatch) if note]
    return replace(outcome, note="; ".join(notes))


def _outcome(
    updated: Any, cost: Cost, note: str, given: nn.Module, retain: Samples, task: Task
) -> Outcome:
    if not note.startswith("raised"):
        note = _fault(updated, given, retain[:2], task) or note
        if isinstance(updated, nn.Module) and note in ("", STOPPED):
            return Outcome(updated, cost, note)
    return Outcome(None, cost, note)


def _fault(updated: object, given: nn.Module, batch: Samples, task: Task) -> str:
    """What is wrong with what an unlearner returned, or ""."""
    if not isinstance(updated, nn.Module):
        return f"returned {type(updated).__name__}, not a model"
    if not all(bool(torch.isfinite(values).all()) for values in updated.state_dict().values()):
        return "NaN or infinite weights"
    try:
        with torch.no_grad():
            got, expected = (
                tuple(task.label_logits(task(model.eval(), batch), batch).shape)
                for model in (updated, given)
            )
    except Exception as error:
        return f"returned a model that raises {type(error).__name__}: {_one_line(error)}"
    return "" if got == expected else f"returned a model of logits {got}, not {expected}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


class _Witness:
    """Remembers the model that was last run with gradients, so that a stopped one can be scored."""

    def __init__(self, given: nn.Module) -> None:
        self.last = given
        self._type = type(given)
        self._shapes = _shapes(given)

    def __enter__(self) -> None:
        self._hook = register_module_forward_hook(self._see)

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _see(self, module: nn.Module, args: Any, output: Any) -> None:
        if (
            type(module) is self._type
            and module is not self.last
            and torch.is_grad_enabled()
            and any(p.requires_grad for p in module.parameters())
            and _shapes(module) == self._shapes
        ):
            self.last = module


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in module.parameters()]
