"""Models that are asked by files alone: any program, any framework, a service behind a script.

A black box is called with two paths. It reads the first file, an .npz of x [M, ...] float32, scaled as the
model expects it, and y [M]; and writes the second, a .npy of M losses (larger = more wrong), or of [M, C]
probabilities or logits.
"""

import math
import os
import shlex
import stat
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from marshtest.kit.layouts.arrays import npy_header
from marshtest.kit.layouts.base import Value
from marshtest.kit.model import Answers, AskedModel, Inputs, Labels
from marshtest.kit.process import ended
from marshtest.metrics.accuracy import margin_loss
from marshtest.plumbing.errors import MarshtestError, first_line

ROUNDED = 5e-4  # by which a probability may be off that was rounded to three decimals
Call = Callable[[Path, Path], None]  # (file to read, file to write)


class BlackBox(AskedModel):
    """A model that maps a file of inputs to a file of losses, probabilities or logits."""

    def __init__(
        self, name: str, call: Call, inputs: Inputs, classes: int, notes: tuple[str, ...] = ()
    ) -> None:
        self.name, self.call, self.inputs = name, call, inputs
        self.classes, self.notes = classes, notes
        self._known_as_losses = False

    def ask(self, values: Value, labels: Labels) -> Answers:
        answers = self._answers(values, labels)
        if answers.ndim == 1 and not self._known_as_losses:  # asked twice once, not every time
            self._refuse_probabilities(values, labels, answers)
            self._known_as_losses = True
        losses, right = losses_of(self.name, answers, labels)
        if unknown := int(np.isnan(losses).sum()):  # such as of logits that are all −∞
            raise MarshtestError(
                f"{self.name}: its answers for {unknown} of {len(losses)} inputs give no loss."
            )
        return losses, right

    def _answers(self, values: Value, labels: Labels) -> NDArray[Any]:
        x = self.inputs(torch.from_numpy(values).float()).numpy()
        read = partial(read_answers, self.name, rows=len(values), classes=self.classes)
        answers = by_files(self.call, {"x": x, "y": labels}, read)
        if answers.ndim == 2:
            self._note_width(answers.shape[1])
        if bad := int(np.isnan(np.atleast_2d(answers.T)).any(0).sum()):
            raise MarshtestError(f"{self.name}: answered NaN for {bad} of {len(answers)} inputs.")
        return answers

    def _refuse_probabilities(self, values: Value, labels: Labels, answers: NDArray[Any]) -> None:
        """Raise if [M] answers are labels, or lie in [0, 1] and are no losses.

        A loss depends on the label, and falls as the probability that the model gives the label rises.
        """
        whole = bool((answers == np.floor(answers)).all())
        if not whole and (answers.min() < 0 or answers.max() > 1):
            return
        others = self._answers(values, (labels + 1) % self.classes)
        if whole and np.array_equal(answers, others):
            raise MarshtestError(
                f"{self.name}: its answers [{len(answers)}] are whole numbers, the same whatever the "
                "labels are. If they are labels, give --answers labels; else write losses of the labels "
                f"`y`, or all {self.classes} columns of probabilities."
            )
        if answers.min() < 0 or answers.max() > 1:
            return
        if np.array_equal(answers, others):
            fault = "the same whatever the labels are"
        elif (
            self.classes == 2
            and np.allclose(answers + others, 1, atol=1e-3)
            and answers.mean() > others.mean()
        ):
            # With two classes, probabilities of a label and of the other add to one; losses of a
            # model that is right more often than not are smaller with the labels than without.
            fault = "probabilities of the labels, larger where it is more right"
        else:
            return
        raise MarshtestError(
            f"{self.name}: its answers [{len(answers)}] lie in [0, 1] and are {fault}, so they are no "
            f"losses. Write losses of the labels `y`, or all {self.classes} columns of probabilities."
        )


def by_files(
    call: Call, asked: Mapping[str, Any], read: Callable[[Path], NDArray[Any]]
) -> NDArray[Any]:
    """What `read` finds in the file that a black box writes when it is asked with these arrays."""
    # A folder for each call: what a program leaves behind cannot stand for its next answer.
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npy"
        np.savez(inputs, **asked)
        call(inputs, outputs)
        return read(outputs)


