"""Data sets of two arrays in one file: .npz and .safetensors."""

import json
import math
import os
import zipfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from marshtest.kit.layouts.base import (
    SAMPLE_BYTES,
    Dosed,
    Ids,
    Layout,
    Place,
    Value,
    largest_of,
    pieces,
    reading,
)
from marshtest.plumbing.errors import MarshtestError

ARRAY_KEYS = (
    ("x_train", "y_train"),
    ("train_images", "train_labels"),
    ("x", "y"),
    ("images", "labels"),
    ("data", "labels"),
)
HEADER_BYTES = 100_000_000  # limit that the safetensors format sets itself
SAFETENSORS_TYPES = {
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
}


def npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether in Fortran order, type) that the first bytes of a .npy file claim."""
    old = npy.read_magic(stream) == (1, 0)
    # Version 3.0 is for names of fields alone, which numbers do not have.
    return (npy.read_array_header_1_0 if old else npy.read_array_header_2_0)(stream)


@dataclass(frozen=True)
class Stored:
    """An array in an archive, its row 0 at byte `start` of the member's stream."""

    member: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def offset(self, row: int) -> int:
        """The byte of the stream at which a row begins."""
        return self.start + row * self.row_bytes


class Arrays(Layout):
    """Two arrays in an archive: inputs [N, ...] and labels [N]."""

    def __init__(self, path: Path) -> None:
        self.path, self.encoded = path, False
        with reading(path):
            names = self._names()
            keys = next((pair for pair in ARRAY_KEYS if names.issuperset(pair)), None)
            if keys is None:
                known = "; ".join(" and ".join(pair) for pair in ARRAY_KEYS)
                raise MarshtestError(f"{path}: holds none of these pairs of arrays: {known}.")
            x, y = self._array(keys[0]), self._array(keys[1])
        self._x, self._y = x, y
        if not x.shape or not math.prod(x.shape):
            raise MarshtestError(f"{path}: no samples in {keys[0]}, or none with a value.")
        if x.row_bytes > SAMPLE_BYTES:
            raise MarshtestError(
                f"{path}: a row of {keys[0]} claims {x.row_bytes:,} bytes, more than a sample has. "
                "Is the first axis that of the samples?"
            )
        if x.dtype.str[1:] not in ("u1", "f2", "f4", "f8"):
            raise MarshtestError(
                f"{path}: {keys[0]} has dtype {x.dtype}. "
                "Save it as uint8 pixels, or as float16, float32 or float64."
            )
        if y.dtype.kind not in "iu" or y.shape not in ((x.shape[0],), (x.shape[0], 1)):
            raise MarshtestError(
                f"{path}: {keys[1]} has dtype {y.dtype} and shape {y.shape}. "
                f"Save one integer for each of the {x.shape[0]} rows of {keys[0]}."
            )
        self.samples, self.pixels = x.shape[0], x.dtype == np.uint8
        self.classes = self._largest_label() + 1

    def where(self, i: int) -> str:
        """File and row of a sample."""
        return f"{self.path}: row {i}"

    def _each(self, ids: Ids) -> Iterator[tuple[int, Value, int]]:
        rows = zip(ids.tolist(), self._rows(self._x, ids), self._rows(self._y, ids), strict=True)
        for i, x, y in rows:
            label = self._label(int(np.frombuffer(y, self._y.dtype)[0]), self.where(i))
            yield i, self._value(x, i), label

    def _value(self, row: bytes, i: int) -> Value:
        """[*shape] the value that a row's bytes hold, in the machine's own byte order."""
        stored = np.frombuffer(row, self._x.dtype).reshape(self._x.shape[1:])
        value: Value = stored.astype(self._x.dtype.newbyteorder("="))
        if not self.pixels and not np.isfinite(value).all():
            raise MarshtestError(
                f"{self.where(i)} holds NaN or infinite values. Correct or drop it."
            )
        return value

    def _rows(self, array: Stored, ids: Ids) -> Iterator[bytes]:
        with self._open(array.member) as stream:
            position = 0
            for i in ids.tolist():
                self._skip(stream, array.offset(i) - position)
                yield b"".join(pieces(stream, self.path, array.row_bytes))
                position = array.offset(i + 1)

    def _largest_label(self) -> int:
        largest, row = -1, 0
        with self._open(self._y.member) as stream:
            self._skip(stream, self._y.start)
            for piece in pieces(stream, self.path, self.samples * self._y.dtype.itemsize):
                labels = np.frombuffer(piece, self._y.dtype)
                largest = max(largest, largest_of(labels, row, self.path))
                row += len(labels)
        return largest

    def _pour(self, source: IO[bytes], target: IO[bytes], dosed: Dosed, ids: Ids) -> list[Place]:
        """Copy the stream that holds the inputs, with the rows `ids` dosed.

        Returns:
            The place of each dosed row.
        """
        position = 0
        for i in ids.tolist():
            for piece in pieces(source, self.path, self._x.offset(i) - position):
                target.write(piece)
            row = b"".join(pieces(source, self.path, self._x.row_bytes))
            target.write(dosed(i, self._value(row, i)).astype(self._x.dtype).tobytes())
            position = self._x.offset(i + 1)
        for piece in pieces(source, self.path):
            target.write(piece)
        return [Place(i, "", i) for i in ids.tolist()]

    @abstractmethod
    def _names(self) -> set[str]:
        """Names of the arrays in the archive."""

    @abstractmethod
    def _array(self, name: str) -> Stored:
        """Place, type and shape of an array, from its header."""

    @abstractmethod
    def _open(self, member: str) -> AbstractContextManager[IO[bytes]]:
        """The stream of a member."""

    @abstractmethod
    def _skip(self, stream: IO[bytes], count: int) -> None:
        """Pass over the next `count` bytes."""


