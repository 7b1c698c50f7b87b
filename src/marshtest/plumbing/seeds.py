"""Random draws: each follows from a seed and the name of its purpose, none from the process's state."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.backends import cudnn

from marshtest.plumbing.derived import derive as derive


def generator(seed: int, *purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of torch for one purpose; all devices draw alike from the CPU's, which is the default."""
    return torch.Generator(device).manual_seed(derive(seed, *purpose))


def normal(seed: int, *purpose: object, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal numbers for one purpose, drawn by NumPy, which is fast enough to draw them again."""
    rng = np.random.default_rng(derive(seed, *purpose))
    return rng.standard_normal(shape, np.float32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python inside, and restore them afterwards.

    Initialisation, dropout and a user's code draw from them. The process's switches, such as the default
    type or the working folder, are restored as well, whatever foreign code does to them.
    """
    # The current GPU alone, and where it is in use: to ask for the state of one opens a context on it.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices), switches_kept():
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # NumPy takes 32 bits
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _set_inference(mode: bool) -> None:
    torch.inference_mode(mode).__enter__()  # never left, as the one that it undoes never was


def _set_device(device: torch.device) -> None:
    # "cpu" would leave a mode that every call passes through; None takes it away.
    torch.set_default_device(None if device.type == "cpu" else device)


# What a process chooses for all code in it, as pairs (how to read it, how to set it).
SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.is_inference_mode_enabled, _set_inference),  # first, since it sets the next one too
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
        (partial(getattr, cudnn, name), partial(setattr, cudnn, name))
        for name in ("benchmark", "deterministic", "allow_tf32")
    ),
)
# The hooks that run on every module or optimiser of the process.
HOOKS = [
    hooks
    for module in map(import_module, ("torch.nn.modules.module", "torch.optim.optimizer"))
    for name, hooks in vars(module).items()
    if name.startswith("_global_") and isinstance(hooks, dict)
]


def _read(get: Callable[[], Any]) -> Any:
    """A switch's value; None of one that cannot be told."""
    try:
        return get()
    except (RuntimeError, OSError):  # beside PyTorch's newer switches; the folder was removed
        return None


@contextmanager
def switches_kept() -> Iterator[None]:
    """Restore the process's switches and its hooks on all modules afterwards, whatever runs inside."""
    values = [_read(get) for get, _ in SWITCHES]
    copies = [dict(hooks) for hooks in HOOKS]
    try:
        yield
    finally:
        for (get, put), value in zip(SWITCHES, values, strict=True):
            # To set a default anew changes PyTorch's newer switches.
            if value is not None and _read(get) != value:
                with suppress(OSError):  # the working folder itself was removed
                    put(value)
        for hooks, copy in zip(HOOKS, copies, strict=True):
            hooks.clear()  # in place: modules look into these very dicts
            hooks.update(copy)
