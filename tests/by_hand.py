"""What tests of one method's steps share: small exact problems, and steps written out."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.seeds import seeded
from marshtest.training.budget import Budget
from marshtest.training.loop import Training, fit
from marshtest.training.tasks import Classification

T = TypeVar("T")
Objective = Callable[[nn.Module], Tensor]  # of the model that is trained

SEED, RATE, MOMENTUM, DECAY = 5, 0.1, 0.9, 0.01
SGD = {"lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}
KINDS = {
    "plain": nn.Identity(),
    "batch norm": nn.BatchNorm1d(7),
    "dropout": nn.Dropout(0.5),
}


class Exact(Classification):
    """Classification in the model's own precision."""

    def outputs(self, model: Any, inputs: Tensor, batch: Samples) -> Tensor:
        return model(inputs)  # type: ignore[no-any-return]


class Steps(Budget):
    """A budget of so many steps, of which no progress is seen but the share of them."""

    def __init__(self, count: int) -> None:
        super().__init__(1.0, 1.0)
        self.count, self.taken = count, 0

    @property
    def progress(self) -> float:
        return self.taken / self.count

    def stream(self, batches: Iterable[T], *_: Any) -> Iterator[T]:
        for batch in itertools.islice(batches, self.count):
            yield batch
            self.taken += 1


def problem(kind: str) -> tuple[nn.Module, Samples, Samples]:
    """A small network in float64 with a frozen bias, 32 samples to retain and 8 to forget."""
    with seeded(1):
        layers = nn.Linear(6, 7), copy.deepcopy(KINDS[kind]), nn.Tanh(), nn.Linear(7, 4)
        model = nn.Sequential(*layers).double()
        layers[-1].bias.requires_grad_(False)
        for buffer in model.buffers():
            if buffer.is_floating_point():  # statistics that no batch has
                buffer.uniform_(0.5, 1.5)
        x, y = torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 4
    samples = Samples(x, y, torch.arange(40))
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


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """−log softmax_y, its mean over the batch."""
    chosen = logits[torch.arange(len(y)), y]
    return (logits.exp().sum(1).log() - chosen).mean()


def free(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def sgd(
    model: nn.Module, objectives: Iterable[Objective], masks: list[Tensor] | None = None
) -> nn.Module:
    """v ← μ v + g + λ θ,  θ ← θ − η v, where a mask is 1: one step against each objective."""
    trained = copy.deepcopy(model).train()
    weights = free(trained)
    velocity = [torch.zeros_like(weight) for weight in weights]
    masks = masks or [torch.ones_like(weight) for weight in weights]
    for objective in objectives:
        slopes = torch.autograd.grad(objective(trained), weights)
        with torch.no_grad():
            for weight, v, slope, mask in zip(weights, velocity, slopes, masks, strict=True):
                v.copy_(MOMENTUM * v + slope + DECAY * weight)
                weight.sub_(RATE * v * mask)
    return trained


def assert_same(found: nn.Module, expected: nn.Module, start: nn.Module) -> None:
    """Equal weights and statistics, of which some are not those of the start."""
    for (name, ours), theirs in zip(
        found.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, msg=name)
    moved = flat(found.parameters()) - flat(start.parameters())
    assert float(moved.abs().max()) > 1e-4


def accuracy(model: nn.Module, samples: Samples) -> float:
    with torch.no_grad():
        return float((model.eval()(samples.x).argmax(1) == samples.y).double().mean())
