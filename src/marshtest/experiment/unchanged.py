"""Whether a user's code is still what it was when a recipe was read, in a process that imports it anew."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from marshtest.experiment.recipe import ForeignData, Recipe
from marshtest.models.table import Factory
from marshtest.plumbing.choice import Choice, is_foreign
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.identity import digest
from marshtest.plumbing.imports import load_object
from marshtest.unlearning.base import Custom


def refuse_changed(recipe: Recipe) -> None:
    """Raise MarshtestError where a class or function of the user is not the one that the recipe names."""
    for name, code, source in _code_of(recipe):
        if _digest(name, code, source) != source:
            raise MarshtestError(
                f"{name}: its code has changed since the work was planned. Leave it as it is until all is "
                "done, or run the command again."
            )


@cache
def _digest(name: str, code: Any, _: str) -> str:
    # Once a process, before the code first runs: what it then keeps to itself is no change of it.
    return digest(code, name)


def _code_of(recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """Name, code and digest of each part of a recipe that is a user's."""
    unlearners = [trial for trials in recipe.unlearners for trial in trials]
    for part in (recipe.attack, *recipe.metrics, *unlearners):
        if isinstance(part, Custom):
            yield part.name, part.function, part.source
        elif isinstance(part, Choice) and is_foreign(part):
            yield part.name, type(part), part._source
    network = recipe.data.features.model if recipe.data.features is not None else None
    for named in (recipe.model, network, recipe.data):
        if isinstance(named, Factory | ForeignData):
            yield named.name, load_object(named.name, named.name), named.source
