"""Hands out jobs in their order as what they need is recorded, and has damaged stages made again.

It is the one scheduler. A run is a sweep of one variant on a store of its own.
"""

import heapq
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from marshtest.plumbing.errors import NOTE, MarshtestError
from marshtest.plumbing.progress import Progress
from marshtest.sweeps.engines import Ended, Engine
from marshtest.sweeps.jobs import Job
from marshtest.sweeps.ledger import failure_in
from marshtest.sweeps.locks import Driver
from marshtest.sweeps.run_folder import RAISED
from marshtest.sweeps.settings import Resources
from marshtest.sweeps.store import DamagedError, StoreError

LOOK_AGAIN = 0.5  # seconds, at what other drivers have locked
DEATHS = 3  # of workers at one job, before it counts as failed
REPAIRS = 3  # of one stage, before the store is given up


class Scheduler:
    """Which jobs are missing, ready, at work; and what to do as they end.

    Args:
        jobs: each behind those that it needs.
        progress: told the weight of what is done, as a share of the jobs' weights.
        sweep: name of the sweep, said with the counts of jobs; without, as of a run, each job's progress
            and each fault is said by itself.
        resources: what a job may use, by its kind.
        weights: of the jobs in what progress is told; by default each job counts alike.

    Attributes:
        reused: how many jobs were recorded before.
        done: how many jobs were done now.
        failed: line of each job that failed, by its place among the jobs.
        damaged: what was recorded and is not as it was; it was made again.
    """

    def __init__(
        self,
        driver: Driver,
        jobs: Sequence[Job],
        progress: Progress,
        sweep: str = "",
        resources: Mapping[str, Resources] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.driver, self.store, self.jobs, self.progress = driver, driver.store, jobs, progress
        self.sweep, self.resources = sweep, resources or {}
        self.weights = weights or [1.0] * len(jobs)
        self.reused = self.done = 0
        self.failed: dict[int, str] = {}
        self.damaged: list[str] = []
        self._maker = {key: i for i, job in enumerate(jobs) for key in job.makes}
        # What nothing builds on is wanted; the stages before are made only if one of these lacks them.
        needed = {key for job in jobs for key in job.needs}
        self._wanted = {i for i, job in enumerate(jobs) if needed.isdisjoint(job.makes)}
        self._recorded: set[str] = set()
        self._open: set[int] = set()  # jobs to be done, not yet done
        self._waiting: dict[str, set[int]] = defaultdict(set)  # open jobs, by the key they wait for
        self._ready: list[int] = []  # a heap: in the order of the jobs
        self._running: dict[Future[Ended], int] = {}
        self._deaths: Counter[int] = Counter()
        self._total = sum(self.weights)
        self._left = 0.0  # weight of the open jobs
        self._latest = 0  # job that was begun

    @property
    def blocked(self) -> int:
        """Jobs that wait for what failed."""
        return len(self._open - self.failed.keys())

    def failed_by_name(self) -> dict[str, str]:
        """Line of each job that failed by its label, with its key where others bear the same label."""
        labels = Counter(job.label for job in self.jobs)
        failed = {}
        for i, line in self.failed.items():
            label, key = self.jobs[i].label, self.jobs[i].makes[0]
            failed[label if labels[label] == 1 else f"{label} [{key}]"] = line
        return failed

    def run(
        self, start: Callable[[], Engine], finish: Callable[[], object], *, retry_failed: bool
    ) -> None:
        """Do all jobs that can be done, then finish; a damaged stage is made again on the way.

        Args:
            start: starts the engine; called where there is something to do.
            finish: gathers what was made, and may be called again after a DamagedError of it.
            retry_failed: try again what failed before.
        """
        self._recorded = self.store.recorded()
        self.reused = sum(self._recorded.issuperset(job.makes) for job in self.jobs)
        self._open_what_is_missing()
        self._recall_failures(retry_failed)
        while True:
            if self._ready:
                engine = start()
                try:
                    self._work(engine)
                finally:
                    engine.close()
            try:
                finish()
            except DamagedError as error:
                self._mend(error.key, error.what)
            else:
                return

    def hear(self, done: float, text: str = "", /) -> None:
        """Progress of the one running job, for an engine that runs one at a time."""
        self._tell(self._latest, done, text)

    # Which jobs are to be done

    def _open_what_is_missing(self) -> None:
        """Open the jobs that are wanted and not recorded, and find those that can begin."""
        self._open.clear()
        self._waiting.clear()
        self._ready.clear()
        self._left = 0.0
        for i in self._wanted:
            self._open_job(i)

    def _open_job(self, i: int) -> None:
        """Open a job that is not recorded, and those that make what it needs."""
        job = self.jobs[i]
        if i in self._open or self._recorded.issuperset(job.makes):
            return
        self._open.add(i)
        self._left += self.weights[i]
        missing = [key for key in job.needs if key not in self._recorded]
        for key in missing:
            self._waiting[key].add(i)
            self._open_job(self._maker[key])
        if not missing and i not in self.failed:
            heapq.heappush(self._ready, i)

    def _recall_failures(self, retry: bool) -> None:
        """Leave alone the jobs that failed before, or forget that they did."""
        for name in self.store.names("failures"):
            i = self._maker.get(name.removesuffix(".json"), -1)
            if i not in self._open:
                continue
            if retry:
                self.store.remove(f"failures/{name}")
            else:
                failure = failure_in(self.store, name)
                if failure is not None:
                    self.failed[i] = failure["fault"]
        self._ready = sorted(set(self._ready) - self.failed.keys())  # sorted, so a heap

    def _mend(self, key: str, what: str) -> None:
        """Have a damaged stage made again, before the jobs that need it."""
        self.progress(self._share(), f"{key} {what} is damaged, so it is made again")
        self.damaged.append(f"{key} {what}")
        if self.damaged.count(self.damaged[-1]) > REPAIRS:
            raise MarshtestError(
                f"store: {self.store.url}: {key} {what} was made {REPAIRS} times and is damaged again. "
                "Look what else removes or writes files there."
            )
        self.store.forget(key)
        self._recorded.discard(key)
        if key in self._maker:  # a sweep that keeps no models makes none of those that others kept
            self._wanted.add(self._maker[key])
        # From the beginning: jobs that were ready may have to wait for it now.
        self._open_what_is_missing()

    # What happens to them

    def _work(self, engine: Engine) -> None:
        """Do all jobs that can be done."""
        while self._ready or self._running:
            held = self._submit(engine)
            # Others' locks are looked at again twice a second; without any, the end of a job is awaited.
            if self._running:
                wait(self._running, LOOK_AGAIN if held else None, FIRST_COMPLETED)
            elif held:
                time.sleep(LOOK_AGAIN)
            for future in [future for future in self._running if future.done()]:
                self._end(self._running.pop(future), future)
            for i in held:
                heapq.heappush(self._ready, i)

    def _submit(self, engine: Engine) -> list[int]:
        """Begin as many ready jobs as the engine takes; those that other drivers hold."""
        held = []
        while self._ready and len(self._running) < engine.slots:
            i = heapq.heappop(self._ready)
            if i not in self._open or i in self._running.values():
                continue  # opened twice, after something damaged was found
            # Locked first, and then asked: else another driver could record it in between.
            if not self._lock(i):
                held.append(i)
            elif all(map(self.store.is_recorded, self.jobs[i].makes)):
                self._close(i)  # by another driver, meanwhile
            else:
                self._latest = i
                self._tell(i)
                resources = self.resources.get(self.jobs[i].kind, Resources())
                self._running[engine.submit(self.jobs[i], resources)] = i
        return held

    def _lock(self, i: int) -> bool:
        """Lock all that a job makes, or nothing."""
        # Two drivers that each held half of a job's locks would wait for each other for ever.
        locked: list[str] = []
        for key in self.jobs[i].makes:
            if not self.driver.lock(key):
                for other in locked:
                    self.driver.release(other)
                return False
            locked.append(key)
        return True

    def _release(self, i: int) -> None:
        for key in self.jobs[i].makes:
            self.driver.release(key)

    def _end(self, i: int, future: Future[Ended]) -> None:
        try:
            ended = future.result()
        except StoreError:
            raise
        except Exception as error:  # of the engine's: a worker was killed
            if self._tried_again(i):
                return
            line = f"its worker died {DEATHS} times ({type(error).__name__}: {error})"
            ended = Ended(" ".join(line.split()), "no traceback: the process ended\n")
        if ended.device and self._tried_again(i):
            return
        if ended.damaged is not None:
            self._release(i)
            self._mend(*ended.damaged)
        elif ended.fault:
            self._fail(i, ended)
        else:
            self.done += 1
            self._close(i)

    def _tried_again(self, i: int) -> bool:
        """Whether a job whose worker died, or whose GPU failed, is put back among the ready ones."""
        # Memory that ran out, or a machine that went, may be there next time.
        self._deaths[i] += 1
        if self._deaths[i] == DEATHS:
            return False
        self._release(i)
        heapq.heappush(self._ready, i)
        return True

    def _fail(self, i: int, ended: Ended) -> None:
        """Write down why a job failed, where its worker did not."""
        self.failed[i] = ended.fault
        if ended.trace:
            job = self.jobs[i]
            values = {"job": job.label, "fault": ended.fault, "traceback": ended.trace}
            name = f"failures/{job.makes[0]}.json"
            self.store.write(name, json.dumps(values, indent=1).encode())
        self._release(i)
        if not self.sweep:
            self.progress(self._share(), f"{NOTE}{ended.fault}; the traceback is in {RAISED}")

    def _close(self, i: int) -> None:
        """Let the jobs go on that waited for one that is done."""
        self._release(i)
        self._open.discard(i)
        self._left -= self.weights[i]
        self._recorded.update(self.jobs[i].makes)
        for key in self.jobs[i].makes:
            for other in self._waiting.pop(key, ()):
                if self._recorded.issuperset(self.jobs[other].needs):
                    heapq.heappush(self._ready, other)

    # What is said of them

    def _tell(self, i: int, done: float = 0.0, text: str = "") -> None:
        label = self.jobs[i].label
        if not self.sweep:
            line = f"{label}: {text}" if text else label
        else:
            count = f"{len(self.jobs) - len(self._open)} of {len(self.jobs)} jobs"
            failed = f", {len(self.failed)} failed" if self.failed else ""
            line = f"{self.sweep}: {count}{failed}; {label}{f', {text}' if text else ''}"
        self.progress(self._share(done * self.weights[i]), line)

    def _share(self, beside: float = 0.0) -> float:
        """What is done of all weights, with the weight of what a running job has done."""
        return (self._total - self._left + beside) / self._total if self._total else 0.0
