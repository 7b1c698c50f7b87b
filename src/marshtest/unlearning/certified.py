"""Certified noisy fine-tuning: clipped, noisy steps, then training (Koloskova et al. 2025).

    θ_0     = clip(θ_initial, C₀)
    θ_{t+1} = θ_t − γ (clip(g_t, C₁) + λ θ_t) + ξ,  ξ ~ N(0, σ² I)        T steps on the retain set
    then ordinary training on the retain set, which is post-processing and takes nothing of the certificate

*The certificate.* Run the steps from any other model, such as one that never saw the forget set, with the
same retain set. Both start within 2 C₀ of each other; a step contracts their distance by q = 1 − γ λ and
then adds at most 2 γ C₁, whatever the loss looks like. So the outputs are as hard to tell apart as two
unit Gaussians μ apart (privacy amplification by iteration; shifted interpolation, Bok et al. 2024):

    μ = D / (σ √S),   D = 2 C₀ q^T + 2 γ C₁ Σ_{i<T} q^i,   S = Σ_{i<T} q^{2i}

and σ is the least that keeps that pair (ε, δ)-indistinguishable (`metrics.gaussian_privacy`). Where the two
drift apart steadily their law is that pair's, so no smaller σ will do.

| known | paper (arXiv 2506.06985) | authors' repository | here |
| --- | --- | --- | --- |
| loss | any | any | any |
| ε, δ | several | Rényi ε 1 mostly, δ 1e-5 | `epsilon` 1, `delta` 1e-5 |
| σ from ε | by Rényi divergences | the Rényi ε of order 1 at every order | by μ above, exact |
| C₀, C₁ | searched for | 0.01 to 20, 0.1 to 100 | `model_clip` 1, `gradient_clip` 10 |
| γ, λ | searched for | 1e-4 to 0.1, 0.5 to 750 | `step` 1e-3, `decay` 500 |
| T | log(2 λ C₀ / C₁) / (γ λ) | the same, rounded up | `steps` 10, which that is |
| batches | 128 | 128 | `noisy_batch_size` 128 |
| afterwards | fine-tuning | SGD, one cycle to 0.1 | the recipe's training |

What is guessed: these values are one of the repository's settings for CIFAR-10 features. Its noise for a
Rényi ε of 1 has μ = √2, which at δ = 1e-5 is ε = 6.6, so the noise here is 5 times as large. It deviates at
the end by D / μ = 0.16 in each weight, where the signal is at most C₁ / λ = 0.02 in all weights together:
what is certified is a training from a random start. The model is in train mode, so gradients do not depend
on BatchNorm's statistics; buffers, which no noise covers, start anew after the steps. Frozen parameters,
which no training data moved, stay.
"""

import copy
import math
from collections.abc import Sequence
from itertools import islice

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.metrics.gaussian_privacy import gaussian_distance
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, generator
from marshtest.training.budget import Budget, indispensable
from marshtest.training.tasks import Task
from marshtest.unlearning.base import TrainingUnlearner


class Certified(TrainingUnlearner):
    """Certified unlearning by gradient clipping and noise (Koloskova et al. 2025), at a stated (ε, δ)."""

    name: str = "certified"
    # Within these bounds the Gaussian law is computed to its last digits.
    epsilon: float = Field(1.0, ge=1e-3, le=1e6)  # ε
    delta: float = Field(1e-5, ge=1e-12, le=0.5)  # δ
    model_clip: float = Field(1.0, gt=0)  # C₀, largest norm of the weights at the start
    gradient_clip: float = Field(10.0, gt=0)  # C₁, largest norm of a gradient
    step: float = Field(1e-3, gt=0)  # γ
    decay: float = Field(500.0, ge=0)  # λ
    steps: int = Field(10, ge=1, le=1_000_000)  # T
    noisy_batch_size: int = Field(128, ge=1)  # of the noisy steps

    @model_validator(mode="after")
    def _contracts(self) -> "Certified":
        if self.step * self.decay > 1:
            raise ValueError(
                f"unlearners.certified: step · decay is {self.step * self.decay:g}. Lower it to 1 or less."
            )
        return self

    @property
    def deviation(self) -> float:
        """σ, the standard deviation of the noise of one step that gives (ε, δ)."""
        powers = [(1 - self.step * self.decay) ** i for i in range(self.steps + 1)]
        added = self.step * self.gradient_clip * sum(powers[:-1])
        apart = 2 * (self.model_clip * powers[-1] + added)  # D
        summed = sum(power**2 for power in powers[:-1])  # S
        return apart / (math.sqrt(summed) * gaussian_distance(self.epsilon, self.delta))

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
        noisy = copy.deepcopy(model).train()
        free = [parameter for parameter in noisy.parameters() if parameter.requires_grad]
        factor = shrinkage(free, self.model_clip)
        for parameter in free:
            parameter.data.mul_(factor)
        batches = task.batches(retain, self.noisy_batch_size, derive(seed, "noisy steps"))
        epoch = task.batches_per_epoch(retain, self.noisy_batch_size)
        rng, taken, deviation = generator(seed, "noise"), 0, self.deviation
        # Stopped within a step it would leave a model of too little noise, whose row states this ε.
        with indispensable(f"unlearners.{self.name}", "its noisy steps, so no ε holds"):
            for batch in budget.stream(islice(batches, self.steps), epoch):
                self.noisy_step(free, task.loss(noisy, batch).mean(), rng, deviation)
                taken += 1
        if taken < self.steps:
            raise MarshtestError(
                f"unlearners.{self.name}.steps: the budget affords {taken} of {self.steps} noisy steps, so "
                "no ε holds. Lower steps, or raise budgets."
            )
        fresh = self.new_model(task, seed)
        for buffer, other in zip(noisy.buffers(), fresh.buffers(), strict=True):
            buffer.copy_(other)
        return self.train(task, retain, seed, budget, noisy)

    def noisy_step(
        self, free: list[nn.Parameter], loss: Tensor, rng: torch.Generator, deviation: float
    ) -> None:
        """Make a step θ ← θ − γ (clip(g, C₁) + λ θ) + ξ; where the loss does not reach, g is 0."""
        gradients = torch.autograd.grad(loss, free, materialize_grads=True)
        with torch.no_grad():
            factor = shrinkage(gradients, self.gradient_clip)
            for parameter, gradient in zip(free, gradients, strict=True):
                noise = torch.randn(parameter.shape, generator=rng).to(parameter)
                update = factor * gradient + self.decay * parameter
                parameter.sub_(update, alpha=self.step).add_(noise, alpha=deviation)


@torch.no_grad()
def shrinkage(tensors: Sequence[Tensor], norm: float) -> Tensor:
    """The factor that takes tensors to a norm of at most `norm` together; 1 where they are within it."""
    total = torch.stack([tensor.norm() for tensor in tensors]).norm()
    return torch.clamp(norm / total, max=1.0)
