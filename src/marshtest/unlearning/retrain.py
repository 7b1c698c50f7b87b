"""Retraining: a training from a new initialisation on the retain set, within the budget.

    retrain         by the recipe's training, its schedule compressed into the budget; settings may differ
    retrain-tuned   the same under a name of its own, with settings that a search has found

A small budget rewards smaller batches and another schedule than a long training does, so retraining that
nobody tuned flatters every other method. Full retraining, the reference, is a step of the protocol and no
unlearner.
"""

from typing import ClassVar

from torch import nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.budget import Budget
from marshtest.training.loop import OptimizerSettings
from marshtest.training.tasks import Task
from marshtest.unlearning.base import TrainingUnlearner


class Retrain(TrainingUnlearner):
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
        return self.train(task, retain, seed, budget)


class RetrainTuned(Retrain):
    """Retraining within the budget, by settings that were searched for: the line to beat."""

    name: str = "retrain-tuned"

    def check_setting(self, training: OptimizerSettings, forget_share: float) -> None:
        # Here, and not where recipes are parsed: rows that were written without settings stay readable.
        if not self.hyperparameters:
            raise MarshtestError(
                "unlearners.retrain-tuned: nothing is tuned without a setting. Give what a search found: "
                "{name: retrain-tuned, batch_size: 8, lr: 0.05}; shipped recipes have settings, and "
                "benchmarks/tuning the searches that found them."
            )
