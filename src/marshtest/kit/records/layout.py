"""The interface of all layouts of text records."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from marshtest.data.marks import Mark, There
from marshtest.kit.layouts.folders import digest, newest, set_times
from marshtest.kit.records.fields import Fields, NoPlaceError, Values
from marshtest.plumbing.whole_files import written_whole

Rows = Sequence[int]  # numbers of records, from 0 on, increasing
Texts = Mapping[int, str]  # new texts by the records' numbers


class Records(ABC):
    """Text records on disk; a record is known by its number, from 0 on."""

    kind: ClassVar[str]  # the layout, in words
    path: Path
    count: int  # N, the number of records
    empty: int = 0  # of these, those that hold nothing, as blank lines between others

    @abstractmethod
    def each(self, rows: Rows) -> Iterator[tuple[int, Values]]:
        """(number, values) of these records; empty lines are left out.

        Raises:
            MarshtestError: a damaged record, with its place.
        """

    @abstractmethod
    def where(self, row: int) -> str:
        """The place of a record, as an error message names it."""

    @abstractmethod
    def place(self, row: int) -> dict[str, Any]:
        """The place of a record, as a forget request names it."""

    @abstractmethod
    def _write(self, out: Path, texts: Texts, fields: Fields) -> None:
        """Write the data to `out` with other texts in some records."""

    def digest(self) -> str:
        """SHA-256 of the data, as hex digits."""
        return digest(self.path).whole

    def there(self, mark: Mark, fields: Fields) -> There:
        """The marks that the records have already."""
        there = There()
        for row, values in self.each(range(self.count)):
            try:
                for found in mark.marks(fields.text(values, self.where(row))):
                    there.add(found)
            except NoPlaceError:
                continue
        return there

    def copy(self, out: Path, texts: Texts, fields: Fields) -> None:
        """Write the data set to `out`, which appears whole or not at all.

        Args:
            out: a new file or folder of the same layout.
            texts: the texts of the records that get others; all other records keep their bytes.
            fields: which field the texts belong in.

        Raises:
            MarshtestError: `out` cannot be written.
        """
        with written_whole(out) as temporary:
            self._write(temporary, texts, fields)
            set_times(temporary, newest(self.path))
