"""Small problems in float64 and literal updates, for tests of methods against their formulas."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.seeds import seeded
from marshtest.training.budget import Budget
from marshtest.training.loop import Training, fit, fit_within
from marshtest.training.tasks import Classification, Task

T = TypeVar("T")
Objective = Callable[[nn.Module], Tensor]  # of the model that is trained

SEED, RATE, MOMENTUM, DECAY = 5, 0.1, 0.9, 0.01
SGD = {"lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}
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


def problem(kind: str, frozen: bool = False) -> tuple[nn.Module, Samples, Samples]:
    """A network, its last bias frozen if that is asked for, 32 samples to retain and 8 to forget."""
    with seeded(1):
        x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(4, (40,))
    samples, model = Samples(x, y, torch.arange(40)), network(kind)
    *_, last = model.parameters()
    last.requires_grad_(not frozen)
    return model, samples[8:], samples[:8]


def by_heart() -> tuple[nn.Module, Samples, Samples]:
    """A network that knows 160 labels by heart, 16 of them wrong ones; those are to be forgotten."""
    draws = torch.Generator().manual_seed(0)
    y = torch.arange(160) % 4
    x = 2 * torch.randn(4, 30, generator=draws)[y] + torch.randn(160, 30, generator=draws)
    samples = Samples(x, torch.cat([(y[:16] + 1) % 4, y[16:]]), torch.arange(160))
    with seeded(0):
        model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 4))
    training = Training(epochs=100, batch_size=16, lr=0.02, weight_decay=0)
    fit(model, samples, Classification(), training, 0)
    assert accuracy(model, samples) == 1
    return model, samples[16:], samples[:16]


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


def free(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def sgd(
    model: nn.Module,
    objectives: Iterable[Objective],
    rates: Iterable[float] = itertools.repeat(RATE),
    masks: list[Tensor] | None = None,
) -> nn.Module:
    """v ← μ v + g + λ θ,  θ ← θ − η v where a mask is 1: a step of a copy against each objective."""
    trained = copy.deepcopy(model).train()
    weights = free(trained)
    velocity = [torch.zeros_like(weight) for weight in weights]
    masks = masks or [torch.ones_like(weight) for weight in weights]
    for objective, rate in zip(objectives, rates, strict=False):
        slopes = torch.autograd.grad(objective(trained), weights)
        with torch.no_grad():
            for weight, v, slope, mask in zip(weights, velocity, slopes, masks, strict=True):
                v.copy_(MOMENTUM * v + slope + DECAY * weight)
                weight.sub_(rate * v * mask)
    return trained


def assert_same(found: nn.Module, expected: nn.Module, start: nn.Module) -> None:
    """Equal weights and statistics to rounding, and other weights than at the start."""
    expected_state = expected.state_dict()
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, expected_state[name], rtol=0, atol=1e-12, msg=name)
    moved = flat(found.parameters()) - flat(start.parameters())
    assert float(moved.abs().max()) > 1e-4


def accuracy(model: nn.Module, samples: Samples) -> float:
    with torch.no_grad():
        return float((model.eval()(samples.x).argmax(1) == samples.y).double().mean())
