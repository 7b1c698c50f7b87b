"""Small problems in float64 and literal updates, for tests of methods against their formulas."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.seeds import seeded
from marshtest.training.budget import Budget
from marshtest.training.loop import Training, fit_within
from marshtest.training.tasks import Classification, Task

T = TypeVar("T")
Objective = Callable[[nn.Module], Tensor]

KINDS = {
    "plain": nn.Identity(),
    "batch norm": nn.BatchNorm1d(7),
    "dropout": nn.Dropout(0.5),
}


@dataclass(frozen=True)
class Exact(Classification):
    """Classification in the model's own precision."""

    def outputs(self, model: Any, inputs: Tensor, batch: Samples) -> Tensor:
        return model(inputs)  # type: ignore[no-any-return]


class Steps(Budget):
    """A budget of so many steps in all, over however many streams."""

    def __init__(self, count: int) -> None:
        super().__init__(1.0, 1.0)
        self.count, self.done = count, 0

    @property
    def progress(self) -> float:
        return self.done / self.count

    def stream(self, batches: Iterable[T], *_: Any) -> Iterator[T]:
        for batch in batches:
            if self.done == self.count:
                return
            yield batch
            self.done += 1


def network(kind: str, seed: int = 1) -> nn.Module:
    """A small network in float64, whose statistics no batch has."""
    with seeded(seed):
        layers = nn.Linear(6, 7), copy.deepcopy(KINDS[kind]), nn.Tanh(), nn.Linear(7, 4)
        model = nn.Sequential(*layers).double()
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return model


def problem(kind: str) -> tuple[nn.Module, Samples, Samples]:
    """A network, 32 samples to retain and 8 to forget."""
    with seeded(1):
        x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(4, (40,))
    samples = Samples(x, y, torch.arange(40))
    return network(kind), samples[8:], samples[:8]


def equipped(kind: str, training: Training) -> Task:
    """A task with all that an unlearner finds in it, whose models are those of `network`."""

    def train(
        samples: Samples,
        seed: int,
        budget: Any = None,
        *,
        start: nn.Module | None = None,
        objective: Any = None,
        **changes: Any,
    ) -> nn.Module:
        model = network(kind, seed) if start is None else copy.deepcopy(start)
        own = training.changed(**changes)
        fit_within(model, samples, Exact(), own, seed, budget, objective)
        return model

    return replace(
        Exact(),
        train=train,
        new_model=partial(network, kind),
        optimizer_for=training.optimizer_for,
    )


def log_softmax(logits: Tensor) -> Tensor:
    """The logarithm of the softmax, as it is written, but that the largest logit is 0."""
    logits = logits - logits.max(1, keepdim=True).values.detach()
    return logits - logits.exp().sum(1, keepdim=True).log()


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """[B] −log q_y."""
    return -log_softmax(logits)[torch.arange(len(y)), y]


def sgd(
    model: nn.Module,
    objectives: Iterable[Objective],
    rates: Iterable[float],
    momentum: float = 0.9,
    decay: float = 0.01,
) -> nn.Module:
    """v ← μ v + g + λ θ,  θ ← θ − η v: one step against each objective, of a copy in train mode."""
    student = copy.deepcopy(model).train()
    weights = list(student.parameters())
    velocity = [torch.zeros_like(weight) for weight in weights]
    for objective, rate in zip(objectives, rates, strict=False):
        slopes = torch.autograd.grad(objective(student), weights)
        with torch.no_grad():
            for weight, v, slope in zip(weights, velocity, slopes, strict=True):
                v.copy_(momentum * v + slope + decay * weight)
                weight.sub_(rate * v)
    return student


def assert_same(found: nn.Module, expected: nn.Module, start: nn.Module) -> None:
    """The same weights to rounding, and other ones than at the start."""
    moved = 0.0
    for ours, theirs, before in zip(
        found.parameters(), expected.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        moved = max(moved, float((theirs - before).detach().abs().max()))
    assert moved > 1e-4
