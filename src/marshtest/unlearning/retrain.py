"""Retraining: the recipe's training from a new initialisation on the retain set, within the budget.

The schedule is compressed into the budget. Full retraining, the reference, is a step of the protocol and
no unlearner.
"""

from typing import ClassVar

from torch import nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.budget import Budget
from marshtest.training.tasks import Task
from marshtest.unlearning.base import Unlearner


class Retrain(Unlearner):
    """Retraining from scratch within the budget (paper §5): the honest rival."""

    looks_back: ClassVar[bool] = False
    name: str = "retrain"

    def __call__(
        self,
        model: nn.Module,
        retain: Samples,
        forget: Samples,
        *,
        task: Task,
        budget: Budget,
        seed: int,
    ) -> nn.Module:
        if task.train is None:
            raise MarshtestError(
                "retrain: the task has no training pipeline (task.train). Run it through a recipe."
            )
        return task.train(retain, seed, budget)
