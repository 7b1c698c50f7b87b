"""The one callback by which long work tells how far it is."""

from typing import Protocol


class Progress(Protocol):
    """A function that is told the fraction of the work that is done, and in words what goes on."""

    def __call__(self, done: float, text: str = "", /) -> None: ...


def silent(done: float, text: str = "", /) -> None:
    """Say nothing."""


def part(progress: Progress, start: float, length: float, label: str = "") -> Progress:
    """A callback for the part of a work that begins at the fraction `start`; `label` begins its texts."""

    def part_progress(done: float, text: str = "", /) -> None:
        progress(start + length * done, ": ".join(filter(None, (label, text))))

    return part_progress
