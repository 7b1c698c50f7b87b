"""Certified noisy fine-tuning: clipped, noisy steps, then training (Koloskova et al. 2025).

    θ_0     = clip(θ_initial, C₀)
    θ_{t+1} = θ_t − γ (clip(g_t, C₁) + λ θ_t) + ξ,  ξ ~ N(0, σ² I)        T steps on the retain set
    then ordinary training on the retain set, which is post-processing and takes nothing of the certificate

*The certificate.* Run the steps from any other model, such as one that never saw the forget set, with the
same retain set. Both start within 2 C₀ of each other; a step contracts their distance by q = 1 − γ λ and
then adds at most 2 γ C₁, whatever the loss looks like. So the outputs are as hard to tell apart as two
unit Gaussians μ apart (privacy amplification by iteration; shifted interpolation, Bok et al. 2024):

    μ = D / (σ √S),   D = 2 C₀ q^T + 2 γ C₁ Σ_{i<T} q^i,   S = Σ_{i<T} q^{2i}

and they are (ε, δ)-indistinguishable for δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ) (Balle & Wang 2018). σ is
the least that gives the stated ε at the stated δ. For a constant drift apart the law is exact, so no
smaller σ will do.

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

What is guessed: these values are one of the repository's settings for CIFAR-10 features. By them the noise
left at the end deviates by D / μ = 0.16 in each weight, where the signal is at most C₁ / λ = 0.02 in all
weights together: what is certified is a training from a random start. The model is in train mode, so
gradients do not depend on BatchNorm's statistics; buffers, which no noise covers, start anew after the
steps. Frozen parameters, which no training data moved, stay.
"""

import copy
import math
from itertools import islice

import torch
from pydantic import Field, model_validator
from scipy.optimize import brentq
from scipy.special import log_ndtr
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, generator
from marshtest.training.budget import Budget
from marshtest.training.tasks import Task
from marshtest.unlearning.base import TrainingUnlearner


class Certified(TrainingUnlearner):
    """Certified unlearning by gradient clipping and noise (Koloskova et al. 2025), at a stated (ε, δ)."""

    name: str = "certified"
    epsilon: float = Field(1.0, gt=0)  # ε
    delta: float = Field(1e-5, gt=0, lt=1)  # δ
    model_clip: float = Field(1.0, gt=0)  # C₀, largest norm of the weights at the start
    gradient_clip: float = Field(10.0, gt=0)  # C₁, largest norm of a gradient
    step: float = Field(1e-3, gt=0)  # γ
    decay: float = Field(500.0, ge=0)  # λ
    steps: int = Field(10, ge=1)  # T
    noisy_batch_size: int = Field(128, ge=1)  # of the noisy steps

    @model_validator(mode="after")
    def _contracts(self) -> "Certified":
        if self.step * self.decay > 1:
            raise ValueError(
                f"unlearners.{self.name}: step · decay is {self.step * self.decay:g}. Above 1 a step "
                "overshoots, and no ε holds. Lower one."
            )
        return self

    @property
    def deviation(self) -> float:
        """σ, the standard deviation of the noise of one step that gives (ε, δ)."""
        powers = [(1 - self.step * self.decay) ** i for i in range(self.steps + 1)]
        added = self.step * self.gradient_clip * sum(powers[:-1])
        apart = 2 * (self.model_clip * powers[-1] + added)
        spread = math.sqrt(sum(power**2 for power in powers[:-1]))
        return apart / (spread * gaussian_distance(self.epsilon, self.delta))

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
        rng, deviation, taken = generator(seed, "noise"), self.deviation, 0
        clip(noisy, self.model_clip)
        batches = task.batches(retain, self.noisy_batch_size, derive(seed, "noisy steps"))
        epoch = task.batches_per_epoch(retain, self.noisy_batch_size)
        for batch in budget.stream(islice(batches, self.steps), epoch):
            self.noisy_step(noisy, task.loss(noisy, batch).mean(), deviation, rng)
            taken += 1
        if taken < self.steps:
            raise MarshtestError(
                f"{self.name}: the budget affords {taken} of {self.steps} noisy steps, so no ε holds. "
                "Raise the budget, or lower steps."
            )
        renew_buffers(noisy, self.new_model(task, seed))
        return self.train(task, retain, seed, budget, noisy)

    def noisy_step(
        self, model: nn.Module, loss: Tensor, deviation: float, rng: torch.Generator
    ) -> None:
        """Make a step θ ← θ − γ (clip(g, C₁) + λ θ) + ξ; where the loss does not reach, g is 0."""
        free = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(free, self.gradient_clip)
        with torch.no_grad():
            for parameter in free:
                noise = torch.randn(parameter.shape, generator=rng).to(parameter)
                parameter.mul_(1 - self.step * self.decay)
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=self.step)
                parameter.add_(noise, alpha=deviation)


@torch.no_grad()
def clip(model: nn.Module, norm: float) -> None:
    """Scale all parameters that are not frozen, in place, to at most `norm` together."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = torch.stack([parameter.norm() for parameter in free]).norm()
    for parameter in free:
        parameter.mul_((norm / total).clamp(max=1.0))


@torch.no_grad()
def renew_buffers(model: nn.Module, fresh: nn.Module) -> None:
    """Give a model the buffers of a fresh one, in place."""
    for buffer, other in zip(model.buffers(), fresh.buffers(), strict=True):
        buffer.copy_(other)


def gaussian_delta(distance: float, epsilon: float) -> float:
    """δ at which N(0, 1) and N(distance, 1) are (ε, δ)-indistinguishable (Balle & Wang 2018)."""
    near, far = distance / 2 - epsilon / distance, -distance / 2 - epsilon / distance
    return math.exp(log_ndtr(near)) - math.exp(epsilon + log_ndtr(far))


def gaussian_distance(epsilon: float, delta: float) -> float:
    """μ, the largest distance at which two unit Gaussians are (ε, δ)-indistinguishable."""
    largest = 10 + math.sqrt(100 + 2 * epsilon)  # δ is 1 there, but for rounding
    solution: float = brentq(
        lambda distance: gaussian_delta(distance, epsilon) - delta, 1e-9, largest, xtol=1e-15
    )
    return solution
