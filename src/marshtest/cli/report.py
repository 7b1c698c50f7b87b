"""Commands that read rows and draw: `report`, `compare` and `leaderboard`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marshtest.cli import screen
from marshtest.plumbing.errors import MarshtestError

if TYPE_CHECKING:
    from marshtest.results.merging import Merged

RowsArgument = Annotated[
    list[Path], typer.Argument(help="Runs, sweeps, hypotheses, files of rows, or folders of them.")
]
TableOption = Annotated[Path | None, typer.Option(help="Folder for the table as files.")]


def report(
    rows: RowsArgument,
    out: Annotated[Path, typer.Option(help="Folder for the page, its figures and tables.")],
) -> None:
    """Draw a page of every figure and table that rows can fill.

    Rows that can be compared are merged. Exit 2 if rows are missing; the report then says which.

    Example: marshtest report runs/one runs/two --out report
    """
    from marshtest.reporting.write import report as draw

    merged = draw(*rows, out=out)
    screen.say(*merged.said)
    screen.say_paths(out / "report.html", out / "figures", out / "tables")
    _refuse_gaps(rows, merged)  # last: what there is, is drawn


def _refuse_gaps(rows: Sequence[Path], merged: "Merged") -> None:
    """End with an error where rows are missing."""
    gaps = [gap for results in merged.results for gap in results.gaps]
    if gaps:
        more = f" (and {len(gaps) - 1} more)" if len(gaps) > 1 else ""
        raise MarshtestError(
            f"{', '.join(map(str, rows))}: rows are missing: {gaps[0]}{more}. The report is drawn without "
            "them and says so; run the recipe to its end for a whole one."
        )


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a run, or its rows.")],
    b: Annotated[Path, typer.Argument(help="Another run of that recipe with other unlearners.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the table and the figures.")] = None,
) -> None:
    """Say which of two versions of an unlearner is better.

    Two runs are set side by side, cell by cell, with a paired test.

    Example: marshtest compare runs/before runs/after
    """
    from marshtest.reporting.tables import comparison_table
    from marshtest.results.comparison import LEGEND, sentences, unpaired
    from marshtest.results.comparison import compare as compare_runs
    from marshtest.results.merging import read_one

    runs = read_one(a), read_one(b)
    compared = compare_runs(*runs)
    screen.show(comparison_table(compared), f"A {a}, B {b}")
    screen.say(LEGEND, style="dim")
    screen.say(*sentences(compared), style="bold")
    screen.say(*filter(None, [unpaired(*runs)]))
    if out is not None:
        from marshtest.reporting.write import write_comparison

        write_comparison(compared, out)
        screen.say_paths(out)


def leaderboard(rows: RowsArgument, out: TableOption = None) -> None:
    """Rank unlearners over all attacks that they were tried on.

    By what is left of the poison or by accuracy lost, whichever is more; overlapping intervals are ties.

    Example: marshtest leaderboard runs
    """
    from marshtest.reporting.tables import COLUMNS, ranking_legend, ranking_table, write_table
    from marshtest.results.merging import read_all

    merged = read_all(rows)
    screen.say(*merged.said)
    ranking = ranking_table(merged.results)
    if ranking.empty:
        raise MarshtestError(
            f"{', '.join(map(str, rows))}: no experiment shows an effect of its poison beside rows of its "
            "initial and its retrained model, so nothing can be ranked. Give such rows."
        )
    legend = ranking_legend(merged.results)
    screen.show(ranking, "leaderboard", COLUMNS)
    screen.say(legend, style="dim")
    if out is not None:
        write_table(ranking, out / "leaderboard", legend)
        screen.say_paths(out)
