"""Convex problems solved exactly, each solution with its certificate, in float64."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import generator

NEWTON_STEPS, ROUNDS = 200, 300  # at most, and rounds of conjugate gradients in each
FORCING = 0.1  # fraction of the gradient that a Newton step may leave: far from θ* more is wasted
# Rounds after which a factor is made anew: of a shared one as a share of d, since it costs d³ to make
# and d² a round to keep; a joint one costs so much more that it must no longer serve at all.
STALE, STALE_JOINT = 1 / 25, 60
ROUNDING = 1e-14  # of the objective: smaller decreases are rounding
ARMIJO = 1e-4  # fraction of the promised decrease that a step must bring
JOINT = 8192  # largest C · d of a joint factor, half a gigabyte
SAMPLED = 10_000  # samples that a joint factor is made of, on average
CHUNK = 8192  # rows weighted at a time


@dataclass(frozen=True)
class Solution:
    """The minimum of a µ-strongly convex F, with what certifies it.

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
        """Largest distance to the true minimiser: ‖θ − θ*‖₂ ≤ ‖∇F(θ)‖₂ / µ."""
        return self.gradient_norm / self.curvature


@dataclass(frozen=True)
class Moments:
    """Moments of samples, which least squares needs alone; moments of fewer samples by subtraction.

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
        """The moments of samples x [n, d] with labels y [n]."""
        if len(x) != len(y):
            raise MarshtestError(
                f"least squares: {len(x)} rows of features and {len(y)} labels. Give one label for each."
            )
        return cls(len(x), x.T @ x, x.T @ y)

    def __sub__(self, other: Self) -> Self:
        return type(self)(self.count - other.count, self.xx - other.xx, self.xy - other.xy)


def least_squares(moments: Moments, ridge: float = 0.0, *, minimum_norm: bool = False) -> Solution:
    """The minimum of ½ · mean (xᵀθ − y)² + ½ · ridge · ‖θ‖², in closed form.

    Args:
        moments: moments of the samples.
        ridge: λ ≥ 0.
        minimum_norm: take the shortest of the many solutions of a singular problem; the certificate then
            holds within the span of the samples.

    Raises:
        MarshtestError: the problem is singular.
    """
    values, vectors = torch.linalg.eigh(moments.xx / moments.count)
    curvatures = values.clamp(min=0) + ridge
    tiny = len(values) * torch.finfo(values.dtype).eps * float(curvatures[-1])
    nonzero = curvatures > tiny
    if not (minimum_norm or bool(nonzero.all())):
        raise MarshtestError(
            f"least squares: the design is singular (rank {int(nonzero.sum())} of {len(values)}) and "
            "nothing regularises it. Set ridge above 0, or minimum_norm to true for the shortest solution."
        )
    vectors, curvatures = vectors[:, nonzero], curvatures[nonzero]
    target = moments.xy / moments.count
    theta = torch.zeros_like(target)
    for _ in range(2):  # the second round takes off the rounding errors of the first
        residual = target - moments.xx @ theta / moments.count - ridge * theta
        theta = theta + vectors @ ((vectors.T @ residual) / curvatures)
    residual = target - moments.xx @ theta / moments.count - ridge * theta
    return Solution(theta, float(residual.norm()), float(curvatures[0]))


class SoftmaxRegression:
    """The minimum over θ [C, d] of the mean cross-entropy of the logits x θᵀ, plus ½ λ ‖θ‖².

    Newton's method with a line search, its equations solved by conjugate gradients. These are
    preconditioned by the Cholesky factor of one of two matrices, which is kept from one solution to the
    next, and made anew when many rounds show that it no longer serves; or by a diagonal.

        shared [d, d]     Σ_i s_i ½ (1 − Σ_c p_ic²) x_i x_iᵀ + λ, the same for every class: the weight
                          s_i p_ic (1 − p_ic) of sample i for class c is averaged over c with weights
                          p_ic, and halved. Cheap to make.
        joint [Cd, Cd]    the Hessian itself, estimated from samples drawn in proportion to their part of
                          its trace, most of which a few samples carry. Worth its price if many similar
                          problems are solved.
        diagonal [d]      of the shared matrix. Costs next to nothing, and takes more rounds.

    Args:
        x: [N, d] float64; a column of ones gives biases, which λ then holds too.
        y: [N] labels in 0..classes − 1.
        weight_decay: λ.
        factor: a factor of a similar problem.

    Raises:
        MarshtestError: unequal lengths, or λ is not positive.
    """

    def __init__(
        self, x: Tensor, y: Tensor, classes: int, weight_decay: float, factor: Tensor | None = None
    ) -> None:
        if len(x) != len(y):
            raise MarshtestError(
                f"softmax regression: {len(x)} rows of features and {len(y)} labels. Give one label for "
                "each."
            )
        if weight_decay <= 0:
            raise MarshtestError(
                f"softmax regression: weight decay is {weight_decay:g}; without any, separable samples "
                "have no minimum. Set weight decay above 0."
            )
        self.x, self.y, self.classes, self.weight_decay = x, y[:, None], classes, weight_decay
        self.factor = factor
        self.fast = x.float()  # for conjugate gradients, whose error the next Newton step undoes

    def solve(
        self, kept: Tensor | None = None, start: Tensor | None = None, tolerance: float = 1e-6
    ) -> Solution:
        """The solution for the samples that are kept.

        Args:
            kept: [N] bool; by default all.
            start: [C, d] θ to start at; by default zero.
            tolerance: largest norm of the gradient at the solution.

        Raises:
            MarshtestError: the tolerance cannot be reached.
        """
        weights = self._weights(kept)
        theta = self.x.new_zeros(self.classes, self.x.shape[1]) if start is None else start
        logits = self.x @ theta.T
        value, rounds = self._value(theta, logits, weights), 0
        for _ in range(NEWTON_STEPS):
            p, slope = self._slope(theta, logits, weights)
            size = float(slope.norm())
            if size <= tolerance:
                return Solution(theta, size, self.weight_decay)
            factor = self._fresh(p, weights, rounds)
            # Equations solved the better the nearer θ* is: convergence stays faster than linear.
            target = max(min(FORCING, size**0.5) * size, tolerance / 2)
            step, rounds = self._newton_step(slope, p, weights, factor, target)
            gain = float((slope * step).sum())
            theta, logits, value = self._line_search(theta, logits, step, value, gain, weights)
        raise MarshtestError(
            f"softmax regression: stays at a gradient of {size:.1e}; the tolerance is {tolerance:.1e}. "
            "Raise the tolerance, or the weight decay."
        )

    def newton(
        self,
        theta: Tensor,
        tolerance: float,
        rounds: Iterable[int] = range(ROUNDS),
        diagonal: bool = False,
    ) -> Tensor:
        """The end of one full Newton step from θ [C, d].

        Args:
            tolerance: fraction of the gradient that the step's equations may leave.
            rounds: given out one by one, for each round of conjugate gradients that is afforded.
            diagonal: whether a diagonal preconditions them, which costs next to nothing.
        """
        weights = self._weights(None)
        p, slope = self._slope(theta, self.x @ theta.T, weights)
        factor = self._diagonal(p, weights) if diagonal else self._fresh(p, weights, 0)
        target = tolerance * float(slope.norm())
        return theta + self._newton_step(slope, p, weights, factor, target, rounds)[0]

    def certified(self, theta: Tensor) -> Solution:
        """θ [C, d] with the certificate of how far from the minimum it is."""
        slope = self._slope(theta, self.x @ theta.T, self._weights(None))[1]
        return Solution(theta, float(slope.norm()), self.weight_decay)

    def _slope(self, theta: Tensor, logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(probabilities [N, C], gradient [C, d]) at θ."""
        p = logits.softmax(1)
        wrong = p.scatter_add(1, self.y, -torch.ones_like(weights)) * weights  # [N, C]
        return p, wrong.T @ self.x + self.weight_decay * theta

    def _line_search(
        self,
        theta: Tensor,
        logits: Tensor,
        step: Tensor,
        value: float,
        gain: float,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor, float]:
        """(θ, logits, objective) after the longest of the steps 1, ½, ¼, … that lowers the objective."""
        # Logits are linear in θ: one product serves all lengths.
        moved, length = self.x @ step.T, 1.0
        while True:
            there = self._value(theta + length * step, logits + length * moved, weights)
            promised = ARMIJO * length * gain
            if there <= value + promised + ROUNDING * value or length < 1e-6:
                return theta + length * step, logits + length * moved, there
            length /= 2

    def join(self, theta: Tensor) -> None:
        """Use the joint factor at θ [C, d] from now on, if it is not too large."""
        if theta.numel() <= JOINT:
            self.factor = self._joint((self.x @ theta.T).softmax(1), self._weights(None))

    @property
    def cost_of_step(self) -> float:
        """Floating-point operations of a Newton step with a shared factor and one round, at least."""
        samples, size = self.x.shape
        factor = 2 * samples * size**2 + size**3 / 3
        return factor + 4 * self.classes * size * (2 * samples + size)

    def _fresh(self, p: Tensor, weights: Tensor, rounds: int) -> Tensor:
        """The factor, made anew if the last step took many rounds."""
        joint = self.factor is not None and len(self.factor) > self.x.shape[1]
        patience = STALE_JOINT if joint else STALE * self.x.shape[1]
        if self.factor is None or rounds > patience:
            self.factor = self._joint(p, weights) if joint else self._shared(p, weights)
        return self.factor

    def _shared(self, p: Tensor, weights: Tensor) -> Tensor:
        """The factor that serves every class, from probabilities p [N, C]."""
        curvatures = self._curvatures(p, weights)
        matrix = self.weight_decay * torch.eye(self.x.shape[1]).to(self.x)
        for x, curvature in zip(self.x.split(CHUNK), curvatures.split(CHUNK), strict=True):
            matrix += x.T @ (curvature * x)
        return _cholesky(matrix)

    def _curvatures(self, p: Tensor, weights: Tensor) -> Tensor:
        """[N, 1] each sample's weight in the shared matrix."""
        return weights * (1 - p.square().sum(1, keepdim=True)) / 2

    def _diagonal(self, p: Tensor, weights: Tensor) -> Tensor:
        """[d] the diagonal of the shared matrix, from probabilities p [N, C]."""
        diagonal = torch.full_like(self.x[0], self.weight_decay)
        chunks = zip(self.x.split(CHUNK), self._curvatures(p, weights).split(CHUNK), strict=True)
        for x, curvature in chunks:
            diagonal += (curvature * x.square()).sum(0)
        return diagonal

    def _joint(self, p: Tensor, weights: Tensor) -> Tensor:
        """The factor of all classes together, from probabilities p [N, C] of a sample of rows."""
        classes, size = p.shape[1], self.x.shape[1]
        trace = weights[:, 0] * (1 - p.square().sum(1)) * self.x.square().sum(1)
        probability = (SAMPLED * trace / trace.sum()).clamp(max=1)
        uniform = torch.rand(len(p), dtype=p.dtype, generator=generator(0, "curvature"))
        rows = uniform.to(p.device) < probability
        # Divided by its probability, a drawn row stands for those that were not: no bias.
        x, p, weights = self.x[rows], p[rows], weights[rows, 0] / probability[rows]
        hessian = x.new_empty(classes, size, classes, size)
        for a in range(classes):
            for b in range(a, classes):
                curvature = weights * p[:, a] * (float(a == b) - p[:, b])
                hessian[a, :, b] = hessian[b, :, a] = x.T @ (curvature[:, None] * x)
        flat = hessian.view(classes * size, -1)
        flat.diagonal().add_(self.weight_decay)
        return _cholesky(flat).float()  # half the memory: a preconditioner need not be exact

    def _newton_step(
        self,
        slope: Tensor,
        p: Tensor,
        weights: Tensor,
        factor: Tensor,
        target: float,
        rounds: Iterable[int] = range(ROUNDS),
    ) -> tuple[Tensor, int]:
        """(step [C, d], rounds of conjugate gradients)."""
        p, weighted = p.to(self.fast), (p * weights).to(self.fast)
        step, residual = torch.zeros_like(slope), -slope
        direction = preconditioned = _preconditioned(residual, factor)
        energy = (residual * preconditioned).sum()
        done = 0
        for _ in rounds:
            if float(residual.norm()) <= target:
                break
            done += 1
            # The Hessian times the direction, without the Hessian: through the logits and back.
            curved_logits = weighted * (self.fast @ direction.to(self.fast).T)
            curved_logits -= p * curved_logits.sum(1, keepdim=True)
            product = (curved_logits.T @ self.fast).to(direction) + self.weight_decay * direction
            length = energy / (direction * product).sum()
            step, residual = step + length * direction, residual - length * product
            preconditioned = _preconditioned(residual, factor)
            before, energy = energy, (residual * preconditioned).sum()
            direction = preconditioned + energy / before * direction
        return step, done

    def _weights(self, kept: Tensor | None) -> Tensor:
        """[N, 1] each sample's weight in the mean."""
        if kept is None:
            return torch.full_like(self.x[:, :1], 1 / len(self.x))
        return kept[:, None].to(self.x) / kept.sum()

    def _value(self, theta: Tensor, logits: Tensor, weights: Tensor) -> float:
        losses = logits.logsumexp(1, keepdim=True) - logits.gather(1, self.y)
        return float((weights * losses).sum() + self.weight_decay / 2 * theta.square().sum())


def _preconditioned(slope: Tensor, factor: Tensor) -> Tensor:
    """[C, d] the factor's equations solved for a gradient; the factor is joint, shared or a diagonal."""
    if factor.dim() == 1:
        return slope / factor
    if len(factor) == slope.numel():
        return (
            torch.cholesky_solve(slope.reshape(-1, 1).to(factor), factor).view_as(slope).to(slope)
        )
    return torch.cholesky_solve(slope.T, factor).T


def _cholesky(matrix: Tensor) -> Tensor:
    factor: Tensor = torch.linalg.cholesky(matrix)
    return factor
