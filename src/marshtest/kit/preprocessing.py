"""A gradient for image processors, which have none.

Processors of Hugging Face resize, crop, reorder channels, rescale and normalise 8-bit pictures outside
autograd, each family in its own way. Whatever the settings, a processor is one map, up to rounding and
clipping:

    inputs[c] = Σ_k M[c, k] · clip(R x_k Cᵀ) + b[c]        R: rows, C: columns, M: channels

R, C, M and b are found by asking the processor itself about pictures of random stripes, so no setting
of any family is read, and none can be misread. The forward pass is always the processor's own. The map
gives only the backward pass, and only if it agrees with the processor on the pictures at hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from marshtest.kit.noise import LEVELS
from marshtest.plumbing.errors import MarshtestError

Process = Callable[[Tensor], Tensor]  # uint8 pictures [B, C, H, W] → inputs [B, c, h, w]

TOLERANCE = 2.0  # levels of 255, root mean square: rounding and clipping in two passes make 0.3…1
MIDDLE, STEP = 128, 80  # stripes of 48 and 208: bicubic overshoot is not clipped
RANGE = (-0.5, LEVELS - 0.5)  # is rounded to 0…255; so black and white pixels keep their gradient
SMALL = 0.003  # of a row's largest weight: smaller ones are zeros that rounding has moved
ASKED_AT_ONCE = 64  # pictures


@dataclass(frozen=True)
class Linear:
    """A processor as a map without rounding."""

    rows: Tensor  # [h, H] how rows are resized and cropped
    columns: Tensor  # [w, W] how columns are resized and cropped
    channels: Tensor  # [c, C] weight of each channel of the picture in each channel of the inputs
    offset: Tensor  # [c, h, w] inputs that a black picture gives

    def __call__(self, x: Tensor) -> Tensor:
        """[B, c, h, w] for pictures [B, C, H, W] in levels."""
        rows, columns, channels, offset = (
            part.to(x.device) for part in (self.rows, self.columns, self.channels, self.offset)
        )
        resized = (x @ columns.T).clamp(*RANGE)  # Pillow clips after each of two passes
        resized = (rows @ resized).clamp(*RANGE)
        return torch.einsum("ck,bkhw->bchw", channels, resized) + offset


class Differentiable:
    """A processor's own outputs, with the gradient of its linear map."""

    def __init__(self, process: Process, linear: Linear) -> None:
        self.process, self.linear = process, linear

    def __call__(self, x: Tensor) -> Tensor:
        exact = self.process(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return exact
        copy = self.linear(x)
        return copy + (exact - copy).detach()


def differentiable(process: Process, pictures: Tensor) -> Differentiable | None:
    """The processor with a gradient, or None if its linear map is none on pictures [B, C, H, W] uint8."""
    rng = torch.Generator().manual_seed(0)
    linear = linear_map(process, pictures.shape[1:], rng)
    # Dosed pictures are noisy, so the map must hold for such too.
    noisy_levels = torch.normal(pictures.float(), 40.0, generator=rng).round()
    noisy = noisy_levels.clamp(0, LEVELS - 1).to(torch.uint8)
    x = torch.cat([pictures, noisy])
    error = (linear(x.float()) - process(x)) / linear.channels.abs().sum(1).max()
    agrees = bool((error.square().mean((1, 2, 3)).sqrt() <= TOLERANCE).all())  # nan does not
    return Differentiable(process, linear) if agrees else None


def linear_map(process: Process, shape: torch.Size, rng: torch.Generator) -> Linear:
    """R, C, M and b of a processor of pictures [C, H, W]."""
    count, height, width = shape
    grey = torch.full((1, *shape), MIDDLE, dtype=torch.uint8)
    middle = process(grey)[0]
    single = grey.repeat(count, 1, 1, 1)
    single[range(count), range(count)] += STEP
    steps = (process(single) - middle) / STEP  # [C, c, h, w], one channel brighter
    gain = steps.sum(0)
    if not gain.any():
        raise MarshtestError(
            "the folder's image processor makes the same inputs of every picture. Mend its configuration."
        )
    # The input value that a brighter picture moves most: R is read along its column, C along its row.
    c, u, v = (int(i) for i in torch.unravel_index(gain.abs().argmax(), gain.shape))
    scale = STEP * gain[c, u, v]

    def weights(size: int, axis: Literal[2, 3]) -> Tensor:
        """R (axis 2) or C (axis 3), by least squares from twice as many stripes as unknowns."""
        signs = torch.randint(0, 2, (2 * size, size), generator=rng) * 2 - 1
        answers = []
        for part in signs.split(ASKED_AT_ONCE):
            stripes = (MIDDLE + STEP * part).to(torch.uint8)
            stripes = stripes[:, None, :, None] if axis == 2 else stripes[:, None, None, :]
            answer = process(stripes.expand(-1, *shape)) - middle
            answers.append(answer[:, c, :, v] if axis == 2 else answer[:, c, u, :])
        responses = torch.cat(answers) / scale
        solution: Tensor = torch.linalg.lstsq(signs.double(), responses.double()).solution.T.float()
        return solution * (solution.abs() > SMALL * solution.abs().amax(1, keepdim=True))

    channels = steps[:, :, u, v].T
    offset = middle - MIDDLE * gain
    return Linear(weights(height, 2), weights(width, 3), channels, offset)
