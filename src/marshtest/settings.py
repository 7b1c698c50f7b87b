"""What every configuration object shares: frozen, typed, and closed to unknown keys."""

import importlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from marshtest.errors import MarshtestError, first_line, unknown
from marshtest.foreign import foreign

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
        """Whether the logits of these two have the shape that they must have.

        Outputs beyond the classes are allowed: no sample has their labels, so training closes them.
        """
        return len(logits) == 2 and logits[0] == 2 and logits[1] >= classes


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


def check_spec(spec: str, where: str) -> None:
    """Refuse what names no callable in any module; names such as <lambda> are of callables given in Python.

    Raises:
        MarshtestError: it is not "pkg.mod:name".
    """
    module, _, name = spec.partition(":")
    parts = [*module.split("."), *(part.strip("<>") for part in name.split("."))]
    if not all(part.isidentifier() for part in parts):
        raise MarshtestError(
            f"{where}: {spec!r} names no callable. Give 'pkg.mod:name', a module and a name in it."
        )


def load_object(spec: str, where: str) -> Callable[..., Any]:
    """Import the callable that "pkg.mod:name" names.

    The working folder is searched last, and only if no other place has the module: whatever else lies in
    it is not imported in the place of a library.

    Raises:
        MarshtestError: the module cannot be imported, or has no such callable.
    """
    module_name, _, name = spec.partition(":")
    try:
        with foreign(module_name):
            _find_in_working_folder(module_name.partition(".")[0])
            found: Any = importlib.import_module(module_name)
    except MarshtestError as error:
        why = error.__cause__ or error
        raise MarshtestError(
            f"{where}: cannot import {module_name!r} ({type(why).__name__}: {first_line(why)}). "
            "Mend or install it, or run from the folder that holds it."
        ) from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise MarshtestError(
                f"{where}: module {module_name!r} has no {name!r}.{_elsewhere(found)}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise MarshtestError(f"{where}: {spec!r} is a {type(found).__name__}, not a callable.")
    return found  # type: ignore[no-any-return]


def _find_in_working_folder(package: str) -> None:
    """Append the working folder to the import path if the package is there and nowhere else."""
    folder = os.getcwd()
    known = package in sys.modules or find_spec(package) is not None
    if not known and PathFinder.find_spec(package, [folder]) is not None:
        sys.path.append(folder)


def _elsewhere(module: Any) -> str:
    """A sentence where a file of the module's name in the working folder was passed over."""
    package = module.__name__.partition(".")[0]
    hidden = PathFinder.find_spec(package, [os.getcwd()])
    origin = getattr(module, "__file__", None) or "Python itself"
    if hidden is None or hidden.origin in (None, origin):
        return ""
    return f" It is {origin}, which goes before {hidden.origin}; rename the latter."
