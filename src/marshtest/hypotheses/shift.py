"""The first hypothesis: poisons shift a model further than clean samples do.

Softmax regression on a network's features, which is training the network's last layer alone (paper §6,
C.1, Figure 4). Some of the samples S are poisoned, which makes S_corr, and a fraction β of the poisons,
S^(β), is taken out again. The figure shows, against β,

    ‖θ(S_corr) − θ(S_corr ∖ S^(β))‖,     θ(·) the minimum of mean cross-entropy + ½ λ ‖θ‖²

and beside it the same for as many random samples, clean. Poisons are made on the features, against θ(S).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import pandas as pd
import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn.utils import skip_init

from marshtest.attacks import Attack, ForeignAttack, Knowledge, Poisoned, parse_attack
from marshtest.attacks.base import choose
from marshtest.data.samples import Dataset, Samples
from marshtest.experiment.recipe import DataSettings, Named
from marshtest.hypotheses.base import Line, norms
from marshtest.hypotheses.given import Given
from marshtest.hypotheses.statements import RANDOM
from marshtest.metrics.accuracy import accuracy
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress
from marshtest.plumbing.seeds import derive, generator
from marshtest.training.solvers import SoftmaxRegression, Solution
from marshtest.training.tasks import Classification

TASK = Classification()
KEY = ["set", "seed", "weight_decay"]


def _sets(sets: Any) -> Any:
    if not isinstance(sets, Mapping):
        return sets
    return {name: _set(value, f"sets.{name}") for name, value in sets.items()}


def _set(value: Any, where: str) -> Attack | Given:
    if isinstance(value, Mapping) and "path" in value:
        return Given.parse(value, where)
    attack = parse_attack(value, where)
    if isinstance(attack, ForeignAttack):
        raise MarshtestError(
            f"{where}: a study takes attacks that ship with the package, and {attack.name} is yours. Give "
            "its poisons as a file: path."
        )
    return attack


class Shift(Named):
    """The experiment of appendix C.1; defaults are the paper's, for all fields that it gives."""

    hypothesis: Literal["shift"]
    data: DataSettings = DataSettings()
    sets: Annotated[
        dict[str, SerializeAsAny[Attack] | Given], BeforeValidator(_sets), Field(min_length=1)
    ]
    poisons: int = Field(384, ge=1)  # poisons of each set
    betas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = tuple(b / 10 for b in range(11))
    weight_decay: float = Field(gt=0)  # λ, of all parameters, biases too
    smaller: tuple[Annotated[float, Field(gt=0)], ...] = ()  # further λ, for the first seed's sets
    error: float = Field(1e-3, gt=0)  # no solution may be further from the true one (L2)
    seeds: int = Field(5, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if RANDOM in self.sets:
            raise ValueError(
                f"sets.{RANDOM}: the name of the clean samples. Give this set another name."
            )
        if max(self.smaller, default=0) >= self.weight_decay:
            raise ValueError(
                f"smaller: {max(self.smaller):g} is no smaller than weight_decay {self.weight_decay:g}."
            )
        return self

    def run(self, progress: Progress, data: Dataset) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(rows, curves): a line for each set, seed and λ, and in curves for each β too."""
        problem = Problem(self, data)
        names = [*self.sets, RANDOM]
        lines: list[Line] = []
        for seed in range(self.seeds):
            for number, name in enumerate(names):
                progress(
                    (seed * len(names) + number) / self.seeds / len(names), f"{name}, seed {seed}"
                )
                lines += problem.measured(name, seed)
        curves = pd.DataFrame(lines)
        all_out, none_out = curves[curves["beta"] == 1], curves[curves["beta"] == 0]
        before = none_out[[*KEY, "accuracy", "target_probability", "size"]]
        rows = all_out.merge(before, on=KEY, suffixes=("", "_before"))
        return rows.drop(columns="beta"), curves


@dataclass
class Problem:
    """The samples, and the minima that were already found for them.

    Attributes:
        settings: of the study.
        data: features [N, F] and labels.
        known: for each λ the solution for clean samples, and a factor of the Hessian there, or None.
    """

    settings: Shift
    data: Dataset
    known: dict[float, tuple[Solution, Tensor | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        train = self.data.train
        if not train.x.is_floating_point() or train.x.dim() != 2:
            raise MarshtestError(
                f"data: must be features, floating-point x [N, F]. Got {list(train.x.shape)} of "
                f"{train.x.dtype}. Set data.features, or give a file of features."
            )
        if self.settings.poisons >= len(train):
            raise MarshtestError(
                f"poisons: {self.settings.poisons} of {len(train)} samples. Lower it."
            )

    def clean(self, weight_decay: float) -> tuple[Solution, Tensor | None]:
        """The solution for clean samples, and a factor of the Hessian there (None if it is too large)."""
        if weight_decay not in self.known:
            problem = self.regression(self.data.train, weight_decay)
            neighbours = [solution.theta for solution, _ in self.known.values()]
            solution = self.solved(problem, start=neighbours[-1] if neighbours else None)
            problem.join(solution.theta)
            self.known[weight_decay] = solution, problem.factor
        return self.known[weight_decay]

    def regression(
        self, samples: Samples, weight_decay: float, factor: Tensor | None = None
    ) -> SoftmaxRegression:
        """The softmax regression of samples, with a column of ones for biases."""
        features = TASK.inputs(nn.Identity(), samples)
        count, size = features.shape
        x = features.new_ones(count, size + 1, dtype=torch.float64)
        x[:, :-1] = features
        del features  # it may take some GiB, and its copy stands in x
        return SoftmaxRegression(x, samples.y, self.data.classes, weight_decay, factor)

    def solved(
        self, problem: SoftmaxRegression, remain: Tensor | None = None, start: Tensor | None = None
    ) -> Solution:
        """The solution for the samples that remain, as exact as the settings ask."""
        return problem.solve(remain, start, self.settings.error * problem.weight_decay)

    def model(self, theta: Tensor) -> nn.Module:
        """θ as a linear layer, in the features' precision."""
        model: nn.Linear = skip_init(nn.Linear, theta.shape[1] - 1, theta.shape[0])  # draws nothing
        with torch.no_grad():
            model.weight.copy_(theta[:, :-1])
            model.bias.copy_(theta[:, -1])
        return model.to(self.data.train.x).eval()

    def poisoned(self, name: str, seed: int) -> Poisoned:
        """S_corr and the ids of its poisons; for the set of random samples S itself, and their ids."""
        settings, train = self.settings, self.data.train
        if name == RANDOM:
            return Poisoned(train, choose(train, settings.poisons, derive(seed, RANDOM)), seed)
        attack = settings.sets[name]
        if isinstance(attack, Given):
            return attack.poison(train, settings.poisons)
        theta = self.clean(settings.weight_decay)[0].theta
        knowledge = Knowledge(
            TASK, self.data.test, lambda: self.model(theta), weight_decay=settings.weight_decay
        )
        return attack.poison(train, settings.poisons, knowledge, derive(seed, name))

    def measured(self, name: str, seed: int) -> Iterator[Line]:
        """A line for each λ and β of one set and seed."""
        settings = self.settings
        poisoned = self.poisoned(name, seed)
        order = torch.randperm(settings.poisons, generator=generator(seed, name, "order"))
        ids = poisoned.forget_ids[order.to(poisoned.forget_ids.device)]
        betas_of = {settings.weight_decay: sorted({0.0, *settings.betas, 1.0})}
        if seed == 0:
            betas_of |= {value: [0.0, 1.0] for value in settings.smaller}
        for weight_decay, betas in betas_of.items():
            clean, factor = self.clean(weight_decay)
            problem = self.regression(poisoned.samples, weight_decay, factor)
            before = clean if name == RANDOM else self.solved(problem, start=clean.theta)
            after = before
            for beta in betas:
                count = round(beta * len(ids))
                if count:
                    # Begun at the last solution: fewer samples by a tenth move the minimum little.
                    remain = ~torch.isin(poisoned.samples.ids, ids[:count])
                    after = self.solved(problem, remain, after.theta)
                yield {
                    **dict(zip(KEY, (name, seed, weight_decay), strict=True)),
                    "beta": beta,
                    "count": count,
                    **norms(before.theta - after.theta),
                    "size": float(after.theta.norm()),
                    **self.effect(name, poisoned, after.theta),
                    "objective": poisoned.figures.get("objective", math.nan),
                    "gradient_norm": max(before.gradient_norm, after.gradient_norm),
                    "distance": before.distance + after.distance,
                }

    def effect(self, name: str, poisoned: Poisoned, theta: Tensor) -> dict[str, float]:
        """What is left of the poison, where the attack can measure that."""
        model, attack = self.model(theta), self.settings.sets.get(name)
        effect = attack.effect(model, poisoned, TASK) if isinstance(attack, Attack) else None
        target_probability = (
            effect.figures.get("target_probability", math.nan) if effect else math.nan
        )
        return {
            "accuracy": accuracy(model, TASK, self.data.test),
            "target_probability": target_probability,
        }
