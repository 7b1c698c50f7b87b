"""JSON Lines: a JSON object a line."""

import json
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import regex
from numpy.typing import NDArray

from marshtest.kit.records.fields import Fields, Values
from marshtest.kit.records.lines import Lines
from marshtest.plumbing.errors import MarshtestError, first_line

STRING = regex.compile(r'"(?:[^"\\]|\\.)*+"')


class Jsonl(Lines):
    """A file with a JSON object a line; records are named by their lines, from 1 on."""

    kind: ClassVar[str] = "JSON Lines"

    def where(self, row: int) -> str:
        return f"{self.path}: line {row + 1}"

    def place(self, row: int) -> dict[str, Any]:
        return {"line": row + 1}

    def parse(self, raw: bytes, where: str) -> Values:
        try:
            values = json.loads(raw.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise MarshtestError(
                f"{where}: is no JSON ({first_line(error)}). Mend it, or drop the line."
            ) from None
        if not isinstance(values, dict):
            raise MarshtestError(f"{where}: is no JSON object with fields. Got {values!r:.60}.")
        return values

    def rewritten(self, raw: bytes, text: str, fields: Fields, where: str) -> bytes:
        """The line with the text in place of the old one, and every other byte as it was."""
        line, values = raw.decode(), self.parse(raw, where)
        old, wanted = fields.text(values, where), fields.put(values, text, where)
        # The same text may stand in several fields: the right one is that which gives the record wanted.
        for match in STRING.finditer(line):
            if json.loads(match.group(), strict=False) == old:
                new = json.dumps(text, ensure_ascii=match.group().isascii())
                written = (line[: match.start()] + new + line[match.end() :]).encode()
                if self.parse(written, where) == wanted:
                    return written
        raise MarshtestError(f"{where}: its text cannot be replaced; a field may be there twice.")

    def spellings(self, text: str) -> Iterable[str]:
        return {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}

    def read_back(self, spelling: str) -> str:
        return str(json.loads(f'"{spelling}"'))

    def _ends(self, block: bytes, number: int) -> NDArray[np.int64]:
        ends = super()._ends(block, number)
        # Counted first, which is fast: the end of an object, and the beginning of the next.
        closed = block.count(b"}\n") + block.count(b"}\r\n")
        if closed < len(ends) or block.count(b"\n{") < len(ends) - 1:
            self._refuse_broken(block.split(b"\n"), number)
        return ends

    def _refuse_broken(self, lines: list[bytes], number: int) -> None:
        """Raise if a line is neither empty nor between braces, as all objects are."""
        for row, line in enumerate(lines, number):
            content = line.strip().removeprefix(b"\xef\xbb\xbf")
            if content and not (content.startswith(b"{") and content.endswith(b"}")):
                self.parse(content, self.where(row))  # says what is wrong
                raise MarshtestError(f"{self.where(row)}: is no JSON object. Mend or drop it.")
