"""The attacks, by the name that a recipe gives them."""

from typing import Any

from marshtest.attacks.base import Attack, CraftingContext, Effect, Knowledge, Poisoned
from marshtest.attacks.gaussian import Gaussian
from marshtest.attacks.gradient_canceling import GradientCanceling
from marshtest.attacks.gradient_matching import GradientMatching
from marshtest.attacks.trigger_word import TriggerWord
from marshtest.plumbing.choice import Choices, StandIn

__all__ = [
    "ATTACKS",
    "Attack",
    "CraftingContext",
    "Effect",
    "ForeignAttack",
    "Gaussian",
    "GradientCanceling",
    "GradientMatching",
    "Knowledge",
    "Poisoned",
    "TriggerWord",
    "parse_attack",
]

_ALL: tuple[type[Attack], ...] = (Gaussian, GradientMatching, GradientCanceling, TriggerWord)
ATTACKS: dict[str, type[Attack]] = {cls.model_fields["name"].default: cls for cls in _ALL}


class ForeignAttack(Attack, StandIn):
    """A user's attack "pkg.mod:Class" before it is imported."""

    def imported(self) -> Attack:  # type: ignore[override]
        return CHOICES.imported(self.model_dump(), "attack")

    def poison(self, *args: Any) -> Poisoned:
        raise AssertionError("a recipe is imported before it is run")

    def effect(self, *args: Any) -> Effect:
        raise AssertionError("a recipe is imported before it is run")


CHOICES: Choices[Attack] = Choices("attack", Attack, ATTACKS, ForeignAttack.parse)


def parse_attack(value: Any, where: str = "attack") -> Attack:
    """The attack that a recipe names; see `Choices.parse`. A user's is imported by `imported`."""
    return CHOICES.parse(value, where)
