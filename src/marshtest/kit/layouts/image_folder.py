"""Image files in one folder a class."""

import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from marshtest.errors import MarshtestError
from marshtest.kit.layouts.base import (
    HELD_OUT,
    KNOWN,
    Dosed,
    Ids,
    Layout,
    Place,
    Value,
    copy_file,
    decoded,
    encoded,
    files_of,
    within,
)

IMAGE_SUFFIX = re.compile(r"\.(png|jpe?g|bmp|webp|tiff?|gif|p[gp]m)$", re.IGNORECASE)
SPLIT = re.compile(f"train(ing)?|{HELD_OUT.pattern}", re.IGNORECASE)  # no class is called so


class ImageFolder(Layout):
    """Image files in one folder a class, as torchvision reads them; perhaps inside train/."""

    def __init__(self, path: Path) -> None:
        self.path, self.pixels = path, True
        self._root = "train/" if _folders(path / "train") else ""
        self._folders = _folders(path / self._root)
        counts = [sum(1 for _ in self._images(label)) for label in range(len(self._folders))]
        splits = [folder for folder in self._folders if SPLIT.fullmatch(folder)]
        if not any(counts) or splits == self._folders:
            raise MarshtestError(f"{path}: not a data set in a known layout. {KNOWN}")
        if 0 in counts:
            folder = path / self._root / self._folders[counts.index(0)]
            raise MarshtestError(
                f"{folder}: a class without images. Remove it: loaders disagree on its label."
            )
        self._firsts = np.cumsum([0, *counts])  # [C + 1], id of each class's first image
        self.samples, self.classes = int(self._firsts[-1]), len(counts)

    def _each(self, ids: Ids) -> Iterator[tuple[int, Value, int]]:
        for i, label, name in self._named(ids):
            yield i, decoded(self.path / name, str(self.path / name)), label

    def _write(self, out: Path, dosed: Dosed, ids: Ids) -> list[Place]:
        chosen = {name: i for i, _, name in self._named(ids)}
        for name in files_of(self.path):
            if name not in chosen:
                copy_file(self.path / name, out / name)
        places = []
        for name, i in chosen.items():
            value = dosed(i, decoded(self.path / name, str(self.path / name)))
            new = self._png(name, out)
            (out / new).parent.mkdir(parents=True, exist_ok=True)
            (out / new).write_bytes(encoded(value))
            places.append(Place(i, new, None))
        return places

    def _named(self, ids: Ids) -> Iterator[tuple[int, int, str]]:
        """(id, label, relative path) of the samples `ids`; one class's names are held at once."""
        for label, (first, end) in enumerate(pairwise(self._firsts.tolist())):
            if inside := within(ids, first, end - first):
                names = list(self._images(label))
                yield from ((i, label, names[i - first]) for i in inside)

    def _images(self, label: int) -> Iterator[str]:
        folder = f"{self._root}{self._folders[label]}/"
        return filter(IMAGE_SUFFIX.search, files_of(self.path / folder, folder))

    def _png(self, name: str, out: Path) -> str:
        """The name of a dosed image: a .png that neither data set has."""
        old = PurePosixPath(name)
        if old.suffix.lower() == ".png":
            return name
        new = str(old.with_suffix(".png"))
        if (self.path / new).exists() or (out / new).exists():
            new = f"{name}.png"
        while (self.path / new).exists() or (out / new).exists():
            new += ".png"
        return new


def _folders(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())
