"""YAML files that describe what to run, shipped or a user's, and changes to their raw values."""

import copy
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from marshtest.plumbing.errors import MarshtestError, unknown

KINDS = {  # folders, and names
    "recipes": "recipe",
    "hypotheses": "hypothesis",
    "sweeps": "sweep",
    "suites": "suite",
}
COMMANDS = {
    "recipes": "run",
    "hypotheses": "study",
    "sweeps": "sweep",
    "suites": "score UNLEARNER --suite",
}
MOST, DEEPEST = 20_000, 50  # values in a YAML file, and how deep they may lie
LARGEST = 10**100  # hexadecimal digits have no end, and Python prints no number of thousands
LONGEST_NAME = 100
NAME_OR_PATH = "name or path"  # key for `data=TEXT`: the settings of the data tell which it is
MORE = "unlearners+"  # key for entries beside those that the recipe lists


def shipped(kind: str = "recipes") -> dict[str, str]:
    """Text of each recipe, hypothesis, sweep or suite that ships with the package, by name."""
    folder = resources.files("marshtest") / "shipped" / kind
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    return {file.name.removesuffix(".yaml"): file.read_text() for file in sorted(files, key=str)}


def read_yaml(source: str | Path | Mapping[str, Any], kind: str, *overrides: str) -> dict[str, Any]:
    """The raw values of a recipe, hypothesis, sweep or suite, with overrides applied.

    `unlearners: "@FILE"` stands for the list in that YAML file. FILE is a path from the recipe's folder, or
    in an override from the current folder. A description says what was changed.
    """
    values = _read(source, kind)
    changes = overriding(overrides)
    for key, value in changes.items():
        set_key(values, key, value)
    tell_changes(values, changes)
    return values


def overriding(overrides: Iterable[str]) -> dict[str, Any]:
    """The keys and values of overrides, in the order of their last mention.

    Of a key given twice the last value counts, but of `unlearners+` all since the last `unlearners`.
    """
    changes: dict[str, Any] = {}
    for key, value in map(parse_override, overrides):
        add_change(changes, key, value)
    return changes


def add_change(changes: dict[str, Any], key: str, value: Any) -> None:
    """Put a change behind all others; `unlearners+` adds to what was added since the last `unlearners`."""
    before = changes.pop(key, [])
    if key == "unlearners":
        changes.pop(MORE, None)
    changes[key] = [*as_list(before), *as_list(value)] if key == MORE else value


def as_list(value: Any) -> list[Any]:
    """A list itself, or one of the value alone."""
    return value if isinstance(value, list) else [value]


def tell_changes(values: dict[str, Any], changes: Iterable[str]) -> None:
    """Add the keys that were changed to the description, if that was not itself written anew."""
    keys = [key for key in changes if key != "name"]
    if keys and "description" not in keys and isinstance(values.get("description"), str):
        values["description"] += f" (changed: {', '.join(keys)})"


