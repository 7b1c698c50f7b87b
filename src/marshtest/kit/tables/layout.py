"""A table as a data set: a row is a sample, its value the numbers of all columns but the label."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from marshtest.kit.layouts.base import Dosed, Ids, Layout, Place, Value
from marshtest.kit.tables.schema import Feature, Schema
from marshtest.kit.tables.sources import open_source
from marshtest.plumbing.errors import MarshtestError, unknown

FEW = 10  # labels or categories that any table may have
ROWS_EACH = 10  # rows that each label or category has on average, where there are more


class Table(Layout):
    """A CSV, TSV or Parquet file with a column of class labels."""

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label, self.pixels, self.encoded = path, label, False, False
        self.source = open_source(path)
        frame = self.source.frame
        self.samples = len(frame)
        if not self.samples:
            raise MarshtestError(f"{path}: holds no rows.")
        self.refuse_unknown([label], "--label")
        classes, self.labels = self._classes(frame[label])
        self.classes = len(classes)
        names = [str(name) for name in frame.columns if name != label]
        if not names:
            raise MarshtestError(f"{path}: has no column but the label {label!r}.")
        features, numbers = zip(
            *(Feature.of(name, frame[name], self.source.scale(name)) for name in names), strict=True
        )
        self.schema = Schema(features, classes)
        self.column_names, self.values = names, np.stack(numbers, axis=1)  # [N, C]

    def refuse_unknown(self, names: list[str], option: str) -> None:
        """Raise if the table has no such column."""
        for name in names:
            if name not in self.source.frame.columns:
                known = map(str, self.source.frame.columns)
                raise MarshtestError(f"{self.path}: {option}: {unknown('column', name, known)}")

    def where(self, i: int) -> str:
        return self.source.where(i)

    def _each(self, ids: Ids) -> Iterator[tuple[int, Value, int]]:
        for i in ids.tolist():
            yield i, self.values[i].copy(), int(self.labels[i])

    def _write(self, out: Path, dosed: Dosed, ids: Ids, hide: bool) -> list[Place]:
        columns: dict[str, dict[int, Any]] = {}
        for i, value, _ in self._each(ids):
            new = dosed(i, value)
            # A missing value is equal to itself here: only what the noise changed is written.
            changed = (new != value) & ~(np.isnan(new) & np.isnan(value))
            for place in np.flatnonzero(changed).tolist():
                feature = self.schema.features[place]
                number = float(new[place])
                cell = number if feature.book is None else feature.book[int(number)]
                columns.setdefault(feature.name, {})[i] = cell
        self.source.write(out, columns)
        return [Place(i, "", i + self.source.first) for i in ids.tolist()]

    def _classes(self, labels: "pd.Series[Any]") -> tuple[tuple[Any, ...], Ids]:
        """The classes in order, and each row's place among them [N]."""
        what = f"{self.path}: the label {self.label!r}"
        if labels.isna().any():
            row = int(labels.isna().to_numpy().argmax())
            raise MarshtestError(
                f"{self.where(row)}: has no label {self.label!r}, or one that pandas reads as missing, as "
                "it does 'None' and 'NA'. Drop the row, or name the class otherwise."
            )
        kind = labels.dtype.kind if isinstance(labels.dtype, np.dtype) else "O"
        if kind in "mM":
            raise MarshtestError(f"{what} holds dates. Name a column of classes.")
        if kind == "f" and (labels % 1 != 0).any():
            raise MarshtestError(
                f"{what} holds fractions: a number to predict, and no classes. Cut it into classes first."
            )
        try:
            codes, classes = pd.factorize(labels.astype(object), sort=True)
        except TypeError:
            raise MarshtestError(f"{what} holds values of several types. Write it anew.") from None
        if len(classes) < 2:
            raise MarshtestError(f"{what} has one class, so that no model can tell labels apart.")
        if crowded(len(classes), len(labels)):
            raise MarshtestError(
                f"{what} has {len(classes):,} values in {len(labels):,} rows: an id, or a number to "
                "predict. Name a column of classes."
            )
        return tuple(classes.tolist()), codes.astype(np.int64)


def crowded(distinct: int, rows: int) -> bool:
    """Whether a column has too many values to be one of classes or categories."""
    return distinct > rows / 2 or distinct > max(FEW, rows / ROWS_EACH)
