"""The unlearners, by the name that a recipe gives them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from marshtest.errors import MarshtestError, unknown
from marshtest.settings import load_object
from marshtest.unlearning.base import Custom, Unlearner
from marshtest.unlearning.gradient_ascent import GradientAscent, NegGradPlus, NegGradPlusRepository
from marshtest.unlearning.gradient_descent import GradientDescent, NoisyGradientDescent
from marshtest.unlearning.last_layers import CFk, EUk
from marshtest.unlearning.retrain import Retrain
from marshtest.unlearning.scrub import Scrub, ScrubRepository

__all__ = ["UNLEARNERS", "Custom", "Unlearner", "parse_trials"]

_ALL: tuple[type[Unlearner], ...] = (
    Retrain,
    GradientDescent,
    NoisyGradientDescent,
    GradientAscent,
    EUk,
    CFk,
    Scrub,
    ScrubRepository,
    NegGradPlus,
    NegGradPlusRepository,
)
UNLEARNERS: dict[str, type[Unlearner]] = {cls.model_fields["name"].default: cls for cls in _ALL}

Given = str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Callable[..., Any]


def parse_trials(given: Given) -> tuple[Unlearner, ...]:
    """One entry of a recipe's `unlearners`: a name, a mapping, or a Python callable.

    A list given for a hyper-parameter is a search: the entry becomes one trial a combination.
    """
    if isinstance(given, Unlearner):
        return (given,)
    if isinstance(given, str):
        return (_parse({"name": given}),)
    if isinstance(given, Mapping):
        axes = [value if isinstance(value, list) else [value] for value in given.values()]
        return tuple(
            _parse(dict(zip(given, values, strict=True))) for values in itertools.product(*axes)
        )
    if callable(given):
        return (Custom.wrap(given),)
    return tuple(_parse(trial) for trial in given)


def _parse(values: Mapping[str, Any]) -> Unlearner:
    name = str(values.get("name"))
    if "source" in values:  # one of a user's, in a recipe that was stored
        return Custom.parse(values, "unlearners")
    if ":" in name:
        options = {key: value for key, value in values.items() if key != "name"}
        made = Custom.wrap(load_object(name, "unlearners"), **options)
        return made.model_copy(update={"name": name})
    if name not in UNLEARNERS:
        raise MarshtestError(
            f"unlearners: {unknown('unlearner', name, UNLEARNERS)} Or one of yours, 'pkg.mod:name'."
        )
    return UNLEARNERS[name].parse(values, f"unlearners.{name}")
