"""Shrink and perturb: weights most of the way to a fresh initialisation, then trained (Ash & Adams 2020).

    θ ← λ θ_initial + p,   p = ν · θ_fresh          then train on the retain set

The paper (arXiv 1910.08475) warm-starts a training on more data so. Here the retain set takes the place of
the grown training set, and what is shrunk is what the initial model learned.

| known | paper | authors' repository | here |
| --- | --- | --- | --- |
| λ, the share that is kept | tried between 0 and 1 | 0.4 | `keep` 0.3 |
| p, the noise | N(0, σ²) | 0.1 · a fresh model | (1 − λ) · a fresh model |
| buffers (BatchNorm's statistics) | not said | those of the fresh model | mixed as the weights are |
| training | to 99 % on the training set | the same, Adam 1e-3 | the recipe's, within the budget |

What is guessed: no paper uses it to unlearn, so `keep` and ν = 1 − λ are this project's own choice, made
for removal. With `keep` 0 the method is retraining. Buffers are mixed lest the statistics fit neither
network; the training, in train mode, soon replaces them. Frozen parameters and integer buffers stay. Where
the factory gives a pretrained model, θ_fresh is the pretrained one.
"""

import copy

import torch
from pydantic import Field
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.training.budget import Budget
from marshtest.training.tasks import Task
from marshtest.unlearning.base import TrainingUnlearner


class ShrinkPerturb(TrainingUnlearner):
    """Shrink and perturb (Ash & Adams 2020): shrink towards a fresh initialisation, then train."""

    name: str = "shrink-perturb"
    keep: float = Field(0.3, ge=0, le=1)  # λ, share of the initial weights

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
        start = mixed(model, self.new_model(task, seed), self.keep)
        return self.train(task, retain, seed, budget, start)


@torch.no_grad()
def mixed(model: nn.Module, fresh: nn.Module, keep: float) -> nn.Module:
    """A copy of a model: keep · its own + (1 − keep) · fresh, but for what is frozen.

    Integers are the fresh model's, unless all is kept: with the batches that BatchNorm has counted, a
    running mean over all of them would never be replaced.
    """
    mixture = copy.deepcopy(model)
    own, other = dict(mixture.named_parameters()), dict(fresh.named_parameters())
    pairs: list[tuple[Tensor, Tensor]]
    pairs = [(p, other[name]) for name, p in own.items() if p.requires_grad]
    pairs += zip(mixture.buffers(), fresh.buffers(), strict=True)
    for tensor, counterpart in pairs:
        if tensor.is_floating_point():
            tensor.copy_(_between(tensor, counterpart, keep))
        elif keep < 1:
            tensor.copy_(counterpart)
    return mixture


def _between(one: Tensor, other: Tensor, share: float) -> Tensor:
    """A share of one and the rest of the other; that value where they agree, as in a mask's −∞."""
    return torch.where(one == other, one, share * one + (1 - share) * other)
