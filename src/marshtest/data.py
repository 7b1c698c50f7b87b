"""Samples held as tensors, and the data sets they come from.

A data set is decoded once. Images stay uint8; floating-point tensors are taken to be in the model's
input space already. Poisons are not written into `x`: a sample may carry a *shift*, added in the
model's input space (normalised pixels, token embeddings), so one mechanism serves images and text.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from marshtest.arrays import as_inputs, as_labels
from marshtest.errors import MarshtestError, first_line, unknown
from marshtest.seeds import generator

DATA_FOLDER_VARIABLE = "MARSHTEST_DATA"
TENSORS = ("train_x", "train_y", "test_x", "test_y")
Array = Tensor | NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """An immutable set of samples; indexing it gives a mini-batch of the same type.

    Attributes:
        x: [N, ...] uint8 pixels, or floating-point inputs, or int64 token ids.
        y: [N] int64 labels.
        ids: [N] int64, unique, and stable under `only`, `without` and `shifted`.
        shifts: [P + 1, *input] added in input space; row 0 is zero.
        shift_rows: [N] int64, the row of `shifts` that belongs to each sample.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    shifts: Tensor | None = None
    shift_rows: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.ids):
            raise MarshtestError(
                f"samples: x, y and ids must be of one length. "
                f"Got {len(self.x)}, {len(self.y)} and {len(self.ids)}."
            )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor | slice) -> Self:
        rows = None if self.shift_rows is None else self.shift_rows[index]
        return replace(self, x=self.x[index], y=self.y[index], ids=self.ids[index], shift_rows=rows)

    def only(self, ids: Tensor) -> Self:
        """The samples with these ids, in this set's order."""
        return self[torch.isin(self.ids, ids.to(self.ids.device))]

    def without(self, ids: Tensor) -> Self:
        """The samples with other ids, in this set's order."""
        return self[~torch.isin(self.ids, ids.to(self.ids.device))]

    def shifted(self, ids: Tensor, shifts: Tensor) -> Self:
        """Add `shifts` [P, *input] to the samples `ids` [P], in input space.

        Raises:
            MarshtestError: an id is not in the set, or the set carries shifts already.
        """
        if self.shifts is not None:
            raise MarshtestError("samples: this set carries shifts already; poison the clean one.")
        rows = torch.zeros(len(self), dtype=torch.int64, device=self.ids.device)
        rows[self.positions(ids)] = torch.arange(1, len(ids) + 1, device=rows.device)
        zero = torch.zeros_like(shifts[:1])
        return replace(self, shifts=torch.cat([zero, shifts]).to(rows.device), shift_rows=rows)

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
            MarshtestError: an id is not in the set, or a copy's is; the set carries shifts already.
        """
        if self.shifts is not None:
            raise MarshtestError("samples: this set carries shifts already; poison the clean one.")
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

    def shift(self) -> Tensor | None:
        """[N, *input] the shift of each sample, or None where the set carries none."""
        return None if self.shifts is None else self.shifts[self.shift_rows]

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
                as it is in float32. `y` is class numbers, or one-hot rows. See `marshtest.arrays` for
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


def load(
    name: str, path: str | None = None, *, train: int | None = None, test: int | None = None
) -> Dataset:
    """Load a data set by name.

    Args:
        name: "digits" (inside scikit-learn), "cifar10" (Hugging Face hub `uoft-cs/cifar10`), or
            "tensors" (a file of your own, as `save_dataset` writes it).
        path: the file of "tensors"; for others a local folder to read instead of the hub: Parquet files
            train*.parquet and test*.parquet with the hub's columns, or train/ and test/ with one
            folder a class.
            The environment variable MARSHTEST_DATA may name a folder that holds one folder a name.
        train, test: keep the first so many rows of a split.

    Raises:
        MarshtestError: an unknown name, a missing folder, missing columns, bad labels or pixels.
    """
    if name in TEXTS:
        raise MarshtestError(f"data.name: {name} is text; marshtest.data.load_texts reads it.")
    if name not in LOADERS:
        raise MarshtestError(f"data.name: {unknown('data set', name, [*LOADERS, *TEXTS])}")
    return LOADERS[name](_folder(name, path), train, test)


def _folder(name: str, path: str | None) -> str | None:
    """Where a data set lies on this machine, if it does."""
    if path is None and DATA_FOLDER_VARIABLE in os.environ:
        candidate = Path(os.environ[DATA_FOLDER_VARIABLE]) / name
        path = str(candidate) if candidate.is_dir() else None
    if path is not None and name == "digits":
        raise MarshtestError("data.path: digits ships inside scikit-learn and takes no path.")
    if name == "tensors":
        return path  # a file
    if path is not None and not Path(path).is_dir():
        raise MarshtestError(f"data.path: no folder {path!r}. Give the folder of the {name} files.")
    return path


def _digits(path: str | None, train: int | None, test: int | None) -> Dataset:
    """1,797 handwritten digits, 8 × 8, 17 grey levels: 1,400 to train on, 397 to test on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = (images * (255 / 16)).round().astype(np.uint8).reshape(-1, 1, 8, 8)
    x_train, x_test, y_train, y_test = train_test_split(
        pixels, labels, train_size=1400, stratify=labels, random_state=0
    )
    pairs = [(x_train[:train], y_train[:train]), (x_test[:test], y_test[:test])]
    tensors = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in pairs]
    return Dataset.from_tensors(tensors[0], tensors[1], classes=10, name="digits")


