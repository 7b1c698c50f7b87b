"""Where tensors live."""

import torch

from marshtest.plumbing.errors import MarshtestError, unknown

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means here."""
    if name not in DEVICES:
        raise MarshtestError(f"device: {unknown('device', name, DEVICES)}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise MarshtestError("device: cuda is not available here. Use cpu or auto.")
    return torch.device(name)
