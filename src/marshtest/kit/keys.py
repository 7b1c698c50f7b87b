"""Keys of all kinds of dose."""

from pathlib import Path

from marshtest.kit.key import Key
from marshtest.kit.sealed import Sealed, content_of
from marshtest.kit.tables.key import FORMAT as TABLE
from marshtest.kit.tables.key import TableKey
from marshtest.kit.texts.key import FORMAT as TEXT
from marshtest.kit.texts.key import TextKey

AnyKey = Key | TableKey | TextKey
KINDS: dict[str, type[Sealed]] = {TEXT: TextKey, TABLE: TableKey}


def read_key(path: str | Path) -> AnyKey:
    """Read a key of whichever kind; errors as in `Key.read`."""
    content = content_of(Path(path))
    kind = KINDS.get(str(content["format"]), Key)
    return kind.unsealed(content, Path(path))  # type: ignore[return-value]
