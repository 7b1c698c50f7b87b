"""What an attack gives: poisoned samples, and what it can measure of itself on a model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from marshtest.attacks.presentation import Presentation
from marshtest.data.samples import Marked, Samples, Trigger
from marshtest.metrics.accuracy import accuracy
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import generator
from marshtest.plumbing.settings import Settings
from marshtest.training.tasks import Task

Floats = NDArray[np.float64]
Tensors = dict[str, Tensor]


def make_anew(name: str, make: Callable[[], Tensors]) -> Tensors:
    """Keep nothing."""
    return make()


@dataclass(frozen=True)
class Victim:
    """What an attack may know of the training that it poisons.

    Attributes:
        task: the training's loss and augmentation.
        test: samples that the victim will be tested on.
        weight_decay: λ of the training's loss + λ/2 ‖θ‖².
        clean: the model trained on the samples without poison.
        input_shape: of the input space, where it is not that of the samples' x.
        marked: where the attack's trigger was found.
        kept: what an earlier, stopped run made under a name; made and stored where there is none.
        progress: told the share of the crafting that is done, and how it stands in words.
    """

    task: Task
    test: Samples
    clean: Callable[[], nn.Module]
    input_shape: tuple[int, ...] | None = None
    marked: Marked | None = None
    weight_decay: float = 0.0
    kept: Callable[[str, Callable[[], Tensors]], Tensors] = make_anew
    progress: Progress = silent


@dataclass(frozen=True)
class Poisoned:
    """A training set with poison in it.

    Attributes:
        samples: all of it, [N].
        forget_ids: [P] ids of the poisons: the forget set.
        seed: the attack's secret; with the ids it tells the noise.
        targets: the test samples that the attack is aimed at, where it is aimed at some.
        adversarial: [T] the labels that it wants them to get, where it wants certain ones.
        rest: the other test samples, where the attack must leave them alone.
        true_labels: [P] the poisons' own, where they were given others.
        bases: [P] the samples that the poisons are copies of, where these stay in the retain set.
        figures: how the crafting went, for the rows.
        history: the objective as the crafting went on, one line a step.
    """

    samples: Samples
    forget_ids: Tensor
    seed: int
    targets: Samples | None = None
    adversarial: Tensor | None = None
    rest: Samples | None = None
    true_labels: Tensor | None = None
    bases: Tensor | None = None
    figures: dict[str, float] = field(default_factory=dict)
    history: Sequence[dict[str, float]] = ()

    @property
    def forget(self) -> Samples:
        """The forget set: the poisons, as trained on."""
        return self.samples.only(self.forget_ids)

    @property
    def retain(self) -> Samples:
        """The retain set: everything else."""
        return self.samples.without(self.forget_ids)

    @property
    def forgotten_bases(self) -> Samples:
        """The clean twin's forget set: the base samples, unperturbed."""
        if self.samples.perturbations is None:
            return self.unpoisoned.only(self.forget_ids)
        nothing = torch.zeros_like(self.samples.perturbations)
        bases = replace(self.forget, perturbations=nothing)
        return (
            bases
            if self.true_labels is None
            else bases.relabelled(self.forget_ids, self.true_labels)
        )

    @property
    def unpoisoned(self) -> Samples:
        """The training set with the base samples in the poisons' places: unperturbed, with true labels.

        Poisons that were added are copies of their bases then.
        """
        samples = replace(self.samples, perturbations=None, perturbation_rows=None)
        if self.true_labels is None:
            return samples
        return samples.relabelled(self.forget_ids, self.true_labels)

    def tensors(self) -> Tensors:
        """What was done to the samples: `ids` and `labels` of the poisons.

        Where there are any, `perturbations`, `targets`, `adversarial`, `true_labels` and `bases` too.
        """
        added, targets = self.samples.perturbations, self.targets
        labels = self.samples.y[self.samples.positions(self.forget_ids)]
        found = {
            "ids": self.forget_ids,
            "labels": labels,
            "perturbations": None if added is None else added[1:],
            "targets": None if targets is None else targets.ids,
            "adversarial": self.adversarial,
            "true_labels": self.true_labels,
            "bases": self.bases,
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def of(
        cls, tensors: Tensors, samples: Samples, test: Samples, *, rest: bool, **told: Any
    ) -> "Poisoned":
        """The same again from its tensors.

        Args:
            tensors: of `tensors()`.
            samples: the clean ones.
            test: those that the targets are among.
            rest: whether the attack must leave the other test samples alone.
            told: `seed`, `figures` and `history`, as they are.
        """
        moved = {name: tensor.to(samples.y.device) for name, tensor in tensors.items()}
        ids = moved["ids"]
        if "bases" in moved:
            samples = samples.copied(moved["bases"], ids)
        poisoned = samples.relabelled(ids, moved["labels"])
        added = moved.get("perturbations", moved.get("shifts"))  # as 0.1 called them
        if added is not None:
            poisoned = poisoned.perturbed(ids, added)
        targets = test[test.positions(moved["targets"])] if "targets" in moved else None
        return cls(
            poisoned,
            ids,
            targets=targets,
            adversarial=moved.get("adversarial"),
            rest=test.without(moved["targets"]) if rest else None,
            true_labels=moved.get("true_labels"),
            bases=moved.get("bases"),
            **told,
        )


@dataclass(frozen=True)
class Effect:
    """What is left of an attack in a model.

    Attributes:
        ids: [P] of what was asked: the poisons, or the targets.
        scores: by name, [P] one value each.
        figures: numbers for the row; an accuracy that is among them is not measured again.
    """

    ids: NDArray[np.int64]
    scores: dict[str, Floats]
    figures: dict[str, float] = field(default_factory=dict)


class Attack(Settings, ABC):
    """How poison is made, and how its effect on a model is measured."""

    name: str
    # What a report must know of it; see marshtest.attacks.presentation.
    presentation: ClassVar[Presentation]
    # Fields that `effect` alone looks at: with others, the same poisons are measured.
    scoring: ClassVar[tuple[str, ...]] = ()

    @property
    def needs_twin(self) -> bool:
        """Whether the effect has no known null law, and is compared with that of a clean twin."""
        return self.presentation.needs_twin

    @property
    def shown(self) -> Presentation:
        """The presentation with this attack's own options in it."""
        return self.presentation.filled(self.model_dump())

    @abstractmethod
    def poison(self, samples: Samples, count: int, victim: Victim, seed: int) -> Poisoned:
        """Turn `count` samples into poisons; the others stay as they are."""

    def candidates(self, samples: Samples, marked: Marked | None) -> Samples:
        """Those that can be poisons; a poison budget is a share of them."""
        return samples

    def trigger(self) -> Trigger | None:
        """The word that is to be looked for as texts are read."""
        return None

    def shuffled(self, poisoned: Poisoned, seed: int) -> Samples:
        """All samples, the values of each poison's perturbation in random order: as large but blind."""
        perturbations = poisoned.samples.perturbations
        assert perturbations is not None
        draws = generator(seed, "shuffle")
        order = (
            torch.rand(perturbations.flatten(1).shape, generator=draws)
            .argsort(1)
            .to(perturbations.device)
        )
        return replace(
            poisoned.samples,
            perturbations=perturbations.flatten(1).gather(1, order).view_as(perturbations),
        )

    @abstractmethod
    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        """Measure what is left of the poison in `model`."""

    def crafting(self, poisons: int) -> tuple[int, float]:
        """Steps of the crafting, and sample passes of each."""
        return 0, 0.0

    def added(self, poisons: int) -> int:
        """Samples by which poisons make the training set larger."""
        return 0

    @abstractmethod
    def passes(self, poisons: int) -> float:
        """Sample passes of one measurement beside those of the accuracy, for the estimate before a run."""


def choose(samples: Samples, count: int, seed: int) -> Tensor:
    """[count] ids drawn uniformly without replacement.

    Raises:
        MarshtestError: more poisons than samples, or none.
    """
    if not 0 < count < len(samples):
        raise MarshtestError(
            f"poison_budgets: asks for {count} poisons among {len(samples)} training samples; "
            "between 1 and all but one are possible."
        )
    order = torch.randperm(len(samples), generator=generator(seed, "choose"))
    return samples.ids[order[:count].to(samples.ids.device)]


def learned(victim: Victim, samples: Samples) -> nn.Module:
    """The victim's clean model, which must have learned something that can be poisoned.

    Raises:
        MarshtestError: it is at chance on the test samples.
    """
    model = victim.clean()
    found = accuracy(model, victim.task, victim.test)
    chance = float(samples.y.unique(return_counts=True)[1].max() / len(samples))
    if found < chance + 2 * (chance * (1 - chance) / len(victim.test)) ** 0.5:
        raise MarshtestError(
            f"attack: the clean model is at chance (test accuracy {found:.2f}, the commonest class "
            f"{chance:.2f}), so there is nothing to poison. Raise training.epochs, or mend training.lr."
        )
    return model
