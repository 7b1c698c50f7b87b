"""A model's answer: where its logits are, and whether the layout of images in memory changes it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from marshtest.models.state import copied
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import seeded

ONEDNN_BLOCK = 8  # channels that a kernel for AVX2 takes at once


def logits_in(answer: object) -> Tensor:
    """The logits in an answer: a tensor or array, `.logits`, the key "logits", or the first of a tuple.

    Raises:
        MarshtestError: the answer holds no tensor or array in these places.
    """
    logits = getattr(answer, "logits", answer)
    if isinstance(logits, Mapping):
        logits = logits.get("logits", next(iter(logits.values())) if len(logits) == 1 else logits)
    while isinstance(logits, tuple | list) and logits:
        logits = logits[0]
    if isinstance(logits, Tensor):
        return logits
    if hasattr(logits, "__array__"):  # NumPy's, or what other frameworks answer with
        return torch.from_numpy(np.array(logits))
    keys = f"a dict of {', '.join(map(str, logits))}" if isinstance(logits, Mapping) else ""
    raise MarshtestError(
        f"model: answers with {keys or type(logits).__name__}, in which no logits are found. Let forward "
        'return them as a tensor, first in a tuple, or under the key "logits".'
    )


def overruns(model: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether the model has a convolution whose backward, channels last, writes past its memory.

    On processors with AVX2 and no AVX-512 oneDNN does so for kernels of one pixel that skip pixels, with
    fewer input channels than it takes at once (github.com/uxlfoundation/oneDNN/issues/6035, still open).
    Such models have one layout on all machines. What a model itself lays out otherwise is not seen.
    """
    return _convolutions(model, input_shape).overrun


def misreads(model: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether a convolution of the model may read unwritten memory in bfloat16 on a CPU with AMX.

    oneDNN's kernels do so for filters longer than the map that they are laid over or answer with: the
    gradient of the weights, and in three dimensions the answer, come out huge or NaN. Not all such do; of
    random convolutions none but such came out wrong.
    """
    try:
        return _convolutions(model, input_shape).overhangs
    except Exception:  # what fails is told where the model is tried on samples
        return False


def _convolutions(model: nn.Module, input_shape: tuple[int, ...]) -> "_Convolutions":
    seen = _Convolutions()
    with seeded(0), torch.no_grad(), seen:
        copied(model)(torch.randn(2, *input_shape))
    return seen


class _Convolutions(TorchDispatchMode):
    """Looks at every convolution that is run, whoever calls it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.overrun = self.overhangs = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            # Filters [out, in, …]; of a transposed convolution the roles are swapped.
            x, weight, _, stride, _, dilation = args[:6]
            narrow = weight.dim() == 4 and weight.shape[1] < ONEDNN_BLOCK
            self.overrun |= narrow and set(weight.shape[2:]) == {1} and set(stride) != {1}
            spread = [1 + (n - 1) * by for n, by in zip(weight.shape[2:], dilation, strict=True)]
            axes = zip(spread, x.shape[2:], answer.shape[2:], strict=True)
            self.overhangs |= any(length > min(maps) for length, *maps in axes)
        return answer


def takes_channels_last(model: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether a model of images answers alike when images and weights are laid out channels last.

    Code that relies on a tensor's layout in memory, such as `.view(B, -1)` after a convolution, does not.
    False, too, where a kernel would overrun its memory.
    """
    if len(input_shape) != 3:
        return False
    last = {"memory_format": torch.channels_last}
    with seeded(0):
        x, plain, moved = torch.randn(2, *input_shape), copied(model), copied(model)
        try:
            if overruns(model, input_shape):
                return False
            moved.to(**last)  # type: ignore[call-overload]
            # Answers are compared in eval mode, the last; in training dropout makes them differ.
            for training in (True, False):
                expected = logits_in(plain.train(training)(x.clone()))
                logits = logits_in(moved.train(training)(x.clone(**last)))
                logits.sum().backward()  # may be what fails
            # Kernels of the two layouts add up in different orders, hence the tolerance.
            return torch.allclose(expected, logits, rtol=1e-3, atol=1e-4, equal_nan=True)
        except (RuntimeError, TypeError, ValueError):
            return False
