"""Squared gradients of each sample, summed over a batch.

The gradient of a batch's loss is a mean in which samples cancel; its square says nothing about theirs.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from marshtest.data.samples import Samples
from marshtest.training.tasks import Task

BATCH = 64  # samples whose gradients are in memory at a time,
NUMBERS = 2**26  # or fewer, so that these gradients are no more numbers


def free(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def batch_size(model: nn.Module) -> int:
    """Number of samples whose gradients are held in memory at a time."""
    return max(1, min(BATCH, NUMBERS // sum(weight.numel() for weight in free(model).values())))


def squared_gradients(model: nn.Module, task: Task, sample: Samples) -> Callable[[Samples], Tensor]:
    """A function of a batch: [P] the sum of its samples' squared gradients.

    The samples go through together if the model allows it, which one sample tells, else one by one.
    """
    together = partial(_together, model, replace(task, channels_last=False))
    try:
        together(sample)
    except Exception:  # vmap refuses models by errors of all kinds, among them branches on values
        return partial(_one_by_one, model, task)
    return together


class _Loss(nn.Module):
    """The loss of a model on a batch, as a module whose parameters can be replaced."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Samples) -> Tensor:
        return self.task.loss(self.model, batch).sum()


def _together(model: nn.Module, task: Task, batch: Samples) -> Tensor:
    loss = _Loss(model, task)
    weights = {f"model.{name}": weight.detach() for name, weight in free(model).items()}
    slope = grad(lambda at, row: functional_call(loss, at, (batch[row[None]],)))
    rows = torch.arange(len(batch)).to(batch.y.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that vmap takes one by one itself
        slopes = vmap(slope, in_dims=(None, 0))(weights, rows)
    return torch.cat([part.square().sum(0).flatten() for part in slopes.values()])


def _one_by_one(model: nn.Module, task: Task, batch: Samples) -> Tensor:
    weights = list(free(model).values())
    total = torch.zeros(())
    for row in range(len(batch)):
        loss = task.loss(model, batch[row : row + 1]).sum()
        slopes = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        total = torch.cat([slope.flatten() for slope in slopes]).square() + total
    return total
