"""Engines run jobs: in this process, in processes of this machine, or on a Ray cluster.

An engine takes a job and gives a future of how it went; all that a job needs and makes is in the store.
"""

import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from marshtest.plumbing.device import threads
from marshtest.plumbing.errors import MarshtestError, first_line
from marshtest.plumbing.malloc import keep_freed_memory
from marshtest.plumbing.progress import Progress, silent
from marshtest.sweeps.jobs import Job
from marshtest.sweeps.settings import Resources
from marshtest.sweeps.store import DamagedError, Store, StoreError
from marshtest.sweeps.worker import Worker

ENGINES = ("in-process", "processes", "ray")  # by the names that users give
REACHABLE_WITHIN = 5.0  # seconds, a Ray cluster
GONE_WITHIN = 5.0  # a worker that is told to end


@dataclass(frozen=True)
class Ended:
    """How a job went.

    Attributes:
        fault: "" or one line.
        trace: the traceback of a fault; "" where the worker wrote it down itself.
        damaged: the key of a stage that was not as it was recorded, and which file of it.
    """

    fault: str = ""
    trace: str = ""
    damaged: tuple[str, str] | None = None


class Engine:
    """Runs jobs, so many at once."""

    slots: int

    def submit(self, job: Job, resources: Resources) -> "Future[Ended]":
        """Begin a job. A future that raises says that the worker died, and not why."""
        raise NotImplementedError

    def recover(self) -> None:
        """Make ready again after a worker died; by default nothing has to be."""

    def close(self) -> None:
        """Stop what is running; by default nothing runs on."""


def attempt(worker: Worker, job: Job, progress: Progress, *, goes_on: bool = True) -> Ended:
    """Do a job, and say how it went.

    Args:
        progress: told how the job stands.
        goes_on: whether other jobs are done after one that fails; else its error is raised.

    Raises:
        StoreError: nothing can be written, so no other job could be done either.
    """
    try:
        return Ended(worker(job, progress))
    except DamagedError as error:
        return Ended(damaged=(error.key, error.what))
    except Exception as error:
        if isinstance(error, StoreError) or not goes_on:
            raise
        line = " ".join(str(error).split())
        # Our own errors are sentences; of others the type says more than the text.
        fault = line if isinstance(error, MarshtestError) else f"{type(error).__name__}: {line}"
        return Ended(fault, traceback.format_exc())


class InProcess(Engine):
    """One job after the other, in this process; `progress` and `goes_on` are those of `attempt`."""

    slots = 1

    def __init__(self, worker: Worker, progress: Progress, *, goes_on: bool = True) -> None:
        self._worker, self._progress, self._goes_on = worker, progress, goes_on

    def submit(self, job: Job, resources: Resources) -> "Future[Ended]":
        future: Future[Ended] = Future()
        with threads(resources.cpus):
            future.set_result(attempt(self._worker, job, self._progress, goes_on=self._goes_on))
        return future


