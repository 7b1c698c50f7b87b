"""The place of a data set: a local folder, or the Hugging Face hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from marshtest.plumbing.errors import MarshtestError, refused
from marshtest.plumbing.file_digests import below, files_digest

DATA_FOLDER_VARIABLE = "MARSHTEST_DATA"
HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "imdb": "stanfordnlp/imdb"}


def _folder(name: str, path: str | None) -> str | None:
    """The folder or file of a data set on this machine; None if it is read from the hub or a library."""
    if name == "digits":
        if path is not None:
            raise MarshtestError("data.path: digits ships inside scikit-learn and takes no path.")
        return None
    if path is None and DATA_FOLDER_VARIABLE in os.environ:
        candidate = Path(os.environ[DATA_FOLDER_VARIABLE]) / name
        path = str(candidate) if candidate.is_dir() else None
    if name == "tensors":
        return path  # a file
    if path is not None and not Path(path).is_dir():
        raise MarshtestError(f"data.path: no folder {path!r}. Give the folder of the {name} files.")
    return path


def _tables(path: str, split: str) -> list[str]:
    """A split's Parquet files in a folder, sorted: ids are row numbers, and a file system has no order."""
    return sorted(str(file) for file in Path(path).glob(f"**/{split}*.parquet"))


def copy_digest(name: str, path: str | None) -> str | None:
    """Sixteen hex digits of the files that a data set is read from; None if it is not in a folder here.

    A copy by the same name may hold images encoded otherwise, or the samples in another order.
    """
    if path is not None and not Path(path).exists():
        return None  # a sweep may be started on a machine without its workers' data
    folder = _folder(name, path)
    return None if folder is None else _digest(folder)


def _digest(folder: str) -> str:
    files: dict[str, Path] = {}
    tables = {split: _tables(folder, split) for split in ("train", "test")}
    if not any(tables.values()):
        return files_digest(below(Path(folder)), "data")
    for split, found in tables.items():
        files |= {f"{split} {place}": Path(f) for place, f in enumerate(found)}
        if not found:  # one split may be a folder of images beside the other's table
            images = below(Path(folder) / split)
            files |= {f"{split}/{name}": file for name, file in images.items()}
    return files_digest(files, "data")


@contextmanager
def _without_bars() -> Iterator[None]:
    """Let `datasets` draw no progress bars inside; the process's choice stands again afterwards."""
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@_without_bars()
def _open(hub_name: str, path: str | None, split: str) -> Any:
    import datasets  # slow to import, and digits and files of tensors need none of it

    mend = "Set data.path, or MARSHTEST_DATA, to a local copy."
    if path is None and Path(hub_name).exists():  # `datasets` would read it in the hub's place
        raise MarshtestError(
            f"data: a folder {hub_name} is here. To read it, give it as data.path."
        )
    with refused(f"data: cannot read {path or hub_name}", mend):
        if path is None:
            return datasets.load_dataset(hub_name, split=split)
        # `datasets` keeps what it read, and tells files apart by path and time alone.
        kept = _digest(path)
        if files := _tables(path, split):
            return datasets.load_dataset("parquet", kept, data_files={split: files}, split=split)
        if (Path(path) / split).is_dir():
            return datasets.load_dataset("imagefolder", kept, data_dir=path, split=split)
    raise MarshtestError(
        f"data.path: {path!r} holds neither {split}*.parquet nor a folder {split}/ of class folders."
    )
