"""Drive a sweep: plan its jobs, hand those that are missing to an engine, and gather the rows.

What is recorded in the store is not done again; a job that fails is written down, and the rest goes on.
"""

import heapq
import json
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from marshtest.claims import Driver
from marshtest.engines import Ended, Engine, InProcess, Processes, Ray
from marshtest.errors import MarshtestError, unknown
from marshtest.files import write
from marshtest.grid import Resources, Sweep, Variant, read_sweep, refuse_equal
from marshtest.ledger import Cell, Entry, Ledger, made_by
from marshtest.protocol import Report, groups, silent
from marshtest.recipe import load_recipe
from marshtest.rows import write_rows
from marshtest.runs import (
    RAISED,
    claim,
    describe,
    foreseen,
    refuse_anothers,
    with_damage_mended,
    write_results,
)
from marshtest.sources import content
from marshtest.stages import Job, Keys, Worker, collect, jobs, lines
from marshtest.store import Store, StoreError

ENGINES = ("in-process", "processes", "ray")
LOOK_AGAIN = 0.5  # seconds, at what other drivers have claimed
DEATHS = 3  # of workers at one job, before it counts as failed


@dataclass(frozen=True)
class Planned:
    """A sweep's variants as recipes, and the jobs that they come to; what they share is there once."""

    sweep: Sweep
    variants: Sequence[Variant]
    keys: Sequence[Keys]
    jobs: Sequence[Job]
    cells: Sequence[Cell]

    @property
    def unshared(self) -> int:
        """How many jobs there would be if each variant, model and budget stood alone."""
        alone = 0
        for keys in self.keys:
            for job in jobs(keys, keep_models=False):
                alone += len(job.budgets) or 1
        return alone

    def ledger(self) -> Ledger:
        """As it stands in the store."""
        return Ledger(
            self.sweep.id,
            made_by(),
            [variant.axes for variant in self.variants],
            [keys.recipe.hash for keys in self.keys],
            {keys.recipe.hash: describe(keys.recipe, keys.content) for keys in self.keys},
            self.cells,
            [Entry(job.kind, job.label, job.makes, job.needs) for job in self.jobs],
        )


def plan_sweep(sweep: Sweep, *, imports: bool = True) -> Planned:
    """Variants, cells and jobs of a sweep; nothing is loaded or trained.

    Args:
        imports: whether to import the user's callables that it names; without, it can be looked at.

    Raises:
        MarshtestError: a variant is no sound recipe, or two variants differ in nothing.
    """
    variants = sweep.variants()
    keys = [_keys(variant, imports) for variant in variants]
    cells: list[Cell] = []
    sets: list[frozenset[str]] = []
    for number, of in enumerate(keys):
        found = [line for group in groups(of.recipe) for line in lines(of, group)]
        cells += [Cell(line.key, number, line.entry) for line in found]
        sets.append(frozenset(line.key for line in found))
    refuse_equal([variant.label for variant in variants], sets)
    known: set[str] = set()
    found_jobs = []
    for of in keys:
        for job in jobs(of, keep_models=sweep.keep_models):
            if not known.issuperset(job.makes):
                found_jobs.append(job)
                known.update(job.makes)
    return Planned(sweep, variants, keys, found_jobs, cells)


def _keys(variant: Variant, imports: bool) -> Keys:
    try:
        recipe = load_recipe(variant.values, imports=imports)
    except MarshtestError as error:
        if not variant.axes:
            raise
        raise MarshtestError(f"grid, at {variant.label}: {error}") from None
    return Keys(recipe, content(recipe.data, None))


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
    report: Report = silent,
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
        report: told how many jobs are done, and their share.

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
        report(line, 0.0)
    with Driver(place) as driver, _terminated_as_interrupted():
        ledger.write(place)

        def drive() -> None:
            driving = Driving(place, driver, planned.jobs, asked, report)
            driving.begin(retry_failed)
            drives.append(driving)
            if driving.can_go_on:
                made = _engine(engine, place, workers, address, asked, driving.hear)
                try:
                    driving.run(made)
                finally:
                    made.close()
            gather(place, planned, ledger, folder)

        damaged = with_damage_mended(place, drive, report)
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


