"""Files of tables: all columns as pandas reads them, and copies in which nothing but some cells is new."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import lazy_loader  # type: ignore[import-untyped]
import pandas as pd

from marshtest.kit.layouts.base import reading
from marshtest.kit.layouts.parquet import is_parquet
from marshtest.kit.records.cells import SEPARATORS, Cells
from marshtest.kit.records.parquet import ParquetRecords, codec_of
from marshtest.kit.tables.texts import Style, style_of
from marshtest.plumbing.errors import MarshtestError

pa = lazy_loader.load("pyarrow")
# Each number as the nearest one that there is, which pandas took for granted only later.
PRECISION: dict[str, Any] = {"float_precision": "round_trip"} if pd.__version__ < "3" else {}
Column = Mapping[int, Any]  # new numbers, or categories, of a column by row


class Source(ABC):
    """A file with a table, which is read whole."""

    path: Path
    frame: pd.DataFrame  # all columns, with the names and types that a pipeline gets by pandas
    first: int  # the number that the first row has in messages and in the forget request

    @abstractmethod
    def style(self, name: str) -> Style:
        """How a column's numbers are written; raises where cells are no plain numbers."""

    def scale(self, name: str) -> int | None:
        """The decimals of a column of decimals; None of any other."""
        return None

    @abstractmethod
    def write(self, out: Path, columns: Mapping[str, Column]) -> None:
        """Write the file to `out`, with new values in some cells."""

    def where(self, row: int) -> str:
        """The place of a row, as an error message names it."""
        return f"{self.path}: row {row + self.first}"


class CsvTable(Source):
    """A CSV or TSV file with a header; its rows are counted from 1 on below it."""

    first = 1

    def __init__(self, path: Path) -> None:
        self.path, self._cells = path, Cells(path)
        self.frame = self._read()
        rows = self._cells.count - len(self._cells.blank)
        # A row with more cells than the header is refused: pandas would take the first for an index.
        list(self._cells.each([0]))
        if len(self.frame) != rows:
            raise MarshtestError(
                f"{path}: has {rows:,} rows, and pandas reads {len(self.frame):,}. Drop lines that hold "
                "nothing but spaces, and mend quotes."
            )
        if list(self.frame.columns) != self._cells.names:
            raise MarshtestError(f"{path}: a column of the header has no name. Give it one.")

    def style(self, name: str) -> Style:
        known = self._texts(name)[self.frame[name].notna()]
        return style_of(known, lambda row: f"{self.where(row)}, column {name!r}")

    def write(self, out: Path, columns: Mapping[str, Column]) -> None:
        before = {name: self._texts(name) for name in columns}
        texts: dict[int, dict[str, str]] = {}
        for name, column in columns.items():
            spelt = self._speller(name, before[name])
            for row, value in column.items():
                texts.setdefault(row, {})[name] = spelt(value)

        def new(row: int, raw: bytes) -> bytes:
            where = self.where(row)
            old = self._cells.parse(raw, where)
            # Bytes and pandas agree on which row this is: a wrong one would be lost among the others.
            if any(old[name] != before[name].iat[row] for name in texts[row]):
                raise MarshtestError(f"{where}: is read as another row by pandas. Mend its quotes.")
            return self._cells.with_cells(raw, texts[row], where)

        self._cells.pour(out, sorted(texts), new)

    def _speller(self, name: str, texts: "pd.Series[str]") -> Any:
        """The function from a column's value to a cell's text."""
        values = self.frame[name]
        if not is_category(values):
            return self.style(name).text
        # Each category as it is spelt where it stands first.
        pairs = zip(reversed(values.tolist()), reversed(texts.tolist()), strict=True)
        return dict(pairs).__getitem__

    def _texts(self, name: str) -> "pd.Series[str]":
        """[N] a column's cells as they are spelt."""
        return self._read(usecols=[name], dtype=str, na_filter=False)[name]

    def _read(self, **options: Any) -> pd.DataFrame:
        separator = SEPARATORS[self.path.suffix.lower()]
        with reading(self.path), warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            try:
                frame: pd.DataFrame = pd.read_csv(
                    self.path, sep=separator, low_memory=False, **PRECISION, **options
                )
            except UnicodeDecodeError:  # which names no row, as this does
                list(self._cells.each(range(self._cells.count)))
                raise
        return frame


class ParquetTable(Source):
    """A Parquet file; its rows are counted from 0 on."""

    first = 0

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.path = path
        ParquetRecords(path)  # raises where there is no row, or one name for two columns
        with reading(path):
            self._table = pq.read_table(path).unify_dictionaries()
            self.frame = self._table.to_pandas()
        no_texts = [name for name in self.frame.columns if not isinstance(name, str)]
        if no_texts:
            raise MarshtestError(
                f"{path}: {no_texts[0]!r} is the name of a column and no text. Save the table with "
                "frame.columns.map(str) as its columns."
            )

    def scale(self, name: str) -> int | None:
        kind = self._table.schema.field(name).type
        return int(kind.scale) if pa.types.is_decimal(kind) else None

    def style(self, name: str) -> Style:
        return Style(self.scale(name) or 0)

    def write(self, out: Path, columns: Mapping[str, Column]) -> None:
        import pyarrow.parquet as pq

        table = self._table
        for name, column in columns.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), self._new(name, column))
        file = pq.ParquetFile(self.path)
        group = max(1, -(-len(table) // max(1, file.num_row_groups)))
        with pq.ParquetWriter(out, table.schema, compression=codec_of(file.metadata)) as writer:
            writer.write_table(table, row_group_size=group)

    def _new(self, name: str, column: Column) -> Any:
        """The column with new values in some rows."""
        cells = self._table.column(name).combine_chunks()
        kind, dictionary = cells.type, None
        if pa.types.is_dictionary(kind):
            # Its order stays, for it is the order of pandas's categories.
            dictionary, codes = cells.dictionary, cells.indices
            places = {value: place for place, value in enumerate(dictionary.to_pylist())}
            column = {row: places[value] for row, value in column.items()}
            cells, kind = codes, codes.type
        values = cells.to_pylist()
        for row, value in column.items():
            values[row] = _typed(value, kind)
        new = pa.array(values, kind)
        if dictionary is None:
            return new
        ordered = self._table.schema.field(name).type.ordered
        return pa.DictionaryArray.from_arrays(new, dictionary, ordered=ordered)


def open_source(path: Path) -> Source:
    """The table at `path`.

    Raises:
        MarshtestError: no such file, no CSV, TSV or Parquet, or one that cannot be read.
    """
    if not path.exists():
        raise MarshtestError(f"{path}: no such file. Give the path of the table.")
    if path.is_file() and is_parquet(path):
        return ParquetTable(path)
    if path.is_file() and path.suffix.lower() in SEPARATORS:
        return CsvTable(path)
    raise MarshtestError(f"{path}: a table is one file: .csv, .tsv or .parquet. Write it as such.")


def is_category(values: "pd.Series[Any]") -> bool:
    """Whether a column holds categories: no numbers, or two numbers alone."""
    numeric = pd.api.types.is_numeric_dtype(values.dtype)
    numbers = numeric and not pd.api.types.is_bool_dtype(values.dtype)
    return not numbers or values.nunique() == 2


def _typed(value: Any, kind: Any) -> Any:
    """A value as a column of the kind holds it."""
    if pa.types.is_integer(kind):
        return round(value)
    if pa.types.is_decimal(kind):
        return Decimal(f"{value:.{kind.scale}f}")
    return value
