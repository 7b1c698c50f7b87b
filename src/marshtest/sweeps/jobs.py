"""Jobs: what is scheduled, and what each makes and needs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from marshtest.data.samples import Dataset
from marshtest.experiment.cells import (
    Cell,
    Group,
    cells,
    compared,
    groups,
    repeated,
    trained,
    trained_in_part,
)
from marshtest.experiment.guarded import work_of
from marshtest.experiment.protocol import kept_count, poison_count
from marshtest.experiment.recipe import Recipe
from marshtest.experiment.requests import ALL, Request
from marshtest.experiment.roles import UNTREATED, Role
from marshtest.experiment.states import passes_of
from marshtest.sweeps.keys import Keys
from marshtest.unlearning import Unlearner, is_anytime

PAIR = (Role.INITIAL, Role.RETRAINED)  # what a repeat trains


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        kind: as in marshtest.sweeps.settings.
        what: which of its kind, for people.
        makes: keys of the stages that it records, those of its cells' scores first.
        needs: keys of the stages that must be recorded before.
        keys, group: of the recipe that the job belongs to, and where in it.
        role: of the model that is trained or scored; None of the clean one that crafting starts from.
        cells: the rows that it measures.
        request: what was asked for where a model is trained or scored; of an unlearner the first one.
    """

    kind: str
    what: str
    makes: tuple[str, ...]
    needs: tuple[str, ...]
    keys: "Keys" = field(repr=False)
    group: Group
    role: Role | None = None
    cells: tuple[Cell, ...] = ()
    request: Request = ALL

    @property
    def recipe(self) -> Recipe:
        """The recipe that the job belongs to."""
        return self.keys.recipe

    @property
    def label(self) -> str:
        """What is done, in words."""
        return f"{self.kind} {self.what}"

    @property
    def unlearner(self) -> Unlearner | None:
        """The unlearner at work; None in a job that unlearns nothing."""
        return self.keys.unlearner(self.cells[0]) if self.role == Role.UPDATED else None

    @property
    def budgets(self) -> tuple[float, ...]:
        """The compute budgets of its cells, in their order, each once."""
        return tuple(dict.fromkeys(cell.budget for cell in self.cells))

    @property
    def models(self) -> tuple[Cell, ...]:
        """The cells of its models themselves, each once for all its states."""
        return tuple(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def arms(self) -> tuple[Role, ...]:
        """Roles of the models that its unlearner starts from."""
        assert self.unlearner is not None
        arms = self.keys.arms(self.unlearner, self.request)
        return arms[:1] if self.group.repeat else arms  # repeats have no clean twin

    @property
    def passes_smaller_budgets(self) -> bool:
        """Whether the models of smaller budgets lie on the way to the largest one's."""
        # A second request starts from another model at each budget.
        return self.unlearner is not None and is_anytime(self.unlearner) and self.request.of == 1

    @property
    def keeps_models(self) -> bool:
        """Whether updated models are recorded too, not only their scores."""
        return len(self.makes) > len(self.cells)


def distinct(recipes: Iterable[Keys], *, keep_models: bool) -> list[Job]:
    """The jobs of several recipes, each behind those that it needs; a stage that they share is made once.

    Args:
        keep_models: record the updated models too, not only their scores.
    """
    todo: list[Job] = []
    planned: set[str] = set()
    for job in (job for keys in recipes for job in jobs(keys, keep_models=keep_models)):
        # By all that it makes: a recipe of fewer budgets may have planned a part of it.
        if not planned.issuperset(job.makes):
            todo.append(job)
            planned.update(job.makes)
    return todo


def jobs(keys: Keys, *, keep_models: bool) -> Iterator[Job]:
    """The jobs of a recipe, each behind those that it needs.

    Args:
        keep_models: record the updated models too, not only their scores.
    """
    recipe = keys.recipe
    first: tuple[str, ...] = ()
    if recipe.data.features is not None:
        first = (keys.features,)
        yield Job("features", "network", first, (), keys, groups(recipe)[0])
    for group in groups(recipe):
        yield from _jobs_of_group(keys, group, first, keep_models)


def _jobs_of_group(
    keys: Keys, group: Group, first: tuple[str, ...], keep_models: bool
) -> Iterator[Job]:
    recipe, place = keys.recipe, f"(poison {group.poison_budget:g}, seed {group.seed})"
    if recipe.attack.crafted:
        clean, dose = keys.clean(group.seed), keys.dose(group)
        yield Job("train", f"clean model {place}", (clean,), first, keys, group)
        yield Job("craft", f"poisons {place}", (dose,), (*first, clean), keys, group)
        first = (*first, dose)
    for role in trained(recipe):
        model = keys.model(role, group)
        yield Job("train", f"{role} model {place}", (model,), first, keys, group, role)
    for role, request in trained_in_part(recipe):
        model, what = keys.model(role, group, request), f"{role} model {_told(request)}{place}"
        yield Job("train", what, (model,), first, keys, group, role, request=request)
    for repeat in repeated(recipe, group):
        yield from _jobs_of_repeat(keys, repeat, first)
    for rows in _by_model(cells(recipe, group)):
        if rows[0].role == Role.UPDATED:
            yield _unlearn_job(keys, rows, first, place, keep_models)
        else:
            yield _score_job(keys, rows, first, place)


def _by_model(rows: Iterable[Cell]) -> list[tuple[Cell, ...]]:
    """The cells of one call of an unlearner together: all its budgets, its requests in turn, and states."""
    together: dict[Any, list[Cell]] = {}
    for cell in rows:
        number = None if cell.role == Role.UPDATED else cell.request.number
        model = (cell.role, cell.entry, cell.trial, cell.request.known, number)
        together.setdefault(model, []).append(cell)
    return [tuple(of_model) for of_model in together.values()]


def _told(request: Request) -> str:
    return "".join(f"{name} {value:g} " for name, value in request.key.items())


def _jobs_of_repeat(keys: Keys, group: Group, first: tuple[str, ...]) -> Iterator[Job]:
    """A further pair of models, and the answers of the first after each unlearner."""
    place = f"(poison {group.poison_budget:g}, seed {group.seed}, repeat {group.repeat})"
    for role in PAIR:
        model = keys.model(role, group)
        makes = (model, keys.margins(model))
        yield Job("train", f"{role} model {place}", makes, first, keys, group, role)
    needs = (*first, keys.model(Role.INITIAL, group))
    models = dict.fromkeys(cell.model for cell in cells(keys.recipe, group))
    for rows in _by_model(cell for cell in models if cell.role == Role.UPDATED):
        margins = tuple(keys.margins(keys.measured(cell)) for cell in rows)
        what = f"{keys.unlearner(rows[0]).name} {place}"
        yield Job("unlearn", what, margins, needs, keys, group, Role.UPDATED, rows)


def _repeats_of(keys: Keys, rows: tuple[Cell, ...]) -> tuple[str, ...]:
    """Answers of the models that repeat those of `rows`, and of the pairs that they are compared with."""
    if not keys.recipe.repeats:
        return ()
    ends = (cell for cell in cells(keys.recipe, rows[0].group) if cell.role in PAIR)
    each = (
        key
        for cell in (*ends, *rows)
        if cell.role in (*PAIR, Role.UPDATED)
        for key in keys.every_margins(cell)
    )
    return tuple(dict.fromkeys(each))


def _score_job(keys: Keys, rows: tuple[Cell, ...], first: tuple[str, ...], place: str) -> Job:
    # The initial model is needed always: what a model spent is told as a share of its training, and the
    # way to the retrained one begins at it.
    group, role, request = rows[0].group, rows[0].role, rows[0].request
    initial, retrained = keys.model(Role.INITIAL, group), keys.model(Role.RETRAINED, group)
    model, twin = keys.model(role, group, request), keys.twin(role, group, request)
    beside = [] if role in UNTREATED else [retrained]
    beside += [] if twin is None else [twin]
    beside += [keys.model(other, group) for other in compared(keys.recipe)]
    # Each once: `model` may be one of the others.
    needs = tuple(dict.fromkeys((*first, initial, *beside, model, *_repeats_of(keys, rows))))
    makes = tuple(keys.row(cell) for cell in rows)
    what = f"{role} model {_told(request)}{place}"
    return Job("score", what, makes, needs, keys, group, role, rows, request)


def _unlearn_job(
    keys: Keys, rows: tuple[Cell, ...], first: tuple[str, ...], place: str, keep_models: bool
) -> Job:
    group, unlearner, request = rows[0].group, keys.unlearner(rows[0]), rows[0].request
    arms = keys.arms(unlearner, request)
    makes = tuple(keys.row(cell) for cell in rows)
    if keep_models:
        itself = [cell for cell in rows if not cell.state]
        makes += tuple(
            keys.updated(group, unlearner, cell.budget, role, cell.request)
            for role in arms
            for cell in itself
        )
    roles = dict.fromkeys((*arms, Role.RETRAINED, *compared(keys.recipe)))
    models = (keys.model(role, group) for role in roles)
    needs = (*first, *models, *_repeats_of(keys, rows))
    what = f"{unlearner.name} {_told(request) if request.of == 1 else ''}{place}"
    return Job("unlearn", what, makes, needs, keys, group, Role.UPDATED, rows, request)


def passes(job: Job, data: Dataset) -> dict[str, float]:
    """What a job is expected to cost, in sample passes (training = 3 a sample), by kind of work."""
    recipe = job.recipe
    kept, poisons = kept_count(recipe, data), poison_count(recipe, job.group.poison_budget, data)
    full = 3.0 * recipe.training.epochs / recipe.training.shards  # a pass runs every member
    held_out = len(data.train) - kept
    tests = len(data.test)
    work = work_of(recipe.attack, poisons, tests)
    answered = poisons if job.group.repeat else work.passes + tests + poisons + held_out
    measured = len(job.cells) * answered
    measured += sum(3.0 * held_out * (passes_of(cell.state or "") or 0) for cell in job.cells)
    if job.kind == "features":  # done before all that is weighed; `explain` times its network
        return {"features": 0.0}
    if job.kind == "craft":
        return {"craft": work.steps * work.each}
    if job.kind == "train":
        samples: dict[Role | None, int] = {
            None: kept,
            **dict.fromkeys(UNTREATED, kept + work.added),
        }
        asked = job.request.count(poisons)
        return {"train": full * samples.get(job.role, kept + work.added - asked)}
    if job.kind == "score":
        return {"score": measured}
    assert job.unlearner is not None
    # The smaller budgets of an anytime method lie on the way to its largest.
    compute = max(job.budgets) if job.passes_smaller_budgets else sum(job.budgets)
    compute *= len(job.arms)
    return {"unlearn": compute * full * kept, "score": measured}
