"""SCRUB: a student that obeys its teacher on the retain set only (Kurmanji et al. 2024; paper A.2.6).

    The teacher is θ_initial, frozen, in eval mode; the student starts from θ_initial.
    D(batch) is T² KL(teacher ‖ student), the batch's mean, of label distributions at temperature T.

    scrub             each step  minimises  γ ℓ(retain) + α D(retain) − β D(forget)

    scrub-repository  max step   minimises  −D(forget)
                      min step   minimises  γ ℓ(retain) + α D(retain)
                      In the first `max_share` of the budget an epoch of max steps precedes each epoch
                      of min steps; afterwards all steps are min steps.

| known | paper | authors' repository, CIFAR-10 | `scrub` | `scrub-repository` |
| --- | --- | --- | --- | --- |
| form | one objective | alternating; a joint one is unused | joint | alternating |
| γ | 0.99 | 0.99, times ℓ(retain) | `loss_weight` 0.99 | `loss_weight` 0.99 |
| α | 0.999 | 0.001, times D(retain) | `kl_weight` 0.999 | `kl_weight` 0.001 |
| β | 0.001 | 0, times a term that is zero | `forget_weight` 0.001 | none |
| T | none in its formula | 4 | `temperature` 1 | `temperature` 4 |
| lr | not given | 5e-4, SGD | 5e-4, SGD | 5e-4, SGD |
| max steps | none in its formula | in 2 of 3 epochs | none | `max_share` 2/3 |
| batches, retain and forget | not given | 128, 32 | 128, 128 | 128, 32 |

What is guessed: the paper states values of α, β and γ but no roles, since its formula has no weights.
`scrub` gives them the roles in the repository's joint form (`train_distill_linear`, γ ℓ + α D(retain) −
β D(forget), without its pull towards averaged weights), which is the only form where all three have
one. Its rate is the repository's, and its two batches have one size, as NegGrad+'s have.
"""

import copy
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.data.samples import Samples
from marshtest.plumbing.seeds import derive, generator
from marshtest.training.budget import Budget
from marshtest.training.loop import descend
from marshtest.training.tasks import Task
from marshtest.unlearning.base import GradientUnlearner

CLOSED = -1e30  # for −∞, the log-probability of a class that a model closes: 0 · ∞ is no divergence


class Scrub(GradientUnlearner):
    """SCRUB in its joint form (paper A.2.6): one objective, its three terms in every step."""

    anytime = True
    name: str = "scrub"
    lr: float = Field(5e-4, gt=0)
    loss_weight: float = Field(0.99, ge=0)  # γ, of the loss on the retain set
    kl_weight: float = Field(0.999, ge=0)  # α, of the divergence on the retain set
    forget_weight: float = Field(0.001, ge=0)  # β, of the divergence on the forget set
    temperature: float = Field(1.0, gt=0)  # T

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
        teacher, student = copy.deepcopy(model).eval(), copy.deepcopy(model).train()
        optimizer = self.optimizer_for(student)
        retained = task.batches(retain, self.batch_size, derive(seed, "retain"))
        forgotten = task.batches(forget, self.batch_size, derive(seed, "forget"))
        epoch = task.batches_per_epoch(retain, self.batch_size)
        for keep, drop in budget.stream(zip(retained, forgotten, strict=True), epoch):
            near, loss = divergence_and_loss(teacher, student, keep, task, self.temperature)
            far, _ = divergence_and_loss(teacher, student, drop, task, self.temperature)
            descend(
                optimizer,
                self.loss_weight * loss + self.kl_weight * near - self.forget_weight * far,
            )
        return student


class ScrubRepository(GradientUnlearner):
    """SCRUB in the alternating form, with the values of its authors' repository."""

    name: str = "scrub-repository"
    lr: float = Field(5e-4, gt=0)
    loss_weight: float = Field(0.99, ge=0)  # γ, of the loss on the retain set
    kl_weight: float = Field(0.001, ge=0)  # α, of the divergence on the retain set
    temperature: float = Field(4.0, gt=0)  # T
    max_share: float = Field(2 / 3, ge=0, le=1)  # share of the budget with max steps
    forget_batch_size: int = Field(32, ge=1)  # samples of a max step

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
        teacher, student = copy.deepcopy(model).eval(), copy.deepcopy(model).train()
        optimizer = self.optimizer_for(student)
        steps = self.steps(retain, forget, task, budget, seed)
        epoch = task.batches_per_epoch(retain, self.batch_size)  # max steps come beside
        for is_max_step, batch in budget.stream(steps, epoch, lambda step: not step[0]):
            divergence, loss = divergence_and_loss(teacher, student, batch, task, self.temperature)
            if is_max_step:
                descend(optimizer, -divergence)
            else:
                descend(optimizer, self.loss_weight * loss + self.kl_weight * divergence)
        return student

    def steps(
        self, retain: Samples, forget: Samples, task: Task, budget: Budget, seed: int
    ) -> Iterator[tuple[bool, Samples]]:
        """Give (whether it is a max step, its batch), an epoch of either kind in turn, without end."""
        rng = generator(seed, "scrub")
        while True:
            if budget.progress < self.max_share:
                for batch in task.epoch(forget, self.forget_batch_size, rng):
                    yield True, batch
            for batch in task.epoch(retain, self.batch_size, rng):
                yield False, batch


def divergence_and_loss(
    teacher: nn.Module, student: nn.Module, batch: Samples, task: Task, temperature: float
) -> tuple[Tensor, Tensor]:
    """D = T² KL(teacher ‖ student) on a batch, and the student's mean loss there."""
    with torch.no_grad():
        teacher_logits = task.label_logits(task(teacher, batch), batch)
    outputs = task(student, batch)
    student_logits = task.label_logits(outputs, batch)
    loss = task.losses(outputs, batch).mean()
    return label_divergence(teacher_logits, student_logits, temperature), loss


def label_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher ‖ student) of label distributions at temperature T, the mean over logits [B, C]."""
    mean = F.kl_div(
        log_distribution(student_logits, temperature),
        log_distribution(teacher_logits, temperature),
        reduction="batchmean",  # "mean" would divide by the number of classes too
        log_target=True,
    )
    return temperature**2 * mean


def log_distribution(logits: Tensor, temperature: float) -> Tensor:
    """[B, C] logarithms of the label distributions at a temperature, finite where a label is closed."""
    return (logits / temperature).log_softmax(1).clamp(min=CLOSED)
