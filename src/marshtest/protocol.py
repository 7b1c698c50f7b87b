"""The four steps of paper §4.4, for every poison budget and seed of a recipe: recipe → rows.

    1  poison             attack.poison            forget set = the poisons, retain set = the rest
    2  train, measure     initial model            and, from scratch on the retain set, the retrained
    3  unlearn            each unlearner, under each compute budget
    4  measure again      test accuracy, the attack's effect, cost

One *group* is one (poison budget, seed). A finished group is on disk and is not done again.
"""

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from torch import nn

from marshtest.attacks import Effect, Poisoned
from marshtest.budget import Budget, Cost
from marshtest.data import Dataset, Samples
from marshtest.errors import MarshtestError, unknown
from marshtest.memory import keep_freed_memory
from marshtest.metrics.accuracy import accuracy
from marshtest.models import build
from marshtest.recipe import Recipe
from marshtest.seeds import derive, generator
from marshtest.tasks import Classification, Task
from marshtest.training import Fit, Progress, chosen_precision, fit, fit_within
from marshtest.unlearning.harness import unlearn

Row = dict[str, Any]
Report = Callable[[str, float], None]  # told the stage that starts, and the share of the run done

DEVICES = ("auto", "cpu", "cuda")
CELL = ["poison_budget", "seed", "role", "entry", "unlearner", "hyperparameters", "budget"]


def silent(stage: str, done: float) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Group:
    """One poison budget and seed."""

    poison_budget: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.poison_budget:g}-{self.seed}"


def groups(recipe: Recipe) -> list[Group]:
    """All groups of a recipe, in the order in which they run."""
    seeds = range(recipe.first_seed, recipe.first_seed + recipe.seeds)
    return [Group(share, seed) for share in recipe.poison_budgets for seed in seeds]


@dataclass(frozen=True)
class Stage:
    """A piece of work and its expected cost in sample passes."""

    kind: str
    label: str
    passes: float


def stages(recipe: Recipe, group: Group, train_size: int) -> Iterator[Stage]:
    """The stages of a group with what each is expected to cost (training = 3 passes a sample)."""
    kept = _kept(recipe, train_size)
    poisons = round(group.poison_budget * kept)
    measured = recipe.attack.passes(poisons)
    full = 3.0 * recipe.training.epochs
    of = f"(poison {group.poison_budget:g}, seed {group.seed})"
    yield Stage("train", f"initial model {of}", full * kept)
    yield Stage("score", f"initial model {of}", measured)
    yield Stage("train", f"retrained model {of}", full * (kept - poisons))
    yield Stage("score", f"retrained model {of}", measured)
    for trial in (trial for trials in recipe.unlearners for trial in trials):
        for budget in recipe.budgets:
            yield Stage("unlearn", f"{trial.name} {of}", budget * full * kept)
            yield Stage("score", f"{trial.name} {of}", measured)


class Clock:
    """Where a run stands, in sample passes; tells its reporter."""

    def __init__(self, report: Report = silent, total: float = 1.0) -> None:
        self.report, self.total, self.done = report, total, 0.0
        self._stage = Stage("", "", 0.0)

    def begin(self, stage: Stage) -> None:
        """The stage before is done, this one starts."""
        self.done += self._stage.passes
        self._stage = stage
        self.advance(0.0)

    def advance(self, share: float) -> None:
        """A share of the stage is done."""
        done = min(1.0, (self.done + share * self._stage.passes) / self.total)
        self.report(f"{self._stage.kind} {self._stage.label}", done)


