"""SSD and ASSD: dampen the weights that matter most to the forget set (Foster et al. 2024).

    []_S   the importance of each weight θ_i for a set S: the mean over its samples of (∂ℓ/∂θ_i)²
    θ_i ← β θ_i  where []_Df > α []_D,  β = min(λ []_D / []_Df, 1);  all other weights stay, bit for bit

D is the whole training set, retain and forget. `ssd` is told α (arXiv 2308.07707, §3). `assd` takes the
p-th percentile of []_Df / []_D over all weights, p = 100 − ln(1 + 100 |Df| / |D|) (Schoepf et al. 2024,
arXiv 2402.10098, §3).

| known | papers | authors' repositories | here |
| --- | --- | --- | --- |
| []_S | Fisher's diagonal | mean of squared gradients of batches of 128 (`assd` 1,024) | each sample's |
| []_D | of D | `ssd` of D, `assd` of the retain set | of D |
| α of `ssd` | 10 (ResNet-18) | 10; for ViT 5, 10, 25 by what is forgotten | `alpha` 10 |
| λ | 1 | 1 | `dampening` 1 |
| mode | not given | `ssd` eval; `assd` train, its eval() is commented out | eval |

A batch's squared gradient is no sum of its samples' squares, and for large batches far below it; so the
ratio of both importances differs from the repositories' by more than noise.

Since D holds Df, no ratio []_Df / []_D is above |D| / |Df|: an α as large as that selects nothing, and is
refused. The paper's 10 is meant for less than a tenth of the data.

Nothing is trained, so SSD spends a forward and a backward of each sample and no more. If the budget does
not afford all of the retain set, its importance comes from as many of its samples as are affordable after
the forget set, drawn at random; in []_D they stand for all of it.

What is guessed: that the papers' expectation is over samples, as the Fisher information is defined, and the
mode, which is the first repository's.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive
from marshtest.training.budget import Budget, indispensable
from marshtest.training.loop import OptimizerSettings
from marshtest.training.tasks import Task
from marshtest.unlearning.base import Unlearner
from marshtest.unlearning.passes import whole_pass
from marshtest.unlearning.per_sample import batch_size, free, squared_gradients


class _Dampening(Unlearner, ABC):
    """Dampening of the weights whose importance for the forget set is above α times that for all data."""

    dampening: float = Field(1.0, gt=0)  # λ

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
        share = len(forget) / (len(retain) + len(forget))
        model = copy.deepcopy(model).eval()
        of_forget, of_retain = self.importances(model, retain, forget, task, budget, seed)
        of_all = share * of_forget + (1 - share) * of_retain
        alpha = self.threshold(of_forget, of_all, share)
        beta = (self.dampening * of_all / of_forget).clamp(max=1)
        dampen(model, torch.where(of_forget > alpha * of_all, beta, 1))
        return model

    @abstractmethod
    def threshold(self, of_forget: Tensor, of_all: Tensor, share: float) -> float:
        """α, from the importances [P] and the forget set's share of all data."""

    def importances(
        self,
        model: nn.Module,
        retain: Samples,
        forget: Samples,
        task: Task,
        budget: Budget,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        """[P], [P] importance of the weights for the forget set, and for what is seen of the retain set.

        Raises:
            MarshtestError: the budget affords too few samples, or an importance is not finite.
        """
        parts, size = {"forget": forget, "retain": retain}, batch_size(model)

        def steps() -> Iterator[tuple[str, Samples]]:
            for part, samples in parts.items():
                for batch in whole_pass(samples, task, size, derive(seed, part)):
                    yield part, batch

        sums, seen = dict.fromkeys(parts, torch.zeros(())), dict.fromkeys(parts, 0)
        epoch = math.ceil(len(retain) / size)
        with indispensable(f"unlearners.{self.name}", "the importances of a batch of samples"):
            squares = squared_gradients(model, task.exact(), forget[:1])
            for part, batch in budget.stream(steps(), epoch, lambda step: step[0] == "retain"):
                sums[part] = squares(batch) + sums[part]
                seen[part] += len(batch)
        self.refuse(sums, seen, len(forget))
        return sums["forget"] / seen["forget"], sums["retain"] / seen["retain"]

    def refuse(self, sums: dict[str, Tensor], seen: dict[str, int], forget: int) -> None:
        """Refuse sums of squared gradients over too few samples, or with a number that is not finite."""
        if not seen["retain"]:  # it comes after the forget set
            raise MarshtestError(
                f"unlearners.{self.name}: the budget affords the importances of {seen['forget']} of "
                f"{forget} samples to forget and of {seen['retain']} to keep. Raise budgets."
            )
        for part, total in sums.items():
            if not bool(total.isfinite().all()):
                raise MarshtestError(
                    f"unlearners.{self.name}: a weight's importance for the {part} set is not finite. "
                    "Lower training.lr, or leave the method out."
                )


class SSD(_Dampening):
    """SSD (Foster et al. 2024): dampen the weights that are α times as important to the forget set."""

    name: str = "ssd"
    alpha: float = Field(10.0, gt=0)  # α

    def check_setting(self, training: OptimizerSettings, forget_share: float) -> None:
        self.refuse_unreachable(forget_share)

    def threshold(self, of_forget: Tensor, of_all: Tensor, share: float) -> float:
        self.refuse_unreachable(share)  # without a recipe nobody has asked before
        return self.alpha

    def refuse_unreachable(self, share: float) -> None:
        """Refuse an α that no ratio can reach, since all data hold the forget set."""
        if self.alpha * share >= 1:
            raise MarshtestError(
                f"unlearners.{self.name}.alpha: no weight is {self.alpha:g} times as important to a "
                f"forget set that is {share:.1%} of all data. Give less than {1 / share:.3g}."
            )


class ASSD(_Dampening):
    """ASSD (Schoepf et al. 2024): SSD whose α follows from the size of the forget set."""

    name: str = "assd"

    def threshold(self, of_forget: Tensor, of_all: Tensor, share: float) -> float:
        ratios = (of_forget / of_all).cpu().numpy()  # NaN where no sample matters to a weight
        return float(np.nanpercentile(ratios, 100 - math.log(1 + 100 * share)))


@torch.no_grad()
def dampen(model: nn.Module, factors: Tensor) -> None:
    """Multiply the weights of a model, in place, by factors [P]."""
    weights = list(free(model).values())
    parts = factors.split([weight.numel() for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.mul_(part.view_as(weight))
