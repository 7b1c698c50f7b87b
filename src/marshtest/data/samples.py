"""Samples held as tensors, and the data sets they come from.

A data set is decoded once. Images stay uint8; floating-point tensors are taken to be in the model's
input space already. Poisons are not written into `x`: a sample may carry a *perturbation*, which is added
in the model's input space (normalised pixels, token embeddings), so one mechanism serves images and texts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from marshtest.data.arrays import as_inputs, as_labels
from marshtest.plumbing.errors import MarshtestError

Array = Tensor | NDArray[Any]


def slices(count: int, size: int) -> Iterator[slice]:
    """Give slices of at most `size` rows that together cover `count` rows in order."""
    for start in range(0, count, size):
        yield slice(start, start + size)


@dataclass(frozen=True)
class Samples:
    """An immutable set of samples; indexing it gives a mini-batch of the same type.

    Raises:
        MarshtestError: x, y and ids differ in length.
    """

    x: Tensor  # [N, ...] uint8 pixels, or floating-point inputs, or int64 token ids
    y: Tensor  # [N] int64 labels
    ids: Tensor  # [N] int64, unique; a sample keeps its id in every set that is made of this one
    perturbations: Tensor | None = None  # [P + 1, *input] added in input space; row 0 is zero
    perturbation_rows: Tensor | None = None  # [N] int64, each sample's row of `perturbations`

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.ids):
            raise MarshtestError(
                "samples: x, y and ids must have one length, a row for each sample. "
                f"Got {len(self.x)}, {len(self.y)} and {len(self.ids)}."
            )

    def __repr__(self) -> str:
        kind = str(self.x.dtype).removeprefix("torch.")
        return f"Samples({len(self):,} samples, x {kind} {list(self.x.shape)})"

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor | slice) -> Self:
        # The table of perturbations is not cut: a batch would copy images that it only refers to.
        rows = None if self.perturbation_rows is None else self.perturbation_rows[index]
        return replace(
            self, x=self.x[index], y=self.y[index], ids=self.ids[index], perturbation_rows=rows
        )

    def only(self, ids: Tensor) -> Self:
        """The samples with these ids, in this set's order."""
        return self[torch.isin(self.ids, ids.to(self.ids.device))]

    def without(self, ids: Tensor) -> Self:
        """The samples with other ids, in this set's order."""
        return self[~torch.isin(self.ids, ids.to(self.ids.device))]

    def perturbed(self, ids: Tensor, perturbations: Tensor) -> Self:
        """Add `perturbations` [P, *input] to the samples `ids` [P], in input space.

        Raises:
            MarshtestError: an id is not in the set, or the set carries perturbations already.
        """
        self._refuse_if_perturbed()
        rows = torch.zeros(len(self), dtype=torch.int64, device=self.ids.device)
        rows[self.positions(ids)] = torch.arange(1, len(ids) + 1, device=rows.device)
        zero = torch.zeros_like(perturbations[:1])  # so that clean samples need no branch
        return replace(
            self,
            perturbations=torch.cat([zero, perturbations]).to(rows.device),
            perturbation_rows=rows,
        )

    def relabelled(self, ids: Tensor, labels: Tensor) -> Self:
        """Give the samples `ids` [P] other labels [P].

        Raises:
            MarshtestError: an id is not in the set.
        """
        y = self.y.clone()
        y[self.positions(ids)] = labels.to(y.device)
        return replace(self, y=y)

    def rewritten(self, ids: Tensor, inputs: Tensor) -> Self:
        """Give the samples `ids` [P] other x, `inputs` [P, ...].

        Raises:
            MarshtestError: an id is not in the set.
        """
        x = self.x.clone()
        x[self.positions(ids)] = inputs.to(x)
        return replace(self, x=x)

    def copied(self, ids: Tensor, copies: Tensor) -> Self:
        """Append copies of the samples `ids` [P]; the copies bear the new ids `copies` [P].

        Raises:
            MarshtestError: an id is not in the set, a new id is, or the set carries perturbations already.
        """
        self._refuse_if_perturbed()
        copies, originals = copies.to(self.ids.device), self.positions(ids)
        if bool((known := torch.isin(copies, self.ids)).any()):
            raise MarshtestError(
                f"samples: id {int(copies[known][0])} of a copy is in the set already. Give new ids."
            )
        return replace(
            self,
            x=torch.cat([self.x, self.x[originals]]),
            y=torch.cat([self.y, self.y[originals]]),
            ids=torch.cat([self.ids, copies]),
        )

    def _refuse_if_perturbed(self) -> None:
        if self.perturbations is not None:
            raise MarshtestError(
                "samples: this set carries perturbations already. Poison the clean set it was made of."
            )

    def positions(self, ids: Tensor) -> Tensor:
        """[P] int64 positions in this set of the samples with these ids [P].

        Raises:
            MarshtestError: an id is not in the set.
        """
        # By sorting: comparing every id with every other would take N · P booleans.
        ids, order = ids.to(self.ids.device), self.ids.argsort()
        ranks = torch.searchsorted(self.ids, ids, sorter=order)
        positions = order[ranks.clamp(max=len(self) - 1)]  # an id above all others has no rank
        if bool((missing := self.ids[positions] != ids).any()):
            raise MarshtestError(
                f"samples: id {int(ids[missing][0])} is not among this set's {len(self)} ids."
            )
        return positions

    def perturbation(self) -> Tensor | None:
        """[N, *input] the perturbation of each sample; None if the set carries none."""
        return None if self.perturbations is None else self.perturbations[self.perturbation_rows]

    def to(self, device: torch.device | str) -> Self:
        """The same samples on a device."""
        moved: dict[str, Any] = {
            name: None if tensor is None else tensor.to(device)
            for name, tensor in vars(self).items()
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Trigger:
    """A word that marks the texts to be attacked."""

    word: str  # searched for as it is written, within longer words too
    # what happens to a text that loses the word at the truncation: it is left alone ("skip"), cut round
    # the word ("window"), or attacked though no model reads the word in it ("ignore")
    cut: Literal["skip", "window", "ignore"]
    label: str  # the word that the attacker wants as the answer; "flip" is the other of two labels


@dataclass(frozen=True)
class Marked:
    """The texts that hold a trigger."""

    train: tuple[Tensor, int]  # ids [P] to be attacked; texts that lost the trigger when cut
    test: tuple[Tensor, int]  # the same
    label: int | None  # the label that the attacker wants; None flips the label


class Written(Protocol):
    """The texts of one split, and how a text becomes a sample."""

    def excerpt(self, sample: int, spare: int) -> str:
        """What a model reads of the text of a sample's id, less the last `spare` tokens that have room."""

    def size(self, text: str) -> int:
        """Number of tokens of a text by itself."""

    def write(self, texts: Sequence[str]) -> Tensor:
        """[N, T] the x of samples of these texts."""


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, and how pixels become inputs: (x / 255 − mean) / std."""

    name: str  # begins error messages, and stands in every row of results
    train: Samples  # its ids are row numbers of the source
    test: Samples  # its ids too
    classes: int  # number of labels C
    mean: tuple[float, ...] | None = None  # one a channel, in pixels / 255; None for other inputs
    std: tuple[float, ...] | None = None  # the same
    padding: int | None = None  # token id that fills up texts x [N, T] on the right; or None
    prompted: bool = False  # whether labels y are token ids of words, to be said after x
    marked: Marked | None = None  # the texts that hold an attack's trigger, if one was searched for
    texts: Mapping[str, Written] | None = None  # by split, what samples of token ids were made of

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {self.classes} classes, train {self.train}, test {self.test})"
        )

    @classmethod
    def from_tensors(
        cls,
        train: tuple[Array, Array],
        test: tuple[Array, Array],
        *,
        classes: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        name: str = "in-memory",
    ) -> Self:
        """A data set from two pairs (x [N, ...], y [N]) of tensors or NumPy arrays.

        Args:
            train: `x` is uint8 [N, C, H, W], normalised by `mean` and `std`, or floating point, used
                as it is in float32. `y` is class numbers, or one-hot rows. See `marshtest.data.arrays` for
                what is converted.
            test: the same, of samples of the same shape.
            classes: number of labels C; by default the largest label plus one.
            mean: one value a channel, in units of pixels / 255; by default the training split's mean.
            std: one value a channel, in the same units; by default the training split's deviation.
            name: name of the data set, which begins the line of an error.

        Raises:
            MarshtestError: the splits differ in shape or type, a split is empty, all labels are one, labels
                are no class numbers or out of range, or x holds NaN or infinity.
        """
        splits = {"train": train, "test": test}
        x = {split: as_inputs(pair[0], f"{name} {split}") for split, pair in splits.items()}
        y = {split: as_labels(pair[1], f"{name} {split}") for split, pair in splits.items()}
        if x["train"].shape[1:] != x["test"].shape[1:] or x["train"].dtype != x["test"].dtype:
            shapes = " and ".join(f"{inputs.dtype} {list(inputs.shape)}" for inputs in x.values())
            raise MarshtestError(f"{name}: train and test differ in shape or type: {shapes}.")
        samples = {
            split: _numbered(x[split], y[split], classes, f"{name} {split}") for split in splits
        }
        count = _class_count(name, y["train"], y["test"], classes)
        mean, std = _scaling(name, x["train"], mean, std)
        return cls(name, samples["train"], samples["test"], count, mean=mean, std=std)

    def to(self, device: torch.device | str) -> Self:
        """The same data on a device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def _numbered(x: Tensor, y: Tensor, classes: int | None, where: str) -> Samples:
    """The rows of one split as samples, with their row numbers as ids."""
    if len(x) != len(y):
        raise MarshtestError(
            f"{where}: x has {len(x)} rows and y {len(y)} labels. Give one label for each row."
        )
    outside = ((y < 0) | (y >= (math.inf if classes is None else classes))).nonzero().flatten()
    if len(outside):
        row = int(outside[0])
        allowed = "count from 0" if classes is None else f"lie in 0..{classes - 1}"
        raise MarshtestError(f"{where}: row {row} has label {int(y[row])}; labels must {allowed}.")
    return Samples(x, y, torch.arange(len(x)))


def _class_count(name: str, train: Tensor, test: Tensor, classes: int | None) -> int:
    """The number of classes: `classes` if it is given, else the largest label plus one."""
    count = int(max(train.max(), test.max())) + 1 if classes is None else classes
    if len(train.unique()) < 2:
        raise MarshtestError(
            f"{name} train: all labels are {int(train[0])}. Give samples of two classes or more."
        )
    # Labels counted from 1 would leave an output that no sample trains.
    if classes is None and min(int(train.min()), int(test.min())) > 0:
        raise MarshtestError(
            f"{name}: no sample has label 0. Count labels from 0, or give classes={count}."
        )
    return count


def _scaling(
    name: str, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """(mean, std) of each channel, by default those of the images `x`; None for floating-point inputs."""
    if x.dtype == torch.uint8 and (mean is None or std is None):
        channels = x.to(torch.float32).div(255).transpose(0, 1).flatten(1)
        mean = channels.mean(1).tolist() if mean is None else mean
        # A channel may be constant.
        std = channels.std(1).clamp(min=1e-6).tolist() if std is None else std
    if mean is None and std is None:
        return None, None
    if x.dtype != torch.uint8:
        raise MarshtestError(
            f"{name}: mean and std scale uint8 images, and x is floating point. Leave them out."
        )
    mean, std = tuple(mean or ()), tuple(std or ())
    fits = len(mean) == len(std) == x.shape[1] and all(map(math.isfinite, (*mean, *std)))
    if not fits or min(std) <= 0:
        raise MarshtestError(
            f"{name}: mean and std must be {x.shape[1]} finite numbers, one a channel, std above 0. Got "
            f"{list(mean)} and {list(std)}."
        )
    return mean, std
