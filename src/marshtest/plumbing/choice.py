"""Classes that a recipe names: one of the package by a word, a user's by "pkg.mod:Class".

The fields of a class are the options that a recipe may set. Reading a recipe imports no user's code: until
`imported` is called, a stand-in holds the name and the options. The digest of a user's class is stored with
its options, as `source`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

from pydantic import (
    ConfigDict,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.identity import digest, load_same, name_of
from marshtest.plumbing.imports import check_spec
from marshtest.plumbing.settings import Settings


class Choice(Settings):
    """Base of the classes that a recipe can name."""

    name: str
    _source: str = PrivateAttr("")  # digest of a user's class; "" for the package's own

    @model_serializer(mode="wrap")
    def _with_source(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        # In the recipe's hash too: rows of one version of a user's class are never taken for another's.
        return values | ({"source": self._source} if self._source else {})

    def imported(self) -> Self:
        """These settings, ready for use; a stand-in imports the class that it stands for."""
        return self


class StandIn(Choice):
    """The name and the options of a user's class that has not been imported yet."""

    model_config = ConfigDict(extra="allow")  # which options there are, the class will say
    source: str = ""  # the digest that the recipe was stored with; "" in a new recipe


def is_foreign(choice: Choice) -> bool:
    """Whether settings are of a user's class, not of the package's."""
    return bool(choice._source)


C = TypeVar("C", bound=Choice)


@dataclass(frozen=True)
class Choices(Generic[C]):
    """The classes that one key of a recipe chooses from."""

    kind: str  # what the classes are, in words, such as "attack"
    base: Any  # type[C], which may be abstract: what each of them extends
    shipped: Mapping[str, type[C]]  # the classes of the package, by name
    stand_in: Callable[[Mapping[str, Any], str], C]  # from a name and options, and where
    # what each class must define beside methods: types of its attributes, by name
    needed: Mapping[str, Any] = field(default_factory=dict)

    def parse(self, value: Any, where: str) -> C:
        """Settings from a name, a mapping of a name and options, a class, or an instance.

        Raises:
            MarshtestError: the name is unknown, the class is no such class, or an option is bad.
        """
        if isinstance(value, self.base):
            # An instance that a user made in Python does not have the digest of its class yet.
            ready = value._source or isinstance(value, StandIn) or type(value) in self._names
            return value if ready else self._from_class(type(value), dict(value), where)
        values = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = values.get("name")
        if inspect.isclass(name):
            return self._from_class(name, values, where)
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
        """Import the user's class that a stand-in names, and make settings of it.

        Raises:
            MarshtestError: the class cannot be imported, has changed since the recipe was stored, or does
                not take the options.
        """
        mend = f"Give that class: {where}={{'name': Class, …}}."
        cls, _ = load_same(values["name"], values.get("source", ""), where, mend)
        return self._from_class(cls, {k: v for k, v in values.items() if k != "source"}, where)

    @property
    def _names(self) -> dict[Any, str]:
        return {cls: name for name, cls in self.shipped.items()}

    def _from_class(self, cls: Any, values: Mapping[str, Any], where: str) -> C:
        """Settings from a class itself; those of a user's class carry its digest."""
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
        for name, kind in self.needed.items():
            _refuse_another_type(getattr(settings, name), kind, f"{where}: {name_of(cls)}.{name}")
        return settings


def _refuse_another_type(value: Any, kind: Any, where: str) -> None:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = "".join(f".{part}" for part in fault["loc"] if part != "[key]")
        words = str(fault.get("ctx", {}).get("error", fault["msg"])).rstrip(".")
        raise MarshtestError(f"{where}{place}: {words}. Got {fault['input']!r}.") from None
