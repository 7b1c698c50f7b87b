"""Data sets on disk, in the layouts that training pipelines read.

To dose one is to write it again, in the same layout, with some samples replaced and all else as it
was. Rows are streamed: the memory this takes does not grow with the number of samples.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from marshtest.errors import MarshtestError
from marshtest.kit.layouts.arrays import Npz, Safetensors
from marshtest.kit.layouts.base import KNOWN, Ids, Layout, Place, Value, files_of
from marshtest.kit.layouts.image_folder import ImageFolder
from marshtest.kit.layouts.parquet import Parquet, is_parquet

__all__ = ["Layout", "Place", "Value", "digest", "open_layout", "read"]

FILES: dict[str, Callable[[Path], Layout]] = {
    ".parquet": Parquet,
    ".npz": Npz,
    ".safetensors": Safetensors,
}


def open_layout(path: str | Path) -> Layout:
    """The data set at `path`, in whichever layout it is.

    Raises:
        MarshtestError: no such path, no known layout, a damaged file, no samples, bad labels.
    """
    path = Path(path)
    if not path.exists():
        raise MarshtestError(f"{path}: no such file or folder. Give the path of the data set.")
    if path.is_dir():
        parquet = any(is_parquet(Path(name)) for name in files_of(path))
        return Parquet(path) if parquet else ImageFolder(path)
    if path.suffix.lower() not in FILES:
        raise MarshtestError(f"{path}: not a data set in a known layout. {KNOWN}")
    return FILES[path.suffix.lower()](path)


def read(layout: Layout, ids: Ids) -> tuple[Value, Ids]:
    """The samples `ids` [P, *shape] and their labels [P], in increasing order of id.

    Raises:
        MarshtestError: they have different shapes, or one is not a good sample.
    """
    values: list[Value] = []
    labels = []
    for i, value, label in layout.each(ids):
        if values and value.shape != values[0].shape:
            raise MarshtestError(
                f"{layout.path}: sample {i} has shape {value.shape}, others {values[0].shape}; "
                "resize them to one size before dosing: noise is lost in resizing."
            )
        values.append(value)
        labels.append(label)
    return np.stack(values), np.array(labels, np.int64)


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file, or of a folder's sorted file names and contents."""
    if not path.exists():
        raise MarshtestError(f"{path}: no such file or folder.")
    if not path.is_dir():
        return _file_digest(path)
    names = hashlib.sha256()
    for name in files_of(path):
        names.update(os.fsencode(f"{name}\0{_file_digest(path / name)}\n"))
    return names.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
