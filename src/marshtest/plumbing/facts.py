"""Facts that a check establishes about an unlearner, attack or metric, and their lines on the screen."""

import math
import numbers
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.foreign import foreign

KINDS = ("images", "features", "text")  # kinds of data for which a check has small problems
RUNS = "runs and returns "  # begins the name of a fact without which the check cannot go on
KEEPS_NOTHING = "keeps nothing from one call to the next"
KEEP_MEND = (
    "its class or module is not what it was before; keep no cache, counter or log there, or a second "
    "run in one process takes it for other code"
)
ENDS = "lets itself be checked to the end"
Finding = tuple[str, bool, str]  # a fact's name, whether it holds, what to do if it does not


@dataclass(frozen=True)
class Fact:
    """A requirement on data of one kind: whether it holds, and if not, what was seen."""

    kind: str
    name: str
    holds: bool
    detail: str = ""

    @classmethod
    def of(cls, kind: str, name: str, holds: bool, mend: str = "") -> Self:
        """A fact whose detail is `mend`, what to do about it, if it does not hold."""
        return cls(kind, name, holds, "" if holds else mend)


def facts_of(kind: str, name: str, find: Callable[[], Iterator[Finding]]) -> Iterator[Fact]:
    """Give the facts on one kind of data; whatever the user's code `name` raises is the last of them."""
    findings = list[Finding]()
    try:
        with foreign(name):
            findings.extend(find())
    except MarshtestError as error:
        findings.append((ENDS, False, str(error)))
    yield from (Fact.of(kind, *finding) for finding in findings)


def is_number(value: Any, *, missing: bool = True) -> bool:
    """Whether rows can hold a value: a real number that is finite or, if it may be `missing`, NaN."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    return not math.isinf(value) and (missing or not math.isnan(value))


def refuse_unknown_kinds(on: Collection[str]) -> None:
    """Raise MarshtestError if `on` holds a kind of data that is not one of KINDS."""
    for kind in on:
        if kind not in KINDS:
            raise MarshtestError(f"on: {unknown('kind of data', kind, KINDS)}")


def fact_lines(facts: Sequence[Fact]) -> Iterator[str]:
    """Give lines of at most 80 columns: the facts, by kind of data, and how many of them hold."""
    kinds = list(dict.fromkeys(fact.kind for fact in facts))
    for kind in kinds:
        yield kind
        for fact in (fact for fact in facts if fact.kind == kind):
            yield f"  {'ok  ' if fact.holds else 'FAIL'}  {fact.name}"
            yield from textwrap.wrap(
                fact.detail, 80, initial_indent=" " * 8, subsequent_indent=" " * 8
            )
    failed = sum(not fact.holds for fact in facts)
    yield f"{len(facts) - failed} of {len(facts)} facts hold on {', '.join(kinds)}."
    left_out = [kind for kind in KINDS if kind not in kinds]
    if left_out and not set(kinds).isdisjoint(KINDS):  # a data set has no kinds to be asked on
        yield f"Not asked: {', '.join(left_out)}."
    # Code that was made for other kinds of data does not run on these, and is none the worse for it.
    broken = {fact.kind for fact in facts if fact.name.startswith(RUNS) and not fact.holds}
    sound = [kind for kind in kinds if kind not in broken]
    if broken and sound:
        options = " ".join(f"--on {kind}" for kind in sound)
        yield f"If it is not made for {' and '.join(sorted(broken))}, check it with {options}."
