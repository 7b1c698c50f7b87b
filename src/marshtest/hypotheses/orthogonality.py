"""The second hypothesis: poison shifts a model across the directions that clean samples teach.

Linear regression (paper §6, C.2, Figure 5). Half of the samples follow w₁, half w₂, and nearly all their
variance lies in a few coordinates. S_poison is taken out of S_corr, and gradient descent on the rest, which
steps against g_t, should undo

    v = θ(S_corr) − θ(S_corr ∖ S_poison).

The figure shows cos(v, g_t), where g_t is the gradient of the t-th mini-batch of clean samples in a descent
from θ(S_corr); and, as a reference, in a descent from a random θ, with v = θ_random − θ(S_corr ∖ S_poison).
S_poison is made by gradient canceling, or is a random part of the samples that follow w₂, as many as shift
θ as far.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import skip_init

from marshtest.attacks.gradient_canceling import cancel
from marshtest.attacks.gradpc import ascend
from marshtest.attacks.kernel import Kernel
from marshtest.data.samples import Samples
from marshtest.experiment.recipe import Named
from marshtest.hypotheses.base import Line, norms
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress, part
from marshtest.plumbing.seeds import generator
from marshtest.plumbing.settings import Settings
from marshtest.training.solvers import Moments, Solution, least_squares
from marshtest.training.tasks import Regression

PAPER = 3200  # clean samples that the paper takes out of 10,000


class Descent(Settings):
    """Settings of gradient descent on the clean samples."""

    batch_size: int = Field(128, ge=1)
    lr: float = Field(0.01, gt=0)
    steps: int = Field(300, ge=1)


class Cancel(Settings):
    """Settings of gradient canceling, with the names of the attack of the experiments."""

    radius: float = Field(gt=0)  # ε_w of GradPC
    weighting: Literal["size", "mean"] = "mean"
    steps: int = Field(500, ge=1)
    lr: float = Field(0.1, gt=0)


class Orthogonality(Named):
    """The experiment of appendix C.2; defaults are the paper's, for all fields that it gives."""

    hypothesis: Literal["orthogonality"]
    samples: int = Field(10_000, ge=4)  # N
    dimension: int = Field(1000, ge=2)  # d
    informative: int = Field(50, ge=2)  # coordinates of variance 1
    tail_variance: float = Field(1e-4, gt=0)  # variance of the other coordinates
    noise_variance: float = Field(1e-2, ge=0)  # variance of the labels' noise
    ridge: float = Field(ge=0)  # λ
    minimum_norm: bool = False  # the shortest solution of a singular design without a ridge
    poisons: int = Field(1000, ge=1)
    canceling: Cancel
    norm: Literal["l1", "l2"] = "l1"  # norm by which the random part's shift is matched
    descent: Descent = Descent()
    seeds: int = Field(5, ge=1)

    def run(self, progress: Progress) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(rows, curves): a line for each set and seed, and for each set, curve, seed and step."""
        problem = Problem.draw(self)
        lines: list[Line] = []
        curves: list[Line] = []
        for seed in range(self.seeds):
            fraction = 1 / (self.seeds + 1)
            seed_progress = part(
                progress, seed * fraction, fraction, f"cancel gradients, seed {seed}"
            )
            line, curve = problem.poisoned(seed, seed_progress)
            lines.append(line)
            curves += curve
        progress(self.seeds / (self.seeds + 1), "match random samples")
        mean_shift = sum(float(line[self.norm]) for line in lines) / self.seeds
        for line, curve in problem.random(mean_shift):
            lines.append(line)
            curves += curve
        return pd.DataFrame(lines), pd.DataFrame(curves)


@dataclass(frozen=True)
class Problem:
    """The samples of C.2, and the shifts and descents that are measured on them."""

    settings: Orthogonality
    x: Tensor  # [N, d]
    y: Tensor  # [N] labels; the first half follow w₁, the second w₂
    test: tuple[Tensor, Tensor]  # x [N, d] and y [N] of the same law
    start: Tensor  # [d] θ_random

    @classmethod
    def draw(cls, settings: Orthogonality) -> "Problem":
        """Covariates, w₁ ⟂ w₂ of length one, labels, as many test samples, and a random θ."""
        count, size, informative = settings.samples, settings.dimension, settings.informative
        if informative > size:
            raise MarshtestError(
                f"informative: {informative} coordinates of {size}. Lower it, or raise dimension."
            )
        if settings.poisons >= count:
            raise MarshtestError(f"poisons: {settings.poisons} of {count} samples. Lower it.")
        rng = generator(0, "regression")

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=rng)

        basis = torch.linalg.qr(normal(informative, 2))[0]  # [informative, 2]: w₁ ⟂ w₂
        scale = torch.full((size,), settings.tail_variance**0.5, dtype=torch.float64)
        scale[:informative] = 1

        def labelled() -> tuple[Tensor, Tensor]:
            x = normal(count, size) * scale
            half = (torch.arange(count) >= count // 2).long()
            noise = settings.noise_variance**0.5 * normal(count)
            return x, (x[:, :informative] @ basis).gather(1, half[:, None]).squeeze(1) + noise

        return cls(settings, *labelled(), labelled(), normal(size) / size**0.5)

    @cached_property
    def whole(self) -> Moments:
        """The moments of all samples, clean."""
        return Moments.of(self.x, self.y)

    @cached_property
    def clean(self) -> Solution:
        """The solution for all samples, clean."""
        return self.solve(self.whole)

    def solve(self, moments: Moments) -> Solution:
        """The solution for the samples with these moments."""
        settings = self.settings
        return least_squares(moments, settings.ridge, minimum_norm=settings.minimum_norm)

    def poisoned(self, seed: int, progress: Progress) -> tuple[Line, list[Line]]:
        """The line and curves of poisons by gradient canceling, with another start for each seed."""
        settings = self.settings
        canceling, count = settings.canceling, settings.poisons
        order = torch.randperm(len(self.x), generator=generator(seed, "poisons"))
        bases, rest_rows = order[:count], order[count:]
        task, (x, y) = Regression(), self.test
        test = Samples(x, y, torch.arange(len(y)))

        def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
            return task.losses(model(x), test).mean()

        worst = ascend(linear(self.clean.theta), loss, canceling.radius, generator(seed, "worst"))
        crafted = cancel(
            Kernel(worst, task),
            self.samples(bases),
            self.samples(rest_rows),
            settings.ridge,
            canceling.weighting,
            steps=canceling.steps,
            lr=canceling.lr,
            seed=seed,
            progress=progress,
        )
        rest = Moments.of(self.x[rest_rows], self.y[rest_rows])
        added = Moments.of(self.x[bases] + crafted.perturbation, self.y[bases])
        corrupted = Moments(len(self.x), rest.xx + added.xx, rest.xy + added.xy)
        before, after = self.solve(corrupted), self.solve(rest)
        return self._measured("poisons", seed, count, rest_rows, before, after, crafted.objective)

    def random(self, target: float) -> Iterator[tuple[Line, list[Line]]]:
        """Lines and curves of random parts of the samples that follow w₂.

        Args:
            target: norm of the shift of θ that the parts have on average, over seeds.

        Raises:
            MarshtestError: no number of these samples shifts θ as far.
        """
        half, before = len(self.x) // 2, self.clean
        orders = [
            half + torch.randperm(len(self.x) - half, generator=generator(seed, "random"))
            for seed in range(self.settings.seeds)
        ]

        def after(order: Tensor, count: int) -> Solution:
            rows = order[:count]
            return self.solve(self.whole - Moments.of(self.x[rows], self.y[rows]))

        def mean_shift(count: int) -> float:
            away = [before.theta - after(order, count).theta for order in orders]
            return sum(norms(v)[self.settings.norm] for v in away) / len(away)

        least, most = 1, len(self.x) - half - 1
        if not mean_shift(least) <= target <= mean_shift(most):
            raise MarshtestError(
                f"norm: the poisons shift θ by {target:.3g} ({self.settings.norm}), random samples by "
                f"{mean_shift(least):.3g} (one of them) to {mean_shift(most):.3g} ({most}), so none match. "
                "Change canceling.radius or ridge, or match by the other norm."
            )
        while most - least > 1:  # more samples shift θ further, so halving finds the number
            middle = (least + most) // 2
            least, most = (middle, most) if mean_shift(middle) < target else (least, middle)
        counts = {"random": most, "random, the paper's number": PAPER * len(self.x) // 10_000}
        for name, count in counts.items():
            for seed, order in enumerate(orders):
                remains = torch.ones(len(self.x), dtype=torch.bool)
                remains[order[:count]] = False
                rows = remains.nonzero().flatten()
                yield self._measured(name, seed, count, rows, before, after(order, count))

    def samples(self, rows: Tensor) -> Samples:
        """The samples in some rows, clean."""
        return Samples(self.x[rows], self.y[rows], rows)

    def _measured(
        self,
        name: str,
        seed: int,
        count: int,
        rest_rows: Tensor,
        before: Solution,
        after: Solution,
        objective: float = float("nan"),
    ) -> tuple[Line, list[Line]]:
        """The line of one set, and its two curves.

        Args:
            name: the set's name.
            seed: seed of the set, and of the descents.
            count: number of samples taken out.
            rest_rows: rows of the samples that remain.
            before: solution with the set.
            after: solution without it.
            objective: what gradient canceling reached, for poisons.
        """
        key: Line = {"set": name, "seed": seed, "count": count}
        shift, informative = before.theta - after.theta, self.settings.informative
        line: Line = {
            **key,
            **norms(shift),
            "informative": float(shift[:informative].square().sum() / shift.square().sum()),
            "objective": objective,
            "gradient_norm": max(before.gradient_norm, after.gradient_norm),
            "distance": before.distance + after.distance,
        }
        curves: list[Line] = []
        for curve, start in (("corrupted", before.theta), ("random", self.start)):
            cosines = self.descend(start, start - after.theta, rest_rows, seed)
            line[f"cosine_{curve}"] = sum(cosines) / len(cosines)
            curves += [
                {**key, "curve": curve, "step": step, "cosine": cosine}
                for step, cosine in enumerate(cosines)
            ]
        return line, curves

    def descend(self, theta: Tensor, direction: Tensor, rows: Tensor, seed: int) -> list[float]:
        """cos(v, g_t) in mini-batch gradient descent from θ on the samples in `rows`; `direction` is v."""
        settings, rng = self.settings.descent, generator(seed, "descent")
        direction, cosines = direction / direction.norm(), []
        for _ in range(settings.steps):
            batch = rows[torch.randint(len(rows), (settings.batch_size,), generator=rng)]
            x, y = self.x[batch], self.y[batch]
            gradient = x.T @ (x @ theta - y) / len(x) + self.settings.ridge * theta
            cosines.append(float(direction @ gradient / gradient.norm()))
            theta = theta - settings.lr * gradient
        return cosines


def linear(theta: Tensor) -> nn.Module:
    """The map x ↦ xᵀθ as a module."""
    # Without an initialisation, whose draws would move the global generator.
    model: nn.Linear = skip_init(nn.Linear, len(theta), 1, bias=False, dtype=theta.dtype)
    with torch.no_grad():
        model.weight.copy_(theta[None])
    return model
