"""The command `score`: one unlearner by a suite of recipes, and its card."""

from pathlib import Path
from typing import Annotated

import typer

from marshtest.cli import screen
from marshtest.plumbing.errors import refuse_taken
from marshtest.plumbing.yaml_files import parse_override


def score(
    target: Annotated[
        str,
        typer.Argument(
            help="Unlearner: ours by its name, yours as 'pkg.mod:name'; or a folder of models that were "
            "unlearned elsewhere."
        ),
    ],
    options: Annotated[
        list[str] | None, typer.Argument(help="Hyper-parameters of the unlearner, such as lr=0.05.")
    ] = None,
    suite: Annotated[
        str, typer.Option(help="Suite: digits, images, texts, paper, or a YAML file.")
    ] = "digits",
    store: Annotated[
        str, typer.Option(help="Folder, or fsspec URL, in which finished work is stored.")
    ] = "runs/store",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the card and rows; default: runs/score-SUITE-NAME-HASH."),
    ] = None,
) -> None:
    """Score one unlearner by a suite of attacks, beside all that are known.

    Only the newcomer's models are made, and those that they are compared with; these stay in the store.
    The card says by attack whether the poison is gone, what is left, and the rank.

    Example: marshtest score random-labels lr=0.05
    """
    from marshtest.commands.score import score as score_target
    from marshtest.reporting.card import against, card_legend, card_table

    values = dict(map(parse_override, options or []))
    refuse_taken("score", values, "target", "suite", "store", "out", "progress")
    with screen.progress() as progress:
        card = score_target(target, suite=suite, store=store, out=out, progress=progress, **values)
    screen.say(card.headline, style="bold")
    screen.show(card_table(card), f"{card.unlearner}, suite {card.suite}")
    screen.say(*against(card))
    screen.say(card_legend(card), style="dim")
    screen.say_paths(*sorted(card.folder.glob("card.*")), card.folder / "rows")
