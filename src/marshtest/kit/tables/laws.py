"""The law of a dosed column: how its noise is drawn and written, with its exact moments.

    number      w(x, ξ) = clip(round(x + σ ξ), low, high)    σ = ε · the column's deviation; to whole steps
    category    w(x, ξ) = the category at Φ(ξ) of the cumulated shares, whatever x is

A number is rounded to as many decimals as column and cell have, and stays within the column's range. Both
are functions of x and ξ alone, so fresh noise is written in the same way, and mean and variance are known.
"""

import math
from decimal import Decimal
from functools import cache, lru_cache
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import ndtr

from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings

Floats = NDArray[np.float64]

EXACT = 2.0**43  # steps of a cell's last decimal that are counted without error
SUMMED = 4096.0  # largest σ, in steps, whose moments are finite sums
ROUNDING = 0.01  # steps by which a product of less than EXACT steps may be off
BEYOND = 9.0  # deviations that no noise exceeds: the chance is below 1e-18
MOST_DECIMALS = 300  # more would overflow
FULL = 16  # significant digits from which on a number is written in full
HELD: dict[int, Any] = {16: np.float16, 32: np.float32, 64: np.float64}  # types by their bits


class Number(Settings):
    """A column of numbers, which gets Gaussian noise."""

    kind: Literal["number"] = "number"
    name: str
    place: int = Field(ge=0)  # of the column among all columns but the label
    deviation: float = Field(gt=0)  # of the column, in its own units
    low: float  # the column's range, which no noise leaves
    high: float
    decimals: int = Field(0, ge=0)  # of the column's numbers; a cell that has more keeps them
    step: int = Field(1, ge=1)  # of the last of these decimals, of which all numbers are multiples
    digits: int = Field(17, ge=1)  # significant digits that none of the numbers exceeds
    bits: Literal[16, 32, 64] = 64  # of the numbers in the file

    def written(self, x: float, noise: NDArray[Any], variance: float) -> Floats:
        """The cell x with each of some standard normal draws, as the file can hold it."""
        sigma, scale = self._sigma(variance), self._scale(x)
        noise = noise.astype(np.float64)
        if scale is None:
            return self._held(self._short(np.clip(x + sigma * noise, self.low, self.high), scale))
        steps = np.rint(np.rint(x * scale) / self.step + sigma * scale / self.step * noise)
        numbers = np.clip(steps, *self._range(scale)) * self.step / scale
        return self._held(self._short(numbers, scale) + 0.0)  # −0 would be written

    def moments(self, x: float, variance: float) -> tuple[float, float]:
        """Mean and variance of what is written in the place of x, less x."""
        sigma, scale = self._sigma(variance), self._scale(x)
        if scale is None:
            return _clipped(sigma, x - self.low, self.high - x)
        low, high = self._range(scale)
        steps, unit = np.rint(x * scale) / self.step, scale / self.step
        mean, square = rounded_moments(sigma * unit, int(steps - low), int(high - steps))
        return mean / unit, square / unit**2

    def middle(self, x: float, other: float) -> float:
        """The number halfway between two, as the file can hold it."""
        scale = self._scale(x)
        middle = (x + other) / 2
        if scale is None:
            return float(self._held(middle))
        return float(self._held(np.rint(middle * scale / self.step) * self.step / scale + 0.0))

    def _sigma(self, variance: float) -> float:
        return float(np.sqrt(variance)) * self.deviation

    def _scale(self, x: float) -> float | None:
        """Steps of the cell's last decimal in 1; None where there are too many to be counted."""
        scale = 10.0 ** min(MOST_DECIMALS, max(self.decimals, decimals(x, self.bits)))
        return scale if max(-self.low, self.high) * scale < EXACT else None

    def _range(self, scale: float) -> tuple[float, float]:
        """The least and the largest number of steps within the column's range."""
        low, high = self.low * scale / self.step, self.high * scale / self.step
        return _nearest(low, math.ceil(low)), _nearest(high, math.floor(high))

    def _short(self, numbers: Floats, scale: float | None) -> Floats:
        """The numbers with no more significant digits than the column has, as %g and R write them."""
        largest = max(-self.low, self.high)
        if self.digits >= FULL or (scale is not None and largest * scale < 10.0**self.digits):
            return numbers
        short = [float(f"{number:.{self.digits - 1}e}") for number in numbers.tolist()]
        return np.clip(short, self.low, self.high)

    def _held(self, values: Any) -> Floats:
        held = np.asarray(values, HELD[self.bits])
        return held.astype(np.float64)


