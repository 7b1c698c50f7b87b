"""The device that tensors live on: how it is chosen, how exactly it computes, and how it fails."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from marshtest.plumbing.errors import MarshtestError, message, unknown
from marshtest.plumbing.malloc import physical_memory

DEVICES = ("auto", "cpu", "cuda")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Without a work space of a fixed size cuBLAS takes sums in an order that differs from run to run.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"

CUDA_ERRORS = "CUDA error", "cuDNN error"

T = TypeVar("T")


def pick_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means here; a MarshtestError if PyTorch finds no such one."""
    if name not in DEVICES:
        raise MarshtestError(f"device: {unknown('device', name, DEVICES)}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise MarshtestError(
            "device: cuda was asked for, and PyTorch finds no GPU here. Use cpu or auto."
        )
    return torch.device(name)


def functions_device(name: str) -> torch.device:
    """The device that `name` means for a function that may not be PyTorch's: "auto" is the CPU."""
    return pick_device("cpu" if name == "auto" else name)


def memory(device: torch.device) -> float:
    """Bytes of the device's own memory; infinite where the system does not tell.

    Of a machine's memory it is the share of this process, as of the processors: others work beside it.
    """
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return physical_memory() * min(1.0, torch.get_num_threads() / (os.cpu_count() or 1))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU's on the device, without waiting until the device has done its work."""
    return tensor.to(device, non_blocking=True)  # it is read before the call returns


def clock() -> float:
    """Seconds of a steady clock, read once a GPU has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def failure(error: BaseException | None) -> BaseException | None:
    """The failure of the GPU itself that led to an error: no memory, or a CUDA error; None without one."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return error
        if isinstance(error, RuntimeError) and message(error).startswith(CUDA_ERRORS):
            return error
        error = error.__cause__ or error.__context__
    return None


def in_parts(work: Callable[[slice], T], count: int, size: int) -> Iterator[T]:
    """Give what `work` makes of slices of at most `size` rows, which cover `count` rows in order.

    Slices are halved for as long as one does not fit a GPU's memory.

    Raises:
        torch.OutOfMemoryError: not even a single row fits.
    """
    start = 0
    while start < count:
        rows = slice(start, min(start + size, count))
        try:
            result = work(rows)
        except torch.OutOfMemoryError:
            if rows.stop - start == 1:
                raise
            result = None
        if result is None:  # outside of the handler, whose traceback would hold the tensors
            size = (rows.stop - start + 1) // 2
            torch.cuda.empty_cache()
        else:
            yield result
            start = rows.stop


@contextmanager
def repeatable(device: torch.device, *, asked: bool) -> Iterator[None]:
    """Let a GPU give the same bits for the same work inside, where that is asked for; a CPU does anyway.

    Raises:
        MarshtestError: an operation has no such form on the GPU.
    """
    if not asked or device.type == "cpu":
        yield
        return
    mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    workspace = os.environ.get(WORKSPACE)
    os.environ.setdefault(WORKSPACE, ":4096:8")  # read as the GPU is used for the first time
    torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        line = str(error).partition(". ")[0]
        raise MarshtestError(f"deterministic: {line}. Leave deterministic out.") from None
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


@contextmanager
def exact_float32(*, tf32: bool = False) -> Iterator[None]:
    """Multiply float32 numbers as float32 inside; the process's choice stands again afterwards.

    A GPU's TF32 keeps 10 of the 23 bits of a mantissa, and PyTorch lets convolutions use it by default.

    Args:
        tf32: multiply in TF32 instead, which a GPU does several times as fast.
    """
    switches = _float32_switches()
    before = [get() for get, _, _ in switches]
    for get, put, choices in switches:
        if get() != choices[tf32]:  # to set a default anew changes PyTorch's newer switches
            put(choices[tf32])
    try:
        yield
    finally:
        for (get, put, _), value in zip(switches, before, strict=True):
            if get() != value:
                put(value)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads inside, None for as many as now; the process's number stands again."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Switch = tuple[Callable[[], object], Callable[[Any], object], tuple[object, object]]


def _float32_switches() -> list[Switch]:
    """How products of float32 numbers are switched: (how to read it, how to set it, (exact, TF32))."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    try:
        torch.get_float32_matmul_precision()
    except RuntimeError:
        # The process has used PyTorch's newer switches, beside which these are refused.
        kinds = [products, *(getattr(cudnn, kind) for kind in ("conv", "rnn"))]
        own = "fp32_precision"
        return [
            (partial(getattr, kind, own), partial(setattr, kind, own), ("ieee", "tf32"))
            for kind in kinds
        ]
    allow = partial(getattr, cudnn, "allow_tf32"), partial(setattr, cudnn, "allow_tf32")
    precision = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    return [(*allow, (False, True)), (*precision, ("highest", "high"))]
