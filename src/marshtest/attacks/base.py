"""What an attack gives: poisoned samples, and what it can measure of itself on a model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from marshtest.data import Samples
from marshtest.errors import MarshtestError
from marshtest.seeds import generator
from marshtest.settings import Settings
from marshtest.tasks import Task

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Poisoned:
    """A training set with poison in it.

    Attributes:
        samples: all of it, [N].
        forget_ids: [P] ids of the poisons: the forget set.
        seed: the attack's secret; with the ids it tells the noise.
    """

    samples: Samples
    forget_ids: Tensor
    seed: int

    @property
    def forget(self) -> Samples:
        """The forget set: the poisons, as trained on."""
        return self.samples.only(self.forget_ids)

    @property
    def retain(self) -> Samples:
        """The retain set: everything else."""
        return self.samples.without(self.forget_ids)


@dataclass(frozen=True)
class Effect:
    """What is left of an attack in a model.

    Attributes:
        ids: [P] ids of the poisons.
        scores: by name, [P] one value a poison.
        figures: numbers for the row.
    """

    ids: NDArray[np.int64]
    scores: dict[str, Floats]
    figures: dict[str, float] = field(default_factory=dict)


class Attack(Settings, ABC):
    """How poison is made, and how its effect on a model is measured."""

    name: str

    @abstractmethod
    def poison(self, samples: Samples, count: int, task: Task, seed: int) -> Poisoned:
        """Turn `count` samples into poisons; the others stay as they are."""

    @abstractmethod
    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        """Measure what is left of the poison in `model`."""

    @abstractmethod
    def null_deviations(self) -> dict[str, float]:
        """The scores that verdicts rest on: name → standard deviation of one poison's score when the
        model does not depend on the poison. Their mean is zero then, exactly.
        """

    @abstractmethod
    def passes(self, poisons: int) -> float:
        """Sample passes of one measurement, for the estimate before a run."""


def choose(samples: Samples, count: int, seed: int) -> Tensor:
    """[count] ids drawn uniformly without replacement.

    Raises:
        MarshtestError: more poisons than samples, or none.
    """
    if not 0 < count < len(samples):
        raise MarshtestError(
            f"poison_budgets: asks for {count} poisons among {len(samples)} training samples; "
            "between 1 and all but one are possible."
        )
    order = torch.randperm(len(samples), generator=generator(seed, "choose"))
    return samples.ids[order[:count].to(samples.ids.device)]
