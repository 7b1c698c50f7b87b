"""The one error a user's input can cause: a line that names the place and the mend."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

NOTE = "note: "  # begins a text of progress that stays on the screen


class MarshtestError(ValueError):
    """Bad input. The command line prints its one line and exits with code 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for an unknown name: the name, the nearest known name, and all known names."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."


def message(error: BaseException) -> str:
    """A foreign error's message, as text that a file can hold; "" where the error does not tell it."""
    try:
        text = str(error)
    except (Exception, SystemExit):  # in its own __str__
        return ""
    return text.encode(errors="backslashreplace").decode()


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message."""
    return (message(error).splitlines() or ["no message"])[0]


@contextmanager
def refused(
    fault: str, mend: str = "", kinds: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Turn a foreign error into one line: the fault, the error in brackets, and the mend."""
    try:
        yield
    except MarshtestError:
        raise
    except kinds as error:
        line = f"{fault} ({type(error).__name__}: {first_line(error)}). {mend}"
        raise MarshtestError(line.rstrip()) from None


@contextmanager
def placed(where: object) -> Iterator[None]:
    """Put a place before the line of an error that does not know it: a file, mostly."""
    try:
        yield
    except MarshtestError as error:
        raise MarshtestError(f"{where}: {error}") from None


def refuse_options(reason: str, **options: object) -> None:
    """Raise if an option is given that means nothing; None and False are options that are not given.

    Args:
        reason: why, as the beginning of a sentence: "audit: the key is of texts".
        **options: the options by their names, without dashes.
    """
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise MarshtestError(f"{reason}, so that --{given[0]} means nothing. Leave it out.")


def refuse_taken(command: str, options: Iterable[str], *parameters: str) -> None:
    """Raise if an option of a thing has the name that says which thing it is, or a parameter's."""
    for name in ("name", *parameters):
        if name in options:
            raise MarshtestError(
                f"{command}: {name} is no option of what is asked about. Leave it out."
            )


def one_line(error: BaseException) -> str:
    """A foreign error's message with its line breaks taken out."""
    return " ".join(message(error).split()) or "no message"
