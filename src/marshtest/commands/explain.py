"""What a recipe or a sweep will do and cost on this machine, before it is run."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn import Module

from marshtest.attacks.gradient_matching import matching
from marshtest.attacks.kernel import STEP_PASSES, Kernel, micro_batch
from marshtest.commands.footprint import footprint
from marshtest.commands.launches import HOST, Launches
from marshtest.data.samples import Dataset, Samples
from marshtest.experiment.features import by_features, network
from marshtest.experiment.guarded import trigger_of, work_of
from marshtest.experiment.prospects import family_of, needs
from marshtest.experiment.protocol import Pipeline, poison_count, set_up
from marshtest.experiment.recipe import Recipe
from marshtest.experiment.recipe_data import samples_of
from marshtest.metrics.accuracy import accuracy
from marshtest.plumbing.derived import hashed
from marshtest.plumbing.device import pick_device, threads
from marshtest.plumbing.errors import NOTE
from marshtest.reporting import charts
from marshtest.reporting.figures import save
from marshtest.sweeps.jobs import Job, passes
from marshtest.sweeps.planned import Planned, plan_sweep
from marshtest.sweeps.run_folder import foreseen
from marshtest.sweeps.settings import read_sweep
from marshtest.training.budget import Meter, flops_of
from marshtest.training.loop import Training, descend
from marshtest.training.tasks import Task

MINUTE = 1 / 60  # in hours
KINDS = {
    "start": "a fresh process: libraries are imported, data read, and a first step taken",
    "features": "the network that the samples' features are taken from, trained once",
    "craft": "the attack's optimisation at a clean model; the count is of steps, each over all poisons",
    "train": "from scratch: the initial model on all samples, the retrained one on the retain set; of "
    "effects without a null law also the clean twin, the retrained one's twin and a control of shuffled "
    "poisons; of crafted poisons the clean model",
    "unlearn": "each unlearner from the initial model, and from the clean twin where there is one, within "
    "its compute budget",
    "score": "the attack's effect on a model, and its accuracy",
    "report": "figures, tables and page, drawn once; the count is of figures",
}
REPEATS = 3


@dataclass(frozen=True)
class Explanation:
    """What a recipe or a sweep will do, and what that is expected to cost on this machine.

    Attributes:
        planned: its variants as recipes, and the jobs that they come to.
        costs: one line a kind of work: `stage`, `what`, `count`, sample `passes`, expected `seconds`,
            `flops`, and `launches`, the operations that a GPU would be asked for. None if the recipe rests
            on a user's callable, which is not run for an explanation.
        ruled_out: answers that the numbers of trainings and poisons at hand rule out, in sentences.
        gpu_tflops: speed that a GPU is taken to sustain.
        takes: memory and disk that it takes, in sentences.
    """

    planned: Planned
    costs: pd.DataFrame | None
    ruled_out: Sequence[str] = ()
    gpu_tflops: float = 20.0
    takes: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The name of the recipe, or of the sweep."""
        return self.planned.sweep.name

    def recipes(self) -> list[str]:
        """The first variant in full, as YAML, and the labels of all if there are several."""
        texts, variants = [self.planned.keys[0].recipe.to_yaml()], self.planned.variants
        if len(variants) > 1:
            texts.append(f"and {len(variants) - 1} more like it, in all:")
            texts += [f"  {variant.label}" for variant in variants]
        return texts

    def table(self) -> pd.DataFrame:
        """The costs as they are printed."""
        if self.costs is None:
            return pd.DataFrame()
        passes = self.costs["passes"].map("{:.3g}".format).replace("0", "–")
        seconds = self.costs["seconds"].map("{:,.1f}".format)
        count = self.costs["count"].map("{:,.0f}".format)
        texts = self.costs.assign(count=count, passes=passes, seconds=seconds)
        return texts.drop(columns=["flops", "launches"])

    def sentences(self) -> list[str]:
        """What is shared, what verdicts need, and the cost in all."""
        if self.costs is None:
            return [
                f"What it costs cannot be told: it rests on {self.planned.foreign_part}, and explaining a "
                "recipe runs nothing of yours."
            ]
        planned, costs = self.planned, self.costs.set_index("stage")
        texts = []
        if "craft" in costs.index:
            step = costs["seconds"]["craft"] / costs["count"]["craft"]
            texts.append(f"A step of the attack takes about {step:.2g} s.")
        texts.append(
            f"{len(planned.cells):,} rows from {len(planned.jobs):,} jobs; if nothing were shared, "
            f"{planned.unshared:,} jobs."
        )
        texts += dict.fromkeys(needs(k.recipe, family_of(k.recipe)) for k in planned.keys)
        texts += self.ruled_out
        seconds, flops = costs["seconds"].sum(), costs["flops"].sum()
        hours = flops / self.gpu_tflops / 3.6e15  # 3.6e15: operations of one TFLOP/s in an hour
        gpu = f"{hours:.2g} h" if hours > MINUTE else "less than a minute"
        texts += self.takes
        texts.append(
            f"In all about {seconds:,.0f} s ({seconds / 3600:.2f} h) here, one job at a time; {flops:.2g} "
            f"floating-point operations, {gpu} of a GPU that sustains {self.gpu_tflops:g} TFLOP/s."
        )
        asking = costs["launches"].sum() * HOST / 3600
        if asking > MINUTE:
            texts.append(
                f"The GPU is asked for {costs['launches'].sum():.2g} operations, {asking:.2g} h of one "
                "process. Several at once (--engine processes) ask for more of them in the same time."
            )
        return texts


