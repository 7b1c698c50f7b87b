"""The attacks, by the name that a recipe gives them."""

from collections.abc import Mapping
from typing import Any

from marshtest.attacks.base import Attack, Effect, Poisoned
from marshtest.attacks.gaussian import Gaussian
from marshtest.errors import MarshtestError, unknown

__all__ = ["ATTACKS", "Attack", "Effect", "Gaussian", "Poisoned", "parse_attack"]

ATTACKS: dict[str, type[Attack]] = {"gaussian": Gaussian}


def parse_attack(value: str | Mapping[str, Any]) -> Attack:
    """The attack that a recipe names, by a name alone or with its options."""
    values = {"name": value} if isinstance(value, str) else dict(value)
    name = str(values.get("name"))
    if name not in ATTACKS:
        raise MarshtestError(f"attack.name: {unknown('attack', name, ATTACKS)}")
    return ATTACKS[name].parse(values, "attack")
