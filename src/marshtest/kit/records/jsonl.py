"""JSON Lines: a JSON object a line."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import regex
from numpy.typing import NDArray

from marshtest.data.marks import Mark
from marshtest.kit.records.fields import Fields, Values
from marshtest.kit.records.lines import Lines
from marshtest.plumbing.errors import MarshtestError, first_line

ASCII, PLAIN = json.JSONEncoder(), json.JSONEncoder(ensure_ascii=False)
DECODER = json.JSONDecoder()  # as json.loads has it, which takes half as long again
STRING = regex.compile(r'"(?:[^"\\]|\\.)*+"')


class Jsonl(Lines):
    """A file with a JSON object a line; records are named by their lines, from 1 on."""

    kind: ClassVar[str] = "JSON Lines"

    def __init__(self, path: Path, mark: Mark | None = None) -> None:
        super().__init__(path, mark)
        # An object takes two characters, and a line break.
        self.empty = int((np.diff(self.ends) <= len("\r\n")).sum())

    def where(self, row: int) -> str:
        return f"{self.path}: line {row + 1}"

    def place(self, row: int) -> dict[str, Any]:
        return {"line": row + 1}

    def parse(self, raw: bytes, where: str) -> Values:
        try:
            values = DECODER.decode(raw.decode().removeprefix("\ufeff"))
            # Half a surrogate pair, as JSON can spell it, is no text.
            if b"\\u" in raw and b"\\ud" in raw.lower():
                PLAIN.encode(values).encode()
        except (ValueError, RecursionError) as error:
            raise MarshtestError(
                f"{where}: is no JSON ({first_line(error)}). Mend it, or drop the line."
            ) from None
        if not isinstance(values, dict):
            raise MarshtestError(f"{where}: is no JSON object with fields. Got {values!r:.60}.")
        return values

    def rewritten(self, raw: bytes, text: str, fields: Fields, where: str) -> bytes:
        """The line with the text in place of the old one, and every other byte as it was."""
        line, old = raw.decode(), fields.text(self.parse(raw, where), where)
        # The same text may stand in several fields: the right one is that which changes the record's text.
        for start, end in _spelt(old, line):
            new = (ASCII if line[start:end].isascii() else PLAIN).encode(text)
            written = (line[:start] + new + line[end:]).encode()
            # Or the record has no text any more: what was replaced is the name of a field, or a role.
            with suppress(MarshtestError):
                if fields.text(self.parse(written, where), where) == text:
                    return written
        raise MarshtestError(f"{where}: its text cannot be replaced; a field may be there twice.")

    def spellings(self, text: str) -> Iterable[str]:
        return {encoder.encode(text)[1:-1] for encoder in (ASCII, PLAIN)}

    def read_back(self, spelling: str) -> str:
        return str(json.loads(f'"{spelling}"'))

    def _ends(self, block: bytes, number: int) -> NDArray[np.int64]:
        ends = super()._ends(block, number)
        # A look at the line breaks' neighbours is fast, and finds every line that is cut off.
        codes = np.frombuffer(block, np.uint8)
        last = codes[np.maximum(ends - 2, 0)]
        last = np.where(last == ord("\r"), codes[np.maximum(ends - 3, 0)], last)
        if (last != ord("}")).any() or (codes[ends[:-1]] != ord("{")).any():
            self._refuse_broken(block.split(b"\n"), number)
        return ends

    def _refuse_broken(self, lines: list[bytes], number: int) -> None:
        """Raise if a line is neither empty nor between braces, as all objects are."""
        for row, line in enumerate(lines, number):
            content = line.strip().removeprefix(b"\xef\xbb\xbf")
            if content and not (content.startswith(b"{") and content.endswith(b"}")):
                self.parse(content, self.where(row))  # says what is wrong
                raise MarshtestError(f"{self.where(row)}: is no JSON object. Mend or drop it.")


def _spelt(text: str, line: str) -> Iterator[tuple[int, int]]:
    """The places (start, end) in a line of JSON where a string is this text."""
    for encoder in (ASCII, PLAIN):  # as nearly everybody writes it
        spelling, start = encoder.encode(text), -1
        while (start := line.find(spelling, start + 1)) >= 0:
            yield start, start + len(spelling)
    for match in STRING.finditer(line):
        if json.loads(match.group(), strict=False) == text:
            yield match.span()
