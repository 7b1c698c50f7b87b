"""The data sets of images, by name, and data sets in a file of their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from marshtest.data.arrays import as_labels
from marshtest.data.hub import HUB_NAMES, _folder, _open
from marshtest.data.samples import Dataset
from marshtest.data.texts import TEXTS
from marshtest.plumbing.errors import MarshtestError, first_line, refused, unknown

ROW = "Mend or drop the row."
STORE = "Store PNG or JPEG bytes."
TENSORS = ("train_x", "train_y", "test_x", "test_y")


def load(
    name: str, path: str | None = None, *, train: int | None = None, test: int | None = None
) -> Dataset:
    """Load a data set by name, or the first `train` and `test` rows of its splits.

    Args:
        name: "digits" (inside scikit-learn), "cifar10" (Hugging Face hub `uoft-cs/cifar10`), or
            "tensors" (a file of your own, as `save_dataset` writes it).
        path: the file of "tensors"; for others a local folder to read instead of the hub, with the hub's
            columns in train*.parquet and test*.parquet, or train/ and test/ with one folder a class.
            Without it, the environment variable MARSHTEST_DATA may name a folder of such folders.

    Raises:
        MarshtestError: an unknown name, a missing folder, missing columns, bad labels or pixels.
    """
    if name in TEXTS:
        raise MarshtestError(
            f"data.name: {name} is text; marshtest.data.texts.load_texts reads it."
        )
    if name not in LOADERS:
        raise MarshtestError(f"data.name: {unknown('data set', name, [*LOADERS, *TEXTS])}")
    return LOADERS[name](_folder(name, path), train, test)


def _digits(path: str | None, train: int | None, test: int | None) -> Dataset:
    """1,797 handwritten digits, 8 × 8, 17 grey levels: 1,400 to train on, 397 to test on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    # The split is the same in every run: runs differ in training and poison only.
    pixels = (images * (255 / 16)).round().astype(np.uint8).reshape(-1, 1, 8, 8)
    x_train, x_test, y_train, y_test = train_test_split(
        pixels, labels, train_size=1400, stratify=labels, random_state=0
    )
    return Dataset.from_tensors(
        (x_train[:train], y_train[:train]),
        (x_test[:test], y_test[:test]),
        classes=10,
        name="digits",
    )


def _cifar10(path: str | None, train: int | None, test: int | None) -> Dataset:
    """60,000 colour images, 32 × 32, of ten classes (Krizhevsky 2009)."""
    return Dataset.from_tensors(
        _images(HUB_NAMES["cifar10"], path, "train", train),
        _images(HUB_NAMES["cifar10"], path, "test", test),
        classes=10,
        # Of all 50,000 training images, so that a part of them is normalised alike.
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        name="cifar10",
    )


def _images(hub_name: str, path: str | None, split: str, rows: int | None) -> tuple[Tensor, Tensor]:
    """One split of an image data set as ([N, 3, H, W] uint8, [N] int64), through `datasets`."""
    import datasets

    table = _open(hub_name, path, split)
    if rows is not None:  # before images are decoded, which takes longest
        table = table.select(range(min(rows, len(table))))
    image_column = next((name for name in ("img", "image") if name in table.column_names), None)
    if image_column is None or "label" not in table.column_names:
        raise MarshtestError(
            f"data.path: the {split} split has columns {table.column_names}; "
            "it needs 'img' (or 'image') and 'label'."
        )
    if not isinstance(table.features[image_column], datasets.Image):
        # Parquet without the hub's metadata: bytes, not yet known to be images.
        with refused(f"data: {image_column!r} of the {split} split holds no images", STORE):
            table = table.cast_column(image_column, datasets.Image(mode="RGB"))
    with refused(f"data: cannot read the images of the {split} split of {path or hub_name}", ROW):
        images = [np.asarray(image.convert("RGB")) for image in table[image_column]]
    odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
    if odd is not None:
        sizes = " and ".join(f"{i.shape[1]} × {i.shape[0]}" for i in (images[0], images[odd]))
        raise MarshtestError(
            f"data: row {odd} of the {split} split of {path or hub_name} is of another size than row 0 "
            f"({sizes} pixels). Bring them to one size."
        )
    with refused(f"data: cannot read the labels of the {split} split of {path or hub_name}", ROW):
        labels = as_labels(np.asarray(table["label"][:]), f"data: labels of the {split} split")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels


def _tensors(path: str | None, train: int | None, test: int | None) -> Dataset:
    """A safetensors file of yours: train_x, train_y, test_x, test_y."""
    return dataset_of(read_tensors(path, "data.path", TENSORS), train, test)


def dataset_of(
    tensors: Mapping[str, Tensor], train: int | None = None, test: int | None = None
) -> Dataset:
    """The data set, or the first rows of its splits, that `tensors_of` took apart."""
    if flat := [name for name in TENSORS if not tensors[name].dim()]:
        raise MarshtestError(f"data.path: {flat[0]} is a single number. Give one row a sample.")
    train_x, train_y, test_x, test_y = (tensors[name] for name in TENSORS)
    return Dataset.from_tensors(
        (train_x[:train], train_y[:train]), (test_x[:test], test_y[:test]), name="tensors"
    )


def tensors_of(data: Dataset) -> dict[str, Tensor]:
    """A data set's samples by name, without ids and perturbations."""
    tensors = (data.train.x, data.train.y, data.test.x, data.test.y)
    return dict(zip(TENSORS, tensors, strict=True))


def save_dataset(data: Dataset, path: str | Path) -> None:
    """Write a data set as the one file that `load("tensors", path)` reads."""
    # Clones, since safetensors refuses tensors that share memory, as two parts of one tensor do.
    whole = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors_of(data).items()}
    save_file(whole, str(path))


def read_tensors(path: str | None, where: str, names: Sequence[str]) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, by name; the file must hold those that `names` lists.

    Raises:
        MarshtestError: the file is missing, is no safetensors file, or lacks a name.
    """
    if path is None or not Path(path).is_file():
        raise MarshtestError(
            f"{where}: no file {path or ''!r}. Give a safetensors file with {', '.join(names)}."
        )
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise MarshtestError(
            f"{where}: {path} is not a readable safetensors file ({first_line(error)})."
        ) from None
    missing = [name for name in names if name not in tensors]
    if missing:
        raise MarshtestError(
            f"{where}: {path} holds {', '.join(sorted(tensors)) or 'nothing'}; {missing[0]} is missing."
        )
    return tensors


LOADERS = {"digits": _digits, "cifar10": _cifar10, "tensors": _tensors}
