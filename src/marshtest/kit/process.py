"""A model in a process of its own, where nothing that it does can end our process or answer for it.

    ours   ──▶ its standard input    length, pickle of "ask", "gradients" or "texts" and of what is asked
    theirs ──▶ its standard output   length, "A" and safetensors of the answers, or "E" and one line

Their process is a fresh interpreter. Foreign code in it prints to standard error, reads from nowhere, and
hears no Ctrl-C. The process and all that it starts are one group, which ends with the `SeparateModel`, with
the process itself, or when ours is gone. Nothing that it sends is unpickled.
"""

import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from itertools import count
from queue import SimpleQueue
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from marshtest.kit.layouts.base import Value
from marshtest.kit.model import Answers, AskedModel, Labels
from marshtest.kit.noise import Floats
from marshtest.kit.records.base import Asked
from marshtest.kit.texts.base import TextModel
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.foreign import foreign
from marshtest.plumbing.malloc import keep_freed_memory
from marshtest.plumbing.seeds import derive, seeded

Model = AskedModel | TextModel
Opener = Callable[[], Model]
Arrays = dict[str, NDArray[Any]]
# Our import path comes as arguments, so that theirs imports the same marshtest and the same user's modules.
START = (
    "import gc, sys; gc.disable(); sys.path[:] = sys.argv[1:]; del sys.argv[1:]; "
    "from marshtest.kit.process import serve; serve()"
)
LENGTH = 8  # bytes before each message
GONE_WITHIN = 5.0  # seconds in which a process that has closed its pipe must end
SLACK = 1 << 16  # bytes that an answer may have beside its numbers: header and notes
MOST_NOTED = 1000  # bytes of notes that are kept: they are printed, and foreign code wrote them


class Guarded:
    """A model in this process: whatever it raises is one line, and our seeds and switches stay ours.

    Nothing here helps against `os._exit`, a crash, or what the model does as Python ends.
    """

    def __init__(self, name: str, opener: Opener) -> None:
        self.name, self._calls = name, count()
        self._model: Any = self._foreign(opener)
        self.notes: tuple[str, ...] = self._model.notes

    def _foreign(self, call: Callable[[], Any]) -> Any:
        """Call foreign code, with other seeds each time: a model that draws must not look steady."""
        seed = derive(0, "foreign", next(self._calls))
        with foreign(self.name), seeded(seed), redirect_stdout(sys.stderr):
            return call()


class GuardedModel(Guarded, AskedModel):
    """A model of samples, guarded."""

    def ask(self, values: Value, labels: Labels) -> Answers:
        answers: Answers = self._foreign(lambda: self._model.ask(values, labels))
        self.notes = self._model.notes
        return answers

    def gradients(self, values: Value, labels: Labels) -> Floats | None:
        gradients: Floats | None = self._foreign(lambda: self._model.gradients(values, labels))
        return gradients


class GuardedTexts(Guarded, TextModel):
    """A model of texts, guarded."""

    def __call__(self, asked: Sequence[Asked]) -> Floats:
        losses: Floats = self._foreign(lambda: self._model(asked))
        self.notes = self._model.notes
        return losses


