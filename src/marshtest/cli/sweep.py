"""Commands on a sweep and its store: `sweep`, `status`, `rows` and `clean`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.table import Table

from marshtest.cli import screen
from marshtest.cli.run import Overrides
from marshtest.plumbing.errors import MarshtestError

if TYPE_CHECKING:  # what a command needs is imported as it runs: each start is quick
    import pandas as pd

    from marshtest.commands.sweep import Swept
    from marshtest.sweeps.ledger import Ledger, Standing
    from marshtest.sweeps.settings import Sweep
    from marshtest.sweeps.store import Store

StoreOption = Annotated[
    str, typer.Option(help="Folder, or fsspec URL, in which finished work is stored.")
]
SweepArgument = Annotated[
    str | None,
    typer.Argument(help="Name of the sweep; may be left out if the store holds only one."),
]


def sweep(
    sweep: Annotated[
        str, typer.Argument(help="Name of a shipped sweep or recipe, or a YAML file.")
    ],
    overrides: Overrides = None,
    *,
    store: StoreOption = "runs/store",
    engine: Annotated[
        str, typer.Option(help="What does the jobs: in-process, processes or ray.")
    ] = "in-process",
    workers: Annotated[
        int | None,
        typer.Option(help="Number of worker processes (--engine processes); default: one a core."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster, HOST:PORT or auto; default: one is started."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Jobs that failed before are tried again.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the rows; default: runs/NAME-HASH.")
    ] = None,
) -> None:
    """Run a recipe over grids of values.

    Stop it at any time: the same command goes on where it was. Exit 1: some jobs failed.

    Example: marshtest sweep digits-budgets --engine processes --workers 2
    """
    from marshtest.sweeps.settings import read_sweep

    settings = read_sweep(sweep, *(overrides or []))
    # Asked before PyTorch is imported: a sweep that is done answers in a moment.
    if not retry_failed and _is_done(settings, store, out):
        return
    from marshtest.commands.sweep import sweep as run_sweep

    with screen.progress() as progress:
        done = run_sweep(
            settings,
            store=store,
            engine=engine,
            workers=workers,
            address=address,
            retry_failed=retry_failed,
            out=out,
            progress=progress,
        )
    _tell(done)
    raise typer.Exit(1 if done.failed else 0)


def _is_done(settings: "Sweep", store: str, out: Path | None) -> bool:
    """Whether nothing is left to do, which is said; known without torch, in a moment."""
    import pyarrow.parquet as pq

    from marshtest.experiment.row_file import recipes_in
    from marshtest.sweeps import ledger
    from marshtest.sweeps.store import Store

    started = time.monotonic()
    rows = (Path("runs") / settings.id if out is None else out) / "rows.parquet"
    done = ledger.finished(Store(store), settings) if rows.exists() else None
    # Rows of another sweep, or none at all: refused, or written anew, by what looks closer.
    if done is None or recipes_in(rows) != set(done.recipes):
        return False
    if pq.read_metadata(rows).num_rows < len(done.cells):  # written while some were missing
        return False
    seconds = time.monotonic() - started
    screen.say(f"{settings.id}: all is done already, in {store} ({seconds:.1f} s).")
    screen.say_paths(rows)
    return True


def _tell(done: "Swept") -> None:
    """Say how a sweep ended."""
    name = done.ledger.id
    counts = f"{done.done:,} jobs done, {done.reused:,} were done before"
    screen.say(f"{name}: {counts}; {done.seconds:,.1f} s.")
    screen.say_paths(done.folder / "rows.parquet")
    screen.say(*(f"{what} was damaged, and is made again" for what in done.damaged))
    screen.say(*(f"failed: {job}: {fault}" for job, fault in done.failed.items()), style="bold")
    if done.failed:
        screen.say(
            f"{len(done.failed)} failed, {done.blocked} wait for them. `marshtest status {name} "
            "--failures` shows the tracebacks; --retry-failed tries again."
        )


def status(
    sweep: SweepArgument = None,
    *,
    store: StoreOption = "runs/store",
    watch: Annotated[
        bool, typer.Option("--watch", help="Table renewed until nobody is at work.")
    ] = False,
    failures: Annotated[
        bool, typer.Option("--failures", help="Tracebacks of the jobs that failed.")
    ] = False,
) -> None:
    """Say how far a sweep is, and how long the rest will take.

    Example: marshtest status digits-budgets
    """
    from marshtest.sweeps import ledger
    from marshtest.sweeps.locks import Watched

    place, planned = _planned(store, sweep)
    if failures:
        for failure in ledger.failures(place, planned).values():
            screen.say(f"{failure['job']}: {failure['fault']}", style="bold")
            screen.say(failure["traceback"])
        return
    standing = ledger.standing(place, planned)
    if not watch or not screen.console.is_terminal:  # in a file, a table cannot be drawn over
        screen.console.print(_standing(planned.id, standing))
        return
    watched = Watched(place)  # the same at each look: it tells who has stopped
    with Live(_standing(planned.id, standing), console=screen.console) as live:
        while any(jobs.running for jobs in standing.values()):
            time.sleep(1)
            standing = ledger.standing(place, planned, watched)
            live.update(_standing(planned.id, standing))


def _planned(store: str, sweep: str | None) -> tuple["Store", "Ledger"]:
    """The store, and what a sweep in it consists of."""
    from marshtest.sweeps import ledger
    from marshtest.sweeps.store import Store

    place = Store(store)
    return place, ledger.Ledger.read(place, ledger.find(place, sweep))


def _standing(name: str, standing: "Mapping[str, Standing]") -> Table:
    """How far a sweep is, by kind of job, and how long the rest will take."""
    from marshtest.sweeps.ledger import remaining

    left = remaining(standing)
    text = "" if left is None else f"; about {left:,.0f} s to go as it runs now"
    columns = ("jobs", "done", "at work", "failed", "waiting", "seconds each", "now")
    table = screen.table_of(f"{name}{text}", *columns)
    for kind, jobs in standing.items():
        seconds = "–" if jobs.seconds is None else f"{jobs.seconds:.2f}"
        counts = (jobs.done, jobs.running, jobs.failed, jobs.waiting)
        table.add_row(kind, *map(str, counts), seconds, "; ".join(jobs.at_work[:2]))
    return table


def rows(
    sweep: SweepArgument = None,
    filters: Annotated[
        list[str] | None,
        typer.Argument(help="Values that rows must have, such as unlearner=gd seed=0."),
    ] = None,
    *,
    store: StoreOption = "runs/store",
    out: Annotated[
        Path | None, typer.Option(help="File for the rows, .parquet, .csv or .json.")
    ] = None,
) -> None:
    """Give the rows of a sweep that are there so far.

    Without --out they are CSV on standard output.

    Example: marshtest rows digits-budgets unlearner=gd budget=0.1 --out gd.parquet
    """
    import pandas as pd

    from marshtest.sweeps import ledger

    wanted = list(filters or [])
    # The name may be left out, and then the first filter stands in its place.
    if sweep is not None and "=" in sweep:
        wanted, sweep = [sweep, *wanted], None
    place, planned = _planned(store, sweep)
    there, damaged = ledger.rows(place, planned)
    frame = pd.DataFrame(ledger.matching(there, wanted))
    if damaged:
        screen.warn(
            f"{len(damaged)} rows are damaged in the store and left out; start the sweep again to make "
            "them anew."
        )
    _write(frame, out, planned)


def _write(frame: "pd.DataFrame", out: Path | None, planned: "Ledger") -> None:
    """Write rows as the file's name asks, or as CSV on standard output."""
    from marshtest.experiment.row_file import write_rows
    from marshtest.plumbing.whole_files import write

    if out is None:
        print(frame.to_csv(index=False), end="")
    elif out.suffix == ".json":
        write(frame.to_json(orient="records", indent=1).encode(), out)
    elif out.suffix == ".csv":
        write(frame, out)
    elif out.suffix == ".parquet":
        write_rows(frame, out, planned.runs)
    else:
        raise MarshtestError(f"--out: {out} ends in none of .parquet, .csv, .json.")


