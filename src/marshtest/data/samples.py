"""Samples held as tensors, and the data sets they come from.

A data set is decoded once. Images stay uint8; floating-point tensors are taken to be in the model's
input space already. Poisons are not written into `x`: a sample may carry a *perturbation*, added in the
model's input space (normalised pixels, token embeddings), so one mechanism serves images and text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from marshtest.data.arrays import as_inputs, as_labels
from marshtest.plumbing.errors import MarshtestError

Array = Tensor | NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """An immutable set of samples; indexing it gives a mini-batch of the same type.

    Attributes:
        x: [N, ...] uint8 pixels, or floating-point inputs, or int64 token ids.
        y: [N] int64 labels.
        ids: [N] int64, unique, and stable under `only`, `without` and `shifted`.
        perturbations: [P + 1, *input] added in input space; row 0 is zero.
        perturbation_rows: [N] int64, the row of `perturbations` that belongs to each sample.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    perturbations: Tensor | None = None
    perturbation_rows: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.ids):
            raise MarshtestError(
                f"samples: x, y and ids must be of one length. "
                f"Got {len(self.x)}, {len(self.y)} and {len(self.ids)}."
            )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor | slice) -> Self:
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
        if self.perturbations is not None:
            raise MarshtestError(
                "samples: this set carries perturbations already; poison the clean one."
            )
        rows = torch.zeros(len(self), dtype=torch.int64, device=self.ids.device)
        rows[self.positions(ids)] = torch.arange(1, len(ids) + 1, device=rows.device)
        zero = torch.zeros_like(perturbations[:1])
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

    def copied(self, ids: Tensor, copies: Tensor) -> Self:
        """Append copies of the samples `ids` [P], under the ids `copies` [P].

        Raises:
            MarshtestError: an id is not in the set, or a copy's is; the set carries perturbations already.
        """
        if self.perturbations is not None:
            raise MarshtestError(
                "samples: this set carries perturbations already; poison the clean one."
            )
        copies, at = copies.to(self.ids.device), self.positions(ids)
        if bool(torch.isin(copies, self.ids).any()):
            raise MarshtestError("samples: an id of a copy is in the set already. Give others.")
        return replace(
            self,
            x=torch.cat([self.x, self.x[at]]),
            y=torch.cat([self.y, self.y[at]]),
            ids=torch.cat([self.ids, copies]),
        )

    def positions(self, ids: Tensor) -> Tensor:
        """[P] where the samples with these ids stand.

        Raises:
            MarshtestError: an id is not in the set.
        """
        ids, order = ids.to(self.ids.device), self.ids.argsort()
        found = torch.searchsorted(self.ids, ids, sorter=order)
        positions = order[found.clamp(max=len(self) - 1)]
        if not bool((self.ids[positions] == ids).all()):
            raise MarshtestError("samples: an id to be poisoned is not in the set.")
        return positions

    def perturbation(self) -> Tensor | None:
        """[N, *input] the perturbation of each sample, or None where the set carries none."""
        return None if self.perturbations is None else self.perturbations[self.perturbation_rows]

    def to(self, device: torch.device | str) -> Self:
        """The same samples on another device."""
        moved: dict[str, Any] = {
            name: None if tensor is None else tensor.to(device)
            for name, tensor in vars(self).items()
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Trigger:
    """A word whose texts are attacked.

    Attributes:
        word: found as it is written, in longer words too.
        cut: texts that lose it at the truncation are left alone ("skip"), cut round it ("window"), or
            attacked though no model reads it in them ("ignore").
        label: the word that they are to be answered with; "flip" is the other of two labels.
    """

    word: str
    cut: Literal["skip", "window", "ignore"]
    label: str


@dataclass(frozen=True)
class Marked:
    """Where a trigger was found.

    Attributes:
        train, test: ids of the texts that are attacked, and how many texts lost it at the truncation.
        label: the attacker's label; None flips the label.
    """

    train: tuple[Tensor, int]
    test: tuple[Tensor, int]
    label: int | None


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, and how pixels become inputs: (x / 255 − mean) / std.

    Attributes:
        train, test: the splits; ids are row numbers of the source.
        classes: number of labels C.
        mean, std: one value a channel, in units of pixels / 255; None for floating-point inputs.
        padding: the token id that fills up token ids x [N, T] on the right; None for other inputs.
        prompted: labels y are the token ids of words, to be said behind x.
        marked: where an attack's trigger was found in texts.
    """

    name: str
    train: Samples
    test: Samples
    classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    padding: int | None = None
    prompted: bool = False
    marked: Marked | None = None

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
            mean: one value a channel, in units of pixels / 255; by default the training split's own.
            std: the same.
            name: begins the line of an error.

        Raises:
            MarshtestError: splits that do not go together, an empty split, a single label, labels that
                are no class numbers or out of range, NaN or infinity.
        """
        splits = {"train": train, "test": test}
        x = {split: as_inputs(pair[0], f"{name} {split}") for split, pair in splits.items()}
        y = {split: as_labels(pair[1], f"{name} {split}") for split, pair in splits.items()}
        if x["train"].shape[1:] != x["test"].shape[1:] or x["train"].dtype != x["test"].dtype:
            shapes = " and ".join(f"{of.dtype} {list(of.shape)}" for of in x.values())
            raise MarshtestError(f"{name}: train and test differ in shape or type: {shapes}.")
        checked = {of: _checked(x[of], y[of], classes, f"{name} {of}") for of in splits}
        count = int(max(of.max() for of in y.values())) + 1 if classes is None else classes
        if len(y["train"].unique()) < 2:
            raise MarshtestError(
                f"{name} train: all labels are {int(y['train'][0])}; give two classes."
            )
        if classes is None and min(int(of.min()) for of in y.values()) > 0:
            raise MarshtestError(
                f"{name}: no sample has label 0. Count labels from 0, or give classes={count}."
            )
        pixels = x["train"]
        if pixels.dtype == torch.uint8 and (mean is None or std is None):
            channels = pixels.to(torch.float32).div(255).transpose(0, 1).flatten(1)
            mean, std = channels.mean(1).tolist(), channels.std(1).clamp(min=1e-6).tolist()
        _check_scaling(name, pixels, mean, std)
        return cls(
            name=name,
            classes=count,
            mean=None if mean is None else tuple(mean),
            std=None if std is None else tuple(std),
            train=checked["train"],
            test=checked["test"],
        )

    def to(self, device: torch.device | str) -> Self:
        """The same data on another device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def _checked(x: Tensor, y: Tensor, classes: int | None, where: str) -> Samples:
    if len(x) != len(y):
        raise MarshtestError(
            f"{where}: {len(x)} rows of x and {len(y)} labels; there must be one each."
        )
    outside = ((y < 0) | (y >= (math.inf if classes is None else classes))).nonzero().flatten()
    if len(outside):
        row = int(outside[0])
        allowed = "count from 0" if classes is None else f"lie in 0..{classes - 1}"
        raise MarshtestError(f"{where}: row {row} has label {int(y[row])}; labels must {allowed}.")
    return Samples(x, y, torch.arange(len(x)))


def _check_scaling(
    name: str, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    if mean is None and std is None:
        return
    if x.dtype != torch.uint8:
        raise MarshtestError(
            f"{name}: mean and std are of uint8 images; these inputs are floating point."
        )
    if len(mean or ()) != x.shape[1] or len(std or ()) != x.shape[1] or min(std or ()) <= 0:
        raise MarshtestError(
            f"{name}: mean and std must be {x.shape[1]} numbers, one a channel, std above 0. Got "
            f"{list(mean or ())} and {list(std or ())}."
        )
