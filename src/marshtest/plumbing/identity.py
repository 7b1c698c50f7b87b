"""The identity of a user's callable: a digest of all that decides what the callable does.

    function     bytecode, constants, defaults, attributes, captured variables, and globals that it names
    object       its class and its state; a bound method or partial: the parts that it is made of
    class        its methods and attributes, and its bases
    module       of the user's own, the names that the function reads off it; all, where it is handed on

A module that a function imports as it runs counts by its source, and by that of the user's modules which it
imports; neither is imported for the digest. Libraries, installed ones and the standard library, count by
their names only; but a callable that is itself installed counts by all source files of its package.
Comments, docstrings, files that a callable opens, environment variables and names that are looked up while
it runs do not count.

What a callable writes into its module as it runs, such as a log or a counter, is part of it: a second run
in the same process is then refused. Keep such things in a file, or within the call.
"""

import copyreg
import dataclasses
import enum
import functools
import hashlib
import logging
import os
import pkgutil
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from marshtest.plumbing.bytecode import imported, read_globals, spec_of, steps
from marshtest.plumbing.errors import MarshtestError, first_line
from marshtest.plumbing.imports import load_object

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
# Entries that Python adds to a class, and that do not decide what the class does.
BESIDE = (types.MemberDescriptorType, types.GetSetDescriptorType, type(NotImplemented))
ADDED = {  # names of entries that Python and libraries add to a class
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__"),
    *("__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl"),
    *("__dataclass_fields__", "__dataclass_params__", "__signature__", "__class_vars__"),
    *("__orig_bases__", "__parameters__"),
}
BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
PYDANTIC_FIELD = (  # what decides the values of a field, of all that is known of it
    *("annotation", "default", "default_factory", "metadata", "validate_default", "discriminator"),
    *("alias", "validation_alias", "serialization_alias", "exclude", "frozen", "init", "kw_only"),
)
CACHED = type(functools.cache(str))
STANDARD_LIBRARY = str(Path(os.__file__).parent)
INSTALLED = {"site-packages", "dist-packages"}


