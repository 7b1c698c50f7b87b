"""What a recipe will do and cost on this machine, before it is run."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch.nn import Module

from marshtest.data import Dataset
from marshtest.metrics.accuracy import accuracy
from marshtest.protocol import Pipeline, groups, set_up, stages
from marshtest.recipe import Recipe
from marshtest.training import descend

KINDS = {
    "train": "SGD from scratch: the initial model on all samples, the retrained one on the retain set",
    "unlearn": "each unlearner from the initial model, within its compute budget",
    "score": "the attack's effect on a model: input gradients, and K + 1 forwards a poison",
}
REPEATS = 3


@dataclass(frozen=True)
class Speed:
    """Sample passes a second on this machine."""

    training: float
    scoring: float


def measure(pipeline: Pipeline) -> Speed:
    """Time a few training steps and scoring forwards of the recipe's own model and batch."""
    recipe, task = pipeline.recipe, pipeline.task
    batch = pipeline.data.train[: recipe.training.batch_size]
    model = pipeline.new_model(0)
    optimizer = recipe.training.optimizer_for(model)

    def step() -> None:
        descend(optimizer, task.loss(model.train(), batch).mean())

    return Speed(
        training=3 * len(batch) / _seconds(step, model),
        scoring=len(batch) / _seconds(lambda: accuracy(model, task, batch), model),
    )


def _seconds(work: Callable[[], object], model: Module) -> float:
    """Fastest of a few runs, after one to warm up."""
    on_cuda = next(model.parameters()).is_cuda
    times = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        work()
        if on_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def expected_cost(recipe: Recipe, data: Dataset) -> pd.DataFrame:
    """One line a kind of stage: what it is, how many, sample passes, expected seconds here."""
    pipeline = set_up(recipe, data)
    speed = measure(pipeline)
    todo = [
        (stage.kind, stage.passes)
        for group in groups(recipe)
        for stage in stages(recipe, group, len(data.train))
    ]
    lines = []
    for kind, what in KINDS.items():
        passes = [cost for found, cost in todo if found == kind]
        rate = speed.scoring if kind == "score" else speed.training
        lines.append((kind, what, len(passes), sum(passes), sum(passes) / rate))
    return pd.DataFrame(lines, columns=["stage", "what", "count", "passes", "seconds"])
