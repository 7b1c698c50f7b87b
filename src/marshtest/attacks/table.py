"""The attacks, by the name that a recipe gives them."""

from collections.abc import Mapping
from typing import Any

from marshtest.attacks.base import Attack
from marshtest.attacks.gaussian import Gaussian
from marshtest.attacks.gradient_canceling import GradientCanceling
from marshtest.attacks.gradient_matching import GradientMatching
from marshtest.attacks.trigger_word import TriggerWord
from marshtest.plumbing.errors import MarshtestError, unknown

_ALL: tuple[type[Attack], ...] = (Gaussian, GradientMatching, GradientCanceling, TriggerWord)
ATTACKS: dict[str, type[Attack]] = {cls.model_fields["name"].default: cls for cls in _ALL}


def parse_attack(value: str | Mapping[str, Any], where: str = "attack") -> Attack:
    """The attack that a recipe names, by a name alone or with its options."""
    if not isinstance(value, str | Mapping | Attack):
        raise MarshtestError(
            f"{where}: a name, or a mapping with a name, is needed. Got {value!r}."
        )
    values = {"name": value} if isinstance(value, str) else dict(value)
    name = str(values.get("name"))
    if name not in ATTACKS:
        raise MarshtestError(f"{where}.name: {unknown('attack', name, ATTACKS)}")
    return ATTACKS[name].parse(values, where)
