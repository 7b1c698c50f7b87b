"""Classes that a recipe chooses by name: shipped ones by a word, a user's by "pkg.mod:Class".

The fields of the class are its options. Reading a recipe imports nothing: until `imported` is called, a
stand-in holds what was given. The digest of a user's class is part of what is stored of it, as `source`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from pydantic import ConfigDict, PrivateAttr, SerializerFunctionWrapHandler, model_serializer

from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.identity import digest, load_same, name_of
from marshtest.plumbing.imports import check_spec
from marshtest.plumbing.settings import Settings


class Choice(Settings):
    """Base of what a recipe chooses by name."""

    name: str
    _source: str = PrivateAttr("")  # eight hex digits of what a user's class does

    @model_serializer(mode="wrap")
    def _with_source(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return values | ({"source": self._source} if self._source else {})

    def imported(self) -> Self:
        """The same, ready to be used; only a user's class is imported."""
        return self


class StandIn(Choice):
    """A user's class that a recipe names, before it is imported: its name and its options as given."""

    model_config = ConfigDict(extra="allow")
    source: str = ""  # none before the class was first imported


C = TypeVar("C", bound=Choice)


@dataclass(frozen=True)
class Choices(Generic[C]):
    """The classes that one key of a recipe chooses from.

    Attributes:
        kind: what they are, in words.
        base: the class that all of them extend.
        shipped: those of the package, by name.
        stand_in: stands for a user's class until it is imported.
        needed: class variables that a class must have.
    """

    kind: str
    base: Any  # type[C], which may be abstract
    shipped: Mapping[str, type[C]]
    stand_in: Callable[[Mapping[str, Any], str], C]
    needed: tuple[str, ...] = ()

    def parse(self, value: Any, where: str) -> C:
        """Settings by a name, a mapping with a name and options, a class, or an object of a class.

        Raises:
            MarshtestError: an unknown name, no such class, or a bad option.
        """
        if isinstance(value, self.base):
            ready = value._source or isinstance(value, StandIn) or type(value) in self._names
            return value if ready else self._own(type(value), dict(value), where)
        values = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = values.get("name")
        if inspect.isclass(name):
            return self._own(name, values, where)
        if not isinstance(name, str):
            raise MarshtestError(
                f"{where}: a name, or a mapping with a name, is needed. Got {value!r}."
            )
        if ":" in name:
            check_spec(name, where)
            return self.stand_in(values, where)
        if name not in self.shipped:
            raise MarshtestError(
                f"{where}.name: {unknown(self.kind, name, self.shipped)} Or a class of yours, "
                "'pkg.mod:Class'."
            )
        return self.shipped[name].parse(values, where)

    def imported(self, values: Mapping[str, Any], where: str) -> C:
        """Settings of the user's class that a stand-in's values name.

        Raises:
            MarshtestError: it cannot be imported, is not the class that the recipe was stored with, or does
                not take its options.
        """
        mend = f"Give that class: {where}={{'name': Class, …}}."
        cls, _ = load_same(values["name"], values.get("source", ""), where, mend)
        return self._own(cls, {k: v for k, v in values.items() if k != "source"}, where)

    @property
    def _names(self) -> dict[Any, str]:
        return {cls: name for name, cls in self.shipped.items()}

    def _own(self, cls: Any, values: Mapping[str, Any], where: str) -> C:
        """Settings of a class that is there; a user's carries its digest."""
        if cls in self._names:
            return self.parse({**values, "name": self._names[cls]}, where)
        if not (inspect.isclass(cls) and issubclass(cls, self.base)):
            home = f"{self.base.__module__}.{self.base.__qualname__}"
            raise MarshtestError(f"{where}: {name_of(cls)} is no {self.kind}. Extend {home}.")
        missing = [*sorted(getattr(cls, "__abstractmethods__", ()))]
        missing += [name for name in self.needed if not hasattr(cls, name)]
        if missing:
            raise MarshtestError(f"{where}: {name_of(cls)} lacks {', '.join(missing)}. Define it.")
        settings: C = cls.parse({**values, "name": name_of(cls)}, where)  # type: ignore[attr-defined]
        settings._source = digest(cls, where)
        return settings
