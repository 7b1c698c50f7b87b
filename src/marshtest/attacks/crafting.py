"""Crafted perturbations: descend an objective of the poisons' summed gradient, within a box.

adam   Adam's step; the rate falls to a tenth after each of `decays`
sgd    ∆ ← ∆ − lr ∂J/∂∆
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor

from marshtest.attacks.base import Poisoned, Tensors
from marshtest.attacks.kernel import Kernel, Objective
from marshtest.data.samples import Samples, slices
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import generator

BLIND = "the same perturbations, each in random order"  # what `shuffled` makes, in words
DECAYS = (3 / 8, 5 / 8, 7 / 8)  # shares of the steps after which the rate falls to a tenth

_OPTIMIZERS: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, eps=1e-16),  # derivatives may be tiny
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class Crafted:
    """Perturbations, and how they were found."""

    perturbation: Tensor  # [P, *input] added to the bases in input space
    history: list[float]  # the objective at each step
    stopped: bool = False  # the objective turned NaN or infinite; `perturbation` is the best before

    @property
    def objective(self) -> float:
        """The objective at `perturbation`."""
        return min(self.history, default=math.inf) if self.stopped else self.history[-1]

    def tensors(self) -> Tensors:
        """Perturbation, history and `stopped` as tensors, for a file."""
        # In Python's own precision, so that a run that goes on from a file ranks restarts alike.
        history = torch.tensor(self.history, dtype=torch.float64)
        stopped = torch.tensor(self.stopped)
        return {"perturbation": self.perturbation, "history": history, "stopped": stopped}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        """The crafted perturbations that `tensors` was taken of."""
        stopped = bool(tensors["stopped"])
        return cls(tensors["perturbation"], tensors["history"].tolist(), stopped)

    def lines(self, **key: float) -> list[dict[str, float]]:
        """The history, one line a step."""
        return [{**key, "step": step, "objective": v} for step, v in enumerate(self.history)]


def craft(
    kernel: Kernel,
    bases: Samples,
    objective: Objective,
    start: Tensor,
    box: tuple[Tensor, Tensor],
    *,
    steps: int,
    lr: float,
    seed: int,
    progress: Progress = silent,
    optimizer: Literal["adam", "sgd"] = "adam",
    decays: Sequence[float] = DECAYS,
    signed: bool = False,
    per_batch: int | None = None,
) -> Crafted:
    """Descend from `start`, projected onto the box after each step; a step is a pass over the poisons.

    Args:
        start: [P, *input] the perturbations to begin with.
        box: least and largest perturbation, [P, *input] each.
        steps: passes over the poisons; one pass more gives the last entry of the history.
        lr: rate of the first step; Adam's is in units of the input space.
        seed: fixes the augmentation, which is drawn anew for each step.
        decays: shares of the steps after which the rate falls to a tenth.
        signed: whether a step goes by the sign of the derivative (Geiping et al. 2021).
        per_batch: number of poisons whose gradients are summed; the objective is the mean over such
            mini-batches, in the order of the bases. None sums the gradients of all.
    """
    base = kernel.task.inputs(kernel.model, bases).detach()
    perturbation = start.clamp(*box).requires_grad_()
    stepper = _OPTIMIZERS[optimizer]([perturbation], lr)
    parts = list(slices(len(bases), per_batch or len(bases)))
    best, rng = perturbation.detach().clone(), generator(seed, "view")
    history: list[float] = []
    for step in range(steps + 1):
        inputs = kernel.task.view(base + perturbation, rng)
        # Detached: the kernel frees its graphs micro-batch by micro-batch, and only the view's is kept.
        value, slope = _mean(kernel, inputs.detach(), bases, objective, parts)
        if not math.isfinite(value) or not bool(torch.isfinite(slope).all()):
            return Crafted(best, history, stopped=True)
        if not history or value < min(history):
            best.copy_(perturbation.detach())
        history.append(value)
        at_first = f"; {kernel.way}" if step == 0 else ""
        progress(step / (steps + 1), f"objective {value:.3f}{at_first}")
        if step < steps:  # the last pass tells the objective of what is returned
            (perturbation.grad,) = torch.autograd.grad(inputs, perturbation, slope)
            if signed:
                perturbation.grad.sign_()
            for group in stepper.param_groups:
                group["lr"] = lr * 0.1 ** sum(step / steps >= share for share in decays)
            stepper.step()
            with torch.no_grad():
                perturbation.clamp_(*box)
    return Crafted(perturbation.detach(), history)


def shuffled(poisoned: Poisoned, seed: int) -> Samples:
    """The training set, each poison's perturbation with its values in random order: as large, but blind."""
    perturbations = poisoned.samples.perturbations
    assert perturbations is not None
    rng = generator(seed, "shuffle")
    flat = perturbations.flatten(1)
    # A permutation for each row at once: the order of uniform numbers.
    order = torch.rand(flat.shape, generator=rng).argsort(1).to(flat.device)
    return replace(poisoned.samples, perturbations=flat.gather(1, order).view_as(perturbations))


def _mean(
    kernel: Kernel, inputs: Tensor, bases: Samples, objective: Objective, parts: Sequence[slice]
) -> tuple[float, Tensor]:
    """The mean of the parts' objectives, and its derivative [P, *input]."""
    values, slopes = zip(*(kernel(inputs[p], bases[p], objective) for p in parts), strict=True)
    return sum(values) / len(parts), torch.cat(slopes) / len(parts)