def explain(
    source: str | Path | Mapping[str, Any], *overrides: str, gpu_tflops: float = 20.0
) -> Explanation:
    """Tell what a recipe or a sweep will do and cost, before it is run.

    Data are loaded, and a few steps of each variant's own are timed; nothing is trained, and nothing of
    the user's that it names is imported.

    Args:
        source: name of a shipped recipe or sweep, path of a YAML file, or a mapping.
        overrides: "key.sub=value" of the recipe; "grid.key=[…]" sets an axis.
        gpu_tflops: speed that a GPU is taken to sustain, in 10¹² operations a second.

    Raises:
        MarshtestError: bad input, in one line.
    """
    planned = plan_sweep(read_sweep(source, *overrides), imports=False)
    if planned.foreign_part is not None:
        return Explanation(planned, None, gpu_tflops=gpu_tflops)
    costs, ruled_out, takes = expected_cost(planned)
    return Explanation(planned, costs, ruled_out, gpu_tflops, takes)


def measure(pipeline: Pipeline) -> dict[str, float]:
    """Sample passes a second on this machine, by kind of stage: a few steps of the recipe's own."""
    recipe, task = pipeline.recipe, pipeline.task
    samples, model = pipeline.data.train, pipeline.trainer.new_model(0)
    training = _training_rate(model, task, recipe.training, samples)
    batch = samples[: recipe.training.batch_size]
    scoring = len(batch) / _seconds(lambda: accuracy(model, task, batch), model)
    # Unlearners are paid for in passes of training, whatever they do with them; each operation is counted.
    with Meter():
        unlearning = _training_rate(model, task, recipe.training, samples)
    rates = {"train": training, "unlearn": unlearning, "score": scoring}
    if not recipe.attack.crafted:
        return rates
    # Two micro-batches, so that what is done once a batch is timed as often as in a real step.
    poisons = samples[: 2 * micro_batch(pipeline.device)]
    kernel, inputs = Kernel(model, task), task.inputs(model, poisons)
    objective = matching(kernel.gradient(poisons[:1]))
    seconds = _seconds(lambda: kernel(inputs, poisons, objective), model)
    return {"craft": STEP_PASSES * len(poisons) / seconds, **rates}


def _training_rate(model: Module, task: Task, training: Training, samples: Samples) -> float:
    """Sample passes a second in training (3 a sample)."""
    size = len(samples[: training.batch_size])
    return 3 * size / _seconds(_training_step(model, task, training, samples), model)


def _training_step(
    model: Module, task: Task, training: Training, samples: Samples
) -> Callable[[], None]:
    batch = samples[: training.batch_size].to(next(model.parameters()).device)
    optimizer = training.optimizer_for(model)
    return lambda: descend(optimizer, task.loss(model.train(), batch).mean())


def _seconds(work: Callable[[], object], model: Module) -> float:
    """Seconds of the fastest of a few runs, after one to warm up."""
    on_cuda = next(model.parameters()).is_cuda
    # The fastest, not the mean: what else the machine does only ever adds.
    times = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        work()
        if on_cuda:  # else the clock would stop before the work does
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def expected_cost(planned: Planned) -> tuple[pd.DataFrame, Sequence[str], Sequence[str]]:
    """The fields `costs`, `ruled_out` and `takes` of an explanation.

    Data are loaded, and a few steps of each variant's own are timed; nothing is trained.
    """
    ruled_out: dict[str, None] = {}
    takes: list[str] = []
    costs = {kind: np.zeros(5) for kind in KINDS}
    rated: dict[str, Rates] = {}
    by_variant: dict[str, list[Job]] = {}
    for job in planned.jobs:
        by_variant.setdefault(job.recipe.hash, []).append(job)
    for jobs in by_variant.values():
        started, recipe = time.perf_counter(), jobs[0].recipe
        data = _data(jobs[0], costs)
        ruled_out |= dict.fromkeys(line.removeprefix(NOTE) for line in foreseen(recipe, data))
        # Variants of a grid over budgets or seeds run at one rate, which is measured once.
        alike = hashed(recipe.model_dump(mode="json", include={"model", "training", "attack"}))
        if alike not in rated:
            pipeline = set_up(recipe, data)
            if not rated:  # the first step of all, for which libraries are still being loaded
                costs["start"] += (1, 0, import_seconds() + _first_step(pipeline, started), 0, 0)
                takes.append(footprint(pipeline, planned.jobs).sentence())
            flops = _flops(pipeline.trainer.new_model(0), pipeline.task, data.train)
            with threads(pipeline.threads):
                rated[alike] = Rates(measure(pipeline), flops, Launches(pipeline))
        for job in jobs:
            _add_job(costs, job, data, rated[alike])
    if len(planned.variants) == 1:  # a sweep of several draws nothing
        figures = figures_of(planned.keys[0].recipe)
        costs["report"] += (figures, 0, report_seconds(figures), 0, 0)
    lines = [(kind, KINDS[kind], *sums) for kind, sums in costs.items() if sums.any()]
    columns = ["stage", "what", "count", "passes", "seconds", "flops", "launches"]
    return pd.DataFrame(lines, columns=columns), list(ruled_out), takes


