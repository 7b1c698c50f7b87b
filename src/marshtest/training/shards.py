"""Training of an ensemble: each member on its own shard, by itself, as if it were the only model."""

import math
from contextlib import suppress

from torch import nn

from marshtest.data.samples import Samples
from marshtest.models.sharded import members, shards
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress, part, silent
from marshtest.plumbing.seeds import derive
from marshtest.training.budget import Budget, BudgetSpent, Cost
from marshtest.training.loop import Fit, Training, fit, fit_within
from marshtest.training.tasks import Objective, Task


def fit_shards(
    model: nn.Module,
    samples: Samples,
    task: Task,
    training: Training,
    seed: int,
    progress: Progress = silent,
    objective: Objective | None = None,
) -> Fit:
    """Train an ensemble in place; the arguments and errors are those of `fit`."""
    pairs = _pairs(model, samples)
    count, fewest = len(pairs), min(len(shard) for _, shard in pairs)
    if fewest < 2:
        raise MarshtestError(
            f"training.shards: one of {count} shards holds {fewest} of {len(samples)} samples. Lower it."
        )
    fits = [
        fit(
            member,
            shard,
            task,
            training,
            derive(seed, "shard", place),
            part(progress, place / count, 1 / count),
            objective,
        )
        for place, (member, shard) in enumerate(pairs)
    ]
    flops, seconds = (sum(getattr(f.cost, name) for f in fits) for name in ("flops", "seconds"))
    flops_per_pass = sum(f.flops_per_pass for f in fits)  # a pass of the ensemble runs every member
    return Fit(Cost(flops / flops_per_pass, flops, seconds), flops_per_pass)


def fit_shards_within(
    model: nn.Module,
    samples: Samples,
    task: Task,
    training: Training,
    seed: int,
    budget: Budget,
    objective: Objective | None = None,
) -> None:
    """Train an ensemble in place, every member with its share of what is left of the budget."""
    pairs = _pairs(model, samples)
    for place, (member, shard) in enumerate(pairs):
        # A part that does not afford one step ends its own member's training, and no other's.
        with suppress(BudgetSpent), budget.part(math.inf, 1 / (len(pairs) - place)) as own:
            fit_within(member, shard, task, training, derive(seed, "shard", place), own, objective)


def _pairs(model: nn.Module, samples: Samples) -> list[tuple[nn.Module, Samples]]:
    each = members(model)
    return list(zip(each, shards(samples, len(each)), strict=True))
