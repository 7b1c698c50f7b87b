"""NPO and SimNPO: ascent that fades as it succeeds (Zhang et al. 2024, Fan et al. 2024).

    NPO      minimise  w_f E_forget[−(2/β) log σ(β (ℓ(θ) − ℓ(θ_initial)))] + w_r E_retain[ℓ(θ)]
    SimNPO   minimise  w_f E_forget[−(2/β) log σ(β (ℓ(θ) − γ))]            + w_r E_retain[ℓ(θ)]

ℓ = −log π_θ(y | x) is the training loss of a sample. A forget sample weighs 2 / (1 + r^−β) times what it
weighs in gradient ascent, where r = π_θ / π_initial falls from 1 to 0; β → 0 is gradient ascent. The
student is in train mode, as in the authors' trainers, its reference θ_initial in eval mode.

| NPO (arXiv 2404.05868, its (3)) | paper, on TOFU | authors' repository | here |
| --- | --- | --- | --- |
| β | 0.1 | 0.1 | `beta` 0.1 |
| w_f, w_r (NPO+RT) | 1, 1 | 1, 1 | `forget_weight` 1, `retain_weight` 1 |
| log π of a text | sum over its tokens | the same | the task's loss: for prompts the mean over tokens |

| SimNPO (arXiv 2410.07163) | paper | authors' repository, TOFU 5 % and 10 % | here |
| --- | --- | --- | --- |
| β | searched for | 2.5 and 4.5 | `beta` 2.5 |
| γ | 0, in σ(β ℓ − γ) | 0, in σ(β (ℓ − γ)) | `margin` 0, as the repository's |
| w_f, w_r | searched for | 0.1375 and 0.125, 1 | `forget_weight` 0.1375, `retain_weight` 1 |
| log π of a text | mean over its tokens | the same | the same: the task's loss |

| both | papers and repositories | here |
| --- | --- | --- |
| optimiser | AdamW, rate 1e-5, decay 0.01 | the same |
| batches | 32, of forget and of retain samples each | the same |
| schedule | an epoch of warm-up, then linear decay | constant |

What is guessed: the values are those of a language model of 7 billion parameters; a small classifier wants
another rate. Where a loss is a mean over tokens, NPO's `beta` stands for the paper's β times their number.
The schedule is left out, since a method that knows its end is not anytime.
"""

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.data.samples import Samples
from marshtest.plumbing.seeds import derive
from marshtest.training.budget import Budget
from marshtest.training.loop import descend
from marshtest.training.tasks import Task
from marshtest.unlearning.base import GradientUnlearner


class NPO(GradientUnlearner):
    """NPO (Zhang et al. 2024), in the form with a retain loss: ascent bounded by the initial model."""

    anytime = True
    name: str = "npo"
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    batch_size: int = Field(32, ge=1)
    beta: float = Field(0.1, gt=0)
    forget_weight: float = Field(1.0, ge=0)  # w_f
    retain_weight: float = Field(1.0, ge=0)  # w_r

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
        reference, student = copy.deepcopy(model).eval(), copy.deepcopy(model).train()
        optimizer = self.optimizer_for(student)
        kept = task.batches(retain, self.batch_size, derive(seed, "retain"))
        forgotten = task.batches(forget, self.batch_size, derive(seed, "forget"))
        epoch = task.batches_per_epoch(forget, self.batch_size)  # as the papers count
        for keep, drop in budget.stream(zip(kept, forgotten, strict=True), epoch):
            excess = self.excess(task.loss(student, drop), reference, drop, task)
            penalty = -2 / self.beta * F.logsigmoid(self.beta * excess).mean()
            retain_loss = task.loss(student, keep).mean()
            descend(optimizer, self.forget_weight * penalty + self.retain_weight * retain_loss)
        return student

    def excess(self, losses: Tensor, reference: nn.Module, batch: Samples, task: Task) -> Tensor:
        """[B] ℓ(θ) − ℓ(θ_initial), by how much each loss of the batch exceeds the initial model's."""
        with torch.no_grad():
            initial_losses = task.loss(reference, batch)
        return losses - initial_losses


class SimNPO(NPO):
    """SimNPO (Fan et al. 2024): NPO with a margin in the place of the initial model."""

    name: str = "simnpo"
    beta: float = Field(2.5, gt=0)
    forget_weight: float = Field(0.1375, ge=0)
    margin: float = Field(0.0, ge=0)  # γ, the loss from which on a sample counts as forgotten

    def excess(self, losses: Tensor, reference: nn.Module, batch: Samples, task: Task) -> Tensor:
        return losses - self.margin
