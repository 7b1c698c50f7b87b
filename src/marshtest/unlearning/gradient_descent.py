"""Gradient Descent and Noisy Gradient Descent on the retain set (paper A.2.1, A.2.2).

    GD:   θ ← θ − η g(θ)
    NGD:  θ ← θ − η (g(θ) + ξ),  ξ ~ N(0, σ² I)     anew each step

g is a mini-batch gradient of the training loss on the retain set, from θ_initial. As in the paper the
optimiser is SGD with momentum, so the noise enters the momentum too, and with momentum 0.9 its
stationary deviation in an update is σ / √(1 − 0.9²) = 2.3 σ.
"""

import copy

import torch
from pydantic import Field
from torch import nn

from marshtest.data.samples import Samples
from marshtest.plumbing.seeds import generator
from marshtest.training.budget import Budget
from marshtest.training.loop import descend
from marshtest.training.tasks import Task
from marshtest.unlearning.base import GradientUnlearner


class GradientDescent(GradientUnlearner):
    """GD (Neel et al. 2021; paper A.2.1): continue training on the retain set."""

    anytime = True
    name: str = "gd"

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
        epoch = task.batches_per_epoch(retain, self.batch_size)
        for batch in budget.stream(task.batches(retain, self.batch_size, seed), epoch):
            descend(optimizer, task.loss(model, batch).mean())
        return model


class NoisyGradientDescent(GradientUnlearner):
    """NGD (Chien et al. 2024; paper A.2.2): gradient descent with noise on every gradient."""

    anytime = True
    name: str = "ngd"
    noise_variance: float = Field(1e-7, gt=0)  # σ²; the paper uses 1e-7 and 1e-6

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
        # On the model's own device, whose step would take a twentieth of the time of a draw on the CPU.
        rng = generator(seed, "noise", device=next(model.parameters()).device)
        epoch = task.batches_per_epoch(retain, self.batch_size)
        for batch in budget.stream(task.batches(retain, self.batch_size, seed), epoch):
            # `descend`, with the noise between gradient and step.
            optimizer.zero_grad()
            task.loss(model, batch).mean().backward()
            self.add_noise(optimizer, rng)
            optimizer.step()
        return model

    def add_noise(self, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
        """Add ξ ~ N(0, σ² I) to every gradient; a tied weight is one parameter and gets it once."""
        groups = [group["params"] for group in optimizer.param_groups]
        slopes = [p.grad for params in groups for p in params if p.grad is not None]
        noise = [torch.randn(g.shape, generator=rng, device=g.device) for g in slopes]
        torch._foreach_add_(slopes, noise, alpha=self.noise_variance**0.5)
