"""Indiscriminate poisons by gradient canceling (paper §4.2, A.1.3, Algorithm 2; Lu et al. 2023).

    size   J(∆) = ½ ‖ (Σ_clean ∇_θ ℓ(x, y) + Σ_i ∇_θ ℓ(x_i + ∆_i, y_i)) / N + λ θ ‖²      at θ_low
    mean   J(∆) = ½ ‖ mean_clean ∇_θ ℓ(x, y) + mean_i ∇_θ ℓ(x_i + ∆_i, y_i) ‖²        the paper's (4)

θ_low has a low test accuracy (GradPC). Where `size` is zero it is a stationary point of the training on the
poisoned samples, so training may stay there, or go there: for a convex model it must. (4) leaves out two
things that decide this: sets weigh by their sizes, and weight decay λ is part of the training.

∆ descends by one of two rules. `sgd` is Algorithm 2's: ∆ ← ∆ − lr ∂J/∂∆, the rate constant. `adam` is
Adam on the same objective, its rate falling to a tenth three times; it moves each coordinate by about lr
a step, however small the derivative is.

The poisons keep their labels. They replace their bases, or with `place: add` join them as copies with ids
of their own; then the clean set of J is the whole training set.
"""

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from marshtest.attacks.base import (
    ALONE,
    Attack,
    CraftingContext,
    Effect,
    Knowledge,
    Poisoned,
    Tensors,
    choose,
    learned,
)
from marshtest.attacks.crafting import BLIND, DECAYS, Crafted, craft, shuffled
from marshtest.attacks.gradpc import Search, Worst
from marshtest.attacks.kernel import STEP_PASSES, Kernel, Objective
from marshtest.attacks.presentation import Presentation
from marshtest.data.samples import Samples
from marshtest.metrics.accuracy import accuracy
from marshtest.metrics.presentation import Score
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import derive
from marshtest.training.tasks import Task

PRESENTATION = Presentation(
    title="indiscriminate",
    kind="indiscriminate poisons (gradient canceling)",
    scores={"error": Score(title="test error", column="test_error")},
    table2=True,
    shuffled=BLIND,
)


class GradientCanceling(Attack):
    """Poisons that hold training at a bad model, and lower test accuracy (paper §4.2)."""

    name: str = "gradient-canceling"
    presentation: ClassVar[Presentation] = PRESENTATION
    crafted: ClassVar[bool] = True
    epsilon: float | None = Field(None, gt=0)  # ε_p, as in gradient matching; the paper has none
    radius: float | None = Field(None, gt=0)  # ε_w; by default the largest that poisons can hold
    weighting: Literal["size", "mean"] = "size"
    parameters: Literal["all", "first"] = "all"  # the tensors whose gradient is canceled
    place: Literal["replace", "add"] = "replace"  # the poisons' place: their bases', or beside them
    optimizer: Literal["adam", "sgd"] = "adam"  # the paper's Algorithm 2 is sgd
    steps: int = Field(1000, ge=1)  # each a pass over the poisons
    lr: float = Field(0.1, gt=0)  # η; of Adam in units of the input space

    def poison(
        self,
        samples: Samples,
        count: int,
        knowledge: Knowledge,
        seed: int,
        context: CraftingContext = ALONE,
    ) -> Poisoned:
        clean = learned(knowledge, samples)
        ids, add = choose(samples, count, seed), self.place == "add"
        bases, retain = samples.only(ids), samples if add else samples.without(ids)
        worst = self._worst(clean, knowledge, retain, bases, seed, context)
        crafted = self._crafted(worst, knowledge, retain, bases, seed, context)
        figures = {
            "objective": crafted.objective,
            "radius": worst.radius,
            "least_share": worst.limits.least_share(),
            "low_accuracy": worst.accuracy,
            "stopped": float(crafted.stopped),
        }
        return Poisoned(
            samples,
            copied_ids(bases.ids) if add else bases.ids,
            seed,
            perturbations=crafted.perturbation,
            bases=bases.ids if add else None,
            targets=knowledge.test,
            rest=knowledge.test[:0],
            figures=figures,
            history=crafted.lines(),
        )

    def _worst(
        self,
        clean: nn.Module,
        knowledge: Knowledge,
        retain: Samples,
        bases: Samples,
        seed: int,
        context: CraftingContext,
    ) -> Worst:
        """θ_low, by GradPC from the clean model."""
        search = Search(
            clean,
            knowledge.task,
            knowledge.test,
            retain,
            bases.y,
            knowledge.weight_decay,
            derive(seed, "worst"),
            centre=self.weighting == "size",
        )
        share = len(bases) / (len(retain) + len(bases))
        worst = search.in_reach(share) if self.radius is None else search.in_ball(self.radius)
        context.progress(
            0.0,
            f"θ_low: accuracy {worst.accuracy:.2f} at radius {worst.radius:.3g}, needs "
            f"{worst.limits.least_share():.1%} of poisons at least, has {share:.1%}",
        )
        return worst

    def _crafted(
        self,
        worst: Worst,
        knowledge: Knowledge,
        retain: Samples,
        bases: Samples,
        seed: int,
        context: CraftingContext,
    ) -> Crafted:
        """The perturbations that cancel the gradient at θ_low, or those that a stopped run stored."""

        def make() -> Tensors:
            kernel = Kernel(worst.model, knowledge.task, first=self.parameters == "first")
            return cancel(
                kernel,
                bases,
                retain,
                knowledge.weight_decay,
                self.weighting,
                optimizer=self.optimizer,
                epsilon=self.epsilon or math.inf,
                steps=self.steps,
                lr=self.lr,
                seed=derive(seed, "views"),
                progress=context.progress,
            ).tensors()

        return Crafted.from_tensors(context.kept("crafted", make))

    def shuffled(self, poisoned: Poisoned, seed: int) -> Samples:
        return shuffled(poisoned, seed)

    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        assert poisoned.targets is not None
        right = accuracy(model, task, poisoned.targets)
        return Effect(np.array([-1]), {"error": np.array([1 - right])}, {"test_error": 1 - right})

    def passes(self, poisons: int, tests: int) -> float:
        return tests

    def crafting(self, poisons: int) -> tuple[int, float]:
        return self.steps + 1, STEP_PASSES * poisons

    def added(self, poisons: int) -> int:
        return poisons if self.place == "add" else 0


