"""What bytecode says: a function's steps, the globals that it reads, the modules that it imports."""

import dis
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from types import CodeType
from typing import Any

GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")
DOCUMENTS = ("STORE_NAME", "__doc__")  # in modules and classes; before it the docstring is loaded
ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")


def codes(code: CodeType) -> Iterator[CodeType]:
    """Give a function's code and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def steps(code: CodeType) -> Iterator[tuple[str, Any]]:
    """Give the operations with their constants and names, without docstrings.

    A docstring would stand among the constants, and shift the numbers of all others.
    """
    found = _instructions(code)
    documents = [place for place, step in enumerate(found) if _as_pair(step) == DOCUMENTS]
    for place, step in enumerate(found):
        if place not in documents and place + 1 not in documents:
            yield _as_pair(step)


def read_globals(code: CodeType) -> list[tuple[str, ...]]:
    """The globals that a function reads, each with the attributes that are read off it at once, sorted."""
    paths = set[tuple[str, ...]]()
    for one in codes(code):
        path: tuple[str, ...] = ()
        for step in _instructions(one):
            if path and step.opname in ATTRIBUTES:
                path = (*path, step.argval)
                continue
            paths.add(path)
            path = (step.argval,) if step.opname in GLOBALS else ()
        paths.add(path)
    return sorted(paths - {()})


def imported(code: CodeType, package: str) -> Iterator[str]:
    """Give full names of what code imports as it runs: modules, and what may be modules within them."""
    for one in codes(code):
        found = _instructions(one)
        for place, step in enumerate(found):
            if step.opname == "IMPORT_NAME":
                # The level and the names behind `from … import` are loaded before.
                level, names = found[place - 2].argval, found[place - 1].argval or ()
                module = resolve_name("." * level + step.argval, package)
                yield module
                yield from (f"{module}.{name}" for name in names)


def spec_of(module: str) -> ModuleSpec | None:
    """The place of a module, found without an import of it or its package; None if it is not there."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # made while running, such as __main__
        return None
    for part in rest:
        if spec is None:
            return None
        top = f"{top}.{part}"
        spec = PathFinder.find_spec(top, spec.submodule_search_locations or [])
    return spec


def _as_pair(step: dis.Instruction) -> tuple[str, Any]:
    spoken = step.opcode in dis.hasconst or step.opcode in dis.hasname
    return step.opname, step.argval if spoken else step.arg


def _instructions(code: CodeType) -> list[dis.Instruction]:
    return [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
