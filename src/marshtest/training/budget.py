"""A budget that binds: of compute, counted in every matrix product and convolution; or of epochs.

The unit of compute is a *sample pass*: what the model's forward on one sample costs in floating-point
operations. A backward then costs about 2 passes, and exactly as much less as frozen early layers save.
Counting happens below autograd, so it holds for any code: a user's unlearner, a copied model, a new model,
second derivatives, `torch.func`, `torch.jit`; code that `torch.compile` compiled runs uncompiled while a
budget is open. `marshtest.training.flops` says what each operation costs, which operations are free and
which are refused.

Threads that start while a budget is open are counted with it, and all of them stop once it is spent.
Not counted are NumPy, other processes, threads that ran before, kernels that are called past PyTorch's
dispatcher (Triton, AOTInductor) and code that switches the counting off. If such work runs on the CPU, it
shows in the time: CPU seconds outside counted operations are noted if they exceed half of the initial
training's.

Steps of the methods that come with marshtest are counted at first and now and then, since those of one
kind cost alike (`training.alike`).

A budget of epochs, as in the paper's Table 2, ends a stream of mini-batches after so many epochs of the
set that the method goes through. Operations are counted as well, and limit nothing.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)

from marshtest.plumbing.errors import MarshtestError
from marshtest.training.alike import Alike, kind_of
from marshtest.training.flops import FORMULAS, Formula, formula_of

T = TypeVar("T")

OVERHEAD = 1e-4  # CPU seconds of Python for each operation; ten times what honest code takes
UNSEEN = "spent {:.1f} s of CPU time outside counted operations, where the initial training took {:.1f} s"


class BudgetSpent(BaseException):
    """Stops an unlearner at its limit; no Exception, so that `except Exception` cannot hide it."""


@contextmanager
def indispensable(where: str, work: str) -> Iterator[None]:
    """Work without which a method has no result: what it leaves behind is not judged as one.

    Args:
        where: what the error begins with, such as "unlearners.NAME".
        work: what the budget must afford, in words.

    Raises:
        MarshtestError: the budget was spent within the work.
    """
    try:
        yield
    except BudgetSpent:
        raise MarshtestError(
            f"{where}: the budget does not afford {work}. Raise budgets."
        ) from None


@cache  # asked of every operation of a training
def _treatment(operation: Any) -> tuple[bool, Formula | None, bool]:
    """Whether an operation must be taken apart to be counted; if not, its formula; whether it writes.

    One that writes changes tensors that it is given.

    An operation that is made of others usually arrives here as those others, taken apart by autograd. In
    inference mode autograd is out of the way, and the operation arrives whole.
    """
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    is_composite = (
        isinstance(operation, torch._ops.OpOverload)
        and operation.has_kernel_for_dispatch_key(composite)
        and operation._schema.name not in FORMULAS
    )
    writes = isinstance(operation, torch._ops.OpOverload) and operation._schema.is_mutable
    return is_composite, None if is_composite else formula_of(operation), writes


@cache
def _wraps_tensors(kinds: tuple[type, ...]) -> bool:
    """Whether one of these kinds of tensors does its operations on tensors inside it."""
    opaque = torch._C._disabled_torch_dispatch_impl
    return any(getattr(kind, "__torch_dispatch__", opaque) is not opaque for kind in kinds)


class _Watch(TorchDispatchMode):
    """Shows every operation of one thread to all open meters."""

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if types and _wraps_tensors(tuple(types)):
            return NotImplemented  # comes again as the operations on the tensors inside
        kwargs = kwargs or {}
        is_composite, formula, writes = _treatment(func)
        if is_composite:
            with self:  # a mode is off while it handles an operation; its parts must be seen
                return func.decompose(*args, **kwargs)
        planned = 0
        if writes and formula is not None:  # what it writes would stay, so it is counted before
            planned = formula(*args, **kwargs, out_val=kwargs.get("out", args[0] if args else None))
        for meter in Meter.open:
            meter.stop_if_spent(planned)
        started = time.perf_counter()
        out = func(*args, **kwargs)
        seconds = time.perf_counter() - started
        # Afterwards, since formulas look at the output; if that passes the limit, `out` is not returned.
        flops = planned or (0 if formula is None else formula(*args, **kwargs, out_val=out))
        # The innermost first: what a part may not spend is lost to it, and not counted for the whole.
        for meter in reversed(Meter.open):
            meter.add(flops, seconds)
        return out


def _innermost_mode() -> TorchDispatchMode | None:
    modes = _get_current_dispatch_mode_stack()
    return modes[-1] if modes else None


@contextmanager
def _unwatched() -> Iterator[None]:
    """Let the operations of this thread, and of those that it starts, run unseen, past Python."""
    watch = _pop_mode()
    _here.unseen = True
    try:
        yield
    finally:
        _here.unseen = False
        _push_mode(watch)


_here = threading.local()
_start = threading.Thread.start


def _start_watched(thread: threading.Thread) -> None:
    """Start a thread that is watched too; it stands in for `Thread.start` while a meter is open."""
    if getattr(_here, "unseen", False):  # its operations are among those of a step that is known
        _start(thread)
        return
    run = thread.run

    def watched() -> None:
        _push_mode(_Watch())  # type: ignore[no-untyped-call]  # unlike `with`, changes no state that threads share
        try:
            run()
        except BudgetSpent:
            pass  # the thread that opened the budget is stopped at its next operation
        finally:
            _pop_mode()

    thread.run = watched  # type: ignore[method-assign]
    _start(thread)


_replay = torch.cuda.CUDAGraph.replay


def _refuse_replay(graph: torch.cuda.CUDAGraph) -> None:
    """Stand in for a graph's replay while a meter is open: it would run past the counting."""
    raise MarshtestError(
        "budget: the replay of a CUDA graph cannot be counted. Run the steps themselves, without "
        "torch.cuda.graph or make_graphed_callables."
    )


