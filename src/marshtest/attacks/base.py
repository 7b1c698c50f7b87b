"""The contract of an attack: it poisons samples, and measures what is left of the poison in a model."""

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
from marshtest.data.samples import Marked, Samples, Trigger, Written
from marshtest.metrics.accuracy import accuracy
from marshtest.plumbing.choice import Choice
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import generator
from marshtest.training.tasks import Task

Floats = NDArray[np.float64]
Tensors = dict[str, Tensor]


def make_anew(name: str, make: Callable[[], Tensors]) -> Tensors:
    """Make the tensors, and store nothing."""
    return make()


@dataclass(frozen=True)
class Knowledge:
    """What an attack may know of the training that it poisons."""

    task: Task  # the training's loss and augmentation
    test: Samples  # samples that the poisoned model will be tested on
    clean: Callable[[], nn.Module]  # gives the clean model to an attack that is `crafted`
    input_shape: tuple[int, ...] | None = None  # of one sample in input space, if not that of x
    marked: Marked | None = None  # the texts that hold the attack's trigger
    weight_decay: float = 0.0  # λ of the training's loss + λ/2 ‖θ‖²
    texts: Mapping[str, Written] | None = None  # by split, what samples of token ids were made of


@dataclass(frozen=True)
class CraftingContext:
    """The run around an attack at work; no poison depends on it."""

    # gives the tensors that a stopped run stored under a name; else makes and stores them
    kept: Callable[[str, Callable[[], Tensors]], Tensors] = make_anew
    progress: Progress = silent  # told the share of the crafting that is done, and the objective


ALONE = CraftingContext()  # for a call outside a run: nothing is stored, and no progress is shown


