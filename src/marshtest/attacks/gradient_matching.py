"""Targeted poisons by gradient matching (paper §4.1, A.1.1, Algorithm 1; Geiping et al. 2021).

    φ(∆) = 1 − cos( ∇_θ ℓ(x_target, y_adv),  Σ_i ∇_θ ℓ(x_i + ∆_i, y_adv) )      at the clean model

∆ descends by Adam on the sign of the derivative, its rate falling to a tenth three times, as Geiping et
al. do; the paper says "an Adam update". `sign: false` and `decay: false` are plain Adam, and `per_batch`
takes the cosine of so many poisons at a time, the mean of which is φ.

The poisons are images of class y_adv, changed by at most ε a pixel, so their labels look right.
Training on them pushes a model the way that training on the mislabelled target would. The attack has
worked if a model trained from scratch on the poisoned samples says y_adv on the target.
"""

from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from marshtest.attacks.base import (
    ALONE,
    Attack,
    CraftingContext,
    Effect,
    Knowledge,
    Poisoned,
    Tensors,
    learned,
)
from marshtest.attacks.crafting import BLIND, DECAYS, Crafted, craft, shuffled
from marshtest.attacks.kernel import STEP_PASSES, Kernel, Objective
from marshtest.attacks.presentation import EffectFigure, Presentation
from marshtest.data.samples import Samples
from marshtest.metrics.accuracy import likeliest, probabilities
from marshtest.metrics.presentation import Column, Score
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import part
from marshtest.plumbing.seeds import derive, generator
from marshtest.training.tasks import Task

PRESENTATION = Presentation(
    title="targeted",
    kind="targeted poisons (gradient matching)",
    scores={
        "target": Score(
            title="adversarial probability",
            legend="of the attacker's label on the targets",
            column="target_probability",
            low=0,
            high=1,
            each="targets",
        )
    },
    columns={
        "target_success": Column(
            title="success",
            low=0,
            high=1,
            digits=2,
            legend="share of targets that get the attacker's label",
            interval="wilson",
            count="targets",
        ),
        "target_misclassified": Column(title="", low=0, high=1),
    },
    effect=EffectFigure(
        axis="share of targets",
        columns={
            "target_misclassified": "misclassified (paper)",
            "target_success": "as the attacker wants",
        },
        high=1.05,
        figure="figure3",
        caption="Test accuracy, and targets mistaken, mean ± s.d. over seeds (the paper's Figure 3).",
    ),
    shuffled=BLIND,
)


