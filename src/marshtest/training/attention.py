"""Attention in float32 where a processor computes all else in bfloat16.

The backward of PyTorch's fused attention takes several times as long in bfloat16 as in float32 on a CPU:
half of a small GPT-2's training.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Float32Attention(TorchFunctionMode):
    """A context in which `scaled_dot_product_attention` computes in float32, also under autocast."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **named)
        query = args[0] if args else named["query"]
        with torch.autocast("cpu", enabled=False):
            attended = func(*map(_float32, args), **{k: _float32(v) for k, v in named.items()})
        return attended.to(query.dtype)


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
