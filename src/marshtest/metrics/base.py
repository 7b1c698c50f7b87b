"""The contract of a metric: a measure of any model, whatever the attack, in columns of its row."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from marshtest.data.samples import Samples
from marshtest.metrics.presentation import Column
from marshtest.plumbing.choice import Choice
from marshtest.training.tasks import Task


@dataclass(frozen=True)
class Beside:
    """The models that a metric compares with, and non-members; one for all questions of an experiment."""

    initial: nn.Module  # trained on the poisons
    retrained: nn.Module  # trained without them
    reference: nn.Module  # the same, by other draws
    # samples that no model was trained on: dosed by the poisons' law, or test samples without such a law
    fresh: Samples
    dosed: bool  # whether they are
    # what was computed of these models once, by name
    remembered: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Question:
    """What a metric may look at beside the model."""

    forget: Samples  # the poisons, as the initial model was trained on them: the members
    retain: Samples  # the other training samples
    test: Samples  # samples of the clean training law, on which no model was trained
    held_out: Samples  # validation samples, which no model was trained on either; may be empty
    task: Task  # what turns samples into losses
    seed: int  # fixes what is drawn; the process's generators are seeded with it too
    role: str = ""  # what the model is in the experiment, as its row says
    beside: Beside | None = None  # what a metric that `compares` is given


class Metric(Choice, ABC):
    """A measure of models, whose fields are its options."""

    # The columns that it adds to a model's row, and what a report must know of each.
    columns: ClassVar[Mapping[str, Column]]
    # True if a model is compared with the initial and two retrained ones: they are trained first
    compares: ClassVar[bool] = False

    @abstractmethod
    def measure(self, model: nn.Module, question: Question) -> Mapping[str, float]:
        """A number for each of `columns`; nan where it is undefined. The model is not changed."""