def parse_override(override: str) -> tuple[str, Any]:
    """The key and the value of "key.sub=value", where the value is YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise MarshtestError(f"{override!r}: an override has the form key=value or key.sub=value.")
    if key in ("unlearners", MORE) and text.startswith("@"):
        return key, _listed(text, Path())
    return key, parse_yaml(text, repr(_short(override)))


def parse_yaml(text: str | bytes, where: str) -> Any:
    """The value that YAML holds: texts, numbers, truth values, and lists and mappings of them.

    Raises:
        MarshtestError: the text is no YAML in UTF-8 or UTF-16, gives a key twice, holds values of other
            kinds, or is far larger or deeper than any recipe.
    """
    try:
        value = yaml.load(text, Loader=_Loader)  # a safe loader: no tag runs code
    except yaml.reader.ReaderError as error:
        raise MarshtestError(
            f"{where}: is not text in UTF-8 ({error.reason}, at position {error.position}). "
            "Save it as UTF-8."
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-02-30
        if isinstance(error, MarshtestError):
            raise MarshtestError(f"{where}: {error}") from None
        raise MarshtestError(f"{where}: not YAML ({' '.join(str(error).split())}).") from None
    except RecursionError:
        raise MarshtestError(f"{where}: is nested too deeply. Flatten it.") from None
    _check(value, where)
    return value


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise MarshtestError(f"line {line} has a key that is no text. Give it a name.")
            if key.value in keys:
                raise MarshtestError(f"line {line} gives {key.value!r} twice. Leave one out.")
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _check(value: Any, where: str) -> None:
    """Raise if a value is not plain, or holds more than MOST values once aliases are followed."""
    # A few lines of aliases can stand for billions of values, or for a list within itself.
    count, todo = 0, [(value, "", 0)]
    while todo:
        value, place, depth = todo.pop()
        count += 1
        if depth > DEEPEST or count > MOST:
            raise MarshtestError(
                f"{where}: {place.split('.')[0] or 'it'} is nested too deeply, or holds more than {MOST:,} "
                "values once its aliases are followed. Write out what is needed."
            )
        if isinstance(value, dict):
            strange = [key for key in value if not isinstance(key, str)]
            if strange:
                raise MarshtestError(
                    f"{where}: the key {strange[0]!r} is no text. Put it in quotes."
                )
            todo += [(item, f"{place}{key}.", depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            todo += [(item, place, depth + 1) for item in value]
        elif isinstance(value, int) and abs(value) > LARGEST:
            at = f"{where}: {place}".rstrip(".: ")
            raise MarshtestError(
                f"{at}: no number of a recipe is as large as that. Give a smaller one."
            )
        elif value is not None and not isinstance(value, str | int | float):
            at = f"{where}: {place}".rstrip(".: ")
            raise MarshtestError(
                f"{at}: is a {type(value).__name__}, not a text or a number. Put it in quotes."
            )


def _listed(reference: str, folder: Path) -> list[Any]:
    """The list in the YAML file that "@FILE" names."""
    path = folder / reference.removeprefix("@")
    entries = parse_yaml(_bytes(path, f"unlearners: no file {str(path)!r}"), str(path))
    if not isinstance(entries, list):
        raise MarshtestError(f"{path}: a file of unlearners holds a list of them.")
    return entries


def _bytes(path: Path, missing: str) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        raise MarshtestError(f"{missing}. Give the path of a YAML file.") from None


def file_name(name: str) -> str:
    """The same name; a MarshtestError if no file or folder in the same place can bear it."""
    bad = [character for character in name if character in "/\\" or not character.isprintable()]
    # A file system counts bytes; a name that begins with a dot is hidden, also from who lists sweeps.
    long = len(name) > LONGEST_NAME or len(name.encode("utf-8", "replace")) > 2 * LONGEST_NAME
    if bad or long or not name.strip(". ") or name.startswith("."):
        raise MarshtestError(
            f"name: {_short(name)!r} cannot be the name of a folder. Give at most {LONGEST_NAME} "
            f"characters ({2 * LONGEST_NAME} bytes) without slashes and line breaks, and no dot in front."
        )
    return name


def file_stem(label: str, also: str = "") -> str:
    """A label as the beginning of a file's name: letters, digits, `=.-_` and what is in `also` stay."""
    kept = f"=.-_{also}"
    return "".join(c if c.isalnum() or c in kept else "_" for c in label)[:LONGEST_NAME]


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set "key.sub" of the raw values; a text for a section is short for the section's `name`.

    For `data` the text may also be the `path`. "unlearners+" adds to the list that is there.
    """
    if key == MORE:
        values["unlearners"] = [*as_list(values.get("unlearners", [])), *as_list(value)]
        return
    *sections, last = key.split(".")
    for name in sections:
        values = _section(values, name, key)
    if last == "data" and isinstance(value, str):
        _section(values, "data", key)[NAME_OR_PATH] = value
    elif isinstance(values.get(last), dict) and isinstance(value, str):
        values[last] = {"name": value}
    else:
        values[last] = value


def _read(source: str | Path | Mapping[str, Any], kind: str) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return {"name": "unnamed", **copy.deepcopy(source)}  # overrides must not reach the caller's
    known = shipped(kind)
    text: str | bytes | None = known.get(str(source))
    if text is None:
        path = Path(source)
        for other in KINDS.keys() - {kind}:
            if str(source) in shipped(other):
                raise MarshtestError(
                    f"{source}: is a {KINDS[other]}, not a {KINDS[kind]}. "
                    f"Use `marshtest {COMMANDS[other]} {source}`."
                )
        text = _bytes(path, unknown(KINDS[kind], _short(str(source)), known).rstrip("."))
    values = parse_yaml(text, str(source))
    if not isinstance(values, dict):
        raise MarshtestError(f"{source}: a {KINDS[kind]} is a mapping of keys to values.")
    _include(values, Path(source).parent)
    return {"name": Path(source).stem, **values}


def _include(values: dict[str, Any], folder: Path) -> None:
    """Put the list of unlearners that lies in a file in the place of its "@FILE", in sweeps too."""
    for section in (values, values.get("change"), values.get("recipe")):
        if isinstance(section, dict):
            entry = section.get("unlearners")
            if isinstance(entry, str) and entry.startswith("@"):
                section["unlearners"] = _listed(entry, folder)


def _section(values: dict[str, Any], name: str, key: str) -> dict[str, Any]:
    """The mapping below a key of the raw values; a bare name becomes a mapping that holds it."""
    section = values.setdefault(name, {})
    if isinstance(section, str):
        section = values[name] = {"name": section}
    if not isinstance(section, dict):
        raise MarshtestError(f"{key}: {name} has no keys below it.")
    return section
