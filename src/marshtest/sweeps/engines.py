"""Engines run jobs: in this process, in processes of this machine, or on a Ray cluster.

An engine takes a job and gives a future of how it went; all that a job needs and makes is in the store.
"""

import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from marshtest.plumbing.device import failure, pick_device, threads
from marshtest.plumbing.errors import MarshtestError, first_line, one_line
from marshtest.plumbing.foreign import signals_noted
from marshtest.plumbing.malloc import keep_freed_memory
from marshtest.plumbing.progress import Progress, silent
from marshtest.sweeps.jobs import Job
from marshtest.sweeps.settings import Resources
from marshtest.sweeps.store import DamagedError, Store, StoreError
from marshtest.sweeps.worker import Worker

ENGINES = ("in-process", "processes", "ray")  # by the names that users give
REACHABLE_WITHIN = 5.0  # seconds, a Ray cluster
GONE_WITHIN = 5.0  # a worker that is told to end
WORKERS_A_GPU = 3  # each keeps a few GB there, and one alone leaves the GPU idle half of the time


@dataclass(frozen=True)
class Ended:
    """How a job went.

    Attributes:
        fault: "" or one line.
        trace: the traceback of a fault; "" where the worker wrote it down itself.
        damaged: the key of a stage that was not as it was recorded, and which file of it.
        device: "" or how the GPU failed: its memory is "full", or it is "lost" to the process for good.
    """

    fault: str = ""
    trace: str = ""
    damaged: tuple[str, str] | None = None
    device: Literal["", "full", "lost"] = ""


class Engine:
    """Runs jobs, so many at once."""

    slots: int

    def submit(self, job: Job, resources: Resources) -> "Future[Ended]":
        """Begin a job. A future that raises says that the worker died, and not why."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop what is running; by default nothing runs on."""


