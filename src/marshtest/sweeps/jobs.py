"""Jobs: what is scheduled, and what each makes and needs."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from marshtest.data.samples import Dataset
from marshtest.experiment.cells import Group, cells, groups
from marshtest.experiment.protocol import kept_count, poison_count
from marshtest.experiment.recipe import Recipe
from marshtest.experiment.roles import UNTREATED, Role, measured, trained
from marshtest.sweeps.keys import Keys
from marshtest.unlearning import Unlearner


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        kind: as in marshtest.sweeps.settings.
        what: which of its kind, for people.
        makes: keys of the stages that it records.
        needs: keys of those that must be recorded before.
        keys, group: of the recipe that it belongs to, and where in it.
        role: of the model that is trained or scored; None of the clean one that crafting starts from.
        budgets: of the scores that it makes, in the order of `makes`.
    """

    kind: str
    what: str
    makes: tuple[str, ...]
    needs: tuple[str, ...]
    keys: "Keys" = field(repr=False)
    group: Group
    role: Role | None = None
    unlearner: Unlearner | None = None
    budgets: tuple[float, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """What it belongs to."""
        return self.keys.recipe

    @property
    def label(self) -> str:
        """What is done, in words."""
        return f"{self.kind} {self.what}"


@dataclass(frozen=True)
class Line:
    """A row to be: where it stands in the recipe, and the key of its score."""

    key: str
    entry: int


def lines(keys: Keys, group: Group) -> Iterator[Line]:
    """The rows of a group, in their order."""
    for cell in cells(keys.recipe, group):
        if cell.role == Role.UPDATED:
            unlearner = keys.recipe.unlearners[cell.entry][cell.trial]
            model = keys.updated(group, unlearner, cell.budget)
        else:
            model = keys.model(cell.role, group)
        yield Line(keys.score(model), cell.entry)


def jobs(keys: Keys, *, keep_models: bool) -> Iterator[Job]:
    """All jobs of a recipe, each behind those that it needs.

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
    recipe = keys.recipe
    of = f"(poison {group.poison_budget:g}, seed {group.seed})"
    if recipe.attack.crafted:
        clean, dose = keys.clean(group.seed), keys.dose(group)
        yield Job("train", f"clean model {of}", (clean,), first, keys, group)
        yield Job("craft", f"poisons {of}", (dose,), (*first, clean), keys, group)
        first = (*first, dose)
    initial, retrained = keys.model(Role.INITIAL, group), keys.model(Role.RETRAINED, group)
    for role in trained(recipe):
        model = keys.model(role, group)
        yield Job("train", f"{role} model {of}", (model,), first, keys, group, role)
    for role in measured(recipe):
        model, twin = keys.model(role, group), keys.twin(role, group)
        beside = [] if role in UNTREATED else [retrained]
        beside += [] if twin is None else [twin]
        needs = tuple(dict.fromkeys((*first, initial, *beside, model)))
        yield Job("score", f"{role} model {of}", (keys.score(model),), needs, keys, group, role)
    for trial in (trial for trials in recipe.unlearners for trial in trials):
        arms, budgets = keys.arms(trial), recipe.budgets
        models = [[keys.updated(group, trial, of, role) for of in budgets] for role in arms]
        made = tuple(keys.score(model) for model in models[0])
        if keep_models:
            made += tuple(itertools.chain(*models))
        starts = tuple(keys.model(role, group) for role in arms)
        needs = (*first, *starts, retrained)
        what = f"{trial.name} {of}"
        yield Job("unlearn", what, made, needs, keys, group, Role.UPDATED, trial, tuple(budgets))


def passes(job: Job, data: Dataset) -> dict[str, float]:
    """What a job is expected to cost, in sample passes (training = 3 a sample), by kind of work."""
    recipe = job.recipe
    kept, poisons = kept_count(recipe, data), poison_count(recipe, job.group.poison_budget, data)
    full = 3.0 * recipe.training.epochs
    held_out = len(data.train) - kept
    tests = len(data.test)
    measured = recipe.attack.passes(poisons, tests) + tests + poisons + held_out
    if job.kind == "features":
        return {"features": 0.0}
    if job.kind == "craft":
        steps, each = recipe.attack.crafting(poisons)
        return {"craft": steps * each}
    if job.kind == "train":
        added = recipe.attack.added(poisons)
        samples: dict[Role | None, int] = {None: kept, **dict.fromkeys(UNTREATED, kept + added)}
        return {"train": full * samples.get(job.role, kept + added - poisons)}
    if job.kind == "score":
        return {"score": measured}
    assert job.unlearner is not None
    share = max(job.budgets) if job.unlearner.anytime else sum(job.budgets)
    share *= len(job.keys.arms(job.unlearner))
    return {"unlearn": share * full * kept, "score": len(job.budgets) * measured}