class Npz(Arrays):
    """A NumPy archive, compressed or not."""

    def _names(self) -> set[str]:
        with zipfile.ZipFile(self.path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}

    def _array(self, name: str) -> Stored:
        with self._open(f"{name}.npy") as stream:
            shape, fortran, dtype = npy_header(stream)
            if fortran:
                raise MarshtestError(
                    f"{self.path}: {name} is in Fortran order. Save np.ascontiguousarray({name})."
                )
            return Stored(f"{name}.npy", dtype, shape, stream.tell())

    @contextmanager
    def _open(self, member: str) -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(self.path) as archive, archive.open(member) as stream:
            yield stream

    def _skip(self, stream: IO[bytes], count: int) -> None:
        for _ in pieces(stream, self.path, count):  # in a compressed stream there is no seeking
            pass

    def _write(self, out: Path, dosed: Dosed, ids: Ids, hide: bool) -> list[Place]:
        places = []
        with zipfile.ZipFile(self.path) as archive, zipfile.ZipFile(out, "w") as copy:
            for old in archive.infolist():  # in their order, with their times and compression
                new = zipfile.ZipInfo(old.filename, old.date_time)
                new.compress_type, new.external_attr = old.compress_type, old.external_attr
                with reading(self.path):  # any member may be encrypted, or packed in an unknown way
                    source = archive.open(old)
                # zip64 in any case: how long the stream will be is not known as it is begun.
                with source, copy.open(new, "w", force_zip64=True) as target:
                    if old.filename == self._x.member:
                        places = self._pour(source, target, dosed, ids)
                    else:
                        for piece in pieces(source, self.path):
                            target.write(piece)
        return places


class Safetensors(Arrays):
    """One .safetensors file."""

    def _names(self) -> set[str]:
        return set(self._header()[0])

    def _array(self, name: str) -> Stored:
        header, data = self._header()
        kind, shape = header[name]["dtype"], tuple(header[name]["shape"])
        if kind not in SAFETENSORS_TYPES:
            raise MarshtestError(
                f"{self.path}: {name} has dtype {kind}, which neither inputs nor labels can "
                "have. Save inputs as U8, F16, F32 or F64, labels as I64."
            )
        begin, end = header[name]["data_offsets"]
        array = Stored("", np.dtype(SAFETENSORS_TYPES[kind]), shape, data + begin)
        if begin < 0 or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"the header gives {name} shape {list(shape)} from byte {begin}")
        if end - begin != array.dtype.itemsize * math.prod(shape):
            raise ValueError(f"the header gives {name} {end - begin} bytes for shape {shape}")
        if data + end > self.path.stat().st_size:
            raise EOFError("the file ends too early")
        return array

    def _header(self) -> tuple[dict[str, Any], int]:
        """(header, byte at which the data begin)."""
        with self.path.open("rb") as stream:
            # Looked at before it is read: a header may claim any length.
            length = int.from_bytes(stream.read(8), "little")
            if length > min(self.path.stat().st_size, HEADER_BYTES):
                raise ValueError(f"its header claims {length:,} bytes")
            return json.loads(stream.read(length)), 8 + length

    def _open(self, member: str) -> AbstractContextManager[IO[bytes]]:
        return self.path.open("rb")

    def _skip(self, stream: IO[bytes], count: int) -> None:
        stream.seek(count, os.SEEK_CUR)

    def _write(self, out: Path, dosed: Dosed, ids: Ids, hide: bool) -> list[Place]:
        with self.path.open("rb") as source, out.open("wb") as target:
            return self._pour(source, target, dosed, ids)
