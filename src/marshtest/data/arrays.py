"""Inputs and labels that a user hands over, as the tensors that models train on.

A conversion that loses nothing is made: NumPy arrays become tensors, one-hot labels class numbers, integer
features float32. Whatever could mean something else is refused in one line that says how to write it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from marshtest.plumbing.errors import MarshtestError

CHANNELS = (1, 3, 4)  # of images that are laid out as [N, H, W, C]
EXACT = 2**24  # integers up to this are exact in float32


def as_inputs(given: Any, where: str) -> Tensor:
    """Inputs [N, ...] on the CPU: uint8 images [N, C, H, W], or float32.

    Args:
        given: a tensor or a NumPy array. float64 is rounded to float32, in which models compute; bool and
            integer features must be exact in float32. uint8 stays uint8, and means pixels.
        where: begins the line of an error, such as "data train".

    Raises:
        MarshtestError: no array of numbers, no samples, pixels in another layout, NaN or infinity.
    """
    x = _tensor(given, f"{where}: x")
    if x.dim() < 2 or 0 in x.shape[1:]:
        raise MarshtestError(
            f"{where}: x has shape {list(x.shape)}; it must be [N, ...] with at least one feature each."
        )
    if len(x) == 0:
        raise MarshtestError(f"{where}: no samples.")
    if x.dtype == torch.uint8:
        return _pixels(x, where)
    if not x.is_floating_point() and x.dtype != torch.bool and int(x.abs().max()) > EXACT:
        raise MarshtestError(
            f"{where}: x holds integers above {EXACT:,}, which float32 cannot tell apart. Scale them to "
            "floating point, or give token ids through a text data set."
        )
    bad = (~torch.isfinite(converted := x.float())).flatten(1).any(1).nonzero()
    if len(bad):
        row = int(bad[0])
        raise MarshtestError(f"{where}: row {row} holds NaN or infinite values. Clean or drop it.")
    return converted


def _pixels(x: Tensor, where: str) -> Tensor:
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


def as_labels(given: Any, where: str) -> Tensor:
    """Labels [N] int64 on the CPU, not yet compared with the number of classes.

    Args:
        given: class numbers [N] or [N, 1] of any type that holds them exactly, or one-hot rows [N, C].
        where: begins the line of an error.

    Raises:
        MarshtestError: real numbers, soft labels, several labels a sample.
    """
    y = _tensor(given, f"{where}: y")
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dim() == 2:
        return _hot(y, where)
    if y.dim() != 1:
        raise MarshtestError(f"{where}: y has shape {list(y.shape)}; it must be [N], one a sample.")
    whole = y.to(torch.int64)
    apart = (whole.to(y.dtype) != y).nonzero()
    if len(apart):
        row = int(apart[0])
        raise MarshtestError(
            f"{where}: row {row} has label {float(y[row]):g}; labels are class numbers 0, 1, 2, …. For a "
            "regression there is no test here; bin the values into classes."
        )
    return whole


def _hot(y: Tensor, where: str) -> Tensor:
    """Class numbers of one-hot rows [N, C]."""
    bad = (((y != 0) & (y != 1)).any(1) | (y.sum(1) != 1)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise MarshtestError(
            f"{where}: row {row} of y is {y[row].tolist()}; a row of [N, C] labels must be one-hot. Soft "
            "labels and several labels a sample are not supported; give class numbers [N]."
        )
    return y.to(torch.int64).argmax(1)


def _tensor(given: Any, where: str) -> Tensor:
    """A dense tensor of real numbers on the CPU."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "biuf":
        native = given.astype(given.dtype.newbyteorder("="), copy=False)
        wide = (
            native.astype(np.int64) if native.dtype.kind == "u" and native.itemsize > 1 else native
        )
        return torch.from_numpy(np.ascontiguousarray(wide))
    if not isinstance(given, Tensor) or given.layout != torch.strided or given.is_complex():
        what = getattr(given, "dtype", type(given).__name__)
        raise MarshtestError(f"{where} is {what}; give a dense tensor or NumPy array of numbers.")
    return given.detach().cpu()
