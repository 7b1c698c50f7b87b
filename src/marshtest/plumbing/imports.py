"""Imports of what a user names as "pkg.mod:name"."""

import importlib
import os
import re
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any

from marshtest.plumbing.errors import MarshtestError, first_line
from marshtest.plumbing.foreign import foreign


def is_spec(text: str) -> bool:
    """Whether a text is "pkg.mod:name"."""
    return re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", text) is not None


def check_spec(spec: str, where: str) -> None:
    """Refuse a text that is not "pkg.mod:name"; <lambda> and <locals> name callables given in Python."""
    module, _, name = spec.partition(":")
    parts = [*module.split("."), *(part.strip("<>") for part in name.split("."))]
    if not all(part.isidentifier() for part in parts):
        raise MarshtestError(
            f"{where}: {spec!r} names no callable. Give 'pkg.mod:name', a module and a name in it."
        )


def load_object(spec: str, where: str) -> Callable[..., Any]:
    """Import the callable that "pkg.mod:name" names.

    The working folder is searched last, and only if no other place has the module, so that no file in it is
    imported in the place of a library.

    Raises:
        MarshtestError: the module cannot be imported, or has no such callable.
    """
    module_name, _, name = spec.partition(":")
    try:
        with foreign(module_name):
            _find_in_working_folder(module_name.partition(".")[0])
            value: Any = importlib.import_module(module_name)
    except MarshtestError as error:
        cause = error.__cause__ or error  # the module's own fault, not the line that wraps it
        raise MarshtestError(
            f"{where}: cannot import {module_name!r} ({type(cause).__name__}: {first_line(cause)}). "
            "Mend or install it, or run from the folder that holds it."
        ) from None
    for part in name.split("."):
        if not hasattr(value, part):
            raise MarshtestError(
                f"{where}: module {module_name!r} has no {name!r}.{_elsewhere(value)}"
            )
        value = getattr(value, part)
    if not callable(value):
        raise MarshtestError(f"{where}: {spec!r} is a {type(value).__name__}, not a callable.")
    return value  # type: ignore[no-any-return]


def _find_in_working_folder(package: str) -> None:
    """Append the working folder to the import path if the package is there and nowhere else."""
    folder = os.getcwd()
    known = package in sys.modules or find_spec(package) is not None
    if not known and PathFinder.find_spec(package, [folder]) is not None:
        sys.path.append(folder)  # last: a file `random.py` there must not hide the library


def _elsewhere(module: Any) -> str:
    """A sentence for the case that the working folder has a file of the module's name; else empty."""
    package = module.__name__.partition(".")[0]
    hidden = PathFinder.find_spec(package, [os.getcwd()])
    origin = getattr(module, "__file__", None) or "Python itself"
    if hidden is None or hidden.origin in (None, origin):
        return ""
    return f" It is {origin}, which goes before {hidden.origin}; rename the latter."
