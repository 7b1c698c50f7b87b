"""How a recipe names a model."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # what only describes is read without torch
    from torch import nn
from marshtest.plumbing.settings import Settings


class ModelSettings(Settings, ABC):
    """How to build a model for inputs of one shape and a number of classes."""

    name: str

    def imported(self) -> Self:
        """The same, told apart by what a factory of the user's does; only a factory is imported."""
        return self

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], classes: int) -> "nn.Module":
        """A freshly initialised module from [B, *input_shape] to logits [B, classes]."""

    def answer(self, model: "nn.Module", input_shape: tuple[int, ...]) -> Any:
        """What a model that was built says to two samples of nothing."""
        import torch

        return model(torch.zeros(2, *input_shape))

    def fits(self, logits: tuple[int, ...], input_shape: tuple[int, ...], classes: int) -> bool:
        """Whether the logits of these two have the shape that they must have.

        Outputs beyond the classes are allowed: no sample has their labels, so training closes them.
        """
        return len(logits) == 2 and logits[0] == 2 and logits[1] >= classes