def _cifar10(path: str | None, train: int | None, test: int | None) -> Dataset:
    """60,000 colour images, 32 × 32, of ten classes (Krizhevsky 2009)."""
    return Dataset.from_tensors(
        _images("uoft-cs/cifar10", path, "train", train),
        _images("uoft-cs/cifar10", path, "test", test),
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        name="cifar10",
    )


def _images(hub_name: str, path: str | None, split: str, rows: int | None) -> tuple[Tensor, Tensor]:
    """One split of an image data set as ([N, 3, H, W] uint8, [N] int64), through `datasets`."""
    import datasets

    table = _open(hub_name, path, split)
    if rows is not None:
        table = table.select(range(min(rows, len(table))))
    image_column = next((name for name in ("img", "image") if name in table.column_names), None)
    if image_column is None or "label" not in table.column_names:
        raise MarshtestError(
            f"data.path: the {split} split has columns {table.column_names}; "
            "it needs 'img' (or 'image') and 'label'."
        )
    if not isinstance(table.features[image_column], datasets.Image):
        table = table.cast_column(image_column, datasets.Image(mode="RGB"))
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in table[image_column]])
    return (
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(table["label"][:], dtype=torch.int64),
    )


def _open(hub_name: str, path: str | None, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        if path is None:
            return datasets.load_dataset(hub_name, split=split)
        files = sorted(str(file) for file in Path(path).glob(f"**/{split}*.parquet"))
        if files:
            return datasets.load_dataset("parquet", data_files={split: files}, split=split)
        if (Path(path) / split).is_dir():
            return datasets.load_dataset("imagefolder", data_dir=path, split=split)
    except (OSError, ValueError, ConnectionError) as error:
        raise MarshtestError(
            f"data: cannot read {path or hub_name} ({type(error).__name__}: {first_line(error)}). "
            "Set data.path, or MARSHTEST_DATA, to a local copy."
        ) from None
    raise MarshtestError(
        f"data.path: {path!r} holds neither {split}*.parquet nor a folder {split}/ of class folders."
    )


def _tensors(path: str | None, train: int | None, test: int | None) -> Dataset:
    """A safetensors file of yours: train_x, train_y, test_x, test_y."""
    return dataset_of(read_tensors(path, "data.path", TENSORS), train, test)


def dataset_of(
    tensors: Mapping[str, Tensor], train: int | None = None, test: int | None = None
) -> Dataset:
    """The data set, or the first rows of its splits, that `tensors_of` took apart."""
    train_x, train_y, test_x, test_y = (tensors[name] for name in TENSORS)
    return Dataset.from_tensors(
        (train_x[:train], train_y[:train]), (test_x[:test], test_y[:test]), name="tensors"
    )


def tensors_of(data: Dataset) -> dict[str, Tensor]:
    """A data set's samples by name, without ids and shifts."""
    tensors = (data.train.x, data.train.y, data.test.x, data.test.y)
    return dict(zip(TENSORS, tensors, strict=True))


def save_dataset(data: Dataset, path: str | Path) -> None:
    """Write a data set as the one file that `load("tensors", path)` reads."""
    whole = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors_of(data).items()}
    save_file(whole, str(path))


