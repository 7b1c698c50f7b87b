"""What a recipe will do and cost on this machine, before it is run."""

import time
from collections.abc import Callable

import pandas as pd
import torch
from torch.nn import Module

from marshtest.attacks.gradient_matching import matching
from marshtest.attacks.kernel import MICRO_BATCH, STEP_PASSES, Kernel
from marshtest.data import Dataset, Samples
from marshtest.features import by_features, network
from marshtest.metrics.accuracy import accuracy
from marshtest.protocol import Pipeline, groups, pick_device, set_up, stages
from marshtest.recipe import Recipe
from marshtest.tasks import Task
from marshtest.training import Training, descend

KINDS = {
    "features": "the network that the samples' features are taken from, trained once",
    "craft": "the attack's optimisation at a clean model; the count is of steps, each over all poisons",
    "train": "from scratch: the initial model on all samples, the retrained one on the retain set; of "
    "crafted poisons also the clean one, a reference and a control",
    "unlearn": "each unlearner from the initial model, within its compute budget",
    "score": "the attack's effect on a model, and its accuracy",
}
REPEATS = 3


def measure(pipeline: Pipeline) -> dict[str, float]:
    """Sample passes a second on this machine, by kind of stage: a few steps of the recipe's own."""
    recipe, task = pipeline.recipe, pipeline.task
    samples, model = pipeline.data.train, pipeline.new_model(0)
    training = _training_rate(model, task, recipe.training, samples)
    batch = samples[: recipe.training.batch_size]
    scoring = len(batch) / _seconds(lambda: accuracy(model, task, batch), model)
    rates = {"train": training, "unlearn": training, "score": scoring}
    if not recipe.attack.crafting(1)[0]:
        return rates
    poisons = samples[: 2 * MICRO_BATCH]
    kernel, inputs = Kernel(model, task), task.inputs(model, poisons)
    objective = matching(kernel.gradient(poisons[:1]))
    seconds = _seconds(lambda: kernel(inputs, poisons, objective), model)
    return {"craft": STEP_PASSES * len(poisons) / seconds, **rates}


def _training_rate(model: Module, task: Task, training: Training, samples: Samples) -> float:
    """Sample passes a second in training (3 a sample)."""
    batch = samples[: training.batch_size].to(next(model.parameters()).device)
    optimizer = training.optimizer_for(model)

    def step() -> None:
        descend(optimizer, task.loss(model.train(), batch).mean())

    return 3 * len(batch) / _seconds(step, model)


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


def expected_cost(recipe: Recipe, data: Dataset, others: Samples) -> pd.DataFrame:
    """One line a kind of stage: what it is, how many, sample passes, expected seconds here.

    Args:
        data: the samples as loaded.
        others: those that the recipe's feature network is trained on.
    """
    lines = []
    if (settings := recipe.data.features) is not None:
        model, task = network(data, settings, pick_device(recipe.device))
        passes = 3.0 * settings.training.epochs * len(others)
        rate = _training_rate(model, task, settings.training, others)
        lines.append(("features", KINDS["features"], 1, passes, passes / rate))
        data = by_features(
            data, others, model, task, settings.grid
        )  # its shape and size: nothing is trained
    pipeline = set_up(recipe, data)
    rates = measure(pipeline)
    todo = [stage for group in groups(recipe) for stage in stages(recipe, group, data)]
    for kind, rate in rates.items():
        of_kind = [stage for stage in todo if stage.kind == kind]
        passes = sum(stage.passes for stage in of_kind)
        count = sum(stage.steps for stage in of_kind)
        lines.append((kind, KINDS[kind], count, passes, passes / rate))
    return pd.DataFrame(lines, columns=["stage", "what", "count", "passes", "seconds"])
