"""Models that are asked by files alone: any program, any framework, a service behind a script.

A black box is called with two paths. It reads the first, an .npz of x [M, ...] float32, scaled as a model
expects it, and y [M]; and writes the second, a .npy of M losses (larger = more wrong), or of [M, C]
probabilities or logits.
"""

import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from marshtest.errors import MarshtestError, first_line
from marshtest.kit.door import Answers, Door, Inputs, Labels
from marshtest.kit.layouts import Value
from marshtest.metrics.accuracy import margin_loss

Call = Callable[[Path, Path], None]


class BlackBox(Door):
    """Whatever maps a file of inputs to a file of losses, probabilities or logits."""

    def __init__(
        self, name: str, call: Call, inputs: Inputs, classes: int, notes: tuple[str, ...] = ()
    ) -> None:
        self.name, self.call, self.inputs = name, call, inputs
        self.classes, self.notes = classes, notes

    def ask(self, values: Value, labels: Labels) -> Answers:
        return _told(self._answers(values, labels), labels)

    def _answers(self, values: Value, labels: Labels) -> NDArray[Any]:
        with tempfile.TemporaryDirectory() as folder:
            asked, told = Path(folder) / "inputs.npz", Path(folder) / "outputs.npy"
            x = self.inputs(torch.from_numpy(values).float()).numpy()
            np.savez(asked, x=x, y=labels)
            self.call(asked, told)
            try:
                answers: NDArray[Any] = np.load(told, allow_pickle=False)
            except FileNotFoundError:
                raise MarshtestError(f"{self.name}: wrote no outputs file.") from None
            except (OSError, ValueError) as error:
                raise MarshtestError(
                    f"{self.name}: its outputs are no .npy file of numbers ({error})."
                ) from None
        rows, width = len(values), self.classes
        if answers.dtype.kind not in "iuf":
            raise MarshtestError(f"{self.name}: answered {answers.dtype}, not numbers.")
        if answers.shape[:1] == (rows,) and answers.ndim == 2:
            width = max(width, answers.shape[1])  # more outputs than classes of the data
        if answers.shape not in ((rows,), (rows, 1), (rows, width)):
            raise MarshtestError(
                f"{self.name}: must answer {rows} losses, or [{rows}, {width}] probabilities or "
                f"logits. Got {list(answers.shape)}."
            )
        self._note_width(width)
        if np.isnan(answers).any():
            bad = int(np.isnan(answers).reshape(rows, -1).any(1).sum())
            raise MarshtestError(f"{self.name}: answered NaN for {bad} of {rows} inputs.")
        return answers


def _told(answers: NDArray[Any], labels: Labels) -> Answers:
    """Margin losses from losses, probabilities or logits, and whether predictions are right."""
    answers = answers.astype(np.float64)
    if answers.ndim == 1 or answers.shape[1] == 1:
        return answers.reshape(-1), None
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
            done = subprocess.run(filled, capture_output=True, text=True, check=False)
        except OSError as error:
            raise MarshtestError(f"{spec}: cannot be started ({error.strerror}).") from None
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
            raise MarshtestError(f"{spec}: died with exit code {done.returncode}: {said[-1]}.")

    return call


def function_call(spec: str, function: Callable[..., Any]) -> Call:
    """Call a function with the two paths."""

    def call(inputs: Path, outputs: Path) -> None:
        try:
            function(inputs, outputs)
        except Exception as error:  # whatever the user's code raises
            raise MarshtestError(
                f"{spec}: raised {type(error).__name__} ({first_line(error)})."
            ) from None

    return call
