"""Language models that are asked in JSON: functions, programs, services behind a script.

A question is {"before": TEXT, "scored": TEXT}: a model answers with −log p of the second text behind the
first, summed over its tokens, in nats. Of a chat it has "messages" too, [{"role": …, "content": …}, …], of
which the first "given" are context.
"""

import json
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marshtest.kit.black_box import Call
from marshtest.kit.records.base import Asked, Floats
from marshtest.kit.texts.base import TextModel
from marshtest.plumbing.errors import MarshtestError, first_line

Question = dict[str, Any]
LINE = 100  # bytes that a number and its line end may take


class FunctionTexts(TextModel):
    """A function from a list of questions to as many losses."""

    def __init__(self, name: str, function: Callable[[list[Question]], Any]) -> None:
        self.name, self.function = name, function

    def __call__(self, asked: Sequence[Asked]) -> Floats:
        return checked(self.name, self.function([question(one) for one in asked]), len(asked))


class BoxTexts(TextModel):
    """A model that maps a file of questions, one a line, to a file of losses, a number a line."""

    def __init__(self, name: str, call: Call) -> None:
        self.name, self.call = name, call

    def __call__(self, asked: Sequence[Asked]) -> Floats:
        # A folder for each call: what a program leaves behind cannot stand for its next answer.
        with tempfile.TemporaryDirectory() as folder:
            inputs, outputs = Path(folder) / "inputs.jsonl", Path(folder) / "outputs.jsonl"
            inputs.write_text("".join(f"{json.dumps(question(one))}\n" for one in asked))
            self.call(inputs, outputs)
            return checked(self.name, read_losses(self.name, outputs, len(asked)), len(asked))


def question(asked: Asked) -> Question:
    """What a black box is told: neither where the mark is nor which questions are of one record."""
    chat = {
        "messages": [{"role": m.role, "content": m.content} for m in asked.messages],
        "given": asked.given,
    }
    return {"before": asked.before, "scored": asked.scored} | (chat if asked.messages else {})


def read_losses(name: str, file: Path, rows: int) -> list[Any]:
    """The numbers in a file, one a line; the file is not trusted.

    Raises:
        MarshtestError: no such file, not a plain one, too long a one, or not one JSON value a line.
    """
    try:
        # lstat follows no link: behind one there may be anything, also what is never read to its end.
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise MarshtestError(f"{name}: its outputs are no plain file (a link, folder or pipe).")
        if status.st_size > LINE * max(1, rows):
            raise MarshtestError(
                f"{name}: must write {rows} losses, a number a line. Wrote {status.st_size:,} bytes."
            )
        return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        raise MarshtestError(f"{name}: wrote no outputs file.") from None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, MarshtestError):
            raise
        raise MarshtestError(
            f"{name}: its outputs are not a number a line ({first_line(error)})."
        ) from None


def checked(name: str, answers: Any, rows: int) -> Floats:
    """Answers as losses [rows].

    Raises:
        MarshtestError: not so many numbers, NaN, or log-probabilities where losses are due.
    """
    try:
        losses = np.asarray(answers)
    except Exception as error:  # a tensor on another device, lists of several lengths
        raise MarshtestError(
            f"{name}: answered no array of numbers ({first_line(error)})."
        ) from None
    if losses.dtype.kind not in "iuf" or losses.shape != (rows,):
        raise MarshtestError(
            f"{name}: must answer with {rows} losses [{rows}], −log p of each scored text. Got "
            f"{losses.dtype} {list(losses.shape)}."
        )
    if bad := int(np.isnan(losses).sum()):
        raise MarshtestError(f"{name}: answered NaN for {bad} of {rows} texts.")
    if (losses < 0).any():
        raise MarshtestError(
            f"{name}: answered negative numbers. A loss is −log p, larger where a text is more surprising."
        )
    return losses.astype(np.float64)
