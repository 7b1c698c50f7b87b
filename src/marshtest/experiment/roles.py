"""The roles that models play in an experiment, and the names that rows give to models nobody unlearned."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol


class Role(StrEnum):
    """What a model is in an experiment; the value of a row's `role`."""

    INITIAL = "initial"  # trained on the poisoned data
    TWIN = "twin"  # the same, on the base samples in the poisons' places: the initial model's clean twin
    SHUFFLED = "shuffled"  # the same, on the poisons' perturbations in random order
    RETRAINED = "retrained"  # trained on the retain set: the reference
    REFERENCE = "reference"  # the same, by another seed: the retrained model's clean twin
    UPDATED = "updated"  # after unlearning


UNTREATED = (Role.INITIAL, Role.TWIN, Role.SHUFFLED)  # from which nothing was taken
TWINS = {
    Role.INITIAL: Role.TWIN,
    Role.SHUFFLED: Role.TWIN,
    Role.RETRAINED: Role.REFERENCE,
}  # by role, that of the clean twin
ROW_NAMES = {  # in the rows' column `unlearner`, of models that no unlearner made
    Role.INITIAL: "none",
    Role.SHUFFLED: "shuffled",
    Role.RETRAINED: "retrain (full)",
    Role.REFERENCE: "retrain (full)",
}


class _Attack(Protocol):
    @property
    def needs_twin(self) -> bool: ...

    @property
    def has_control(self) -> bool: ...


class Roles(Protocol):
    """What decides which models an experiment trains."""

    @property
    def attack(self) -> _Attack:
        """Whether its effect is compared with that of a clean twin, and whether it has a blind control."""
        ...

    @property
    def reference(self) -> bool:
        """Whether a second retrained model is asked for in any case."""
        ...


def trained(recipe: Roles) -> Sequence[Role]:
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


def measured(recipe: Roles) -> Sequence[Role]:
    """Roles that have rows: a twin's measures stand in the row of the model that is compared with it."""
    return [role for role in trained(recipe) if role != Role.TWIN]
