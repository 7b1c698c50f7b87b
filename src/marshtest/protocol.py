"""The four steps of paper §4.4, for every poison budget and seed of a recipe: recipe → rows.

    1  poison             attack.poison            forget set = the poisons, retain set = the rest
    2  train, measure     initial model            and, from scratch on the retain set, the retrained
                          (an attack without an exact null: also a second retrained model as the
                          reference, and one trained on the poisons' shifts shuffled, as a control)
    3  unlearn            each unlearner, under each compute budget
    4  measure again      test accuracy, the attack's effect, cost, how far the model moved

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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from marshtest.attacks import Effect, Poisoned, Victim
from marshtest.attacks.base import Tensors
from marshtest.budget import Budget, Cost
from marshtest.data import Dataset, Samples
from marshtest.errors import MarshtestError, first_line, unknown
from marshtest.language import LanguageModel
from marshtest.memory import keep_freed_memory
from marshtest.metrics.accuracy import accuracy
from marshtest.metrics.shift import shifts
from marshtest.models import build
from marshtest.recipe import Recipe
from marshtest.seeds import derive, generator
from marshtest.settings import ModelSettings
from marshtest.tasks import Classification, LabelWord, Precision, Task, TextClassification
from marshtest.training import Fit, Progress, chosen_precision, fit, fit_within
from marshtest.unlearning.harness import unlearn

Row = dict[str, Any]
Report = Callable[[str, float], None]  # told the stage that starts, and the share of the run done

DEVICES = ("auto", "cpu", "cuda")
UNTREATED = ("initial", "shuffled")  # roles of models from which nothing was taken
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
    steps: int = 1


def stages(recipe: Recipe, group: Group, data: Dataset) -> Iterator[Stage]:
    """The stages of a group with what each is expected to cost (training = 3 passes a sample)."""
    kept, poisons = _kept(recipe, data), _poisons(recipe, group.poison_budget, data)
    held_out = len(data.train) - kept
    measured = recipe.attack.passes(poisons) + len(data.test) + poisons + held_out
    full = 3.0 * recipe.training.epochs
    of = f"(poison {group.poison_budget:g}, seed {group.seed})"
    steps, passes = recipe.attack.crafting(poisons)
    if steps:
        if group.poison_budget == recipe.poison_budgets[0]:  # one serves all poison budgets
            yield Stage("train", f"clean model {of}", full * kept)
        yield Stage("craft", f"poisons {of}", steps * passes, steps)
    for role in ("initial", *_from_scratch(recipe)):
        samples = kept if role in UNTREATED else kept - poisons
        yield Stage("train", f"{role} model {of}", full * samples)
        yield Stage("score", f"{role} model {of}", measured)
    for trial in (trial for trials in recipe.unlearners for trial in trials):
        for budget in recipe.budgets:
            yield Stage("unlearn", f"{trial.name} {of}", budget * full * kept)
            yield Stage("score", f"{trial.name} {of}", measured)


def _from_scratch(recipe: Recipe) -> list[str]:
    """Roles of the models that are trained from scratch beside the initial one."""
    crafted = bool(recipe.attack.compared)
    asked = {"shuffled": crafted, "retrained": True, "reference": crafted or recipe.reference}
    return [role for role, wanted in asked.items() if wanted]


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

    def advance(self, share: float, said: str = "") -> None:
        """A share of the stage is done, and how it stands in words."""
        done = min(1.0, (self.done + share * self._stage.passes) / self.total)
        stage = f"{self._stage.kind} {self._stage.label}"
        self.report(f"{stage}: {said}" if said else stage, done)


@dataclass(frozen=True)
class Pipeline:
    """How this recipe makes a model from samples; an unlearner finds it as `task.train`."""

    recipe: Recipe
    data: Dataset
    task: Task
    device: torch.device
    input_shape: tuple[int, ...]  # of one sample in input space

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
        if _poisons(recipe, share, data) < 2:
            possible = len(recipe.attack.candidates(data.train, data.marked))
            raise MarshtestError(
                f"poison_budgets: {share:g} of {possible} training samples makes fewer than "
                "two poisons. Raise it, or use more data."
            )
    precision = chosen_precision(recipe.training, model, device)
    task: Task
    if data.padding is not None:
        task = _language(recipe.model, data.padding, data.prompted, precision)
    else:
        task = Classification(
            precision=precision, mean=data.mean, std=data.std, augment=recipe.training.augment
        )
    inputs = task.inputs(model, data.train[:1].to("cpu"))
    return Pipeline(recipe, data, task, device, tuple(inputs.shape[1:]))


def _language(
    model: ModelSettings, padding: int, prompted: bool, precision: Precision
) -> LabelWord | TextClassification:
    prompt = model.prompt if isinstance(model, LanguageModel) else None
    if prompted != (prompt is not None):
        raise MarshtestError(
            "model.prompt: these texts were tokenised "
            f"{'within a prompt' if prompted else 'without one'}, by another model. Give that one."
        )
    if prompt is None:
        return TextClassification(precision, padding=padding)
    return LabelWord(precision, padding=padding, label_only=prompt.loss == "label")


def _kept(recipe: Recipe, data: Dataset) -> int:
    """Training samples left when the validation share is held out."""
    return len(data.train) - round(recipe.data.validation * len(data.train))


def _poisons(recipe: Recipe, share: float, data: Dataset) -> int:
    """About how many poisons a budget makes: candidates may be among those held out."""
    kept = _kept(recipe, data) / len(data.train)
    return round(share * kept * len(recipe.attack.candidates(data.train, data.marked)))


@dataclass(frozen=True)
class Memo:
    """Tensors that a stopped run leaves for the next: one file a name, whole or not at all."""

    folder: Path

    def __call__(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """What is stored under a name, made first where nothing is.

        Raises:
            MarshtestError: the file cannot be read, or not be written.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            save_tensors(make(), path)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise MarshtestError(
                f"{path}: cannot be read ({first_line(error)}). Remove it; it will be made again."
            ) from None


