"""The four steps of paper §4.4 for one poison budget and seed, each a function of what it is given.

    1  poison             attack.poison            forget set = the poisons, retain set = the rest
    2  train, measure     initial model            and, from scratch on the retain set, the retrained
    3  unlearn            each unlearner, under each compute budget
    4  measure again      test accuracy, the attack's effect, cost, how far the model moved; and once more
                          after each kind of after-care that the recipe asks for

An attack whose effect has no known null law gets a *clean twin*: the same experiment, with the same draws,
on the base samples in the poisons' places. Each unlearner runs on the initial model and on its twin, and
what is left is the difference of the two. The control, full retraining, takes other draws in the twin's
arm: with the same ones both arms would be one model. A second control is trained on the poisons'
perturbations shuffled.

What each step draws depends on the seed, the poison budget and its own name, and on no other step: so steps
can be done in any order, anywhere, and shared.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from marshtest.attacks import CraftingContext, Effect, Knowledge, Poisoned
from marshtest.attacks.base import Tensors, make_anew
from marshtest.data.samples import Dataset, Samples
from marshtest.experiment.aftercare import after_care, share_spent
from marshtest.experiment.asked import Asked
from marshtest.experiment.cells import Group
from marshtest.experiment.columns import refuse_taken_columns
from marshtest.experiment.guarded import (
    asking,
    candidates_of,
    fresh_of,
    guarded,
    model_for,
    refuse_unfit_columns,
    refuse_unfit_poison,
    seeded_if_foreign,
    shuffled_of,
    sound_effect,
)
from marshtest.experiment.recipe import Recipe
from marshtest.experiment.requests import ALL, Request, refuse_small_parts, sizes_of
from marshtest.experiment.roles import UNTREATED, Role
from marshtest.experiment.states import ITSELF, bits_of, passes_of
from marshtest.metrics.accuracy import accuracy, logits_of
from marshtest.metrics.base import Beside, Metric, Question
from marshtest.metrics.dependence import dependence
from marshtest.metrics.membership import margins_of
from marshtest.metrics.shift import shifts
from marshtest.models.answers import overruns, takes_channels_last
from marshtest.models.base import ModelSettings
from marshtest.models.checkpoint import checkpoint
from marshtest.models.language import LanguageModel
from marshtest.models.rounding import weights
from marshtest.models.sharded import Ensemble, Sharded
from marshtest.models.state import attributes_that_differ, copied, restore, same_tensors, state_of
from marshtest.models.table import OWN, Factory, build
from marshtest.plumbing.device import exact_float32, failure, pick_device
from marshtest.plumbing.errors import MarshtestError, first_line, message
from marshtest.plumbing.foreign import foreign, raised
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import derive, generator, seeded
from marshtest.training.aside import Aside
from marshtest.training.budget import Budget, Cost, flops_of
from marshtest.training.loop import Fit, Training, chosen_precision, fit, fit_within, uncompiled
from marshtest.training.shards import fit_shards, fit_shards_within
from marshtest.training.tasks import (
    Classification,
    LabelWord,
    Objective,
    Precision,
    Task,
    TextClassification,
)
from marshtest.unlearning import Unlearner
from marshtest.unlearning.harness import Outcome, unlearn

Row = dict[str, Any]

# Floating-point operations of a training step below which a second thread waits more than it works. Rows of
# such models are the same bytes on any number of cores.
SMALL = 3e8
ROUNDING = 1e-4  # by which a GPU may answer otherwise when one model is asked twice
TRIED = 4  # samples of another's model's trial


@dataclass(frozen=True)
class Trainer:
    """How a recipe makes a model from samples, without its data; an unlearner finds it as `task.train`.

    Attributes:
        input_shape: of one sample's x.
    """

    model: ModelSettings
    training: Training
    task: Task
    device: torch.device
    input_shape: tuple[int, ...]
    classes: int

    def new_model(self, seed: int) -> nn.Module:
        """A freshly initialised model on the device."""
        # Built on the CPU and then moved, so that all devices begin with the same weights.
        model = build(self.model, self.input_shape, self.classes, derive(seed, "initialisation"))
        return self._placed(model)

    def frame(self) -> nn.Module:
        """A model on the device whose values are still to be read; one of our own is not tried again."""
        tried = isinstance(self.model, OWN)  # as the recipe was set up; another's may be lazy
        return self._placed(build(self.model, self.input_shape, self.classes, 0, tried=tried))

    def _placed(self, model: nn.Module) -> nn.Module:
        model = model.to(self.device)
        if self.task.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def packed(self, model: nn.Module) -> bytes:
        """A model of this kind as a file that `load_model` reads."""
        return checkpoint(model, self.model, self.input_shape, self.classes)

    def fit(
        self,
        samples: Samples,
        seed: int,
        progress: Progress = silent,
        aside: Aside | None = None,
    ) -> tuple[nn.Module, Fit]:
        """The recipe's whole training, from scratch, or from where it was set aside.

        Only models of our own are set aside: another's may hold something that is no tensor.
        """
        model = self.new_model(seed)
        given = (model, samples, self.task, self.training, seed, progress)
        if isinstance(model, Ensemble):
            return model, fit_shards(*given)
        return model, fit(*given, aside=aside if isinstance(self.model, OWN) else None)

    def __call__(
        self,
        samples: Samples,
        seed: int,
        budget: Budget | None = None,
        *,
        start: nn.Module | None = None,
        objective: Objective | None = None,
        **changes: Any,
    ) -> nn.Module:
        """The training that unlearners may ask for; see `Train`."""
        model = self.new_model(seed) if start is None else copied(start)
        training = self.training.changed(**changes)
        ensemble = isinstance(model, Ensemble)
        if budget is None:
            train = fit_shards if ensemble else fit
            train(model, samples, self.task, training, seed, objective=objective)
        else:
            within = fit_shards_within if ensemble else fit_within
            within(model, samples, self.task, training, seed, budget, objective)
        return model


@dataclass(frozen=True)
class Pipeline:
    """A recipe at work: its data, on the device, and its training."""

    recipe: Recipe
    data: Dataset
    trainer: Trainer
    input_shape: tuple[int, ...]  # of one sample in input space
    threads: int | None = None  # as many as are worth while; None for all that there are

    @property
    def task(self) -> Task:
        """What training and scoring ask of a model."""
        return self.trainer.task

    def task_for_unlearners(self, held_out: Samples | None = None) -> Task:
        """The task with the parts of this pipeline that an unlearner may use."""
        return replace(
            self.task,
            train=self.trainer,
            new_model=self.trainer.new_model,
            packed=self.trainer.packed,
            optimizer_for=self.recipe.training.optimizer_for,
            held_out=held_out,
        )

    @property
    def device(self) -> torch.device:
        """The device of the data and the models."""
        return self.trainer.device

    @property
    def made(self) -> dict[str, str]:
        """How models are made here, as rows say it; a store may have been begun on another device."""
        return {"precision": self.task.precision, "device": self.device.type}


@exact_float32()
def set_up(recipe: Recipe, data: Dataset, device: str | None = None) -> Pipeline:
    """Put the data on the device, and refuse what cannot work before anything is trained.

    Args:
        device: takes the place of the recipe's, where nothing is trained or scored.

    Raises:
        MarshtestError: the model does not fit the data, an unlearner does not fit the model, a
            poison budget makes no poison, a metric's column is taken.
    """
    place = pick_device(device or recipe.device)
    data = data.to(place)
    shape = tuple(data.train.x.shape[1:])
    settings = _trained_model(recipe, data)
    model = copied(build(settings, shape, data.classes, 0))
    if recipe.attack.writes and data.texts is None:
        raise MarshtestError(
            f"attack: {recipe.attack.name} writes into texts, and these data are none. Use imdb."
        )
    counts = {share: poison_count(recipe, share, data) for share in recipe.poison_budgets}
    sizes = {asked for count in counts.values() for _, asked, _ in sizes_of(recipe, count)}
    forget_shares = sorted(size / kept_count(recipe, data) for size in sizes)
    for unlearner in (trial for trials in recipe.unlearners for trial in trials):
        unlearner.check(model, lambda seed: build(settings, shape, data.classes, seed))
        for share in forget_shares:
            unlearner.check_setting(recipe.training, share)
    if recipe.training.augment and len(shape) != 3:
        raise MarshtestError(f"training.augment: needs images [C, H, W]. The samples are {shape}.")
    refuse_taken_columns(recipe.metrics, recipe.attack)
    _refuse_unfit_states(recipe, data, model)
    _refuse_unfit_poison_budgets(recipe, data, counts)
    task = _task(recipe, data, model, chosen_precision(recipe.training, model, place, shape))
    # The input space may not be the samples': of texts it is that of the embeddings.
    sample = data.train[:1].to("cpu")
    inputs = task.inputs(model, sample)
    trainer = Trainer(settings, recipe.training, task, place, shape, data.classes)
    if not isinstance(recipe.model, OWN):
        _try_out(trainer, data.train[: TRIED * recipe.training.shards])  # some for every shard
    with torch.no_grad():
        step = 3 * recipe.training.batch_size * flops_of(lambda: task(uncompiled(model), sample))
    return Pipeline(recipe, data, trainer, tuple(inputs.shape[1:]), 1 if step < SMALL else None)


def _refuse_unfit_poison_budgets(
    recipe: Recipe, data: Dataset, counts: Mapping[float, int]
) -> None:
    """Raise if a budget makes too few poisons or too many, or as many as another one."""
    # Of a single one no error could be told of the poisons' mean.
    if too_few := [share for share, count in counts.items() if count < 2]:
        possible = len(candidates_of(recipe.attack, data.train, data.marked))
        raise MarshtestError(
            f"poison_budgets: {too_few[0]:g} of {possible} training samples makes fewer than "
            "two poisons. Raise it, or use more data."
        )
    if emptied := [share for share, count in counts.items() if count >= kept_count(recipe, data)]:
        raise MarshtestError(
            f"poison_budgets: {emptied[0]:g} leaves no training sample to retain. Lower it."
        )
    # Figures and tables go by the size of the forget set.
    for one, other in combinations(counts, 2):
        if counts[one] == counts[other]:
            raise MarshtestError(
                f"poison_budgets: {one:g} and {other:g} both make {counts[one]:,} poisons. Drop one."
            )
    for share, count in counts.items():
        refuse_small_parts(recipe, share, count)


def _refuse_unfit_states(recipe: Recipe, data: Dataset, model: nn.Module) -> None:
    """Raise MarshtestError where after-care has nothing to round, or too little to train on."""
    held_out = len(data.train) - kept_count(recipe, data)
    for state in recipe.states:
        if bits_of(state) and not any(weights(model)):
            raise MarshtestError(
                f"states: {state} rounds the weights of convolution and linear layers, and "
                f"{recipe.model.name} has none. Leave it out."
            )
        if passes_of(state) and held_out < recipe.training.batch_size:
            raise MarshtestError(
                f"states: {state} needs a batch of held-out samples at least (training.batch_size "
                f"{recipe.training.batch_size}), and data.validation holds out {held_out} of "
                f"{len(data.train)}. Raise data.validation."
            )


def _task(recipe: Recipe, data: Dataset, model: nn.Module, precision: Precision) -> Task:
    """What training and scoring ask of the model, by the kind of the data."""
    known = not isinstance(recipe.model, Factory)
    if data.padding is not None:
        task = _language(recipe.model, data.padding, data.prompted, precision)
        return replace(task, known_model=known)
    shape = tuple(data.train.x.shape[1:])
    return Classification(
        precision=precision,
        known_model=known,
        mean=data.mean,
        std=data.std,
        augment=recipe.training.augment,
        channels_last=(
            isinstance(recipe.model, OWN) and len(shape) == 3 and not overruns(model, shape)
        )
        or takes_channels_last(model, shape),
    )


def _trained_model(recipe: Recipe, data: Dataset) -> ModelSettings:
    """Settings of what is trained: the recipe's model, or an ensemble of such."""
    shards = recipe.training.shards
    if shards == 1:
        return recipe.model
    if data.padding is not None:
        raise MarshtestError(
            "training.shards: an ensemble has no one token embedding, into which poisons of texts are put. "
            "Leave it out, or use images or features."
        )
    fewest = min(kept_count(recipe, data) * (1 - share) for share in recipe.poison_budgets) / shards
    if fewest < 10:  # on average; the smallest must hold two
        raise MarshtestError(
            f"training.shards: {shards} leave fewer than ten samples to retain in each. Lower it."
        )
    return Sharded(shards=shards, of=recipe.model)


