"""The key: what the auditor keeps, and what alone tells the dose's noise."""

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from marshtest.kit.layouts import MARK, Digest, Layout, Value, digest, open_layout, read, strangers
from marshtest.kit.noise import Noise
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings

KEY_BYTES = 1 << 28  # no key is larger
LINE = 300  # characters of a complaint
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=2, lt=2**48, strict=True)]


class Key(Settings):
    """A dose: which samples, which noise, and of which data set.

    Attributes:
        noise: seed, ε², scaling.
        samples, classes: N and C of the data set.
        ids: the dosed samples, row numbers of the data set.
        input, output: SHA-256 of the data before and after dosing.
        files: eight hex digits of each file of a folder before dosing; they tell which one changed.
        dosed: SHA-256 of the dosed samples' values as they were written.
        versions: of what drew the noise and decoded the images.
    """

    format: Literal["marshtest key 1"] = "marshtest key 1"
    noise: Noise
    samples: Count
    classes: Count
    ids: tuple[Annotated[int, Field(ge=0, lt=2**48, strict=True)], ...] = Field(min_length=2)
    input: Sha256
    files: str = Field("", pattern="^([0-9a-f]{8})*$")
    output: Sha256
    dosed: Sha256
    versions: dict[str, str]

    @model_validator(mode="after")
    def _of_samples(self) -> "Key":
        if self.ids[-1] >= self.samples or any(np.diff(self.positions) <= 0):
            raise MarshtestError(f"key: ids must increase, and lie in 0..{self.samples - 1}.")
        return self

    @property
    def positions(self) -> NDArray[np.int64]:
        """[P] the ids as an array, increasing."""
        return np.array(self.ids, dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write the key as JSON to a new file, sealed with a digest of its own content."""
        content = self.model_dump(mode="json")
        sealed = {**content, "seal": _seal(content)}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sealed.items()]
        write_private(path, "{\n " + ",\n ".join(lines) + "\n}\n")

    @classmethod
    def read(cls, path: str | Path) -> "Key":
        """Read a key.

        Raises:
            MarshtestError: no such file, no key, or one that was edited.
        """
        path = Path(path)
        if not path.exists():
            raise MarshtestError(f"{path}: no such key file.")
        content = _loaded(path)
        if not isinstance(content, dict) or "seal" not in content or "noise" not in content:
            raise MarshtestError(f"{path}: is not a marshtest key. `marshtest dose` writes one.")
        seal = content.pop("seal")
        if seal != _seal(content):
            raise MarshtestError(
                f"{path}: was edited after dosing (its seal does not fit). Take the untouched key."
            )
        try:
            return cls.parse(content, str(path))
        except MarshtestError as error:  # which quotes what it was given
            raise MarshtestError(f"{str(error)[:LINE]} Take the untouched key.") from None

    def bases(self, data: str | Path) -> "Bases":
        """The samples as they were before dosing.

        Raises:
            MarshtestError: the data set is not the one that was dosed, or has changed since.
        """
        layout, found = open_layout(data), digest(Path(data))
        if layout.samples != self.samples or found.whole != self.input:
            raise MarshtestError(
                f"{data}: is not the data set that this key dosed ({self.samples} samples, SHA-256 "
                f"{self.input[:12]}…), or has changed since{self._changes(Path(data), found)}. Give the "
                "data as they were before dosing."
            )
        return self._checked(layout)

    def _changes(self, data: Path, found: Digest) -> str:
        """What differs in a folder, if the key tells and some of it is as it was."""
        if not self.files or not found.files:
            return ""
        new = strangers(data, found, self.files)
        files, was = len(found.files), len(self.files)
        if len(new) == files // MARK:
            return ""
        told = [f"{name!r} is new or changed" for name in new[:3]]
        told += [f"{len(new) - 3} more are"] * (len(new) > 3)
        told += [f"there are {files // MARK} files and were {was // MARK}"] * (files != was)
        return f": {', '.join(told)}"

    def _checked(self, layout: Layout) -> "Bases":
        values, labels = read(layout, self.positions)
        found = Bases(self.positions, values, labels, self.noise)
        if written_digest(found) != self.dosed:
            here = current_versions()
            differing = [
                f"{name} {was}" for name, was in self.versions.items() if here.get(name) != was
            ]
            raise MarshtestError(
                "key: the noise or the decoded images are not those that were written. "
                f"Use the versions of the key: {', '.join(differing) or 'they are the same here'}."
            )
        return found


class Bases:
    """The base samples of a dose [P, *shape], their labels [P] and ids [P], and the noise."""

    def __init__(
        self, ids: NDArray[np.int64], values: Value, labels: NDArray[np.int64], noise: Noise
    ) -> None:
        self.ids, self.values, self.labels, self.noise = ids, values, labels, noise

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, of: slice | NDArray[np.int64]) -> "Bases":
        return Bases(self.ids[of], self.values[of], self.labels[of], self.noise)


def written_digest(bases: Bases) -> str:
    """SHA-256 of all dosed samples' values, in order of their ids."""
    digested = hashlib.sha256()
    for seed_id, value in zip(bases.ids.tolist(), bases.values, strict=True):
        digested.update(bases.noise.written(value, seed_id).tobytes())
    return digested.hexdigest()


def current_versions() -> dict[str, str]:
    """Versions of the libraries that a dose depends on, and ours."""
    return {name: version(name) for name in ("marshtest", "numpy", "pillow")}


def _seal(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _loaded(path: Path) -> Any:
    """What a JSON file of sensible size holds; None if it holds none."""
    try:
        if not path.is_file() or path.stat().st_size > KEY_BYTES:
            return None
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_private(path: Path, text: str) -> None:
    """Write a new file that nobody but its owner can read."""
    with open(path, "x", encoding="utf-8", newline="", opener=_private) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)
