"""What every configuration object shares: frozen, typed, and closed to unknown keys."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from marshtest.errors import MarshtestError, unknown

if TYPE_CHECKING:  # what only describes is read without torch
    from torch import nn


class Settings(BaseModel):
    """Base of recipes, attacks, unlearners and models: the configuration is the object that computes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """Validate `values`; a failure is one line that starts with the key's full name.

        Raises:
            MarshtestError: an unknown key (with the nearest known one) or a bad value.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise MarshtestError(_first_line(cls, error, where)) from None


class ModelSettings(Settings, ABC):
    """How to build a model for inputs of one shape and a number of classes."""

    name: str

    def imported(self) -> Self:
        """The same, told apart by what a factory of the user's does; only a factory is imported."""
        return self

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], classes: int) -> "nn.Module":
        """A freshly initialised module from [B, *input_shape] to logits [B, classes]."""

    def answer(self, model: "nn.Module", input_shape: tuple[int, ...]) -> Any:
        """What a model that was built says to two samples of nothing."""
        import torch

        return model(torch.zeros(2, *input_shape))

    def fits(self, logits: tuple[int, ...], input_shape: tuple[int, ...], classes: int) -> bool:
        """Whether the logits of these two have the shape that they must have."""
        return logits == (2, classes)


def _first_line(cls: type[Settings], error: ValidationError, where: str) -> str:
    """Pydantic's first complaint as one line: key, what is wrong, what was given."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
    if first["type"] == "extra_forbidden":
        owner: Any = cls
        for part in first["loc"][:-1]:
            fields = getattr(owner, "model_fields", {})
            owner = fields[part].annotation if part in fields else [owner, *get_args(owner)][-1]
        known = getattr(owner, "model_fields", cls.model_fields)
        return f"{place}: {unknown('key', str(first['loc'][-1]), known)}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])  # ours, and it names its place
    return f"{place}: {first['msg']}. Got {first['input']!r}."


def load_object(spec: str, where: str) -> Callable[..., Any]:
    """Import the callable that "pkg.mod:name" names.

    Raises:
        MarshtestError: the module cannot be imported, or has no such callable.
    """
    module_name, _, name = spec.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises as it is imported
        raise MarshtestError(
            f"{where}: cannot import {module_name!r} ({type(error).__name__}: {error}). "
            "Mend or install it, or run from the folder that holds it."
        ) from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise MarshtestError(f"{where}: module {module_name!r} has no {name!r}.")
        found = getattr(found, part)
    if not callable(found):
        raise MarshtestError(f"{where}: {spec!r} is a {type(found).__name__}, not a callable.")
    return found  # type: ignore[no-any-return]
