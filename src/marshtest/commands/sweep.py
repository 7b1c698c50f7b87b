"""Run a sweep: plan its jobs, hand those that are missing to an engine, and gather the rows."""

import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from marshtest.commands.footprint import foretold
from marshtest.experiment.row_file import FILE, write_rows
from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.whole_files import write
from marshtest.sweeps.collect import collect
from marshtest.sweeps.engines import ENGINES, Engine, InProcess, Processes, Ray, refuse_gpus
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.ledger import Ledger
from marshtest.sweeps.locks import Driver
from marshtest.sweeps.planned import Planned, plan_sweep
from marshtest.sweeps.run_folder import (
    folder_name,
    foreseen,
    is_done,
    own_folder,
    refuse_anothers,
    write_results,
)
from marshtest.sweeps.scheduler import Scheduler
from marshtest.sweeps.settings import Resources, Sweep, Variant, columns, read_sweep
from marshtest.sweeps.store import Store
from marshtest.sweeps.worker import Worker


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
        store: a folder, or any fsspec URL, that holds what is finished.
        engine: "in-process", "processes" or "ray".
        workers: number of worker processes, of "processes"; default one a processor, or three a GPU.
        address: of the Ray cluster; by default one is started on this machine.
        retry_failed: try again what failed before.
        out: folder of the rows; default `runs/<id of the sweep>`. Of one variant it is a run's folder; of
            several there is one such folder each beside the rows of all.
        progress: told how many jobs are done, and their share.

    Raises:
        MarshtestError: bad input, in one line.
    """
    started = time.monotonic()
    settings = source if isinstance(source, Sweep) else read_sweep(source, *overrides)
    place, planned = Store(store), plan_sweep(settings)
    _refuse_strange(engine, workers)
    place.prepare()  # the first that is written: what was asked for is sound
    ledger, folder = planned.ledger(), Path(out or Path("runs") / settings.id)
    for variant, keys in zip(planned.variants, planned.keys, strict=True):
        refuse_anothers(_place(folder, variant, keys), keys.recipe, keys.identity)
    for line in dict.fromkeys(line for keys in planned.keys for line in foreseen(keys.recipe)):
        progress(0.0, line)
    for line in foretold(planned, store):
        progress(0.0, line)
    with Driver(place) as driver, _terminated_as_interrupted():
        # Before any job: `clean` removes what no listed sweep makes.
        ledger.write(place)
        resources = {str(kind): needed for kind, needed in settings.resources.items()}
        scheduler = Scheduler(driver, planned.jobs, progress, settings.name, resources)
        devices = {keys.recipe.device for keys in planned.keys}
        where = (resources, devices, scheduler.hear, workers, address)
        start = partial(_start, engine, place, *where)
        finish = partial(gather, place, planned, ledger, folder)
        scheduler.run(start, finish, retry_failed=retry_failed)
    return Swept(
        ledger=ledger,
        reused=scheduler.reused,
        done=scheduler.done,
        failed=scheduler.failed_by_name(),
        blocked=scheduler.blocked,
        damaged=scheduler.damaged,
        seconds=time.monotonic() - started,
        folder=folder,
    )


def _refuse_strange(engine: str, workers: int | None) -> None:
    if engine not in ENGINES:
        raise MarshtestError(f"engine: {unknown('engine', engine, ENGINES)}")
    if workers is not None and workers < 1:
        raise MarshtestError(f"workers: must be at least 1. Got {workers}.")


def _start(
    engine: str,
    store: Store,
    resources: Mapping[str, Resources],
    devices: Collection[str],
    progress: Progress,
    workers: int | None,
    address: str | None,
) -> Engine:
    """Start the engine of one of the names ENGINES."""
    if engine == "processes":
        return Processes(store.url, workers, resources, devices)
    if engine == "ray":
        return Ray(store.url, address, resources, devices)
    refuse_gpus(resources, devices)
    return InProcess(Worker(store), progress)


def gather(store: Store, planned: Planned, ledger: Ledger, folder: Path) -> None:
    """Write the rows that are there; and of each variant that is whole, its run's folder.

    Raises:
        DamagedError: a stage is not as it was recorded.
    """
    tables = []
    every = columns(planned.variants)
    for variant, told, keys in zip(planned.variants, every, planned.keys, strict=True):
        measured = collect(store, keys)
        axes = {key: value for key, value in told.items() if key not in measured.rows}
        if len(measured.rows):  # what a row has measured is its own
            tables.append(measured.rows.assign(**axes))
        # Rows of a part are shown; a run's folder would pass for a whole one.
        if measured.missing:
            continue
        place = _place(folder, variant, keys)
        about = own_folder(place, keys.recipe, keys.identity)
        if not is_done(place):
            # By a worker of its own: the engine's may be in other processes, with GPUs of theirs.
            write_results(Worker(store, device="cpu"), keys, place, about, measured)
    if any(variant.axes for variant in planned.variants):  # the rows of a run lie there already
        rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        write(rows, folder / "rows.csv")
        write_rows(rows, folder / FILE, ledger.runs)


def _place(folder: Path, variant: Variant, keys: Keys) -> Path:
    """The folder of a variant's run."""
    return folder / folder_name(variant.label, keys.recipe.hash) if variant.axes else folder


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
