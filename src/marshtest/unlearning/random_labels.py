"""Random labels: train on, the forget set with random labels (Golatkar et al. 2020; arXiv 1911.04933, §7).

    each step  minimises  ℓ(θ; x, y')  on a mini-batch of the forget set, y' ≠ y drawn anew at random
               or         ℓ(θ; x, y)   on a mini-batch of the retain set

It is "RL" in the comparison of SalUn (Fan et al. 2024, arXiv 2310.12508), whose repository has the values.

| known | paper | SalUn's repository, CIFAR-10 | here |
| --- | --- | --- | --- |
| y' | resampled at random | of all classes, y too | another of the labels that occur |
| drawn | not given | for each mini-batch | for each mini-batch |
| mini-batches | of both sets | an epoch of the one, then of the other set | of one set, in random order |
| lr | not given | 0.01, SGD, momentum 0.9, decay 5e-4 | 0.01, the same |
| batch size | not given | 256 | 256 |
| mode | not given | train | train |

SalUn's paper has y' ≠ y (its Eq. 5) and mini-batches of both sets (its Algorithm A1). Its repository joins
both sets, as the papers do, for CIFAR-100 only, and draws y' once an epoch there. Here a pass over both
sets is over before a sample comes again.

What is guessed: the paper has the method as a baseline, in one sentence; all values are the repository's.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import generator
from marshtest.training.budget import Budget
from marshtest.training.loop import descend
from marshtest.training.tasks import Task
from marshtest.unlearning.base import GradientUnlearner
from marshtest.unlearning.passes import mixed_stream


class RandomLabels(GradientUnlearner):
    """Random labels (Golatkar et al. 2020): train on, the forget set with random labels."""

    anytime = True
    name: str = "random-labels"
    lr: float = Field(0.01, gt=0)
    batch_size: int = Field(256, ge=1)

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
        model = copy.deepcopy(model)
        labels, rng = self.labels(retain, forget), generator(seed, "labels")
        after_step = self.guard(model, forget, task, seed)
        optimizer = self.optimizer_for(model.train())
        steps = mixed_stream(retain, forget, task, budget, self.batch_size, seed)
        for is_forget, batch in steps:
            if is_forget:
                batch = replace(batch, y=other_labels(batch.y, labels, rng))
            descend(optimizer, task.loss(model, batch).mean())
            after_step()
        return model

    def labels(self, retain: Samples, forget: Samples) -> Tensor:
        """[K] the labels of both sets, each once, in rising order.

        Raises:
            MarshtestError: there is one only, so no sample can be given another.
        """
        labels: Tensor = torch.cat([retain.y, forget.y]).unique()
        if len(labels) < 2:
            raise MarshtestError(
                f"unlearners.{self.name}: all samples have label {labels[0].item()}, so none can be given "
                "another. Leave the method out."
            )
        return labels

    def guard(self, model: nn.Module, forget: Samples, task: Task, seed: int) -> Callable[[], None]:
        """What is to be done after each step; random labels leave every step as it is."""
        return lambda: None


def other_labels(y: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
    """[B] for each label y [B] one of the other `labels` [K], which are in rising order."""
    drawn = torch.randint(len(labels) - 1, y.shape, generator=rng).to(y.device)
    other: Tensor = labels[drawn + (drawn >= torch.searchsorted(labels, y))]
    return other
