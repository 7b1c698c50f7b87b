"""SalUn: random labels, learnt by the salient weights alone (Fan et al. 2024; arXiv 2310.12508, §4).

    m_S = 1(|∇ℓ_f(θ_o)| ≥ γ)                    ℓ_f = −ℓ on the forget set, θ_o the initial model's weights
    θ   = m_S ⊙ (θ_o + Δθ) + (1 − m_S) ⊙ θ_o    so that only salient weights move
    Δθ  minimises  E_forget[ℓ(θ; x, y')] + α E_retain[ℓ(θ; x, y)],  y' ≠ y at random

| known | paper | authors' repository, CIFAR-10 | here |
| --- | --- | --- | --- |
| γ | the median of ∇ℓ_f | the share 0.5 of all weights, by rank | `share` 0.5, by rank |
| ∇ℓ_f | of the forget set | the sum of its mini-batches' means | the sum of its samples' |
| its mode | not given | eval | eval |
| masked | the step Δθ | gradient, then weights and momentum are put back | weights are put back |
| α | above 0 | none: each mini-batch is a step | the same |
| lr | searched | 0.013 for a tenth of CIFAR-10, SGD, momentum 0.9, decay 5e-4 | 0.013, the same |

Labels, mini-batches and batch size are those of `random_labels`, whose table has them.

Neither momentum nor weight decay moves a masked weight: every optimiser here works on each weight by
itself, so putting a weight back after the step undoes all of it. BatchNorm's statistics are no weights,
and follow the mini-batches as in the repository. Frozen parameters have no rank.
"""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive
from marshtest.training.budget import indispensable
from marshtest.training.tasks import Task
from marshtest.unlearning.passes import whole_pass
from marshtest.unlearning.random_labels import RandomLabels


class SalUn(RandomLabels):
    """SalUn (Fan et al. 2024): random labels on the forget set, learnt by the salient weights only."""

    name: str = "salun"
    lr: float = Field(0.013, gt=0)
    share: float = Field(0.5, ge=0, le=1)  # of the weights, the most salient, that may move

    def guard(self, model: nn.Module, forget: Samples, task: Task, seed: int) -> Callable[[], None]:
        """A function that puts the weights that are not salient back to where they are now."""
        weights = [p for p in model.parameters() if p.requires_grad]
        start = [weight.detach().clone() for weight in weights]
        with indispensable(f"unlearners.{self.name}", "the gradient of the forget set"):
            mask = self.mask(self.forget_gradient(model, weights, forget, task, seed), weights)

        @torch.no_grad()
        def put_back() -> None:
            for weight, salient, before in zip(weights, mask, start, strict=True):
                weight.copy_(torch.where(salient, weight, before))

        return put_back

    def forget_gradient(
        self,
        model: nn.Module,
        weights: list[nn.Parameter],
        forget: Samples,
        task: Task,
        seed: int,
    ) -> Tensor:
        """[P] the gradient of the forget set's loss in all weights, of the model in eval mode.

        Raises:
            MarshtestError: the gradient is not finite.
        """
        total = torch.zeros_like(torch.cat([weight.detach().flatten() for weight in weights]))
        model.eval()
        for batch in whole_pass(forget, task, self.batch_size, derive(seed, "saliency")):
            loss = task.loss(model, batch).sum()
            parts = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            total += torch.cat([part.flatten() for part in parts])
        if not bool(total.isfinite().all()):
            raise MarshtestError(
                f"unlearners.{self.name}: the initial model's gradient on the forget set is not finite, so "
                "its weights have no saliency. Lower training.lr, or leave the method out."
            )
        return total

    def mask(self, slopes: Tensor, weights: list[nn.Parameter]) -> list[Tensor]:
        """m_S for each weight tensor: whether its slope is among the `share` of steepest of all [P]."""
        salient = torch.zeros_like(slopes, dtype=torch.bool)
        salient[slopes.abs().topk(int(self.share * len(slopes))).indices] = True
        parts = salient.split([weight.numel() for weight in weights])
        return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
