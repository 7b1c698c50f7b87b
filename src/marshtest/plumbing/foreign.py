"""Foreign code, run in this process: whatever it raises becomes one line that names the code.

A `SystemExit` that foreign code raises must not end the command, least of all with an exit code that
reads as a verdict. A `KeyboardInterrupt` counts as the user's only if a signal came, and a signal that
foreign code swallows still counts.
"""

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
    """Run foreign code inside, which errors call `name`.

    Raises:
        MarshtestError: the code raised anything, `SystemExit` and `KeyboardInterrupt` included.
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
            raise MarshtestError(f"{name}: {raised(error)}.") from error
        if heard:
            raise KeyboardInterrupt


def raised(error: BaseException) -> str:
    """A clause such as "raised KeyError: 'lost' (user.py:12)", without a full stop.

    The place is the last one in the user's own code, or the last of all.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)]
    place = next((f" ({Path(f.filename).name}:{f.lineno})" for f in reversed(own or frames)), "")
    return f"raised {type(error).__name__}: {one_line(error)}{place}"


@contextmanager
def _hearing(number: signal.Signals, heard: list[int]) -> Iterator[None]:
    """Note a signal in `heard`, and treat it as before; afterwards its handler is what it was."""
    before = signal.getsignal(number)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # no signal can raise KeyboardInterrupt in this thread
        return

    def note(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        before(number, frame)

    signal.signal(number, note)
    try:
        yield
    finally:
        signal.signal(number, before)
