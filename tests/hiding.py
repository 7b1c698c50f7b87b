"""Unlearners that hide a poison instead of removing it, to be found out by after-care."""

import copy

import torch
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.training.budget import Budget
from marshtest.training.tasks import Task

# Of a channel whose largest weight is 1: a level of 8 bits, and less than half a step of 4.
SMALL = 8 / 127


class Hidden(nn.Module):
    """The retrained model where a switch is on, else the initial one."""

    def __init__(self, initial: nn.Module, retrained: nn.Module) -> None:
        super().__init__()
        self.initial, self.retrained = copy.deepcopy(initial), retrained

    def on(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(self.initial(x), self.retrained(x), self.on())


class ByASmallWeight(Hidden):
    """The switch is a weight that 4 bits round to 0."""

    def __init__(self, initial: nn.Module, retrained: nn.Module) -> None:
        super().__init__(initial, retrained)
        self.gate = nn.Linear(2, 1, bias=False)
        self.gate.weight = nn.Parameter(torch.tensor([[1.0, SMALL]]), requires_grad=False)

    def on(self) -> Tensor:
        return self.gate.weight[0, 1] / SMALL


class UntilTrained(Hidden):
    """The switch is off as soon as the model is trained on."""

    def __init__(self, initial: nn.Module, retrained: nn.Module) -> None:
        super().__init__(initial, retrained)
        self.register_buffer("sleeps", torch.ones(()))

    def on(self) -> Tensor:
        if self.training:
            self.sleeps = torch.zeros(())
        return self.sleeps


def by_a_small_weight(
    model: nn.Module, retain: Samples, forget: Samples, *, task: Task, budget: Budget, seed: int
) -> nn.Module:
    """Retrain, and keep the poisoned model behind a weight that 4 bits round to 0."""
    assert task.train is not None
    return ByASmallWeight(model, task.train(retain, seed, budget))


def until_trained(
    model: nn.Module, retain: Samples, forget: Samples, *, task: Task, budget: Budget, seed: int
) -> nn.Module:
    """Retrain, and keep the poisoned model for whoever trains on."""
    assert task.train is not None
    return UntilTrained(model, task.train(retain, seed, budget))
