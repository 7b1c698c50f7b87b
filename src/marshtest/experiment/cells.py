"""Which rows a recipe gives: the one list that jobs, rows and reports follow."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from marshtest.experiment.requests import (
    ALL,
    AXES,
    Place,
    Request,
    axis_of,
    last_request,
    no_request,
    partial_requests,
    place_of,
    requests_of,
)
from marshtest.experiment.roles import ROW_NAMES, TWINS, UNTREATED, Role
from marshtest.experiment.states import ITSELF
from marshtest.plumbing.derived import derive

if TYPE_CHECKING:  # rows are listed without torch
    from marshtest.experiment.recipe import Recipe
    from marshtest.experiment.recorded import Recorded, RecordedNamed
    from marshtest.unlearning import Unlearner

Design: TypeAlias = "Recipe | Recorded"  # both say which rows a recipe gives

# The columns that tell a model from all others. `entry` is not among them: it is an index into one recipe's
# `unlearners`, and recipes number them differently.
CELL = ["poison_budget", "seed", "role", "unlearner", "hyperparameters", "budget"]
STATE = "state"
FURTHER = (*AXES, STATE)  # columns behind them, each only in the rows of recipes that ask for it


def cell_columns(columns: Iterable[Any]) -> list[str]:
    """The columns that tell a model from all others, out of those of its rows."""
    there = set(columns)
    return [*CELL, *(column for column in FURTHER if column in there)]


def further_columns(recipe: Design) -> list[str]:
    """The columns of FURTHER that a recipe's rows have."""
    there = {axis_of(recipe), STATE if recipe.states else None}
    return [column for column in FURTHER if column in there]


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
        request: what was asked for by then.
        place: further columns of the row and their values, of a recipe with an axis more.
    """

    group: Group
    role: Role
    unlearner: str
    hyperparameters: str
    budget: float
    entry: int = -1
    trial: int = 0
    request: Request = ALL
    place: Place = ()

    @property
    def key(self) -> tuple[float | int | str, ...]:
        """The values of the columns CELL, and of further ones."""
        return tuple(self.columns.values())

    @property
    def state(self) -> str | None:
        """The state of the model in which it is measured; None in a recipe without after-care."""
        return next((str(value) for column, value in self.place if column == STATE), None)

    @property
    def model(self) -> "Cell":
        """The cell without its state: one for all states of a model."""
        return replace(self, place=tuple(pair for pair in self.place if pair[0] != STATE))

    @property
    def columns(self) -> dict[str, float | int | str]:
        """The columns that tell its model from all others."""
        group = self.group
        of_group = (group.poison_budget, group.seed)
        beside = (self.role.value, self.unlearner, self.hyperparameters, self.budget)
        return {**dict(zip(CELL, (*of_group, *beside), strict=True)), **dict(self.place)}


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


def trained_in_part(recipe: Design) -> Sequence[tuple[Role, Request]]:
    """Roles of the models that are trained for each request of a part of the poisons."""
    roles = [Role.EXACT, *([TWINS[Role.EXACT]] if recipe.attack.needs_twin else [])]
    return [(role, request) for request in partial_requests(recipe) for role in roles]


def groups(recipe: Design) -> list[Group]:
    """The groups of a recipe, in the order in which they run."""
    seeds = range(recipe.first_seed, recipe.first_seed + recipe.seeds)
    return [Group(share, seed) for share in recipe.poison_budgets for seed in seeds]


def repeated(recipe: "Recipe", group: Group) -> list[Group]:
    """The further pairs of models of a group."""
    return [replace(group, repeat=repeat) for repeat in range(1, recipe.repeats + 1)]


def cells(recipe: Design, group: Group) -> Iterator[Cell]:
    """The rows of a group, in their order: models from scratch, then each unlearner at each budget.

    Each model's states come behind the model itself.
    """
    names = (ITSELF, *recipe.states) if recipe.states else ()
    states: list[Place] = [((STATE, name),) for name in names] or [()]
    for cell in _models(recipe, group):
        yield from (replace(cell, place=cell.place + state) for state in states)


def _models(recipe: Design, group: Group) -> Iterator[Cell]:
    for role in measured(recipe):
        # Retraining counts as an unlearner that spends all of the training's compute.
        budget = 0.0 if role in UNTREATED else 1.0
        asked = no_request(recipe) if role in UNTREATED else last_request(recipe)
        place = place_of(recipe, asked)
        yield Cell(group, role, ROW_NAMES[role], "{}", budget, place=place)
    for request in partial_requests(recipe):
        place = place_of(recipe, request)
        yield Cell(
            group, Role.EXACT, ROW_NAMES[Role.EXACT], "{}", 1.0, request=request, place=place
        )
    entries: Sequence[Sequence[Unlearner | RecordedNamed]] = recipe.unlearners
    for entry, trials in enumerate(entries):
        for number, trial in enumerate(trials):
            # Rows are found again by this text, so the order of keys in somebody's YAML must not show.
            values = json.dumps(dict(trial.hyperparameters), sort_keys=True)
            of_trial = (Role.UPDATED, trial.name, values)
            for budget, request in itertools.product(recipe.budgets, requests_of(recipe)):
                place = place_of(recipe, request)
                yield Cell(group, *of_trial, budget, entry, number, request, place)