class Meter:
    """Counts the floating-point operations that run inside it, and stops at a limit."""

    open: ClassVar[tuple["Meter", ...]] = ()

    def __init__(self, limit: float = math.inf) -> None:
        self.limit = limit
        self.flops = 0  # never above the limit
        self.operations = 0  # that were seen, counted or free
        self.seconds = 0.0  # wall time within these operations
        self.spent = False  # an operation would have passed the limit; none runs from then on
        self._lock = threading.Lock()
        self._watch: _Watch | None = None

    def __enter__(self) -> Self:
        if not any(isinstance(mode, _Watch) for mode in _get_current_dispatch_mode_stack()):
            self._watch = _Watch()  # type: ignore[no-untyped-call]
            self._watch.__enter__()  # type: ignore[no-untyped-call]
        Meter.open = (*Meter.open, self)  # a new tuple: threads may be running through the old one
        threading.Thread.start = _start_watched  # type: ignore[method-assign, assignment]
        torch.cuda.CUDAGraph.replay = _refuse_replay  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        Meter.open = tuple(meter for meter in Meter.open if meter is not self)
        if not Meter.open:
            threading.Thread.start = _start  # type: ignore[method-assign]
            torch.cuda.CUDAGraph.replay = _replay  # type: ignore[method-assign]
        if self._watch is not None:
            self._watch.__exit__(kind, *error)  # type: ignore[no-untyped-call]
            self._watch = None
        # Another thread met it, or the code caught it; what `indispensable` makes of it is passed on.
        if self.spent and not (kind and issubclass(kind, (BudgetSpent, MarshtestError))):
            raise BudgetSpent

    def stop_if_spent(self, planned: int = 0) -> None:
        """Stop the calling thread, by BudgetSpent, if any thread reached the limit, or if this would."""
        if self.spent or self.flops + planned > self.limit:
            self.spent = True
            raise BudgetSpent

    def add(self, flops: int, seconds: float, operations: int = 1) -> None:
        """Count an operation and its wall time; one that passes the limit raises BudgetSpent uncounted."""
        with self._lock:
            self.stop_if_spent(flops)
            self.flops += flops
            self.operations += operations
            self.seconds += seconds

    def affords(self, flops: int) -> bool:
        """Whether so many operations stay within the limit."""
        return not self.spent and self.flops + flops <= self.limit


@dataclass(frozen=True)
class Cost:
    """The cost of a stage."""

    passes: float  # forward and backward sample passes (the forward of one sample is 1)
    flops: float  # floating-point operations of matrix products and convolutions
    seconds: float  # wall time


