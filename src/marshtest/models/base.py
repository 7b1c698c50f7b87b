"""The contract of a model's settings: what a recipe says of a model, and how it is built from that."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from marshtest.plumbing.settings import Settings

if TYPE_CHECKING:  # recipes are read without torch, which takes seconds to import
    from torch import nn


class ModelSettings(Settings, ABC):
    """Settings from which a model is built, for inputs of one shape and a number of classes."""

    name: str

    def imported(self) -> Self:
        """The same settings, with the digest of a user's factory; our own kinds import nothing."""
        return self

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], classes: int) -> "nn.Module":
        """A freshly initialised module from [B, *input_shape] to logits [B, classes]."""

    def answer(self, model: "nn.Module", input_shape: tuple[int, ...]) -> Any:
        """The model's answer to two samples of zeros, by which `build` tries it."""
        import torch

        return model(torch.zeros(2, *input_shape))

    def fits(self, logits: tuple[int, ...], input_shape: tuple[int, ...], classes: int) -> bool:
        """Whether logits of such a shape are right for two samples.

        More outputs than classes are allowed: no sample has their labels, so training closes them.
        """
        return len(logits) == 2 and logits[0] == 2 and logits[1] >= classes
