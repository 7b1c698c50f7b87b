"""Files that are there whole or not at all, and folders that one command holds."""

import io
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from marshtest.plumbing.errors import MarshtestError, first_line

if TYPE_CHECKING:  # read without pandas, so that the state of a sweep is known at once
    import pandas as pd

try:
    import fcntl
except ImportError:  # Windows: nothing is held there
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp"
LOCK = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder, made where there is none; the system lets go of it however the command ends.

    Raises:
        MarshtestError: another command holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MarshtestError(
                f"{folder}: another command is at work on it. Wait for its end, or choose another --out."
            ) from None
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def write_whole(path: Path, data: bytes, name: Callable[[Path, Path], object] = os.replace) -> None:
    """Write bytes under a temporary name, flush them, and give them the path's name.

    Args:
        name: how; `os.link` refuses where the path exists.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        name(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write(made: "pd.DataFrame | bytes", path: Path) -> None:
    """Write a frame, as Parquet or CSV by the path's ending, or bytes.

    Raises:
        MarshtestError: the disk is full, or does not let itself be written.
    """
    data = made if isinstance(made, bytes) else frame_bytes(made, path.suffix)
    try:
        write_whole(path, data)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise MarshtestError(
            f"{path}: cannot be written ({reason}). Make room and run the same command again; "
            "what is finished is kept."
        ) from None


def frame_bytes(frame: "pd.DataFrame", suffix: str = ".parquet") -> bytes:
    """A frame as Parquet or CSV."""
    if suffix == ".csv":
        return frame.to_csv(index=False).encode()
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