class GradientMatching(Attack):
    """Witches' Brew: clean-label images that make a model mistake a target (paper §4.1)."""

    name: str = "gradient-matching"
    presentation: ClassVar[Presentation] = PRESENTATION
    crafted: ClassVar[bool] = True
    epsilon: float = Field(16, gt=0)  # largest change of a pixel, in levels of 255
    targets: int = Field(1, ge=1)  # test images aimed at; the poisons are shared out among them
    target_class: int | None = Field(None, ge=0)  # of the targets; drawn where not given
    # y_adv: drawn where not given; "nearest" is the clean model's second choice for the target
    adversarial_label: Annotated[int, Field(ge=0)] | Literal["nearest"] | None = None
    restarts: int = Field(8, ge=1)  # R, of which the one of lowest φ is taken
    steps: int = Field(250, ge=1)  # M, each a pass over the poisons
    lr: float = Field(0.1, gt=0)  # of Adam, in units of the input space
    sign: bool = True  # step by the sign of the derivative
    decay: bool = True  # the rate falls to a tenth after 3/8, 5/8 and 7/8 of the steps
    per_batch: int | None = Field(None, ge=1)  # poisons whose gradients are summed; None sums all

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if self.target_class is not None and self.target_class == self.adversarial_label:
            raise ValueError(
                f"attack.adversarial_label: {self.adversarial_label} is the target's own class; "
                "choose another."
            )
        return self

    def poison(
        self,
        samples: Samples,
        count: int,
        knowledge: Knowledge,
        seed: int,
        context: CraftingContext = ALONE,
    ) -> Poisoned:
        if count < self.targets:
            raise MarshtestError(
                f"poison_budgets: {count} poisons are fewer than attack.targets, {self.targets}. Raise "
                "poison_budgets, or lower attack.targets."
            )
        clean = learned(knowledge, samples)
        targets, labels = self._aims(clean, knowledge, samples.y.unique(), seed)
        kernel = Kernel(clean, knowledge.task)
        ids: list[Tensor] = []
        best: list[Crafted] = []
        history, stopped = [], 0
        for number, label in enumerate(labels.tolist()):
            size = count // self.targets + (number < count % self.targets)
            free = samples.without(torch.cat(ids)) if ids else samples
            bases = _of_class(free, label, size, derive(seed, "bases", number))
            aim = replace(targets[number : number + 1], y=labels[number : number + 1])
            restarts = self._restarts(kernel, bases, aim, number, seed, context)
            for restart, crafted in enumerate(restarts):
                history += crafted.lines(target=number, restart=restart)
                stopped += crafted.stopped
            ids.append(bases.ids)
            best.append(min(restarts, key=lambda crafted: crafted.objective))
        return Poisoned(
            samples,
            torch.cat(ids),
            seed,
            perturbations=torch.cat([crafted.perturbation for crafted in best]),
            targets=targets,
            adversarial=labels,
            rest=knowledge.test.without(targets.ids),
            figures={
                "objective": sum(crafted.objective for crafted in best) / len(best),
                "stopped": float(stopped),
            },
            history=history,
        )

    def _restarts(
        self,
        kernel: Kernel,
        bases: Samples,
        aim: Samples,
        number: int,
        seed: int,
        context: CraftingContext,
    ) -> list[Crafted]:
        """The restarts for one target, each stored as it ends."""
        objective = matching(kernel.gradient(aim))
        box = kernel.task.box(kernel.model, bases, self.epsilon)
        total = self.targets * self.restarts

        def one(restart: int) -> Tensors:
            before = number * self.restarts + restart
            rng = generator(seed, "start", number, restart)
            where = torch.rand(box[0].shape, generator=rng).to(box[0].device)
            start = box[0] + where * (box[1] - box[0])
            crafted = craft(
                kernel,
                bases,
                objective,
                start,
                box,
                steps=self.steps,
                lr=self.lr,
                seed=derive(seed, "views", number),  # the same for all, so that φ compares starts
                progress=part(context.progress, before / total, 1 / total),
                decays=DECAYS if self.decay else (),
                signed=self.sign,
                per_batch=self.per_batch,
            )
            return crafted.tensors()

        return [
            Crafted.from_tensors(context.kept(f"crafted-{number}-{restart}", partial(one, restart)))
            for restart in range(self.restarts)
        ]

    def _aims(
        self, clean: nn.Module, knowledge: Knowledge, classes: Tensor, seed: int
    ) -> tuple[Samples, Tensor]:
        """Targets [T] that the clean model gets right, and the labels [T] that they are to get."""
        for key in ("target_class", "adversarial_label"):
            label = getattr(self, key)
            if isinstance(label, int) and label not in classes:
                raise MarshtestError(
                    f"attack.{key}: no training sample has label {label}; there are {classes.tolist()}."
                )
        rng, test = generator(seed, "targets"), knowledge.test
        p = probabilities(clean, knowledge.task, test)  # [N, C]
        # A target that is mistaken without poison would count as a success of the attack.
        allowed = (p.argmax(1) == test.y) & (test.y != self.adversarial_label)
        if self.target_class is not None:
            allowed &= test.y == self.target_class
        possible = allowed.nonzero().flatten()
        if len(possible) < self.targets:
            raise MarshtestError(
                f"attack.targets: the clean model gets {len(possible)} test samples right that could be "
                f"targets; {self.targets} are asked for. Raise training.epochs, or ask for fewer."
            )
        order = torch.randperm(len(possible), generator=rng)[: self.targets]
        rows = possible[order.to(possible.device)]
        true = test.y[rows]
        if isinstance(self.adversarial_label, int):
            return test[rows], torch.full_like(true, self.adversarial_label)
        if self.adversarial_label == "nearest":
            return test[rows], p[rows].scatter(1, true[:, None], -1).argmax(1)
        wrong = [classes[classes != label] for label in true.tolist()]
        labels = [others[torch.randint(len(others), (1,), generator=rng)] for others in wrong]
        return test[rows], torch.cat(labels)

    def shuffled(self, poisoned: Poisoned, seed: int) -> Samples:
        return shuffled(poisoned, seed)

    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        targets, labels = poisoned.targets, poisoned.adversarial
        assert targets is not None
        assert labels is not None
        p = probabilities(model, task, targets)  # [T, C]
        adversarial = p.gather(1, labels[:, None]).squeeze(1).double().cpu().numpy()
        says = likeliest(p)
        figures = {
            "target_probability": float(adversarial.mean()),
            "target_success": float((says == labels).double().mean()),
            "target_misclassified": float((says != targets.y).double().mean()),
        }
        return Effect(targets.ids.cpu().numpy(), {"target": adversarial}, figures)

    def passes(self, poisons: int, tests: int) -> float:
        return self.targets

    def crafting(self, poisons: int) -> tuple[int, float]:
        steps = self.targets * self.restarts * (self.steps + 1)
        return steps, STEP_PASSES * poisons / self.targets


def matching(target: Tensor) -> Objective:
    """φ(G) = 1 − cos(target, G), and its derivative."""
    unit = target / target.norm()

    def objective(total: Tensor) -> tuple[float, Tensor]:
        size = total.norm()
        cosine = unit @ total / size
        return 1 - float(cosine), (cosine * total / size - unit) / size

    return objective


def _of_class(samples: Samples, label: int, count: int, seed: int) -> Samples:
    """`count` samples of one class, drawn without replacement."""
    rows = (samples.y == label).nonzero().flatten()
    if len(rows) < count:
        raise MarshtestError(
            f"poison_budgets: asks for {count} poisons of class {label}, which has {len(rows)} "
            "training samples to spare. Lower it, or use more data."
        )
    order = torch.randperm(len(rows), generator=generator(seed, "choose"))
    return samples[rows[order[:count].to(rows.device)]]
