"""A folder of text files: a record a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from marshtest.kit.layouts.folders import copy_file, files_of
from marshtest.kit.records.fields import Fields, Values
from marshtest.kit.records.layout import Records, Rows, Texts
from marshtest.plumbing.errors import MarshtestError


class TextFolder(Records):
    """A folder of .txt files in UTF-8; records are named by their files."""

    kind: ClassVar[str] = "text files"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = [name for name in files_of(path) if is_text_file(name)]
        self.count = len(self.names)

    def where(self, row: int) -> str:
        return str(self.path / self.names[row])

    def place(self, row: int) -> dict[str, Any]:
        return {"file": self.names[row]}

    def each(self, rows: Rows) -> Iterator[tuple[int, Values]]:
        for row in rows:
            try:
                yield row, {"text": (self.path / self.names[row]).read_bytes().decode()}
            except UnicodeDecodeError as error:
                raise MarshtestError(
                    f"{self.where(row)}: is not UTF-8 ({error}). Save it as UTF-8."
                ) from None

    def _write(self, out: Path, texts: Texts, fields: Fields) -> None:
        new = {self.names[row]: text for row, text in texts.items()}
        for name in files_of(self.path):
            copy_file(self.path / name, out / name)
            if name in new:
                (out / name).write_bytes(new[name].encode())


def is_text_file(name: str) -> bool:
    """Whether a file is text, by its name."""
    return Path(name).suffix.lower() == ".txt"
