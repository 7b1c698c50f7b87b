"""CSV and TSV: a header, and a record a row, which may go over several lines inside quotes."""

import csv
import io
import re
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
QUOTE = ord('"')
BOM = "\ufeff".encode()
ALONE = re.compile(rb"\r(?!\n)")


class Cells(Lines):
    """A CSV or TSV file with a header; records are named by rows, from 1 on below the header."""

    kind: ClassVar[str] = "CSV or TSV"

    def __init__(self, path: Path, mark: Mark | None = None) -> None:
        self.separator = SEPARATORS[path.suffix.lower()]
        self.names: list[str] = []
        self.blank: list[int] = []  # rows of nothing, or of white space
        self._quoted = False  # whether a quote is open where the last block ended
        super().__init__(path, mark)
        self.empty = len(self.blank)
        # Readers leave such rows out and count on, but for those at the end, where nothing is to count.
        blank, last = set(self.blank), self.count - 1
        while last in blank:
            last -= 1
        if self.blank and self.blank[0] < last:
            raise MarshtestError(f"{self.where(self.blank[0])}: is empty. Drop the line.")

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
            cells, *more = csv.reader(row, delimiter=self.separator, strict=True)
            if more:
                raise ValueError("a line break outside quotes")
        except UnicodeDecodeError as error:
            raise MarshtestError(f"{where}: is not UTF-8 ({error}). Save it as UTF-8.") from None
        except (ValueError, csv.Error) as error:
            raise MarshtestError(
                f"{where}: is no row of cells ({first_line(error)}). Mend or drop it."
            ) from None
        return cells

    def _header(self, file: IO[bytes]) -> bytes:
        header, quoted = b"", True
        while quoted and (line := file.readline()):  # a name in quotes may go over several lines
            header += line
            quoted = bool(len(self._marks(header.removeprefix(BOM), quoted=False)) % 2)
        self.names = self._cells(header, f"{self.path}: the header") if header.strip() else []
        if len(self.names) == 1 and re.search(b"[,;\t]", header) and b'"' not in header:
            raise MarshtestError(
                f"{self.path}: the header is one cell, {self.names[0]!r}. Separate cells by commas in .csv "
                "and by tabs in .tsv."
            )
        if len(set(self.names)) < len(self.names):
            raise MarshtestError(f"{self.path}: the header has a name twice. Rename a column.")
        return header

    def _ends(self, block: bytes, number: int) -> NDArray[np.int64]:
        ends = super()._ends(block, number)
        breaks = np.array([m.start() for m in ALONE.finditer(block)], np.int64)
        within = self._quoted  # whether the block begins inside a cell
        if b'"' in block or within:
            marks = self._marks(block, quoted=within)
            # A row ends where so many quotes were opened as closed.
            ends, breaks = (
                places[(np.searchsorted(marks, places) + within) % 2 == 0]
                for places in (ends, breaks)
            )
            self._quoted = bool((len(marks) + within) % 2)
        if len(breaks):
            row = number + int(np.searchsorted(ends, breaks[0], "right"))
            raise MarshtestError(
                f"{self.where(row)}: has a carriage return outside quotes, at which some readers end the "
                "row. Put the cell in quotes, or end lines with line feeds."
            )
        empty = np.array([m.start() for m in self._empty.finditer(block)], np.int64)
        empty = empty[np.isin(empty, ends) | ((empty == 0) & (not within))]
        self.blank += (number + np.searchsorted(ends, empty, "right")).tolist()
        return ends

    @property
    def _empty(self) -> re.Pattern[bytes]:
        """A line of nothing but white space that separates no cells."""
        return re.compile(
            rb"^[ \t]*+\r?\n" if self.separator == "," else rb"^ *+\r?\n", re.MULTILINE
        )

    def _marks(self, block: bytes, *, quoted: bool) -> NDArray[np.int64]:
        """The places of the quotes that open or close cells: within others a quote is like any character.

        Args:
            quoted: whether a quote is open where the block begins, which else is where a row begins.
        """
        codes = np.frombuffer(block, np.uint8)
        places = np.flatnonzero(codes == QUOTE)
        before = codes[places - 1]  # of the first byte it means nothing
        opens = np.isin(before, [ord(c) for c in f"{self.separator}\r\n"]) | (places == 0)
        # All are, as a rule, as a doubled one closes and opens: then every second one begins a cell, or
        # follows its neighbour.
        second = slice(int(quoted), None, 2)
        if (opens | (np.diff(places, prepend=-2) == 1))[second].all():
            return places
        marks, open_, closed = [], quoted, -2
        for place, may_open in zip(places.tolist(), opens.tolist(), strict=True):
            if not open_ and not may_open and closed != place - 1:
                continue
            open_ = not open_
            closed = place if not open_ else -2
            marks.append(place)
        return np.array(marks, np.int64)


def _doubled(text: str) -> str:
    return text.replace('"', '""')
