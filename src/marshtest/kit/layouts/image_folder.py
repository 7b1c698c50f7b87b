"""Image files in one folder for each class."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from marshtest.kit.layouts.base import HELD_OUT, KNOWN, Dosed, Ids, Layout, Place, Value, within
from marshtest.kit.layouts.folders import copy_file, create_file, files_of, folders_of
from marshtest.kit.layouts.pictures import Picture
from marshtest.plumbing.errors import MarshtestError

IMAGE_SUFFIX = re.compile(r"\.(png|jpe?g|bmp|webp|tiff?|gif|p[gp]m)$", re.IGNORECASE)
SPLIT = re.compile(f"train(ing)?|{HELD_OUT.pattern}", re.IGNORECASE)  # no class is called so


class ImageFolder(Layout):
    """Image files in one folder for each class, as torchvision reads them; perhaps inside train/."""

    def __init__(self, path: Path) -> None:
        self.path, self.pixels, self.encoded = path, True, True
        self._root = "train/" if folders_of(path / "train") else ""
        self._folders = folders_of(path / self._root)
        counts = [sum(1 for _ in self._images(label)) for label in range(len(self._folders))]
        # Where all folders have names of splits, none is a class: the path is a level too high.
        splits = [folder for folder in self._folders if SPLIT.fullmatch(folder)]
        if not any(counts) or splits == self._folders:
            raise MarshtestError(f"{path}: not a data set of images in a known layout. {KNOWN}")
        if 0 in counts:
            folder = path / self._root / self._folders[counts.index(0)]
            raise MarshtestError(
                f"{folder}: has no images. Remove it: loaders disagree on whether it is a class."
            )
        self._firsts = np.cumsum([0, *counts])  # [C + 1], id of each class's first image
        self.samples, self.classes = int(self._firsts[-1]), len(counts)
        self.names = tuple(self._folders)

    def where(self, i: int) -> str:
        """The path of an image."""
        return str(self.path / next(name for _, _, name, _ in self._named(np.array([i]))))

    def _each(self, ids: Ids) -> Iterator[tuple[int, Value, int]]:
        for i, label, name, _ in self._named(ids):
            yield i, Picture.read(self.path / name, str(self.path / name)).value, label

    def _write(self, out: Path, dosed: Dosed, ids: Ids, hide: bool) -> list[Place]:
        # All files are made at once, and then filled, so that the time at which a file was made, and
        # its inode, tell only its place in the order.
        for _, _, new_name, _ in self._files(ids, hide):
            create_file(out / new_name)
        places = []
        for i, name, new_name, rewritten in self._files(ids, hide):
            if not rewritten:
                copy_file(self.path / name, out / new_name)
                continue
            picture = Picture.read(self.path / name, str(self.path / name))
            value = picture.value if i is None else dosed(i, picture.value)
            (out / new_name).write_bytes(picture.png(value, hide=hide))
            if i is not None:
                places.append(Place(i, new_name, None))
        return places

    def _files(self, ids: Ids, hide: bool) -> Iterator[tuple[int | None, str, str, bool]]:
        """(id if dosed, path, new path, whether it is written anew) of each file, samples first."""
        for i, _, name, png in self._named(np.arange(self.samples)):
            dosed = bool(within(ids, i, 1))
            rewritten = dosed or hide
            yield i if dosed else None, name, png if rewritten else name, rewritten
        for name in files_of(self.path):
            if not self._is_sample(name):
                yield None, name, name, False

    def _is_sample(self, name: str) -> bool:
        inside = name.removeprefix(self._root)
        return name.startswith(self._root) and "/" in inside and bool(IMAGE_SUFFIX.search(name))

    def _named(self, ids: Ids) -> Iterator[tuple[int, int, str, str]]:
        """(id, label, path, path as PNG) of the samples `ids`; one class's names are held at once."""
        for label, (first, end) in enumerate(pairwise(self._firsts.tolist())):
            if inside := within(ids, first, end - first):
                names = list(self._images(label))
                png_counts = Counter(map(_png, names))
                for i in inside:
                    name = names[i - first]
                    yield i, label, name, _free_name(name, png_counts)

    def _images(self, label: int) -> Iterator[str]:
        folder = f"{self._root}{self._folders[label]}/"
        return filter(IMAGE_SUFFIX.search, files_of(self.path / folder, folder))


def _png(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".png"))


def _free_name(name: str, png_counts: Counter[str]) -> str:
    """The name of an image as PNG, which no other image has or gets.

    It is a function of the source alone: a name that depended on the dose would tell of it.
    """
    png_name = _png(name)
    if name.lower().endswith(".png"):
        return name
    if png_counts[png_name] > 1:
        png_name = f"{name}.png"
        while png_name in png_counts:
            png_name += ".png"
    return png_name
