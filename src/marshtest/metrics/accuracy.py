"""Accuracy, and the margin loss that the scores rest on."""

import torch
from torch import Tensor, nn

from marshtest.data import Samples
from marshtest.tasks import Task


def scoring_batch(device: torch.device) -> int:
    """Inputs of one scoring forward: a processor's caches are small, a GPU is wide."""
    return 2048 if device.type == "cuda" else 128


@torch.no_grad()
def accuracy(model: nn.Module, task: Task, samples: Samples) -> float:
    """Share of samples whose label has the largest logit (float32, eval mode); nan of none."""
    if len(samples) == 0:
        return float("nan")
    model.eval()
    exact = task.exact()
    right = 0
    size = scoring_batch(samples.y.device)
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        logits = exact.label_logits(exact(model, batch), batch)
        right += int((logits.argmax(1) == batch.y).sum())
    return right / len(samples)


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """[B] log Σ exp of the other logits, minus the label's: float64, large where the model is wrong.

    Cross-entropy is softplus of it, so both have input gradients of one direction and rank samples
    alike, but the margin does not saturate when the label's probability rounds to 1.
    """
    logits = logits.double()
    label = y[:, None]
    others = logits.scatter(1, label, -torch.inf).logsumexp(1)
    return others - logits.gather(1, label).squeeze(1)
