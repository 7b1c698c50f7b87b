"""Does jobs: reads what they need from a store, and records what they make."""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

import numpy as np
from safetensors.torch import load as tensors_in
from safetensors.torch import save as bytes_of
from torch import nn

from marshtest.attacks import Poisoned
from marshtest.attacks.base import Tensors
from marshtest.data.samples import Dataset, Samples
from marshtest.experiment.cells import Cell, Group, cells, compared
from marshtest.experiment.guarded import trigger_of
from marshtest.experiment.in_turn import update_in_turn
from marshtest.experiment.protocol import (
    TRIED,
    Pipeline,
    Subject,
    answer_alike,
    answers_to,
    measure,
    non_members,
    poison,
    refuse_lost_state,
    set_up,
    split,
    train,
    train_clean,
    update,
)
from marshtest.experiment.recipe import ForeignData
from marshtest.experiment.recipe_data import content, data_of
from marshtest.experiment.roles import UNTREATED, Role
from marshtest.metrics import repeats
from marshtest.metrics.base import Beside
from marshtest.models.state import restore
from marshtest.plumbing.derived import hashed
from marshtest.plumbing.device import failure, pick_device, repeatable, threads
from marshtest.plumbing.errors import MarshtestError, refused
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.whole_files import frame_bytes
from marshtest.sweeps.jobs import PAIR, Job
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.store import DamagedError, Store
from marshtest.training.aside import Aside
from marshtest.training.budget import Cost
from marshtest.training.loop import Fit
from marshtest.unlearning import Unlearner
from marshtest.unlearning.harness import Outcome

MODELS = "models"  # those that a worker keeps in memory
TRAINING = "training.safetensors"  # an unfinished one
BUFFERS = "Keep in buffers what was changed beside its tensors, or set keep_models: false."

T = TypeVar("T")


