"""Programs of torch.export, in .pt2 files."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from marshtest.plumbing.errors import MarshtestError, first_line
from marshtest.training.tasks import scoring_batch


def open_program(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Any], int]:
    """The program as a function of one tensor, and the batch size that it is to be asked with.

    Raises:
        MarshtestError: no such file, no program, or one of several inputs.
    """
    if not path.is_file():
        raise MarshtestError(f"{path}: no such file.")
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs a traceback of what it raises
    try:
        program = torch.export.load(path)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        return _function(program), _batch(program, scoring_batch(device))
    except Exception as error:  # zip, JSON, schema: anything may be broken in it
        raise MarshtestError(
            f"{path}: not a readable torch.export program of one input "
            f"({type(error).__name__}: {first_line(error)})."
        ) from None
    finally:
        logger.setLevel(level)


def _input(program: torch.export.ExportedProgram) -> torch.fx.Node:
    """The one tensor among its inputs; the others are constants that it was exported with."""
    names = set(program.graph_signature.user_inputs)
    nodes: list[torch.fx.Node] = [
        node
        for node in program.graph.nodes
        if node.name in names and isinstance(node.meta.get("val"), Tensor)
    ]
    if len(nodes) != 1:
        raise ValueError(f"it has {len(nodes)}")
    return nodes[0]


def _function(program: torch.export.ExportedProgram) -> Callable[[Tensor], Any]:
    """The program with the tensor where it was at export: by position, keyword or in a structure."""
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


def _batch(program: torch.export.ExportedProgram, wanted: int) -> int:
    """The largest batch up to `wanted` that the program allows, else its smallest."""
    size = _input(program).meta["val"].shape[0]
    if isinstance(size, int):
        return size
    rule = size.node.expr  # such as s0, or 8·s0
    (symbol,) = rule.free_symbols
    bounds = program.range_constraints[symbol]
    low = max(1, int(bounds.lower))
    high = min(low + wanted, bounds.upper)
    sizes = [int(rule.subs(symbol, number)) for number in range(low, int(high) + 1)]
    return max((size for size in sizes if size <= wanted), default=sizes[0])
