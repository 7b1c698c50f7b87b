"""The noise that a dose puts into a file, as the file can hold it.

    written(x, ξ) = clip(round(x + σ ξ), 0, 255)   for 8-bit pixels, σ = ε · std · 255
                  = x + σ ξ                         for floating-point values, σ = ε · std

What reaches the training set is the *written* noise δ = written(x, ξ) − x. Rounding changes δ little.
Clipping takes much of it where pixels are black or white, and there the mean of δ is no longer zero. But δ
is still a function of x and ξ alone, with mean µ(x) and variance v(x) known in closed form for each value,
so both scores stay exact: fresh noise is written in the same way, and GUS is standardised by µ and v.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import ndtr

from marshtest.kit.layouts.base import Value
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, normal
from marshtest.plumbing.settings import Settings

Floats = NDArray[np.float64]

LEVELS = 256  # values of an 8-bit pixel
SEEDS = 2**64  # seeds lie in 0 … SEEDS − 1


class Scaling(Settings):
    """How values of a file become model inputs: (x / 255 − mean) / std, without the 255 for floats.

    A single number holds for all channels.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)

    @model_validator(mode="after")
    def _of_one_length(self) -> "Scaling":
        if len(self.mean) != len(self.std) or not self.mean:
            raise MarshtestError(
                f"scaling: needs as many deviations as means, and at least one. Got {len(self.mean)} means "
                f"and {len(self.std)} deviations."
            )
        return self

    @classmethod
    def of(cls, text: str, where: str) -> "Scaling":
        """Read "unit" (pixels in 0..1), "pixels" (0..255) or "MEAN,…/STD,…".

        Raises:
            MarshtestError: the text is none of these, or has unequal numbers of means and deviations.
        """
        if text == "unit":
            return cls()
        if text == "pixels":
            return cls(std=(1 / 255,))
        try:
            means, stds = ([float(part) for part in side.split(",")] for side in text.split("/"))
        except ValueError:
            means, stds = [], []
        sound = 0 < len(means) == len(stds) and all(np.isfinite(means + stds)) and min(stds) > 0
        if not sound:
            raise MarshtestError(
                f"{where}: must be unit, pixels, or MEAN,…/STD,… with one positive STD for each MEAN, "
                f"such as 0.49,0.48,0.45/0.25,0.24,0.26. Got {text!r}."
            )
        return cls(mean=tuple(means), std=tuple(stds))

    @classmethod
    def measured(cls, images: Iterable[Value]) -> "Scaling":
        """The scaling by mean and deviation of 8-bit images, channel by channel."""
        count, total, squares = 0, np.zeros(1), np.zeros(1)
        for image in images:
            pixels = _by_channel(image) / 255  # [C, H · W]
            count += pixels.shape[1]
            total = total + pixels.sum(1)
            squares = squares + (pixels**2).sum(1)
        mean = total / count
        # Blank images have no deviation, and rounding may even make their variance negative.
        std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
        return cls(mean=tuple(mean.round(6).tolist()), std=tuple(std.round(6).tolist()))

    def along(self, values: Sequence[float], shape: tuple[int, ...]) -> Floats:
        """One number a channel, shaped to broadcast against a sample of this shape.

        Raises:
            MarshtestError: the sample has no axis of that many channels.
        """
        count = len(values)
        if count == 1:
            return np.full((1,) * len(shape), values[0])
        # Channels stand first or last; a sample without axes has neither.
        axis = next((a for a in (0, len(shape) - 1) if shape[a : a + 1] == (count,)), None)
        if axis is None:
            raise MarshtestError(
                f"scaling: {count} channels do not fit samples of shape {list(shape)}. "
                "Give one number for all channels, or one for each."
            )
        return np.array(values).reshape([count if i == axis else 1 for i in range(len(shape))])


def _by_channel(image: Value) -> Floats:
    """[C, H · W] of an image; C is 3 if its first or last axis has length 3, else 1."""
    image = image.astype(np.float64)
    if image.ndim == 3 and image.shape[0] == 3:
        return image.reshape(3, -1)
    if image.ndim == 3 and image.shape[-1] == 3:
        return image.reshape(-1, 3).T
    return image.reshape(1, -1)


