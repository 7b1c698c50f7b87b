"""The one error a user's input can cause: a line that names the place and the mend."""

import difflib
from collections.abc import Iterable

NOTE = "note: "  # begins a text of progress that stays on the screen


class MarshtestError(ValueError):
    """Bad input. The command line prints its one line and exits with code 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for an unknown name: the name, the nearest known name, and all known names."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message."""
    return (str(error).splitlines() or ["no message"])[0]


def one_line(error: BaseException) -> str:
    """A foreign error's message with its line breaks taken out."""
    return " ".join(str(error).split()) or "no message"
