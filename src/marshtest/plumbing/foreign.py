"""Somebody else's code, run in this process: whatever it raises is one line that names it.

A `SystemExit` of its own must not end the command, least of all with an exit code that reads as a verdict.
A `KeyboardInterrupt` counts as the user's only where a signal came; a signal that it swallows still counts.
"""

import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from marshtest.plumbing.errors import MarshtestError, first_line


@contextmanager
def foreign(name: str) -> Iterator[None]:
    """Run the code inside, which `name` stands for.

    Raises:
        MarshtestError: it raised anything, `SystemExit` and `KeyboardInterrupt` included.
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    with ExitStack() as stack:
        heard: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.enter_context(_hearing(number, heard))
        try:
            yield
        except MarshtestError:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and heard:
                raise
            raise MarshtestError(f"{name}: {told(error)}.") from error
        if heard:
            raise KeyboardInterrupt


def told(error: BaseException) -> str:
    """What was raised and where, without a full stop."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"raised {type(error).__name__} ({first_line(error)}){place}"


@contextmanager
def _hearing(number: signal.Signals, heard: list[int]) -> Iterator[None]:
    """Note a signal, and treat it as before; its handler is afterwards what it was."""
    before = signal.getsignal(number)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # where no signal can raise KeyboardInterrupt
        return

    def note(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        before(number, frame)

    signal.signal(number, note)
    try:
        yield
    finally:
        signal.signal(number, before)
