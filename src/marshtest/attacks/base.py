"""What an attack gives: poisoned samples, and what it can measure of itself on a model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from marshtest.attacks.presentation import Presentation
from marshtest.data.samples import Marked, Samples, Trigger
from marshtest.metrics.accuracy import accuracy
from marshtest.plumbing.choice import Choice
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import generator
from marshtest.training.tasks import Task

Floats = NDArray[np.float64]
Tensors = dict[str, Tensor]


def make_anew(name: str, make: Callable[[], Tensors]) -> Tensors:
    """Keep nothing."""
    return make()


@dataclass(frozen=True)
class Knowledge:
    """What an attack may know of the training that it poisons.

    Attributes:
        task: the training's loss and augmentation.
        test: samples that the poisoned model will be tested on.
        clean: gives the model trained on the samples without poison, to an attack that is `crafted`.
        input_shape: of one sample in the input space, where it is not that of the samples' x.
        marked: where the attack's trigger was found.
        weight_decay: λ of the training's loss + λ/2 ‖θ‖².
    """

    task: Task
    test: Samples
    clean: Callable[[], nn.Module]
    input_shape: tuple[int, ...] | None = None
    marked: Marked | None = None
    weight_decay: float = 0.0


@dataclass(frozen=True)
class CraftingContext:
    """The run around an attack at work; no poison depends on it.

    Attributes:
        kept: tensors that an earlier, stopped run made under a name; made and stored where there are none.
        progress: told the share of the crafting that is done, and how it stands in words.
    """

    kept: Callable[[str, Callable[[], Tensors]], Tensors] = make_anew
    progress: Progress = silent


ALONE = CraftingContext()  # nothing is kept, and nobody is told


@dataclass(frozen=True)
class Poisoned:
    """A training set with poison in it: the clean one, and what was done to it.

    Attributes:
        clean: [N] the training set before.
        forget_ids: [P] ids of the poisons: the forget set.
        seed: the attack's secret; with the ids it tells the noise.
        labels: [P] the poisons' labels, where they are not those of their bases.
        perturbations: [P, *input] added to the poisons in input space, where they have any.
        bases: [P] ids of the samples that the poisons are copies of, where these stay in the retain set.
        targets: [T] the test samples that the attack is aimed at, where it is aimed at some.
        adversarial: [T] the labels that it wants the targets to get, where it wants certain ones.
        rest: the other test samples; none where all of them are targets.
        figures: how the crafting went, for the rows.
        history: the objective as the crafting went on, one line a step.
    """

    clean: Samples
    forget_ids: Tensor
    seed: int
    labels: Tensor | None = None
    perturbations: Tensor | None = None
    bases: Tensor | None = None
    targets: Samples | None = None
    adversarial: Tensor | None = None
    rest: Samples | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()

    @property
    def unpoisoned(self) -> Samples:
        """The clean twin's training set: the base samples in the poisons' places.

        Poisons that join their bases as copies are plain copies then.
        """
        return self.clean if self.bases is None else self.clean.copied(self.bases, self.forget_ids)

    @cached_property
    def samples(self) -> Samples:
        """The training set with the poisons in it."""
        samples = self.unpoisoned
        if self.labels is not None:
            samples = samples.relabelled(self.forget_ids, self.labels)
        if self.perturbations is not None:
            samples = samples.perturbed(self.forget_ids, self.perturbations)
        return samples

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
        """The clean twin's forget set: the base samples; what perturbations they carry are zero."""
        bases, forget = self.unpoisoned.only(self.forget_ids), self.forget
        if self.perturbations is None or forget.perturbations is None:
            return bases
        nothing = torch.zeros_like(forget.perturbations)
        return replace(forget, y=bases.y, perturbations=nothing)

    @property
    def true_labels(self) -> Tensor:
        """[P] the labels of the poisons' bases."""
        samples = self.unpoisoned
        return samples.y[samples.positions(self.forget_ids)]

    def tensors(self) -> Tensors:
        """What was done to the samples: `ids` and `labels` of the poisons.

        Where there are any, `perturbations`, `targets`, `adversarial`, `true_labels` and `bases` too.
        """
        relabelled, targets = self.labels is not None, self.targets
        found = {
            "ids": self.forget_ids,
            "labels": self.true_labels if self.labels is None else self.labels,
            "perturbations": self.perturbations,
            "targets": None if targets is None else targets.ids,
            "adversarial": self.adversarial,
            "true_labels": self.true_labels if relabelled else None,
            "bases": self.bases,
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def of(cls, tensors: Tensors, samples: Samples, test: Samples, **about: Any) -> "Poisoned":
        """The same again from its tensors.

        Args:
            tensors: of `tensors()`.
            samples: the clean ones.
            test: the samples that the targets are among.
            about: `seed`, `figures` and `history`, as they are.
        """
        moved = {name: tensor.to(samples.y.device) for name, tensor in tensors.items()}
        aimed_at = moved.get("targets")
        return cls(
            samples,
            moved["ids"],
            labels=moved["labels"] if "true_labels" in moved else None,
            perturbations=moved.get("perturbations", moved.get("shifts")),  # as 0.1 called them
            bases=moved.get("bases"),
            targets=None if aimed_at is None else test[test.positions(aimed_at)],
            adversarial=moved.get("adversarial"),
            rest=None if aimed_at is None else test.without(aimed_at),
            **about,
        )


@dataclass(frozen=True)
class Effect:
    """What is left of an attack in a model.

    Attributes:
        ids: [P] of what was asked: the poisons, or the targets.
        scores: by name, [P] one value each.
        figures: numbers for the row; what every model is asked for (accuracies, cost) goes before them.
    """

    ids: NDArray[np.int64]
    scores: dict[str, Floats]
    figures: dict[str, float] = field(default_factory=dict)


class Attack(Choice, ABC):
    """How poison is made, and how its effect on a model is measured."""

    # What a report must know of the attack; see marshtest.attacks.presentation.
    presentation: ClassVar[Presentation]
    # Fields that only `effect` reads; changing them re-scores the same poisons.
    scoring: ClassVar[tuple[str, ...]] = ()
    # Whether poisons are made at a clean model, which is trained first; they are stored then.
    crafted: ClassVar[bool] = False

    @property
    def needs_twin(self) -> bool:
        """Whether the effect has no known null law, and is compared with that of a clean twin."""
        return self.presentation.needs_twin

    @property
    def has_control(self) -> bool:
        """Whether a model is trained on `shuffled` samples."""
        return bool(self.presentation.shuffled)

    @property
    def shown(self) -> Presentation:
        """The presentation with this attack's own options in it."""
        return self.presentation.filled(self.model_dump())

    @abstractmethod
    def poison(
        self,
        samples: Samples,
        count: int,
        knowledge: Knowledge,
        seed: int,
        context: CraftingContext = ALONE,
    ) -> Poisoned:
        """Turn `count` samples into poisons, a function of the seed; the others stay as they are."""

    def candidates(self, samples: Samples, marked: Marked | None) -> Samples:
        """Those that can be poisons; a poison budget is a share of them."""
        return samples

    def trigger(self) -> Trigger | None:
        """The word that is to be looked for as texts are read."""
        return None

    def shuffled(self, poisoned: Poisoned, seed: int) -> Samples | None:
        """The training set of a control, poison as large but blind, if the presentation names one."""
        return None

    @abstractmethod
    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        """Measure what is left of the poison in `model`."""

    def crafting(self, poisons: int) -> tuple[int, float]:
        """Steps of the crafting, and sample passes of each."""
        return 0, 0.0

    def added(self, poisons: int) -> int:
        """Samples by which poisons make the training set larger."""
        return 0

    def passes(self, poisons: int, tests: int) -> float:
        """Sample passes of one measurement beside those of the accuracy, for the estimate before a run.

        Args:
            poisons: size of the forget set.
            tests: number of test samples.
        """
        return poisons


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


def learned(knowledge: Knowledge, samples: Samples) -> nn.Module:
    """The clean model, which must have learned something that can be poisoned.

    Raises:
        MarshtestError: it is at chance on the test samples.
    """
    model = knowledge.clean()
    found = accuracy(model, knowledge.task, knowledge.test)
    chance = float(samples.y.unique(return_counts=True)[1].max() / len(samples))
    if found < chance + 2 * (chance * (1 - chance) / len(knowledge.test)) ** 0.5:
        raise MarshtestError(
            f"attack: the clean model is at chance (test accuracy {found:.2f}, the commonest class "
            f"{chance:.2f}), so there is nothing to poison. Raise training.epochs, or mend training.lr."
        )
    return model
