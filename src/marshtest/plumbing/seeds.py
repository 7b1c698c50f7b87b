"""Random draws, each from one seed and the name of its purpose; and foreign code kept from our own."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from marshtest.plumbing.derived import derive as derive


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator, so that a seed means the same draws on every device."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def normal(seed: int, *purpose: object, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal draws from NumPy: the same on every device, and cheap to draw again."""
    rng = np.random.default_rng(derive(seed, *purpose))
    return rng.standard_normal(shape, np.float32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global draws of torch, NumPy and Python inside: initialisation, dropout, a user's own.

    Afterwards the global states, and the process's switches, are as they were, whatever foreign code did.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices), _switches_kept():
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _set_device(device: torch.device) -> None:
    # None takes PyTorch's mode for default devices away, which a default of "cpu" would leave on.
    torch.set_default_device(None if device.type == "cpu" else device)


# (get, set) of each switch that foreign code has been seen to turn and leave.
SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (os.getcwd, os.chdir),
    *(
        (partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind))
        for kind in ("cpu", "cuda")
    ),
    *(
        (partial(getattr, owner, name), partial(setattr, owner, name))
        for owner, name in (
            (torch.backends.cudnn, "benchmark"),
            (torch.backends.cudnn, "deterministic"),
            (torch.backends.cudnn, "allow_tf32"),
        )
    ),
)
# Dicts of hooks that run for every module or optimiser: PyTorch has no other way to list them.
HOOKS = [
    hooks
    for module in map(import_module, ("torch.nn.modules.module", "torch.optim.optimizer"))
    for name, hooks in vars(module).items()
    if name.startswith("_global_") and isinstance(hooks, dict)
]


@contextmanager
def _switches_kept() -> Iterator[None]:
    """Put the switches and global hooks back afterwards."""
    before = [get() for get, _ in SWITCHES]
    hooks = [dict(table) for table in HOOKS]
    try:
        yield
    finally:
        for (get, put), value in zip(SWITCHES, before, strict=True):
            if get() != value:  # setting some anew costs time, or warns
                put(value)
        for table, entries in zip(HOOKS, hooks, strict=True):
            table.clear()
            table.update(entries)
