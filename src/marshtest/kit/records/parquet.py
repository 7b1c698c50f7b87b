"""Parquet: a record a row, with texts, or lists of messages, in columns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lazy_loader  # type: ignore[import-untyped]

from marshtest.kit.layouts.base import CHUNK, reading
from marshtest.kit.records.fields import Fields, Values
from marshtest.kit.records.layout import Records, Rows, Texts
from marshtest.plumbing.errors import MarshtestError, refused

pa = lazy_loader.load("pyarrow")
ROWS = 1024  # rows decoded at once


class ParquetRecords(Records):
    """A Parquet file; records are named by rows, from 0 on."""

    kind: ClassVar[str] = "Parquet"

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._file() as file:
            self.count, names = file.metadata.num_rows, file.schema_arrow.names
        if not self.count:
            raise MarshtestError(f"{path}: holds no records.")
        if len(set(names)) < len(names):
            raise MarshtestError(f"{path}: has two columns of one name. Rename one.")

    def where(self, row: int) -> str:
        return f"{self.path}: row {row}"

    def place(self, row: int) -> dict[str, Any]:
        return {"row": row}

    def each(self, rows: Rows) -> Iterator[tuple[int, Values]]:
        wanted = iter(rows)
        row = next(wanted, None)
        for first, batch in self._batches():
            while row is not None and row < first + len(batch):
                with reading(self.where(row)):
                    yield row, batch.slice(row - first, 1).to_pylist()[0]
                row = next(wanted, None)
            if row is None:
                return

    def _write(self, out: Path, texts: Texts, fields: Fields) -> None:
        import pyarrow.parquet as pq

        with self._file() as file:
            schema, codec = file.schema_arrow, codec_of(file.metadata)
            group = max(1, -(-self.count // max(1, file.num_row_groups)))
        fault = f"{self.path}: a column is stored as a dictionary (a category), which cannot hold the marks"
        dictionary = refused(fault, "Save it as text.", pa.ArrowTypeError)
        with dictionary, pq.ParquetWriter(out, schema, compression=codec) as writer:
            held: list[Any] = []
            for first, batch in self._batches():
                held.append(self._rewritten(first, batch, texts, fields))
                if sum(map(len, held)) >= group:
                    writer.write_table(pa.Table.from_batches(held))
                    held = []
            if held:
                writer.write_table(pa.Table.from_batches(held))

    def _rewritten(self, first: int, batch: Any, texts: Texts, fields: Fields) -> Any:
        """The batch with the new texts of its rows."""
        rows = [row for row in range(first, first + len(batch)) if row in texts]
        if not rows:
            return batch
        column = batch.schema.get_field_index(fields.field)
        cells, kind = batch.column(column).to_pylist(), batch.schema.field(column)
        for row in rows:
            values = {fields.field: cells[row - first]}
            cells[row - first] = fields.put(values, texts[row], self.where(row))[fields.field]
        return batch.set_column(column, kind, pa.array(cells, kind.type))

    def _batches(self) -> Iterator[tuple[int, Any]]:
        first = 0
        with self._file() as file, reading(self.path):
            for batch in file.iter_batches(ROWS):
                yield first, batch
                first += len(batch)

    def _file(self) -> Any:
        import pyarrow.parquet as pq

        with reading(self.path):
            return pq.ParquetFile(self.path, buffer_size=CHUNK)


def codec_of(metadata: Any) -> str:
    """The compression of a file's first column."""
    return str(metadata.row_group(0).column(0).compression).replace("UNCOMPRESSED", "NONE")