class DoseNoise(Settings, ABC):
    """The noise of a dose in data of any kind: a function of (seed, id), in the units of the file."""

    seed: int = Field(ge=0, lt=SEEDS, strict=True)
    variance: float = Field(gt=0, strict=True)  # ε², in squared units of the values' deviation

    @abstractmethod
    def written(self, value: Value, seed_id: int) -> Value:
        """The sample as the dose writes it."""

    @abstractmethod
    def fresh(self, value: Value, seed_id: int, draws: int) -> Value:
        """[K, *shape] the sample with K = `draws` noises that nobody has seen, written in the same way."""

    @abstractmethod
    def moments(self, value: Value) -> tuple[Floats, Floats]:
        """Exact mean µ and variance v of the written noise, for each value of a sample."""

    @abstractmethod
    def middle(self, value: Value, other: Value) -> Value:
        """The sample halfway between two, as a file can hold it."""

    def near(self, value: Value, seed_id: int, share: float) -> Value:
        """The sample with a small share of a noise of its own, which no other sample of it has."""
        near: Value = self._reduced(share).fresh(value, seed_id, 1)[0]
        return near

    def _reduced(self, share: float) -> Self:
        small = {"seed": derive(self.seed, "near"), "variance": share**2 * self.variance}
        return self.model_copy(update=small)

    def _drawn(self, stream: str, seed_id: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return normal(self.seed, stream, seed_id, shape=shape)


class Noise(DoseNoise):
    """The noise of images and arrays; ε² is in squared units of the scaling's std."""

    scaling: Scaling
    pixels: bool  # 8-bit values: rounded and clipped

    def deviation(self, shape: tuple[int, ...]) -> Floats:
        """σ of each value of a sample of this shape, in the units of the file; shaped to broadcast."""
        return _deviation(self.scaling, self._unit_deviation, shape)

    def written(self, value: Value, seed_id: int) -> Value:
        return self._write(value, self._drawn("poison", seed_id, value.shape))

    def fresh(self, value: Value, seed_id: int, draws: int) -> Value:
        return self._write(value, self._drawn("fresh", seed_id, (draws, *value.shape)))

    def moments(self, value: Value) -> tuple[Floats, Floats]:
        sigma = self.deviation(value.shape)
        if not self.pixels:
            return np.zeros(value.shape), np.broadcast_to(sigma**2, value.shape)
        channel, means, variances = _tables(self.scaling, self._unit_deviation, value.shape)
        return means[channel, value], variances[channel, value]

    def power(self, value: Value) -> float:
        """The written noise's variance in a sample, as a fraction of that before rounding and clipping."""
        if not self.pixels:
            return 1.0
        channel, _, variances = _tables(self.scaling, self._unit_deviation, value.shape)
        return float((variances[channel, value] / self.deviation(value.shape) ** 2).mean())

    def rounding(self, value: Value) -> float:
        """The variance of rounding to the values' type, as a fraction of the noise's; 0 of pixels.

        GUS takes the noise for normal, with its own variance.
        """
        if self.pixels:
            return 0.0
        steps = np.spacing(np.abs(value)).astype(np.float64)
        return float((steps**2 / 12 / self.deviation(value.shape) ** 2).mean())

    @property
    def _unit_deviation(self) -> float:
        """σ in the units of the file, for a channel whose std is 1."""
        return float((255 if self.pixels else 1) * self.variance**0.5)

    def middle(self, value: Value, other: Value) -> Value:
        middle = (value.astype(np.float64) + other) / 2
        return (np.rint(middle) if self.pixels else middle).astype(value.dtype)

    def _write(self, value: Value, noise: NDArray[np.float32]) -> Value:
        deviation = self.deviation(value.shape)
        if not self.pixels:
            with np.errstate(over="ignore"):  # the dose refuses infinities
                return (value + deviation * noise).astype(value.dtype)
        # In place, since there may be hundreds of draws; and in float32, as it was dosed: another
        # precision would round a few values to another level, and the digests would not fit.
        noise *= deviation.astype(np.float32)
        noise += value
        np.rint(noise, out=noise)
        np.clip(noise, 0, LEVELS - 1, out=noise)
        return noise.astype(np.uint8)


@cache
def _deviation(scaling: Scaling, unit_deviation: float, shape: tuple[int, ...]) -> Floats:
    deviations = [unit_deviation * std for std in scaling.std]
    if not max(deviations) < float(np.finfo(np.float32).max):  # nan too
        raise MarshtestError(
            f"noise: a deviation of {max(deviations):g} in the file is beyond all values. "
            "Give a smaller variance, or a scaling with smaller deviations."
        )
    return scaling.along(deviations, shape)


@cache
def _tables(
    scaling: Scaling, unit_deviation: float, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Tables of means and variances [deviations, 256], and which row each value needs, to broadcast."""
    sigma = _deviation(scaling, unit_deviation, shape)
    deviations, row = np.unique(sigma, return_inverse=True)
    means, variances = zip(*map(clipped_moments, deviations.tolist()), strict=True)
    return row.reshape(sigma.shape), np.stack(means), np.stack(variances)


def clipped_moments(sigma: float) -> tuple[Floats, Floats]:
    """[256] mean and variance of clip(round(p + N(0, σ²)), 0, 255) − p, for each level p.

    Exact and no approximation: the written level is one of 256, so both are finite sums. A moment that was
    only nearly right would shift all scores the same way, and a thousand poisons would show dependence.
    """
    levels = np.arange(LEVELS)
    upper = np.append(levels[:-1] + 0.5, np.inf)  # all beyond 254.5 is written as 255
    lower = np.append(-np.inf, levels[1:] - 0.5)  # all below 0.5 is written as 0
    p = levels[:, None]
    # [p, written level]. In the upper tail both values are near 1 and their difference loses
    # digits, 1e-16 at most, which no sum over 256 levels of at most 255² makes count.
    chance = ndtr((upper - p) / sigma) - ndtr((lower - p) / sigma)
    mean = (chance * (levels - p)).sum(1)
    variance = (chance * (levels - p) ** 2).sum(1) - mean**2
    return mean, np.maximum(variance, 0.0)  # tiny σ: rounding may leave less than 0
