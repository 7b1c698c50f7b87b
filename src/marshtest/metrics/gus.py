"""The Gaussian Unlearning Score (paper §4.3, Algorithms 3 and 4).

    g_z = ∇ₓℓ(θ; x_base, y)                 at the clean base, BatchNorm in eval mode, float32
    I_z = ⟨g_z, ξ_z⟩ / (ε ‖g_z‖₂)           N(0, 1) if θ does not depend on ξ_z
    GUS = mean of I_z                        its standard error is then 1/√P

A model that has memorised x_base + ξ has lower loss there, so its I_z are *negative*.
"""

import torch
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.metrics.accuracy import margin_loss
from marshtest.plumbing.device import in_parts
from marshtest.training.tasks import Task


def input_directions(model: nn.Module, task: Task, base: Samples) -> Tensor:
    """[P, d] unit vectors g_z / ‖g_z‖ in input space, flattened to d.

    A row is nan if its gradient vanishes or is not finite.
    """
    # The margin stands in for cross-entropy: CE = softplus(margin), so the gradients have exactly one
    # direction, and the margin's does not underflow where the model is sure.
    model.eval()  # or a sample's gradient would depend on its batch
    exact = task.exact()

    def of(rows: slice) -> Tensor:
        batch = base[rows]
        inputs = exact.inputs(model, batch).detach().requires_grad_()
        logits = exact.label_logits(exact.outputs(model, inputs, batch), batch)
        (gradient,) = torch.autograd.grad(margin_loss(logits, batch.y).sum(), inputs)
        return _unit(gradient.flatten(1).float())

    return torch.cat([*in_parts(of, len(base), task.scoring_batch(base))])


def _unit(gradient: Tensor) -> Tensor:
    """[P, d] g / ‖g‖; nan if g is zero, infinite or undefined."""
    # Squares of small or large numbers vanish or overflow. A division by a power of two is exact, so the
    # norm is taken of g / 2ᵏ, whose largest number is about one.
    size = gradient.abs().amax(1, keepdim=True)
    power = torch.frexp(size).exponent.clamp(-120, 120)
    gradient = torch.ldexp(gradient, -power)
    unit = gradient / gradient.norm(dim=1, keepdim=True)  # 0 / 0 is nan
    return torch.where(size.isfinite(), unit, torch.nan)


def gaussian_scores(directions: Tensor, noise: Tensor, deviation: float) -> Tensor:
    """[P, ...] the scores I_z for noise [P, ..., d] with standard deviation ε = `deviation`."""
    return torch.einsum("pd,p...d->p...", directions, noise) / deviation
