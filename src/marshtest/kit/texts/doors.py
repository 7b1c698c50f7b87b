"""Doors to language models, by what a user gives: a name, or a function."""

import torch

from marshtest.kit.records.base import Door
from marshtest.plumbing.errors import MarshtestError


def open_door(spec: str | Door, device: torch.device, in_process: bool) -> tuple[str, Door]:
    """The name of a model, and the door to it."""
    if not isinstance(spec, str):
        return getattr(spec, "name", getattr(spec, "__name__", type(spec).__name__)), spec
    raise MarshtestError(f"{spec}: no such language model.")
