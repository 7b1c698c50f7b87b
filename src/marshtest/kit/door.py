"""A model as the auditor asks it: samples as they lie in the file in, margin losses out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marshtest.errors import MarshtestError, first_line
from marshtest.kit.layouts import Value
from marshtest.kit.noise import Floats
from marshtest.metrics.accuracy import margin_loss
from marshtest.tasks import scoring_batch

Inputs = Callable[[Tensor], Tensor]  # values of the file [B, ...] → model inputs
Labels = NDArray[np.int64]
Answers = tuple[Floats, NDArray[np.bool_] | None]


class Door(ABC):
    """A model as the auditor asks it.

    Attributes:
        name: as given on the command line.
        inputs: the map from values of the file to model inputs.
    """

    name: str
    inputs: Inputs

    @abstractmethod
    def ask(self, values: Value, labels: Labels) -> Answers:
        """Margin losses [M] of samples [M, ...], and whether each prediction is right, if it is told."""

    def gradients(self, values: Value, labels: Labels) -> Floats | None:
        """[M, d] gradients of the margin loss by the values of the file; None where there are none."""
        return None


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
    ) -> None:
        self.name, self.function, self.inputs = name, function, inputs
        self.classes, self.device, self.batch = classes, device, batch

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
            output = self.function(inputs)
        except Exception as error:  # whatever a foreign model raises
            raise MarshtestError(
                f"{self.name}: does not take inputs {list(inputs.shape[1:])} "
                f"({type(error).__name__}: {first_line(error)})."
            ) from None
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            logits = torch.from_numpy(np.array(logits)).to(x.device)
        if logits.shape != (len(inputs), self.classes):
            raise MarshtestError(
                f"{self.name}: must turn {len(inputs)} inputs into logits "
                f"[{len(inputs)}, {self.classes}], one a class of the data. Got {list(logits.shape)}."
            )
        return logits[: len(x)]
