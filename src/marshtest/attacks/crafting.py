"""Descend an objective of the poisons' summed gradient over their shifts, within a box."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from marshtest.attacks.base import Tensors
from marshtest.attacks.kernel import Kernel, Objective
from marshtest.data import Samples
from marshtest.seeds import generator

DECAYS = (3 / 8, 5 / 8, 7 / 8)  # shares of the steps after which the rate falls to a tenth


@dataclass(frozen=True)
class Crafted:
    """Shifts, and how they were found.

    Attributes:
        shift: [P, *input] to be added to the bases in input space.
        history: the objective at each step.
        stopped: the objective turned NaN or infinite; `shift` is the best before.
    """

    shift: Tensor
    history: list[float]
    stopped: bool = False

    @property
    def objective(self) -> float:
        """As of the shifts that are returned."""
        return min(self.history, default=math.inf) if self.stopped else self.history[-1]

    def tensors(self) -> Tensors:
        """All of it, for a file."""
        history = torch.tensor(self.history, dtype=torch.float64)
        return {"shift": self.shift, "history": history, "stopped": torch.tensor(self.stopped)}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        """From what `tensors` gave."""
        stopped = bool(tensors["stopped"])
        return cls(tensors["shift"], tensors["history"].tolist(), stopped)

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
    signed: bool,
    seed: int,
    progress: Callable[[int, float], None],
) -> Crafted:
    """Adam on the shifts, projected onto the box: one step a full pass over the poisons.

    Args:
        kernel: of the model at which gradients are taken.
        bases: [P] the samples to be shifted.
        objective: of their summed gradient.
        start: [P, *input] the shifts to begin with.
        box: least and largest shift.
        steps: passes over the poisons; the last entry of the history is one pass more.
        lr: in units of the input space, falling to a tenth three times.
        signed: step by the sign of the derivative (Geiping et al. 2021).
        seed: of the augmentation, drawn anew for each step.
        progress: told the number of the step and the objective.
    """
    base = kernel.task.inputs(kernel.model, bases).detach()
    shift = start.clamp(*box).requires_grad_()
    optimizer = torch.optim.Adam([shift], lr, eps=1e-16)  # derivatives may be tiny
    best, draws = shift.detach().clone(), generator(seed, "view")
    history: list[float] = []
    for step in range(steps + 1):
        inputs = kernel.task.view(base + shift, draws)
        value, slope = kernel(inputs.detach(), bases, objective)
        if not math.isfinite(value) or not bool(torch.isfinite(slope).all()):
            return Crafted(best, history, stopped=True)
        if not history or value < min(history):
            best.copy_(shift.detach())
        history.append(value)
        progress(step, value)
        if step < steps:
            (shift.grad,) = torch.autograd.grad(inputs, shift, slope)
            if signed:
                shift.grad.sign_()
            _set_rate(optimizer, lr, step / steps)
            optimizer.step()
            with torch.no_grad():
                shift.clamp_(*box)
    return Crafted(shift.detach(), history)


def _set_rate(optimizer: torch.optim.Optimizer, lr: float, progress: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * 0.1 ** sum(progress >= share for share in DECAYS)