def _try_out(trainer: Trainer, samples: Samples) -> None:
    """Train another's model a step or two, so that what it cannot do is told before hours are spent."""
    few = {
        "epochs": 1,
        "batch_size": max(2, len(samples) // 2),  # BatchNorm cannot be trained on one sample
        "lr": min(trainer.training.lr, 1e-3),  # a rate that is too large is no fault of the model
    }
    trial = replace(trainer, training=trainer.training.model_copy(update=few))
    try:
        model, _ = trial.fit(samples, 0)
    except MarshtestError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:  # whatever a user's forward raises
        raise MarshtestError(
            f"model: {trainer.model.name} cannot be trained ({type(error).__name__}: {first_line(error)})."
        ) from None
    refuse_lost_state(trainer, model, state_of(model), samples)


@exact_float32()
def refuse_lost_state(
    trainer: Trainer, model: nn.Module, state: Mapping[str, Tensor], samples: Samples
) -> None:
    """Raise MarshtestError where a trained model, built anew from what is stored of it, is another one.

    Args:
        state: what is stored.
        samples: those that both are asked about.
    """
    again = trainer.new_model(0)
    restore(again, state)
    if answer_alike(trainer, model, again, samples):
        return
    lost = ", ".join(attributes_that_differ(model, again)) or "something outside its tensors"
    raise MarshtestError(
        f"model: {trainer.model.name} answers otherwise when it is built again from its state_dict. "
        f"Training changed {lost}, and that is not stored. Make it a buffer (register_buffer)."
    )


def answer_alike(trainer: Trainer, one: nn.Module, other: nn.Module, samples: Samples) -> bool:
    """Whether two models answer alike: what one keeps outside its tensors is compared in no other way."""
    answers = []
    for model in (one, other):
        with seeded(0):  # each by the same draws, where a model draws any
            logits = [logits for _, logits in logits_of(model, trainer.task, samples)]
        answers.append(torch.cat(logits))
    return torch.allclose(answers[0], answers[1], rtol=1e-3, atol=1e-4, equal_nan=True)


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


def kept_count(recipe: Recipe, data: Dataset) -> int:
    """Training samples left when the validation share is held out."""
    return len(data.train) - round(recipe.data.validation * len(data.train))


def poison_count(recipe: Recipe, share: float, data: Dataset) -> int:
    """About how many poisons a budget makes: candidates may be among those held out."""
    trained_on = kept_count(recipe, data) / len(data.train)
    possible = candidates_of(recipe.attack, data.train, data.marked)
    return round(share * trained_on * len(possible))


def split(pipeline: Pipeline, seed: int) -> tuple[Samples, Samples]:
    """(held out, kept) of the training split; what is held out is neither trained on nor poisoned."""
    train = pipeline.data.train
    count = len(train) - kept_count(pipeline.recipe, pipeline.data)
    # By the seed alone: all its poison budgets hold out the same samples, so one clean model serves all.
    order = torch.randperm(len(train), generator=generator(seed, "validation"))
    held_out = train.ids[order[:count].to(train.ids.device)]
    return train.only(held_out), train.without(held_out)


@exact_float32()
def train_clean(
    pipeline: Pipeline, seed: int, progress: Progress = silent, aside: Aside | None = None
) -> tuple[nn.Module, Fit]:
    """The model that crafted attacks start from; it serves all poison budgets of a seed."""
    samples, drawn = split(pipeline, seed)[1], derive(seed, "clean")
    with asking(pipeline.recipe.model):
        return pipeline.trainer.fit(samples, drawn, progress, aside)


def _no_clean_model() -> nn.Module:
    raise MarshtestError(
        "attack: it asks for the clean model, which is trained only for an attack that says so. Put "
        "`crafted: ClassVar[bool] = True` into its class."
    )


@exact_float32()
def poison(
    pipeline: Pipeline,
    group: Group,
    clean: Callable[[], nn.Module] = _no_clean_model,
    keep: Callable[[str, Callable[[], Tensors]], Tensors] = make_anew,
    progress: Progress = silent,
) -> Poisoned:
    """Step 1: the forget set is poisoned, the retain set is the rest.

    Args:
        clean: the clean model, where the attack asks for one.
        keep: keeps what the crafting has made so far, by name, across interruptions.
        progress: told the share of the crafting that is done, and how it stands.
    """
    recipe = pipeline.recipe
    samples = split(pipeline, group.seed)[1]
    possible = candidates_of(recipe.attack, samples, pipeline.data.marked)
    training = recipe.training
    knowledge = Knowledge(
        task=pipeline.task,
        test=pipeline.data.test,
        clean=lambda: model_for(recipe.attack, clean()),
        input_shape=pipeline.input_shape,
        marked=pipeline.data.marked,
        # AdamW's decay is no term of the loss, so no gradient that an attack cancels holds it.
        weight_decay=training.weight_decay if training.optimizer == "sgd" else 0.0,
        texts=pipeline.data.texts,
    )
    context = CraftingContext(
        kept=lambda name, make: {
            key: tensor.to(pipeline.device) for key, tensor in keep(name, make).items()
        },
        progress=progress,
    )
    count = round(group.poison_budget * len(possible))
    seed = derive(group.draws, "attack")
    shared = samples, pipeline.data.train, pipeline.data.test
    with seeded_if_foreign(recipe.attack, seed):
        with guarded(recipe.attack, f"attack {recipe.attack.name}", *shared):
            poisoned = recipe.attack.poison(samples, count, knowledge, seed, context)
        refuse_unfit_poison(recipe.attack, poisoned, pipeline.data)
    return poisoned


@exact_float32()
def train(
    pipeline: Pipeline,
    group: Group,
    poisoned: Poisoned,
    role: Role,
    progress: Progress = silent,
    request: Request = ALL,
    aside: Aside | None = None,
) -> tuple[nn.Module, Fit]:
    """Step 2: the model of a role, from scratch. Those of UNTREATED roles share their draws.

    Args:
        request: what the retain set of an exact model lacks.
        aside: where the unfinished training is kept.
    """
    if role == Role.INITIAL:
        samples = poisoned.samples
    elif role == Role.TWIN:
        samples = poisoned.unpoisoned
    elif role == Role.SHUFFLED:
        seed = derive(group.draws, "shuffle")
        samples = shuffled_of(pipeline.recipe.attack, poisoned, seed)
    else:
        samples = asked_for(group, poisoned, request).retain(role)
    # Initial model, twin and control then differ by their samples alone. The retrained model and its
    # reference have one retain set: by the same draws they would be one model.
    shared = dict.fromkeys(UNTREATED, Role.INITIAL) | {Role.EXACT_TWIN: Role.EXACT}
    draws = shared.get(role, role)
    with asking(pipeline.recipe.model):
        return pipeline.trainer.fit(samples, derive(group.draws, draws), progress, aside)


@exact_float32()
def update(
    pipeline: Pipeline,
    group: Group,
    poisoned: Poisoned,
    model: nn.Module,
    trained: Fit,
    unlearner: Unlearner,
    shares: Sequence[float],
    role: Role = Role.INITIAL,
    request: Request = ALL,
) -> list[Outcome]:
    """Step 3: one outcome a budget, each a share of what the initial training cost, or of its epochs.

    Args:
        model: that of `role`, "initial" or "twin"; the twin's forget set are the base samples. Of a later
            request it is the one that the request before left.
        request: what is asked for; each of several has an equal part of the budget.
    """
    held_out = split(pipeline, group.seed)[0]
    asked = asked_for(group, poisoned, request)
    return unlearn(
        unlearner,
        model,
        asked.retain(role),
        asked.forget(role),
        task=pipeline.task_for_unlearners(held_out if len(held_out) else None),
        budgets=[_budget(pipeline.recipe, trained, share / request.of) for share in shares],
        # The same in both arms, which then differ by the poison; and the same for all trials of a
        # search, which then differ by their values.
        seed=derive(group.draws, unlearner.name, *([request.number] if request.number > 1 else [])),
    )


def asked_for(group: Group, poisoned: Poisoned, request: Request) -> Asked:
    """What a request has to do with a group's poisons."""
    return Asked(poisoned, request, derive(group.draws, "requests"))


def _budget(recipe: Recipe, trained: Fit, share: float) -> Budget:
    """A share of what the initial training cost, or of its epochs."""
    cost, unit = trained.cost, trained.flops_per_pass
    if recipe.budget_unit == "epochs":
        epochs = share * recipe.training.epochs
        return Budget.of_epochs(epochs, unit, training_seconds=cost.seconds)
    whole = {"training_seconds": cost.seconds, "training_passes": cost.passes}
    return Budget(share * cost.passes, unit, **whole)


@dataclass(frozen=True)
class Subject:
    """A model to be measured, and its origin; `model` is None if the unlearner returned none."""

    role: Role
    unlearner: str
    budget: float
    model: nn.Module | None
    cost: Cost
    parameters: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    trace: str = ""  # the traceback of what its unlearner raised
    state: str | None = None  # in which it is measured; None in a recipe without after-care
    made: Mapping[str, str] = field(default_factory=dict)  # precision and device, if not as here

    def without_model(self, why: str) -> "Subject":
        """The same origin with no model, and in the note why."""
        note = "; ".join(filter(None, (self.note, why)))
        return replace(self, model=None, note=note)


@dataclass(frozen=True)
class Measured:
    """What step 4 finds.

    Attributes:
        row: columns as in docs/rows.md; `recipe` and `entry` are the collector's to fill in.
        scores: one line a poison, or target.
        shifts: one line a layer; none of a model that is not compared with the retrained one.
    """

    row: Row
    scores: pd.DataFrame
    shifts: list[Row]


@exact_float32()
def measure(
    pipeline: Pipeline,
    group: Group,
    poisoned: Poisoned,
    subject: Subject,
    trained: Fit,
    between: tuple[nn.Module, nn.Module] | None,
    twin: nn.Module | None = None,
    request: Request = ALL,
    beside: Beside | None = None,
) -> Measured:
    """Step 4: accuracy, what is left of the poison, cost, and the way that the model went.

    Args:
        trained: what the initial training cost.
        twin: the same on the clean twin, where the attack's effect is compared with it.
        between: the initial and the retrained model; None where the way is not asked for.
        request: what was asked for; the poisons that it leaves out have columns of their own.
        beside: what metrics compare with, where one does.
    """
    if subject.state:
        subject, twin = _in_its_state(pipeline, group, subject, twin)
        between = None  # it is the unlearner's way that is asked for
    row = _row(pipeline, group, poisoned, subject, trained)
    if subject.model is None:
        return Measured(row, pd.DataFrame(), [])
    try:
        given = (pipeline, group, poisoned, subject.model, row)
        return _answered(*given, between, twin, request, beside)
    except MarshtestError:  # of the attack or a metric, and of every model
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        if subject.role != Role.UPDATED or failure(error) is not None:
            raise
        # An unlearner's model, in one arm or the other, that cannot be asked: the rest of the run can.
        lost = subject.without_model(f"its model {raised(error)} as it was measured")
        return Measured(_row(pipeline, group, poisoned, lost, trained), pd.DataFrame(), [])


def _answered(
    pipeline: Pipeline,
    group: Group,
    poisoned: Poisoned,
    model: nn.Module,
    row: Row,
    between: tuple[nn.Module, nn.Module] | None,
    twin: nn.Module | None,
    request: Request,
    beside: Beside | None,
) -> Measured:
    """What a model answers, beside what its row says already; the arguments are those of `measure`."""
    asked = asked_for(group, poisoned, request)
    # What a model draws as it answers must not hang on the jobs that this process did before.
    drawn = seeded(derive(group.draws, "measure"))
    with drawn, exact_float32(tf32=pipeline.recipe.tf32):
        if twin is not None:
            row |= _of_twin(pipeline, asked, model, twin, row)
        figures, effect = _effect(pipeline, group, poisoned, model, row)
        row |= asked.columns(pipeline.recipe.attack.shown, effect)
    moved = [] if between is None else [layer._asdict() for layer in shifts(model, *between)]
    row |= figures
    if twin is not None and not _answers_as_its_twin(row):
        row["twin_same"] = 0.0  # equal in all that is looked at, and the difference lies elsewhere
    for metric in pipeline.recipe.metrics:
        row |= _by_metric(pipeline, group, poisoned, model, metric, row, beside)
    return Measured(row, pd.DataFrame({"id": effect.ids, **effect.scores}), moved)


def _in_its_state(
    pipeline: Pipeline, group: Group, subject: Subject, twin: nn.Module | None
) -> tuple[Subject, nn.Module | None]:
    """The subject and its twin after the same care, by the same draws; no models where that failed."""
    state = subject.state or ITSELF
    held_out = split(pipeline, group.seed)[0]
    seed, train = derive(group.draws, "state", state), pipeline.trainer
    try:
        model, other = (
            None if one is None else after_care(state, one, train, held_out, seed, train.frame)
            for one in (subject.model, twin)
        )
    except Exception as error:  # whatever the model of an unlearner raises as it is trained
        if failure(error) is not None:
            raise
        fault = message(error) if isinstance(error, MarshtestError) else raised(error)
        return subject.without_model(f"{state}: {fault}"), None
    return replace(subject, model=model), other


def _unseen(pipeline: Pipeline, group: Group, row: Mapping[str, Any]) -> Samples:
    """The held-out samples on which a row's model was not trained: none if it was trained on."""
    held_out = split(pipeline, group.seed)[0]
    return held_out[:0] if passes_of(row.get("state") or ITSELF) else held_out


def _of_state(pipeline: Pipeline, subject: Subject) -> Row:
    """A row's columns on the state of its model; none in a recipe without after-care."""
    if subject.state is None:
        return {}
    recipe, data = pipeline.recipe, pipeline.data
    kept = kept_count(recipe, data)
    spent = share_spent(subject.state, recipe.training, kept, len(data.train) - kept)
    return {"state": subject.state, "state_spent": spent}


@exact_float32()
def non_members(pipeline: Pipeline, poisoned: Poisoned) -> tuple[Samples, bool]:
    """Samples that no model was trained on, and whether they are dosed by the poisons' law."""
    attack, test = pipeline.recipe.attack, pipeline.data.test
    fresh = fresh_of(attack, poisoned, test)
    if fresh is not None:
        return fresh, True
    # An attack on accuracy itself aims at every test sample; none is left beside its targets.
    return (poisoned.rest or test), False


@exact_float32()
def answers_to(
    pipeline: Pipeline, group: Group, poisoned: Poisoned, model: nn.Module | None
) -> Tensor:
    """[P] logit margins of the forget set, in float64; all nan without a model."""
    if model is None:
        return torch.full((len(poisoned.forget_ids),), torch.nan, dtype=torch.float64)
    with seeded(derive(group.draws, "measure")), asking(pipeline.recipe.model):
        return torch.from_numpy(margins_of(model, pipeline.task, poisoned.forget))


def _row(
    pipeline: Pipeline, group: Group, poisoned: Poisoned, subject: Subject, trained: Fit
) -> Row:
    """What a row says of a model before the model is asked anything."""
    recipe, data = pipeline.recipe, pipeline.data
    share = 0.0 if subject.role in UNTREATED else subject.cost.passes / trained.cost.passes
    labels = data.test.y.unique(return_counts=True)[1]
    return {
        "recipe": "",
        "data": data.name,
        "model": recipe.model.name,
        "attack": recipe.attack.name,
        "forget_size": len(poisoned.forget_ids),
        "poison_budget": group.poison_budget,
        "seed": group.seed,
        "role": subject.role.value,
        "entry": -1,
        "unlearner": subject.unlearner,
        "hyperparameters": json.dumps(dict(subject.parameters), sort_keys=True),
        "budget": subject.budget,
        **_of_state(pipeline, subject),
        **asdict(subject.cost),
        "spent": share,
        "epochs": share * recipe.training.epochs,
        **{**pipeline.made, **subject.made},
        "note": subject.note,
        "chance": float(labels.max() / len(data.test)),
        **{f"crafting_{name}": value for name, value in poisoned.figures.items()},
    }


def _effect(
    pipeline: Pipeline, group: Group, poisoned: Poisoned, model: nn.Module, row: Mapping[str, Any]
) -> tuple[dict[str, float], Effect]:
    task, started = pipeline.task, time.perf_counter()
    effect = _effect_on(pipeline, poisoned, model, row)
    parts = {
        "test_accuracy": pipeline.data.test,
        "forget_accuracy": poisoned.forget,
        "validation_accuracy": _unseen(pipeline, group, row),
    }
    with asking(pipeline.recipe.model):
        measured = {name: accuracy(model, task, samples) for name, samples in parts.items()}
    measured["scoring_seconds"] = time.perf_counter() - started
    # The harness's own measures come last, so that no attack can pass its own off as one of them.
    return {**_dependences(pipeline, poisoned, effect), **effect.figures, **measured}, effect


def _effect_on(
    pipeline: Pipeline, poisoned: Poisoned, model: nn.Module, row: Mapping[str, Any]
) -> Effect:
    """The attack's effect on a model, looked through where the attack is a user's."""
    attack, data = pipeline.recipe.attack, pipeline.data
    shared = poisoned.clean, poisoned.samples, data.train, data.test
    with asking(pipeline.recipe.model), guarded(attack, f"attack {attack.name}", *shared):
        effect = attack.effect(model_for(attack, model), poisoned, pipeline.task)
    return sound_effect(attack, effect, poisoned, row)


def _dependences(pipeline: Pipeline, poisoned: Poisoned, effect: Effect) -> dict[str, float]:
    """The columns of scores with a known null law, of which the attack tells each poison's value only."""
    shown, samples, columns = pipeline.recipe.attack.shown, poisoned.samples, dict[str, float]()
    for name in shown.null_scores:
        if f"{name}_dependence" not in effect.figures:
            ids = torch.from_numpy(effect.ids)
            classes = samples.y[samples.positions(ids)].cpu().numpy()
            ties = effect.scores.get(f"{name}_ties", 0.0)
            score = dependence(effect.scores[name], classes, fpr=float(shown.fpr), ties=ties)
            columns |= score.columns(name)
    return columns


def _by_metric(
    pipeline: Pipeline,
    group: Group,
    poisoned: Poisoned,
    model: nn.Module,
    metric: Metric,
    row: Mapping[str, Any],
    beside: Beside | None,
) -> dict[str, float]:
    """A metric's columns, which the row must not have yet."""
    # By its name: a further metric in the recipe leaves the numbers of the others as they are.
    seed = derive(group.draws, "metric", metric.name)
    question = Question(
        forget=poisoned.forget,
        retain=poisoned.retain,
        test=pipeline.data.test,
        held_out=_unseen(pipeline, group, row),
        task=pipeline.task,
        seed=seed,
        role=str(row["role"]),
        beside=beside if metric.compares else None,
    )
    where = f"metrics.{metric.name}"
    shared = question.forget, question.retain, question.test, question.held_out, pipeline.data.train
    with seeded(seed), guarded(metric, where, *shared), foreign(where):
        values = dict(metric.measure(model_for(metric, model), question))
    if values.keys() != metric.columns.keys():
        raise MarshtestError(
            f"{where}: measured {sorted(map(str, values))}, and its columns are {sorted(metric.columns)}."
        )
    if taken := sorted(values.keys() & row.keys()):
        raise MarshtestError(
            f"{where}: a row has a column {taken[0]!r} already. Rename the metric's."
        )
    with foreign(where):
        numbers = {name: float(value) for name, value in values.items()}
    refuse_unfit_columns(metric, numbers, pipeline.recipe.attack, row)
    return numbers


def _of_twin(
    pipeline: Pipeline,
    asked: Asked,
    model: nn.Module,
    twin: nn.Module,
    row: Mapping[str, Any],
) -> dict[str, float]:
    """The effect's columns and the test accuracy of the clean twin, and whether it is the same model."""
    attack, task = pipeline.recipe.attack, pipeline.task
    effect = _effect_on(pipeline, asked.poisoned, twin, row)
    figures, of_parts = dict(effect.figures), asked.columns(attack.shown, effect)
    with asking(pipeline.recipe.model):
        figures["test_accuracy"] = accuracy(twin, task, pipeline.data.test)
    columns = ("test_accuracy", *attack.presentation.reference_columns.values(), *of_parts)
    figures |= of_parts
    state, other = state_of(model), state_of(twin)
    # A model may keep its weights where no state shows them: of two empty ones nothing is known.
    same = bool(state) and same_tensors(state, other)
    return {"twin_same": float(same), **{f"twin_{column}": figures[column] for column in columns}}


def _answers_as_its_twin(row: Mapping[str, Any]) -> bool:
    """Whether all that a row says of the twin it says of the model itself, but for rounding."""
    pairs = [
        (float(row[name.removeprefix("twin_")]), float(value))
        for name, value in row.items()
        if name.startswith("twin_") and name != "twin_same"
    ]
    return all(
        math.isclose(own, other, abs_tol=ROUNDING) or (math.isnan(own) and math.isnan(other))
        for own, other in pairs
    )
