"""Digests of files on disk, by which what was read of them is told from what they hold later."""

import hashlib
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from marshtest.plumbing.errors import refused

HIDDEN = re.compile(r"\.|(thumbs\.db|desktop\.ini)$", re.IGNORECASE)  # made by systems, not data


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
            found = path.stat()
            of_file = _remembered(path.resolve(), found.st_ino, found.st_size, found.st_mtime_ns)
        digested.update(os.fsencode(f"{name}\0{of_file}\n"))
    return digested.hexdigest()[:16]


def below(folder: Path) -> dict[str, Path]:
    """The files in a folder and its folders by their paths in it, sorted; hidden ones do not count."""
    named = ((path.relative_to(folder), path) for path in sorted(folder.rglob("*")))
    return {
        str(name): path
        for name, path in named
        if path.is_file() and not any(map(HIDDEN.match, name.parts))
    }


@cache
def _remembered(path: Path, *_: int) -> str:
    """A file is read once for all variants of a sweep, unless something of it changed."""
    return file_digest(path)