class Separate:
    """A model that is opened and asked in a process of its own.

    Args:
        name: the model as it is given on the command line.
        opener: opens the model there; it is pickled, with its arguments.

    Raises:
        MarshtestError: the model cannot be opened; later, whatever goes wrong as it is asked. One line.
    """

    def __init__(self, name: str, opener: Opener) -> None:
        self.name = name
        folder = tempfile.mkdtemp(prefix="marshtest-")
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {"TMPDIR": folder},  # removed with the process, whatever it leaves there
            start_new_session=True,  # a group of its own, which no Ctrl-C of our terminal reaches
        )
        # A finalizer and not __del__: it also runs as our interpreter ends.
        self._close = weakref.finalize(self, _end, self._process, folder)
        threading.Thread(target=_end_group, args=(self._process,), daemon=True).start()
        try:
            self._take_notes(self._call((torch.get_num_threads(), name, opener), 0))
        except MarshtestError:
            self._close()
            raise

    def _call(self, message: object, size: int) -> Arrays:
        """Send a message, and return the arrays of the answer, of at most `size` bytes in all."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            # A pickle, this way round alone: nothing that comes back is ever unpickled.
            _send(self._process.stdin, pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
            message = _receive(self._process.stdout, size + SLACK)
        except (BrokenPipeError, EOFError):
            raise self._gone() from None
        except OverflowError:
            raise self._nonsense() from None
        except BaseException:  # Ctrl-C: a late answer would be taken for that to the next question
            self._close()
            raise
        if message[:1] == b"E":
            raise MarshtestError(message[1:].decode(errors="replace"))
        try:
            return load(message[1:])
        except Exception:  # these bytes are not what `serve` sends
            raise self._nonsense() from None

    def _take_notes(self, arrays: Arrays) -> None:
        notes = arrays.get("notes", np.empty(0, np.uint8)).tobytes()[:MOST_NOTED]
        self.notes: tuple[str, ...] = tuple(notes.decode(errors="replace").splitlines())

    def _checked(self, arrays: Arrays, name: str, shape: tuple[int, ...]) -> Floats:
        array = arrays.get(name)
        if array is None or (array.dtype.str, array.shape) != ("<f8", shape):
            raise self._nonsense()
        return array

    def _gone(self) -> MarshtestError:
        """The error that says how the process ended."""
        try:
            code = self._process.wait(GONE_WITHIN)
        except subprocess.TimeoutExpired:  # it lives, and has closed the pipe
            return self._nonsense()
        return MarshtestError(f"{self.name}: its process {ended(code)} before it answered.")

    def _nonsense(self) -> MarshtestError:
        """The error for an answer that `serve` does not send: foreign code got at the pipe."""
        self._close()
        return MarshtestError(f"{self.name}: its process answered what was not asked.")


class SeparateModel(Separate, AskedModel):
    """A model of samples in a process of its own."""

    def ask(self, values: Value, labels: Labels) -> Answers:
        # For each sample a float64 loss and a bool.
        arrays = self._call(("ask", values, labels), 9 * len(values))
        losses, right = self._checked(arrays, "losses", (len(values),)), arrays.get("right")
        if right is not None and (right.dtype.kind, right.shape) != ("b", losses.shape):
            raise self._nonsense()
        self._take_notes(arrays)
        return losses, right

    def gradients(self, values: Value, labels: Labels) -> Floats | None:
        arrays = self._call(("gradients", values, labels), 8 * values.size)
        shape = (len(values), values.size // max(1, len(values)))
        return self._checked(arrays, "gradients", shape) if arrays else None


class SeparateTexts(Separate, TextModel):
    """A model of texts in a process of its own."""

    def __call__(self, asked: Sequence[Asked]) -> Floats:
        arrays = self._call(("texts", tuple(asked)), 8 * len(asked))
        losses = self._checked(arrays, "losses", (len(asked),))
        self._take_notes(arrays)
        return losses


def ended(code: int) -> str:
    """How a process ended, from its exit code (negative: the signal that killed it)."""
    if code >= 0:
        return f"died with exit code {code}"
    memory = " (out of memory?)" if code == -signal.SIGKILL else ""
    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    return f"was killed by {name}{memory}"


def _end(process: "subprocess.Popen[bytes]", folder: str) -> None:
    _kill(process.pid)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End what a process leaves behind when it dies: a child could hold the pipe open that we read."""
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
    """The next message.

    Raises:
        EOFError: the other side is gone.
        OverflowError: the message claims more than `most` bytes, which are not read.
    """
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
    """Be the other side: open the model whose opener arrives first, and answer what is asked of it."""
    requests, answers = _own_pipes()
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests, messages), daemon=True).start()
    threads, name, opener = pickle.loads(messages.get())
    gc.enable()  # off from the start: imports make no garbage, and looking for it took a seventh of them
    torch.set_num_threads(threads)
    keep_freed_memory()
    # Entered and never left: what loading switches (the default dtype, say) the model may need.
    loading = seeded(derive(0, "foreign", 0))
    loading.__enter__()
    models: list[GuardedModel | GuardedTexts] = []

    def opened() -> Arrays:
        with foreign(name):
            model: Model = opener()
        guarded = GuardedTexts if isinstance(model, TextModel) else GuardedModel
        models.append(guarded(name, lambda: model))
        return _notes(model)

    _answer(answers, opened)
    while True:
        question, *asked = pickle.loads(messages.get())
        _answer(answers, partial(_arrays, models[0], question, *asked))


def _own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The two pipes, moved to descriptors that foreign code does not know.

    In their places, foreign code reads nothing (0) and prints to standard error (1): neither input() nor
    print() in it, nor in a program that it starts, can get into the messages.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, answers


def _listen(requests: IO[bytes], messages: "SimpleQueue[bytes]") -> None:
    """Pass messages on; when nobody is left to send any, end all that was started here.

    A thread of its own reads, so that the end is seen even while the model is at work.
    """
    try:
        while True:
            messages.put(_receive(requests, sys.maxsize))
    finally:
        os.killpg(0, signal.SIGKILL)  # not sys.exit: the model's own exit handlers may hang


def _answer(answers: IO[bytes], work: Callable[[], Arrays]) -> None:
    try:
        message = b"A" + save(work())
    except MarshtestError as error:
        message = b"E" + str(error).encode()[:SLACK]
    _send(answers, message)


def _arrays(model: Any, question: str, *asked: Any) -> Arrays:
    """The answer to a question, as arrays by name; none for gradients that do not exist."""
    if question == "gradients":
        gradients = model.gradients(*asked)
        return {} if gradients is None else {"gradients": gradients.astype(np.float64)}
    losses, right = (model(*asked), None) if question == "texts" else model.ask(*asked)
    arrays: Arrays = {"losses": losses.astype(np.float64), **_notes(model)}
    return arrays if right is None else arrays | {"right": right}


def _notes(model: Model | Guarded) -> Arrays:
    return {"notes": np.frombuffer("\n".join(model.notes).encode(), np.uint8)}