@dataclass(frozen=True)
class Poisoned:
    """A training set with poison in it: the clean one, and what was done to it."""

    clean: Samples  # [N] the training set before it was poisoned
    forget_ids: Tensor  # [P] ids of the poisons: the forget set
    seed: int  # the attack's secret, which together with the ids determines the noise
    labels: Tensor | None = None  # [P] the poisons' labels; None if they are those of the bases
    perturbations: Tensor | None = None  # [P, *input] added in input space; None for no change
    inputs: Tensor | None = None  # [P, ...] the poisons' x; None if those of the bases
    words: Sequence[str] = ()  # [P] the poisons' texts, of an attack that writes into them
    texts: Mapping[str, Written] | None = None  # by split, what such an attack wrote into
    bases: Tensor | None = None  # [P] ids of what poisons copy; None if they replace bases
    targets: Samples | None = None  # [T] test samples that the attack is aimed at; None for none
    adversarial: Tensor | None = None  # [T] the labels that the targets are to get; None for any
    rest: Samples | None = None  # the other test samples; None if there are no targets
    # numbers on how the crafting went, for the rows
    figures: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()  # the objective while crafting, one line a step

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
        if self.inputs is not None:
            samples = samples.rewritten(self.forget_ids, self.inputs)
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
        """The clean twin's forget set: the base samples, with perturbations of zero if poisons have any."""
        bases, forget = self.unpoisoned.only(self.forget_ids), self.forget
        if self.perturbations is None or forget.perturbations is None:
            return bases
        # Zeros, not None: the twin's texts are then sealed too, and a method meets samples of one kind.
        nothing = torch.zeros_like(forget.perturbations)
        return replace(forget, y=bases.y, perturbations=nothing)

    @property
    def true_labels(self) -> Tensor:
        """[P] the labels of the poisons' bases."""
        samples = self.unpoisoned
        return samples.y[samples.positions(self.forget_ids)]

    def tensors(self) -> Tensors:
        """What was done to the samples, by name: `ids` and `labels` of the poisons.

        If the attack has them, also `perturbations`, `inputs`, `targets`, `adversarial`, `true_labels` and
        `bases`.
        """
        relabelled, targets = self.labels is not None, self.targets
        tensors = {
            "ids": self.forget_ids,
            "labels": self.true_labels if self.labels is None else self.labels,
            "inputs": self.inputs,
            "perturbations": self.perturbations,
            "targets": None if targets is None else targets.ids,
            "adversarial": self.adversarial,
            "true_labels": self.true_labels if relabelled else None,
            "bases": self.bases,
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @classmethod
    def of(cls, tensors: Tensors, samples: Samples, test: Samples, **about: Any) -> "Poisoned":
        """The poisoned set that `tensors()` was taken of, with its `seed`, `figures` and `history`."""
        moved = {name: tensor.to(samples.y.device) for name, tensor in tensors.items()}
        aimed_at = moved.get("targets")
        return cls(
            samples,
            moved["ids"],
            labels=moved["labels"] if "true_labels" in moved else None,
            perturbations=moved.get("perturbations", moved.get("shifts")),  # as 0.1 called them
            inputs=moved.get("inputs"),
            bases=moved.get("bases"),
            targets=None if aimed_at is None else test[test.positions(aimed_at)],
            adversarial=moved.get("adversarial"),
            rest=None if aimed_at is None else test.without(aimed_at),
            **about,
        )


@dataclass(frozen=True)
class Effect:
    """What is left of an attack in a model."""

    # [P] ids of the samples that have scores: those of `poisoned.forget` or `poisoned.targets`, in their
    # order; -1 stands for all at once
    ids: NDArray[np.int64]
    scores: dict[str, Floats]  # arrays [P] of values, by name of the score
    # numbers for the row; accuracies and cost, which every row has, take precedence
    figures: dict[str, float] = field(default_factory=dict)


class Attack(Choice, ABC):
    """How poison is made, and how its effect on a model is measured."""

    # What a report must know of the attack; see marshtest.attacks.presentation.
    presentation: ClassVar[Presentation]
    # Fields that only `effect` reads; changing them re-scores the same poisons.
    scoring: ClassVar[tuple[str, ...]] = ()
    # True if it writes into texts: it is given `knowledge.texts`, and no other data will do.
    writes: ClassVar[bool] = False
    # True if poisons are crafted at a clean model: it is trained first, and the poisons are stored.
    crafted: ClassVar[bool] = False

    @property
    def needs_twin(self) -> bool:
        """Whether the effect has no known null law, and is compared with that of a clean twin."""
        return self.presentation.needs_twin

    @property
    def has_control(self) -> bool:
        """Whether a control is trained on `shuffled` samples."""
        return bool(self.presentation.shuffled)

    @property
    def shown(self) -> Presentation:
        """The presentation, with the options of this attack filled in."""
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
        """The samples that can be poisoned; a poison budget is a share of them."""
        return samples

    def trigger(self) -> Trigger | None:
        """The word to be searched for as texts are read; None if the attack needs none."""
        return None

    def shuffled(self, poisoned: Poisoned, seed: int) -> Samples | None:
        """The training set of a control, with poison as large but blind, if the presentation names one."""
        return None

    def fresh(self, poisoned: Poisoned, test: Samples) -> Samples | None:
        """Test samples dosed by the poisons' law, which no model has seen; None without such a law."""
        return None

    @abstractmethod
    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        """Measure what is left of the poison in `model`."""

    def crafting(self, poisons: int) -> tuple[int, float]:
        """Number of steps of the crafting, and sample passes of each."""
        return 0, 0.0

    def added(self, poisons: int) -> int:
        """Number of samples by which the poisons enlarge the training set."""
        return 0

    def passes(self, poisons: int, tests: int) -> float:
        """Sample passes of a measurement, beside those of the accuracy, by numbers of poisons and tests."""
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
    # Drawn on the CPU, so that all devices choose the same samples.
    order = torch.randperm(len(samples), generator=generator(seed, "choose"))
    return samples.ids[order[:count].to(samples.ids.device)]


def refuse_emptied(samples: Samples, ids: Tensor) -> None:
    """Look whether every class keeps a sample that is no poison.

    Args:
        samples: the training samples.
        ids: [P] the poisons.

    Raises:
        MarshtestError: a class does not; names it.
    """
    labels = samples.y.unique()
    for label in labels[~torch.isin(labels, samples.without(ids).y)].tolist():
        raise MarshtestError(
            f"poison_budgets: {len(ids)} poisons leave no training sample of class {label} to retain. "
            "Lower it, or use more data."
        )


def learned(knowledge: Knowledge, samples: Samples) -> nn.Module:
    """The clean model, which must have learned something that can be poisoned.

    Raises:
        MarshtestError: it is at chance on the test samples.
    """
    model = knowledge.clean()
    right = accuracy(model, knowledge.task, knowledge.test)
    chance = float(samples.y.unique(return_counts=True)[1].max() / len(samples))
    # Two standard errors above chance, or luck on few test samples would pass.
    if right < chance + 2 * (chance * (1 - chance) / len(knowledge.test)) ** 0.5:
        raise MarshtestError(
            f"attack: the clean model is at chance (test accuracy {right:.2f}, the commonest class "
            f"{chance:.2f}), so there is nothing to poison. Raise training.epochs, or mend training.lr."
        )
    return model
