"""SCRUB: a student that obeys its teacher on the retain set only (Kurmanji et al. 2024; paper A.2.6).

    teacher = a frozen copy of θ_initial in eval mode; student starts from θ_initial
    max step, forget set:  minimise −KL(teacher ‖ student)
    min step, retain set:  minimise  loss_weight · ℓ + kl_weight · T² KL(teacher ‖ student)
    max steps run in the first `max_share` of the budget, an epoch of each in turn, min epochs after

| | paper | authors' repository (CIFAR-10) | here |
| --- | --- | --- | --- |
| weight of ℓ | γ = 0.99 | γ = 0.99 | `loss_weight` 0.99 |
| weight of KL, retain set | α = 0.999 | α = 0.001 | `kl_weight` 0.999; `scrub-repository`: 0.001 |
| β | 0.001, no role given | multiplies a term that is zero | none |
| T | – | 4 | `temperature` 4 |
| lr | – | 5e-4, Adam or SGD by option | 5e-4, SGD |
| max steps | – | in the first 2 of 3 epochs | `max_share` 2/3 |
| batches | – | 128 retain, 32 forget | `batch_size` 128, `forget_batch_size` 32 |
"""

import copy
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.budget import Budget
from marshtest.data import Samples
from marshtest.seeds import generator
from marshtest.tasks import Task
from marshtest.training import descend
from marshtest.unlearning.base import GradientUnlearner


class Scrub(GradientUnlearner):
    """SCRUB (Kurmanji et al. 2024; paper A.2.6): obey a teacher on the retain set only."""

    name: str = "scrub"
    lr: float = Field(5e-4, gt=0)
    loss_weight: float = Field(0.99, ge=0)  # γ
    kl_weight: float = Field(0.999, ge=0)  # α
    temperature: float = Field(4.0, gt=0)
    max_share: float = Field(2 / 3, ge=0, le=1)
    forget_batch_size: int = Field(32, ge=1)

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
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        student = copy.deepcopy(model).train()
        optimizer = self.optimizer_for(student)
        steps = self.steps(retain, forget, task, budget, seed)
        epoch = task.batches_per_epoch(retain, self.batch_size)  # max steps come beside
        for is_max_step, batch in budget.stream(steps, epoch, lambda step: not step[0]):
            divergence, loss = self.compare(student, teacher, batch, task)
            if is_max_step:
                descend(optimizer, -divergence)
            else:
                distillation = self.kl_weight * self.temperature**2 * divergence
                descend(optimizer, self.loss_weight * loss + distillation)
        return student

    def steps(
        self, retain: Samples, forget: Samples, task: Task, budget: Budget, seed: int
    ) -> Iterator[tuple[bool, Samples]]:
        """(is it a max step, its batch): an epoch of each in turn, without end."""
        draws = generator(seed, "scrub")
        while True:
            if budget.progress < self.max_share:
                for batch in task.epoch(forget, self.forget_batch_size, draws):
                    yield True, batch
            for batch in task.epoch(retain, self.batch_size, draws):
                yield False, batch

    def compare(
        self, student: nn.Module, teacher: nn.Module, batch: Samples, task: Task
    ) -> tuple[Tensor, Tensor]:
        """KL(teacher ‖ student) of the label's distribution at temperature T, and the mean loss."""
        with torch.no_grad():
            target = task.label_logits(task(teacher, batch), batch) / self.temperature
        outputs = task(student, batch)
        logits = task.label_logits(outputs, batch) / self.temperature
        divergence = F.kl_div(
            logits.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True
        )
        return divergence, task.losses(outputs, batch).mean()


class ScrubRepository(Scrub):
    """SCRUB with the weights of its authors' repository."""

    name: str = "scrub-repository"
    kl_weight: float = Field(0.001, ge=0)
