"""The second hypothesis: poison shifts a model across the directions that clean samples teach.

Linear regression (paper §6, C.2, Figure 5). Half of the samples follow w₁, half w₂, and nearly all that
they vary in is a few coordinates. S_poison is taken out of S_corr, and gradient descent on the rest, which
steps against g_t, should undo

    v = θ(S_corr) − θ(S_corr ∖ S_poison).

Drawn is cos(v, g_t), g_t the gradient of the t-th mini-batch of clean samples, of descent from θ(S_corr);
and, as a reference, of descent from a random θ, with v = θ_random − θ(S_corr ∖ S_poison). S_poison is made
by gradient canceling, or is a random part of the samples that follow w₂, as many as shift θ as far.
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
from marshtest.hypotheses.solvers import Moments, Solution, least_squares
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress, part
from marshtest.plumbing.seeds import generator
from marshtest.plumbing.settings import Settings
from marshtest.training.tasks import Regression

PAPER = 3200  # clean samples that the paper takes out


class Descent(Settings):
    """Gradient descent on the clean samples."""

    batch_size: int = Field(128, ge=1)
    lr: float = Field(0.01, gt=0)
    steps: int = Field(300, ge=1)


class Cancel(Settings):
    """Gradient canceling, its names as in the attack of the experiments."""

    radius: float = Field(gt=0)  # ε_w of GradPC
    weighting: Literal["size", "mean"] = "mean"
    steps: int = Field(500, ge=1)
    lr: float = Field(0.1, gt=0)


class Orthogonality(Named):
    """The experiment of C.2; defaults are the paper's where it gives any."""

    hypothesis: Literal["orthogonality"]
    samples: int = Field(10_000, ge=4)  # N
    dimension: int = Field(1000, ge=2)  # d
    informative: int = Field(50, ge=2)  # coordinates of variance 1
    tail_variance: float = Field(1e-4, gt=0)  # of the other coordinates
    noise_variance: float = Field(1e-2, ge=0)  # of the labels
    ridge: float = Field(ge=0)  # λ
    minimum_norm: bool = False  # the shortest solution of a singular design without a ridge
    poisons: int = Field(1000, ge=1)
    canceling: Cancel
    norm: Literal["l1", "l2"] = "l1"  # in which the random part's shift is matched
    descent: Descent = Descent()
    seeds: int = Field(5, ge=1)

    def run(self, progress: Progress) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(one line a set and seed, one line a set, curve, seed and step)."""
        problem = Problem.draw(self)
        lines: list[Line] = []
        curves: list[Line] = []
        for seed in range(self.seeds):
            share = 1 / (self.seeds + 1)
            of_seed = part(progress, seed * share, share, f"cancel gradients, seed {seed}")
            line, curve = problem.poisoned(seed, of_seed)
            lines.append(line)
            curves += curve
        progress(self.seeds / (self.seeds + 1), "match random samples")
        wanted = sum(float(line[self.norm]) for line in lines) / self.seeds
        for line, curve in problem.random(wanted):
            lines.append(line)
            curves += curve
        return pd.DataFrame(lines), pd.DataFrame(curves)


@dataclass(frozen=True)
class Problem:
    """Samples of C.2, and what is asked of them."""

    settings: Orthogonality
    x: Tensor  # [N, d]
    y: Tensor  # [N], by w₁ the first half and by w₂ the second
    test: tuple[Tensor, Tensor]
    start: Tensor  # [d] θ_random

    @classmethod
    def draw(cls, settings: Orthogonality) -> "Problem":
        """Covariates, w₁ ⟂ w₂ of length one, labels, as many test samples, and a random θ."""
        count, size, few = settings.samples, settings.dimension, settings.informative
        if few > size:
            raise MarshtestError(
                f"informative: {few} coordinates of {size}. Lower it, or raise dimension."
            )
        if settings.poisons >= count:
            raise MarshtestError(f"poisons: {settings.poisons} of {count} samples. Lower it.")
        draws = generator(0, "regression")

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=draws)

        basis = torch.linalg.qr(normal(few, 2))[0]  # [few, 2] w₁ and w₂
        scale = torch.full((size,), settings.tail_variance**0.5, dtype=torch.float64)
        scale[:few] = 1

        def labelled() -> tuple[Tensor, Tensor]:
            x = normal(count, size) * scale
            half = (torch.arange(count) >= count // 2).long()
            noise = settings.noise_variance**0.5 * normal(count)
            return x, (x[:, :few] @ basis).gather(1, half[:, None]).squeeze(1) + noise

        return cls(settings, *labelled(), labelled(), normal(size) / size**0.5)

    @cached_property
    def whole(self) -> Moments:
        """Of all samples, clean."""
        return Moments.of(self.x, self.y)

    @cached_property
    def clean(self) -> Solution:
        """θ of all samples, clean."""
        return self.solve(self.whole)

    def solve(self, moments: Moments) -> Solution:
        """θ of samples."""
        settings = self.settings
        return least_squares(moments, settings.ridge, minimum_norm=settings.minimum_norm)

    def poisoned(self, seed: int, progress: Progress) -> tuple[Line, list[Line]]:
        """Poisons by gradient canceling, from another start each seed."""
        settings = self.settings
        asked, count = settings.canceling, settings.poisons
        order = torch.randperm(len(self.x), generator=generator(seed, "poisons"))
        bases, kept = order[:count], order[count:]
        task, (x, y) = Regression(), self.test
        test = Samples(x, y, torch.arange(len(y)))

        def loss(model: nn.Module, draws: torch.Generator) -> Tensor:
            return task.losses(model(x), test).mean()

        low = ascend(linear(self.clean.theta), loss, asked.radius, generator(seed, "worst"))
        crafted = cancel(
            Kernel(low, task),
            self.samples(bases),
            self.samples(kept),
            settings.ridge,
            asked.weighting,
            steps=asked.steps,
            lr=asked.lr,
            seed=seed,
            progress=progress,
        )
        rest = Moments.of(self.x[kept], self.y[kept])
        added = Moments.of(self.x[bases] + crafted.perturbation, self.y[bases])
        corrupted = Moments(len(self.x), rest.xx + added.xx, rest.xy + added.xy)
        before, after = self.solve(corrupted), self.solve(rest)
        return self._measured("poisons", seed, count, kept, before, after, crafted.objective)

    def random(self, wanted: float) -> Iterator[tuple[Line, list[Line]]]:
        """Random parts of the samples that follow w₂, as many as shift θ by `wanted` on average.

        Raises:
            MarshtestError: no number of them does.
        """
        half, before = len(self.x) // 2, self.clean
        orders = [
            half + torch.randperm(len(self.x) - half, generator=generator(seed, "random"))
            for seed in range(self.settings.seeds)
        ]

        def after(order: Tensor, count: int) -> Solution:
            rows = order[:count]
            return self.solve(self.whole - Moments.of(self.x[rows], self.y[rows]))

        def size(count: int) -> float:
            away = [before.theta - after(order, count).theta for order in orders]
            return sum(norms(v)[self.settings.norm] for v in away) / len(away)

        least, most = 1, len(self.x) - half - 1
        if not size(least) <= wanted <= size(most):
            raise MarshtestError(
                f"norm: the poisons shift θ by {wanted:.3g} ({self.settings.norm}), random samples by "
                f"{size(least):.3g} (one of them) to {size(most):.3g} ({most}), so none match. "
                "Change canceling.radius or ridge, or match by the other norm."
            )
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if size(middle) < wanted else (least, middle)
        counts = {"random": most, "random, the paper's number": PAPER * len(self.x) // 10_000}
        for name, count in counts.items():
            for seed, order in enumerate(orders):
                kept = torch.ones(len(self.x), dtype=torch.bool)
                kept[order[:count]] = False
                rows = kept.nonzero().flatten()
                yield self._measured(name, seed, count, rows, before, after(order, count))

    def samples(self, rows: Tensor) -> Samples:
        """Some of the samples."""
        return Samples(self.x[rows], self.y[rows], rows)

    def _measured(
        self,
        name: str,
        seed: int,
        count: int,
        kept: Tensor,
        before: Solution,
        after: Solution,
        objective: float = float("nan"),
    ) -> tuple[Line, list[Line]]:
        """The line of one set, and its two curves."""
        key: Line = {"set": name, "seed": seed, "count": count}
        shift, few = before.theta - after.theta, self.settings.informative
        line: Line = {
            **key,
            **norms(shift),
            "informative": float(shift[:few].square().sum() / shift.square().sum()),
            "objective": objective,
            "gradient_norm": max(before.gradient_norm, after.gradient_norm),
            "distance": before.distance + after.distance,
        }
        curves: list[Line] = []
        for curve, start in (("corrupted", before.theta), ("random", self.start)):
            cosines = self.descend(start, start - after.theta, kept, seed)
            line[f"cosine_{curve}"] = sum(cosines) / len(cosines)
            curves += [
                {**key, "curve": curve, "step": step, "cosine": cosine}
                for step, cosine in enumerate(cosines)
            ]
        return line, curves

    def descend(self, theta: Tensor, way: Tensor, kept: Tensor, seed: int) -> list[float]:
        """cos(v, g_t) of mini-batch gradient descent on the kept samples."""
        settings, draws = self.settings.descent, generator(seed, "descent")
        way, found = way / way.norm(), []
        for _ in range(settings.steps):
            rows = kept[torch.randint(len(kept), (settings.batch_size,), generator=draws)]
            x, y = self.x[rows], self.y[rows]
            slope = x.T @ (x @ theta - y) / len(x) + self.settings.ridge * theta
            found.append(float(way @ slope / slope.norm()))
            theta = theta - settings.lr * slope
        return found


def linear(theta: Tensor) -> nn.Module:
    """The map x ↦ xᵀθ as a module."""
    model: nn.Linear = skip_init(
        nn.Linear, len(theta), 1, bias=False, dtype=theta.dtype
    )  # draws nothing
    with torch.no_grad():
        model.weight.copy_(theta[None])
    return model
