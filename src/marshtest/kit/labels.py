"""Models that answer with nothing but labels, as the auditor asks them: a label is right, or it is not.

The label may be a class's number, or its name where the data set has names. A model is told the inputs
alone, and not the labels of the data, which it could hand back.
"""

from collections.abc import Callable, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marshtest.kit.black_box import Call, by_files, read_array
from marshtest.kit.layouts.base import Value
from marshtest.kit.model import Answers, AskedModel, Inputs, Labels
from marshtest.plumbing.device import in_parts
from marshtest.plumbing.errors import MarshtestError, first_line

PART = 1024  # inputs that a function is asked at once
Asked = Callable[[Value], Any]  # x as a model takes it → its labels, whatever they are


class LabelModel(AskedModel):
    """A model that maps inputs to labels; its loss is 1 where the label is wrong, and else 0."""

    def __init__(
        self,
        name: str,
        labels: Asked,
        inputs: Inputs,
        classes: int,
        names: Sequence[str] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name, self.classes, self.notes = name, classes, notes
        self._labels, self._inputs = labels, inputs
        self._names = names
        self._numbers = {name: number for number, name in enumerate(names)}
        # A name in another Unicode form is the same name, unless that is how two classes differ.
        composed = {normalize("NFC", name): number for number, name in enumerate(names)}
        if len(composed) == len(names):
            self._numbers = composed | self._numbers

    def ask(self, values: Value, labels: Labels) -> Answers:
        answered = self._labels(self._inputs(torch.from_numpy(values).float()).numpy())
        right = self._numbered(np.asarray(answered), len(values)) == labels
        return (~right).astype(np.float64), right

    def _numbered(self, answered: NDArray[Any], rows: int) -> Labels:
        """[M] the numbers of the classes that were answered.

        Raises:
            MarshtestError: the answers are not one class of the data for each input.
        """
        if answered.shape != (rows,):
            probabilities = answered.ndim == 2 and answered.shape[1] > 1
            hint = " These look like probabilities: leave out --answers labels." * probabilities
            raise MarshtestError(
                f"{self.name}: must answer {rows} inputs with as many labels [{rows}]. Got "
                f"{list(answered.shape)}.{hint}"
            )
        if answered.dtype.kind in "US":
            return self._by_name(self._texts(answered))
        if answered.dtype.kind not in "iuf":
            raise MarshtestError(f"{self.name}: answered {answered.dtype}, not labels.")
        whole = answered == np.floor(answered)  # False for nan
        if not whole.all():
            raise MarshtestError(
                f"{self.name}: answered {answered[~whole][0]:g}, which is no label. If these are losses "
                "or probabilities, leave out --answers labels."
            )
        beyond = (answered < 0) | (answered >= self.classes)
        if beyond.any():
            raise MarshtestError(
                f"{self.name}: answered label {answered[beyond][0]:g} for {beyond.sum()} of {rows} inputs; "
                f"the data have classes 0..{self.classes - 1}."
            )
        return answered.astype(np.int64)

    def _texts(self, answered: NDArray[Any]) -> NDArray[np.str_]:
        """[M] the answers as texts, which NumPy keeps as bytes too."""
        if answered.dtype.kind == "U":
            return answered
        try:
            return np.char.decode(answered, "utf-8")
        except UnicodeDecodeError as error:
            raise MarshtestError(
                f"{self.name}: answered names that are not UTF-8 ({error}). Answer with texts."
            ) from None

    def _by_name(self, answered: NDArray[np.str_]) -> Labels:
        """[M] the numbers of named classes."""
        if not self._numbers:
            raise MarshtestError(
                f"{self.name}: answered {str(answered[0])[:40]!r}, and the data have no names of classes. "
                f"Answer with their numbers, 0..{self.classes - 1}."
            )
        known = self._numbers
        numbers = np.array(
            [known.get(name, known.get(normalize("NFC", name), -1)) for name in answered.tolist()],
            np.int64,
        )
        if (numbers < 0).any():
            stranger = str(answered[numbers < 0][0])[:40]
            raise MarshtestError(
                f"{self.name}: answered {stranger!r}, which is no class of the data: "
                f"{', '.join(self._names[:5])}{', …' * (len(self._names) > 5)}."
            )
        return numbers


def by_function(name: str, function: Callable[[Tensor], Any]) -> Asked:
    """Labels by what a user's load() returns, a function from inputs to labels."""

    def labels(x: Value) -> Any:
        inputs = torch.from_numpy(x)

        def asked(rows: slice) -> NDArray[Any]:
            try:
                with torch.no_grad():
                    answer = function(inputs[rows])
            except Exception as error:  # whatever a foreign model raises
                raise MarshtestError(
                    f"{name}: does not take inputs {list(inputs.shape[1:])} "
                    f"({type(error).__name__}: {first_line(error)})."
                ) from None
            try:
                return np.asarray(answer.detach().cpu() if isinstance(answer, Tensor) else answer)
            except ValueError as error:  # lists of several lengths
                reason = first_line(error)
                raise MarshtestError(f"{name}: must answer with labels ({reason}).") from None

        parts = [*in_parts(asked, len(x), PART)]
        if len({(part.ndim, part.shape[1:]) for part in parts}) > 1:
            raise MarshtestError(f"{name}: answers questions of the same kind in several shapes.")
        return np.concatenate(parts) if parts[0].ndim else parts[0]

    return labels


def by_box(name: str, call: Call) -> Asked:
    """Labels by a black box, which reads x [M, …] from one file and writes labels [M] into another."""

    def check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if dtype.kind not in "iufUS":
            raise MarshtestError(f"{name}: answered {dtype}, not labels.")

    return lambda x: by_files(call, {"x": x}, lambda file: read_array(name, file, check))
