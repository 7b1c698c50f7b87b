"""Run a sweep: plan its jobs, hand those that are missing to an engine, and gather the rows."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from marshtest.experiment.row_file import write_rows
from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.whole_files import write
from marshtest.sweeps.collect import collect
from marshtest.sweeps.engines import Engine, InProcess, Processes, Ray
from marshtest.sweeps.jobs import Job
from marshtest.sweeps.ledger import Ledger
from marshtest.sweeps.locks import Driver
from marshtest.sweeps.planned import Planned, plan_sweep
from marshtest.sweeps.run_folder import (
    RAISED,
    claim,
    foreseen,
    refuse_anothers,
    with_damage_mended,
    write_results,
)
from marshtest.sweeps.scheduler import Driving
from marshtest.sweeps.settings import Sweep, read_sweep
from marshtest.sweeps.store import Store
from marshtest.sweeps.worker import Worker

ENGINES = ("in-process", "processes", "ray")


@dataclass(frozen=True)
class Swept:
    """How a sweep ended.

    Attributes:
        ledger: what it consists of.
        reused: jobs that were recorded before.
        done: jobs that were done now.
        failed: line of each job that failed, by its label; and its key, where variants share the label.
        blocked: jobs that need a failed one.
        damaged: what was recorded, and not as it was; it was made again.
        seconds: wall time.
        folder: of the rows.
    """

    ledger: Ledger
    reused: int
    done: int
    failed: Mapping[str, str]
    blocked: int
    damaged: Sequence[str]
    seconds: float
    folder: Path


def sweep(
    source: str | Path | Mapping[str, Any] | Sweep,
    *overrides: str,
    store: str | Path = "runs/store",
    engine: str = "in-process",
    workers: int | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    out: str | Path | None = None,
    progress: Progress = silent,
) -> Swept:
    """Run a sweep on a store; what is recorded there already is not done again.

    Args:
        source: name of a shipped sweep or recipe, path of a YAML file, a mapping, or a Sweep.
        overrides: "key.sub=value" of the recipe; "grid.key=[…]" sets an axis.
        store: a folder, or what fsspec takes.
        engine: "in-process", "processes" or "ray".
        workers: of "processes"; default one a processor.
        address: of the Ray cluster; by default one is started on this machine.
        retry_failed: try again what failed before.
        out: folder of the rows; default `runs/<id of the sweep>`. Of one variant it is a run's folder; of
            several there is one such folder each beside the rows of all.
        progress: told how many jobs are done, and their share.

    Raises:
        MarshtestError: bad input, in one line.
    """
    started = time.monotonic()
    asked = source if isinstance(source, Sweep) else read_sweep(source, overrides)
    place, planned = Store(store), plan_sweep(asked)
    if engine not in ENGINES:
        raise MarshtestError(f"engine: {unknown('engine', engine, ENGINES)}")
    if workers is not None and workers < 1:
        raise MarshtestError(f"workers: must be at least 1. Got {workers}.")
    place.prepare()
    ledger = planned.ledger()
    folder = Path(out) if out is not None else Path("runs") / asked.id
    drives: list[Driving] = []
    for line in dict.fromkeys(line for keys in planned.keys for line in foreseen(keys.recipe)):
        progress(0.0, line)
    with Driver(place) as driver, _terminated_as_interrupted():
        ledger.write(place)

        def drive() -> None:
            driving = Driving(place, driver, planned.jobs, asked, progress)
            driving.begin(retry_failed)
            drives.append(driving)
            if driving.can_go_on:
                made = _engine(engine, place, workers, address, asked, driving.hear)
                try:
                    driving.run(made)
                finally:
                    made.close()
            gather(place, planned, ledger, folder)

        damaged = with_damage_mended(place, drive, progress)
    failed = {_name(planned.jobs, i): line for i, line in drives[-1].failed.items()}
    seconds = time.monotonic() - started
    done = sum(driving.done for driving in drives)
    reused, blocked = drives[0].reused, drives[-1].blocked
    damaged += [what for driving in drives for what in driving.damaged]
    return Swept(ledger, reused, done, failed, blocked, damaged, seconds, folder)


def gather(store: Store, planned: Planned, ledger: Ledger, folder: Path) -> None:
    """Write the rows that are there; and of each variant that is whole, its run's folder.

    Raises:
        DamagedError: a score is not as it was recorded.
    """
    tables = []
    for variant, keys in zip(planned.variants, planned.keys, strict=True):
        found = collect(store, keys)
        tables.append(found.rows.assign(**variant.axes))
        if not found.missing:
            own = folder / file_name(variant.label, keys.recipe.hash) if variant.axes else folder
            identity = {"recipe": keys.recipe.hash, "data": keys.content}
            refuse_anothers(own, keys.recipe, identity)
            if not (own / "rows.parquet").exists() or (own / RAISED).exists():
                claim(own, keys.recipe, identity)
                write_results(Worker(store), keys, own, found)
    if len(tables) > 1:
        rows = pd.concat(tables, ignore_index=True)
        write(rows, folder / "rows.csv")
        write_rows(rows, folder / "rows.parquet", ledger.runs)


def file_name(label: str, recipe: str) -> str:
    """A label as the name of a folder; with the recipe's hash where it cannot be taken as it is."""
    name = "".join(c if c.isalnum() or c in "=,.-_+" else "_" for c in label)[:100]
    return name if name == label else f"{name}-{recipe}"


def _name(jobs: Sequence[Job], i: int) -> str:
    label = jobs[i].label
    alone = sum(job.label == label for job in jobs) == 1
    return label if alone else f"{label} [{jobs[i].makes[0]}]"


def _engine(
    name: str,
    store: Store,
    workers: int | None,
    address: str | None,
    asked: Sweep,
    hear: Any,
) -> Engine:
    resources = {str(kind): of for kind, of in asked.resources.items()}
    if name == "processes":
        return Processes(store.url, workers, resources)
    if name == "ray":
        return Ray(store.url, address, resources)
    return InProcess(Worker(store), hear)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let a cluster's polite end, SIGTERM, do what Ctrl-C does."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
