"""Facts: what a check of somebody's code found, and how a reader sees it."""

import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from marshtest.plumbing.errors import MarshtestError, unknown

KINDS = ("images", "features", "text")  # of data that a check poses its problems on
RUNS = "runs and returns "  # begins the fact without which no other is asked for


@dataclass(frozen=True)
class Fact:
    """One thing that must hold on data of one kind, and what was seen where it does not."""

    kind: str
    name: str
    holds: bool
    detail: str = ""

    @classmethod
    def of(cls, kind: str, name: str, holds: bool, mend: str = "") -> Self:
        """A fact that says what to do only where it does not hold."""
        return cls(kind, name, holds, "" if holds else mend)


def refuse_unknown_kinds(on: Collection[str]) -> None:
    """Raise MarshtestError where a kind of data is none of KINDS."""
    for kind in on:
        if kind not in KINDS:
            raise MarshtestError(f"on: {unknown('kind of data', kind, KINDS)}")


def fact_lines(facts: Sequence[Fact]) -> Iterator[str]:
    """Facts by kind of data, within 80 columns, and how many hold."""
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
    broken = {fact.kind for fact in facts if fact.name.startswith(RUNS) and not fact.holds}
    sound = [kind for kind in kinds if kind not in broken]
    if broken and sound:
        options = " ".join(f"--on {kind}" for kind in sound)
        yield f"If it is not made for {' and '.join(sorted(broken))}, check it with {options}."