def copied_ids(ids: Tensor) -> Tensor:
    """[P] ids for copies of the samples `ids`: negative, so that no sample of a source has them."""
    return -1 - ids


def cancel(
    kernel: Kernel,
    bases: Samples,
    retain: Samples,
    weight_decay: float,
    weighting: Literal["size", "mean"],
    *,
    steps: int,
    lr: float,
    seed: int,
    progress: Progress = silent,
    optimizer: Literal["adam", "sgd"] = "adam",
    epsilon: float = math.inf,
) -> Crafted:
    """Perturb the bases by at most `epsilon`, until their gradient at θ_low cancels that of the retain set.

    "sgd" steps by lr times the derivative of J as it stands, at a constant rate; see `craft`, `canceling`.
    """
    # N λ θ, since the kernel sums gradients where J takes their mean.
    decay = (len(retain) + len(bases)) * weight_decay * kernel.flat()
    pull = kernel.gradient(retain)
    box = kernel.task.box(kernel.model, bases, epsilon)
    plain = optimizer == "sgd"
    return craft(
        kernel,
        bases,
        canceling(pull, decay, len(retain), len(bases), weighting, relative=not plain),
        torch.zeros_like(box[0]),
        box,
        steps=steps,
        lr=lr,
        seed=seed,
        progress=progress,
        optimizer=optimizer,
        decays=() if plain else DECAYS,
    )


def canceling(
    clean: Tensor,
    decay: Tensor,
    retained: int,
    poisons: int,
    weighting: Literal["size", "mean"],
    *,
    relative: bool = True,
) -> Objective:
    """The share of the gradient that is left, ‖g‖ / ‖g without poisons‖ at θ_low, and a derivative.

    Args:
        clean: [D] summed gradient of the clean set, which has `retained` samples.
        decay: [D] (N λ θ) that weight decay adds to the sum of all; `mean` leaves it out.
        weighting: "size" takes the sum over all samples, "mean" adds the two sets' means.
        relative: the derivative is that of half the share's square, so that its size says nothing of the
            model's; else of J as it stands.
    """
    if weighting == "size":
        pull, weight, count = clean + decay, 1.0, retained + poisons
    else:
        pull, weight, count = clean, retained / poisons, retained
    size = pull.norm()  # count times ‖g without poisons‖
    unit = size if relative else torch.full_like(size, count)  # the lr of sgd is meant for J itself

    def objective(total: Tensor) -> tuple[float, Tensor]:
        remainder = (pull + weight * total) / unit
        return float(remainder.norm() * (unit / size)), weight * remainder / unit

    return objective
