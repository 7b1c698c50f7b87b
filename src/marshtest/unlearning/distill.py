"""Distillation on the retain set, into a fresh student or a noised one (UNDO, Lee et al. 2025).

    distill   the teacher is θ_initial, the student a fresh initialisation

    undo      1  unlearn   the teacher: from θ_initial, minimise ℓ(retain) + H(uniform, p_θ)(forget)
              2  noise     the student: (1 − α) θ_teacher + α β N,  N drawn as Xavier initialisation draws
              3  distill

    to distill is to minimise  (1 − w) T² KL(teacher ‖ student) + w ℓ(student)  on the retain set

| known | paper (arXiv 2506.06278) | authors' repository | `undo` | `distill` |
| --- | --- | --- | --- | --- |
| 1 unlearn | maximal entropy, and others | maximal entropy, weights 1 | the same | none |
| for | until it is unlearned | 100 steps | `unlearn_share` 0.1 of the budget | |
| by | | AdamW, rates searched for | the recipe's optimiser, at its rate | |
| α | a trade for compute | 0.1 to 0.8 | `alpha` 0.6 | 1, as it were |
| β | 0.1 | 0.1 | `beta` 0.1 | |
| N | Xavier | Xavier uniform; of a vector 0 | the same; of a convolution too | its initialisation |
| 3 distil on | retain and forget texts | half and half | the retain set | the same |
| w | 0 | 0 | `label_weight` 0.5 | the same |
| T | none | none | `temperature` 1 | the same |
| KL | of all tokens | of all tokens | of the label's distribution | the same |
| by | | AdamW 4e-4 to 9e-4, cosine | the recipe's training | the same |

What is guessed: `distill` is this project's own, the extreme of `undo`, whose teacher unlearned nothing.
Soft labels carry what the teacher knows: with w = 0 a student that can be its teacher ends as its teacher,
so on the convex problems of `marshtest check` neither method would come nearer to retraining. w is as in
Hinton et al. (2015), who leave its value open; `alpha` is one that UNDO's authors try. `only_right`, this
project's own too, puts the labels' own loss in the place of the divergence where the teacher is wrong.
Teachers teach in eval mode. Buffers of `undo`'s student are its teacher's until training, in train mode,
replaces them.
"""

import copy
from functools import partial
from itertools import takewhile

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, seeded
from marshtest.training.budget import Budget
from marshtest.training.loop import descend
from marshtest.training.tasks import Task
from marshtest.unlearning.base import TrainingUnlearner
from marshtest.unlearning.scrub import log_distribution


class Distill(TrainingUnlearner):
    """Distillation of the initial model into a fresh student, on the retain set."""

    name: str = "distill"
    temperature: float = Field(1.0, gt=0)  # T
    label_weight: float = Field(0.5, ge=0, le=1)  # w, of the loss by the samples' own labels
    only_right: bool = False  # whether the teacher teaches only where its label is right

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
        teacher = copy.deepcopy(model).eval()
        student = self.new_model(task, seed)
        return self.train(task, retain, seed, budget, student, partial(self.losses, teacher, task))

    def losses(self, teacher: nn.Module, task: Task, student: nn.Module, batch: Samples) -> Tensor:
        """[B] (1 − w) T² KL(teacher ‖ student) + w ℓ of each sample."""
        with torch.no_grad():
            told = task.label_logits(task(teacher, batch), batch)
        outputs = task(student, batch)
        by_labels = task.losses(outputs, batch)
        log_p, log_q = (
            log_distribution(logits, self.temperature)
            for logits in (told, task.label_logits(outputs, batch))
        )
        divergences = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
        by_teacher = self.temperature**2 * divergences
        if self.only_right:
            by_teacher = torch.where(told.argmax(1) == batch.y, by_teacher, by_labels)
        return (1 - self.label_weight) * by_teacher + self.label_weight * by_labels


class Undo(Distill):
    """UNDO (Lee et al. 2025): unlearn in the outputs, noise the weights, distil."""

    name: str = "undo"
    alpha: float = Field(0.6, ge=0, le=1)  # how far the student goes towards the noise
    beta: float = Field(0.1, ge=0)  # size of the noise
    unlearn_share: float = Field(0.1, ge=0, lt=1)  # of the budget, for the first step
    unlearn_batch_size: int = Field(128, ge=1)  # of the first step, retain and forget samples each

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
        teacher = self.unlearned(model, retain, forget, task, budget, derive(seed, "unlearn"))
        student = noised(teacher, self.alpha, self.beta, derive(seed, "noise"))
        objective = partial(self.losses, teacher.eval(), task)
        return self.train(task, retain, seed, budget, student, objective)

    def unlearned(
        self,
        model: nn.Module,
        retain: Samples,
        forget: Samples,
        task: Task,
        budget: Budget,
        seed: int,
    ) -> nn.Module:
        """The teacher: its label on the forget set is a guess among all, after a share of the budget."""
        if task.optimizer_for is None:
            raise MarshtestError(
                "undo: the task has no optimiser (task.optimizer_for). Run it through a recipe."
            )
        teacher, size = copy.deepcopy(model).train(), self.unlearn_batch_size
        optimizer = task.optimizer_for(teacher)
        batches = zip(
            task.batches(retain, size, derive(seed, "retain")),
            task.batches(forget, size, derive(seed, "forget")),
            strict=True,
        )
        within = takewhile(lambda _: budget.progress < self.unlearn_share, batches)
        for keep, drop in budget.stream(within, task.batches_per_epoch(retain, size)):
            guesses = label_entropy(task.label_logits(task(teacher, drop), drop))
            descend(optimizer, task.loss(teacher, keep).mean() + guesses.mean())
        return teacher


def label_entropy(logits: Tensor) -> Tensor:
    """[B] cross-entropy of a guess among the labels that are not closed, from logits [B, C]."""
    log_p = logits.log_softmax(1)
    is_open = log_p.isfinite()
    return -log_p.masked_fill(~is_open, 0).sum(1) / is_open.sum(1)


@torch.no_grad()
def noised(model: nn.Module, alpha: float, beta: float, seed: int) -> nn.Module:
    """A copy of a model, in which what is not frozen is (1 − α) θ + α β N."""
    student = copy.deepcopy(model)
    with seeded(seed):
        for parameter in student.parameters():
            if parameter.requires_grad:
                noise = torch.zeros(parameter.shape)
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(noise)
                parameter.mul_(1 - alpha).add_(noise.to(parameter), alpha=alpha * beta)
    for module in student.modules():
        # Or a running mean over all batches would never be replaced.
        if isinstance(module, _NormBase) and module.num_batches_tracked is not None:
            module.num_batches_tracked.zero_()
    return student
