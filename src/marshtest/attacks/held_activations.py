"""Activations held on the side of their kink where they stood: a network that is smooth in its weights.

The first run through a network keeps, for every ReLU-like activation, which side each value was on, as
bits; later runs replay them, whatever the values are by then. It works below modules, on the functions
that they call, so no network needs a change.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Bits:
    """A boolean tensor, eight values a byte, in its own memory order."""

    packed: Tensor
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, mask: Tensor) -> Self:
        """Pack a dense mask: eight equal stretches of its memory become the bits of one."""
        # As it lies in memory: a channels-last mask is dense too, and flatten() would copy it.
        flat = mask.as_strided((mask.numel(),), (1,)).view(torch.uint8)
        planes = F.pad(flat, (0, -mask.numel() % 8)).view(8, -1)
        packed = planes[0].clone()
        for bit in range(1, 8):
            # In place, where `|=` would first make a shifted copy.
            packed.add_(planes[bit], alpha=1 << bit)
        return cls(packed, mask.shape, mask.stride())

    def unpacked(self) -> Tensor:
        """The mask again, as uint8."""
        planes = self.packed.new_empty(8, len(self.packed))
        for bit in range(8):
            torch.bitwise_right_shift(self.packed, bit, out=planes[bit])
        return planes.bitwise_and_(1).as_strided(self.shape, self.stride)


class Gates(TorchFunctionMode):
    """Records the gates of what runs inside it, or replays recorded ones in the same order."""

    def __init__(self, recorded: "Gates | None" = None) -> None:
        super().__init__()
        self.recording = recorded is None
        # A copy, since a replay takes entries off, and one recording is replayed at several steps h.
        self.entries: deque[Any] = deque() if recorded is None else deque(recorded.entries)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        gate = GATED.get(func)
        if gate is None:
            return func(*args, **(kwargs or {}))
        return gate(self, *args, **(kwargs or {}))

    def keep(self, sides: Tensor) -> None:
        """Record on which side each value is."""
        # A GPU has room for a byte a value, and packing it to bits takes longer than the network.
        self.entries.append(sides if sides.is_cuda else Bits.of(sides))

    def sides(self, values: Tensor) -> Tensor:
        """[*shape] 1 where the values in this place were positive, else 0."""
        sides = self.entries.popleft()
        return (sides.unpacked() if isinstance(sides, Bits) else sides).to(values.dtype)


def _relu(gates: Gates, input: Tensor, inplace: bool = False) -> Tensor:
    if gates.recording:
        # PyTorch's own: a mode is off while it handles a function.
        output = torch.relu_(input) if inplace else torch.relu(input)
        # Not 0 where the input, which may be overwritten, is positive; five times as fast as to compare.
        gates.keep(output.detach().bool())
        return output
    sides = gates.sides(input)
    return input.mul_(sides) if inplace else input * sides


def _relu_(gates: Gates, input: Tensor) -> Tensor:
    return _relu(gates, input, inplace=True)


def _leaky_relu(
    gates: Gates, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    if gates.recording:
        output = F.leaky_relu(input, negative_slope, inplace)
        gates.keep(output.detach() > 0)
        return output
    slopes = negative_slope + (1 - negative_slope) * gates.sides(input)
    return input.mul_(slopes) if inplace else input * slopes


def _max_pool2d(gates: Gates, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if gates.recording:
        # A change of the winner is a kink, as a change of side is.
        output, winners = F.max_pool2d_with_indices(input, *args, **kwargs)
        gates.entries.append(winners)
        return output
    winners = gates.entries.popleft()
    return input.flatten(-2).gather(-1, winners.flatten(-2)).view(winners.shape)


GATED: dict[Any, Callable[..., Tensor]] = {
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu_: _relu_,
    F.leaky_relu: _leaky_relu,
    torch.max_pool2d: _max_pool2d,
}
