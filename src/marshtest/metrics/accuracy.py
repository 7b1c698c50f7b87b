"""Accuracy, and the margin loss that the scores rest on."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.device import in_parts
from marshtest.training.tasks import Task


@torch.no_grad()
def logits_of(model: nn.Module, task: Task, samples: Samples) -> Iterator[tuple[Samples, Tensor]]:
    """Give the samples in batches, each with its logits [B, C], in float32 and eval mode."""
    model.eval()
    exact = task.exact()

    def answered(rows: slice) -> tuple[Samples, Tensor]:
        batch = samples[rows]
        return batch, exact.label_logits(exact(model, batch), batch)

    yield from in_parts(answered, len(samples), task.scoring_batch(samples))


def likeliest(logits: Tensor) -> Tensor:
    """[B] the class with the largest of the logits [B, C]; −1, no class, where one of them is no number."""
    return logits.argmax(1).masked_fill(logits.isnan().any(1), -1)


def accuracy(model: nn.Module, task: Task, samples: Samples) -> float:
    """Fraction of the samples whose label has the largest logit; nan if there are no samples."""
    if len(samples) == 0:
        return float("nan")
    answers = logits_of(model, task, samples)
    right = sum(int((likeliest(logits) == batch.y).sum()) for batch, logits in answers)
    return right / len(samples)


def probabilities(model: nn.Module, task: Task, samples: Samples) -> Tensor:
    """[N, C] probabilities of the labels: the softmax of the logits."""
    return torch.cat([logits.softmax(1) for _, logits in logits_of(model, task, samples)])


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """[B] log Σ exp of the other logits less the label's, in float64; large if the model is wrong.

    Cross-entropy is the softplus of this margin, so both have input gradients of one direction and rank
    samples alike. Unlike cross-entropy, the margin does not saturate when the label's probability rounds
    to 1.
    """
    # Rounded to float32, differences of large logits could tie, and chance would decide their ranks.
    logits = logits.double()
    label = y[:, None]
    others = logits.scatter(1, label, -torch.inf).logsumexp(1)
    return others - logits.gather(1, label).squeeze(1)