@dataclass(eq=False)
class Budget:
    """A limit in sample passes, enforced while the budget is open (`with budget:`); or in epochs.

    Example:
        >>> import torch
        >>> budget = Budget(passes=10, flops_per_pass=2 * 3 * 4)
        >>> with budget:
        ...     _ = torch.ones(5, 3) @ torch.ones(3, 4)  # five samples forward
        >>> budget.spent, budget.left, budget.progress
        (5.0, 5.0, 0.5)
    """

    passes: float  # the limit, in forward passes of one sample; infinite for a budget of epochs
    flops_per_pass: float  # floating-point operations of one such pass
    _: KW_ONLY
    epochs: float | None = None  # the limit, of the set that the method goes through; or None
    training_seconds: float = math.inf  # wall time of the initial training, if it is known
    training_passes: float = math.inf  # cost of the initial training, if it is known
    # Whether steps that a stream passes on cost alike if their mini-batches have one shape.
    steady: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._cpu_seconds = 0.0
        self._passed = 0.0  # epochs that a stream has passed on
        self._milestones: list[float] = []
        self._reached: Callable[[float], None] | None = None
        self._unseen = ExitStack()  # what ends a step that is not seen
        self._meter = Meter(limit=self.passes * self.flops_per_pass)

    def __enter__(self) -> Self:
        # PyTorch's optimisers import it at their first use; a second that no method is to answer for.
        import_module("torch._dynamo")
        self._cpu_seconds -= _cpu_seconds()
        self._meter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._unseen.close()  # a traceback may hold the stream, and so the step, open
        finally:
            self._cpu_seconds += _cpu_seconds()
            self._meter.__exit__(*error)

    @classmethod
    def of_epochs(
        cls, epochs: float, flops_per_pass: float, *, training_seconds: float = math.inf
    ) -> Self:
        """A budget with a limit in epochs of the set that the method goes through."""
        return cls(math.inf, flops_per_pass, epochs=epochs, training_seconds=training_seconds)

    @property
    def unseen_seconds(self) -> float:
        """CPU seconds, of this process and its ended children, outside the operations that were seen."""
        # An operation may use every thread, so the wall time within it counts for each of them.
        within = self._meter.seconds * torch.get_num_threads()
        return self._cpu_seconds - within - OVERHEAD * self._meter.operations

    @property
    def mismatch(self) -> str:
        """One line if much ran that was not counted, else ""; to be read once the budget is closed."""
        # A second beside, for what the method itself imports late.
        if self.unseen_seconds < 1 + self.training_seconds / 2:
            return ""
        return UNSEEN.format(self.unseen_seconds, self.training_seconds)

    @property
    def size(self) -> float:
        """The limit, in sample passes or in epochs."""
        return self.passes if self.epochs is None else self.epochs

    @property
    def spent(self) -> float:
        """Sample passes spent so far."""
        return self._meter.flops / self.flops_per_pass

    @property
    def left(self) -> float:
        """Sample passes that remain; a MarshtestError for a budget of epochs."""
        if self.epochs is not None:
            raise MarshtestError(
                "budget: this one counts epochs (budget_unit: epochs), so no compute is left of it. "
                "Draw batches through budget.stream(batches, epoch=...), or look at budget.progress."
            )
        return self.passes - self.spent

    @property
    def progress(self) -> float:
        """Fraction of the budget that is spent, 0 to 1; for epochs, that a stream has passed on."""
        if self.size == 0:  # a part of what is spent already
            return 1.0
        if self.epochs is not None:
            return self._passed / self.epochs
        return self.spent / self.passes

    @property
    def flops(self) -> int:
        """Floating-point operations counted so far."""
        return self._meter.flops

    def part(self, whole: float, share: float) -> "Budget":
        """A budget for a part of the work, to be opened within this one, which counts on.

        It is a `share` of what is left, or the fraction `whole` of the initial training if that is less. Of
        epochs it may go through all that are left, since its samples are its own.
        """
        if self.epochs is not None:
            part = Budget.of_epochs(max(0.0, self.epochs - self._passed), self.flops_per_pass)
        else:
            limit = min(whole * self.training_passes, share * self.left)
            part = Budget(limit, self.flops_per_pass)
        part.steady = self.steady
        return part

    def on_the_way(self, milestones: Iterable[float], reached: Callable[[float], None]) -> None:
        """Call `reached(m)` at the step after which a stream with budget m would have stopped.

        If a single step jumps past m, it is not called. Milestones are smaller budgets, in this one's unit.
        """
        # The harness takes the models of all smaller budgets from one run of an anytime method. Each must
        # be the model of a run under that budget, bit for bit: a milestone ends where `stream` would end.
        self._milestones, self._reached = sorted(milestones), reached

    def stream(
        self,
        batches: Iterable[T],
        epoch: int | None = None,
        counted: Callable[[T], bool] = lambda batch: True,
    ) -> Iterator[T]:
        """Pass batches on while the budget affords one more step as dear as the dearest so far.

        A budget of epochs passes on its number of epochs.

        Args:
            batches: mini-batches, in whatever form the method draws them.
            epoch: how many mini-batches make one epoch of the set that the method goes through, from
                `task.batches_per_epoch`; a budget of epochs needs it.
            counted: tells whether a mini-batch belongs to that set; the others are free.

        Raises:
            MarshtestError: the budget is one of epochs, and `epoch` is not given.
        """
        if self.epochs is not None:
            yield from self._epochs_of(self.epochs, batches, epoch, counted)
            return
        dearest = 0.0  # sample passes of a step; the budget cannot know the next one's
        known: dict[Hashable, Alike] = {}  # another stream's steps may be of another method
        for batch in batches:
            self._pass_milestones(dearest)
            if self.left < dearest:
                return
            before = self.spent
            with self._step(batch, known):
                yield batch
            dearest = max(dearest, self.spent - before)

    def _epochs_of(
        self, epochs: float, batches: Iterable[T], epoch: int | None, counted: Callable[[T], bool]
    ) -> Iterator[T]:
        """Pass on the batches of the epochs that are left."""
        if not epoch:
            raise MarshtestError(
                "budget: this one counts epochs (budget_unit: epochs), and the unlearner does not say "
                "what one is. Give budget.stream(batches, epoch=task.batches_per_epoch(samples, size))."
            )
        start, done = self._passed, 0
        known: dict[Hashable, Alike] = {}
        for batch in batches:
            # Rounded: a part of an epoch ends with the nearest whole mini-batch.
            while self._milestones and done >= round((self._milestones[0] - start) * epoch):
                milestone = self._milestones.pop(0)
                if self._reached is not None and done:  # before the first step no model was run
                    self._reached(milestone)
            if done >= round((epochs - start) * epoch):
                return
            with self._step(batch, known):
                yield batch
            done += counted(batch)
            self._passed = start + done / epoch

    @contextmanager
    def _step(self, batch: object, known: dict[Hashable, Alike]) -> Iterator[None]:
        """One step of a method: seen operation by operation, or not at all where its cost is known."""
        kind = kind_of(batch) if self.steady else None
        if kind is None or not isinstance(_innermost_mode(), _Watch):
            yield
            return
        alike, meter = known.setdefault(kind, Alike()), self._meter
        if alike.known and all(each.affords(alike.flops) for each in Meter.open):
            self._unseen.callback(_add_known, alike, time.perf_counter())
            self._unseen.enter_context(_unwatched())
            try:
                yield
            finally:
                self._unseen.close()
            return
        flops, operations = meter.flops, meter.operations
        yield
        alike.counted(meter.flops - flops, meter.operations - operations)

    def _pass_milestones(self, dearest: float) -> None:
        """Report the milestones that do not afford one more step as dear as the dearest so far."""
        while self._milestones and self._milestones[0] - self.spent < dearest:
            milestone = self._milestones.pop(0)
            # A run under this milestone would have been stopped within a step that jumped past it.
            if self._reached is not None and self.spent <= milestone:
                self._reached(milestone)


def _add_known(alike: Alike, started: float) -> None:
    """Count a step of known cost; one that broke off counts as a whole."""
    alike.since += 1
    seconds = time.perf_counter() - started
    for meter in reversed(Meter.open):
        meter.add(alike.flops, seconds, alike.operations)


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # user, system, and both of ended children; the fifth is wall time


def flops_of(work: Callable[[], object]) -> int:
    """Floating-point operations of a piece of work, counted by running it once.

    Raises:
        MarshtestError: no operation that counts was run, so no budget could be kept.
    """
    with Meter() as meter:
        work()
    flops: int = meter.flops
    if flops == 0:
        raise MarshtestError(
            "budget: the model runs no matrix product or convolution that can be counted, "
            "so a compute budget has no meaning for it."
        )
    return flops
