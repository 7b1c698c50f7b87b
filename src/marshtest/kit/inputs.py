"""Model inputs from values of a file: scaled, and laid out as a picture for models that want one."""

import torch
from torch import Tensor

from marshtest.kit.model import Inputs, Way
from marshtest.kit.noise import Scaling
from marshtest.plumbing.errors import MarshtestError


def scaled(scaling: Scaling, pixels: bool, shape: tuple[int, ...]) -> Inputs:
    """The map from values of the file, of samples of this shape, to model inputs (new tensors)."""
    mean = torch.from_numpy(scaling.along(scaling.mean, shape)).float()
    std = torch.from_numpy(scaling.along(scaling.std, shape)).float()

    def inputs(x: Tensor) -> Tensor:
        return ((x / 255 if pixels else x) - mean.to(x.device)) / std.to(x.device)

    return inputs


def scaled_ways(scaling: Scaling, pixels: bool, shape: tuple[int, ...]) -> list[Way]:
    """The ways to give samples to a model: as they lie in the file, channels first, grey as RGB.

    Raises:
        MarshtestError: in none of these ways do samples have the scaling's number of channels.
    """
    targets, (channels, *size) = [shape], picture_shape(shape) if pixels else (0,)
    if channels:
        targets += [(channels, *size), (3, *size)]
    ways, refusals = [], []
    for target in dict.fromkeys(targets):  # each once, in this order
        try:
            ways.append(_way(scaled(scaling, pixels, target), shape, target))
        except MarshtestError as error:
            refusals.append(error)
    if not ways:
        raise refusals[0]
    return ways


def _way(inputs: Inputs, shape: tuple[int, ...], target: tuple[int, ...]) -> Way:
    """The way to give samples of one shape as inputs of another, with a note if they differ."""
    if target == shape:
        return inputs, ()

    def as_pictures(x: Tensor) -> Tensor:
        # Contiguous: expanded channels are one and the same memory, which not every model can view.
        return inputs(channels_first(x).expand(-1, *target).contiguous())

    repeated = ", of three equal channels" if picture_shape(shape)[0] < target[0] else ""
    return as_pictures, (f"samples {list(shape)} are given as {list(target)}{repeated}",)


def picture_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) of a picture of 1 or 3 channels as it lies in a file; (0,) of anything else."""
    if len(shape) == 2:
        return (1, *shape)
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape
    if len(shape) == 3 and shape[-1] in (1, 3):
        return (shape[-1], *shape[:-1])
    return (0,)


def channels_first(x: Tensor) -> Tensor:
    """[B, C, H, W] of pictures as they lie in a file."""
    if x.dim() == 3:
        return x[:, None]
    return x if x.shape[1] in (1, 3) else x.movedim(-1, 1)
