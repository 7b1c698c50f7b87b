"""Gradient Ascent and NegGrad+ (paper A.2.3, A.2.7).

    GA:        minimise −E_forget[ℓ]                               (Jang et al. 2022)
    NegGrad+:  minimise β E_retain[ℓ] − (1 − β) E_forget[ℓ]        (Kurmanji et al. 2024)

| NegGrad+ | paper | authors' repository | here |
| --- | --- | --- | --- |
| β | 0.999 | 0.95 (small CIFAR), 0.9999 (large) | 0.999; `neggrad+-repository`: 0.9999 |
| lr | as GD and GA: 1e-3 down to 5e-6 | 0.01 | 1e-3; `neggrad+-repository`: 0.01 |
"""

import copy

from pydantic import Field
from torch import nn

from marshtest.data.samples import Samples
from marshtest.plumbing.seeds import derive
from marshtest.training.budget import Budget
from marshtest.training.loop import descend
from marshtest.training.tasks import Task
from marshtest.unlearning.base import GradientUnlearner


class GradientAscent(GradientUnlearner):
    """GA (Jang et al. 2022; paper A.2.3): raise the loss on the forget set."""

    anytime = True
    name: str = "ga"
    lr: float = Field(1e-5, gt=0)  # the paper: 5e-6 to 1e-5

    def __call__(
        self,
        model: nn.Module,
        retain: Samples,
        forget: Samples,
        *,
        task: Task,
        budget: Budget,
        seed: int,
    ) -> nn.Module:
        model = copy.deepcopy(model).train()
        optimizer = self.optimizer_for(model)
        epoch = task.batches_per_epoch(forget, self.batch_size)
        for batch in budget.stream(task.batches(forget, self.batch_size, seed), epoch):
            descend(optimizer, -task.loss(model, batch).mean())
        return model


class NegGradPlus(GradientUnlearner):
    """NegGrad+ (Kurmanji et al. 2024; paper A.2.7): lower the retain loss, raise the forget loss."""

    anytime = True
    name: str = "neggrad+"
    beta: float = Field(0.999, gt=0, lt=1)  # weight of the retain loss

    def __call__(
        self,
        model: nn.Module,
        retain: Samples,
        forget: Samples,
        *,
        task: Task,
        budget: Budget,
        seed: int,
    ) -> nn.Module:
        model = copy.deepcopy(model).train()
        optimizer = self.optimizer_for(model)
        retained = task.batches(retain, self.batch_size, derive(seed, "retain"))
        forgotten = task.batches(forget, self.batch_size, derive(seed, "forget"))
        epoch = task.batches_per_epoch(retain, self.batch_size)  # forget batches come round in it
        for keep, drop in budget.stream(zip(retained, forgotten, strict=True), epoch):
            retain_loss, forget_loss = task.loss(model, keep), task.loss(model, drop)
            descend(
                optimizer, self.beta * retain_loss.mean() - (1 - self.beta) * forget_loss.mean()
            )
        return model


class NegGradPlusRepository(NegGradPlus):
    """NegGrad+ with the values of its authors' repository."""

    name: str = "neggrad+-repository"
    beta: float = Field(0.9999, gt=0, lt=1)
    lr: float = Field(0.01, gt=0)
