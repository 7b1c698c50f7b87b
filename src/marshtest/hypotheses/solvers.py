"""Convex problems solved exactly, each solution with its certificate, in float64."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from marshtest.errors import MarshtestError


@dataclass(frozen=True)
class Solution:
    """Where a µ-strongly convex F is found to be least.

    Attributes:
        theta: [d].
        gradient_norm: ‖∇F(θ)‖₂.
        curvature: µ.
    """

    theta: Tensor
    gradient_norm: float
    curvature: float

    @property
    def distance(self) -> float:
        """The true minimiser lies no further than this: ‖θ − θ*‖₂ ≤ ‖∇F(θ)‖₂ / µ."""
        return self.gradient_norm / self.curvature


@dataclass(frozen=True)
class Moments:
    """All that least squares needs to know of samples; those of fewer samples by subtraction.

    Attributes:
        count: n.
        xx: [d, d] Σ x xᵀ.
        xy: [d] Σ x y.
    """

    count: int
    xx: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Self:
        """Of samples x [n, d] with labels y [n]."""
        if len(x) != len(y):
            raise MarshtestError(
                f"least squares: {len(x)} rows of features and {len(y)} labels; there must be one each."
            )
        return cls(len(x), x.T @ x, x.T @ y)

    def __sub__(self, other: Self) -> Self:
        return type(self)(self.count - other.count, self.xx - other.xx, self.xy - other.xy)


def least_squares(moments: Moments, ridge: float = 0.0, *, minimum_norm: bool = False) -> Solution:
    """The θ of least ½ · mean (xᵀθ − y)² + ½ · ridge · ‖θ‖², in closed form.

    Args:
        moments: of the samples.
        ridge: λ ≥ 0.
        minimum_norm: of the many solutions of a singular problem the shortest; its certificate then
            holds within the span of the samples.

    Raises:
        MarshtestError: the problem is singular.
    """
    values, vectors = torch.linalg.eigh(moments.xx / moments.count)
    curvatures = values.clamp(min=0) + ridge
    tiny = len(values) * torch.finfo(values.dtype).eps * float(curvatures[-1])
    used = curvatures > tiny
    if not (minimum_norm or bool(used.all())):
        raise MarshtestError(
            f"least squares: the design is singular (rank {int(used.sum())} of {len(values)}) and nothing "
            "regularises it. Set ridge above 0, or minimum_norm to true for the shortest solution."
        )
    vectors, curvatures = vectors[:, used], curvatures[used]
    target = moments.xy / moments.count
    theta = torch.zeros_like(target)
    for _ in range(2):  # the second round refines
        left = target - moments.xx @ theta / moments.count - ridge * theta
        theta = theta + vectors @ ((vectors.T @ left) / curvatures)
    left = target - moments.xx @ theta / moments.count - ridge * theta
    return Solution(theta, float(left.norm()), float(curvatures[0]))
