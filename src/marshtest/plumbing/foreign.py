"""A user's code, run in this process: whatever it raises becomes one line that names the code."""

import signal
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from marshtest.plumbing.errors import MarshtestError, one_line

LIBRARIES = (  # folders of code that is not the user's
    *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parents[1]),
)


@contextmanager
def foreign(name: str) -> Iterator[None]:
    """Run a user's code inside; errors call it `name`.

    Raises:
        MarshtestError: the code raised anything, also `SystemExit`, or `KeyboardInterrupt` by itself.
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    with signals_noted() as signals:
        try:
            yield
        except MarshtestError:
            raise
        # SystemExit too: it must not end the command, least of all with a code that reads as a verdict.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and signals:  # else the code raised it itself
                raise
            raise MarshtestError(f"{name}: {raised(error)}.") from error
        if signals:  # the code swallowed what the signal raised
            raise KeyboardInterrupt


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Give a list of the signals to stop that come; a KeyboardInterrupt without one is the code's own."""
    with ExitStack() as stack:
        signals: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.enter_context(_noting(number, signals))
        yield signals


def raised(error: BaseException) -> str:
    """A clause such as "raised KeyError: 'lost' (user.py:12)", without a full stop.

    The place is the last one in the user's own code, or the last of all.
    """
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)]
    place = next((f" ({Path(f.filename).name}:{f.lineno})" for f in reversed(users or frames)), "")
    return f"raised {type(error).__name__}: {one_line(error)}{place}"


@contextmanager
def _noting(number: signal.Signals, signals: list[int]) -> Iterator[None]:
    """Add each signal `number` to `signals`, and let the handler before act on it too."""
    before = signal.getsignal(number)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # only the main thread is told of signals, and SIG_IGN cannot be called
        return

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        before(number, frame)

    signal.signal(number, note)
    try:
        yield
    finally:
        signal.signal(number, before)
