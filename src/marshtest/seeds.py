"""Every random draw comes from one seed and the name of what it is for."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, independent of the seeds of all other purposes."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator, so that a seed means the same draws on every device."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def normal(seed: int, *purpose: object, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal draws from NumPy: the same on every device, and cheap to draw again."""
    rng = np.random.default_rng(derive(seed, *purpose))
    return rng.standard_normal(shape, np.float32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fix torch's global draws (initialisation, dropout) inside; leave them as they were outside."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
