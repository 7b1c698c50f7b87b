"""The memory and the disk that a recipe's jobs take, counted on an untrained model before anything runs."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from marshtest.attacks import Gaussian
from marshtest.data.samples import Samples
from marshtest.experiment.guarded import trigger_of
from marshtest.experiment.protocol import Pipeline, poison_count, set_up
from marshtest.experiment.recipe_data import samples_of
from marshtest.plumbing.device import CPU, CUDA
from marshtest.plumbing.errors import NOTE, MarshtestError
from marshtest.sweeps.jobs import Job
from marshtest.sweeps.planned import Planned
from marshtest.training.tasks import Task

LIBRARIES = 500_000_000  # bytes of a process that has imported torch, or of a GPU's context
# Copies at work: a model, its gradients, two of an optimiser, and the one it started from.
MODELS = 5
LARGE = 2_000_000_000  # bytes; a sweep that takes less of everything starts without a word


@dataclass(frozen=True)
class Footprint:
    """What the jobs of a recipe take beside time, in bytes.

    Attributes:
        worker: memory of a process that does them on a CPU.
        gpu: memory of a GPU that one such process uses.
        model: one model in the store.
        models: number of models in the store.
    """

    worker: int
    gpu: int
    model: int
    models: int

    @property
    def disk(self) -> int:
        """Bytes of the store."""
        return self.model * self.models

    @property
    def is_large(self) -> bool:
        """Whether it must be said before a sweep starts."""
        return max(self.worker, self.gpu, self.disk) > LARGE

    def sentence(self) -> str:
        """Memory and disk, in words."""
        return (
            f"A worker takes about {_size(self.worker)} of memory, and if it uses a GPU about "
            f"{_size(self.gpu)} of the GPU's. A sweep's store comes to {self.models:,} models of "
            f"{_size(self.model)}, {_size(self.disk)} in all."
        )

    def shortage(self, store: str | Path) -> str:
        """One line if a store in a folder of this machine will not fit its disk, else ""."""
        place = Path(store).absolute()
        there = next((folder for folder in (place, *place.parents) if folder.exists()), None)
        if "://" in str(store) or there is None:
            return ""
        free = shutil.disk_usage(there).free
        if free > self.disk:
            return ""
        return f"{NOTE}{store}: the store comes to {_size(self.disk)}, and {_size(free)} are free there."


def foretold(planned: Planned, store: str | Path) -> Iterator[str]:
    """Lines that a sweep begins with if it takes much.

    None if it rests on a user's callable, or if the data are not where the sweep is started: its jobs may
    have them, or be done already.
    """
    recipe = planned.keys[0].recipe
    if planned.foreign_part is not None or recipe.data.features is not None:
        return
    try:
        data, _ = samples_of(recipe.data, recipe.model, trigger_of(recipe.attack))
        takes = footprint(set_up(recipe, data, "cpu"), planned.jobs)
    except MarshtestError:
        return
    if takes.is_large:
        yield f"{NOTE}{takes.sentence()}"
    if shortage := takes.shortage(store):
        yield shortage


def footprint(pipeline: Pipeline, jobs: Iterable[Job]) -> Footprint:
    """What jobs of this pipeline's recipe, or of variants of it, take."""
    recipe, task, train = pipeline.recipe, pipeline.task, pipeline.data.train
    model = pipeline.trainer.new_model(0)
    weights = sum(value.nbytes for value in model.state_dict().values())
    data = sum(samples.x.nbytes for samples in (train, pipeline.data.test))
    most = max(poison_count(recipe, share, pipeline.data) for share in recipe.poison_budgets)
    values = torch.Size(pipeline.input_shape).numel()
    draws = recipe.attack.draws + 1 if isinstance(recipe.attack, Gaussian) else 0
    noise = 4 * most * draws * values
    activations = _activations(model, task, train)

    def at_work(device: torch.device) -> int:
        batch: int = max(recipe.training.batch_size, task.scoring_batch(train, device))
        return int(LIBRARIES + data + MODELS * weights + batch * activations + noise)

    return Footprint(at_work(CPU), at_work(CUDA), weights, sum(map(_models, jobs)))


def _models(job: Job) -> int:
    """Models that a job puts into the store."""
    if job.kind in ("train", "features"):
        return 1
    return len(job.makes) - len(job.cells) if job.kind == "unlearn" and job.keeps_models else 0


def _activations(model: nn.Module, task: Task, samples: Samples) -> int:
    """Bytes that a forward on one sample keeps for its backward."""
    few = samples[:2].to(next(model.parameters()).device)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        task.exact().loss(model.eval(), few)
    return sum(kept.values()) // len(few)


def _size(count: int) -> str:
    unit, size = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= s / 10)
    return f"{count / size:,.1f} {unit}"