class Worker:
    """Does jobs: reads what they need from a store, and records what they make.

    Args:
        data: in memory, instead of what recipes name.
        device: takes the place of the recipes', for a worker that does no job.
    """

    def __init__(
        self, store: Store, data: Dataset | None = None, device: str | None = None
    ) -> None:
        self.store, self._device = store, device
        self._in_memory = data
        self._latest: dict[str, dict[Any, Any]] = {}

    def __call__(self, job: Job, progress: Progress = silent) -> str:
        """Do a job; stages of it that are recorded already are read.

        Returns:
            What an unlearner raised, in one line, or "". Its row and traceback are among the store's
            failures, nothing of it is recorded, and the same job tries again.

        Raises:
            DamagedError: a stage that it needs is not as it was recorded.
            MarshtestError: the recipe does not work.
        """
        try:
            return self._do(job, progress)
        except BaseException:
            # A user's code may have changed what is in memory; the next job reads it again.
            self._latest.clear()
            raise

    def _do(self, job: Job, progress: Progress) -> str:
        if job.kind == "features":
            self._make_features(job, progress)
            return ""
        pipeline = self.pipeline(job.keys)
        exactly = repeatable(pipeline.device, asked=job.recipe.deterministic)
        with threads(pipeline.threads), exactly:
            if job.kind == "unlearn":
                return self._unlearn(job, progress)
            if job.kind == "train":
                self._train(job, progress)
            elif job.kind == "craft":
                self._craft(job, progress)
            else:
                self._score(job)
        return ""

    def pipeline(self, keys: Keys) -> Pipeline:
        """How a recipe makes models; the latest recipe's stays in memory."""
        recipe = keys.recipe
        of = hashed(keys.identity)  # a recipe's hash does not tell copies of the data apart
        return self._keep("pipeline", of, lambda: set_up(recipe, self._data(keys), self._device))

    def poisoned(self, keys: Keys, group: Group) -> Poisoned:
        """A group's poisons; the latest group's stay in memory."""
        pipeline, key = self.pipeline(keys), keys.dose(group)

        def make() -> Poisoned:
            if not keys.recipe.attack.crafted:
                return poison(pipeline, group.first)
            record = self.store.load(key)["poisoned"]
            about = {name: record[name] for name in ("seed", "figures", "history")}
            samples, test = split(pipeline, group.seed)[1], pipeline.data.test
            return Poisoned.of(self._tensors(key, "poisons"), samples, test, **about)

        return self._keep("poisoned", key, make)

    # What is made

    def _make_features(self, job: Job, progress: Progress) -> None:
        started, (key,) = time.perf_counter(), job.makes
        device, asked = job.recipe.device, job.recipe.deterministic
        with repeatable(pick_device(device), asked=asked):
            data = data_of(job.recipe.data, device, progress, aside=self._aside(key))
        tensors = {
            f"{split}.{part}": getattr(getattr(data, split), part)
            for split, part in itertools.product(("train", "test"), ("x", "y", "ids"))
        }
        values = {"name": data.name, "classes": data.classes}
        self._record(job, key, started, values, {"data.safetensors": packed(tensors)})
        self.store.remove(f"partial/{key}")

    def _train(self, job: Job, progress: Progress) -> None:
        started, pipeline, key = time.perf_counter(), self.pipeline(job.keys), job.makes[0]
        aside = self._aside(key)
        if job.role is None:
            model, trained = train_clean(pipeline, job.group.seed, progress, aside)
        else:
            of_role = (self.poisoned(job.keys, job.group), job.role, progress, job.request, aside)
            model, trained = train(pipeline, job.group, *of_role)
        values = {"cost": vars(trained.cost), "flops_per_pass": trained.flops_per_pass}
        values["made"] = pipeline.made
        stored = pipeline.trainer.packed(model)
        # Before it is recorded: under its key, a model that lost something would serve for good.
        refuse_lost_state(pipeline.trainer, model, tensors_in(stored), pipeline.data.test[:TRIED])
        self._record(job, key, started, values, {"model.safetensors": stored})
        self.store.remove(f"partial/{key}")
        if job.group.repeat:
            self._record_margins(job, job.makes[1], started, model)

    def _aside(self, key: str) -> Aside:
        """The place of a stage's unfinished training."""
        return Aside(
            lambda: self._before(key, TRAINING),
            lambda state: self.store.set_aside(key, TRAINING, packed(state)),
        )

    def _before(self, key: str, name: str) -> Tensors | None:
        """What an earlier attempt at a stage set aside by this name, if anything."""
        data = self.store.was_set_aside(key, name)
        return None if data is None else tensors_in(data)

    def _craft(self, job: Job, progress: Progress) -> None:
        started, pipeline, (key,) = time.perf_counter(), self.pipeline(job.keys), job.makes

        def clean() -> nn.Module:
            return self._model(pipeline, job.keys.clean(job.group.seed))

        def resumed(name: str, make: Callable[[], Tensors]) -> Tensors:
            before = self._before(key, name)
            if before is not None:
                return before
            tensors = make()
            self.store.set_aside(key, name, packed(tensors))
            return tensors

        poisoned = poison(pipeline, job.group, clean, resumed, progress)
        record = {
            "seed": poisoned.seed,
            "figures": dict(poisoned.figures),
            "history": [dict(line) for line in poisoned.history],
        }
        files = {"poisons.safetensors": packed(poisoned.tensors())}
        self._record(job, key, started, {"poisoned": record}, files)
        self.store.remove(f"partial/{key}")

    def _score(self, job: Job) -> None:
        cell, pipeline = job.cells[0], self.pipeline(job.keys)
        key = job.keys.measured(cell)
        twin_key = job.keys.twin(cell.role, job.group, cell.request)
        model = self._model(pipeline, key)
        made = self.store.load(key).get("made", {})
        cost = self._fit(key).cost
        subject = Subject(cell.role, cell.unlearner, cell.budget, model, cost, made=made)
        twin = None if twin_key is None else self._model(pipeline, twin_key)
        for cell, score in zip(job.cells, job.makes, strict=True):
            if not self.store.is_recorded(score):
                in_state = replace(subject, state=cell.state)
                self._measure(job, cell, pipeline, in_state, twin, score)

    def _unlearn(self, job: Job, progress: Progress) -> str:
        """Cells whose updated models are recorded are measured only; the others go in one call an arm."""
        if job.group.repeat:
            return self._repeat(job)
        arms = job.arms
        # Not strict: models that are kept stand behind the scores.
        scores = dict(zip(job.cells, job.makes, strict=False))
        missing = [cell for cell, score in scores.items() if not self.store.is_recorded(score)]
        unscored = {cell.model for cell in missing}
        subjects: dict[tuple[Role, Cell], Subject] = {}
        for done, role in enumerate(arms, 1):
            todo = [
                cell
                for cell in job.models
                if not self.store.is_recorded(self._updated_key(job, cell, role))
                and (job.keeps_models or cell in unscored)
            ]
            for cell, subject in self._updates(job, role, todo):
                # What raised is not recorded, so that the next attempt tries it again.
                if job.keeps_models and not subject.trace:
                    key = self._updated_key(job, cell, role)
                    subject = self._record_updated(job, key, subject)
                subjects[role, cell] = subject
            progress(done / (len(arms) + 1))  # measuring counts as one arm more
        faults = []
        for cell in missing:
            for role in arms:  # read once a model, and not once for each of its states
                if (role, cell.model) not in subjects:
                    subjects[role, cell.model] = self._updated(job, cell, role)
            models = [replace(subjects[role, cell.model], state=cell.state) for role in arms]
            faults.append(self._measure_arms(job, cell, models, scores[cell]))
        progress(1.0)
        return next(filter(None, faults), "")

    def _repeat(self, job: Job) -> str:
        """Run the unlearner on a further in-model; one that gives none has no answers, nan."""
        keys = dict(zip(job.cells, job.makes, strict=True))
        todo = [cell for cell, key in keys.items() if not self.store.is_recorded(key)]
        for cell, subject in self._updates(job, Role.INITIAL, todo):
            started = time.perf_counter() - subject.cost.seconds
            self._record_margins(job, keys[cell], started, subject.model)
        return ""

    def _record_margins(self, job: Job, key: str, started: float, model: nn.Module | None) -> None:
        poisoned = self.poisoned(job.keys, job.group)
        margins = answers_to(self.pipeline(job.keys), job.group, poisoned, model)
        self._record(job, key, started, {}, {"margins.safetensors": packed({"margins": margins})})

    def _repeated(self, job: Job, cell: Cell) -> dict[str, float]:
        """The columns of what repeats measure of a cell's model; none where they do not make such a one."""
        if not job.recipe.repeats or cell.state or cell.role not in (Role.INITIAL, Role.UPDATED):
            return {}
        every = [*cells(job.recipe, job.group)]
        initial, retrained = (
            self._stacked(job.keys, next(end for end in every if end.role == role)) for role in PAIR
        )
        updated = self._stacked(job.keys, cell)
        return repeats.columns(updated, initial, retrained, job.group.draws)

    def _stacked(self, keys: Keys, cell: Cell) -> repeats.Floats:
        """[R, P] answers of the models that repeat a cell's."""
        every = (self._tensors(key, "margins")["margins"] for key in keys.every_margins(cell))
        return np.stack([margins.numpy() for margins in every])

    def _measure_arms(self, job: Job, cell: Cell, arms: Sequence[Subject], score: str) -> str:
        """Measure an updated model beside that of the twin's arm; what either's unlearner raised, or ""."""
        pipeline = self.pipeline(job.keys)
        failed = next((subject for subject in arms if subject.trace), None)
        if failed is not None:  # in one arm or the other: no comparison
            return self._fail(job, pipeline, failed, score)
        # An unlearner that looks at no model has one arm, and would give the twin's the same model.
        twin = arms[-1].model if job.recipe.attack.needs_twin else None
        self._measure(job, cell, pipeline, arms[0], twin, score)
        self.store.remove(f"failures/{score}.json")
        return ""

    def _updates(
        self, job: Job, role: Role, todo: Sequence[Cell]
    ) -> Iterator[tuple[Cell, Subject]]:
        """Run the unlearner on the model of a role, for some cells; no other model is in memory then."""
        method, pipeline = job.unlearner, self.pipeline(job.keys)
        assert method is not None
        if not todo:
            return
        self._latest.pop(MODELS, None)
        outcomes = self._outcomes(job, pipeline, method, role, todo)
        for cell, outcome in zip(todo, outcomes, strict=True):
            model, cost, parameters = outcome.model, outcome.cost, method.hyperparameters
            end = (model, cost, parameters, outcome.note, outcome.trace)
            yield cell, Subject(Role.UPDATED, method.name, cell.budget, *end)

    def _outcomes(
        self,
        job: Job,
        pipeline: Pipeline,
        method: Unlearner,
        role: Role,
        todo: Sequence[Cell],
    ) -> list[Outcome]:
        """One outcome a cell; requests in turn are all made again where one of them is missing."""
        start = self._read_model(pipeline, job.keys.model(role, job.group))
        trained = self._fit(job.keys.model(Role.INITIAL, job.group))
        poisoned = self.poisoned(job.keys, job.group)
        given = (pipeline, job.group, poisoned, start, trained, method)
        budgets, requests = [cell.budget for cell in todo], job.request.of
        if requests == 1:
            return update(*given, budgets, role, job.request)
        in_turn = {
            budget: update_in_turn(*given, budget, requests, role)
            for budget in dict.fromkeys(budgets)
        }
        return [in_turn[cell.budget][cell.request.number - 1] for cell in todo]

    def _measure(
        self,
        job: Job,
        cell: Cell,
        pipeline: Pipeline,
        subject: Subject,
        twin: nn.Module | None,
        key: str,
    ) -> None:
        started = time.perf_counter()
        initial = job.keys.model(Role.INITIAL, job.group)
        between = None
        if subject.role not in UNTREATED:
            retrained = job.keys.model(Role.RETRAINED, job.group)
            between = self._model(pipeline, initial), self._model(pipeline, retrained)
        poisoned, cost = self.poisoned(job.keys, job.group), self._fit(initial)
        of_cell = (subject, cost, between, twin, cell.request, self._beside(job, pipeline))
        score = measure(pipeline, job.group, poisoned, *of_cell)
        row = score.row if subject.model is None else score.row | self._repeated(job, cell)
        values = {"row": row, "shifts": score.shifts}
        self._record(job, key, started, values, {"scores.parquet": frame_bytes(score.scores)})

    def _beside(self, job: Job, pipeline: Pipeline) -> Beside | None:
        """What metrics compare with; the latest group's non-members and answers stay in memory."""
        roles, dose = compared(job.recipe), job.keys.dose(job.group)
        if not roles:
            return None
        initial, retrained, reference = (
            self._model(pipeline, job.keys.model(role, job.group)) for role in roles
        )
        poisoned = self.poisoned(job.keys, job.group)
        fresh, dosed = self._keep("fresh", dose, lambda: non_members(pipeline, poisoned))
        answers: dict[str, Any] = self._keep("answers", dose, dict)
        return Beside(initial, retrained, reference, fresh, dosed, answers)

    def _fail(self, job: Job, pipeline: Pipeline, subject: Subject, key: str) -> str:
        """Write down what an unlearner raised, with the row that says so; its one line."""
        poisoned = self.poisoned(job.keys, job.group)
        trained = self._fit(job.keys.model(Role.INITIAL, job.group))
        row = measure(pipeline, job.group, poisoned, subject, trained, None).row
        fault = f"{subject.unlearner} {subject.note}"
        # The row stands in the failure, not in a record: reports show it, and it is tried again.
        values = {"job": job.label, "fault": fault, "traceback": subject.trace, "row": row}
        self.store.write(f"failures/{key}.json", json.dumps(values, indent=1).encode())
        return fault

    # What is read and written

    def _record(
        self,
        job: Job,
        key: str,
        started: float,
        values: Mapping[str, Any],
        files: Mapping[str, bytes],
    ) -> None:
        """Record a stage with what it belongs to, for whoever browses the store."""
        origin: dict[str, Any] = {"stage": job.label, "recipe": job.recipe.name, "needs": job.needs}
        if job.unlearner is not None:
            origin["unlearner"] = job.unlearner.model_dump(mode="json")
        seconds = time.perf_counter() - started
        self.store.record(key, {"of": origin, "seconds": seconds, **values}, files)

    def _record_updated(self, job: Job, key: str, subject: Subject) -> Subject:
        """Record what an unlearner gave; a model that cannot be stored is none."""
        pipeline, files = self.pipeline(job.keys), dict[str, bytes]()
        try:
            if subject.model is not None:
                files["model.safetensors"] = pipeline.trainer.packed(subject.model)
                self._refuse_other(pipeline, subject.model, files["model.safetensors"])
        except MarshtestError as error:
            subject, files = subject.without_model(f"cannot be kept: {error}"), {}
        values = {"cost": vars(subject.cost), "note": subject.note, "made": pipeline.made}
        # Budgets that go in one call cannot be timed from outside; the harness timed each.
        started = time.perf_counter() - subject.cost.seconds
        self._record(job, key, started, values, files)
        return subject

    def _refuse_other(self, pipeline: Pipeline, model: nn.Module, stored: bytes) -> None:
        """Raise where a model that is built again from its file is another one, which nobody measured."""
        again, tensors = pipeline.trainer.frame(), tensors_in(stored)
        own = again.state_dict()
        if any(own[name].dtype != tensor.dtype for name, tensor in tensors.items() if name in own):
            return  # rounded otherwise, which its answers may show
        try:
            restore(again, tensors)
        except RuntimeError:  # of another make: it is made anew where it is needed
            return
        with refused("it cannot be asked when it is built again from its state_dict", BUFFERS):
            alike = answer_alike(pipeline.trainer, model, again, pipeline.data.test[:TRIED])
        if not alike:
            raise MarshtestError(
                f"it answers otherwise when it is built again from its state_dict. {BUFFERS}"
            )

    def _updated_key(self, job: Job, cell: Cell, role: Role) -> str:
        assert job.unlearner is not None
        return job.keys.updated(job.group, job.unlearner, cell.budget, role, cell.request)

    def _updated(self, job: Job, cell: Cell, role: Role) -> Subject:
        """A recorded updated model; its file is missing where the unlearner gave none."""
        assert job.unlearner is not None
        key, parameters = self._updated_key(job, cell, role), job.unlearner.hyperparameters
        values, pipeline = self.store.load(key), self.pipeline(job.keys)
        model = self._read_model(pipeline, key) if values["files"] else None
        cost, note, made = Cost(**values["cost"]), values["note"], values.get("made", {})
        end = (model, cost, parameters, note)
        return Subject(Role.UPDATED, job.unlearner.name, cell.budget, *end, made=made)

    def _data(self, keys: Keys) -> Dataset:
        if self._in_memory is not None:  # a caller's data, whose digest is in the keys
            return self._in_memory
        recipe, trigger, key = keys.recipe, trigger_of(keys.recipe.attack), keys.features

        def read() -> Dataset:
            if recipe.data.features is not None:
                values, tensors = self.store.load(key), self._tensors(key, "data")
                train, test = (
                    Samples(*(tensors[f"{split}.{part}"] for part in ("x", "y", "ids")))
                    for split in ("train", "test")
                )
                return Dataset(values["name"], train, test, values["classes"])
            # What a user's callable loads is its own affair, which a second call might not give again.
            own = not isinstance(recipe.data, ForeignData)
            if own and keys.content is not None and content(recipe.data, None) != keys.content:
                raise MarshtestError(
                    f"data: {recipe.data.path or recipe.data.name} is not what it was as the work was "
                    "planned. Leave it as it is, or run the command again."
                )
            return data_of(recipe.data, recipe.device, model=recipe.model, trigger=trigger)

        # With the model, whose tokenizer makes samples of texts.
        named = [recipe.data.model_dump(mode="json"), recipe.model.model_dump(mode="json")]
        named.append({"content": keys.content})
        return self._keep("data", hashed([named, trigger and asdict(trigger)]), read)

    def _model(self, pipeline: Pipeline, key: str) -> nn.Module:
        """A recorded model; a group's initial and retrained models and the twin stay in memory."""
        return self._keep(MODELS, key, lambda: self._read_model(pipeline, key), count=4)

    def _read_model(self, pipeline: Pipeline, key: str) -> nn.Module:
        model = pipeline.trainer.frame()
        try:
            restore(model, self._tensors(key, "model"))
        except RuntimeError as error:  # a model of another make, which only its unlearner can build
            if failure(error) is not None:
                raise
            raise DamagedError(key, "model.safetensors") from None
        return model

    def _fit(self, key: str) -> Fit:
        """The cost of a training."""

        def read() -> Fit:
            values = self.store.load(key)
            return Fit(Cost(**values["cost"]), values["flops_per_pass"])

        return self._keep("fits", key, read)

    def _tensors(self, key: str, name: str) -> Tensors:
        return tensors_in(self.store.file(key, f"{name}.safetensors"))

    def _keep(self, what: str, name: str, make: Callable[[], T], count: int = 1) -> T:
        """Make something once; the last `count` of a sort stay in memory."""
        latest = self._latest.setdefault(what, {})
        if name not in latest:
            # Room first: both at once may not fit the memory.
            while len(latest) >= count:
                del latest[next(iter(latest))]
            latest[name] = make()
        value: T = latest[name]
        return value


def packed(tensors: Tensors) -> bytes:
    """Tensors as safetensors; shared ones are written as often as they are named."""
    return bytes_of({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
