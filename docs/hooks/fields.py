"""In the reference a field without a docstring is described by the comment beside it."""

from typing import Any

from griffe import Attribute, Docstring, Extension


class Fields(Extension):
    """Told of every attribute that is read from the source."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Take the comments of the attribute's lines for its docstring."""
        if attr.docstring is None and attr.lineno and attr.parent and attr.parent.is_class:
            comments = [line.partition("  # ")[2] for line in attr.lines]
            if said := " ".join(filter(None, comments)):
                attr.docstring = Docstring(said, lineno=attr.lineno, parent=attr)