def clean(
    sweeps: Annotated[
        list[str] | None, typer.Argument(help="Names of sweeps whose work is removed as well.")
    ] = None,
    *,
    store: StoreOption = "runs/store",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Files are only named, not removed.")
    ] = False,
) -> None:
    """Remove from a store what no sweep needs.

    That is work of no sweep that is listed there, and what killed commands left.

    Example: marshtest clean --dry-run
    """
    from marshtest.sweeps import ledger
    from marshtest.sweeps.locks import DEAD_AFTER, Watched
    from marshtest.sweeps.store import Store

    place = Store(store)
    if not place.exists:
        raise MarshtestError(f"store: {store} holds no store. Give --store.")
    forgotten = [ledger.find(place, name) for name in sweeps or []]
    watched = Watched(place)
    if watched.elsewhere():
        # Nothing but a second look tells whether they are at work still.
        screen.say(
            f"Commands of other machines, or of before a restart, are watched for {DEAD_AFTER:g} s."
        )
        time.sleep(DEAD_AFTER)
    rubbish = ledger.rubbish(place, forgotten, watched)
    for name in rubbish:
        screen.say_whole(name)
        if not dry_run:
            place.remove(name)
    screen.say(f"{len(rubbish)} {'would be removed' if dry_run else 'removed'}.")
