"""Data sets on disk, in the layouts that training pipelines read.

Dosing writes a data set again, in the same layout, with some samples replaced and all else as it was. Rows
are streamed, so the memory needed does not grow with the number of samples.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from marshtest.kit.layouts.arrays import Npz, Safetensors
from marshtest.kit.layouts.base import KNOWN, Ids, Layout, Value
from marshtest.kit.layouts.folders import files_of
from marshtest.kit.layouts.image_folder import ImageFolder
from marshtest.kit.layouts.parquet import Parquet, is_parquet
from marshtest.plumbing.errors import MarshtestError

FILES: dict[str, Callable[[Path], Layout]] = {
    ".parquet": Parquet,
    ".npz": Npz,
    ".safetensors": Safetensors,
}


def open_layout(path: str | Path) -> Layout:
    """The data set at `path`, in whichever layout it is.

    Raises:
        MarshtestError: no such path, no known layout, a damaged file, no samples, or bad labels.
    """
    path = Path(path)
    if not path.exists():
        raise MarshtestError(f"{path}: no such file or folder. Give the path of the data set.")
    if path.is_dir():
        parquet = any(is_parquet(Path(name)) for name in files_of(path))
        return Parquet(path) if parquet else ImageFolder(path)
    if path.suffix.lower() not in FILES or not path.is_file():
        raise MarshtestError(f"{path}: not a data set of images in a known layout. {KNOWN}")
    return FILES[path.suffix.lower()](path)


def alike(layout: Layout, ids: Ids) -> Iterator[tuple[int, Value, int]]:
    """(id, value, label) of the samples `ids` in increasing order of id, all of one shape.

    Raises:
        MarshtestError: the samples have different shapes, or one is damaged.
    """
    first = None
    for i, value, label in layout.each(ids):
        first = first or (i, value.shape)
        if value.shape != first[1]:
            raise MarshtestError(
                f"{layout.where(i)}: has shape {list(value.shape)}, and {layout.where(first[0])} "
                f"{list(first[1])}. Convert all to one size and mode before dosing: resizing later would "
                "lose the noise."
            )
        yield i, value, label


def read(layout: Layout, ids: Ids) -> tuple[Value, Ids]:
    """The samples `ids` [P, *shape], all of one shape, and their labels [P], in increasing order of id."""
    _, values, labels = zip(*alike(layout, ids), strict=True)
    return np.stack(values), np.array(labels, np.int64)
