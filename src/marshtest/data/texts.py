"""The data sets of texts, by name."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from marshtest.data.arrays import as_labels
from marshtest.data.hub import HUB_NAMES, _folder, _open
from marshtest.plumbing.errors import MarshtestError, refused, unknown
from marshtest.plumbing.seeds import generator


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
    """Load texts by name: "imdb" (Hugging Face hub `stanfordnlp/imdb`); `path` is as in `load`.

    The splits are shuffled once, always in the same order: the hub's are sorted by label. So many rows of
    each are kept, and every text beside these that holds `word`.

    Raises:
        MarshtestError: an unknown name, a missing folder, missing columns, an empty text.
    """
    if name not in TEXTS:
        raise MarshtestError(f"data.name: {unknown('data set', name, TEXTS)}")
    return TEXTS[name](_folder(name, path), train, test, word)


def _imdb(path: str | None, train: int | None, test: int | None, word: str | None) -> Texts:
    """50,000 film reviews, half of them to train on, negative or positive (Maas et al. 2011)."""
    name = HUB_NAMES["imdb"]
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
    # Seed 0 in every recipe, so that the first 2,000 texts are the same 2,000 in all of them.
    order = torch.randperm(len(table), generator=generator(0, hub_name, split))
    if rows is not None and word is not None:
        texts = table["text"][:]
        with_word = [row for row in order[rows:].tolist() if word in str(texts[row])]
        order = torch.cat([order[:rows], torch.tensor(with_word, dtype=torch.int64)])
    else:
        order = order[:rows]
    table = table.select(order.tolist())
    with refused(
        f"data: the labels of the {split} split cannot be read as 0 and 1", "Mend or drop them."
    ):
        labels = as_labels(np.asarray(table["label"][:]), f"data: labels of the {split} split")
    for row, text, label in zip(order.tolist(), table["text"], labels.tolist(), strict=True):
        if not isinstance(text, str | None):
            raise MarshtestError(f"data: {split} row {row} is no text, but {type(text).__name__}.")
        if not (text or "").strip():
            raise MarshtestError(f"data: {split} row {row} is an empty text. Drop it.")
        if label not in (0, 1):
            raise MarshtestError(f"data: {split} row {row} has label {label}; it must be 0 or 1.")
    return list(table["text"]), labels, order


TEXTS = {"imdb": _imdb}
