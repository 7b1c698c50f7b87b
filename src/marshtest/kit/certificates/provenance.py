"""What an audit was of: which key and which models, by digest, and with which options they were asked."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marshtest.kit.certificates.commitment import key_digest, sha256
from marshtest.kit.sealed import Sealed
from marshtest.plumbing.errors import MarshtestError, refused

FACTORY = ".safetensors@"


@dataclass(frozen=True)
class Part:
    """A file or folder that a model was opened from."""

    path: str  # as it was given
    sha256: str  # of the file; of a folder, of what `sha256sum` says of its files


@dataclass(frozen=True)
class Provenance:
    """The digests of key and models, taken before the first question, and the options of the audit."""

    key: str = ""  # SHA-256 of the key's file
    # for each model its parts; none of a function, a black box or an endpoint
    models: tuple[tuple[Part, ...], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # those that are needed to ask again

    @classmethod
    def of(cls, key: Sealed | str | Path, models: Sequence[object], **options: Any) -> "Provenance":
        """The provenance of an audit that is about to begin.

        Args:
            key: the key, or its file.
            models: the models as they are given to `audit`, in order.
            **options: options of `audit` that are needed to ask again.

        A file that cannot be read is no reason against an audit, but one against its certificate.
        """
        parts = []
        for model in models:
            try:
                parts.append(parts_of(model))
            except MarshtestError:
                parts.append((Part(str(model), ""),))
        return cls(key_digest(key), tuple(parts), options)

    def refuse_changed(self) -> None:
        """Raise if a model is not what it was when the audit began, or cannot be read for its digest."""
        for part in (part for parts in self.models for part in parts):
            if not os.path.exists(part.path) or digest_of(part.path) != part.sha256:
                raise MarshtestError(
                    f"{part.path}: changed while it was asked, so that there is no certificate. Ask "
                    "again when nobody writes to it."
                )


def parts_of(spec: object) -> tuple[Part, ...]:
    """The files and folders that a model is opened from; none if it is known by its answers alone."""
    if not isinstance(spec, str):
        return ()
    folder, _, adapter = spec.partition("@")
    if os.path.isdir(spec) or os.path.isfile(spec):  # its own name may have an @
        paths = [spec]
    elif FACTORY in spec:
        paths = [spec.partition(FACTORY)[0] + FACTORY[:-1]]
    else:
        paths = [folder, adapter]
    if not all(map(os.path.exists, paths)):  # not a path at all, or one that `audit` will refuse
        return ()
    return tuple(Part(path, digest_of(path)) for path in paths)


def digest_of(path: str) -> str:
    """SHA-256 of a file; of a folder, of the lines that `sha256sum` prints of its files, by name.

    Names begin with ./ and are sorted by their bytes; hidden files do not count, and links are followed, as
    a hub's folder holds them:

        find -L . -type f -not -path '*/.*' -print0 | sort -z | xargs -0 sha256sum | sha256sum

    Raises:
        MarshtestError: a file cannot be read, or its name has a character that `sha256sum` spells out: two
            folders could have the same lines.
    """
    with refused(f"{path}: cannot be read for its digest", kinds=OSError):
        if not os.path.isdir(path):
            return file_digest(path)
        names = sorted(os.fsencode(name) for name in _files(path, ".", frozenset()))
        lines = [
            f"{file_digest(os.path.join(os.fsencode(path), name))}  ".encode() + name + b"\n"
            for name in names
        ]
        return sha256(b"".join(lines))


def file_digest(path: str | bytes) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(root: str, name: str, above: frozenset[str]) -> Iterator[str]:
    """The names of a folder's files; a link to a folder above is not followed again."""
    here = os.path.realpath(os.path.join(root, name))
    if here in above:
        return
    for entry in os.scandir(os.path.join(root, name)):
        path = f"{name}/{entry.name}"
        if entry.name.startswith("."):
            continue
        if set(entry.name) & set("\n\r\\"):
            raise MarshtestError(
                f"{root}: {path!a} has a line break or backslash in its name. Rename it."
            )
        if entry.is_dir():
            yield from _files(root, path, above | {here})
        elif entry.is_file():
            yield path
