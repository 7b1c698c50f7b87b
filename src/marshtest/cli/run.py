"""Commands that train and measure: `run` and `study`."""

from pathlib import Path
from typing import Annotated

import typer

from marshtest.cli import screen

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Values to change, such as seeds=2, training.epochs=5 or data=PATH."),
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for the results; default: runs/NAME-HASH.")
]
WRITTEN = ("rows.parquet", "models", "figures", "report.html")  # in a run's folder


def run(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    overrides: Overrides = None,
    out: OutOption = None,
    *,
    keep_models: Annotated[
        bool,
        typer.Option(
            "--keep-models",
            help="Initial, retrained and updated models stay in the folder, as safetensors.",
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report/--no-report", help="Figures, summaries and the page are written, or not."
        ),
    ] = True,
) -> None:
    """Poison, train, unlearn, measure, and draw a report.

    A finished run is only shown again; one that was stopped goes on.

    Example: marshtest run digits-gaussian seeds=2
    """
    from marshtest.commands.run import run as run_recipe
    from marshtest.reporting.further import further
    from marshtest.reporting.page import sentences
    from marshtest.reporting.tables import explained, legend, shown_in, table

    with screen.progress() as progress:
        results = run_recipe(
            recipe,
            *(overrides or []),
            out=out,
            keep_models=keep_models,
            report=report,
            progress=progress,
        )
    screen.show(table(results), results.recipe.name, shown_in(results))
    screen.say(legend(results), style="dim")
    for one in further(results):
        screen.show(one.table, one.title, shown_in(results))
        screen.say(one.legend, style="dim")
    screen.say(*sentences(results), style="bold")
    screen.say(*explained(results))
    # A run from before, or without a report, need not have all of them.
    written = (results.folder / name for name in WRITTEN)
    screen.say_paths(*(path for path in written if path.exists()))


def study(
    hypothesis: Annotated[
        str, typer.Argument(help="Name of a shipped hypothesis, or a YAML file.")
    ],
    overrides: Overrides = None,
    out: OutOption = None,
) -> None:
    """Ask why unlearning fails: does a hypothesis hold?

    The paper's section 6 has two: poisons shift a model further than clean samples do, and in directions
    that clean samples do not teach.

    Example: marshtest study hypothesis-orthogonality-small
    """
    from marshtest.commands.study import study as run_study
    from marshtest.reporting.hypotheses import hypothesis_table

    with screen.progress() as progress:
        done = run_study(hypothesis, *(overrides or []), out=out, progress=progress)
    screen.show(hypothesis_table(done.settings.hypothesis, done.rows), done.settings.name)
    screen.say(done.statement, style="bold")
    screen.say_paths(done.folder / "figures")
