"""Samples by their features: what the last layer of a trained network sees.

A linear classifier on them is a convex problem, where an attack's theory holds and training has one end.
"""

from dataclasses import replace
from typing import Annotated, Self

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.data.samples import Dataset, Samples
from marshtest.metrics.accuracy import logits_of
from marshtest.models.answers import overruns
from marshtest.models.base import ModelSettings
from marshtest.models.layers import weight_layers
from marshtest.models.networks import ResNet
from marshtest.models.table import OWN, build, parse_model
from marshtest.plumbing.device import exact_float32
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import derive
from marshtest.plumbing.settings import Settings
from marshtest.training.aside import Aside
from marshtest.training.loop import Training, chosen_precision, fit
from marshtest.training.tasks import Classification


class FeatureSettings(Settings):
    """The network whose features are taken, and what it is trained on."""

    model: Annotated[SerializeAsAny[ModelSettings], BeforeValidator(parse_model)]
    training: Training
    # Rows after the experiment's own that it is trained on; by default those very rows.
    train: int | None = Field(None, ge=2)
    # Take the last feature map, averaged to this size, and not the pooled features.
    grid: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if self.training.shards > 1:
            raise ValueError("training.shards: features are those of one network. Leave it out.")
        return self


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


def network(
    data: Dataset, settings: FeatureSettings, device: torch.device
) -> tuple[nn.Module, Classification]:
    """The network as initialised, and its task."""
    shape = tuple(data.train.x.shape[1:])
    model = build(settings.model, shape, data.classes, derive(0, "features"))
    channels_last = not overruns(model, shape)
    precision = chosen_precision(settings.training, model, device, shape)
    model = model.to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = Classification(
        precision=precision,
        mean=data.mean,
        std=data.std,
        augment=settings.training.augment,
        channels_last=channels_last,
    )
    return model, task


@exact_float32()
def featured(
    data: Dataset,
    others: Samples,
    settings: FeatureSettings,
    device: torch.device,
    progress: Progress = silent,
    aside: Aside | None = None,
) -> Dataset:
    """The data by the features of a network trained on `others`, by a seed of its own."""
    # Seed 0 whatever the experiment's: features are its data, and the same for all its seeds.
    model, task = network(data, settings, device)
    training, seed = settings.training, derive(0, "features")
    aside = aside if isinstance(settings.model, OWN) else None
    fit(model, others.to(device), task, training, seed, progress, aside=aside)
    return by_features(data, others, model, task, settings.grid)


@exact_float32()
def by_features(
    data: Dataset,
    others: Samples,
    model: nn.Module,
    task: Classification,
    grid: tuple[int, int] | None = None,
) -> Dataset:
    """The data with features [F] in the place of pixels: what the model's last layer is given.

    Features are standardised by the mean and deviation that they have on `others`.

    Args:
        grid: take the last feature map [C, H, W] instead, averaged to this height and width.

    Raises:
        MarshtestError: the model has no feature map.
    """
    known = _seen(model, task, others, grid)
    # A unit that is silent for all samples has no spread to divide by.
    centre, spread = known.mean(0), known.std(0).clamp(min=1e-6)

    def standardised(samples: Samples) -> Samples:
        features = known if samples is others else _seen(model, task, samples, grid)
        return replace(samples, x=(features - centre) / spread)

    train, test = standardised(data.train), standardised(data.test)
    # Mean and deviation were those of pixels; features are standardised already.
    name = f"{data.name} by features"
    return replace(data, name=name, train=train, test=test, mean=None, std=None)


def _seen(
    model: nn.Module, task: Classification, samples: Samples, grid: tuple[int, int] | None
) -> Tensor:
    """[N, F] features as they are."""
    samples = samples.to(next(model.parameters()).device)
    seen: list[Tensor] = []
    if grid is None:
        last = weight_layers(model)[-1][0]
        hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
    else:
        if not isinstance(model, ResNet):
            raise MarshtestError(
                "data.features.grid: only resnet18 has a feature map. Leave grid out, or use resnet18."
            )
        hook = model.blocks.register_forward_hook(
            lambda _, given, found: seen.append(F.adaptive_avg_pool2d(found, grid).flatten(1))
        )
    for _ in logits_of(model, task, samples):  # for what the hook sees on the way
        pass
    hook.remove()
    return torch.cat(seen).cpu()
