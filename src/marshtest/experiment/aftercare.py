"""What brings a model into one of its states (marshtest.experiment.states): rounding, and training on."""

from collections.abc import Callable

import torch
from torch import nn

from marshtest.data.samples import Samples
from marshtest.experiment.states import bits_of, passes_of
from marshtest.models.rounding import rounded
from marshtest.models.state import copied
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.loop import Training
from marshtest.training.tasks import Train


def after_care(
    state: str,
    model: nn.Module,
    train: Train,
    held_out: Samples,
    seed: int,
    frame: Callable[[], nn.Module],
) -> nn.Module:
    """A copy of a model, brought into a state.

    Args:
        train: the recipe's own training.
        held_out: samples that hold neither poison nor forget set.
        seed: of the draws of training; the same for a model and its clean twin.
        frame: builds a model as the recipe does: what that has frozen stays frozen.

    Raises:
        MarshtestError: training on diverged.
    """
    if bits := bits_of(state):
        return rounded(model, bits)
    start = copied(model)
    # Whoever trains on does not know what the unlearner had frozen.
    trained = {name: p.requires_grad for name, p in frame().named_parameters()}
    for name, parameter in start.named_parameters():
        parameter.requires_grad_(trained.get(name, True))
    after = train(held_out, seed, start=start, epochs=passes_of(state))
    if not all(bool(torch.isfinite(p).all()) for p in after.parameters()):
        raise MarshtestError("training on diverged: NaN or infinite weights")
    return after


def share_spent(state: str, training: Training, trained: int, held_out: int) -> float:
    """What a state costs, as a share of the initial training: rounding next to nothing.

    Args:
        trained: number of samples of the initial training.
        held_out: number of samples of training on.
    """
    return (passes_of(state) or 0) * held_out / (training.epochs * trained)
