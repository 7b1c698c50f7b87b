"""The noise of a dosed row: one law a column, one draw a column, all of them together one draw a row."""

from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from marshtest.kit.layouts.base import Value
from marshtest.kit.noise import DoseNoise, Floats
from marshtest.kit.tables.laws import Law, Number


class TableNoise(DoseNoise):
    """The noise of rows; ε² is in squared units of each column's deviation."""

    columns: tuple[Law, ...] = Field(min_length=1)

    def written(self, value: Value, seed_id: int) -> Value:
        drawn = self._drawn("poison", seed_id, (1, len(self.columns)))
        written: Value = self._write(value, drawn)[0]
        return written

    def fresh(self, value: Value, seed_id: int, draws: int) -> Value:
        return self._write(value, self._drawn("fresh", seed_id, (draws, len(self.columns))))

    def moments(self, value: Value) -> tuple[Floats, Floats]:
        mean, variance = np.zeros(value.shape), np.zeros(value.shape)
        for law in self.columns:
            place = law.place
            mean[place], variance[place] = law.moments(float(value[place]), self.variance)
        return mean, variance

    def middle(self, value: Value, other: Value) -> Value:
        middle = value.copy()
        for number, law in enumerate(self.columns):
            x, y = float(value[law.place]), float(other[law.place])
            # Between two categories there is none: every other column has changed already.
            middle[law.place] = law.middle(x, y) if isinstance(law, Number) else (x, y)[number % 2]
        return middle

    def _reduced(self, share: float) -> Self:
        """The noise with less in each number, and none in categories, which cannot change a little."""
        numbers = tuple(law for law in self.columns if isinstance(law, Number))
        return super()._reduced(share).model_copy(update={"columns": numbers})

    def _write(self, value: Value, noise: NDArray[np.float32]) -> Value:
        written = np.repeat(value[None], len(noise), axis=0)
        for law, draws in zip(self.columns, noise.T, strict=True):
            written[:, law.place] = law.written(float(value[law.place]), draws, self.variance)
        return written
