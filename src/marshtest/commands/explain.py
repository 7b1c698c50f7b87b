"""What a recipe or a sweep will do and cost on this machine, before it is run."""

import time
from collections.abc import Callable

import pandas as pd
import torch
from torch.nn import Module

from marshtest.attacks import ForeignAttack
from marshtest.attacks.gradient_matching import matching
from marshtest.attacks.kernel import MICRO_BATCH, STEP_PASSES, Kernel
from marshtest.data.samples import Dataset, Samples
from marshtest.experiment.features import by_features, network
from marshtest.experiment.protocol import Pipeline, poison_count, set_up
from marshtest.experiment.recipe import ForeignData
from marshtest.experiment.recipe_data import samples_of
from marshtest.metrics.accuracy import accuracy
from marshtest.models.table import Factory
from marshtest.plumbing.device import pick_device
from marshtest.sweeps.jobs import Job, passes
from marshtest.sweeps.planned import Planned
from marshtest.sweeps.store import hashed
from marshtest.training.budget import flops_of
from marshtest.training.loop import Training, descend
from marshtest.training.tasks import Task

KINDS = {
    "features": "the network that the samples' features are taken from, trained once",
    "craft": "the attack's optimisation at a clean model; the count is of steps, each over all poisons",
    "train": "from scratch: the initial model on all samples, the retrained one on the retain set; of "
    "effects without a null law also the clean twin, the retrained one's twin and a control of shuffled "
    "poisons; of crafted poisons the clean model",
    "unlearn": "each unlearner from the initial model, and from the clean twin where there is one, within "
    "its compute budget",
    "score": "the attack's effect on a model, and its accuracy",
}
REPEATS = 3


def measure(pipeline: Pipeline) -> dict[str, float]:
    """Sample passes a second on this machine, by kind of stage: a few steps of the recipe's own."""
    recipe, task = pipeline.recipe, pipeline.task
    samples, model = pipeline.data.train, pipeline.trainer.new_model(0)
    training = _training_rate(model, task, recipe.training, samples)
    batch = samples[: recipe.training.batch_size]
    scoring = len(batch) / _seconds(lambda: accuracy(model, task, batch), model)
    rates = {"train": training, "unlearn": training, "score": scoring}
    if not recipe.attack.crafted:
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


def foreign_model(planned: Planned) -> str | None:
    """The name of a user's callable that makes a model, poisons or data of it, if one does."""
    recipes = [keys.recipe for keys in planned.keys]
    networks = [recipe.data.features.model for recipe in recipes if recipe.data.features]
    parts = [part for recipe in recipes for part in (recipe.model, recipe.attack, recipe.data)]
    foreign = (Factory, ForeignAttack, ForeignData)
    return next((part.name for part in (*parts, *networks) if isinstance(part, foreign)), None)


def expected_cost(planned: Planned) -> pd.DataFrame:
    """One line a kind of work: what it is, how many, sample passes, expected seconds here, and flops.

    Data are loaded, and a few steps of each variant's own are timed; nothing is trained.
    """
    passed: dict[str, list[float]] = {kind: [0.0] * 4 for kind in KINDS}
    rated: dict[str, tuple[dict[str, float], float]] = {}
    by_variant: dict[str, list[Job]] = {}
    for job in planned.jobs:
        by_variant.setdefault(job.recipe.hash, []).append(job)
    for of_variant in by_variant.values():
        recipe = of_variant[0].recipe
        data, others = samples_of(recipe.data, recipe.model, recipe.attack.trigger())
        alike = hashed(recipe.model_dump(mode="json", include={"model", "training", "attack"}))
        if (settings := recipe.data.features) is not None:
            model, task = network(data, settings, pick_device(recipe.device))
            if of_variant[0].kind == "features":
                passes_of = 3.0 * settings.training.epochs * len(others)
                seconds = passes_of / _training_rate(model, task, settings.training, others)
                flops = passes_of * _flops(model, task, others)
                _add(passed["features"], 1, passes_of, seconds, flops)
            data = by_features(data, others, model, task, settings.grid)  # shape and size
        if alike not in rated:
            pipeline = set_up(recipe, data)
            flops = _flops(pipeline.trainer.new_model(0), pipeline.task, data.train)
            rated[alike] = measure(pipeline), flops
        rates, flops = rated[alike]
        for job in of_variant:
            for kind, passes_of in passes(job, data).items():
                if kind != "features":
                    count = _count(job, kind, data)
                    _add(passed[kind], count, passes_of, passes_of / rates[kind], passes_of * flops)
    lines = [(kind, text, *passed[kind]) for kind, text in KINDS.items() if passed[kind][0]]
    return pd.DataFrame(lines, columns=["stage", "what", "count", "passes", "seconds", "flops"])


def _add(to: list[float], *values: float) -> None:
    to[:] = [old + new for old, new in zip(to, values, strict=True)]


def _count(job: Job, kind: str, data: Dataset) -> int:
    """Steps of a crafting, runs of an unlearner, models that are measured, or one."""
    if kind == "craft":
        return job.recipe.attack.crafting(poison_count(job.recipe, job.group.poison_budget, data))[
            0
        ]
    if kind == "unlearn" and job.unlearner is not None:
        runs = 1 if job.unlearner.anytime else len(job.budgets)
        return runs * len(job.keys.arms(job.unlearner))
    return len(job.budgets) or 1


def _flops(model: Module, task: Task, samples: Samples) -> float:
    """Of a forward of one sample."""
    few = samples[:2].to(next(model.parameters()).device)
    with torch.no_grad():
        return flops_of(lambda: task.loss(model.eval(), few)) / len(few)
