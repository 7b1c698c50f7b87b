"""The command `check`: is something of the user's fit for a run?"""

from typing import Annotated

import typer

from marshtest.cli import screen
from marshtest.plumbing.errors import refuse_taken
from marshtest.plumbing.yaml_files import parse_override


def check(
    thing: Annotated[
        str,
        typer.Argument(
            help="Unlearner, attack, metric or data set: yours as 'pkg.mod:name', ours by its name."
        ),
    ],
    options: Annotated[
        list[str] | None, typer.Argument(help="Options of the thing, such as lr=0.05.")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(help="Kind of data that it is made for: images, features, text; repeat it."),
    ] = None,
) -> None:
    """Say what is wrong with something of yours, before any long run.

    It may be an unlearner, an attack, a metric or a data set. Exit 0: nothing is wrong; 1: something is.

    Example: marshtest check mypkg.unlearning:my_unlearner lr=0.01 --on images
    """
    from marshtest.commands.check import check as check_thing
    from marshtest.commands.check import what_is
    from marshtest.plumbing.facts import fact_lines

    values = dict(map(parse_override, options or []))
    refuse_taken("check", values, "thing", "on")
    facts = check_thing(thing, on or (), **values)
    screen.say_whole(f"{thing} ({what_is(thing, values)})", *fact_lines(facts))
    raise typer.Exit(0 if all(fact.holds for fact in facts) else 1)
