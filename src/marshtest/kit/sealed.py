"""Files that hold a secret: closed to others, and sealed against accidents."""

import hashlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any, Self

from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings

KEY_BYTES = 1 << 28  # no key is larger, so no larger file is read
LINE = 300  # characters of an error that quotes the file


class Sealed(Settings):
    """Settings that are kept in a file with a digest of their content."""

    format: str

    def save(self, path: Path) -> None:
        """Write the key as JSON to a new file, sealed with a digest of its content.

        The seal is against accidents: whoever edits the key can also make its seal anew.
        """
        write_private(path, self.to_json())

    def to_json(self) -> str:
        """The key as it stands in its file."""
        content = self.model_dump(mode="json")
        sealed = {**content, "seal": seal(content)}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sealed.items()]
        return "{\n " + ",\n ".join(lines) + "\n}\n"

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a key; a MarshtestError if there is no such file, it is no key, or it was edited."""
        return cls.unsealed(content_of(Path(path)), Path(path))

    @classmethod
    def unsealed(cls, content: dict[str, Any], path: Path) -> Self:
        """The key that a file's content is; errors as in `read`."""
        given, content = content.get("seal"), {k: v for k, v in content.items() if k != "seal"}
        if given != seal(content):
            raise MarshtestError(
                f"{path}: was edited after dosing (its seal does not fit). Take the untouched key."
            )
        try:
            return cls.parse(content, str(path))
        except MarshtestError as error:  # it may quote a value of any length
            raise MarshtestError(f"{str(error)[:LINE]} Take the untouched key.") from None


def content_of(path: Path) -> dict[str, Any]:
    """What a key file holds; a MarshtestError if there is no such file, or it is no key."""
    if not path.exists():
        raise MarshtestError(f"{path}: no such key file. Give the one that `marshtest dose` wrote.")
    content = _loaded(path)
    if not isinstance(content, dict) or not {"seal", "format"} <= content.keys():
        raise MarshtestError(
            f"{path}: is not a marshtest key. Give the file that `marshtest dose` wrote."
        )
    return content


def seal(content: dict[str, Any]) -> str:
    """A digest of a key's content."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _loaded(path: Path) -> Any:
    """The content of a JSON file of sensible size; None if it is no such file."""
    try:
        if not path.is_file() or path.stat().st_size > KEY_BYTES:
            return None
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner can read, from its first byte on; an OSError if it exists."""
    # By an opener: made readable and closed to others afterwards, it could be read in between.
    private = partial(os.open, mode=0o600)
    with open(path, "x", encoding="utf-8", newline="", opener=private) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
