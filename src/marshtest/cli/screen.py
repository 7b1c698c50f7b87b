"""What a command shows: lines, tables that fit the terminal, and how far the work is."""

import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
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

TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # overrides of direction
LINE_SECONDS = 30  # between two plain lines that say how one stage stands
WRAPPED = {"what", "verdict", "model", "unlearner"}  # columns of running text, never left out
FOLDED = 12  # characters that they have at least: what "INCONCLUSIVE" needs


def say(*lines: object, style: str | None = None) -> None:
    """Print lines as they are, wrapped at words."""
    for line in lines:
        console.print(_harmless(line), style=style)


def say_whole(*lines: object) -> None:
    """Print lines that are never wrapped: paths, and what is copied from the screen."""
    for line in lines:
        console.print(_harmless(line), soft_wrap=True)


def say_paths(*paths: Path) -> None:
    """Print the paths of what was written."""
    say_whole(*(f"  {path}" for path in paths))


def warn(line: str) -> None:
    """Print one line on standard error."""
    print(f"marshtest: {_harmless(' '.join(line.split()))}", file=sys.stderr)


def _harmless(text: object) -> str:
    """A text that moves no cursor and hides nothing: a server, or a file, may be quoted in it."""
    return "".join(c if _is_harmless(c) else ascii(c)[1:-1] for c in str(text))


def _is_harmless(character: str) -> bool:
    """Whether a character is none that commands a terminal, turns the line round, or ends it unseen."""
    commands = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    turns = unicodedata.bidirectional(character) in TURNS
    return character in "\n\t" or not (commands or turns)


def show(frame: "pd.DataFrame", title: str, shown: "Iterable[Column | Score]" = ()) -> None:
    """Print a table of texts, without the columns that the terminal has no room for.

    Args:
        shown: scores and columns among the table's, by their titles, that say what room they need.
    """
    texts = {_harmless(name): [*map(_harmless, frame[name])] for name in frame}
    full = {name: max(map(cell_len, [name, *cells])) for name, cells in texts.items()}
    least = {name: _least(name, cells) for name, cells in texts.items()}
    left_out = _left_out(least, {one.title: one.room for one in shown})
    kept = [name for name in texts if name not in left_out]
    table, widths = table_of(title), _widths(kept, least, full)
    for name in kept:
        table.add_column(name, overflow="fold", width=widths[name])
    for row in zip(*(texts[name] for name in kept), strict=True):
        table.add_row(*row)
    console.print(table)
    if left_out:
        say(
            f"A wider terminal shows more: {'; '.join(name for name in texts if name in left_out)}."
        )


def _least(name: str, cells: list[str]) -> int:
    """Characters that a column must have: numbers are never broken, text may be between its words."""
    runs_on = name in WRAPPED or any(" " in cell and "[" not in cell for cell in cells)
    parts = [part for cell in (name, *cells) for part in (cell.split() if runs_on else [cell])]
    longest = max(map(cell_len, parts), default=0)
    return min(longest, FOLDED) if name in WRAPPED else longest


def _left_out(least: dict[str, int], room: dict[str, int]) -> set[str]:
    """Columns to leave out: who ask for more room; then, until the rest fits, who ask for most."""
    left_out = {name for name in least if console.width < room.get(name, 0)}
    # Models and verdicts stay. Of equals, those to the right give way to those on the left.
    others = [name for name in [*least][:0:-1] if name not in WRAPPED | left_out]
    others.sort(key=lambda name: -room.get(name, 0))
    while others and _with_edges([least[one] for one in least.keys() - left_out]) > console.width:
        left_out.add(others.pop(0))
    return left_out


def _widths(kept: list[str], least: dict[str, int], full: dict[str, int]) -> dict[str, int]:
    """The columns' widths: the narrowest grow until all cells or the terminal are full."""
    widths = {name: least[name] for name in kept}
    while _with_edges([*widths.values()]) < console.width:
        narrow = [name for name in kept if widths[name] < full[name]]
        if not narrow:
            break
        widths[min(narrow, key=lambda name: widths[name])] += 1
    return widths


def _with_edges(widths: list[int]) -> int:
    """A table's width in `table_of`'s style: a blank behind each column, and dividers of one more."""
    return sum(widths) + 2 * len(widths) + 1


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
