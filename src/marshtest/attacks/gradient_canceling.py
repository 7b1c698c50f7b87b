"""Indiscriminate poisons by gradient canceling (paper §4.2, A.1.3, Algorithm 2; Lu et al. 2023).

    J(∆) = ½ ‖ (Σ_clean ∇_θ ℓ(x, y) + Σ_i ∇_θ ℓ(x_i + ∆_i, y_i)) / N + λ θ ‖²      at θ_low

θ_low has a low test accuracy (GradPC). Where J is zero it is a stationary point of the training on the
poisoned samples, so training may stay there, or go there: for a convex model it must. The poisons replace
their bases and keep their labels. Two things are not in the paper's (4), which adds the two sets' means:
sets weigh by their sizes, else θ_low is stationary for no training; and weight decay λ is part of the
training. `weighting: mean` is the paper's form.
"""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from marshtest.attacks.base import Attack, Effect, Poisoned, Tensors, Victim, choose, learned
from marshtest.attacks.crafting import Crafted, craft
from marshtest.attacks.gradpc import Search
from marshtest.attacks.kernel import STEP_PASSES, Kernel, Objective
from marshtest.data import Samples
from marshtest.metrics.accuracy import accuracy
from marshtest.seeds import derive
from marshtest.tasks import Task


class GradientCanceling(Attack):
    """Poisons that hold training at a bad model, and lower test accuracy (paper §4.2)."""

    name: str = "gradient-canceling"
    compared: ClassVar[Mapping[str, str]] = {"error": "test_error"}
    epsilon: float | None = Field(None, gt=0)  # ε_p, as in gradient matching; none as in the paper
    radius: float | None = Field(None, gt=0)  # ε_w; by default the largest that poisons can hold
    weighting: Literal["size", "mean"] = "size"
    steps: int = Field(1000, ge=1)  # each a pass over the poisons
    lr: float = Field(0.1, gt=0)  # of Adam, in units of the input space

    def poison(self, samples: Samples, count: int, victim: Victim, seed: int) -> Poisoned:
        clean = learned(victim, samples)
        ids = choose(samples, count, seed)
        retain, bases = samples.without(ids), samples.only(ids)
        share = count / len(samples)
        search = Search(
            clean,
            victim.task,
            victim.test,
            retain,
            bases.y,
            victim.weight_decay,
            derive(seed, "worst"),
        )
        worst = search.in_reach(share) if self.radius is None else search.in_ball(self.radius)

        kernel = Kernel(worst.model, victim.task)
        found = (
            f"θ_low: accuracy {worst.accuracy:.2f} at radius {worst.radius:.3g}, needs "
            f"{worst.least_share:.1%} of poisons at least, has {share:.1%}"
        )

        def told(step: int, value: float) -> None:
            text = f"{value:.3f} of the gradient left"
            at_first = f"; {found}; {kernel.way}" if step == 0 else ""
            victim.progress(step / (self.steps + 1), text + at_first)

        def make() -> Tensors:
            return cancel(
                kernel,
                bases,
                retain,
                victim.weight_decay,
                self.weighting,
                epsilon=self.epsilon or math.inf,
                steps=self.steps,
                lr=self.lr,
                seed=derive(seed, "views"),
                progress=told,
            ).tensors()

        crafted = Crafted.from_tensors(victim.kept("poisons", make))
        figures = {
            "objective": crafted.objective,
            "radius": worst.radius,
            "least_share": worst.least_share,
            "low_accuracy": worst.accuracy,
            "stopped": float(crafted.stopped),
        }
        return Poisoned(
            samples.shifted(bases.ids, crafted.shift),
            bases.ids,
            seed,
            targets=victim.test,
            figures=figures,
            history=crafted.lines(),
        )

    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        assert poisoned.targets is not None
        right = accuracy(model, task, poisoned.targets)
        figures = {"test_accuracy": right, "test_error": 1 - right}
        return Effect(np.array([-1]), {"error": np.array([1 - right])}, figures)

    def passes(self, poisons: int) -> float:
        return 0.0  # the test accuracy is the effect

    def crafting(self, poisons: int) -> tuple[int, float]:
        return self.steps + 1, STEP_PASSES * poisons


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
    progress: Callable[[int, float], None],
    epsilon: float = math.inf,
) -> Crafted:
    """Shift the bases until their gradient at the kernel's model cancels that of the retain set.

    Args:
        kernel: of the model at θ_low.
        weight_decay: λ of the training.
        weighting: "size" or "mean", as in `canceling`.
        steps: as in `craft`.
        lr: as in `craft`.
        seed: as in `craft`.
        progress: as in `craft`.
        epsilon: largest shift.
    """
    decay = (len(retain) + len(bases)) * weight_decay * kernel.flat()
    pull = kernel.gradient(retain)
    box = kernel.task.box(kernel.model, bases, epsilon)
    return craft(
        kernel,
        bases,
        canceling(pull, decay, len(retain), len(bases), weighting),
        torch.zeros_like(box[0]),
        box,
        steps=steps,
        lr=lr,
        signed=False,
        seed=seed,
        progress=progress,
    )


def canceling(
    clean: Tensor, decay: Tensor, kept: int, poisons: int, weighting: Literal["size", "mean"]
) -> Objective:
    """‖g‖ / ‖g without poisons‖, g the training gradient at θ_low, and the derivative of half its square.

    Args:
        clean: [D] summed gradient of the retain set.
        decay: [D] (N λ θ) that weight decay adds to the sum of all.
        kept: size of the retain set.
        poisons: size of the forget set.
        weighting: "size" takes the sum over all samples, "mean" adds the two sets' means.
    """
    scale = 1.0 if weighting == "size" else kept / poisons
    pull = clean + decay
    size = pull.norm()

    def objective(total: Tensor) -> tuple[float, Tensor]:
        left = (pull + scale * total) / size
        return float(left.norm()), scale * left / size

    return objective
