"""Candidates in the search for a method that removes poison and beats tuned retraining.

    averaged         retraining whose weights are averaged over its last part (Izmailov et al. 2018)
    smoothed         retraining by smoothed labels (Szegedy et al. 2016)
    averaged_shards  a model on each half of the retain set, from one start; their mean, trained on all
    first_reset      the first layers fresh, the others the initial model's; all trained

The other candidates (shrunk, noised, distilled, the last layers reset) are unlearners of the package; all
stand in the lists beside this file. Settings of the training, as `lr`, are passed on by keyword.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from marshtest.data.samples import Samples
from marshtest.models.layers import weight_layers
from marshtest.plumbing.seeds import derive, generator
from marshtest.training.budget import Budget
from marshtest.training.tasks import Task


def averaged(
    model: nn.Module,
    retain: Samples,
    forget: Samples,
    *,
    task: Task,
    budget: Budget,
    seed: int,
    last: float = 0.5,
    **training: Any,
) -> nn.Module:
    """Retrain, and return the mean of the weights over the last share of the budget."""
    mean = AveragedModel(_fresh(task, seed), use_buffers=True)

    def loss(current: nn.Module, batch: Samples) -> Tensor:
        if budget.progress >= 1 - last:
            mean.update_parameters(current)
        return task.loss(current, batch)

    mean.update_parameters(_train(task)(retain, seed, budget, objective=loss, **training))
    return mean.module  # type: ignore[no-any-return]


def smoothed(
    model: nn.Module,
    retain: Samples,
    forget: Samples,
    *,
    task: Task,
    budget: Budget,
    seed: int,
    smoothing: float = 0.1,
    **training: Any,
) -> nn.Module:
    """Retrain by labels of which a share is spread evenly over all classes."""

    def loss(current: nn.Module, batch: Samples) -> Tensor:
        logits = task.label_logits(task(current, batch), batch)
        return F.cross_entropy(logits, batch.y, reduction="none", label_smoothing=smoothing)

    return _train(task)(retain, seed, budget, objective=loss, **training)


def averaged_shards(
    model: nn.Module,
    retain: Samples,
    forget: Samples,
    *,
    task: Task,
    budget: Budget,
    seed: int,
    share: float = 0.5,
    **training: Any,
) -> nn.Module:
    """Train a model on each half of the retain set from one start, and their mean on all of it.

    Args:
        share: of the budget, spent on the halves.
    """
    start = _fresh(task, seed)
    mean = AveragedModel(start, use_buffers=True)
    order = torch.randperm(len(retain), generator=generator(seed, "halves"))
    for i, half in enumerate(order.to(retain.y.device).chunk(2)):
        with budget.part(math.inf, share / (2 - i * share)) as part:  # of what is left
            own = derive(seed, "half", i)
            mean.update_parameters(_train(task)(retain[half], own, part, start=start, **training))
    return _train(task)(retain, seed, budget, start=mean.module, **training)


def first_reset(
    model: nn.Module,
    retain: Samples,
    forget: Samples,
    *,
    task: Task,
    budget: Budget,
    seed: int,
    k: int = 1,
    **training: Any,
) -> nn.Module:
    """Give the first k layers the weights of a fresh model, keep the others, and train all."""
    start = _fresh(task, seed)
    for mine, own in zip(weight_layers(start)[k:], weight_layers(model)[k:], strict=True):
        for fresh, trained in zip(mine, own, strict=True):
            fresh.load_state_dict(trained.state_dict())
    return _train(task)(retain, seed, budget, start=start, **training)


def _fresh(task: Task, seed: int) -> nn.Module:
    assert task.new_model is not None  # a recipe's task builds models
    return task.new_model(seed)


def _train(task: Task) -> Any:
    assert task.train is not None  # and trains them
    return task.train