def attempt(worker: Worker, job: Job, progress: Progress, *, goes_on: bool = True) -> Ended:
    """Do a job, and say how it went.

    Args:
        progress: told how the job stands.
        goes_on: whether other jobs are done after one that fails; else its error is raised.

    Raises:
        StoreError: nothing can be written, so no other job could be done either.
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    with signals_noted() as signals:
        try:
            ended = Ended(worker(job, progress))
        except DamagedError as error:
            return Ended(damaged=(error.key, error.what))
        except StoreError:
            raise
        except Exception as error:
            if signals:  # a library took the KeyboardInterrupt for an error of its caller's
                raise KeyboardInterrupt from error
            return _failed(error, job, goes_on)
        if signals:  # it came where Python cleans up, which lets nothing through
            raise KeyboardInterrupt
        return ended


def _failed(error: Exception, job: Job, goes_on: bool) -> Ended:
    """How a job went that raised an error."""
    cause = failure(error)
    if cause is not None:
        return _of_device(cause, job, traceback.format_exc())
    if not goes_on:
        raise error
    line = one_line(error)
    # Our own errors are sentences; of others the type says more than the text.
    fault = line if isinstance(error, MarshtestError) else f"{type(error).__name__}: {line}"
    return Ended(fault, traceback.format_exc())


def _of_device(cause: BaseException, job: Job, trace: str) -> Ended:
    """How a job went on whose way the GPU failed."""
    line = f"{job.label}: the GPU failed ({first_line(cause)}). "
    if isinstance(cause, torch.OutOfMemoryError):
        mend = "Lower training.batch_size or --workers, or free the GPU."
        return Ended(
            line.replace("the GPU failed", "the GPU's memory is full") + mend, trace, device="full"
        )
    mend = "An index out of range does that; CUDA_LAUNCH_BLOCKING=1 shows where."
    return Ended(line + mend, trace, device="lost")


class InProcess(Engine):
    """One job after the other, in this process; `progress` and `goes_on` are those of `attempt`.

    Raises:
        MarshtestError: the GPU is lost to this process, or its memory full and no other job goes on.
    """

    slots = 1

    def __init__(self, worker: Worker, progress: Progress, *, goes_on: bool = True) -> None:
        self._worker, self._progress, self._goes_on = worker, progress, goes_on

    def submit(self, job: Job, resources: Resources) -> "Future[Ended]":
        future: Future[Ended] = Future()
        with threads(resources.cpus):
            ended = attempt(self._worker, job, self._progress, goes_on=self._goes_on)
        if ended.device == "lost" or (ended.device and not self._goes_on):
            raise MarshtestError(ended.fault)
        # Tried again at once, by the same process, it would fail as it did.
        future.set_result(replace(ended, device=""))
        return future


class Processes(Engine):
    """Several processes of this machine, each with its share of the processors, and a GPU if there is one.

    Args:
        url: of the store.
        workers: how many; default one a processor, or WORKERS_A_GPU for each GPU, unless the jobs' shares
            of one allow another number.
        resources: what jobs ask for, by kind.
        devices: those that the recipes name.

    Raises:
        MarshtestError: a job asks for more than the machine has.
    """

    def __init__(
        self,
        url: str,
        workers: int | None,
        resources: Mapping[str, Resources],
        devices: Collection[str] = ("cpu",),
    ) -> None:
        # Those that this process may use, where the system tells: often fewer than the machine has.
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        processors = processors or os.cpu_count() or 1
        gpus = _gpus(devices)
        _refuse(resources, [(float(processors), float(len(gpus)))])
        at_once = _at_once(resources, len(gpus)) if gpus else processors
        self.slots = workers or min(processors, at_once)
        share = max(1, processors // self.slots)
        self._workers = [
            _Process(url, share, gpus[number % len(gpus)] if gpus else None)
            for number in range(self.slots)
        ]

    def submit(self, job: Job, resources: Resources) -> "Future[Ended]":
        return next(worker for worker in self._workers if worker.is_free).submit(job, resources)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class _Process:
    """A worker process: one alone, so that its death is that of its own job only.

    Args:
        threads: of a job that does not say how many.
        gpu: the one that it sees; None for all that there are.
    """

    def __init__(self, url: str, threads: int, gpu: str | None) -> None:
        self._url, self._threads, self._gpu = url, threads, gpu
        self._pool: ProcessPoolExecutor | None = None
        self._latest: Future[Ended] | None = None

    @property
    def is_free(self) -> bool:
        """Whether it has nothing to do."""
        return self._latest is None or self._latest.done()

    def submit(self, job: Job, resources: Resources) -> "Future[Ended]":
        """Begin a job, in a new process where the one before died or lost its GPU."""
        latest = self._latest
        if latest is not None and (latest.exception() or latest.result().device):
            self.close()
        try:
            self._latest = self._begin(job, resources)
        except BrokenProcessPool:  # it died just now
            self.close()
            self._latest = self._begin(job, resources)
        return self._latest

    def _begin(self, job: Job, resources: Resources) -> "Future[Ended]":
        self._pool = self._pool or self._start()
        return self._pool.submit(work, self._url, job, resources.cpus or self._threads, os.getcwd())

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("forkserver")  # imports torch once for all
        context.set_forkserver_preload([__name__])
        # For the worker's start alone: what it starts itself has the driver's own environment.
        before = dict(os.environ)
        os.environ["OMP_NUM_THREADS"] = str(self._threads)  # read as a worker imports torch
        os.environ["PYTHONSAFEPATH"] = "1"  # or Python looks for torch in the working folder first
        # Read as a process uses its first GPU, and so after it is forked.
        seen = {} if self._gpu is None else {"CUDA_VISIBLE_DEVICES": self._gpu}
        try:
            pool = ProcessPoolExecutor(1, context, _obey_the_driver, (before | seen,))
            pool.submit(os.getpid).result()  # started, while the variables stand
        finally:
            os.environ.clear()
            os.environ.update(before)
        return pool

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._pool is None:
            return
        # Taken before the shutdown, which forgets them; it cancels what waits, and what runs goes on.
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(GONE_WITHIN)


def _gpus(devices: Collection[str]) -> list[str]:
    """The GPUs that this process may use, in the words of CUDA_VISIBLE_DEVICES; none if all is on the CPU.

    Raises:
        MarshtestError: a recipe asks for one, and there is none.
    """
    for device in devices:
        pick_device(device)
    if set(devices) == {"cpu"}:
        return []
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def refuse_gpus(resources: Mapping[str, Resources], devices: Collection[str]) -> None:
    """Raise MarshtestError where a recipe, or a kind of job, asks for GPUs that this machine has not."""
    gpus = len(_gpus(devices))
    for kind, needed in resources.items():
        if needed.gpus > gpus:
            raise MarshtestError(
                f"resources.{kind}: asks for {needed.gpus:g} GPUs, and {gpus} are here. Lower it."
            )


def _at_once(resources: Mapping[str, Resources], gpus: int) -> int:
    """How many jobs share the GPUs: by the largest share of one that a kind of job asks for, if it does."""
    largest = max((needed.gpus for needed in resources.values()), default=0.0)
    return max(1, int(gpus / largest)) if largest else gpus * WORKERS_A_GPU


class Ray(Engine):
    """A Ray cluster; jobs ask it for processors and GPUs.

    Args:
        url: of the store, the same for all machines.
        address: of the cluster; None starts one on this machine.
        resources: what jobs ask for, by kind.
        devices: those that the recipes name.

    Raises:
        MarshtestError: Ray is not installed, not to be reached, or no node has what a job asks for.
    """

    def __init__(
        self,
        url: str,
        address: str | None,
        resources: Mapping[str, Resources],
        devices: Collection[str] = ("cpu",),
    ) -> None:
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
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive]
        # Asked here, since Ray would let such a job wait for a node that may yet come.
        try:
            _refuse(resources, nodes)
            self._share = _default_share(devices, nodes)
        except MarshtestError:
            self.close()
            raise
        # As many as could run if each asked for one processor; of more, Ray itself lets some wait.
        self.slots = max(1, int(sum(cpus for cpus, _ in nodes)))
        # A process that has used a GPU keeps it, whichever one Ray then means it to use: such a one ends
        # with its job.
        self._on_cpu, self._on_gpu = ray.remote(work), ray.remote(max_calls=1)(work)

    def submit(self, job: Job, resources: Resources) -> "Future[Ended]":
        cpus = resources.cpus or 1
        gpus = 0.0 if job.recipe.device == "cpu" else resources.gpus or self._share
        remote = self._on_gpu if gpus else self._on_cpu
        task = remote.options(num_cpus=cpus, num_gpus=gpus, max_retries=3)
        future: Future[Ended] = task.remote(self._url, job, cpus, os.getcwd()).future()
        return future

    def close(self) -> None:
        self._ray.shutdown()


def _default_share(devices: Collection[str], nodes: list[tuple[float, float]]) -> float:
    """The share of a GPU that a job asks for which does not say; 0 where no node has any.

    Raises:
        MarshtestError: a recipe asks for a GPU, and no node has one.
    """
    if any(gpus for _, gpus in nodes):
        return 1 / WORKERS_A_GPU
    if "cuda" in devices:
        raise MarshtestError(
            "device: cuda was asked for, and no node of the cluster has a GPU. Use cpu or auto."
        )
    return 0.0


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
    ended = attempt(_worker(url), job, silent)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # others use this GPU too
    return ended


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
