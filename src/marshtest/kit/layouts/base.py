"""The interface of all layouts, and reading of files a chunk at a time."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from marshtest.kit.layouts.folders import newest, set_times
from marshtest.plumbing.errors import MarshtestError, refused
from marshtest.plumbing.whole_files import written_whole

Value = NDArray[Any]  # one sample: uint8 [C, H, W] of an image, or an array's row as it is stored
Ids = NDArray[np.int64]
Dosed = Callable[[int, Value], Value]  # (id, value) → value with noise

HELD_OUT = re.compile(r"(?<![a-z])(test(ing)?|val(id(ation)?)?|dev|eval)(?![a-z])", re.IGNORECASE)
CHUNK = 1 << 20  # bytes of an array read at once
CLASSES = 1 << 31  # a larger label is no class
SAMPLE_BYTES = 1 << 28  # a file that claims larger samples is not believed
KNOWN = (
    "Known: train*.parquet with encoded images, train/<class>/ or <class>/ with image files, "
    "one .parquet, .npz or .safetensors file. Of texts: .jsonl, .csv, .tsv, .parquet or a "
    "folder of .txt."
)


@dataclass(frozen=True)
class Place:
    """The place of a dosed sample."""

    id: int  # row number of the sample in the split that was dosed
    file: str  # path relative to the data set's folder; the name of a data set that is one file
    row: int | None  # row inside that file; None if the file is the sample


class Layout(ABC):
    """A data set on disk, of which one split is dosed; ids are row numbers of that split."""

    path: Path  # the folder or file
    samples: int  # N, the number of samples of the dosed split
    classes: int  # C, the number of class names, or the largest label plus one
    names: tuple[str, ...] = ()  # of the classes, where the data have names
    pixels: bool  # whether values are uint8 pixels 0..255; if not, they are floating point
    encoded: bool  # whether a sample is an image file, whose format and size can tell of a dose

    def each(self, ids: Ids) -> Iterator[tuple[int, Value, int]]:
        """(id, value, label) of these samples in increasing order of id; no other is decoded.

        Raises:
            MarshtestError: an id that no sample has, or a damaged sample, with its place.
        """
        return self._each(self._sorted(ids))

    def copy(self, out: Path, dosed: Dosed, ids: Ids, *, hide: bool = False) -> list[Place]:
        """Write the data set to `out`, with `dosed(id, value)` in place of the samples `ids`.

        `out` appears whole or not at all; `dosed` is called in increasing order of id. All files of
        `out` get the modification time of the data set's newest file. `hide` writes all images of the
        split anew, as PNG without compression, so that neither format nor size tells the dosed ones.

        Returns:
            Where each dosed sample lies, in increasing order of id.

        Raises:
            MarshtestError: `out` exists, lies inside the data set, or cannot be written.
            ValueError: `dosed` returned another shape or dtype.
        """
        wanted = self._sorted(ids)
        if os.path.lexists(out):
            raise MarshtestError(f"{out}: exists already. Choose another folder, or remove it.")
        if out.resolve().is_relative_to(self.path.resolve()):
            raise MarshtestError(f"{out}: lies inside the data set {self.path}. Choose another.")
        with written_whole(out) as temporary:
            places = self._write(temporary, _same_kind(dosed), wanted, hide)
            set_times(temporary, newest(self.path))
        return [replace(place, file=place.file or out.name) for place in places]

    @abstractmethod
    def _each(self, ids: Ids) -> Iterator[tuple[int, Value, int]]:
        """The samples of `each`, for increasing ids."""

    @abstractmethod
    def where(self, i: int) -> str:
        """The place of a sample, as an error message names it."""

    @abstractmethod
    def _write(self, out: Path, dosed: Dosed, ids: Ids, hide: bool) -> list[Place]:
        """Write as `copy` does, for increasing ids; a place's file is "" if `out` is a file."""

    def _sorted(self, ids: Ids) -> Ids:
        wanted = np.unique(np.asarray(ids, np.int64))
        if len(wanted) and not (wanted[0] >= 0 and wanted[-1] < self.samples):
            raise MarshtestError(
                f"{self.path}: ids must lie in 0..{self.samples - 1}. "
                f"Got {wanted[0]}..{wanted[-1]}. Give the data set that was dosed."
            )
        return wanted

    def _label(self, label: int | None, where: str) -> int:
        if label is None or not 0 <= label < self.classes:
            raise MarshtestError(
                f"{where} has label {label}; labels must lie in 0..{self.classes - 1}. "
                "Correct or drop it."
            )
        return label


def within(ids: Ids, first: int, count: int) -> list[int]:
    """The part of increasing ids that lies in first .. first + count - 1."""
    low, high = np.searchsorted(ids, (first, first + count))
    return list(map(int, ids[low:high]))


def largest_of(labels: NDArray[Any], first: int, where: Path) -> int:
    """The largest label of the rows from `first` on; each must be a number from 0 to CLASSES."""
    if len(bad := (labels < 0).nonzero()[0]):
        raise MarshtestError(
            f"{where}: row {first + bad[0]} has no label, or a negative one. Correct or drop it."
        )
    if len(bad := (labels >= CLASSES).nonzero()[0]):
        raise MarshtestError(
            f"{where}: row {first + bad[0]} has label {labels[bad[0]]}. Number the classes from 0 on."
        )
    return int(labels.max(initial=0))


def pieces(stream: IO[bytes], where: Path, count: int | None = None) -> Iterator[bytes]:
    """The next `count` bytes, or all that are left, a chunk at a time."""
    while count is None or count > 0:
        with reading(where):
            size = CHUNK if count is None else min(count, CHUNK)
            piece = stream.read(size)
            if count is not None and len(piece) < size:
                raise EOFError("the file ends too early")
        if not piece:
            return
        yield piece
        count = None if count is None else count - len(piece)


def _same_kind(dosed: Dosed) -> Dosed:
    """`dosed` with a check: its values must fit in the places of the old ones."""

    def checked_dosed(i: int, value: Value) -> Value:
        shape, dtype = value.shape, value.dtype  # before the call, which could change the value
        dosed_value = dosed(i, value)
        if dosed_value.shape != shape or dosed_value.dtype != dtype:
            raise ValueError(
                f"dosed sample {i}: {dosed_value.dtype} {dosed_value.shape}, not {dtype} {shape}"
            )
        return dosed_value

    return checked_dosed


def reading(where: Path | str) -> AbstractContextManager[None]:
    """Turn whatever a library raises at a damaged file into one line that names the place."""
    return refused(f"{where}: cannot be read", "Mend it, or fetch it again.")
