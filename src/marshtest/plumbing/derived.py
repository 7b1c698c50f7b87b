"""What is derived from values: a seed for each purpose from one seed, and a hash of settings; no torch."""

import hashlib
import json
from typing import Any


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, independent of the seeds of all other purposes."""
    # Not hash(), which Python salts anew in each process; 63 bits fit every library's integers.
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def hashed(values: Any) -> str:
    """Sixteen hex digits that tell values from others: a hash of their canonical JSON."""
    # Sorted, so that fields may be moved about in a class and old results are still found.
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Turn a NumPy or torch number into Python's own."""
    return value.item()
