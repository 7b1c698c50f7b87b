"""A door whose model runs in a process of its own, so that nothing it does ends or answers ours.

    ours   ──▶ its standard input    length, pickle of ("ask" or "gradients", values, labels)
    theirs ──▶ its standard output   length, "A" and safetensors of the answers, or "E" and one line

The process is a fresh interpreter. What foreign code in it prints goes to standard error, it reads from
nowhere, and it hears no Ctrl-C. It and all that it starts are one group of processes, which ends with the
door, with the process itself, or when we are gone. Nothing that it sends is unpickled.
"""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import partial
from itertools import count
from queue import SimpleQueue
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from marshtest.kit.layouts import Value
from marshtest.kit.model import Answers, AskedModel, Labels
from marshtest.kit.noise import Floats
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.foreign import foreign
from marshtest.plumbing.malloc import keep_freed_memory
from marshtest.plumbing.seeds import derive, seeded

Open = Callable[[], AskedModel]
Arrays = dict[str, NDArray[Any]]
START = (
    "import sys; sys.path[:] = sys.argv[1:]; del sys.argv[1:]; "
    "from marshtest.kit.process import serve; serve()"
)
LENGTH = 8  # bytes before each message
GONE_WITHIN = 5.0  # seconds, a process that says nothing any more
SLACK = 1 << 16  # bytes that an answer may have beside its numbers
MOST_NOTED = 1000  # bytes of its notes


class GuardedModel(AskedModel):
    """A door in this process: one line whatever the model raises, our seeds before, our state after.

    Nothing here helps against `os._exit`, a crash, or what the model does as Python ends.
    """

    def __init__(self, name: str, opened: Open) -> None:
        self.name, self._calls = name, count()
        self._door = self._foreign(opened)
        self.notes = self._door.notes

    def ask(self, values: Value, labels: Labels) -> Answers:
        answers: Answers = self._foreign(lambda: self._door.ask(values, labels))
        self.notes = self._door.notes
        return answers

    def gradients(self, values: Value, labels: Labels) -> Floats | None:
        found: Floats | None = self._foreign(lambda: self._door.gradients(values, labels))
        return found

    def _foreign(self, call: Callable[[], Any]) -> Any:
        """Call; draws differ from call to call, so that no randomness passes for steadiness."""
        seed = derive(0, "foreign", next(self._calls))
        with foreign(self.name), seeded(seed), redirect_stdout(sys.stderr):
            return call()


