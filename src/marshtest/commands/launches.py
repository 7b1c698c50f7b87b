"""What a recipe's work would ask a GPU for: operations, counted here in a few steps on a few samples.

A step of a small network keeps a GPU busy for less time than the processor needs to ask for it. How often
it asks depends on a step's operations alone, not on how many samples it is done with.
"""

import copy
from contextlib import suppress
from functools import cache, cached_property

import torch

from marshtest.experiment.protocol import Pipeline
from marshtest.plumbing.device import CUDA
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import seeded
from marshtest.sweeps.jobs import Job
from marshtest.training.budget import Budget, BudgetSpent, Meter
from marshtest.training.captured import ours
from marshtest.training.loop import descend
from marshtest.unlearning import UNLEARNERS, Unlearner
from marshtest.unlearning.outside import Outside

FEW = 4  # samples of a step that is counted
HOST = 40e-6  # seconds in which a processor asks for one of them; see docs/gpu.md
REPLAYED = 20  # operations of a training step that is replayed as a graph


class Launches:
    """Operations that a GPU is asked for in one sample pass, by kind of work."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self._task = pipeline, pipeline.task
        self._model = pipeline.trainer.new_model(0)
        self._few = pipeline.data.train[:FEW]
        self._of_unlearner = cache(self._counted)

    def in_a_pass(self, job: Job, kind: str) -> float:
        """Operations asked for in one sample pass of a job's work; 0 of a kind that is not counted."""
        batch = self._pipeline.recipe.training.batch_size
        if kind == "train":
            return (REPLAYED if ours(self._model) else self._step) / (3 * batch)
        if kind == "score":
            return self._forward.operations / self._task.scoring_batch(self._few, CUDA)
        unlearner = job.unlearner
        if kind != "unlearn" or unlearner is None:
            return 0.0
        # Explaining a recipe runs nothing of a user's, and hands no model out.
        if type(unlearner) not in UNLEARNERS.values() or isinstance(unlearner, Outside):
            return self._step / (3 * batch)
        own = getattr(unlearner, "batch_size", None) or batch
        return self._of_unlearner(unlearner) * FEW / own

    @cached_property
    def _step(self) -> int:
        """Operations of a training step."""
        optimizer = self._pipeline.recipe.training.optimizer_for(self._model)
        with Meter() as meter:
            descend(optimizer, self._task.loss(self._model.train(), self._few).mean())
        return meter.operations

    @cached_property
    def _forward(self) -> Meter:
        """What a forward in float32 comes to."""
        with Meter() as meter, torch.no_grad():
            self._task.exact().loss(self._model.eval(), self._few)
        return meter

    def _counted(self, unlearner: Unlearner) -> float:
        """Operations for each pass of an unlearner's steps on a few samples."""
        plain = self._step / (3 * FEW)
        # Of a longer run less a shorter: what comes before the first step drops out. Some steps longer,
        # since a budget may end within one.
        try:
            short, long = (self._run(unlearner, passes) for passes in (6 * FEW, 24 * FEW))
        except MarshtestError:
            return plain
        return (long[0] - short[0]) / (long[1] - short[1]) if long[1] > short[1] else plain

    def _run(self, unlearner: Unlearner, passes: float) -> tuple[int, float]:
        """(operations, sample passes) of a run with this budget."""
        few, task = self._few, self._pipeline.task_for_unlearners()
        budget = Budget(passes, self._forward.flops / len(few))
        with suppress(BudgetSpent), Meter() as meter, seeded(0), budget:
            unlearner(copy.deepcopy(self._model), few, few[:2], task=task, budget=budget, seed=0)
        return meter.operations, budget.spent
