"""Runs any unlearner under its budget: the harness measures and stops, the method does not."""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from marshtest.data.samples import Samples
from marshtest.models.state import copied, restore, state_of
from marshtest.plumbing.errors import MarshtestError, one_line
from marshtest.plumbing.foreign import raised
from marshtest.plumbing.seeds import seeded
from marshtest.training.budget import Budget, BudgetSpent, Cost
from marshtest.training.tasks import Task
from marshtest.unlearning.base import Unlearner

STOPPED = "stopped at the budget"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Outcome:
    """What an unlearner returned, or why it returned nothing.

    Attributes:
        model: the updated model, or None.
        cost: measured by the harness.
        note: "" or one line: stopped at the budget, raised, returned no sound model, has hooks, ran much
            that is not counted.
        trace: the traceback of what it raised.
    """

    model: nn.Module | None
    cost: Cost
    note: str = ""
    trace: str = ""


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
    """Run `unlearner` on copies of all it is given, one outcome a budget; never raises for what it does.

    One that would overspend is stopped at the limit, and its model as of then is the outcome. Where the
    method `anytime`, the outcomes of smaller budgets are taken on the way to the largest's.

    Raises:
        MarshtestError: the model cannot be copied.
    """
    given: dict[float, Outcome] = {}
    for budget in sorted(budgets, key=lambda of: of.size, reverse=True):
        if budget.size not in given:
            others = [of.size for of in budgets if of.size < budget.size]
            milestones = others if unlearner.anytime else []
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
    given, judge = copied(model), _Judge(model, retain[:2], task, seed)
    handed = [task.given(samples) for samples in (retain, forget)]
    aside = None if task.held_out is None else task.given(task.held_out)
    witness = _Witness(given)
    started, note, trace = time.perf_counter(), "", ""
    updated: Any = None
    seen: dict[float, tuple[nn.Module, Cost]] = {}
    copying = 0.0

    def cost() -> Cost:
        return Cost(budget.spent, budget.flops, time.perf_counter() - started - copying)

    def look(milestone: float) -> None:
        nonlocal copying
        spent, before = cost(), time.perf_counter()
        on_the_way = copied(given)
        restore(on_the_way, state_of(witness.last))
        seen[milestone] = on_the_way, spent
        copying += time.perf_counter() - before

    budget.on_the_way(milestones, look)
    try:
        with seeded(seed), witness, budget:
            updated = unlearner(
                given, *handed, task=replace(task, held_out=aside), budget=budget, seed=seed
            )
    except BudgetSpent:
        updated, note = witness.last, STOPPED
    except MarshtestError as error:  # it says itself what is to be done
        note, trace = str(error), traceback.format_exc()
    except (Exception, SystemExit) as error:
        note = raised(error)
        trace = traceback.format_exc()
    total = cost()
    if updated is not None and updated is not witness.last:
        seen = {}  # what was seen on the way is not what it returns
    on_the_way = {
        of: _noted(judge(found, spent, ""), budget) for of, (found, spent) in seen.items()
    }
    if trace:
        return Outcome(None, total, note, trace), on_the_way
    return _noted(judge(updated, total, note), budget), on_the_way


def _noted(outcome: Outcome, budget: Budget) -> Outcome:
    """With a note where much ran that the budget could not count."""
    notes = [note for note in (outcome.note, budget.mismatch) if note]
    return replace(outcome, note="; ".join(notes))


class _Judge:
    """Tells whether what an unlearner returned is sound, and what is odd about it."""

    def __init__(self, model: nn.Module, batch: Samples, task: Task, seed: int) -> None:
        self._before, self._batch, self._task, self._seed = model, batch, task.exact(), seed
        with seeded(seed):
            self._shape = self._ask(copied(model)).shape

    def __call__(self, updated: object, cost: Cost, note: str) -> Outcome:
        """The outcome of a run that ended with a note."""
        if not isinstance(updated, nn.Module):
            return Outcome(None, cost, f"returned {type(updated).__name__}, not a model")
        if not all(self._sound(name, value) for name, value in updated.state_dict().items()):
            return Outcome(None, cost, "NaN or infinite weights")
        try:
            with seeded(self._seed):
                said, again = self._ask(updated), self._ask(updated)
        except Exception as error:
            fault = f"returned a model that raises {type(error).__name__}: {one_line(error)}"
            return Outcome(None, cost, fault)
        got, expected = tuple(said.shape), tuple(self._shape)
        if got != expected:
            return Outcome(None, cost, f"returned a model of logits {got}, not {expected}")
        odd = [note, self._hooks(updated)]
        if not torch.allclose(said, again, rtol=1e-3, atol=1e-4, equal_nan=True):
            odd.append("returned a model that answers otherwise when it is asked again")
        return Outcome(updated, cost, "; ".join(filter(None, odd)))

    @torch.no_grad()
    def _ask(self, model: nn.Module) -> Tensor:
        return self._task.label_logits(self._task(model.eval(), self._batch), self._batch)

    def _sound(self, name: str, value: object) -> bool:
        """Whether a tensor is finite, but for what was not before: a mask may hold −inf."""
        if not isinstance(value, Tensor) or bool(torch.isfinite(value).all()):
            return True
        before = self._before.state_dict().get(name)
        if not isinstance(before, Tensor) or before.shape != value.shape:
            return False
        same = (value == before.to(value.device)) | (value.isnan() & before.isnan())
        return bool((same | value.isfinite()).all())

    def _hooks(self, updated: nn.Module) -> str:
        before = dict(self._before.named_modules())
        more = [
            name or "the model itself"
            for name, module in updated.named_modules()
            if _hooks_of(module) > _hooks_of(before.get(name))
        ]
        return f"returned a model with hooks of its own ({', '.join(more[:3])})" if more else ""


def _hooks_of(module: nn.Module | None) -> int:
    """How many functions stand between a module's call and its class's forward."""
    inside = {} if module is None else vars(module)
    return sum(len(inside.get(name, ())) for name in HOOKS) + ("forward" in inside)


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
