"""Folders of files: which files are data, their digest, and copies whose times tell nothing of the dose."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.file_digests import HIDDEN, file_digest

UNDECODED = re.compile("[\ud800-\udfff]")  # how Python holds bytes of a name that are not UTF-8
MARK = 8  # hex digits that a key keeps of each file


@dataclass(frozen=True)
class Digest:
    """Digests that tell whether data have changed."""

    whole: str  # SHA-256 (hex) of a file, or of a folder's sorted file names and contents
    files: str = ""  # eight hex digits of each file, in that order; empty for a file


def digest(path: Path) -> Digest:
    """The digest of a file, or of a folder of files and folders; hidden files do not count."""
    if not path.exists():
        raise MarshtestError(f"{path}: no such file or folder. Give the path of the data set.")
    if not path.is_dir():
        return Digest(file_digest(path))
    whole, marks = hashlib.sha256(), []
    for name in files_of(path):
        line = os.fsencode(f"{name}\0{file_digest(path / name)}\n")
        whole.update(line)
        marks.append(hashlib.sha256(line).hexdigest()[:MARK])
    return Digest(whole.hexdigest(), "".join(marks))


def strangers(path: Path, now: Digest, then: str) -> list[str]:
    """Names of the files of a folder that `files` of an earlier digest does not know."""
    known = set(_marks(then))
    marks = zip(files_of(path), _marks(now.files), strict=True)
    return [name for name, mark in marks if mark not in known]


def _marks(files: str) -> list[str]:
    return [files[at : at + MARK] for at in range(0, len(files), MARK)]


def files_of(path: Path, prefix: str = "") -> Iterator[str]:
    """Relative paths of a folder's files, sorted; "" for a file. One folder's names are held at a time.

    Raises:
        MarshtestError: a link, whose target would be given away; a pipe; or a name that is not UTF-8.
    """
    if not path.is_dir():
        yield prefix
        return
    with os.scandir(path) as entries:  # the slash makes folders sort as their files' paths do
        names = sorted(_checked(entry) for entry in entries if not HIDDEN.match(entry.name))
    for name in names:
        if name.endswith("/"):
            yield from files_of(path / name, prefix + name)
        else:
            yield prefix + name


def folders_of(path: Path) -> list[str]:
    """Sorted names of the folders in a folder; none if the path is no folder."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        names = [_checked(entry) for entry in entries if not HIDDEN.match(entry.name)]
    return sorted(name[:-1] for name in names if name.endswith("/"))


def _checked(entry: os.DirEntry[str]) -> str:
    """The entry's name, with a slash behind it if it is a folder."""
    if entry.is_symlink():
        raise MarshtestError(
            f"{entry.path}: is a link, and its target would be given away with the data. "
            "Copy the data without links first (cp -rL)."
        )
    if not entry.is_dir() and not entry.is_file():
        raise MarshtestError(f"{entry.path}: is neither a file nor a folder. Remove it.")
    if UNDECODED.search(entry.name):
        raise MarshtestError(f"{entry.path!a}: its name is not UTF-8. Rename it.")
    return entry.name + "/" * entry.is_dir()


def create_file(path: Path) -> None:
    """Make an empty file, and its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(exist_ok=False)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file byte for byte, and make its folder if needed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def newest(path: Path) -> int:
    """The latest modification time of a file, or of a folder's files, in nanoseconds."""
    return max((path / name).stat().st_mtime_ns for name in files_of(path))


def set_times(path: Path, time: int) -> None:
    """Give all files and folders at `path` one modification and access time, in nanoseconds.

    The times of the last change of metadata, which cannot be set, then follow the order of the files alone.
    As they were written, a dosed file took longer.
    """
    for folder, _, names in sorted(os.walk(path)):
        for name in sorted(names):
            os.utime(os.path.join(folder, name), ns=(time, time))
        os.utime(folder, ns=(time, time))
    if not path.is_dir():
        os.utime(path, ns=(time, time))
