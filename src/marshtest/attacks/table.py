"""The attacks, by the name that a recipe gives them; any of yours is "pkg.mod:Class"."""

from typing import Any, ClassVar

from pydantic import InstanceOf

from marshtest.attacks.badnets import BadNets
from marshtest.attacks.base import Attack, Effect, Poisoned
from marshtest.attacks.gaussian import Gaussian
from marshtest.attacks.gradient_canceling import GradientCanceling
from marshtest.attacks.gradient_matching import GradientMatching
from marshtest.attacks.interclass_confusion import InterclassConfusion
from marshtest.attacks.label_flip import LabelFlip
from marshtest.attacks.mark import Mark
from marshtest.attacks.presentation import Presentation
from marshtest.attacks.trigger_word import TriggerWord
from marshtest.metrics.presentation import Score
from marshtest.plumbing.choice import Choices, StandIn

_ALL: tuple[type[Attack], ...] = (
    Gaussian,
    GradientMatching,
    GradientCanceling,
    TriggerWord,
    InterclassConfusion,
    BadNets,
    LabelFlip,
    Mark,
)
ATTACKS: dict[str, type[Attack]] = {cls.model_fields["name"].default: cls for cls in _ALL}


class ForeignAttack(Attack, StandIn):
    """A user's attack "pkg.mod:Class" before it is imported."""

    presentation: ClassVar[Presentation] = Presentation(  # not known yet
        title="?", kind="?", scores={"unknown": Score(title="?")}
    )

    def imported(self) -> Attack:  # type: ignore[override]
        return CHOICES.imported(self.model_dump(), "attack")

    def poison(self, *args: Any) -> Poisoned:
        raise AssertionError("a recipe is imported before it is run")

    def effect(self, *args: Any) -> Effect:
        raise AssertionError("a recipe is imported before it is run")


CHOICES: Choices[Attack] = Choices(
    "attack", Attack, ATTACKS, ForeignAttack.parse, {"presentation": InstanceOf[Presentation]}
)


def parse_attack(value: Any, where: str = "attack") -> Attack:
    """The attack that a recipe names; see `Choices.parse`. A user's is imported by `imported`."""
    return CHOICES.parse(value, where)
