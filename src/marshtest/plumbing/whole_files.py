"""Files that appear whole or not at all, and folders that one command holds."""

import errno
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from marshtest.plumbing.errors import MarshtestError, first_line

if TYPE_CHECKING:  # read without pandas, so that the state of a sweep is known at once
    import pandas as pd

try:
    import fcntl
except ImportError:  # Windows has no such locks: folders are not held there
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp"
LOCK = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder, made if needed, until the command ends; a MarshtestError if another one holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            file = stack.enter_context((folder / LOCK).open("w"))
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MarshtestError(
                    f"{folder}: another command is at work on it. Wait for its end, or choose another "
                    "--out."
                ) from None
            # Who held it may have removed the file in between: then this lock keeps nobody out.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
                    break
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def refuse_unwritable(folder: Path) -> None:
    """Raise MarshtestError if a folder cannot be made or written to: before hours of work, not after."""
    above = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not above.is_dir():
        raise MarshtestError(f"{folder}: {above} is a file, not a folder. Choose another --out.")
    if not os.access(above, os.W_OK):
        raise MarshtestError(f"{folder}: cannot be written to. Choose another --out.")


def _beside(path: Path) -> Path:
    """A temporary name of nobody else, in the same folder: a rename is atomic within one file system."""
    return path.with_name(f".{uuid.uuid4().hex}{TEMPORARY}")


def write_whole(path: Path, data: bytes, name: Callable[[Path, Path], object] = os.replace) -> None:
    """Write bytes under a temporary name, flush them, and then give the file its name.

    A folder is made if needed. `os.link` in place of `os.replace` refuses to overwrite.
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            # Without it a crash of the machine could leave the name without content.
            os.fsync(file.fileno())
        name(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Give a name beside `out`; the file or folder that is written under it is renamed to `out` at the end.

    Raises:
        MarshtestError: it cannot be written.
    """
    temporary = _beside(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Made by another since it was looked for: a rename would replace a file.
        if os.path.lexists(out):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        temporary.rename(out)
    except OSError as error:
        raise MarshtestError(f"{out}: cannot be written ({error}).") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            with suppress(OSError):
                temporary.unlink()


def write(content: "pd.DataFrame | bytes", path: Path) -> None:
    """Write bytes, or a frame as Parquet or CSV by the path's ending.

    Raises:
        MarshtestError: the file cannot be written, for example on a full disk.
    """
    data = content if isinstance(content, bytes) else frame_bytes(content, path.suffix)
    try:
        write_whole(path, data)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise MarshtestError(
            f"{path}: cannot be written ({reason}). Make room and run the same command again; "
            "what is finished is kept."
        ) from None


def frame_bytes(frame: "pd.DataFrame", suffix: str = ".parquet") -> bytes:
    """A frame as the bytes of a Parquet file, or of CSV if the suffix is ".csv"."""
    if suffix == ".csv":
        return frame.to_csv(index=False).encode()
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
