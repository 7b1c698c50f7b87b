"""How long work says how far it is: one callback for all of it."""

from typing import Protocol


class Progress(Protocol):
    """Told the share of the work that is done, and in words what is going on."""

    def __call__(self, done: float, text: str = "", /) -> None: ...


def silent(done: float, text: str = "", /) -> None:
    """Say nothing."""


def part(progress: Progress, start: float, share: float, label: str = "") -> Progress:
    """Progress of a part of some work, said as that of the whole.

    Args:
        progress: told the whole's.
        start: share of the whole that is done when the part begins.
        share: of the whole that the part is.
        label: begins what the part says.
    """

    def of_part(done: float, text: str = "", /) -> None:
        progress(start + share * done, ": ".join(filter(None, (label, text))))

    return of_part