def name_of(function: Callable[..., Any]) -> str:
    """The name "pkg.mod:name" of a callable; for an object, the name of its class."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def digest(function: Callable[..., Any], where: str) -> str:
    """Eight hex digits that two callables share only if they do the same.

    Raises:
        MarshtestError: a part of the callable has no digest, such as an open file or compiled code.
    """
    try:
        if isinstance(function, BUILTIN):
            raise TypeError("it is compiled, and its code cannot be read")
        return _Digest(function).of(function).hex()[:8]
    except RecursionError:
        reason = "it is nested too deeply"
    except Exception as error:  # whatever a user's object raises as its state is asked for
        reason = first_line(error)
    raise MarshtestError(
        f"{where}: {name_of(function)} has no digest ({reason}), without which a change of it would go "
        "unnoticed. Make it a Python function of numbers, texts and tensors, and open files and locks "
        "inside it."
    )


def load_same(spec: str, source: str, where: str, mend: str = "") -> tuple[Callable[..., Any], str]:
    """Import the callable that "pkg.mod:name" names, with the digest of what it does.

    `source` is the digest that a recipe was stored with, "" if the callable was never imported; `mend`
    says what else the user can do if it has changed.

    Raises:
        MarshtestError: the callable cannot be imported, or has changed since the recipe was stored.
    """
    if "<" in spec or spec.startswith("__main__:"):  # <locals>, <lambda>
        raise MarshtestError(
            f"{where}: {spec} was given in Python when this recipe was stored, and cannot be imported. "
            f"{mend}".rstrip()
        )
    function = load_object(spec, where)
    now = digest(function, where)
    if source not in ("", now):
        raise MarshtestError(
            f"{where}: {spec} is not what it was when this recipe was stored (source {source}, now {now}). "
            f"{f'{mend} Or leave' if mend else 'Leave'} out `source` to run it as it is now."
        )
    return function, now


class _Digest:
    """Digests of a callable and its parts; a part within itself counts by how many levels up it stands."""

    def __init__(self, root: Callable[..., Any]) -> None:
        self.package = name_of(root).partition(":")[0].partition(".")[0]
        self._open: list[int] = []
        # Each object is kept with its digest, so that no other object gets its id.
        self._done: dict[int, tuple[bytes, Any]] = {}
        self._read: set[str] = set()  # modules whose source is in the digest already

    def of(self, value: Any) -> bytes:
        """The digest of a value, thirty-two bytes."""
        if type(value) in PLAIN:  # not isinstance: a subclass may hold more than the number
            return _hashed(type(value).__name__, repr(value))
        if id(value) in self._open:
            # Levels, not the id, which would differ from process to process.
            return _hashed("above", str(len(self._open) - self._open.index(id(value))))
        if id(value) not in self._done:
            self._open.append(id(value))
            digested = _hashed(*self._parts(value))
            self._open.pop()
            self._done[id(value)] = digested, value
        return self._done[id(value)][0]

    def _parts(self, value: Any) -> Iterator[str | bytes]:
        """A value's kind, and the digests of its parts."""
        yield type(value).__qualname__
        if isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, types.ModuleType):
            yield from self._module(value)
        elif isinstance(value, logging.Logger):
            yield value.name  # its handlers and levels decide no result
        elif isinstance(value, types.MethodType):
            yield from map(self.of, (value.__func__, value.__self__))
        elif isinstance(value, BUILTIN):
            yield from self._builtin(value)
        elif type(value) in (list, tuple):
            yield from map(self.of, value)
        elif type(value) in (set, frozenset):
            yield from sorted(map(self.of, value))  # processes order a set differently
        elif type(value) in (dict, types.MappingProxyType):
            # In the order of insertion, which code that runs through the mapping may depend on.
            yield from (self.of(key) + self.of(part) for key, part in value.items())
        elif _is_tensor(value):
            yield from self._tensor(value)
        else:
            yield from map(self.of, self._state(value))

    def _module(self, module: types.ModuleType) -> Iterator[str | bytes]:
        """A module that is held as a value: its name, and all its content if it is the user's."""
        yield module.__name__
        if self._is_own(module.__name__):
            # All of it, since no bytecode says which parts are used. Submodules are attributes only after
            # they are imported; their source counts in any case.
            for name, value in sorted(vars(module).items()):
                within = getattr(value, "__name__", "") == f"{module.__name__}.{name}"
                if not name.startswith("__") and not (within and _is_module(value)):
                    yield name
                    yield self.of(value)
            for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
                yield from self._source(f"{module.__name__}.{info.name}")

    def _function(self, function: types.FunctionType) -> Iterator[str | bytes]:
        home = str(function.__globals__.get("__name__"))
        if self._is_own(home):
            yield self.of(function.__code__)
            for name, *attributes in read_globals(function.__code__):
                if name in function.__globals__:
                    yield name
                    yield from self._used(function.__globals__[name], attributes)
            package = function.__globals__.get("__package__") or ""
            for module in imported(function.__code__, package):  # these are no globals
                yield from self._source(module)
        else:
            yield from self._installed(home, function.__qualname__)
        yield self.of((function.__defaults__, function.__kwdefaults__))
        if isinstance(registry := getattr(function, "registry", None), types.MappingProxyType):
            yield self.of(registry)  # of functools.singledispatch, beside which stands a cache
        else:
            yield self.of(vars(function))
            yield from (self.of(_content(cell)) for cell in function.__closure__ or ())

    def _used(self, value: Any, attributes: Sequence[str]) -> Iterator[str | bytes]:
        """A value that a function uses; of a user's module, the attribute that it reads."""
        if not attributes or not _is_module(value) or not self._is_own(value.__name__):
            yield self.of(value)
            return
        name, *rest = attributes
        yield from (value.__name__, name)
        if name in vars(value):
            yield from self._used(vars(value)[name], rest)
        elif spec_of(f"{value.__name__}.{name}"):
            yield from self._used(import_module(f"{value.__name__}.{name}"), rest)
        else:
            yield self.of(vars(value).get("__getattr__"))

    def _source(self, module: str) -> Iterator[str | bytes]:
        """A module that is not imported, the packages around it, and the user's modules that it imports."""
        package, _, _ = module.rpartition(".")
        if package:
            yield from self._source(package)
        yield module
        spec = spec_of(module) if self._is_own(module) and module not in self._read else None
        self._read.add(module)
        if spec is None or not spec.has_location or spec.origin is None:
            return
        content = Path(spec.origin).read_bytes()
        if not spec.origin.endswith(".py"):
            yield content
            return
        code = compile(content, spec.origin, "exec", dont_inherit=True)
        yield self.of(code)
        for name in imported(code, spec.parent or ""):
            yield from self._source(name)

    def _installed(self, module: str, name: str) -> Iterator[str | bytes]:
        """A library's function or class: its name, and the source of its package if the callable's own."""
        yield f"{module}:{name}"
        if module.partition(".")[0] == self.package:
            yield _source_of(self.package)

    def _code(self, code: types.CodeType) -> Iterator[str | bytes]:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        # Without line numbers and the file's name, which change where nothing else does.
        names = (code.co_varnames, code.co_freevars, code.co_cellvars)
        yield from map(self.of, (counts, names, code.co_exceptiontable))
        yield from (_hashed(name, self.of(argument)) for name, argument in steps(code))

    def _class(self, cls: type) -> Iterator[str | bytes]:
        home = cls.__module__
        if not isinstance(home, str) or not self._is_own(home):  # no text in compiled classes
            yield from self._installed(str(home), cls.__qualname__)
            return
        yield f"{cls.__module__}:{cls.__qualname__}"
        yield from map(self.of, (*cls.__bases__, type(cls)))  # a metaclass decides what calls do
        for name, value in sorted(vars(cls).items()):
            value = _unbound(value)
            if isinstance(value, BESIDE) or name in ADDED or name.startswith("__pydantic"):
                continue
            yield name
            yield self.of(value)
        for name, field in getattr(cls, "__pydantic_fields__", {}).items():
            yield name
            yield self.of([getattr(field, part, None) for part in PYDANTIC_FIELD])
        for kind, validators in _validators(cls):
            yield from (kind, self.of(validators))

    def _builtin(self, function: Any) -> Iterator[str | bytes]:
        owner = getattr(function, "__self__", None)
        home = getattr(function, "__module__", None)
        if home and self._is_own(home):
            raise TypeError(f"{function.__qualname__} is compiled, and its code cannot be read")
        yield f"{getattr(function, '__module__', '')}:{function.__qualname__}"
        if owner is not None and not isinstance(owner, types.ModuleType):
            yield self.of(owner)

    def _tensor(self, tensor: Any) -> Iterator[str | bytes]:
        yield f"{tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}"
        whole = tensor.detach().cpu().to_dense().contiguous().flatten()
        # As bytes, since NumPy has no bfloat16. No import of torch: recipes are read without it.
        yield whole.view(sys.modules["torch"].uint8).numpy().tobytes()
        yield self.of(vars(tensor))

    def _state(self, value: Any) -> Iterator[Any]:
        """The parts from which an object would be copied."""
        if isinstance(value, functools.cached_property):
            yield value.func  # beside it stands a lock, up to Python 3.11
        elif isinstance(value, CACHED):  # reduced to its name by Python
            yield from (value.__wrapped__, value.cache_parameters())
        elif isinstance(value, enum.Enum):
            yield from (type(value), value.name, value.value)
        elif isinstance(value, weakref.ref):
            yield from (type(value), value())
        else:
            reduce = copyreg.dispatch_table.get(type(value))
            reduced = reduce(value) if reduce else value.__reduce_ex__(4)
            if isinstance(reduced, str):  # the name of a global
                yield from (type(value), getattr(value, "__module__", None), reduced)
                return
            factory, arguments, *rest = reduced
            # All attributes, since a user's class may leave some out of what is pickled.
            own = hasattr(value, "__dict__") and self._is_own(str(type(value).__module__))
            yield from (factory, arguments, vars(value) if own else None)
            for part in rest:  # iterators are the items of lists and dicts
                yield list(part) if isinstance(part, Iterator) else part

    def _is_own(self, module: str) -> bool:
        """Whether a module is the user's, neither installed nor of the standard library."""
        top = module.partition(".")[0]
        # marshtest counts as installed where it is run from a checkout, too.
        return top != "marshtest" and not _is_installed(top)