class SeparateModel(AskedModel):
    """A door that is opened and asked in a process of its own.

    Args:
        name: of the model.
        opened: opens the door there; it and its arguments are pickled.

    Raises:
        MarshtestError: what went wrong there, in one line, at once or whenever it is asked.
    """

    def __init__(self, name: str, opened: Open) -> None:
        self.name = name
        folder = tempfile.mkdtemp(prefix="marshtest-")
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"TMPDIR": folder},
            start_new_session=True,
        )
        self._close = weakref.finalize(self, _end, self._process, folder)
        threading.Thread(target=_end_group, args=(self._process,), daemon=True).start()
        try:
            self._hear(self._call((torch.get_num_threads(), name, opened), 0))
        except MarshtestError:
            self._close()
            raise

    def ask(self, values: Value, labels: Labels) -> Answers:
        found = self._call(("ask", values, labels), 9 * len(values))
        losses, right = self._checked(found, "losses", (len(values),)), found.get("right")
        if right is not None and (right.dtype.kind, right.shape) != ("b", losses.shape):
            raise self._nonsense()
        self._hear(found)
        return losses, right

    def gradients(self, values: Value, labels: Labels) -> Floats | None:
        found = self._call(("gradients", values, labels), 8 * values.size)
        shape = (len(values), values.size // max(1, len(values)))
        return self._checked(found, "gradients", shape) if found else None

    def _call(self, message: object, size: int) -> Arrays:
        """The answer of at most `size` bytes beside its header; {} where it answers nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
            told = _receive(self._process.stdout, size + SLACK)
        except (BrokenPipeError, EOFError):
            raise self._gone() from None
        except OverflowError:
            raise self._nonsense() from None
        except BaseException:  # Ctrl-C: it may be anywhere in its work
            self._close()
            raise
        if told[:1] == b"E":
            raise MarshtestError(told[1:].decode(errors="replace"))
        try:
            return load(told[1:])
        except Exception:  # it is not what `serve` sends
            raise self._nonsense() from None

    def _hear(self, found: Arrays) -> None:
        noted = found.get("notes", np.empty(0, np.uint8)).tobytes()[:MOST_NOTED]
        self.notes = tuple(noted.decode(errors="replace").splitlines())

    def _checked(self, found: Arrays, name: str, shape: tuple[int, ...]) -> Floats:
        numbers = found.get(name)
        if numbers is None or (numbers.dtype.str, numbers.shape) != ("<f8", shape):
            raise self._nonsense()
        return numbers

    def _gone(self) -> MarshtestError:
        try:
            code = self._process.wait(GONE_WITHIN)
        except subprocess.TimeoutExpired:  # it lives, and has closed the pipe
            return self._nonsense()
        return MarshtestError(f"{self.name}: its process {ended(code)} before it answered.")

    def _nonsense(self) -> MarshtestError:
        self._close()
        return MarshtestError(f"{self.name}: its process answered what was not asked.")


def ended(code: int) -> str:
    """How a process ended, from its exit code (negative: the signal that killed it)."""
    if code >= 0:
        return f"died with exit code {code}"
    memory = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"


def _end(process: "subprocess.Popen[bytes]", folder: str) -> None:
    _kill(process.pid)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End what a process leaves behind as it dies: it may hold the pipe that we read from."""
    process.wait()
    _kill(process.pid)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone, or nothing but a zombie
        os.killpg(group, signal.SIGKILL)


def _send(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(len(content).to_bytes(LENGTH))
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes], most: int) -> bytes:
    """The next message; EOFError where the other side is gone, OverflowError at more than `most` bytes."""
    length = int.from_bytes(_read(pipe, LENGTH))
    if length > most:
        raise OverflowError
    return _read(pipe, length)


def _read(pipe: IO[bytes], length: int) -> bytes:
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return content


def serve() -> None:
    """Be the other side: open the door that is sent first, and answer what is asked of it."""
    requests, answers = _own_pipes()
    asked: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests, asked), daemon=True).start()
    threads, name, opened = pickle.loads(asked.get())
    torch.set_num_threads(threads)
    keep_freed_memory()
    own = seeded(derive(0, "foreign", 0))
    own.__enter__()  # and never left: the switches that loading turns are the model's own
    doors: list[AskedModel] = []

    def opening() -> Arrays:
        with foreign(name):
            door: AskedModel = opened()
        doors.append(GuardedModel(name, lambda: door))
        return _noted(door)

    _answer(answers, opening)
    while True:
        what, values, labels = pickle.loads(asked.get())
        _answer(answers, partial(_answered, doors[0], what, values, labels))


def _own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Where the two pipes are from now on; foreign code reads nothing, and prints to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _listen(requests: IO[bytes], asked: "SimpleQueue[bytes]") -> None:
    """Pass on what is asked; when nobody is left to ask, end all that was started here."""
    try:
        while True:
            asked.put(_receive(requests, sys.maxsize))
    finally:
        os.killpg(0, signal.SIGKILL)


def _answer(answers: IO[bytes], work: Callable[[], Arrays]) -> None:
    try:
        told = b"A" + save(work())
    except MarshtestError as error:
        told = b"E" + str(error).encode()[:SLACK]
    _send(answers, told)


def _answered(door: AskedModel, what: str, values: Value, labels: Labels) -> Arrays:
    """The answers that there are, by name."""
    if what == "gradients":
        gradients = door.gradients(values, labels)
        return {} if gradients is None else {"gradients": gradients.astype(np.float64)}
    losses, right = door.ask(values, labels)
    told: Arrays = {"losses": losses.astype(np.float64), **_noted(door)}
    return told if right is None else told | {"right": right}


def _noted(door: AskedModel) -> Arrays:
    return {"notes": np.frombuffer("\n".join(door.notes).encode(), np.uint8)} if door.notes else {}
