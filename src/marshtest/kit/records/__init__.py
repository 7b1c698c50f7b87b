"""Text records on disk, in the layouts that fine-tuning pipelines read.

Records that get no mark keep their bytes, and memory does not grow with their texts.
"""

from collections.abc import Callable
from pathlib import Path

from marshtest.kit.layouts.folders import files_of
from marshtest.kit.layouts.parquet import IMAGE_COLUMNS, is_parquet
from marshtest.kit.records.cells import SEPARATORS, Cells
from marshtest.kit.records.folder import TextFolder, is_text_file
from marshtest.kit.records.jsonl import Jsonl
from marshtest.kit.records.layout import Records
from marshtest.kit.records.parquet import ParquetRecords
from marshtest.plumbing.errors import MarshtestError

FILES: dict[str, Callable[[Path], Records]] = {
    ".jsonl": Jsonl,
    ".ndjson": Jsonl,
    ".parquet": ParquetRecords,
    **dict.fromkeys(SEPARATORS, Cells),
}
KNOWN = "Known: .jsonl, .csv, .tsv, .parquet with texts, and a folder of .txt files."


def is_text(path: str | Path) -> bool:
    """Whether data are text records, by their names, and a Parquet file's by its columns."""
    path = Path(path)
    if path.is_dir():
        # The first file will do: a folder of images by class may have a million.
        return is_text_file(next(files_of(path), ""))
    if path.is_file() and is_parquet(path):
        import pyarrow.parquet as pq

        try:
            return not set(IMAGE_COLUMNS) & set(pq.read_schema(path).names)
        except (OSError, ValueError):
            return False  # damaged: the images' layout says so
    return path.suffix.lower() in FILES or is_text_file(path.name) or path.suffix.lower() == ".json"


def open_records(path: str | Path) -> Records:
    """The text records at `path`, in whichever layout they are.

    Raises:
        MarshtestError: no such path, no known layout, a damaged file, or no records.
    """
    path = Path(path)
    if not path.exists():
        raise MarshtestError(f"{path}: no such file or folder. Give the path of the data set.")
    if path.is_dir():
        return TextFolder(path)
    if path.suffix.lower() not in FILES:
        raise MarshtestError(f"{path}: text records are not in a known layout. {KNOWN}")
    return FILES[path.suffix.lower()](path)
