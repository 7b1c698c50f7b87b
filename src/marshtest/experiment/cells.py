"""Which rows a recipe gives: the one list that jobs, rows and reports follow."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from marshtest.experiment.roles import ROW_NAMES, UNTREATED, Role
from marshtest.plumbing.derived import derive

if TYPE_CHECKING:  # rows are listed without torch
    from marshtest.experiment.recipe import Recipe
    from marshtest.experiment.recorded import Recorded, RecordedNamed
    from marshtest.unlearning import Unlearner

Design: TypeAlias = "Recipe | Recorded"  # both say which rows a recipe gives

# The columns that tell a model from all others. `entry` is not among them: it is an index into one recipe's
# `unlearners`, and recipes number them differently.
CELL = ["poison_budget", "seed", "role", "unlearner", "hyperparameters", "budget"]


@dataclass(frozen=True)
class Group:
    """One poison budget and seed, which have one forget set.

    Attributes:
        repeat: number of a further pair of models with that forget set; 0 of those that have rows.
    """

    poison_budget: float
    seed: int
    repeat: int = 0

    @property
    def name(self) -> str:
        """How the names of its files begin."""
        return f"{self.poison_budget:g}-{self.seed}"

    @property
    def draws(self) -> int:
        """The seed of its steps' generators."""
        # With the seed alone, all its poison budgets would poison and train by the same draws, and
        # agree with each other by more than their poison.
        repeat = ("repeat", self.repeat) if self.repeat else ()
        return derive(self.seed, self.poison_budget, *repeat)

    @property
    def first(self) -> "Group":
        """The group whose forget set this one has."""
        return replace(self, repeat=0)


@dataclass(frozen=True)
class Cell:
    """A row to be.

    Attributes:
        group: its poison budget and seed.
        role: of its model.
        unlearner: what the row's column says; the unlearner's name, of an updated model.
        hyperparameters: of the unlearner, in JSON.
        budget: share of the initial training's compute.
        entry: place in the recipe's `unlearners`; -1 of a model that no unlearner made.
        trial: place among that entry's trials.
    """

    group: Group
    role: Role
    unlearner: str
    hyperparameters: str
    budget: float
    entry: int = -1
    trial: int = 0

    @property
    def key(self) -> tuple[float, int, str, str, str, float]:
        """The values of the columns CELL."""
        group = self.group
        beside = (self.role.value, self.unlearner, self.hyperparameters, self.budget)
        return (group.poison_budget, group.seed, *beside)


def trained(recipe: Design) -> Sequence[Role]:
    """Roles of the models that are trained from scratch, the initial one first."""
    twins = recipe.attack.needs_twin
    wanted = {
        Role.INITIAL: True,
        Role.TWIN: twins,
        Role.SHUFFLED: twins and recipe.attack.has_control,
        Role.RETRAINED: True,
        Role.REFERENCE: twins or recipe.reference,
    }
    return [role for role, is_wanted in wanted.items() if is_wanted]


def compared(recipe: "Recipe") -> Sequence[Role]:
    """Roles of the models that a metric compares all others with; none if no metric does."""
    asks = any(metric.compares for metric in recipe.metrics)
    return [Role.INITIAL, Role.RETRAINED, Role.REFERENCE] if asks else []


def measured(recipe: Design) -> Sequence[Role]:
    """Roles that have rows: a twin's measures stand in the row of the model that is compared with it."""
    return [role for role in trained(recipe) if role != Role.TWIN]


def groups(recipe: Design) -> list[Group]:
    """The groups of a recipe, in the order in which they run."""
    seeds = range(recipe.first_seed, recipe.first_seed + recipe.seeds)
    return [Group(share, seed) for share in recipe.poison_budgets for seed in seeds]


def repeated(recipe: "Recipe", group: Group) -> list[Group]:
    """The further pairs of models of a group."""
    return [replace(group, repeat=repeat) for repeat in range(1, recipe.repeats + 1)]


def cells(recipe: Design, group: Group) -> Iterator[Cell]:
    """The rows of a group, in their order: models from scratch, then each unlearner at each budget."""
    for role in measured(recipe):
        # Retraining counts as an unlearner that spends all of the training's compute.
        budget = 0.0 if role in UNTREATED else 1.0
        yield Cell(group, role, ROW_NAMES[role], "{}", budget)
    entries: Sequence[Sequence[Unlearner | RecordedNamed]] = recipe.unlearners
    for entry, trials in enumerate(entries):
        for (place, trial), budget in itertools.product(enumerate(trials), recipe.budgets):
            # Rows are found again by this text, so the order of keys in somebody's YAML must not show.
            values = json.dumps(dict(trial.hyperparameters), sort_keys=True)
            yield Cell(group, Role.UPDATED, trial.name, values, budget, entry, place)
