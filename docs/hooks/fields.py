"""In the reference a field without a docstring is described by the comment beside it, or above it."""

from itertools import takewhile
from typing import Any

from griffe import Attribute, Docstring, Extension


class Fields(Extension):
    """Told of every attribute that is read from the source."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Take the comments of the attribute's lines for its docstring, or else those above."""
        if attr.docstring is None and attr.lineno and attr.parent and attr.parent.is_class:
            comments = [line.partition("  # ")[2] for line in attr.lines]
            if attr.annotation and not any(comments):
                before = attr.lines_collection[attr.filepath][: attr.lineno - 1]
                above = takewhile(lambda line: line.startswith("# "), map(str.strip, before[::-1]))
                comments = [line.removeprefix("# ") for line in above][::-1]
            if said := " ".join(filter(None, comments)):
                attr.docstring = Docstring(said, lineno=attr.lineno, parent=attr)
