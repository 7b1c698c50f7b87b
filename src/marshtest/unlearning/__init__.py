"""The unlearners, by the name that a recipe gives them."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.imports import check_spec
from marshtest.unlearning.base import Custom, Unlearner
from marshtest.unlearning.gradient_ascent import GradientAscent, NegGradPlus, NegGradPlusRepository
from marshtest.unlearning.gradient_descent import GradientDescent, NoisyGradientDescent
from marshtest.unlearning.last_layers import CFk, EUk
from marshtest.unlearning.outside import Outside
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
    Outside,
)
UNLEARNERS: dict[str, type[Unlearner]] = {cls.model_fields["name"].default: cls for cls in _ALL}

Given = str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Callable[..., Any]


def parse_trials(given: Given) -> tuple[Unlearner, ...]:
    """One entry of a recipe's `unlearners`: a name, a mapping, or a Python callable; nothing is imported.

    A list given for a hyper-parameter is a search: the entry becomes one trial a combination.

    Raises:
        MarshtestError: no unlearner, or a bad hyper-parameter.
    """
    if isinstance(given, Unlearner):
        return (given,)
    if isinstance(given, str):
        return (_parse({"name": given}),)
    if isinstance(given, Mapping):
        return tuple(map(_parse, _combinations(given)))
    if callable(given):
        return (Custom.wrap(given),)
    if not isinstance(given, Sequence) or not given:
        raise _misshapen(given)
    return tuple(_trial(trial) for trial in given)


def _combinations(given: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Each hyper-parameter's values, in every combination."""
    axes = [value if isinstance(value, list) else [value] for value in given.values()]
    for key, values in zip(given, axes, strict=True):
        if not values:
            raise MarshtestError(
                f"unlearners.{given.get('name')}.{key}: holds no value. Give some, or leave the key out."
            )
    for combination in itertools.product(*axes):
        yield dict(zip(given, combination, strict=True))


def _trial(given: Any) -> Unlearner:
    """One of the trials that a search was stored as."""
    if isinstance(given, Unlearner):
        return given
    if not isinstance(given, Mapping):
        raise _misshapen(given)
    return _parse(given)


def _misshapen(given: Any) -> MarshtestError:
    return MarshtestError(
        f"unlearners: an entry is a name, a mapping with a name, or a list of such mappings. Got {given!r}."
    )


def _parse(values: Mapping[str, Any]) -> Unlearner:
    name = values.get("name")
    if not isinstance(name, str):
        raise _misshapen(dict(values))
    if ":" in name:
        check_spec(name, "unlearners")
        if "options" in values:  # in full, as recipes are stored
            return Custom.parse(values, "unlearners")
        return Custom(name=name, options={k: v for k, v in values.items() if k != "name"})
    if name not in UNLEARNERS:
        raise MarshtestError(
            f"unlearners: {unknown('unlearner', name, UNLEARNERS)} Or one of yours, 'pkg.mod:name'."
        )
    return UNLEARNERS[name].parse(values, f"unlearners.{name}")
