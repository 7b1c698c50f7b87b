"""The columns of a table as numbers and back: what is asked are arrays, what a model gets are rows."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marshtest.kit.layouts.base import Value
from marshtest.plumbing.errors import MarshtestError

Floats = NDArray[np.float64]
EXACT = 2**53  # whole numbers below it are exact as 64-bit floating point


@dataclass(frozen=True)
class Feature:
    """A column but the label: its name and type, and what its numbers stand for."""

    name: str
    dtype: Any  # as pandas has it
    book: Any = (
        None  # what the codes 0, 1, … stand for, an Index; None where numbers are themselves
    )
    scale: int | None = None  # decimals of a column of decimals

    @classmethod
    def of(cls, name: str, series: "pd.Series[Any]", scale: int | None) -> tuple["Feature", Floats]:
        """A column, and its numbers [N]: codes where it holds none, −1 and NaN where a value is missing."""
        if scale is not None:
            decimals = [np.nan if cell is None else float(cell) for cell in series]
            return cls(name, series.dtype, scale=scale), np.array(decimals)
        if pd.api.types.is_numeric_dtype(series.dtype) and series.dtype.kind in "iuf":
            numbers: Floats = series.to_numpy(np.float64, na_value=np.nan)
            if not (np.abs(numbers) >= EXACT).any() or series.dtype.kind == "f":
                return cls(name, series.dtype), numbers
        try:
            codes, book = pd.factorize(series)
        except TypeError:  # lists and the like: each row's is its own
            codes, book = np.arange(len(series)), pd.Index(series, dtype=object)
        return cls(name, series.dtype, book), codes.astype(np.float64)

    def column(self, numbers: Floats) -> "pd.Series[Any]":
        """[M] the column that numbers stand for."""
        if self.scale is not None:
            spelt = [None if np.isnan(x) else Decimal(f"{x:.{self.scale}f}") for x in numbers]
            return pd.Series(spelt, dtype=object, name=self.name)
        if self.book is None:
            return pd.Series(numbers, name=self.name).astype(self.dtype)
        codes = numbers.astype(np.int64)
        missing = bool((codes < 0).any())
        cells = self.book.array.take(codes, allow_fill=missing)
        return cast("pd.Series[Any]", pd.Series(cells, name=self.name, dtype=self.dtype))


@dataclass(frozen=True)
class Schema:
    """The columns of a table, and its classes: all that a model's own process learns."""

    features: tuple[Feature, ...]
    classes: tuple[Any, ...]  # values of the label, in order

    def frame(self, values: Value) -> pd.DataFrame:
        """The rows [M, C] as pandas reads them from the file."""
        columns = [feature.column(values[:, place]) for place, feature in enumerate(self.features)]
        return pd.concat(columns, axis=1)

    def refuse_texts(self, spec: str) -> None:
        """Raise if a column holds no numbers: a function of tensors cannot be asked then."""
        for feature in self.features:
            if feature.book is not None:
                raise MarshtestError(
                    f"{spec}: gets numbers alone, and column {feature.name!r} holds none. Give an object "
                    "with predict_proba, which gets a pandas DataFrame, or a command."
                )
