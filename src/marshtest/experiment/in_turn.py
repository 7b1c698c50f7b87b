"""Requests one after the other, each of the model that the last one left, with its part of the budget."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from marshtest.attacks import Poisoned
from marshtest.experiment.cells import Group
from marshtest.experiment.protocol import Pipeline, update
from marshtest.experiment.requests import ALL, Request
from marshtest.experiment.roles import Role
from marshtest.training.budget import Cost
from marshtest.training.loop import Fit
from marshtest.unlearning import Unlearner
from marshtest.unlearning.harness import Outcome

NO_COST = Cost(0.0, 0.0, 0.0)


def update_in_turn(
    pipeline: Pipeline,
    group: Group,
    poisoned: Poisoned,
    model: nn.Module,
    trained: Fit,
    unlearner: Unlearner,
    share: float,
    requests: int,
    role: Role = Role.INITIAL,
) -> list[Outcome]:
    """One outcome a request, under one budget in all; costs and notes are of all requests so far.

    A request that gave no model is the last; the outcomes of those behind it are its own.

    Args:
        share: the budget of all requests together, as in `update`.
        requests: their number.
    """
    outcomes: list[Outcome] = []
    for number in range(1, requests + 1):
        if outcomes and outcomes[-1].model is None:
            outcomes.append(outcomes[-1])
            continue
        before = outcomes[-1] if outcomes else Outcome(model, NO_COST)
        assert before.model is not None
        beside = ([share], role, Request(ALL.known, number, requests))
        (after,) = update(pipeline, group, poisoned, before.model, trained, unlearner, *beside)
        outcomes.append(_together(before, after, number))
    return outcomes


def _together(before: Outcome, after: Outcome, number: int) -> Outcome:
    """The outcome of a request, with the cost and the notes of those before."""
    costs: Sequence[Cost] = (before.cost, after.cost)
    passes, flops, seconds = (
        sum(getattr(cost, name) for cost in costs) for name in ("passes", "flops", "seconds")
    )
    note = f"request {number}: {after.note}" if after.note else ""
    notes = "; ".join(filter(None, [before.note, note]))
    return replace(after, cost=Cost(passes, flops, seconds), note=notes)
