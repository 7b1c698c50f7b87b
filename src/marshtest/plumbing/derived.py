"""A seed for each purpose, from one seed: without torch."""

import hashlib


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, independent of the seeds of all other purposes."""
    # Not hash(), which Python salts anew in each process; 63 bits fit every library's integers.
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
