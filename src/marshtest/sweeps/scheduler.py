"""Hands out jobs in their order as what they need is recorded, and says what failed."""

import heapq
import json
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from marshtest.plumbing.progress import Progress
from marshtest.sweeps.engines import Ended, Engine
from marshtest.sweeps.jobs import Job
from marshtest.sweeps.locks import Driver
from marshtest.sweeps.settings import Resources, Sweep
from marshtest.sweeps.store import Store, StoreError

LOOK_AGAIN = 0.5  # seconds, at what other drivers have claimed
DEATHS = 3  # of workers at one job, before it counts as failed


class Driving:
    """Which jobs are missing, ready, at work; and what to do as they end.

    Args:
        jobs: each behind those that it needs.
        progress: told how many are done, and their share.
    """

    def __init__(
        self, store: Store, driver: Driver, jobs: Sequence[Job], asked: Sweep, progress: Progress
    ) -> None:
        self.store, self.driver, self.jobs, self.progress = store, driver, jobs, progress
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
        self.progress(done / len(self.jobs), f"{text}, {said}" if said else text)

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
        self.progress(self.share, f"{key} {what} is damaged, so it is made again")
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