class Processes(Engine):
    """Several processes of this machine, each with its share of the processors.

    Args:
        url: of the store.
        workers: how many; default one a processor.

    Raises:
        MarshtestError: a job asks for more than the machine has.
    """

    def __init__(self, url: str, workers: int | None, resources: Mapping[str, Resources]) -> None:
        # Those that this process may use, where the system tells: often fewer than the machine has.
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        self._processors = processors or os.cpu_count() or 1
        _refuse(resources, [(float(self._processors), float(torch.cuda.device_count()))])
        self.slots = workers or self._processors
        self._url, self._threads = url, max(1, self._processors // self.slots)
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("forkserver")  # imports torch once for all
        context.set_forkserver_preload([__name__])
        # For the workers' start alone: what they start themselves has the driver's own environment.
        before = dict(os.environ)
        os.environ["OMP_NUM_THREADS"] = str(self._threads)  # read as a worker imports torch
        os.environ["PYTHONSAFEPATH"] = "1"  # or Python looks for torch in the working folder first
        try:
            pool = ProcessPoolExecutor(self.slots, context, _obey_the_driver, (before,))
            pool.submit(os.getpid).result()  # started, while the variables stand
        finally:
            os.environ.clear()
            os.environ.update(before)
        return pool

    def submit(self, job: Job, resources: Resources) -> "Future[Ended]":
        threads = resources.cpus or self._threads
        try:
            return self._pool.submit(work, self._url, job, threads, os.getcwd())
        except BrokenProcessPool:  # a worker died just now
            self.recover()
            return self._pool.submit(work, self._url, job, threads, os.getcwd())

    def recover(self) -> None:
        if self._pool._broken:  # private, but an executor has no other sign that it takes no more
            self.close()
            self._pool = self._start()

    def close(self) -> None:
        # Taken before the shutdown, which forgets them; it cancels what waits, and what runs goes on.
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(GONE_WITHIN)


class Ray(Engine):
    """A Ray cluster; jobs ask it for processors and GPUs.

    Args:
        url: of the store, the same for all machines.
        address: of the cluster; None starts one on this machine.

    Raises:
        MarshtestError: Ray is not installed, not to be reached, or no node has what a job asks for.
    """

    def __init__(self, url: str, address: str | None, resources: Mapping[str, Resources]) -> None:
        try:
            import ray
        except ImportError:
            raise MarshtestError(
                "engine: ray is not installed. pip install 'marshtest[cluster]'."
            ) from None
        self._ray, self._url = ray, url
        if address is not None and address not in ("auto", "local"):
            _reach(address)
        try:
            with chdir(Path(os.__file__).parent):  # Ray puts the working folder first on its path
                ray.init(
                    address=address,
                    log_to_driver=False,
                    configure_logging=False,  # logging is the caller's
                    include_dashboard=False if address in (None, "local") else None,
                )
        except Exception as error:
            raise MarshtestError(
                f"engine: no Ray cluster at {address or 'this machine'} ({first_line(error)}). "
                "Start one with `ray start --head`, or give its --address."
            ) from None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        # Asked here, since Ray would let such a job wait for a node that may yet come.
        try:
            _refuse(resources, [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes])
        except MarshtestError:
            self.close()
            raise
        # As many as could run if each asked for one processor; of more, Ray itself lets some wait.
        self.slots = max(1, int(sum(node.get("CPU", 0.0) for node in nodes)))
        self._work = ray.remote(work)

    def submit(self, job: Job, resources: Resources) -> "Future[Ended]":
        cpus = resources.cpus or 1
        task = self._work.options(num_cpus=cpus, num_gpus=resources.gpus, max_retries=3)
        future: Future[Ended] = task.remote(self._url, job, cpus, os.getcwd()).future()
        return future

    def close(self) -> None:
        self._ray.shutdown()


def _refuse(resources: Mapping[str, Resources], nodes: list[tuple[float, float]]) -> None:
    """Raise where no node has the processors and GPUs that a kind of job asks for."""
    for kind, needed in resources.items():
        if not any((needed.cpus or 1) <= cpus and needed.gpus <= gpus for cpus, gpus in nodes):
            largest = max(nodes, default=(0.0, 0.0))
            raise MarshtestError(
                f"resources.{kind}: asks for {needed.cpus or 1} CPUs and {needed.gpus:g} GPUs, and no "
                f"node has them (the largest: {largest[0]:g} and {largest[1]:g}). Lower it."
            )


def _reach(address: str) -> None:
    """Raise at once where nobody listens, which Ray itself says after minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=REACHABLE_WITHIN):
            return
    except (OSError, ValueError) as error:
        raise MarshtestError(
            f"engine: nobody answers at --address {address} ({first_line(error)}). "
            "Give HOST:PORT of a running `ray start --head`, or auto."
        ) from None


@cache
def _worker(url: str) -> Worker:
    # One a process: the data, poisons and models that it has read serve the next job.
    return Worker(Store(url))


def work(url: str, job: Job, threads: int, folder: str) -> Ended:
    """Do a job in a process of its own, in the driver's working folder if this machine has it."""
    # Paths in recipes, and a user's modules, are looked for from where the command was given.
    if os.path.isdir(folder):
        os.chdir(folder)
    torch.set_num_threads(threads)
    keep_freed_memory()
    return attempt(_worker(url), job, silent)


def _obey_the_driver(environment: Mapping[str, str]) -> None:
    """Take the driver's environment for all that is started here, leave Ctrl-C to it, end when it has."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        driver = multiprocessing.parent_process()
        assert driver is not None
        driver.join()
        os._exit(1)  # sys.exit would end this thread alone

    threading.Thread(target=watch, daemon=True).start()