Costs = dict[str, NDArray[np.float64]]  # sums of count, passes, seconds, flops, launches; by kind


@dataclass(frozen=True)
class Rates:
    """What a sample pass of a variant comes to."""

    passes_a_second: dict[str, float]  # by kind of work, on this machine
    flops: float
    launches: Launches


def _data(job: Job, costs: Costs) -> Dataset:
    """The data of a job's recipe; if a network makes their features, of their shape and size only."""
    recipe, settings = job.recipe, job.recipe.data.features
    data, others = samples_of(recipe.data, recipe.model, trigger_of(recipe.attack))
    if settings is None:
        return data
    # An untrained network gives features of the same shape, and shape is all that costs depend on.
    model, task = network(data, settings, pick_device(recipe.device))
    if job.kind == "features":
        passes = 3.0 * settings.training.epochs * len(others)
        seconds = passes / _training_rate(model, task, settings.training, others)
        flops = passes * _flops(model, task, others)
        costs["features"] += (1, passes, seconds, flops, 0)
    return by_features(data, others, model, task, settings.grid)


def _add_job(costs: Costs, job: Job, data: Dataset, rates: Rates) -> None:
    """Add a job's work."""
    for kind, needed in passes(job, data).items():
        if kind != "features":
            count, seconds = _count(job, kind, data), needed / rates.passes_a_second[kind]
            launches = needed * rates.launches.in_a_pass(job, kind)
            costs[kind] += (count, needed, seconds, needed * rates.flops, launches)


def import_seconds() -> float:
    """Seconds in which a fresh process imports what a run needs, by letting one do so."""
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # where this process looks
    started = time.perf_counter()
    # -P: a folder `marshtest` or `torch` where the command is given is not the one to be timed.
    command = [sys.executable, "-P", "-c", "import marshtest.commands.run"]
    subprocess.run(command, env=os.environ | path, check=True)
    return time.perf_counter() - started


def _first_step(pipeline: Pipeline, started: float) -> float:
    """Seconds since data were asked for until a first step is taken, for which torch loads much more."""
    trainer = pipeline.trainer
    _training_step(
        trainer.new_model(0), pipeline.task, pipeline.recipe.training, pipeline.data.train
    )()
    return time.perf_counter() - started


def figures_of(recipe: Recipe) -> int:
    """How many figures a report has: five, and two for each axis along which budgets vary."""
    return 5 + 2 * (len(recipe.budgets) > 1) + 2 * (len(recipe.poison_budgets) > 1)


def report_seconds(figures: int) -> float:
    """Seconds to draw a report: the library of the charts is made, and one figure is drawn and saved.

    The rest of the page takes about as long as a figure.
    """
    started = time.perf_counter()
    charts.library()
    prepared = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        figure = Figure(figsize=(8, 4))
        for panel in figure.subplots(1, 2):
            panel.errorbar(range(10), range(10), yerr=1.0, label="models")
            panel.legend()
        save(figure, Path(folder) / "figure")
    return prepared - started + (figures + 1) * (time.perf_counter() - prepared)


def _count(job: Job, kind: str, data: Dataset) -> int:
    """Steps of a crafting, runs of an unlearner, models that are measured, or one."""
    if kind == "craft":
        poisons = poison_count(job.recipe, job.group.poison_budget, data)
        return work_of(job.recipe.attack, poisons, len(data.test)).steps
    if kind == "unlearn" and job.unlearner is not None:
        runs = 1 if job.passes_smaller_budgets else len(job.budgets) * job.request.of
        return runs * len(job.arms)
    return len(job.cells) or 1


def _flops(model: Module, task: Task, samples: Samples) -> float:
    """Floating-point operations of a forward pass, for each sample."""
    few = samples[:2].to(next(model.parameters()).device)
    with torch.no_grad():
        return flops_of(lambda: task.loss(model.eval(), few)) / len(few)
