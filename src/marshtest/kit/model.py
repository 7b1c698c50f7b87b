"""A model as the auditor asks it: samples as they lie in the file in, margin losses out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marshtest.kit.layouts.base import Value
from marshtest.kit.noise import Floats, Scaling
from marshtest.metrics.accuracy import likeliest, margin_loss
from marshtest.models.answers import logits_in
from marshtest.plumbing.device import exact_float32, failure, in_parts
from marshtest.plumbing.errors import MarshtestError, first_line
from marshtest.training.tasks import scoring_batch

Inputs = Callable[[Tensor], Tensor]  # values of the file [B, ...] → model inputs
Labels = NDArray[np.int64]
Answers = tuple[Floats, NDArray[np.bool_] | None]  # losses [M]; right or not [M], if known
Kind = Literal["losses", "labels"]  # all that tells how wrong a model is, or labels alone
Way = tuple[Inputs, tuple[str, ...]]  # how samples are given to a model, and notes on it


@dataclass(frozen=True)
class Format:
    """The format of the data, which is all that a model's own process learns: the dose stays secret."""

    classes: int  # number of classes of the data
    pixels: bool  # whether values are 8-bit
    scaling: Scaling  # from values of the file to model inputs
    answers: Kind = "losses"  # what a black box, or a user's function, answers with
    names: tuple[str, ...] = ()  # of the classes, where the data set has names


class AskedModel(ABC):
    """A model as the auditor asks it."""

    name: str  # the model as it is given on the command line
    classes: int  # number of classes of the data
    notes: tuple[str, ...] = ()  # what a reader should know of how the model is asked

    @abstractmethod
    def ask(self, values: Value, labels: Labels) -> Answers:
        """Margin losses [M] of samples [M, ...], and [M] whether each prediction is right (or None)."""

    def gradients(self, values: Value, labels: Labels) -> Floats | None:
        """[M, d] gradients of the margin loss by the values of the file; None where there are none."""
        return None

    def _note_width(self, width: int) -> None:
        """Note outputs beyond the classes of the data: the model's answer may be one of them."""
        note = f"{width} outputs for {self.classes} classes of the data, and losses are over all {width}"
        if width > self.classes and note not in self.notes:
            self.notes += (note,)


@dataclass(eq=False)
class FunctionModel(AskedModel):
    """A function from inputs to logits, of PyTorch or not."""

    name: str
    function: Callable[[Tensor], Any]
    inputs: Inputs
    classes: int
    device: torch.device
    batch: int | None = None  # the only batch size that the function takes
    notes: tuple[str, ...] = ()

    def ask(self, values: Value, labels: Labels) -> Answers:
        def answered(rows: slice) -> tuple[Tensor, Tensor]:
            x, y = self._batch(values[rows], labels[rows])
            logits = self._logits(x)
            return margin_loss(logits, y), likeliest(logits) == y

        with exact_float32(), torch.no_grad():
            parts = [*in_parts(answered, len(values), self._size(values))]
        losses, right = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
        return losses, right

    def gradients(self, values: Value, labels: Labels) -> Floats | None:
        def sloped(rows: slice) -> Tensor:
            x, y = self._batch(values[rows], labels[rows])
            logits = self._logits(x.requires_grad_())
            (gradient,) = torch.autograd.grad(margin_loss(logits, y).sum(), x)
            return gradient.flatten(1).double()

        with exact_float32(), torch.enable_grad():
            try:
                parts = [*in_parts(sloped, len(values), self._size(values))]
            except (MarshtestError, RuntimeError) as error:
                if failure(error):
                    raise
                return None  # it answers, but not to be differentiated
        return torch.cat(parts).cpu().numpy()

    def _size(self, values: Value) -> int:
        return self.batch or scoring_batch(self.device, math.prod(values.shape[1:]))

    def _batch(self, values: Value, labels: Labels) -> tuple[Tensor, Tensor]:
        x, y = torch.from_numpy(values), torch.from_numpy(labels)
        return x.to(self.device).float(), y.to(self.device)

    def _logits(self, x: Tensor) -> Tensor:
        """[B, C] for a batch of the file's values, padded where the model's batch size is fixed."""
        missing = (self.batch or len(x)) - len(x)
        inputs = self.inputs(torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x)
        try:
            # The model may switch gradients off or on; this puts the switch back afterwards.
            with torch.set_grad_enabled(torch.is_grad_enabled()):
                logits = _logits_of(self.function(inputs)).to(x.device)
        except Exception as error:  # whatever a foreign model raises
            if failure(error):
                raise
            raise MarshtestError(
                f"{self.name}: does not take inputs {list(inputs.shape[1:])} "
                f"({type(error).__name__}: {first_line(error)})."
            ) from None
        rows, width = len(inputs), logits.shape[-1] if logits.dim() else 0
        if logits.shape != (rows, width) or width < self.classes:
            raise MarshtestError(
                f"{self.name}: must turn {rows} inputs into logits [{rows}, {self.classes}] or wider, "
                f"one for each class of the data. Got {list(logits.shape)}."
            )
        self._note_width(width)
        logits = logits[: len(x)]
        if bad := int(logits.isnan().any(1).sum()):
            raise MarshtestError(f"{self.name}: answered NaN for {bad} of {len(x)} inputs.")
        return logits


def _logits_of(output: Any) -> Tensor:
    """The logits in an answer; of several outputs with names, the first."""
    # Models of our own name their logits if they answer with several things. Others may not.
    if isinstance(output, Mapping) and "logits" not in output and not hasattr(output, "logits"):
        output = next(iter(output.values()))
    return logits_in(output)
