"""After-care: the states of a model in which the poison is looked for again, by name.

    ""               the model itself
    int8, int4, …    its weights rounded to so many bits (marshtest.models.rounding)
    trained_on 2     trained on for two passes over the held-out samples, which hold neither poison nor
                     forget set, by the recipe's own training settings with that many epochs

What comes back in such a state was hidden, and not removed.
"""

import re
from collections.abc import Mapping
from typing import Any

from marshtest.plumbing.errors import MarshtestError, unknown

ITSELF = ""
TRAINED_ON = "trained_on"
BITS = range(2, 9)
KNOWN = ("int8", "int4", TRAINED_ON)


def parse_states(given: Any) -> tuple[str, ...]:
    """The names of the states that a recipe asks for.

    Raises:
        MarshtestError: one is unknown, of no such number of bits or passes, or is given twice.
    """
    entries = given if isinstance(given, list | tuple) else (given,)
    names = tuple(_name(entry) for entry in entries)
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise MarshtestError(f"states: {twice[0]} is given twice. Leave one out.")
    return names


def bits_of(state: str) -> int | None:
    """The bits that weights are rounded to; None in another state."""
    match = re.fullmatch(r"int(\d+)", state)
    return int(match[1]) if match else None


def passes_of(state: str) -> int | None:
    """The passes over the held-out samples that a model is trained on for; None in another state."""
    match = re.fullmatch(rf"{TRAINED_ON} (\d+)", state)
    return int(match[1]) if match else None


def _name(entry: Any) -> str:
    if isinstance(entry, Mapping) and set(entry) == {TRAINED_ON}:
        entry = f"{TRAINED_ON} {entry[TRAINED_ON]}"
    if not isinstance(entry, str):
        raise MarshtestError(
            f"states: give a list such as [int8, int4, {{{TRAINED_ON}: 2}}]. Got {entry!r}."
        )
    kind, _, amount = entry.partition(" ")
    if kind == TRAINED_ON:
        if not re.fullmatch(r"[1-9]\d{0,5}", amount):
            raise MarshtestError(
                f"states: {TRAINED_ON}: a whole number of passes from 1 is needed. Got {amount!r}."
            )
        return entry
    if bits := re.fullmatch(r"int(-?\d+)", entry):
        if int(bits[1]) not in BITS:
            raise MarshtestError(
                f"states: {entry}: {BITS[0]} to {BITS[-1]} bits are possible. Got {bits[1]}."
            )
        return f"int{int(bits[1])}"
    raise MarshtestError(f"states: {unknown('state', entry, KNOWN)}")