def read_tensors(path: str | None, where: str, names: Sequence[str]) -> dict[str, Tensor]:
    """All tensors of a safetensors file that must hold some.

    Raises:
        MarshtestError: no such file, not one, or a name is not in it.
    """
    if path is None or not Path(path).is_file():
        raise MarshtestError(
            f"{where}: no file {path or ''!r}. Give a safetensors file with {', '.join(names)}."
        )
    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise MarshtestError(
            f"{where}: {path} is not a readable safetensors file ({first_line(error)})."
        ) from None
    missing = [name for name in names if name not in found]
    if missing:
        raise MarshtestError(
            f"{where}: {path} holds {', '.join(sorted(found)) or 'nothing'}; {missing[0]} is missing."
        )
    return found


@dataclass(frozen=True)
class Texts:
    """A training and a test split of texts, labels [N], and their row numbers in the source [N]."""

    name: str
    train: list[str]
    train_y: Tensor
    train_ids: Tensor
    test: list[str]
    test_y: Tensor
    test_ids: Tensor
    classes: int


def load_texts(
    name: str,
    path: str | None = None,
    *,
    train: int | None = None,
    test: int | None = None,
    word: str | None = None,
) -> Texts:
    """Load texts by name: "imdb" (Hugging Face hub `stanfordnlp/imdb`).

    The splits are shuffled once, always in the same order: the hub's are sorted by label.

    Args:
        path: a local folder to read instead of the hub, as in `load`.
        train, test: keep so many rows of a split.
        word: keep every text beside these that holds it.

    Raises:
        MarshtestError: an unknown name, a missing folder, missing columns, an empty text.
    """
    if name not in TEXTS:
        raise MarshtestError(f"data.name: {unknown('data set', name, TEXTS)}")
    return TEXTS[name](_folder(name, path), train, test, word)


def _imdb(path: str | None, train: int | None, test: int | None, word: str | None) -> Texts:
    """50,000 film reviews, half of them to train on, negative or positive (Maas et al. 2011)."""
    name = "stanfordnlp/imdb"
    training = _reviews(name, path, "train", train, word)
    return Texts("imdb", *training, *_reviews(name, path, "test", test, word), classes=2)


def _reviews(
    hub_name: str, path: str | None, split: str, rows: int | None, word: str | None
) -> tuple[list[str], Tensor, Tensor]:
    table = _open(hub_name, path, split)
    missing = [name for name in ("text", "label") if name not in table.column_names]
    if missing:
        raise MarshtestError(
            f"data.path: the {split} split has columns {table.column_names}; {missing[0]!r} is missing."
        )
    order = torch.randperm(len(table), generator=generator(0, hub_name, split))
    if rows is not None and word is not None:
        texts = table["text"][:]
        held = [row for row in order[rows:].tolist() if word in str(texts[row])]
        order = torch.cat([order[:rows], torch.tensor(held, dtype=torch.int64)])
    else:
        order = order[:rows]
    table = table.select(order.tolist())
    labels = torch.tensor(table["label"][:], dtype=torch.int64)
    for row, text, label in zip(order.tolist(), table["text"], labels.tolist(), strict=True):
        if not str(text or "").strip():
            raise MarshtestError(f"data: {split} row {row} is an empty text. Drop it.")
        if label not in (0, 1):
            raise MarshtestError(f"data: {split} row {row} has label {label}; it must be 0 or 1.")
    return list(table["text"]), labels, order


TEXTS = {"imdb": _imdb}
LOADERS = {"digits": _digits, "cifar10": _cifar10, "tensors": _tensors}