class Category(Settings):
    """A column of categories, of which one is drawn by their shares."""

    kind: Literal["category"] = "category"
    name: str
    place: int = Field(ge=0)  # of the column among all columns but the label
    values: tuple[float, ...] = Field(min_length=2)  # of each category, its number or code
    counts: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=2)  # rows of each category

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if len(self.values) != len(self.counts):
            raise MarshtestError(f"column {self.name!r}: needs a count of rows for each category.")
        return self

    def written(self, x: float, noise: NDArray[Any], variance: float) -> Floats:
        """The category that each of some standard normal draws stands for."""
        cumulated = np.cumsum(self.counts) / sum(self.counts)
        place = np.searchsorted(cumulated[:-1], ndtr(noise.astype(np.float64)), side="right")
        return np.array(self.values)[place]

    def moments(self, x: float, variance: float) -> tuple[float, float]:
        """Mean and variance of the category's number, less x."""
        values, shares = np.array(self.values), np.array(self.counts) / sum(self.counts)
        mean = float(shares @ values)
        return mean - x, float(shares @ (values - mean) ** 2)


Law = Annotated[Number | Category, Field(discriminator="kind")]


@lru_cache(1 << 18)
def decimals(x: float, bits: int = 64) -> int:
    """The decimals that a number is written with at least."""
    shortest = Decimal(str(HELD[bits](x)))
    exponent = shortest.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


@lru_cache(1 << 18)
def significant(x: float) -> int:
    """The significant digits that a number is written with at least."""
    return len(Decimal(repr(x)).normalize().as_tuple().digits)


def _nearest(steps: float, inside: float) -> float:
    """The nearest whole number of steps, which a rounding error may have missed; or else the one inside."""
    nearest = round(steps)
    return float(nearest if abs(nearest - steps) < ROUNDING else inside)


def rounded_moments(sigma: float, below: int, above: int) -> tuple[float, float]:
    """Mean and variance of clip(round(N(0, σ²)), −below, above), all in whole steps.

    Finite sums, exact, up to σ = 4,096; beyond, where rounding to a step changes neither by a part in 10⁶,
    the closed form without it.
    """
    if sigma > SUMMED:
        return _clipped(sigma, below, above)
    (up, up2), (down, down2) = (_one_side(sigma, room) for room in (above, below))
    return up - down, max(0.0, up2 + down2 - (up - down) ** 2)


def _one_side(sigma: float, room: int) -> tuple[float, float]:
    """Σ P(D ≥ j) and Σ (2j − 1) P(D ≥ j) over j = 1 … room: the first two moments of a side of D."""
    first, second = _sums(sigma)
    last = min(room, len(first) - 1)
    return float(first[last]), float(second[last])


@cache
def _sums(sigma: float) -> tuple[Floats, Floats]:
    j = np.arange(1, int(BEYOND * sigma) + 3)
    chance = ndtr(-(j - 0.5) / sigma)
    return (
        np.concatenate([[0.0], np.cumsum(chance)]),
        np.concatenate([[0.0], np.cumsum((2 * j - 1) * chance)]),
    )


def _clipped(sigma: float, below: float, above: float) -> tuple[float, float]:
    """Mean and variance of clip(N(0, σ²), −below, above)."""
    a, b = -below / sigma, above / sigma
    low, high = ndtr(a), ndtr(-b)
    # φ at the ends: the integrals of ξ and of ξ² between them.
    at_a, at_b = (np.exp(-(end**2) / 2) / np.sqrt(2 * np.pi) for end in (a, b))
    mean = a * low + b * high + at_a - at_b
    square = a**2 * low + b**2 * high + (1 - low - high) + a * at_a - b * at_b
    return float(sigma * mean), float(max(0.0, sigma**2 * (square - mean**2)))
