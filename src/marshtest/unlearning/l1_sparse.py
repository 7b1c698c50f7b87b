"""ℓ1-sparse: go on training on the retain set under a sparsity penalty (Jia et al. 2023; arXiv 2304.04934).

    each step  minimises  ℓ(retain) + γ_t ‖θ‖₁,    γ_t = γ (1 − t / T), t of T spent

| known | paper, §4 | authors' repository | here |
| --- | --- | --- | --- |
| γ_t | falls linearly, which beats constant and rising ones | falls with each epoch | with each step |
| γ | searched | left open in its commands | `penalty` 1e-4 |
| ‖θ‖₁ | of the weights | of all parameters, BatchNorm's and biases too | of all that are not frozen |
| lr | searched | 0.01, SGD, momentum 0.9, decay 5e-4 | 0.01, the same |
| batch size | 256 | 256 | 256 |
| epochs | 10 | 10 | what the budget affords |
| mode | not given | train | train |

What is guessed: γ. The repository names no value (its default of 0.2 is another method's noise). Others who
run it take 1e-4 or 5e-4; SalUn's authors, partly the same, search from 1e-6 to 1e-4.
"""

import copy

import torch
from pydantic import Field
from torch import nn

from marshtest.data.samples import Samples
from marshtest.training.budget import Budget
from marshtest.training.loop import descend
from marshtest.training.tasks import Task
from marshtest.unlearning.base import GradientUnlearner


class L1Sparse(GradientUnlearner):
    """ℓ1-sparse (Jia et al. 2023): train on the retain set, and lower ‖θ‖₁ at first."""

    name: str = "l1-sparse"
    lr: float = Field(0.01, gt=0)
    batch_size: int = Field(256, ge=1)
    penalty: float = Field(1e-4, ge=0)  # γ, of the first step; it falls to 0 at the budget's end

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
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        epoch = task.batches_per_epoch(retain, self.batch_size)
        for batch in budget.stream(task.batches(retain, self.batch_size, seed), epoch):
            penalty = self.penalty * (1 - budget.progress)
            size = torch.stack([weight.abs().sum() for weight in weights]).sum()
            descend(optimizer, task.loss(model, batch).mean() + penalty * size)
        return model
