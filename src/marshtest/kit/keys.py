"""Keys of all kinds of dose."""

from pathlib import Path

from marshtest.kit.key import Key
from marshtest.kit.sealed import content_of
from marshtest.kit.texts.key import FORMAT, TextKey


def read_key(path: str | Path) -> Key | TextKey:
    """Read a key of whichever kind; errors as in `Key.read`."""
    content = content_of(Path(path))
    kind = TextKey if content["format"] == FORMAT else Key
    return kind.unsealed(content, Path(path))
