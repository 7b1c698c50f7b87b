"""Convex problems solved exactly, each solution with its certificate, in float64."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import generator

NEWTON_STEPS, ROUNDS = 200, 300  # at most, and of conjugate gradients in each
FORCING = 0.1  # share of the gradient that a Newton step may leave
STALE, STALE_JOINT = 1 / 25, 60  # rounds, times d or as they are, after which a factor is made anew
ROUNDING = 1e-14  # of the objective, below which it cannot tell points apart
JOINT = 8192  # largest C · d of a joint factor, half a gigabyte
SAMPLED = 10_000  # samples of a joint factor
CHUNK = 8192  # rows weighted at a time


@dataclass(frozen=True)
class Solution:
    """Where a µ-strongly convex F is found to be least.

    Attributes:
        theta: [d], or [C, d].
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


class SoftmaxRegression:
    """Least over θ [C, d]: the mean cross-entropy of the logits x θᵀ, plus ½ λ ‖θ‖².

    Newton's method with a line search, its equations solved by conjugate gradients. They are
    preconditioned by the Cholesky factor of one of two matrices, which is kept from one solution to the
    next, and made anew where many rounds show that it no longer serves.

        shared [d, d]     Σ_i s_i ½ (1 − Σ_c p_ic²) x_i x_iᵀ + λ, the same for every class: the weight
                          s_i p_ic (1 − p_ic) of sample i for class c is averaged over c with weights
                          p_ic, and halved. Cheap to make.
        joint [Cd, Cd]    the Hessian itself, of samples drawn in proportion to their share of its trace,
                          most of which few carry. Worth its price where many problems alike are solved.

    Args:
        x: [N, d] float64; a column of ones gives biases, which λ then holds too.
        y: [N] labels in 0..classes − 1.
        weight_decay: λ.
        factor: of a problem much like this one.

    Raises:
        MarshtestError: unequal lengths, or λ is not positive.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        classes: int,
        weight_decay: float,
        factor: Tensor | None = None,
    ) -> None:
        if len(x) != len(y):
            raise MarshtestError(
                f"softmax regression: {len(x)} rows of features and {len(y)} labels; there must be "
                "one each."
            )
        if weight_decay <= 0:
            raise MarshtestError(
                f"softmax regression: weight decay is {weight_decay:g}, and without it separable samples "
                "have no minimum. Set it above 0."
            )
        self.x, self.y, self.classes, self.weight_decay = x, y[:, None], classes, weight_decay
        self.factor = factor
        self.fast = x.float()  # for conjugate gradients, whose error the next Newton step undoes

    def solve(
        self, kept: Tensor | None = None, start: Tensor | None = None, tolerance: float = 1e-6
    ) -> Solution:
        """The solution for the samples that are kept.

        Args:
            kept: [N] bool; default all.
            start: [C, d]; default zero.
            tolerance: largest norm of the gradient.

        Raises:
            MarshtestError: it cannot be reached.
        """
        shares = self._shares(kept)
        theta = self.x.new_zeros(self.classes, self.x.shape[1]) if start is None else start
        logits = self.x @ theta.T
        value, rounds = self._value(theta, logits, shares), 0
        for _ in range(NEWTON_STEPS):
            p = logits.softmax(1)
            wrong = p.scatter_add(1, self.y, -torch.ones_like(shares)) * shares  # [N, C]
            slope = wrong.T @ self.x + self.weight_decay * theta
            size = float(slope.norm())
            if size <= tolerance:
                return Solution(theta, size, self.weight_decay)
            factor = self._fresh(p, shares, rounds)
            target = max(min(FORCING, size**0.5) * size, tolerance / 2)
            step, rounds = self._newton_step(slope, p, shares, factor, target)
            moved, length, gain = self.x @ step.T, 1.0, float((slope * step).sum())
            while True:
                found = self._value(theta + length * step, logits + length * moved, shares)
                if found <= value + 1e-4 * length * gain + ROUNDING * value or length < 1e-6:
                    break
                length /= 2
            theta, logits, value = theta + length * step, logits + length * moved, found
        raise MarshtestError(
            f"softmax regression: stays at a gradient of {size:.1e}, {tolerance:.1e} is asked for. "
            "Raise the tolerance, or the weight decay."
        )

    def join(self, theta: Tensor) -> None:
        """Take the joint factor at θ [C, d] from here on, if it is not too large."""
        if theta.numel() <= JOINT:
            self.factor = self._joint((self.x @ theta.T).softmax(1), self._shares(None))

    def _fresh(self, p: Tensor, shares: Tensor, rounds: int) -> Tensor:
        """The factor, made anew if the last step took many rounds."""
        joint = self.factor is not None and len(self.factor) > self.x.shape[1]
        patience = STALE_JOINT if joint else STALE * self.x.shape[1]
        if self.factor is None or rounds > patience:
            self.factor = self._joint(p, shares) if joint else self._shared(p, shares)
        return self.factor

    def _shared(self, p: Tensor, shares: Tensor) -> Tensor:
        curvatures = shares * (1 - p.square().sum(1, keepdim=True)) / 2
        found = self.weight_decay * torch.eye(self.x.shape[1]).to(self.x)
        for x, curvature in zip(self.x.split(CHUNK), curvatures.split(CHUNK), strict=True):
            found += x.T @ (curvature * x)
        return _cholesky(found)

    def _joint(self, p: Tensor, shares: Tensor) -> Tensor:
        classes, size = p.shape[1], self.x.shape[1]
        trace = shares[:, 0] * (1 - p.square().sum(1)) * self.x.square().sum(1)
        chance = (SAMPLED * trace / trace.sum()).clamp(max=1)
        draws = torch.rand(len(p), dtype=p.dtype, generator=generator(0, "curvature"))
        rows = draws.to(p.device) < chance
        x, p, weights = self.x[rows], p[rows], shares[rows, 0] / chance[rows]
        hessian = x.new_empty(classes, size, classes, size)
        for a in range(classes):
            for b in range(a, classes):
                curvature = weights * p[:, a] * (float(a == b) - p[:, b])
                hessian[a, :, b] = hessian[b, :, a] = x.T @ (curvature[:, None] * x)
        flat = hessian.view(classes * size, -1)
        flat.diagonal().add_(self.weight_decay)
        return _cholesky(flat).float()

    def _newton_step(
        self, slope: Tensor, p: Tensor, shares: Tensor, factor: Tensor, target: float
    ) -> tuple[Tensor, int]:
        """(step [C, d], rounds of conjugate gradients)."""
        p, weighted = p.to(self.fast), (p * shares).to(self.fast)
        step, left = torch.zeros_like(slope), -slope
        way = ready = _preconditioned(left, factor)
        along = (left * ready).sum()
        rounds = 0
        while rounds < ROUNDS and float(left.norm()) > target:
            rounds += 1
            bent = weighted * (self.fast @ way.to(self.fast).T)
            bent -= p * bent.sum(1, keepdim=True)
            curved = (bent.T @ self.fast).to(way) + self.weight_decay * way
            length = along / (way * curved).sum()
            step, left = step + length * way, left - length * curved
            ready = _preconditioned(left, factor)
            before, along = along, (left * ready).sum()
            way = ready + along / before * way
        return step, rounds

    def _shares(self, kept: Tensor | None) -> Tensor:
        """[N, 1] each sample's weight in the mean."""
        if kept is None:
            return torch.full_like(self.x[:, :1], 1 / len(self.x))
        return kept[:, None].to(self.x) / kept.sum()

    def _value(self, theta: Tensor, logits: Tensor, shares: Tensor) -> float:
        losses = logits.logsumexp(1, keepdim=True) - logits.gather(1, self.y)
        return float((shares * losses).sum() + self.weight_decay / 2 * theta.square().sum())


def _preconditioned(slope: Tensor, factor: Tensor) -> Tensor:
    """[C, d] from a factor for all classes at once, or for each."""
    if len(factor) == slope.numel():
        return (
            torch.cholesky_solve(slope.reshape(-1, 1).to(factor), factor).view_as(slope).to(slope)
        )
    return torch.cholesky_solve(slope.T, factor).T


def _cholesky(matrix: Tensor) -> Tensor:
    factor: Tensor = torch.linalg.cholesky(matrix)
    return factor
