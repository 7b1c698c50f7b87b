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
from marshtest.data.samples import Samples
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import generator

BLIND = "the same perturbations, each in random order"  # what `shuffled` gives
DECAYS = (3 / 8, 5 / 8, 7 / 8)  # shares of the steps after which the rate falls to a tenth

_OPTIMIZERS: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, eps=1e-16),  # derivatives may be tiny
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class Crafted:
    """Perturbations, and how they were found.

    Attributes:
        perturbation: [P, *input] to be added to the bases in input space.
        history: the objective at each step.
        stopped: the objective turned NaN or infinite; `perturbation` is the best before.
    """

    perturbation: Tensor
    history: list[float]
    stopped: bool = False

    @property
    def objective(self) -> float:
        """As of the perturbations that are returned."""
        return min(self.history, default=math.inf) if self.stopped else self.history[-1]

    def tensors(self) -> Tensors:
        """All of it, for a file."""
        history = torch.tensor(self.history, dtype=torch.float64)
        return {
            "perturbation": self.perturbation,
            "history": history,
            "stopped": torch.tensor(self.stopped),
        }

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        """From what `tensors` gave."""
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
        kernel: of the model at which gradients are taken.
        bases: [P] the samples to be perturbed.
        objective: of their summed gradient.
        start: [P, *input] the perturbations to begin with.
        box: least and largest perturbation.
        steps: passes over the poisons; the last entry of the history is one pass more.
        lr: of the first step; of Adam in units of the input space.
        seed: of the augmentation, drawn anew for each step.
        progress: told the share of the steps that is done, and the objective.
        optimizer: of the perturbations.
        decays: shares of the steps after which the rate falls to a tenth.
        signed: step by the sign of the derivative (Geiping et al. 2021).
        per_batch: poisons whose gradients are summed; the objective is the mean over such mini-batches,
            in the order of the bases. None sums all.
    """
    base = kernel.task.inputs(kernel.model, bases).detach()
    perturbation = start.clamp(*box).requires_grad_()
    stepper = _OPTIMIZERS[optimizer]([perturbation], lr)
    size = per_batch or len(bases)
    parts = [slice(at, at + size) for at in range(0, len(bases), size)]
    best, draws = perturbation.detach().clone(), generator(seed, "view")
    history: list[float] = []
    for step in range(steps + 1):
        inputs = kernel.task.view(base + perturbation, draws)
        value, slope = _mean(kernel, inputs.detach(), bases, objective, parts)
        if not math.isfinite(value) or not bool(torch.isfinite(slope).all()):
            return Crafted(best, history, stopped=True)
        if not history or value < min(history):
            best.copy_(perturbation.detach())
        history.append(value)
        at_first = f"; {kernel.way}" if step == 0 else ""
        progress(step / (steps + 1), f"objective {value:.3f}{at_first}")
        if step < steps:
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
    """All samples, the values of each poison's perturbation in random order: as large but blind."""
    perturbations = poisoned.samples.perturbations
    assert perturbations is not None
    draws = generator(seed, "shuffle")
    flat = perturbations.flatten(1)
    order = torch.rand(flat.shape, generator=draws).argsort(1).to(flat.device)
    return replace(poisoned.samples, perturbations=flat.gather(1, order).view_as(perturbations))


def _mean(
    kernel: Kernel, inputs: Tensor, bases: Samples, objective: Objective, parts: Sequence[slice]
) -> tuple[float, Tensor]:
    """The mean of the parts' objectives, and its derivative [P, *input]."""
    found = [kernel(inputs[part], bases[part], objective) for part in parts]
    if len(found) == 1:
        return found[0]
    slope = torch.cat([slope for _, slope in found]) / len(found)
    return sum(value for value, _ in found) / len(found), slope
