"""YAML files that describe what to run, shipped or a user's, and changes to their raw values."""

import copy
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from marshtest.errors import MarshtestError, unknown

KINDS = {"recipes": "recipe", "hypotheses": "hypothesis", "sweeps": "sweep"}  # folders, and names
COMMANDS = {"recipes": "run", "hypotheses": "hypotheses", "sweeps": "sweep"}
DATA_SETS = ("cifar10", "digits", "imdb", "tensors")  # names; anything else after `data=` is a path


def shipped(kind: str = "recipes") -> dict[str, str]:
    """Text of each recipe, hypothesis or sweep that ships with the package, by name."""
    folder = resources.files("marshtest") / kind
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    return {file.name.removesuffix(".yaml"): file.read_text() for file in sorted(files, key=str)}


def read_yaml(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str], kind: str
) -> dict[str, Any]:
    """The raw values of a recipe, hypothesis or sweep, overrides applied."""
    values = _read(source, kind)
    for override in overrides:
        set_key(values, *parse_override(override))
    return values


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of "key.sub=value", the value in YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise MarshtestError(f"{override!r}: an override has the form key=value or key.sub=value.")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise MarshtestError(f"{override!r}: the value is not YAML.") from None


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set "key.sub" of the raw values; a section's name alone is short for its `name`.

    For `data` it is also short for its `path`.
    """
    *sections, last = key.split(".")
    for name in sections:
        values = _section(values, name, key)
    if last == "data" and isinstance(value, str):
        _section(values, "data", key)["name" if value in DATA_SETS else "path"] = value
    elif isinstance(values.get(last), dict) and isinstance(value, str):
        values[last] = {"name": value}
    else:
        values[last] = value


def _read(source: str | Path | Mapping[str, Any], kind: str) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return {"name": "unnamed", **copy.deepcopy(source)}
    known = shipped(kind)
    text = known.get(str(source))
    if text is None:
        path = Path(source)
        for other in KINDS.keys() - {kind}:
            if str(source) in shipped(other):
                raise MarshtestError(
                    f"{source}: is a {KINDS[other]}, not a {KINDS[kind]}. "
                    f"Use `marshtest {COMMANDS[other]} {source}`."
                )
        if not path.is_file():
            raise MarshtestError(
                f"{unknown(KINDS[kind], str(source), known)} Or give the path of a YAML file."
            )
        text = path.read_text()
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MarshtestError(f"{source}: not YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(values, dict):
        raise MarshtestError(f"{source}: a {KINDS[kind]} is a mapping of keys to values.")
    return {"name": Path(source).stem, **values}


def _section(values: dict[str, Any], name: str, key: str) -> dict[str, Any]:
    """The mapping below a key of the raw values; a bare name becomes one."""
    section = values.setdefault(name, {})
    if isinstance(section, str):
        section = values[name] = {"name": section}
    if not isinstance(section, dict):
        raise MarshtestError(f"{key}: {name} has no keys below it.")
    return section
