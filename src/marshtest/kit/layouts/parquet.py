"""Parquet files in the layout of Hugging Face."""

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import lazy_loader  # type: ignore[import-untyped]

from marshtest.kit.layouts.base import (
    CHUNK,
    HELD_OUT,
    KNOWN,
    Dosed,
    Ids,
    Layout,
    Place,
    Value,
    largest_of,
    reading,
    within,
)
from marshtest.kit.layouts.folders import copy_file, files_of
from marshtest.kit.layouts.pictures import Picture
from marshtest.plumbing.errors import MarshtestError

pa = lazy_loader.load("pyarrow")  # which no process of a model needs
ROWS = 64  # rows decoded at once
ROW_GROUP = 64 << 20  # bytes at which a row group is cut: the writer holds it whole
IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")
TRAIN = re.compile("train", re.IGNORECASE)


class Parquet(Layout):
    """Parquet files in the layout of Hugging Face: encoded images and integer labels."""

    def __init__(self, path: Path) -> None:
        self.path, self.pixels, self.encoded = path, True, True
        self._ids: dict[str, range] = {}  # ids of each file of the split
        self._columns: dict[str, tuple[str, str]] = {}  # each file's image and label column
        self.samples = 0
        for name in _training([name for name in files_of(path) if is_parquet(path / name)]):
            with self._file(name) as file:
                self._columns[name] = _columns(file.schema_arrow, path / name)
                self.names = self.names or _named_classes(file.schema_arrow, self._columns[name][1])
                self._ids[name] = range(self.samples, self.samples + file.metadata.num_rows)
            self.samples = self._ids[name].stop
        if not self.samples:
            raise MarshtestError(f"{path}: no samples to train on. {KNOWN}")
        # By name where there are names: a class need not have a sample in this split.
        self.classes = len(self.names) or max(map(self._largest_label, self._ids)) + 1

    def where(self, i: int) -> str:
        """File and row of an image."""
        return self._where(next(name for name, ids in self._ids.items() if i in ids), i)

    def _each(self, ids: Ids) -> Iterator[tuple[int, Value, int]]:
        for name, columns in self._columns.items():
            for first, batch, _ in self._batches(name, columns, ids):
                images, labels = (batch.column(column) for column in columns)
                for i in within(ids, first, len(batch)):
                    where = self._where(name, i)
                    label = self._label(labels[i - first].as_py(), where)
                    with reading(where):
                        cell = images[i - first].as_py()
                    yield i, _picture(cell, where).value, label

    def _write(self, out: Path, dosed: Dosed, ids: Ids, hide: bool) -> list[Place]:
        for name in files_of(self.path):
            if name in self._ids:
                self._write_file(name, out / name, dosed, ids, hide)
            else:
                copy_file(self.path / name, out / name)
        return [
            Place(i, name, i - rows.start)
            for name, rows in self._ids.items()
            for i in within(ids, rows.start, len(rows))
        ]

    def _write_file(self, name: str, out: Path, dosed: Dosed, ids: Ids, hide: bool) -> None:
        import pyarrow.parquet as pq

        out.parent.mkdir(parents=True, exist_ok=True)
        with self._file(name) as file:
            schema, codec = file.schema_arrow, _codec(file.metadata, self._columns[name][0])
        with pq.ParquetWriter(out, schema, compression=codec) as writer:
            batches: list[Any] = []
            size = 0
            for first, batch, last in self._batches(name):
                batches.append(self._dosed_batch(name, batch, first, dosed, ids, hide))
                size += batches[-1].nbytes
                if last or size >= ROW_GROUP:
                    writer.write_table(pa.Table.from_batches(batches))
                    batches, size = [], 0

    def _dosed_batch(
        self, name: str, batch: Any, first: int, dosed: Dosed, ids: Ids, hide: bool
    ) -> Any:
        dosed_ids = within(ids, first, len(batch))
        rewritten = list(range(first, first + len(batch))) if hide else dosed_ids
        if not rewritten:
            return batch
        column = batch.schema.get_field_index(self._columns[name][0])
        with reading(self.path / name):
            cells = batch.column(column).to_pylist()
        # The noise is put in one by one, in the order of ids: the digest of all dosed values, by which
        # the key is known to fit, is taken on the way.
        pictures = [_picture(cells[i - first], self._where(name, i)) for i in rewritten]
        values = [
            dosed(i, picture.value) if i in dosed_ids else picture.value
            for i, picture in zip(rewritten, pictures, strict=True)
        ]
        with ThreadPoolExecutor() as pool:  # compression leaves Python's lock
            images = pool.map(lambda p, value: p.png(value, hide=hide), pictures, values)
            for i, image in zip(rewritten, images, strict=True):
                cells[i - first] = _cell(cells[i - first], image)
        field = batch.schema.field(column)
        return batch.set_column(column, field, pa.array(cells, field.type))

    def _batches(
        self, name: str, columns: Sequence[str] = (), ids: Ids | None = None, rows: int = ROWS
    ) -> Iterator[tuple[int, Any, bool]]:
        """(id of its first row, batch, whether it ends a row group) of the row groups that hold `ids`."""
        first = self._ids[name].start
        with self._file(name) as file, reading(self.path / name):
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if ids is None or within(ids, first, end - first):
                    for batch in file.iter_batches(rows, [group], list(columns) or None):
                        yield first, batch, first + len(batch) == end
                        first += len(batch)
                    if first != end:
                        raise EOFError(f"row group {group} has fewer rows than its footer says")
                first = end

    def _largest_label(self, name: str) -> int:
        largest = -1
        # Labels are read alone, of at most eight bytes each, so more rows fit at once than of images.
        for first, batch, _ in self._batches(name, self._columns[name][1:], rows=CHUNK // 8):
            column, row = batch.column(0), first - self._ids[name].start
            if column.null_count:  # not filled with −1, which unsigned labels cannot be
                row += column.is_null().index(True).as_py()
                raise MarshtestError(
                    f"{self.path / name}: row {row} has no label, or a negative one. Correct or drop it."
                )
            labels = column.to_numpy(zero_copy_only=False)
            largest = max(largest, largest_of(labels, row, self.path / name))
        return largest

    def _where(self, name: str, i: int) -> str:
        return f"{self.path / name}: row {i - self._ids[name].start}"

    def _file(self, name: str) -> Any:
        import pyarrow.parquet as pq

        with reading(self.path / name):
            return pq.ParquetFile(self.path / name, buffer_size=CHUNK)


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet, by its name."""
    return path.suffix.lower() == ".parquet"


def _training(names: list[str]) -> list[str]:
    """The files that say "train" in their names, or else in their folders'; or else all not held out."""
    for part in (lambda name: PurePosixPath(name).name, str):
        if chosen := [name for name in names if TRAIN.search(part(name))]:
            return chosen
    return [name for name in names if not HELD_OUT.search(name)]


def _columns(schema: Any, where: Path) -> tuple[str, str]:
    """The names of the image and the label column."""
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        raise MarshtestError(
            f"{where}: has the columns {', '.join(schema.names)}. It needs an image column "
            f"({' or '.join(IMAGE_COLUMNS)}) and labels ({' or '.join(LABEL_COLUMNS)}); a table of numbers "
            "needs --label and --columns."
        )
    if twice := [name for name in (image, label) if schema.names.count(name) > 1]:
        raise MarshtestError(f"{where}: has two columns {twice[0]!r}. Drop or rename one.")
    stored = schema.field(image).type
    if pa.types.is_struct(stored) and stored.get_field_index("bytes") >= 0:
        stored = stored.field("bytes").type
    if not (pa.types.is_binary(stored) or pa.types.is_large_binary(stored)):
        raise MarshtestError(
            f"{where}: column {image!r} is {schema.field(image).type}, not encoded images. "
            "Store PNG or JPEG bytes, or write an .npz of arrays."
        )
    if not pa.types.is_integer(schema.field(label).type):
        raise MarshtestError(
            f"{where}: column {label!r} is {schema.field(label).type}. Store labels as integers."
        )
    return image, label


def _named_classes(schema: Any, label: str) -> tuple[str, ...]:
    """Names of the classes that Hugging Face's metadata give the label; none if there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def _codec(metadata: Any, image: str) -> str:
    """The compression of the image column."""
    for index in range(metadata.num_columns if metadata.num_row_groups else 0):
        column = metadata.row_group(0).column(index)
        if column.path_in_schema.split(".")[0] == image:
            return str(column.compression).replace("UNCOMPRESSED", "NONE")
    return "NONE"


def _picture(cell: Any, where: str) -> Picture:
    """The picture in a cell: bytes, or a struct of bytes and a path."""
    stored = cell.get("bytes") if isinstance(cell, dict) else cell
    if stored is None:
        raise MarshtestError(f"{where} holds no image bytes. Embed the image, or drop the row.")
    return Picture.read(BytesIO(stored), where)


def _cell(old: Any, image: bytes) -> Any:
    """The cell with another image; its path, if any, keeps its stem and ends in .png."""
    if not isinstance(old, dict):
        return image
    path = old.get("path")
    if isinstance(path, str) and PurePosixPath(path).suffix.lower() not in ("", ".png"):
        old = old | {"path": str(PurePosixPath(path).with_suffix(".png"))}
    return old | {"bytes": image}
