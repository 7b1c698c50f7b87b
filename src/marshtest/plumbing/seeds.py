"""Every random draw comes from one seed and the name of what it is for."""

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
    """Seed the global draws of torch, NumPy and Python (initialisation, dropout, a user's own) inside, and
    leave the process's switches as they were outside, whatever foreign code does to them.
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
    torch.set_default_device(None if device.type == "cpu" else device)


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
        (partial(torch.is_autocast_enabled, of), partial(torch.set_autocast_enabled, of))
        for of in ("cpu", "cuda")
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
HOOKS = [
    hooks
    for module in map(import_module, ("torch.nn.modules.module", "torch.optim.optimizer"))
    for name, hooks in vars(module).items()
    if name.startswith("_global_") and isinstance(hooks, dict)
]


@contextmanager
def _switches_kept() -> Iterator[None]:
    before = [get() for get, _ in SWITCHES]
    hooks = [dict(of) for of in HOOKS]  # on every module or optimiser
    try:
        yield
    finally:
        for (get, put), value in zip(SWITCHES, before, strict=True):
            if get() != value:
                put(value)
        for of, kept in zip(HOOKS, hooks, strict=True):
            of.clear()
            of.update(kept)
