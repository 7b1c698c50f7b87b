"""The command `check`: is something of the user's fit for a run?"""

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from marshtest.cli import screen
from marshtest.plumbing.errors import MarshtestError

if TYPE_CHECKING:
    from marshtest.plumbing.facts import Fact


def check(
    unlearner: Annotated[
        str, typer.Argument(help="Unlearner of yours, 'pkg.mod:name', or the name of one of ours.")
    ],
    hyperparameters: Annotated[
        list[str] | None, typer.Argument(help="Hyper-parameters, such as lr=0.05.")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(help="Kind of data that it is made for: images, features, text; repeat it."),
    ] = None,
) -> None:
    """Say what is wrong with an unlearner, before any long run.

    Exit 0: nothing is; exit 1: something is.

    Example: marshtest check mypkg.unlearning:my_unlearner lr=0.01 --on images
    """
    from marshtest.plumbing.yaml_files import parse_override
    from marshtest.unlearning import parse_trials
    from marshtest.unlearning.check import KINDS, check_unlearner

    values = {"name": unlearner} | dict(map(parse_override, hyperparameters or []))
    trial, *more = parse_trials(values)
    if more:
        raise MarshtestError("check: a hyper-parameter has one value here. Check one at a time.")
    facts = check_unlearner(trial, on or KINDS)
    screen.say_whole(*_lines(facts))
    raise typer.Exit(0 if all(fact.holds for fact in facts) else 1)


def _lines(facts: "Sequence[Fact]") -> Iterator[str]:
    """Facts by kind of data, within 80 columns, and what was not checked."""
    from marshtest.unlearning.check import KINDS, RUNS

    kinds = list(dict.fromkeys(fact.kind for fact in facts))
    for kind in kinds:
        yield kind
        for fact in (fact for fact in facts if fact.kind == kind):
            yield f"  {'ok  ' if fact.holds else 'FAIL'}  {fact.name}"
            yield from textwrap.wrap(
                fact.detail, 80, initial_indent=" " * 8, subsequent_indent=" " * 8
            )
    failed = sum(not fact.holds for fact in facts)
    left_out = [kind for kind in KINDS if kind not in kinds]
    yield f"{len(facts) - failed} of {len(facts)} facts hold on {', '.join(kinds)}."
    if left_out:
        yield f"Not asked: {', '.join(left_out)}."
    broken = {fact.kind for fact in facts if fact.name == RUNS and not fact.holds}
    sound = [kind for kind in kinds if kind not in broken]
    if broken and sound:
        options = " ".join(f"--on {kind}" for kind in sound)
        yield f"If it is not made for {' and '.join(sorted(broken))}, check it with {options}."
