"""Stages: pieces of work named by all that they depend on, so that what is equal is done once.

    features     the data by a network's features, where the recipe asks for them
    clean        the model that crafted attacks start from         one serves all poison budgets of a seed
    dose         the crafted poisons                               other doses are functions of their seed
    initial, twin, shuffled, retrained, reference                  models from scratch
    exact, exact-twin                                              the same, where a request is of a part
    updated      a model after unlearning, a budget                of the initial model, and of its twin
    margins      a repeated model's answers to the forget set
    score        a model's row, scores and shifts, in a state      with the effect on its clean twin

A stage's key is its kind and the hash of what it depends on: of the recipe only that, the keys of the
stages before it, and the algorithm's number. A *job* is what is scheduled: it makes one stage, or, where
an unlearner's smaller budgets lie on the way to its largest, the updated models of all budgets and their
scores.
"""

from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from marshtest.experiment.cells import Cell, Group, repeated
from marshtest.experiment.guarded import trigger_of
from marshtest.experiment.recipe import Recipe
from marshtest.experiment.requests import ALL, Request
from marshtest.experiment.roles import TWINS, Role
from marshtest.plumbing.derived import hashed
from marshtest.sweeps.ledger import ALGORITHM, algorithm
from marshtest.unlearning import Unlearner, looks_back


class Keys:
    """The keys of one recipe's stages.

    Args:
        content: digest of data that the recipe does not determine.
    """

    def __init__(self, recipe: Recipe, content: str | None = None) -> None:
        self.recipe, self.content = recipe, content
        of_models = {"model", "training", "device", "deterministic"}
        values = recipe.model_dump(mode="json", include=of_models)
        data = recipe.data.model_dump(mode="json", exclude={"path"})
        measured_by = recipe.attack.model_dump(mode="json") | (
            {"tf32": True} if recipe.tf32 else {}
        )
        # Fields that only the scoring reads: with others, poisons and models serve again.
        scoring = (*recipe.attack.scoring, "tf32")
        made_by = {k: v for k, v in measured_by.items() if k not in scoring}
        # Texts are read for a trigger: all that hold it are kept.
        trigger = trigger_of(recipe.attack)
        read_for = None if trigger is None else asdict(trigger)
        # Held-out samples are taken from the features, and change none of them.
        seen = {k: v for k, v in data.items() if k != "validation"}
        exactly = ["deterministic"] if recipe.deterministic else []
        self._features = hashed([seen, content, recipe.device, *exactly])
        self._world = hashed([values, data, content, read_for])
        self._made_by, self._measured_by = hashed(made_by), hashed(measured_by)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells a run of the recipe from others."""
        return {"recipe": self.recipe.hash, "data": self.content}

    @cached_property
    def features(self) -> str:
        """The key of the data by features."""
        return _key("features", of=self._features)

    def clean(self, seed: int) -> str:
        """The key of a seed's clean model."""
        return _key("clean", world=self._world, seed=seed)

    def dose(self, group: Group) -> str:
        """The key of a group's poisons."""
        share, seed, code = group.poison_budget, group.seed, algorithm(self.recipe.attack.name)
        return _key("dose", code, world=self._world, attack=self._made_by, share=share, seed=seed)

    def model(self, role: Role, group: Group, request: Request = ALL) -> str:
        """The key of a model from scratch."""
        # Named only where there are any: keys are older than repeats.
        repeat: dict[str, Any] = {"repeat": group.repeat} if group.repeat else {}
        return _key(role, dose=self.dose(group), **repeat, **request.key)

    def updated(
        self,
        group: Group,
        unlearner: Unlearner,
        budget: float,
        role: Role = Role.INITIAL,
        request: Request = ALL,
    ) -> str:
        """The key of a model after unlearning, from the model of `role`."""
        # Named only if it is not the default: keys are older than the field.
        unit = self.recipe.budget_unit
        in_unit: dict[str, Any] = {} if unit == "compute" else {"unit": unit}
        by, initial = unlearner.model_dump(mode="json"), self.model(role, group)
        return _key("updated", initial=initial, by=by, budget=budget, **in_unit, **request.key)

    def score(self, model: str, state: str | None = None) -> str:
        """The key of a model's measures in a state; its clean twin is determined by it."""
        # As above: without metrics the key is what it was before there were any.
        metrics = [metric.model_dump(mode="json") for metric in self.recipe.metrics]
        beside: dict[str, Any] = {"metrics": metrics} if metrics else {}
        beside |= {"state": state} if state else {}
        beside |= {"repeats": self.recipe.repeats} if self.recipe.repeats else {}
        return _key("score", model=model, attack=self._measured_by, **beside)

    def margins(self, model: str) -> str:
        """The key of a repeated model's answers to the forget set."""
        return _key("margins", model=model)

    def every_margins(self, cell: Cell) -> tuple[str, ...]:
        """Keys of the answers of the models that repeat a cell's."""
        repeats = (replace(cell, group=group) for group in repeated(self.recipe, cell.group))
        return tuple(self.margins(self.measured(repeat)) for repeat in repeats)

    # What a recipe makes of them

    def unlearner(self, cell: Cell) -> Unlearner:
        """The unlearner whose model a cell measures."""
        return self.recipe.unlearners[cell.entry][cell.trial]

    def measured(self, cell: Cell) -> str:
        """The key of the model that a cell measures."""
        if cell.role == Role.UPDATED:
            unlearner = self.unlearner(cell)
            return self.updated(cell.group, unlearner, cell.budget, request=cell.request)
        return self.model(cell.role, cell.group, cell.request)

    def row(self, cell: Cell) -> str:
        """The key of the score that becomes a cell's row."""
        return self.score(self.measured(cell), cell.state)

    def arms(self, unlearner: Unlearner, request: Request = ALL) -> tuple[Role, ...]:
        """Roles of the models that an unlearner starts from."""
        # One that starts afresh ends with one model in both arms, and need not run twice; unless the
        # retain sets hold poisons or their bases.
        twins = self.recipe.attack.needs_twin and (looks_back(unlearner) or request != ALL)
        return (Role.INITIAL, Role.TWIN) if twins else (Role.INITIAL,)

    def twin(self, role: Role, group: Group, request: Request = ALL) -> str | None:
        """The key of the model from scratch that one of `role` is compared with, if with any."""
        other = TWINS.get(role) if self.recipe.attack.needs_twin else None
        return None if other is None else self.model(other, group, request)


def _key(kind: str, code: int = ALGORITHM, **values: Any) -> str:
    return f"{kind}-{hashed({'kind': kind, 'algorithm': code, **values})}"
