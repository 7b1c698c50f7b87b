"""The harness that runs any unlearner under its budget: it measures and stops, the method does not."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from marshtest.data.samples import Samples
from marshtest.models.state import copied, restore, same_tensors, state_of
from marshtest.plumbing.device import clock, failure
from marshtest.plumbing.errors import MarshtestError, message, one_line
from marshtest.plumbing.foreign import raised, signals_noted
from marshtest.plumbing.seeds import seeded
from marshtest.training.budget import Budget, BudgetSpent, Cost, Meter
from marshtest.training.tasks import Task
from marshtest.unlearning import is_anytime, is_own, looks_back
from marshtest.unlearning.base import Unlearner

STOPPED = "stopped at the budget"
DEAR = 3  # times the initial model's answers; an ensemble's cost more, and its note says so
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Outcome:
    """The model that an unlearner returned, or why it returned none.

    Attributes:
        model: the updated model; None if there is no sound one.
        cost: the cost of the run, measured by the harness.
        note: "", or one line on what was odd: the run was stopped at the budget, raised, returned no sound
            model or one with hooks, or did much that is not counted.
        trace: the traceback if the unlearner raised, else "".
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
    """Run an unlearner on copies of all it is given, under each budget.

    Nothing that the unlearner does raises here, but for a GPU that fails under it. If it would overspend it
    is stopped at the limit, and its model as of then is the outcome. For an anytime method the outcomes of
    smaller budgets are taken on the way to the largest budget's.

    Returns:
        One outcome for each budget.

    Raises:
        MarshtestError: the model cannot be copied.
        RuntimeError: the GPU's memory is full, or it failed otherwise.
    """
    outcomes: dict[float, Outcome] = {}
    # The largest first: a run of an anytime method passes the models of the smaller ones.
    for budget in sorted(budgets, key=lambda b: b.size, reverse=True):
        if budget.size not in outcomes:
            smaller = [b.size for b in budgets if b.size < budget.size]
            milestones = smaller if is_anytime(unlearner) else []
            last, on_the_way = _run(
                unlearner, model, retain, forget, task, budget, seed, milestones
            )
            outcomes = {**on_the_way, budget.size: last, **outcomes}
    return [outcomes[budget.size] for budget in budgets]


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
    """(the outcome, the outcomes at the milestones that were passed, by their sizes)."""
    start, judge = copied(model), _Judge(model, retain[:2], task, seed)
    # Copies, and made before the budget opens: the harness's own work is not the method's to pay for.
    sets = [task.given(samples) for samples in (retain, forget)]
    held_out = None if task.held_out is None else task.given(task.held_out)
    witness = _Witness(start)
    snapshots = _Snapshots(start, witness, budget)
    updated: Any = None
    note = trace = ""
    budget.on_the_way(milestones, snapshots.take)
    # Foreign code could let a dear step follow cheap ones, so all of its steps are counted.
    budget.steady = task.steady and is_own(unlearner)
    try:
        # The budget is the innermost, so that it counts the unlearner's work and no other.
        with signals_noted() as signals, seeded(seed), witness, budget:
            updated = unlearner(
                start, *sets, task=replace(task, held_out=held_out), budget=budget, seed=seed
            )
    except BudgetSpent:
        updated, note = witness.last, STOPPED
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and signals:  # else the unlearner raised it itself
            raise
        if failure(error) is not None:  # of the machine, and no result of the unlearner
            raise
        note = message(error) if isinstance(error, MarshtestError) else raised(error)
        trace = traceback.format_exc()
    if signals:  # the unlearner swallowed what the signal raised
        raise KeyboardInterrupt
    total = snapshots.cost()
    if updated is not None and updated is not witness.last:
        snapshots.taken = {}  # they are of another model than the one that it returned
    on_the_way = {
        size: _noted(judge(snapshot, cost, ""), budget)
        for size, (snapshot, cost) in snapshots.taken.items()
    }
    if note == STOPPED and updated is start and same_tensors(state_of(start), state_of(model)):
        note = f"{STOPPED} before its first step"
        if not looks_back(unlearner):  # what it was given is in no way its own
            return Outcome(None, total, note), {}
    failed = Outcome(None, total, note, trace) if trace else None
    return failed or _noted(judge(updated, total, note), budget), on_the_way


class _Snapshots:
    """Copies of a model at the milestones of a run, each with the cost of the run so far.

    Attributes:
        taken: the copies and costs, by the size of the milestone.
    """

    def __init__(self, start: nn.Module, witness: "_Witness", budget: Budget) -> None:
        self.taken: dict[float, tuple[nn.Module, Cost]] = {}
        self._start, self._witness, self._budget = start, witness, budget
        self._started, self._copying = clock(), 0.0

    def cost(self) -> Cost:
        """The cost of the run so far, without the time that snapshots took."""
        seconds = clock() - self._started - self._copying
        return Cost(self._budget.spent, self._budget.flops, seconds)

    def take(self, milestone: float) -> None:
        """Copy the model as it is now; what is copied counts neither as operations nor as time."""
        cost, started = self.cost(), clock()
        # Only the state is taken over: the method may have put hooks on the model that it trains.
        snapshot = copied(self._start)
        restore(snapshot, state_of(self._witness.last))
        self.taken[milestone] = snapshot, cost
        self._copying += clock() - started


