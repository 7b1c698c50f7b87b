"""The one callback by which long work tells how far it is."""

from typing import Protocol


class Progress(Protocol):
    """A function that is told the fraction of the work that is done, and in words what goes on."""

    def __call__(self, done: float, text: str = "", /) -> None: ...


def silent(done: float, text: str = "", /) -> None:
    """Say nothing."""


def part(progress: Progress, start: float, length: float, label: str = "") -> Progress:
    """A callback for a part of some work, which tells `progress` how far the whole work is.

    Args:
        progress: the callback of the whole work.
        start: fraction of the whole that is done when the part begins.
        length: the part, as a fraction of the whole.
        label: begins each text of the part.
    """

    def part_progress(done: float, text: str = "", /) -> None:
        progress(start + length * done, ": ".join(filter(None, (label, text))))

    return part_progress
