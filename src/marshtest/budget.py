"""A budget that binds: of compute, every matrix product and convolution counted as it runs; or of epochs.

The unit of compute is a *sample pass*: what the model's forward on one sample costs in floating-point
operations. A backward then costs about 2, less where early layers are frozen, exactly as much as it
does. Counting happens below autograd, so it holds for any code: a user's unlearner, a copied model,
a new model, second derivatives.

A budget of epochs, as the paper's Table 2 counts, ends a stream of mini-batches after so many epochs of the
set that the method goes through. Operations are counted as well, and limit nothing.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Self, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from marshtest.errors import MarshtestError


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _cpu_attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}


T = TypeVar("T")


class BudgetSpent(BaseException):
    """Stops an unlearner at its limit. Not an Exception, so that `except Exception` cannot hide it."""


@cache
def _is_composite(func: Any) -> bool:
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(func.has_kernel_for_dispatch_key(composite))


class Meter(TorchDispatchMode):
    """Counts the floating-point operations that run inside it, and stops at a limit.

    Attributes:
        flops: counted so far; never above `limit`.
    """

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = limit
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):  # under inference mode these arrive whole
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None:
            return out
        flops = formula(*args, **kwargs, out_val=out)
        if self.flops + flops > self.limit:
            raise BudgetSpent
        self.flops += flops
        return out


@dataclass(frozen=True)
class Cost:
    """What a stage cost.

    Attributes:
        passes: forward and backward sample passes (one forward = 1).
        flops: floating-point operations of matrix products and convolutions.
        seconds: wall time.
    """

    passes: float
    flops: float
    seconds: float


class Budget:
    """A limit in sample passes, enforced while the budget is open (`with budget:`); or in epochs.

    Args:
        passes: the limit, in forward passes of one sample.
        flops_per_pass: what one such pass costs.
        epochs: the limit in epochs of the method's own training set instead; `passes` is infinite then.

    Example:
        >>> import torch
        >>> budget = Budget(passes=10, flops_per_pass=2 * 3 * 4)
        >>> with budget:
        ...     _ = torch.ones(5, 3) @ torch.ones(3, 4)  # five samples forward
        >>> budget.spent, budget.left, budget.progress
        (5.0, 5.0, 0.5)
    """

    def __init__(
        self, passes: float, flops_per_pass: float, *, epochs: float | None = None
    ) -> None:
        self.passes = passes
        self.flops_per_pass = flops_per_pass
        self.epochs = epochs
        self._passed = 0.0  # epochs
        self._milestones: list[float] = []
        self._reached: Callable[[float], None] | None = None
        self._meter = Meter(limit=passes * flops_per_pass)

    def __enter__(self) -> Self:
        self._meter.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._meter.__exit__(*error)  # type: ignore[no-untyped-call]

    @classmethod
    def of_epochs(cls, epochs: float, flops_per_pass: float) -> Self:
        """A limit in epochs of the method's own training set."""
        return cls(math.inf, flops_per_pass, epochs=epochs)

    @property
    def size(self) -> float:
        """The limit, in sample passes or in epochs."""
        return self.passes if self.epochs is None else self.epochs

    @property
    def spent(self) -> float:
        """Sample passes so far."""
        return self._meter.flops / self.flops_per_pass

    @property
    def left(self) -> float:
        """Sample passes that remain.

        Raises:
            MarshtestError: the budget is one of epochs.
        """
        if self.epochs is not None:
            raise MarshtestError(
                "budget: this one counts epochs (budget_unit: epochs), so no compute is left of it. "
                "Draw batches through budget.stream(batches, epoch=...), or look at budget.progress."
            )
        return self.passes - self.spent

    @property
    def progress(self) -> float:
        """Share of the budget spent, 0 to 1; of epochs, those that a stream has passed on."""
        if self.epochs is not None:
            return self._passed / self.epochs
        return self.spent / self.passes

    @property
    def flops(self) -> int:
        """Floating-point operations so far."""
        return self._meter.flops

    def on_the_way(self, milestones: Iterable[float], reached: Callable[[float], None]) -> None:
        """Call `reached` where a smaller budget's stream would end, at the latest when this one's does.

        A milestone, in the budget's own unit, that a step oversteps unforeseen is not reported.
        """
        self._milestones, self._reached = sorted(milestones), reached

    def stream(
        self,
        batches: Iterable[T],
        epoch: int | None = None,
        counted: Callable[[T], bool] = lambda batch: True,
    ) -> Iterator[T]:
        """Pass batches on while the budget affords one more step as dear as the dearest so far.

        One of epochs passes on its number of epochs.

        Args:
            batches: of any kind.
            epoch: mini-batches of one epoch of the set that the method goes through, as
                `task.batches_per_epoch` tells; a budget of epochs must know.
            counted: whether a batch is one of that set.

        Raises:
            MarshtestError: the budget is one of epochs, and `epoch` is not given.
        """
        if self.epochs is not None:
            yield from self._epochs_of(self.epochs, batches, epoch, counted)
            return
        dearest = 0.0
        for batch in batches:
            self._pass_milestones(dearest)
            if self.left < dearest:
                return
            before = self.spent
            yield batch
            dearest = max(dearest, self.spent - before)

    def _epochs_of(
        self, epochs: float, batches: Iterable[T], epoch: int | None, counted: Callable[[T], bool]
    ) -> Iterator[T]:
        """Batches of the epochs that are left."""
        if not epoch:
            raise MarshtestError(
                "budget: this one counts epochs (budget_unit: epochs), and the unlearner does not say "
                "what one is. Give budget.stream(batches, epoch=task.batches_per_epoch(samples, size))."
            )
        start, done = self._passed, 0
        for batch in batches:
            while self._milestones and done >= round((self._milestones[0] - start) * epoch):
                milestone = self._milestones.pop(0)
                if self._reached is not None and done:  # before the first step no model was run
                    self._reached(milestone)
            if done >= round((epochs - start) * epoch):
                return
            yield batch
            done += counted(batch)
            self._passed = start + done / epoch

    def _pass_milestones(self, dearest: float) -> None:
        while self._milestones and self._milestones[0] - self.spent < dearest:
            milestone = self._milestones.pop(0)
            if self._reached is not None and self.spent <= milestone:
                self._reached(milestone)


def flops_of(work: Callable[[], object]) -> int:
    """Floating-point operations of a piece of work, by running it once.

    Raises:
        MarshtestError: nothing countable ran, so no budget can be kept.
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
