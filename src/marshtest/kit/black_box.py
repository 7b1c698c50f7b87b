"""Models that are asked by files alone: any program, any framework, a service behind a script.

A black box is called with two paths. It reads the first, an .npz of x [M, ...] float32, scaled as a model
expects it, and y [M]; and writes the second, a .npy of M losses (larger = more wrong), or of [M, C]
probabilities or logits.
"""

import math
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from marshtest.kit.layouts import Value
from marshtest.kit.model import Answers, AskedModel, Inputs, Labels
from marshtest.kit.process import ended
from marshtest.metrics.accuracy import margin_loss
from marshtest.plumbing.errors import MarshtestError, first_line

Call = Callable[[Path, Path], None]


class BlackBox(AskedModel):
    """Whatever maps a file of inputs to a file of losses, probabilities or logits."""

    def __init__(
        self, name: str, call: Call, inputs: Inputs, classes: int, notes: tuple[str, ...] = ()
    ) -> None:
        self.name, self.call, self.inputs = name, call, inputs
        self.classes, self.notes = classes, notes
        self._taken_for_losses = False

    def ask(self, values: Value, labels: Labels) -> Answers:
        answers = self._answers(values, labels)
        if answers.ndim == 1 and not self._taken_for_losses:
            self._refuse_probabilities(values, labels, answers)
            self._taken_for_losses = True
        return _told(answers, labels)

    def _answers(self, values: Value, labels: Labels) -> NDArray[Any]:
        with tempfile.TemporaryDirectory() as folder:
            asked, told = Path(folder) / "inputs.npz", Path(folder) / "outputs.npy"
            x = self.inputs(torch.from_numpy(values).float()).numpy()
            np.savez(asked, x=x, y=labels)
            self.call(asked, told)
            answers = read_answers(self.name, told, len(values), self.classes)
        if answers.ndim == 2:
            self._note_width(answers.shape[1])
        if np.isnan(answers).any():
            rows = len(answers)
            bad = int(np.isnan(answers).reshape(rows, -1).any(1).sum())
            raise MarshtestError(f"{self.name}: answered NaN for {bad} of {rows} inputs.")
        return answers

    def _refuse_probabilities(self, values: Value, labels: Labels, answers: NDArray[Any]) -> None:
        """Raise where [M] answers in [0, 1] are no losses: a loss depends on the label, and falls with
        the probability that the model gives it.
        """
        if answers.min() < 0 or answers.max() > 1:
            return
        others = self._answers(values, (labels + 1) % self.classes)
        if np.array_equal(answers, others):
            what = "the same whatever the labels are"
        elif (
            self.classes == 2
            and np.allclose(answers + others, 1, atol=1e-3)
            and answers.mean() > others.mean()
        ):
            what = "probabilities of the labels, larger where it is more right"
        else:
            return
        raise MarshtestError(
            f"{self.name}: its answers [{len(answers)}] lie in [0, 1] and are {what}, so they are no "
            f"losses. Write losses of the labels `y`, or all {self.classes} columns of probabilities."
        )


def read_answers(name: str, file: Path, rows: int, classes: int) -> NDArray[Any]:
    """The answers in a .npy file; nothing of the size that it claims is allocated before it is checked.

    Raises:
        MarshtestError: no such file, not a plain one, or not numbers [rows] or [rows, classes] (or wider).
    """
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            raise MarshtestError(f"{name}: its outputs are no plain file (a link, folder or pipe).")
        with file.open("rb") as opened:
            shape, dtype = _header(opened)
            begins = opened.tell()
        if dtype.kind not in "iuf":
            raise MarshtestError(f"{name}: answered {dtype}, not numbers.")
        wide = len(shape) == 2 and shape[0] == rows and shape[1] >= classes
        if shape != (rows,) and not wide:
            raise MarshtestError(
                f"{name}: must answer {rows} losses [{rows}], or [{rows}, {classes}] probabilities or "
                f"logits, or wider. Got {list(shape)}."
            )
        if file.stat().st_size - begins != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"not as long as its header {list(shape)} says")
        answers: NDArray[Any] = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise MarshtestError(f"{name}: wrote no outputs file.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, MarshtestError):
            raise
        why = first_line(error)
        raise MarshtestError(f"{name}: its outputs are no .npy file of numbers ({why}).") from None
    return answers


def _header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that the first bytes of a .npy file claim."""
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:  # of later versions, numbers are written in 2.0 at most
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _told(answers: NDArray[Any], labels: Labels) -> Answers:
    """Margin losses from losses, probabilities or logits, and whether predictions are right."""
    answers = answers.astype(np.float64)
    if answers.ndim == 1:
        return answers, None
    right = answers.argmax(1) == labels
    sums = answers.sum(1)
    if (answers >= 0).all() and np.allclose(sums, 1, atol=1e-3):
        own = np.take_along_axis(answers, labels[:, None], 1)[:, 0]
        others = answers.copy()
        np.put_along_axis(others, labels[:, None], 0, 1)
        with np.errstate(divide="ignore"):
            return np.log(others.sum(1)) - np.log(own), right
    losses = margin_loss(torch.from_numpy(answers), torch.from_numpy(labels))
    return losses.numpy(), right


def command_call(spec: str, command: str) -> Call:
    """Run a command with {inputs} and {outputs} filled in."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise MarshtestError(f"{spec}: cannot be read as a command ({error}).") from None
    if "{inputs}" not in command or "{outputs}" not in command:
        raise MarshtestError(f"{spec}: needs {{inputs}} and {{outputs}} where the file names go.")

    def call(inputs: Path, outputs: Path) -> None:
        filled = [
            w.replace("{inputs}", str(inputs)).replace("{outputs}", str(outputs)) for w in words
        ]
        try:
            done = subprocess.run(
                filled,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise MarshtestError(f"{spec}: cannot be started ({error.strerror}).") from None
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
            raise MarshtestError(f"{spec}: {ended(done.returncode)}: {said[-1]}.")

    return call