def _noted(outcome: Outcome, budget: Budget) -> Outcome:
    """The outcome, with a note if much ran that the budget could not count."""
    notes = [note for note in (outcome.note, budget.mismatch) if note]
    return replace(outcome, note="; ".join(notes))


class _Judge:
    """A judge of what an unlearner returned: whether it is a sound model, and what is odd about it."""

    def __init__(self, model: nn.Module, batch: Samples, task: Task, seed: int) -> None:
        self._before, self._batch, self._task, self._seed = model, batch, task.exact(), seed
        with seeded(seed):
            self._expected, self._flops = self._ask_first(copied(model))

    def __call__(self, updated: object, cost: Cost, note: str) -> Outcome:
        """The outcome of a run that returned `updated`, cost `cost` and ended with `note`."""
        if not isinstance(updated, nn.Module):
            return Outcome(None, cost, f"returned {type(updated).__name__}, not a model")
        try:
            with signals_noted() as signals:
                if not self._is_sound(updated.state_dict()):
                    return Outcome(None, cost, "NaN or infinite weights")
                # One seed for both questions: an answer that differs is drawn, or counts the questions.
                with seeded(self._seed):
                    (first, flops), second = self._ask_first(updated), self._ask(updated)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and signals:  # else the model raised it itself
                raise
            if failure(error) is not None:
                raise
            fault = f"returned a model that raises {type(error).__name__}: {one_line(error)}"
            return Outcome(None, cost, fault)
        shape, expected = tuple(first.shape), tuple(self._expected.shape)
        if shape != expected:
            return Outcome(None, cost, f"returned a model of logits {shape}, not {expected}")
        if bool(first.isnan().any()) and not bool(self._expected.isnan().any()):
            return Outcome(None, cost, "returned a model whose answers are not numbers")
        odd = [note, self._hooks(updated)]
        if 0 < DEAR * self._flops < flops:  # work may have been put off until the first answer
            odd.append(
                f"returned a model whose answers cost {flops / self._flops:.0f} times as much"
            )
        if not torch.allclose(first, second, rtol=1e-3, atol=1e-4, equal_nan=True):
            odd.append("returned a model that answers otherwise when it is asked again")
        return Outcome(updated, cost, "; ".join(filter(None, odd)))

    def _ask_first(self, model: nn.Module) -> tuple[Tensor, int]:
        """The answers to the batch, and what they cost in operations; 0 where that cannot be counted."""
        try:
            with Meter() as meter:
                answers = self._ask(model)
        except (
            MarshtestError
        ):  # an operation whose cost nobody knows; answers have no budget to keep
            return self._ask(model), 0
        return answers, meter.flops

    @torch.no_grad()
    def _ask(self, model: nn.Module) -> Tensor:
        return self._task.label_logits(self._task(model.eval(), self._batch), self._batch)

    def _is_sound(self, state: Mapping[str, object]) -> bool:
        finite = [
            torch.isfinite(value).all() for value in state.values() if isinstance(value, Tensor)
        ]
        if not finite or bool(
            torch.stack([one.to(finite[0].device) for one in finite]).all()
        ):  # one wait for the GPU
            return True
        return all(self._sound(name, value) for name, value in state.items())

    def _sound(self, name: str, value: object) -> bool:
        """Whether a tensor is finite, but for numbers that were not before: a mask may hold −inf."""
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
            if hooks_of(module) > hooks_of(before.get(name))
        ]
        return f"returned a model with hooks of its own ({', '.join(more[:3])})" if more else ""


def hooks_of(module: nn.Module | None) -> int:
    """How many functions stand between a module's call and its class's forward."""
    # A `forward` in the instance hides the class's, and is no hook by name.
    inside = {} if module is None else vars(module)
    return sum(len(inside.get(name, ())) for name in HOOKS) + ("forward" in inside)


class _Witness:
    """A witness that remembers the model of the last training step, in case the unlearner is stopped.

    An unlearner that is stopped returns nothing, and it may have worked on any copy of the model that it
    was given. So every forward of the process is watched.

    Attributes:
        last: the last model that ran and can be the one in the making; else the one that was passed in.
    """

    def __init__(self, start: nn.Module) -> None:
        self.last = start
        self._type = type(start)
        self._shapes = _shapes(start)

    def __enter__(self) -> None:
        self._hook = register_module_forward_hook(self._see)

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _see(self, module: nn.Module, args: Any, output: Any) -> None:
        # This runs for every layer of every forward, so the cheap questions come first.
        if (
            type(module) is self._type
            and module is not self.last
            and torch.is_grad_enabled()  # a model that is only scored runs without
            and any(p.requires_grad for p in module.parameters())  # a teacher is frozen
            and _shapes(module) == self._shapes  # a layer inside may be of the model's class
        ):
            self.last = module


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in module.parameters()]
