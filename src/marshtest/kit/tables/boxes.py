"""Models of rows that answer with probabilities: objects with predict_proba, and programs by files."""

import csv
import stat
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marshtest.kit.black_box import Call, losses_of, read_answers
from marshtest.kit.layouts.base import Value
from marshtest.kit.model import Answers, AskedModel, Labels
from marshtest.kit.tables.schema import Schema
from marshtest.plumbing.errors import MarshtestError, first_line

AT_ONCE = 1 << 23  # numbers of the rows that are asked at once
CELL = 40  # bytes that a number of an answer in CSV may take
NPY = b"\x93NUMPY"  # how a .npy file begins


class RowModel(AskedModel):
    """A model that maps rows to probabilities, or logits, of the classes."""

    def __init__(self, name: str, schema: Schema) -> None:
        self.name, self.schema, self.classes = name, schema, len(schema.classes)

    def ask(self, values: Value, labels: Labels) -> Answers:
        parts = [
            losses_of(
                self.name,
                self._checked(self.answers(self.schema.frame(values[rows]))),
                labels[rows],
            )
            for rows in _slices(values)
        ]
        losses, rights = zip(*parts, strict=True)
        return np.concatenate(losses), np.concatenate(rights)

    @abstractmethod
    def answers(self, frame: pd.DataFrame) -> NDArray[Any]:
        """[M, classes] probabilities or logits of rows, in the order of the classes."""

    def _checked(self, answers: NDArray[Any]) -> NDArray[Any]:
        if bad := int(np.isnan(answers).any(1).sum()):
            raise MarshtestError(f"{self.name}: answered NaN for {bad} of {len(answers)} rows.")
        return answers


class FrameModel(RowModel):
    """An object with `predict_proba`, as scikit-learn, LightGBM and XGBoost have it.

    Raises:
        MarshtestError: its `classes_` are not those of the table.
    """

    def __init__(self, name: str, model: Any, schema: Schema) -> None:
        super().__init__(name, schema)
        self.model = model
        known = list(getattr(model, "classes_", schema.classes))
        if not hasattr(model, "classes_"):
            names = ", ".join(map(str, known))
            self.notes = (f"has no classes_, so its columns are taken for {names}, in this order",)
        self.width, self.places = len(known), _places(name, known, schema)

    def answers(self, frame: pd.DataFrame) -> NDArray[Any]:
        answers = np.asarray(self.model.predict_proba(frame))
        if answers.shape != (len(frame), self.width) or answers.dtype.kind not in "iuf":
            raise MarshtestError(
                f"{self.name}: predict_proba must give numbers [{len(frame)}, {self.width}], a column for "
                f"each class. Got {answers.dtype} {list(answers.shape)}."
            )
        return answers[:, self.places]


class TableBox(RowModel):
    """A program or callable that maps a CSV file of rows to a file of probabilities or logits."""

    def __init__(self, name: str, call: Call, schema: Schema) -> None:
        super().__init__(name, schema)
        self.call = call

    def answers(self, frame: pd.DataFrame) -> NDArray[Any]:
        # A folder for each call: what a program leaves behind cannot stand for its next answer.
        with tempfile.TemporaryDirectory() as folder:
            inputs, outputs = Path(folder) / "inputs.csv", Path(folder) / "outputs.npy"
            frame.to_csv(inputs, index=False)
            self.call(inputs, outputs)
            if self._is_csv(outputs):
                return self._read_csv(outputs, len(frame))
            answers = read_answers(self.name, outputs, len(frame), self.classes)
        if answers.ndim == 1 or answers.shape[1] > self.classes:
            raise self._other_shape(len(frame), list(answers.shape))
        return answers

    def _is_csv(self, file: Path) -> bool:
        # lstat follows no link; whatever is no plain file, `read_answers` refuses.
        if not file.exists() or not stat.S_ISREG(file.lstat().st_mode):
            return False
        with file.open("rb") as stream:
            return stream.read(len(NPY)) != NPY

    def _read_csv(self, file: Path, rows: int) -> NDArray[Any]:
        """[rows, classes] numbers of a CSV file, by their class names where it has a header of them."""
        header = [str(name) for name in self.schema.classes]
        most = CELL * (rows + 1) * (self.classes + 1) + sum(map(len, header))
        if file.stat().st_size > most:
            raise MarshtestError(f"{self.name}: wrote more than {rows} rows of probabilities.")
        try:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                lines = [line for line in csv.reader(stream) if line]
            order = self._order(lines.pop(0)) if len(lines) == rows + 1 else slice(None)
            table = np.array([[cell or "nan" for cell in line] for line in lines], np.float64)
        except (OSError, ValueError, csv.Error) as error:
            raise MarshtestError(
                f"{self.name}: its outputs are no .npy file and no CSV of numbers ({first_line(error)})."
            ) from None
        if table.shape != (rows, self.classes):
            raise self._other_shape(rows, list(table.shape))
        answers: NDArray[Any] = table[:, order]
        return answers

    def _order(self, header: list[str]) -> list[int]:
        """The place of each class in a header of their names, as they stand or as whole numbers."""
        plain, spelt = [[of(c) for c in self.schema.classes] for of in (_plain, str)]
        for names in (spelt, plain):
            if sorted(names) == sorted(header):
                return [header.index(name) for name in names]
        raise ValueError(f"its first line {','.join(header)!r:.60} names other classes")

    def _other_shape(self, rows: int, shape: list[int]) -> MarshtestError:
        return MarshtestError(
            f"{self.name}: must write probabilities or logits [{rows}, {self.classes}], a column for each "
            f"of {', '.join(map(str, self.schema.classes))}. Got {shape}."
        )


def _slices(values: Value) -> Iterator[slice]:
    size = max(1, AT_ONCE // values.shape[1])
    return (slice(start, start + size) for start in range(0, len(values), size))


def _places(name: str, known: Sequence[Any], schema: Schema) -> list[int]:
    """The place of each class of the table among a model's own."""
    names = [_plain(one) for one in known]
    missing = [one for one in schema.classes if _plain(one) not in names]
    if missing:
        raise MarshtestError(
            f"{name}: does not know the class {missing[0]!r} of the table; its classes_ are "
            f"{', '.join(map(str, names[:10]))}. Fit it on the label as the file has it."
        )
    return [names.index(_plain(one)) for one in schema.classes]


def _plain(name: Any) -> str:
    """A class's name, alike for 1, 1.0, True and NumPy's own."""
    value = name.item() if isinstance(name, np.generic) else name
    if isinstance(value, bool | float) and value == int(value):
        value = int(value)
    return str(value)
