"""The identity of a user's callable: a digest of all that decides what the callable does.

    function     bytecode, constants, defaults, attributes, captured variables, and globals that it names
    object       its class and its state; a bound method or partial: the parts that it is made of
    class        its methods and attributes, and its bases
    module       of the user's own, the names that the function uses of it

Libraries, installed ones and the standard library, count by their names only; but a callable that is itself
installed counts by all source files of its package. Files that a callable opens, environment variables and
names that are looked up while it runs do not count.
"""

import dis
import enum
import functools
import hashlib
import logging
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

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

    Args:
        spec: the callable's name, "pkg.mod:name".
        source: the digest that a recipe was stored with; "" where it was never imported.
        where: begins the line of an error.
        mend: a sentence that says what else the user can do if the callable has changed.

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
        elif isinstance(value, dict | types.MappingProxyType):
            yield from self._mapping(value)
            if type(value) not in (dict, types.MappingProxyType):
                yield self.of(type(value))
        elif _is_tensor(value):
            yield from self._tensor(value)
        else:
            yield from map(self.of, self._state(value))

    def _mapping(self, values: Mapping[Any, Any]) -> Iterator[bytes]:
        # In the order of insertion, which code that runs through the mapping may depend on.
        yield from (self.of(key) + self.of(value) for key, value in values.items())

    def _module(self, module: types.ModuleType) -> Iterator[str | bytes]:
        """A module that is held as a value: its name, and all its content if it is the user's."""
        yield module.__name__
        if self._is_own(module.__name__):
            # All of it, since no bytecode says which parts are used.
            for name, value in sorted(vars(module).items()):
                if not name.startswith("__"):
                    yield name
                    yield self.of(value)

    def _function(self, function: types.FunctionType) -> Iterator[str | bytes]:
        home = str(function.__globals__.get("__name__"))
        if self._is_own(home):
            yield self.of(function.__code__)
            # `helpers.scale` reads a global and an attribute; of a user's module only such names count.
            attributes = _names(function.__code__)
            for name in sorted(_names(function.__code__, "LOAD_GLOBAL", "LOAD_NAME")):
                if name in function.__globals__:
                    yield name
                    yield from self._used(function.__globals__[name], attributes)
            for name in _imported(function):  # these are no globals
                yield from self._used(
                    import_module(name) if self._is_own(name) else name, attributes
                )
        else:
            yield from self._installed(home, function.__qualname__)
        yield self.of((function.__defaults__, function.__kwdefaults__, vars(function)))
        yield from (self.of(_content(cell)) for cell in function.__closure__ or ())

    def _used(self, value: Any, attributes: set[str]) -> Iterator[str | bytes]:
        """A value that a function uses; a module of the user's counts by the attributes that are named."""
        if not isinstance(value, types.ModuleType) or not self._is_own(value.__name__):
            yield self.of(value)
            return
        yield value.__name__
        if id(value) in self._open:  # modules may import each other in a circle
            return
        self._open.append(id(value))
        for name in sorted(attributes & vars(value).keys()):
            yield name
            yield from self._used(vars(value)[name], attributes)
        self._open.pop()

    def _installed(self, module: str, name: str) -> Iterator[str | bytes]:
        """A library's function or class: its name, and the source of its package if the callable's own."""
        yield f"{module}:{name}"
        if module.partition(".")[0] == self.package:
            yield _source_of(self.package)

    def _code(self, code: types.CodeType) -> Iterator[str | bytes]:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        # Without line numbers and the file's name, which change where nothing else does.
        yield code.co_code
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        yield from map(self.of, (counts, names, code.co_consts, code.co_exceptiontable))

    def _class(self, cls: type) -> Iterator[str | bytes]:
        if not self._is_own(cls.__module__):
            yield from self._installed(cls.__module__, cls.__qualname__)
            return
        yield f"{cls.__module__}:{cls.__qualname__}"
        yield from map(self.of, (*cls.__bases__, type(cls)))  # a metaclass decides what calls do
        for name, value in sorted(vars(cls).items()):
            value = _unbound(value)
            if isinstance(value, BESIDE) or name in ADDED or name.startswith("__pydantic"):
                continue
            yield name
            yield self.of(value)

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
        whole = tensor.detach().cpu().contiguous().flatten()
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
        else:
            reduced = value.__reduce_ex__(4)
            if isinstance(reduced, str):  # the name of a global
                yield from (type(value), reduced)
                return
            factory, arguments, *rest = reduced
            # All attributes, since a class may leave some out of what is pickled.
            yield from (factory, arguments, vars(value) if hasattr(value, "__dict__") else None)
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
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # made while running, such as __main__
        return []
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


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _names(code: types.CodeType, *operations: str) -> set[str]:
    """The names in a function's code, of globals and attributes alike, or of some operations alone."""
    if not operations:
        return {name for one in _codes(code) for name in one.co_names}
    steps = (step for one in _codes(code) for step in dis.get_instructions(one))
    return {str(step.argval) for step in steps if step.opname in operations}


def _imported(function: types.FunctionType) -> Iterator[str]:
    """Full names of the modules that a function imports as it runs."""
    for code in _codes(function.__code__):
        steps = list(dis.get_instructions(code))
        for place, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                name = "." * steps[place - 2].argval + step.argval  # the level is loaded before
                yield resolve_name(name, function.__globals__.get("__package__") or "")
