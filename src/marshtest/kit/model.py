"""A model as the auditor asks it: samples as they lie in the file in, margin losses out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marshtest.kit.layouts import Value
from marshtest.kit.noise import Floats, Scaling
from marshtest.metrics.accuracy import margin_loss
from marshtest.plumbing.errors import MarshtestError, first_line
from marshtest.training.tasks import scoring_batch

Inputs = Callable[[Tensor], Tensor]  # values of the file [B, ...] → model inputs
Labels = NDArray[np.int64]
Answers = tuple[Floats, NDArray[np.bool_] | None]
Way = tuple[Inputs, tuple[str, ...]]  # of giving samples to a model, and what to tell of it


@dataclass(frozen=True)
class Format:
    """All that a model's own process is told of the data: nothing of the dose, least of all its seed.

    Attributes:
        classes: of the data.
        pixels: whether values are 8-bit.
        scaling: from values of the file to model inputs.
    """

    classes: int
    pixels: bool
    scaling: Scaling


class Door(ABC):
    """A model as the auditor asks it.

    Attributes:
        name: as given on the command line.
        classes: of the data.
        notes: what a reader should know of how the model is asked.
    """

    name: str
    classes: int
    notes: tuple[str, ...] = ()

    @abstractmethod
    def ask(self, values: Value, labels: Labels) -> Answers:
        """Margin losses [M] of samples [M, ...], and whether each prediction is right, if it is told."""

    def gradients(self, values: Value, labels: Labels) -> Floats | None:
        """[M, d] gradients of the margin loss by the values of the file; None where there are none."""
        return None

    def _note_width(self, width: int) -> None:
        """Note outputs beyond the classes of the data: the model's answer may be one of them."""
        note = f"{width} outputs for {self.classes} classes of the data, and losses are over all {width}"
        if width > self.classes and note not in self.notes:
            self.notes += (note,)


class Program(Door):
    """A function from inputs to logits, of PyTorch or not."""

    def __init__(
        self,
        name: str,
        function: Callable[[Tensor], Any],
        inputs: Inputs,
        classes: int,
        device: torch.device,
        batch: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name, self.function, self.inputs = name, function, inputs
        self.classes, self.device, self.batch, self.notes = classes, device, batch, notes

    def ask(self, values: Value, labels: Labels) -> Answers:
        losses, right = [], []
        with torch.no_grad():
            for x, y in self._batches(values, labels):
                logits = self._logits(x)
                losses.append(margin_loss(logits, y))
                right.append(logits.argmax(1) == y)
        return torch.cat(losses).cpu().numpy(), torch.cat(right).cpu().numpy()

    def gradients(self, values: Value, labels: Labels) -> Floats | None:
        found = []
        with torch.enable_grad():
            for x, y in self._batches(values, labels):
                try:
                    logits = self._logits(x.requires_grad_())
                    (gradient,) = torch.autograd.grad(margin_loss(logits, y).sum(), x)
                except (MarshtestError, RuntimeError):  # it answers, but not to be differentiated
                    return None
                found.append(gradient.flatten(1).double())
        return torch.cat(found).cpu().numpy()

    def _batches(self, values: Value, labels: Labels) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.batch or scoring_batch(self.device)
        for start in range(0, len(values), size):
            of = slice(start, start + size)
            x, y = torch.from_numpy(values[of]), torch.from_numpy(labels[of])
            yield x.to(self.device).float(), y.to(self.device)

    def _logits(self, x: Tensor) -> Tensor:
        """[B, C] for a batch of the file's values, padded where the program's batch is fixed."""
        missing = (self.batch or len(x)) - len(x)
        inputs = self.inputs(torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x)
        try:
            # Whatever the model does to the switch, it is afterwards as it was.
            with torch.set_grad_enabled(torch.is_grad_enabled()):
                logits = logits_in(self.function(inputs)).to(x.device)
        except Exception as error:  # whatever a foreign model raises
            raise MarshtestError(
                f"{self.name}: does not take inputs {list(inputs.shape[1:])} "
                f"({type(error).__name__}: {first_line(error)})."
            ) from None
        rows, width = len(inputs), logits.shape[-1] if logits.dim() else 0
        if logits.shape != (rows, width) or width < self.classes:
            raise MarshtestError(
                f"{self.name}: must turn {rows} inputs into logits [{rows}, {self.classes}] or wider, "
                f"one a class of the data. Got {list(logits.shape)}."
            )
        self._note_width(width)
        logits = logits[: len(x)]
        if bad := int(logits.isnan().any(1).sum()):
            raise MarshtestError(f"{self.name}: answered NaN for {bad} of {len(x)} inputs.")
        return logits


def logits_in(output: Any) -> Tensor:
    """Logits in what a model answers with: itself, `.logits`, ["logits"], or the first of several."""
    if isinstance(output, Mapping):
        output = output["logits"] if "logits" in output else next(iter(output.values()))
    output = getattr(output, "logits", output)
    if isinstance(output, tuple | list) and getattr(output[0], "ndim", 0) == 2:
        output = output[0]
    return output if isinstance(output, Tensor) else torch.from_numpy(np.array(output))