class Driving:
    """Which jobs are missing, ready, at work; and what to do as they end.

    Args:
        jobs: each behind those that it needs.
        report: told how many are done, and their share.
    """

    def __init__(
        self, store: Store, driver: Driver, jobs: Sequence[Job], asked: Sweep, report: Report
    ) -> None:
        self.store, self.driver, self.jobs, self.report = store, driver, jobs, report
        self.name = asked.name
        self.resources = {str(kind): of for kind, of in asked.resources.items()}
        self.reused = self.done = 0
        self.damaged: list[str] = []  # what was found so, and is made again
        self.failed: dict[int, str] = {}
        self.open: set[int] = set()  # that must be done, not yet done
        self._recorded: set[str] = set()
        self._maker = {key: i for i, job in enumerate(jobs) for key in job.makes}
        self._missing: dict[int, set[str]] = {}  # what an open job waits for
        self._waiting: dict[str, set[int]] = defaultdict(set)  # the same, by key
        self._ready: list[int] = []  # a heap: in the order of the jobs
        self._deaths: Counter[int] = Counter()
        self._running: dict[Future[Ended], int] = {}
        self._latest = 0  # job that was begun

    @property
    def can_go_on(self) -> bool:
        """Whether there is a job that can be done."""
        return bool(self._ready)

    @property
    def blocked(self) -> int:
        """Jobs that wait for what failed."""
        return len(self.open - self.failed.keys())

    def begin(self, retry_failed: bool) -> None:
        """Find out what is missing."""
        self._recorded = self.store.recorded()
        wanted = [i for i, job in enumerate(self.jobs) if job.kind in ("score", "unlearn")]
        for i in wanted:
            self._add(i)
        self.reused = sum(self._recorded.issuperset(job.makes) for job in self.jobs)
        for name in self.store.names("failures"):
            before = self._maker.get(name.removesuffix(".json"), -1)
            if before in self.open:
                if retry_failed:
                    self.store.remove(f"failures/{name}")
                else:
                    self.failed[before] = json.loads(self.store.read(f"failures/{name}"))["fault"]
        self._ready = [i for i in self._ready if i not in self.failed]
        heapq.heapify(self._ready)

    def _add(self, i: int) -> None:
        """Open a job that is not recorded, and those that make what it needs."""
        job = self.jobs[i]
        if i in self.open or self._recorded.issuperset(job.makes):
            return
        self.open.add(i)
        self._missing[i] = {key for key in job.needs if key not in self._recorded}
        for key in self._missing[i]:
            self._waiting[key].add(i)
            self._add(self._maker[key])
        if not self._missing[i]:
            heapq.heappush(self._ready, i)

    def run(self, engine: Engine) -> None:
        """Do all that can be done."""
        held: list[int] = []  # by other drivers
        while self._ready or self._running or held:
            while self._ready and len(self._running) < engine.slots:
                i = heapq.heappop(self._ready)
                if i not in self.open:
                    continue
                if not self._claim(i):
                    held.append(i)
                elif all(self.store.is_recorded(key) for key in self.jobs[i].makes):
                    self._close(i)  # by another driver, meanwhile
                else:
                    self._latest = i
                    self._tell(i)
                    asked = self.resources.get(self.jobs[i].kind, Resources())
                    self._running[engine.submit(self.jobs[i], asked)] = i
            if self._running:
                wait(self._running, LOOK_AGAIN if held else None, FIRST_COMPLETED)
            elif held:
                time.sleep(LOOK_AGAIN)
            for future in [future for future in self._running if future.done()]:
                self._end(self._running.pop(future), future, engine)
            for i in held:
                heapq.heappush(self._ready, i)
            held = []

    def hear(self, share: float, said: str = "", /) -> None:
        """How the one running job stands, in words."""
        self._tell(self._latest, said)

    def _tell(self, i: int, said: str = "") -> None:
        done = len(self.jobs) - len(self.open)
        failed = f", {len(self.failed)} failed" if self.failed else ""
        text = f"{self.name}: {done} of {len(self.jobs)} jobs{failed}; {self.jobs[i].label}"
        self.report(f"{text}, {said}" if said else text, done / len(self.jobs))

    def _claim(self, i: int) -> bool:
        """Claim all that a job makes, or nothing."""
        taken: list[str] = []
        for key in self.jobs[i].makes:
            if not self.driver.claim(key):
                for other in taken:
                    self.driver.release(other)
                return False
            taken.append(key)
        return True

    def _release(self, i: int) -> None:
        for key in self.jobs[i].makes:
            self.driver.release(key)

    def _end(self, i: int, future: Future[Ended], engine: Engine) -> None:
        job = self.jobs[i]
        try:
            ended = future.result()
        except StoreError:
            raise
        except Exception as error:  # of the engine's: a worker was killed
            self._deaths[i] += 1
            engine.recover()
            if self._deaths[i] < DEATHS:
                self._release(i)
                heapq.heappush(self._ready, i)
                return
            line = f"its worker died {DEATHS} times ({type(error).__name__}: {error})"
            ended = Ended(" ".join(line.split()), "no traceback: the process ended\n")
        if ended.damaged is not None:
            self._again(i, *ended.damaged)
        elif ended.fault:
            self.failed[i] = ended.fault
            if ended.trace:
                values = {"job": job.label, "fault": ended.fault, "traceback": ended.trace}
                name = f"failures/{job.makes[0]}.json"
                self.store.write(name, json.dumps(values, indent=1).encode())
            self._release(i)
        else:
            self.done += 1
            self._close(i)

    def _close(self, i: int) -> None:
        """A job is done: let those go on that waited for it."""
        self._release(i)
        self.open.discard(i)
        for key in self.jobs[i].makes:
            self._recorded.add(key)
            for other in self._waiting.pop(key, ()):
                self._missing[other].discard(key)
                if not self._missing[other]:
                    heapq.heappush(self._ready, other)

    def _again(self, i: int, key: str, what: str) -> None:
        """A stage is damaged: make it again, and then what needed it."""
        self.report(f"{key} {what} is damaged, so it is made again", self.share)
        self.damaged.append(f"{key} {what}")
        self._release(i)
        self.store.forget(key)
        self._recorded.discard(key)
        if key in self.jobs[i].makes:
            heapq.heappush(self._ready, i)
            return
        self._missing[i].add(key)
        self._waiting[key].add(i)
        self._add(self._maker[key])

    @property
    def share(self) -> float:
        """Of the jobs that is done."""
        return 1 - len(self.open) / len(self.jobs)