def read_answers(name: str, file: Path, rows: int, classes: int) -> NDArray[Any]:
    """The answers [rows] or [rows, classes] (or wider) in a .npy file.

    Raises:
        MarshtestError: no such file, not a plain one, or no numbers of these shapes.
    """

    def check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if dtype.kind not in "iuf":
            raise MarshtestError(f"{name}: answered {dtype}, not numbers.")
        wide = len(shape) == 2 and shape[0] == rows and shape[1] >= classes
        if shape != (rows,) and not wide:
            raise MarshtestError(
                f"{name}: must write {rows} losses [{rows}], or probabilities or logits "
                f"[{rows}, {classes}] or wider. Got {list(shape)}."
            )

    return read_array(name, file, check)


def read_array(
    name: str, file: Path, check: Callable[[tuple[int, ...], np.dtype[Any]], None]
) -> NDArray[Any]:
    """The array in a .npy file whose shape and type `check` lets pass.

    The file is not trusted: its size is checked against its header before any of it is allocated.

    Raises:
        MarshtestError: no such file, not a plain one, or not as `check` wants it.
    """
    try:
        # lstat follows no link: behind one there may be anything, also what is never read to its end.
        if not stat.S_ISREG(file.lstat().st_mode):
            raise MarshtestError(f"{name}: its outputs are no plain file (a link, folder or pipe).")
        with file.open("rb") as stream:
            shape, _, dtype = npy_header(stream)
            start = stream.tell()
        check(shape, dtype)
        if file.stat().st_size - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"not as long as its header {list(shape)} says")
        answers: NDArray[Any] = np.load(file, allow_pickle=False)  # a pickle would run code
    except FileNotFoundError:
        raise MarshtestError(f"{name}: wrote no outputs file.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, MarshtestError):
            raise
        reason = first_line(error)
        raise MarshtestError(
            f"{name}: its outputs are no .npy file of numbers ({reason})."
        ) from None
    return answers


def losses_of(name: str, answers: NDArray[Any], labels: Labels) -> Answers:
    """Margin losses from losses, probabilities or logits, and whether predictions are right.

    Raises:
        MarshtestError: most answers of the model of this name are probabilities, and some are not.
    """
    answers = answers.astype(np.float64)
    if answers.ndim == 1:
        return answers, None
    right = (answers.argmax(1) == labels) & ~np.isnan(answers).any(1)
    off = np.abs(answers.sum(1) - 1) > ROUNDED * answers.shape[1]
    if (answers >= 0).all() and off.mean() < 0.5:
        if off.any():
            # Taken for logits in one call and for probabilities in the next, they would be another model's.
            raise MarshtestError(
                f"{name}: {off.sum()} of {len(off)} answers are no probabilities: they sum to "
                f"{answers[off][0].sum():g}, and the others to 1. Round less, or answer with logits."
            )
        true = np.take_along_axis(answers, labels[:, None], 1)[:, 0]
        # Summed without the label: 1 − p would round to 0 where p is near 1.
        others = answers.copy()
        np.put_along_axis(others, labels[:, None], 0, 1)
        with np.errstate(divide="ignore"):
            return np.log(others.sum(1)) - np.log(true), right
    losses = margin_loss(torch.from_numpy(answers), torch.from_numpy(labels))
    return losses.numpy(), right


def command_call(spec: str, command: str) -> Call:
    """The call that runs a command with {inputs} and {outputs}, which it must have, filled in."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise MarshtestError(f"{spec}: cannot be read as a command ({error}).") from None
    if "{inputs}" not in command or "{outputs}" not in command:
        raise MarshtestError(
            f"{spec}: needs {{inputs}} and {{outputs}} where the two file names go."
        )

    def call(inputs: Path, outputs: Path) -> None:
        arguments = [  # filled after splitting: a path may hold spaces and quotes
            w.replace("{inputs}", str(inputs)).replace("{outputs}", str(outputs)) for w in words
        ]
        # Into files: what it prints may not fit memory, and a pipe is open for as long as any child of it
        # lives, whatever became of the program itself.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                done = subprocess.run(  # without a shell, which would read the names of files too
                    arguments,
                    stdin=subprocess.DEVNULL,  # or it could wait for ours
                    stdout=out,
                    stderr=err,
                    check=False,
                )
            except OSError as error:
                raise MarshtestError(f"{spec}: cannot be started ({error.strerror}).") from None
            if done.returncode != 0:
                said = _last_line(err) or _last_line(out) or "it printed nothing"
                raise MarshtestError(f"{spec}: {ended(done.returncode)}: {said}.")

    return call


def _last_line(file: IO[bytes]) -> str:
    """The last line of a text that a program printed, cut to what an error line holds."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 4096))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return textwrap.shorten(lines[-1], 300) if lines else ""
