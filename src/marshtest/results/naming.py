"""What tells unlearners of one name apart: the options that differ, and the values that a search chose."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from marshtest.experiment.recorded import Recorded, RecordedNamed

Entries = Sequence[Sequence[RecordedNamed]]


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters by name; a callable of the user's has them under `options`."""
    plain = {name: value for name, value in values.items() if name != "options"}
    return {**plain, **values.get("options", {})}


def differing(unlearners: Iterable[Sequence[RecordedNamed]]) -> dict[str, set[str]]:
    """The options in which the entries of one unlearner differ, by its name.

    What an entry searches tells its trials apart, and not the entry from others.
    """
    entries: dict[str, list[list[dict[str, Any]]]] = {}
    for trials in unlearners:
        values = [settings(trial.hyperparameters) for trial in trials]
        entries.setdefault(trials[0].name, []).append(values)
    keys: dict[str, set[str]] = {}
    for name, own in entries.items():
        names = {key for trials in own for trial in trials for key in trial}
        lists = {key: [_distinct(trial.get(key) for trial in of) for of in own] for key in names}
        keys[name] = {key for key, values in lists.items() if any(v != values[0] for v in values)}
    return keys


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once: entries of more or fewer trials may search by one value."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def marks(line: Any, keys: Mapping[str, set[str]]) -> str:
    """The options of a line that tell it from others of its name, each with a space before it."""
    told = keys.get(line["unlearner"], set())
    values = settings(json.loads(line["hyperparameters"]))
    # A label is of one line, whatever an option's text holds.
    return "".join(
        f" {key}={value}".replace("\n", " ") for key, value in values.items() if key in told
    )


def choice(line: Any, recipe: Recorded) -> str:
    """The values that a search chose, and of how many trials; nothing of an entry with one trial."""
    place = int(line["entry"])
    trials = recipe.unlearners[place] if 0 <= place < len(recipe.unlearners) else ()
    if line["role"] != "updated" or len(trials) < 2:
        return ""
    tried = [settings(trial.hyperparameters) for trial in trials]
    own = settings(json.loads(line["hyperparameters"]))
    searched = [key for key in own if any(one.get(key) != tried[0].get(key) for one in tried)]
    values = ", ".join(f"{key} {own[key]}" for key in searched)
    return f"{values} of {len(trials)}"
