"""What a command shows: lines, tables that fit the terminal, and how far the work is."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from marshtest.plumbing.errors import NOTE
from marshtest.plumbing.progress import Progress as Callback

if TYPE_CHECKING:
    import pandas as pd

    from marshtest.metrics.presentation import Column, Score

console = Console(markup=False, emoji=False, highlight=False)  # what is printed is data
# Where there is no terminal, rich assumes 80 columns, and would fold the tables in a file.
if not console.is_terminal:
    console.width = 120

LINE_SECONDS = 30  # between two plain lines that say how one stage stands
WRAPPED = {"what", "verdict", "model", "unlearner"}  # columns of running text


def say(*lines: object, style: str | None = None) -> None:
    """Print lines as they are, wrapped at words."""
    for line in lines:
        console.print(line, style=style)


def say_whole(*lines: object) -> None:
    """Print lines that are never wrapped: paths, and what is copied from the screen."""
    for line in lines:
        console.print(line, soft_wrap=True)


def say_paths(*paths: Path) -> None:
    """Print the paths of what was written."""
    say_whole(*(f"  {path}" for path in paths))


def warn(line: str) -> None:
    """Print one line on standard error."""
    print(f"marshtest: {' '.join(line.split())}", file=sys.stderr)


def show(frame: "pd.DataFrame", title: str, shown: "Iterable[Column | Score]" = ()) -> None:
    """Print a table of texts, without the columns that the terminal has no room for.

    Args:
        shown: scores and columns among the table's, by their titles, that say what room they need.
    """
    shown = list(shown)
    too_wide = [one.title for one in shown if console.width < one.room]
    wrapped = WRAPPED.union(one.title for one in shown if one.wraps)
    left_out = [column for column in frame.columns if column in too_wide]
    frame = frame.drop(columns=left_out)
    table = table_of(title)
    for column in frame.columns:
        # Numbers are never broken; running text gives way to them, down to a word's width.
        least = 12 if column in wrapped else None
        table.add_column(str(column), overflow="fold", min_width=least, no_wrap=least is None)
    for row in frame.itertuples(index=False):
        table.add_row(*map(str, row))
    console.print(table)
    if left_out:
        say(f"A wider terminal shows more: {', '.join(left_out)}.")


def table_of(title: str, *columns: str) -> Table:
    """An empty table in the style of all commands."""
    return Table(*columns, title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


@contextmanager
def progress() -> Iterator[Callback]:
    """Show how far the work is: a bar on a terminal, plain lines on standard error elsewhere."""
    if not console.is_terminal:
        yield _plain_lines()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("loading data", total=1.0)

        def move(done: float, text: str = "", /) -> None:
            if text.startswith(NOTE):  # stays above the bar, which vanishes at the end
                bars.console.print(text)
            else:
                bars.update(bar, description=text, completed=done)

        yield move


def _plain_lines() -> Callback:
    """A line for each stage that begins, and for a long one every LINE_SECONDS."""
    last, due = "", 0.0

    def line(done: float, text: str = "", /) -> None:
        nonlocal last, due
        # A log keeps every line: of one stage that reports a thousand times it needs a few.
        stage, _, detail = text.partition(": ")
        now = time.monotonic()
        if stage != last or (detail and now >= due):
            print(f"{done:4.0%} {text}", file=sys.stderr, flush=True)
            due = now + LINE_SECONDS if detail else now
        last = stage

    return line
