"""A store of finished work: a folder, or any fsspec location, that survives being killed at any moment.

    store.json                  the version of this layout
    records/KEY.json            what was made, of what, its numbers, the digests of its files
    stages/KEY/                 those files: safetensors and Parquet
    sweeps/NAME-HASH.json       what a sweep consists of
    failures/KEY.json           why a stage failed, with its traceback
    partial/KEY/                what an unfinished stage has so far
    locks/KEY.N, drivers/ID     who is at work on what (see marshtest.sweeps.locks)

KEY is the kind of a stage and the hash of all that it depends on. A file is written under a temporary
name, flushed and renamed; where a location knows no renaming, an object store, a file appears whole as it
is. A record is written behind its files, so a stage without a record was never made.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from marshtest.plumbing.derived import hashed, plain
from marshtest.plumbing.errors import MarshtestError, first_line
from marshtest.plumbing.whole_files import write_whole

FORMAT = 1


class StoreError(MarshtestError):
    """The store cannot be written; what is recorded in it stays."""


class DamagedError(Exception):
    """A stored file is not what was written, or is gone.

    Attributes:
        key: of the stage.
        what: the name of the file, or "record".
    """

    def __init__(self, key: str, what: str) -> None:
        super().__init__(key, what)  # both, so that it can travel between processes
        self.key, self.what = key, what


class Store:
    """Records and files by name.

    Args:
        url: a folder, or what fsspec takes: memory://…, s3://….

    Raises:
        MarshtestError: written by a newer version, no store, or not to be reached.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        try:
            self._fs, root = url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise MarshtestError(f"store: {self.url}: {first_line(error)}") from None
        self._root, self._local = root.rstrip("/"), isinstance(self._fs, LocalFileSystem)
        try:
            about = json.loads(self.read("store.json"))
        except FileNotFoundError:
            others = {name for name in self.names("") if name[0] != "."}
            if others and not self.exists:  # another driver may have made it meanwhile
                raise MarshtestError(
                    f"store: {self.url} is not empty and holds no store. Choose another."
                ) from None
        except ValueError:
            raise MarshtestError(f"store: {self.url}/store.json is not JSON. Restore it.") from None
        else:
            if not isinstance(about, dict) or not isinstance(about.get("format", 0), int):
                raise MarshtestError(
                    f'store: {self.url}/store.json says no format. Restore it: {{"format": {FORMAT}}}.'
                )
            if about.get("format", 0) > FORMAT:
                raise MarshtestError(
                    f"store: {self.url} was written by a newer marshtest (format {about['format']}; "
                    f"this one knows {FORMAT}). Update marshtest, or choose another store."
                )

    @property
    def exists(self) -> bool:
        """Whether anything was ever written into the store."""
        return bool(self._fs.exists(self._path("store.json")))

    def prepare(self) -> None:
        """Make the location a store, where it is none yet."""
        if not self.exists:
            self.write("store.json", json.dumps({"format": FORMAT}).encode())

    # Files

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        data: bytes = self._fs.cat_file(self._path(name))
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            StoreError: the disk is full, or does not let itself be written.
        """
        try:
            if self._local:
                write_whole(Path(self._path(name)), data)
            else:
                self._fs.pipe_file(self._path(name), data)
        except OSError as error:
            raise self._cannot(name, error) from None

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that nobody wrote before; False where somebody did."""
        try:
            if self._local:
                # A link fails where the name is taken; renaming would replace the other's file.
                write_whole(Path(self._path(name)), data, os.link)
            else:
                self._fs.pipe_file(self._path(name), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            raise self._cannot(name, error) from None
        return True

    def _cannot(self, name: str, error: OSError) -> StoreError:
        reason = error.strerror or first_line(error)
        return StoreError(
            f"store: {self.url}/{name}: cannot be written ({reason}). Make room, or choose a place that "
            "can be written, and run the same command again; what is recorded is kept."
        )

    def names(self, folder: str) -> set[str]:
        """Names of a folder's entries; none where there is no folder."""
        try:
            if self._local:
                return set(os.listdir(self._path(folder)))
            self._fs.invalidate_cache()  # fsspec remembers; another driver may have written since
            paths = self._fs.ls(self._path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return set()
        return {str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths}

    def find(self, folder: str) -> list[str]:
        """Names of all files below a folder."""
        self._fs.invalidate_cache()
        root = self._path(folder)
        return sorted(str(path)[len(self._root) + 1 :] for path in self._fs.find(root))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none."""
        try:
            with suppress(FileNotFoundError):
                self._fs.rm(self._path(name), recursive=True)
        except OSError as error:
            raise self._cannot(name, error) from None

    # Records

    def recorded(self) -> set[str]:
        """Keys of all stages that were made."""
        return {name.removesuffix(".json") for name in self.names("records") if name[0] != "."}

    def is_recorded(self, key: str) -> bool:
        """Whether a stage was made."""
        return bool(self._fs.exists(self._path(f"records/{key}.json")))

    def record(self, key: str, values: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Write a stage's files, then its record."""
        for name, data in files.items():
            self.write(f"stages/{key}/{name}", data)
        digests = {name: _digest(data) for name, data in files.items()}
        # There and back, so that the digest is of what a reader will find: tuples are lists by then.
        record = json.loads(json.dumps({**values, "files": digests}, default=plain))
        body = {"digest": hashed(record), "made": record}
        self.write(f"records/{key}.json", json.dumps(body, indent=1).encode())

    def load(self, key: str) -> dict[str, Any]:
        """A record's values.

        Raises:
            DamagedError: they are not as they were written.
        """
        try:
            body = json.loads(self.read(f"records/{key}.json"))
            record: dict[str, Any] = body["made"]
            sound = hashed(record) == body["digest"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            raise DamagedError(key, "record") from None
        if not sound:
            raise DamagedError(key, "record")
        return record

    def file(self, key: str, name: str) -> bytes:
        """One of a stage's files.

        Raises:
            DamagedError: it is not as it was written.
        """
        expected = self.load(key)["files"].get(name)
        try:
            data = self.read(f"stages/{key}/{name}")
        except FileNotFoundError:
            raise DamagedError(key, name) from None
        if _digest(data) != expected:
            raise DamagedError(key, name)
        return data

    def set_aside(self, key: str, name: str, data: bytes) -> None:
        """Keep what an unfinished stage has made so far."""
        # Digest and data in one file: two files could be of two attempts.
        self.write(f"partial/{key}/{name}", f"{_digest(data)}\n".encode() + data)

    def was_set_aside(self, key: str, name: str) -> bytes | None:
        """The bytes that an earlier attempt at a stage set aside; None where there are none, or damaged."""
        try:
            digest, _, data = self.read(f"partial/{key}/{name}").partition(b"\n")
        except FileNotFoundError:
            return None
        return data if digest == _digest(data).encode() else None

    def forget(self, key: str) -> None:
        """Remove a stage: its record first."""
        self.remove(f"records/{key}.json")
        self.remove(f"stages/{key}")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
