"""Passes that `task.batches` does not make: one over a whole set, and passes over both sets together."""

from collections.abc import Iterator

import torch

from marshtest.data.samples import Samples
from marshtest.plumbing.seeds import derive, generator
from marshtest.training.budget import Budget
from marshtest.training.tasks import Task


def whole_pass(samples: Samples, task: Task, batch_size: int, seed: int) -> Iterator[Samples]:
    """Give every sample once, in shuffled mini-batches; of those of `task.epoch` one may be left out."""
    rng = generator(seed, "pass")
    order = torch.randperm(len(samples), generator=rng).to(samples.y.device)
    for index in order.split(batch_size):
        yield task.augmented(samples[index], rng)


def mixed_stream(
    retain: Samples, forget: Samples, task: Task, budget: Budget, batch_size: int, seed: int
) -> Iterator[tuple[bool, Samples]]:
    """Give (whether it is of the forget set, mini-batch) in random order while the budget affords a step.

    A pass over both sets is over before a sample comes again. The sets cannot be joined into one, since a
    poisoned text is no tensor (`data.sealed`); so a mini-batch holds samples of one set only.
    """
    counts = [task.batches_per_epoch(samples, batch_size) for samples in (retain, forget)]
    kept = task.batches(retain, batch_size, derive(seed, "retain"))
    forgotten = task.batches(forget, batch_size, derive(seed, "forget"))

    def steps() -> Iterator[tuple[bool, Samples]]:
        rng = generator(seed, "order")
        while True:
            for place in torch.randperm(sum(counts), generator=rng).tolist():
                is_forget = place >= counts[0]
                yield is_forget, next(forgotten if is_forget else kept)

    return budget.stream(steps(), sum(counts))
