"""CSV and TSV: a header, and a record a row, which may go over several lines inside quotes."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import regex
from numpy.typing import NDArray

from marshtest.data.marks import Mark
from marshtest.kit.records.fields import Fields, Values
from marshtest.kit.records.lines import Lines
from marshtest.plumbing.errors import MarshtestError, first_line

SEPARATORS = {".csv": ",", ".tsv": "\t"}
LARGEST = 1 << 28  # characters of a cell


class Cells(Lines):
    """A CSV or TSV file with a header; records are named by rows, from 1 on below the header."""

    kind: ClassVar[str] = "CSV or TSV"

    def __init__(self, path: Path, mark: Mark | None = None) -> None:
        self.separator = SEPARATORS[path.suffix.lower()]
        self.names: list[str] = []
        self._quoted = 0  # whether a quote is open where the last block ended
        super().__init__(path, mark)

    def where(self, row: int) -> str:
        return f"{self.path}: row {row + 1}"

    def place(self, row: int) -> dict[str, Any]:
        return {"row": row + 1}

    def parse(self, raw: bytes, where: str) -> Values:
        cells = self._cells(raw, where)
        if len(cells) != len(self.names):
            raise MarshtestError(
                f"{where}: has {len(cells)} cells, and the header {len(self.names)}. Mend or drop it."
            )
        return dict(zip(self.names, cells, strict=True))

    def rewritten(self, raw: bytes, text: str, fields: Fields, where: str) -> bytes:
        return self.with_cells(raw, {fields.field: text}, where)

    def with_cells(self, raw: bytes, texts: Mapping[str, str], where: str) -> bytes:
        """The row with other texts in some cells, and every other byte as it was."""
        row, end = raw.decode(), 0
        new = {self.names.index(name): text for name, text in texts.items()}
        parts = []
        for place, match in enumerate(self._cell.finditer(row)):
            if place in new:
                parts += [row[end : match.start()], self._spelt(new.pop(place), match.group())]
                end = match.end()
        if new:
            raise MarshtestError(f"{where}: its text cannot be replaced.")
        return "".join([*parts, row[end:]]).encode()

    def _spelt(self, text: str, old: str) -> str:
        """A cell's text, in quotes where the old one was, or where it needs them."""
        quoted = old.startswith('"') or any(c in text for c in f'{self.separator}"\r\n')
        return f'"{_doubled(text)}"' if quoted else text

    def spellings(self, text: str) -> Iterable[str]:
        return {text, _doubled(text)}

    def read_back(self, spelling: str) -> str:
        return spelling.replace('""', '"')

    @property
    def _cell(self) -> Any:
        """A regular expression of the next cell, at its beginning."""
        stop = regex.escape(self.separator)
        return regex.compile(
            rf'(?:(?<=^|{stop}))(?:"(?:[^"]|"")*+"|[^"{stop}\r\n][^{stop}\r\n]*+|)'
        )

    def _cells(self, raw: bytes, where: str) -> list[str]:
        csv.field_size_limit(LARGEST)
        try:
            row = io.StringIO(raw.decode("utf-8-sig"), newline="")
            (cells,) = csv.reader(row, delimiter=self.separator, strict=True)
        except (ValueError, csv.Error) as error:
            raise MarshtestError(
                f"{where}: is no row of cells ({first_line(error)}). Mend or drop it."
            ) from None
        return cells

    def _header(self, file: IO[bytes]) -> bytes:
        header = file.readline()
        self.names = self._cells(header, f"{self.path}: the header") if header.strip() else []
        if len(set(self.names)) < len(self.names):
            raise MarshtestError(f"{self.path}: the header has a name twice. Rename a column.")
        return header

    def _ends(self, block: bytes, number: int) -> NDArray[np.int64]:
        ends = super()._ends(block, number)
        if b'"' not in block and not self._quoted:
            return ends
        # A row ends where the number of quotes up to there is even: quotes inside cells are doubled.
        quotes = np.cumsum(np.frombuffer(block, np.uint8) == ord('"')) + self._quoted
        self._quoted = int(quotes[-1] % 2)
        outside: NDArray[np.int64] = ends[quotes[ends - 1] % 2 == 0]
        return outside


def _doubled(text: str) -> str:
    return text.replace('"', '""')
