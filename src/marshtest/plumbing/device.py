"""The device that tensors live on, and how exactly it multiplies them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from marshtest.plumbing.errors import MarshtestError, unknown

DEVICES = ("auto", "cpu", "cuda")


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


@contextmanager
def exact_float32() -> Iterator[None]:
    """Multiply float32 numbers as float32 inside; the process's choice stands again afterwards.

    A GPU's TF32 keeps 10 of the 23 bits of a mantissa, and PyTorch lets convolutions use it by default.
    """
    tf32, precision = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    _choose(False, "highest")
    try:
        yield
    finally:
        _choose(tf32, precision)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads inside, None for as many as now; the process's number stands again."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choose(tf32: bool, precision: str) -> None:
    """Set what differs only: setting a default anew is a change to PyTorch's newer switches."""
    if torch.backends.cudnn.allow_tf32 != tf32:
        torch.backends.cudnn.allow_tf32 = tf32
    if torch.get_float32_matmul_precision() != precision:
        torch.set_float32_matmul_precision(precision)