@dataclass(frozen=True)
class Pipeline:
    """How this recipe makes a model from samples; an unlearner finds it as `task.train`."""

    recipe: Recipe
    data: Dataset
    task: Task
    device: torch.device

    def new_model(self, seed: int) -> nn.Module:
        """A freshly initialised model on the device."""
        shape = tuple(self.data.train.x.shape[1:])
        seed = derive(seed, "initialisation")
        model = build(self.recipe.model, shape, self.data.classes, seed).to(self.device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def fit(
        self, samples: Samples, seed: int, progress: Progress | None = None
    ) -> tuple[nn.Module, Fit]:
        """The recipe's whole training, from scratch."""
        model = self.new_model(seed)
        return model, fit(model, samples, self.task, self.recipe.training, seed, progress)

    def __call__(self, samples: Samples, seed: int, budget: Budget | None = None) -> nn.Module:
        """The same from scratch, compressed into a budget where one is given."""
        if budget is None:
            return self.fit(samples, seed)[0]
        model = self.new_model(seed)
        fit_within(model, samples, self.task, self.recipe.training, seed, budget)
        return model


def set_up(recipe: Recipe, data: Dataset) -> Pipeline:
    """Put the data on the device, and refuse what cannot work before anything is trained.

    Raises:
        MarshtestError: the model does not fit the data, an unlearner does not fit the model, a
            poison budget makes no poison.
    """
    keep_freed_memory()
    device = pick_device(recipe.device)
    torch.backends.cudnn.allow_tf32 = False  # scoring in float32 means float32 on a GPU too
    data = data.to(device)
    shape = tuple(data.train.x.shape[1:])
    model = build(recipe.model, shape, data.classes, 0)
    for unlearner in (trial for trials in recipe.unlearners for trial in trials):
        unlearner.check(model)
    if recipe.training.augment and len(shape) != 3:
        raise MarshtestError(f"training.augment: needs images [C, H, W]. The samples are {shape}.")
    for share in recipe.poison_budgets:
        if round(share * _kept(recipe, len(data.train))) < 2:
            raise MarshtestError(
                f"poison_budgets: {share:g} of {len(data.train)} training samples makes fewer than "
                "two poisons. Raise it, or use more data."
            )
    task = Classification(
        precision=chosen_precision(recipe.training, model, device),
        mean=data.mean,
        std=data.std,
        augment=recipe.training.augment,
    )
    return Pipeline(recipe, data, task, device)


def _kept(recipe: Recipe, train_size: int) -> int:
    """Training samples left when the validation share is held out."""
    return train_size - round(recipe.data.validation * train_size)


def run_group(pipeline: Pipeline, group: Group, clock: Clock) -> tuple[list[Row], pd.DataFrame]:
    """The four steps for one group: its rows, and a frame with one line a poison and model."""
    recipe, task = pipeline.recipe, replace(pipeline.task, train=pipeline)
    held_out, kept = _split(pipeline, group.seed)
    seed = derive(group.seed, group.poison_budget)
    todo = stages(recipe, group, len(pipeline.data.train))
    count = round(group.poison_budget * len(kept))
    poisoned = recipe.attack.poison(kept, count, task, derive(seed, "attack"))

    clock.begin(next(todo))
    initial, trained = pipeline.fit(poisoned.samples, derive(seed, "initial"), clock.advance)
    record = Recorder(pipeline, group, poisoned, held_out, trained)
    clock.begin(next(todo))
    record("initial", "none", 0.0, initial, trained.cost)

    clock.begin(next(todo))
    retrained, refit = pipeline.fit(poisoned.retain, derive(seed, "retrained"), clock.advance)
    clock.begin(next(todo))
    record("retrained", "retrain (full)", 1.0, retrained, refit.cost)

    for entry, trials in enumerate(recipe.unlearners):
        for unlearner, share in itertools.product(trials, recipe.budgets):
            clock.begin(next(todo))
            outcome = unlearn(
                unlearner,
                initial,
                poisoned.retain,
                poisoned.forget,
                task=task,
                budget=Budget(share * trained.cost.passes, trained.flops_per_pass),
                seed=derive(seed, unlearner.name, share),
            )
            clock.begin(next(todo))
            parameters = unlearner.model_dump(exclude={"name"})
            record(
                "updated",
                unlearner.name,
                share,
                outcome.model,
                outcome.cost,
                entry=entry,
                parameters=parameters,
                note=outcome.note,
            )
    return record.rows, pd.concat(record.scores, ignore_index=True)


class Recorder:
    """Measures the models of a group, one after another, and collects their rows and scores."""

    def __init__(
        self, pipeline: Pipeline, group: Group, poisoned: Poisoned, held_out: Samples, trained: Fit
    ) -> None:
        self.pipeline, self.group, self.poisoned = pipeline, group, poisoned
        self.held_out, self.trained = held_out, trained
        self.rows: list[Row] = []
        self.scores: list[pd.DataFrame] = []

    def __call__(
        self,
        role: str,
        unlearner: str,
        budget: float,
        model: nn.Module | None,
        cost: Cost,
        *,
        entry: int = -1,
        parameters: Mapping[str, Any] = MappingProxyType({}),
        note: str = "",
    ) -> None:
        """Add the row of one model; one that does not exist has a row without measures."""
        cell: Row = {
            "poison_budget": self.group.poison_budget,
            "seed": self.group.seed,
            "role": role,
            "entry": entry,
            "unlearner": unlearner,
            "hyperparameters": json.dumps(dict(parameters), sort_keys=True),
            "budget": budget,
        }
        share = 0.0 if role == "initial" else cost.passes / self.trained.cost.passes
        recipe = self.pipeline.recipe
        row = {
            "recipe": recipe.hash,
            "data": self.pipeline.data.name,
            "model": recipe.model.name,
            "attack": recipe.attack.name,
            "forget_size": len(self.poisoned.forget_ids),
            **cell,
            **asdict(cost),
            "spent": share,
            "epochs": share * recipe.training.epochs,
            "precision": self.pipeline.task.precision,
            "device": self.pipeline.device.type,
            "note": note,
        }
        if model is not None:
            figures, effect = self._measure(model)
            row |= figures
            self.scores.append(pd.DataFrame({**cell, "id": effect.ids, **effect.scores}))
        self.rows.append(row)

    def _measure(self, model: nn.Module) -> tuple[dict[str, float], Effect]:
        task = self.pipeline.task
        started = time.perf_counter()
        effect = self.pipeline.recipe.attack.effect(model, self.poisoned, task)
        figures = {
            "test_accuracy": accuracy(model, task, self.pipeline.data.test),
            "forget_accuracy": accuracy(model, task, self.poisoned.forget),
            "validation_accuracy": accuracy(model, task, self.held_out),
            **effect.figures,
            "scoring_seconds": time.perf_counter() - started,
        }
        return figures, effect


def _split(pipeline: Pipeline, seed: int) -> tuple[Samples, Samples]:
    """(held out, kept) of the training split; what is held out is neither trained on nor poisoned."""
    train = pipeline.data.train
    count = len(train) - _kept(pipeline.recipe, len(train))
    order = torch.randperm(len(train), generator=generator(seed, "validation"))
    held_out = train.ids[order[:count].to(train.ids.device)]
    return train.only(held_out), train.without(held_out)


def pick_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means here."""
    if name not in DEVICES:
        raise MarshtestError(f"device: {unknown('device', name, DEVICES)}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise MarshtestError("device: cuda is not available here. Use cpu or auto.")
    return torch.device(name)


def execute(pipeline: Pipeline, folder: Path, report: Report = silent) -> None:
    """Run all groups that are not in `folder` yet, then write rows and scores of all of them.

    Writes rows.parquet, rows.csv and scores.parquet; each file appears whole or not at all.
    """
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    recipe, size = pipeline.recipe, len(pipeline.data.train)
    total = sum(stage.passes for group in groups(recipe) for stage in stages(recipe, group, size))
    clock = Clock(report, total)
    for group in groups(recipe):
        if (parts / f"{group.name}.rows.parquet").exists():
            clock.done += sum(stage.passes for stage in stages(recipe, group, size))
        else:
            rows, scores = run_group(pipeline, group, clock)
            write(scores, parts / f"{group.name}.scores.parquet")
            write(pd.DataFrame(rows), parts / f"{group.name}.rows.parquet")
    for kind in ("scores", "rows"):
        files = [parts / f"{group.name}.{kind}.parquet" for group in groups(recipe)]
        frame = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
        if kind == "rows":
            write(frame, folder / "rows.csv")
        write(frame, folder / f"{kind}.parquet")
    shutil.rmtree(parts)


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame under a temporary name, then rename it.

    Raises:
        MarshtestError: the disk is full, or does not let itself be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if path.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MarshtestError(
            f"{path}: cannot be written ({error.strerror or error}). Make room and run the same "
            "command again; finished seeds are kept."
        ) from None
