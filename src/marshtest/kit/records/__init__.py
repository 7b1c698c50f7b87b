"""Text records on disk, in the layouts that fine-tuning pipelines read.

Records that get no mark keep their bytes, and memory does not grow with their texts.
"""

from collections.abc import Callable
from itertools import islice
from mimetypes import guess_type
from pathlib import Path

from marshtest.data.marks import Mark
from marshtest.kit.layouts.folders import files_of
from marshtest.kit.layouts.parquet import IMAGE_COLUMNS, is_parquet
from marshtest.kit.records.cells import SEPARATORS, Cells
from marshtest.kit.records.folder import TextFolder, is_text_file
from marshtest.kit.records.jsonl import Jsonl
from marshtest.kit.records.layout import Records
from marshtest.kit.records.lines import Lines
from marshtest.kit.records.parquet import ParquetRecords
from marshtest.plumbing.errors import MarshtestError

LINES: dict[str, Callable[[Path, Mark | None], Lines]] = {
    ".jsonl": Jsonl,
    ".ndjson": Jsonl,
    **dict.fromkeys(SEPARATORS, Cells),
}
FIRST = 100  # names of a folder that tell what it holds
KNOWN = "Known: .jsonl, .csv, .tsv, .parquet with texts, and a folder of .txt files."


def is_text(path: str | Path) -> bool:
    """Whether data are text records, by their names, and a Parquet file's by its columns."""
    path = Path(path)
    if path.is_dir():
        # The first files will do: a folder of images by class may have a million.
        names = list(islice(files_of(path), FIRST))
        images = any((guess_type(name)[0] or "").startswith("image/") for name in names)
        return any(map(is_text_file, names)) and not images
    if path.is_file() and is_parquet(path):
        import pyarrow.parquet as pq

        try:
            return not set(IMAGE_COLUMNS) & set(pq.read_schema(path).names)
        except (OSError, ValueError):
            return False  # damaged: the images' layout says so
    return path.suffix.lower() in LINES or is_text_file(path.name) or path.suffix.lower() == ".json"


def open_records(path: str | Path, mark: Mark | None = None) -> Records:
    """The text records at `path`, in whichever layout they are.

    Args:
        path: a file or folder.
        mark: a mark that `there` will be asked for: where possible it is looked for as the file is opened.

    Raises:
        MarshtestError: no such path, no known layout, a damaged file, or no records.
    """
    path = Path(path)
    if not path.exists():
        raise MarshtestError(f"{path}: no such file or folder. Give the path of the data set.")
    if path.is_dir():
        return TextFolder(path)
    if is_parquet(path):
        return ParquetRecords(path)
    if path.suffix.lower() not in LINES:
        raise MarshtestError(f"{path}: text records are not in a known layout. {KNOWN}")
    return LINES[path.suffix.lower()](path, mark)