def _hashed(*parts: str | bytes) -> bytes:
    hasher = hashlib.sha256()
    for part in parts:
        # A text may hold lone surrogates. With its length no part can pass for two.
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "big") + data)
    return hasher.digest()


@functools.cache
def _is_installed(top: str) -> bool:
    """Whether a top-level module is of the standard library or lies where packages are installed."""
    return any(
        place in ("built-in", "frozen")
        or place.startswith(STANDARD_LIBRARY)
        or INSTALLED.intersection(Path(place).parts)
        for place in _places(top)
    )


def _places(top: str) -> list[str]:
    """Files and folders of a top-level module."""
    spec = spec_of(top)
    return [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin or ""]


@functools.cache
def _source_of(top: str) -> bytes:
    """A digest of all source files of a package, or of a single module."""
    places = [Path(place) for place in _places(top)]
    files = [file for place in places for file in (place, *place.rglob("*.py")) if file.is_file()]
    return _hashed(*(file.read_bytes() for file in sorted(set(files))))


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _unbound(value: Any) -> Any:
    """The functions behind an entry of a class."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return (value.fget, value.fset, value.fdel)
    return value


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _is_module(value: Any) -> bool:
    return isinstance(value, types.ModuleType)


def _validators(cls: type) -> Iterator[tuple[str, Any]]:
    """A pydantic class's validators and serializers by kind: names of methods, and how these are called."""
    decorators = getattr(cls, "__pydantic_decorators__", None)
    for field in dataclasses.fields(decorators) if decorators else ():
        named = getattr(decorators, field.name)
        yield field.name, {name: validator.info for name, validator in named.items()}