def save_tensors(tensors: Tensors, path: Path) -> None:
    """Write tensors under a temporary name, then rename it."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _replace(path, lambda temporary: save_file(whole, temporary))


@dataclass(frozen=True)
class Measured:
    """What a group gives.

    Attributes:
        rows: one a model.
        scores: one line a poison, or target, and model.
        shifts: one line a layer and model.
        poisons: their ids and shifts, and the targets' ids.
        history: of the crafting, one line a step.
    """

    rows: pd.DataFrame
    scores: pd.DataFrame
    shifts: pd.DataFrame
    poisons: Tensors
    history: pd.DataFrame


def run_group(pipeline: Pipeline, group: Group, clock: Clock, memo: Memo) -> Measured:
    """The four steps for one group."""
    recipe, task = pipeline.recipe, replace(pipeline.task, train=pipeline)
    held_out, kept = _split(pipeline, group.seed)
    seed = derive(group.seed, group.poison_budget)
    todo = stages(recipe, group, pipeline.data)
    poisoned = _poison(pipeline, group, kept, clock, todo, memo)

    clock.begin(next(todo))
    initial, trained = pipeline.fit(poisoned.samples, derive(seed, "initial"), clock.advance)
    record = Recorder(pipeline, group, poisoned, held_out, initial, trained)
    clock.begin(next(todo))
    record("initial", "none", 0.0, initial, trained.cost)
    for role in _from_scratch(recipe):
        if role == "shuffled":
            name, share = role, 0.0
            samples = recipe.attack.shuffled(poisoned, derive(seed, "shuffle"))
        else:
            name, share, samples = "retrain (full)", 1.0, poisoned.retain
        clock.begin(next(todo))
        model, refit = pipeline.fit(samples, derive(seed, role), clock.advance)
        clock.begin(next(todo))
        record(role, name, share, model, refit.cost)

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
    added, ids = poisoned.samples.shifts, poisoned.forget_ids
    poisons = {"ids": ids, "labels": poisoned.samples.y[poisoned.samples.positions(ids)]}
    if added is not None:
        poisons["shifts"] = added[1:]
    if poisoned.targets is not None:
        poisons["targets"] = poisoned.targets.ids
    return Measured(
        pd.DataFrame(record.rows),
        pd.concat(record.scores, ignore_index=True),
        pd.concat(record.shifts, ignore_index=True),
        poisons,
        pd.DataFrame([{**asdict(group), **line} for line in poisoned.history]),
    )


def _poison(
    pipeline: Pipeline,
    group: Group,
    kept: Samples,
    clock: Clock,
    todo: Iterator[Stage],
    memo: Memo,
) -> Poisoned:
    """Step 1. The clean model, where the attack asks for one, serves all poison budgets of a seed."""
    recipe = pipeline.recipe
    possible = recipe.attack.candidates(kept, pipeline.data.marked)
    count = round(group.poison_budget * len(possible))

    def trained() -> Tensors:
        model, _ = pipeline.fit(kept, derive(group.seed, "clean"), clock.advance)
        return model.state_dict()

    def clean() -> nn.Module:
        if group.poison_budget == recipe.poison_budgets[0]:
            clock.begin(next(todo))
        model = pipeline.new_model(0)
        model.load_state_dict(memo(f"clean-{group.seed}", trained))
        clock.begin(next(todo))
        return model

    def kept_by_name(name: str, make: Callable[[], Tensors]) -> Tensors:
        found = memo(f"{group.name}.{name}", make)
        return {key: tensor.to(pipeline.device) for key, tensor in found.items()}

    training = recipe.training
    victim = Victim(
        task=pipeline.task,
        test=pipeline.data.test,
        clean=clean,
        input_shape=pipeline.input_shape,
        marked=pipeline.data.marked,
        weight_decay=training.weight_decay if training.optimizer == "sgd" else 0.0,
        kept=kept_by_name,
        progress=clock.advance,
    )
    seed = derive(derive(group.seed, group.poison_budget), "attack")
    return recipe.attack.poison(kept, count, victim, seed)


class Recorder:
    """Measures the models of a group, one after another, and collects their rows, scores, shifts."""

    def __init__(
        self,
        pipeline: Pipeline,
        group: Group,
        poisoned: Poisoned,
        held_out: Samples,
        initial: nn.Module,
        trained: Fit,
    ) -> None:
        self.pipeline, self.group, self.poisoned = pipeline, group, poisoned
        self.held_out, self.initial, self.trained = held_out, initial, trained
        self.retrained: nn.Module | None = None
        self.rows: list[Row] = []
        self.scores: list[pd.DataFrame] = []
        self.shifts: list[pd.DataFrame] = []

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
        share = 0.0 if role in UNTREATED else cost.passes / self.trained.cost.passes
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
            **{f"crafting_{name}": value for name, value in self.poisoned.figures.items()},
        }
        if model is not None:
            figures, effect = self._measure(model)
            row |= figures
            self.scores.append(pd.DataFrame({**cell, "id": effect.ids, **effect.scores}))
            self._add_shifts(cell, model)
        self.rows.append(row)

    def _add_shifts(self, cell: Row, model: nn.Module) -> None:
        """Of the first retrained model and of all after it."""
        if cell["role"] == "retrained":
            self.retrained = model
        if self.retrained is not None:
            found = shifts(model, self.initial, self.retrained)
            self.shifts.append(pd.DataFrame([{**cell, **of._asdict()} for of in found]))

    def _measure(self, model: nn.Module) -> tuple[dict[str, float], Effect]:
        task = self.pipeline.task
        started = time.perf_counter()
        effect = self.pipeline.recipe.attack.effect(model, self.poisoned, task)
        parts = {
            "test_accuracy": self.pipeline.data.test,
            "forget_accuracy": self.poisoned.forget,
            "validation_accuracy": self.held_out,
        }
        measured = {
            name: accuracy(model, task, samples)
            for name, samples in parts.items()
            if name not in effect.figures
        }
        seconds = {"scoring_seconds": time.perf_counter() - started}
        return measured | dict(effect.figures) | seconds, effect


def _split(pipeline: Pipeline, seed: int) -> tuple[Samples, Samples]:
    """(held out, kept) of the training split; what is held out is neither trained on nor poisoned."""
    train = pipeline.data.train
    count = len(train) - _kept(pipeline.recipe, pipeline.data)
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

    Writes rows.parquet, rows.csv, scores.parquet and shifts.parquet, and of crafted poisons
    crafting.parquet and poisons/; each file appears whole or not at all.
    """
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    recipe, data = pipeline.recipe, pipeline.data
    compared, crafted = bool(recipe.attack.compared), recipe.attack.crafting(1)[0] > 0
    total = sum(stage.passes for group in groups(recipe) for stage in stages(recipe, group, data))
    clock = Clock(report, total)
    for group in groups(recipe):
        if (parts / f"{group.name}.rows.parquet").exists():
            clock.done += sum(stage.passes for stage in stages(recipe, group, data))
        else:
            found = run_group(pipeline, group, clock, Memo(parts))
            if compared:
                save_tensors(found.poisons, folder / "poisons" / f"{group.name}.safetensors")
            if crafted:
                write(found.history, parts / f"{group.name}.crafting.parquet")
            write(found.shifts, parts / f"{group.name}.shifts.parquet")
            write(found.scores, parts / f"{group.name}.scores.parquet")
            write(found.rows, parts / f"{group.name}.rows.parquet")
    for kind in (*(["crafting"] if crafted else []), "shifts", "scores", "rows"):
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
    if path.suffix == ".csv":
        _replace(path, lambda temporary: frame.to_csv(temporary, index=False))
    else:
        _replace(path, lambda temporary: frame.to_parquet(temporary, index=False))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then give it the path's name."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or first_line(error)
        raise MarshtestError(
            f"{path}: cannot be written ({reason}). Make room and run the same "
            "command again; finished seeds are kept."
        ) from None
