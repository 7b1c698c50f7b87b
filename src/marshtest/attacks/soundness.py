"""What a user's attack gives, looked at before anything rests on it: a fault is one line."""

from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from marshtest.attacks.base import Effect, Poisoned
from marshtest.metrics.presentation import Name
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.foreign import foreign

NAME = TypeAdapter[str](Name)


def refuse_another(value: Any, expected: type, method: str, where: str) -> None:
    """Raise MarshtestError where a method returned something else than what it must."""
    if not isinstance(value, expected):
        raise MarshtestError(f"{where}: `{method}` must return {expected.__name__}. Return that.")


def refuse_unsound_poison(poisoned: Any, labels: tuple[int, int] | None, where: str) -> None:
    """Raise MarshtestError where ids, labels, perturbations, figures or history cannot be a poison's.

    Args:
        labels: the least and the largest that a poison may have; None for any.
        where: how a complaint begins.
    """
    refuse_another(poisoned, Poisoned, "poison", where)
    where, ids, added = f"{where}: poison", poisoned.forget_ids, poisoned.perturbations
    if not (isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.ndim == 1 and len(ids)):
        raise MarshtestError(f"{where}: forget_ids must be an int64 tensor [P].")
    if poisoned.labels is not None:
        _refuse_labels(poisoned.labels, len(ids), labels, where)
    if added is not None and not (
        isinstance(added, Tensor) and added.is_floating_point() and len(added) == len(ids)
    ):
        raise MarshtestError(
            f"{where}: perturbations must be a floating-point tensor [{len(ids)}, …]."
        )
    for values in (poisoned.figures, *poisoned.history):
        numbers(values, where)


def _refuse_labels(labels: Any, count: int, bounds: tuple[int, int] | None, where: str) -> None:
    if not (
        isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == (count,)
    ):
        tensor = isinstance(labels, Tensor)
        got = f"{labels.dtype} {list(labels.shape)}" if tensor else type(labels).__name__
        raise MarshtestError(f"{where}: labels must be an int64 tensor [{count}]. Got {got}.")
    least, most = int(labels.min()), int(labels.max())
    if bounds is not None and (least < bounds[0] or most > bounds[1]):
        raise MarshtestError(
            f"{where}: labels must lie in {bounds[0]}..{bounds[1]}. Got {least} to {most}."
        )


def refuse_unsound_effect(effect: Any, where: str) -> None:
    """Raise MarshtestError where ids and scores are not what rows can hold."""
    refuse_another(effect, Effect, "effect", where)
    ids = effect.ids
    if not (isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu"):
        raise MarshtestError(f"{where}: ids of the effect must be an array [P] of whole numbers.")
    for name, values in effect.scores.items():
        is_array = isinstance(values, np.ndarray) and values.shape == ids.shape
        if not (is_array and values.dtype.kind in "iuf"):
            raise MarshtestError(
                f"{where}: score {name!r} must be an array [{len(ids)}] of numbers."
            )
        if np.isinf(values).any():
            raise MarshtestError(f"{where}: score {name!r} is infinite. Give nan for no value.")


def refuse_names(names: Iterable[str], where: str) -> None:
    """Raise MarshtestError where a name is not as columns are named."""
    for name in names:
        try:
            NAME.validate_python(name)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]["msg"]
            raise MarshtestError(f"{where}: {name!r}: {fault}.") from None


def numbers(values: Any, where: str) -> dict[str, Any]:
    """The values as plain numbers, by name.

    Raises:
        MarshtestError: one is no number.
    """
    plain: dict[str, Any] = {}
    with foreign(where):
        for name, value in dict(values).items():
            plain[name] = value.item() if isinstance(value, Tensor | np.generic) else value
    for name, value in plain.items():
        if not isinstance(name, str) or not isinstance(value, Real):
            raise MarshtestError(f"{where}: {name!r} is {value!r}, not a number. Give a number.")
    return plain
