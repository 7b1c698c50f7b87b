"""Arrays that a user hands over, turned into the tensors that models train on.

A conversion is made if it loses nothing: NumPy arrays become tensors, one-hot labels become class numbers,
integer features become float32. An array that could mean two things is refused, with how to write either.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from marshtest.plumbing.errors import MarshtestError

CHANNELS = (1, 3, 4)  # counts that a last dimension of channels, [N, H, W, C], would have
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # few operations take them
MOST = 2**31  # labels are below it: a class number, and no id
EXACT = 2**24  # integers up to this are exact in float32


def as_inputs(array: Any, where: str) -> Tensor:
    """Inputs [N, ...] on the CPU: uint8 images [N, C, H, W], or float32.

    float64 is rounded to float32, in which models compute; bool and integer features must be exact in
    float32. uint8 stays uint8, and means pixels.

    Raises:
        MarshtestError: no numbers, no samples, NaN or infinity, or pixels in another layout.
    """
    x = _tensor(array, f"{where}: x")
    if x.dim() < 2 or 0 in x.shape[1:]:
        raise MarshtestError(
            f"{where}: x has shape {list(x.shape)}; it must be [N, ...] with at least one feature each."
        )
    if len(x) == 0:
        raise MarshtestError(f"{where}: x holds no samples. Give at least one row.")
    if x.dtype == torch.uint8:
        return _pixels(x, where)
    whole = not x.is_floating_point() and x.dtype != torch.bool
    if whole and max(int(x.max()), -int(x.min())) > EXACT:  # abs would overflow
        raise MarshtestError(
            f"{where}: x holds integers above {EXACT:,}, which float32 cannot tell apart. Scale them to "
            "floating point, or give token ids through a text data set."
        )
    # Looked at after the conversion: a large float64 is infinite in float32.
    broken = (~torch.isfinite(converted := x.float())).flatten(1).any(1).nonzero()
    if len(broken):
        row = int(broken[0])
        raise MarshtestError(f"{where}: row {row} holds NaN or infinite values. Clean or drop it.")
    return converted


def _pixels(x: Tensor, where: str) -> Tensor:
    """The same uint8 tensor, if its shape is that of images [N, C, H, W]."""
    shape = list(x.shape)
    if x.dim() == 4 and shape[1] not in CHANNELS and shape[3] in CHANNELS:
        raise MarshtestError(
            f"{where}: x is uint8 {shape}, which looks like [N, H, W, C]. Give [N, C, H, W]: "
            "x.permute(0, 3, 1, 2), or x.transpose(0, 3, 1, 2) in NumPy."
        )
    if x.dim() != 4:
        raise MarshtestError(
            f"{where}: x is uint8 {shape}; uint8 means images [N, C, H, W]. Give grey images [N, 1, H, W]: "
            "x[:, None], and features in floating point."
        )
    return x


def as_labels(array: Any, where: str) -> Tensor:
    """Labels [N] int64 of class numbers [N] or [N, 1] of any type, or of one-hot rows [N, C].

    Raises:
        MarshtestError: labels are no whole numbers, are soft, or are several a sample.
    """
    y = _tensor(array, f"{where}: y")
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dim() == 2:
        return _from_one_hot(y, where)
    if y.dim() != 1:
        raise MarshtestError(f"{where}: y has shape {list(y.shape)}; it must be [N], one a sample.")
    whole = y.to(torch.int64)
    # NaN is caught too: it equals nothing.
    fractional = (whole.to(y.dtype) != y).nonzero()
    if len(fractional):
        row = int(fractional[0])
        raise MarshtestError(
            f"{where}: row {row} has label {float(y[row]):g}; labels must be class numbers 0, 1, 2, …. "
            "Regression is not tested here; bin its values into classes."
        )
    if len(large := (whole >= MOST).nonzero()):
        row = int(large[0])
        raise MarshtestError(
            f"{where}: row {row} has label {int(whole[row])}. Number the classes from 0 on."
        )
    return whole


def _from_one_hot(y: Tensor, where: str) -> Tensor:
    """[N] class numbers of one-hot rows [N, C]."""
    mixed = (((y != 0) & (y != 1)).any(1) | (y.sum(1) != 1)).nonzero()
    if len(mixed):
        row = int(mixed[0])
        raise MarshtestError(
            f"{where}: row {row} of y is {y[row].tolist()}; a row of [N, C] labels must be one-hot. Soft "
            "labels and several labels a sample are not supported; give class numbers [N]."
        )
    return y.to(torch.int64).argmax(1)


def _tensor(array: Any, where: str) -> Tensor:
    """A dense tensor of real numbers on the CPU."""
    if isinstance(array, np.ndarray) and array.dtype.kind in "biuf":
        # PyTorch reads no foreign byte order, and few of its operations take unsigned integers over 8 bits.
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        if native.dtype.kind == "u" and native.itemsize > 1:
            native = native.astype(np.int64)
        # from_numpy refuses the negative strides of x[::-1].
        return torch.from_numpy(np.ascontiguousarray(native))
    if not isinstance(array, Tensor) or array.layout != torch.strided or array.is_complex():
        kind = getattr(array, "dtype", type(array).__name__)
        raise MarshtestError(f"{where} is {kind}; give a dense tensor or NumPy array of numbers.")
    tensor = array.detach().cpu()
    return tensor.to(torch.int64) if tensor.dtype in UNSIGNED else tensor
