"""Samples by their features: what the last layer of a network sees that was trained on other samples.

A linear classifier on them is a convex problem, where an attack's theory holds and training has one end.
"""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor, nn

from marshtest.data import Dataset, Samples
from marshtest.errors import MarshtestError
from marshtest.metrics.accuracy import scoring_batch
from marshtest.models import ModelSettings, build, parse_model, weight_layers
from marshtest.seeds import derive
from marshtest.settings import Settings
from marshtest.tasks import Classification
from marshtest.training import Progress, Training, chosen_precision, fit


class FeatureSettings(Settings):
    """The network whose features are taken, and what it is trained on."""

    model: Annotated[SerializeAsAny[ModelSettings], BeforeValidator(parse_model)]
    training: Training
    train: int = Field(ge=2)  # rows of the training split, after those of the experiment


def apart(data: Dataset, rows: int) -> tuple[Dataset, Samples]:
    """The data without the last rows of its training split, and those rows for the network.

    Raises:
        MarshtestError: too few rows.
    """
    if rows >= len(data.train):
        raise MarshtestError(
            f"data.features.train: asks for {rows} rows beside the experiment's own; the training "
            f"split has {len(data.train)} in all. Lower it, or data.train."
        )
    return replace(data, train=data.train[:-rows]), data.train[-rows:]


def featured(
    data: Dataset,
    others: Samples,
    settings: FeatureSettings,
    device: torch.device,
    progress: Progress | None = None,
) -> Dataset:
    """The data with each sample's features [F] in the place of its pixels.

    The network is trained on `others`, by a seed of its own. Features are standardised by the mean
    and deviation that they have there.
    """
    seed = derive(0, "features")
    shape = tuple(data.train.x.shape[1:])
    model = build(settings.model, shape, data.classes, seed).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = Classification(
        precision=chosen_precision(settings.training, model, device),
        mean=data.mean,
        std=data.std,
        augment=settings.training.augment,
    )
    others = others.to(device)
    fit(model, others, task, settings.training, seed, progress)
    known = _before_last(model, task, others)
    centre, spread = known.mean(0), known.std(0).clamp(min=1e-6)

    def by_features(samples: Samples) -> Samples:
        features = (_before_last(model, task, samples.to(device)) - centre) / spread
        return replace(samples, x=features.cpu())

    return replace(
        data,
        name=f"{data.name} by {settings.model.name}",
        train=by_features(data.train),
        test=by_features(data.test),
        mean=None,
        std=None,
    )


@torch.no_grad()
def _before_last(model: nn.Module, task: Classification, samples: Samples) -> Tensor:
    """[N, F] what the model's last weight layer is given."""
    seen: list[Tensor] = []
    last = weight_layers(model.eval())[-1][0]
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
    exact, size = task.exact(), scoring_batch(samples.y.device)
    for start in range(0, len(samples), size):
        exact(model, samples[start : start + size])
    hook.remove()
    return torch.cat(seen)
