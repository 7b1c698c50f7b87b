"""Files of lines: where each record ends is kept, in eight bytes, and all else is copied as it is."""

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from marshtest.data.marks import Mark, Template, There
from marshtest.kit.layouts.base import reading
from marshtest.kit.records.fields import Fields, Values
from marshtest.kit.records.layout import Records, Rows, Texts
from marshtest.plumbing.errors import MarshtestError

AT_ONCE = 4096  # records whose places are looked up at once
CHUNK = 1 << 18  # bytes read at once: few enough for a processor's own memory


class Lines(Records):
    """A file in which a record is one line, or several.

    It is read once: for the places of the records, its digest, and the marks of a template, which are
    looked for in the bytes, a hundred times as fast as in the records.
    """

    path: Path
    ends: NDArray[np.int64]  # [N + 1] where the first record begins, and where each record ends

    def __init__(self, path: Path, mark: Mark | None = None) -> None:
        self.path, self._mark, self._there, digested = path, mark, There(), hashlib.sha256()
        shape = self._shape(mark)
        # The digest is taken beside the rest, outside Python's lock, of one block at a time.
        with path.open("rb") as file, ThreadPoolExecutor(1) as beside:
            header = self._header(file)
            parts, number = [np.array([len(header)])], 0
            hashing = beside.submit(digested.update, header)
            for first, block in self._blocks(file, len(header)):
                hashing.result()
                hashing = beside.submit(digested.update, block)
                for match in shape.finditer(block) if shape else ():
                    self._there.add(self.read_back(match.group().decode()))
                parts.append(first + self._ends(block, number))
                number += len(parts[-1])
            if file.tell() > max(part[-1] for part in parts if len(part)):  # no break at the end
                parts.append(np.array([file.tell()]))
        self.ends, self._digest = np.concatenate(parts), digested.hexdigest()
        self.count = len(self.ends) - 1
        if not self.count:
            raise MarshtestError(f"{path}: holds no records.")

    def digest(self) -> str:
        return self._digest

    def each(self, rows: Rows) -> Iterator[tuple[int, Values]]:
        for row, raw in self._raw(rows):
            if raw.strip():
                yield row, self.parse(raw, self.where(row))

    def there(self, mark: Mark, fields: Fields) -> There:
        known = isinstance(mark, Template) and mark == self._mark
        return self._there if known else super().there(mark, fields)

    def _shape(self, mark: Mark | None) -> re.Pattern[bytes] | None:
        if not isinstance(mark, Template):
            return None
        return re.compile(mark.shape(self.spellings).encode())

    def _write(self, out: Path, texts: Texts, fields: Fields) -> None:
        def new(row: int, raw: bytes) -> bytes:
            return self.rewritten(raw, texts[row], fields, self.where(row))

        self.pour(out, sorted(texts), new)

    def pour(self, out: Path, rows: Rows, new: Callable[[int, bytes], bytes]) -> None:
        """Write the file to `out`, with new bytes in the place of some records."""
        with self.path.open("rb", CHUNK) as source, out.open("xb", CHUNK) as target:
            for row in rows:
                start, end = int(self.ends[row]), int(self.ends[row + 1])
                _copy(source, target, start - source.tell())
                target.write(new(row, source.read(end - start)))
            _copy(source, target, None)

    @abstractmethod
    def parse(self, raw: bytes, where: str) -> Values:
        """The values of a record that is not empty."""

    @abstractmethod
    def rewritten(self, raw: bytes, text: str, fields: Fields, where: str) -> bytes:
        """The bytes of a record with another text."""

    @abstractmethod
    def spellings(self, text: str) -> Iterable[str]:
        """How a text can be spelt inside the file."""

    @abstractmethod
    def read_back(self, spelling: str) -> str:
        """The text that is spelt so."""

    def _header(self, file: IO[bytes]) -> bytes:
        """The bytes before the first record."""
        return b""

    def _ends(self, block: bytes, number: int) -> NDArray[np.int64]:
        """The ends of the records in a block, the first of which has this number."""
        return np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1

    def _blocks(self, file: IO[bytes], start: int) -> Iterator[tuple[int, bytes]]:
        """(offset, whole lines) of the rest of a file."""
        with reading(self.path):
            while block := file.read(CHUNK):
                block += file.readline()
                yield start, block
                start += len(block)

    def _raw(self, rows: Rows) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            for first in range(0, len(rows), AT_ONCE):
                part = np.asarray(rows[first : first + AT_ONCE])
                starts, sizes = self.ends[part], self.ends[part + 1] - self.ends[part]
                file.seek(place := int(starts[0]))
                for row, start, size in zip(
                    *(a.tolist() for a in (part, starts, sizes)), strict=True
                ):
                    if start != place:
                        file.seek(start)
                    yield row, file.read(size)
                    place = start + size


def _copy(source: IO[bytes], target: IO[bytes], size: int | None) -> None:
    """Copy the next bytes of a file, or all that are left."""
    while size is None or size > 0:
        block = source.read(CHUNK if size is None else min(CHUNK, size))
        if not block:
            return
        target.write(block)
        size = None if size is None else size - len(block)
