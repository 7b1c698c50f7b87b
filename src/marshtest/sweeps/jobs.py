"""Jobs: what is scheduled, and what each makes and needs."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from marshtest.data.samples import Dataset
from marshtest.experiment.cells import Cell, Group, cells, compared, groups, repeated, trained
from marshtest.experiment.guarded import work_of
from marshtest.experiment.protocol import kept_count, poison_count
from marshtest.experiment.recipe import Recipe
from marshtest.experiment.roles import UNTREATED, Role
from marshtest.sweeps.keys import Keys
from marshtest.unlearning import Unlearner

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
    """

    kind: str
    what: str
    makes: tuple[str, ...]
    needs: tuple[str, ...]
    keys: "Keys" = field(repr=False)
    group: Group
    role: Role | None = None
    cells: tuple[Cell, ...] = ()

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
        """The compute budgets of its cells, in their order."""
        return tuple(cell.budget for cell in self.cells)

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
    for repeat in repeated(recipe, group):
        yield from _jobs_of_repeat(keys, repeat, first)
    # `cells` gives the budgets of one trial one after the other, so equal ones are neighbours.
    by_model = itertools.groupby(cells(recipe, group), lambda c: (c.role, c.entry, c.trial))
    for (role, _, _), of_model in by_model:
        rows = tuple(of_model)
        if role == Role.UPDATED:
            yield _unlearn_job(keys, rows, first, place, keep_models)
        else:
            yield _score_job(keys, rows[0], first, place)


def _jobs_of_repeat(keys: Keys, group: Group, first: tuple[str, ...]) -> Iterator[Job]:
    """A further pair of models, and the answers of the first after each unlearner."""
    place = f"(poison {group.poison_budget:g}, seed {group.seed}, repeat {group.repeat})"
    for role in (Role.INITIAL, Role.RETRAINED):
        model = keys.model(role, group)
        makes = (model, keys.margins(model))
        yield Job("train", f"{role} model {place}", makes, first, keys, group, role)
    needs = (*first, keys.model(Role.INITIAL, group))
    updated = (cell for cell in cells(keys.recipe, group) if cell.role == Role.UPDATED)
    for _, of_model in itertools.groupby(updated, lambda cell: (cell.entry, cell.trial)):
        rows = tuple(of_model)
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


def _score_job(keys: Keys, cell: Cell, first: tuple[str, ...], place: str) -> Job:
    # The initial model is needed always: what a model spent is told as a share of its training, and the
    # way to the retrained one begins at it.
    group, role = cell.group, cell.role
    initial, retrained = keys.model(Role.INITIAL, group), keys.model(Role.RETRAINED, group)
    model, twin = keys.model(role, group), keys.twin(role, group)
    beside = [] if role in UNTREATED else [retrained]
    beside += [] if twin is None else [twin]
    beside += [keys.model(other, group) for other in compared(keys.recipe)]
    # Each once: `model` may be one of the others.
    needs = tuple(dict.fromkeys((*first, initial, *beside, model, *_repeats_of(keys, (cell,)))))
    makes = (keys.score(model),)
    return Job("score", f"{role} model {place}", makes, needs, keys, group, role, (cell,))


def _unlearn_job(
    keys: Keys, rows: tuple[Cell, ...], first: tuple[str, ...], place: str, keep_models: bool
) -> Job:
    group, unlearner = rows[0].group, keys.unlearner(rows[0])
    arms = keys.arms(unlearner)
    makes = tuple(keys.row(cell) for cell in rows)
    if keep_models:
        makes += tuple(
            keys.updated(group, unlearner, cell.budget, role) for role in arms for cell in rows
        )
    roles = dict.fromkeys((*arms, Role.RETRAINED, *compared(keys.recipe)))
    models = (keys.model(role, group) for role in roles)
    needs = (*first, *models, *_repeats_of(keys, rows))
    what = f"{unlearner.name} {place}"
    return Job("unlearn", what, makes, needs, keys, group, Role.UPDATED, rows)


def passes(job: Job, data: Dataset) -> dict[str, float]:
    """What a job is expected to cost, in sample passes (training = 3 a sample), by kind of work."""
    recipe = job.recipe
    kept, poisons = kept_count(recipe, data), poison_count(recipe, job.group.poison_budget, data)
    full = 3.0 * recipe.training.epochs / recipe.training.shards  # a pass runs every member
    held_out = len(data.train) - kept
    tests = len(data.test)
    work = work_of(recipe.attack, poisons, tests)
    measured = poisons if job.group.repeat else work.passes + tests + poisons + held_out
    if job.kind == "features":  # done before all that is weighed; `explain` times its network
        return {"features": 0.0}
    if job.kind == "craft":
        return {"craft": work.steps * work.each}
    if job.kind == "train":
        samples: dict[Role | None, int] = {
            None: kept,
            **dict.fromkeys(UNTREATED, kept + work.added),
        }
        return {"train": full * samples.get(job.role, kept + work.added - poisons)}
    if job.kind == "score":
        return {"score": measured}
    assert job.unlearner is not None
    # The smaller budgets of an anytime method lie on the way to its largest.
    compute = max(job.budgets) if job.unlearner.anytime else sum(job.budgets)
    compute *= len(job.keys.arms(job.unlearner))
    return {"unlearn": compute * full * kept, "score": len(job.cells) * measured}
