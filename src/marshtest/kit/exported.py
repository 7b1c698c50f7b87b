"""Programs that torch.export wrote, in .pt2 files."""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from marshtest.plumbing.errors import MarshtestError, refused
from marshtest.training.tasks import scoring_batch

TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # PyTorch's environment variable


def open_program(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Any], int]:
    """The program as a function of one tensor, and the batch size to ask it with.

    Raises:
        MarshtestError: no such file, no program, or a program of several inputs.
    """
    if not path.is_file():
        raise MarshtestError(f"{path}: no such file. Give the path of a .pt2 program.")
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs a traceback of what it raises
    try:  # zip, JSON, schema: anything may be broken in it
        with refused(f"{path}: cannot be read as a torch.export program of one input"):
            with _no_pickles():
                program = torch.export.load(path)
            if device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, device)
            return _function(program), _batch(program, _wanted(program, device))
    finally:
        logger.setLevel(level)


@contextmanager
def _no_pickles() -> Iterator[None]:
    """Let PyTorch load nothing but tensors inside: a weight in the file may be said to be a pickle."""
    before = os.environ.get(TENSORS_ONLY)
    os.environ[TENSORS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TENSORS_ONLY]
        else:
            os.environ[TENSORS_ONLY] = before


def _input(program: torch.export.ExportedProgram) -> torch.fx.Node:
    """The one tensor among a program's inputs; the others are constants that it was exported with."""
    names = set(program.graph_signature.user_inputs)
    nodes: list[torch.fx.Node] = [
        node
        for node in program.graph.nodes
        if node.name in names and isinstance(node.meta.get("val"), Tensor)
    ]
    if len(nodes) != 1:
        raise ValueError(f"it has {len(nodes)} inputs")
    return nodes[0]


def _function(program: torch.export.ExportedProgram) -> Callable[[Tensor], Any]:
    """The program called as at export: the tensor may be positional, a keyword, or in a structure."""
    node, module = _input(program), program.module()
    dtype = node.meta["val"].dtype

    def function(x: Tensor) -> Any:
        leaves = [
            x.to(dtype) if leaf == node.name else leaf
            for leaf in program.graph_signature.user_inputs
        ]
        args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
        return module(*args, **kwargs)

    return function


def _wanted(program: torch.export.ExportedProgram, device: torch.device) -> int:
    """The batch size that suits the device, by the sizes of an input that are fixed."""
    sizes = _input(program).meta["val"].shape[1:]
    return scoring_batch(device, math.prod(size for size in sizes if isinstance(size, int)))


def _batch(program: torch.export.ExportedProgram, wanted: int) -> int:
    """The largest batch size up to `wanted` that the program allows, else its smallest."""
    size = _input(program).meta["val"].shape[0]
    if isinstance(size, int):
        return size
    rule = size.node.expr  # such as s0, or 8·s0
    (symbol,) = rule.free_symbols
    # Symbols have ranges, batch sizes do not: try the first values, and see what sizes they make.
    bounds = program.range_constraints[symbol]
    low = max(1, int(bounds.lower))
    high = min(low + wanted, bounds.upper)
    sizes = [int(rule.subs(symbol, number)) for number in range(low, int(high) + 1)]
    return max((size for size in sizes if size <= wanted), default=sizes[0])
