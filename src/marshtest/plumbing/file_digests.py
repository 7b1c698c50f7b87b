"""Digests of files on disk, by which what was read of them is told from what they hold later."""

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from marshtest.plumbing.errors import refused


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_digest(files: Mapping[str, Path], where: str) -> str:
    """Sixteen hex digits of files, by the names that they are given here and their bytes.

    Raises:
        MarshtestError: one cannot be read; the line begins with `where`.
    """
    digested = hashlib.sha256()
    for name, path in files.items():
        with refused(f"{where}: cannot read {path}", kinds=OSError):
            of_file = _remembered(path.absolute(), path.stat().st_mtime_ns)
        digested.update(os.fsencode(f"{name}\0{of_file}\n"))
    return digested.hexdigest()[:16]


@cache
def _remembered(path: Path, changed: int) -> str:
    """A file is read once for all variants of a sweep, unless it `changed`."""
    return file_digest(path)
