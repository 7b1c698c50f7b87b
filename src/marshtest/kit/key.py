"""The key: the auditor keeps it, and nothing else tells which noise the dose is."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from marshtest.kit.layouts import open_layout, read
from marshtest.kit.layouts.base import Layout, Value
from marshtest.kit.layouts.folders import MARK, Digest, digest, strangers
from marshtest.kit.noise import DoseNoise, Noise
from marshtest.kit.sealed import Sealed
from marshtest.plumbing.errors import MarshtestError

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=2, lt=2**48, strict=True)]


class NoiseKey(Sealed, ABC):
    """A dose of noise: which samples, which noise, and of which data set."""

    fresh: ClassVar[str] = "fresh noise"  # what the dosed samples are compared with
    # what two neighbouring training sets differ in, without which an ε means nothing
    unit: ClassVar[str]
    depends: ClassVar[tuple[str, ...]]  # libraries that the noise, as it is written, depends on

    noise: DoseNoise  # seed, ε² and law of the noise
    samples: Count  # N of the data set
    classes: Count  # C of the data set
    # row numbers of the dosed samples in the data set, increasing
    ids: tuple[Annotated[int, Field(ge=0, lt=2**48, strict=True)], ...] = Field(min_length=2)
    input: Sha256  # of the data before dosing
    # eight hex digits of each file of a folder before dosing; they tell which one changed
    files: str = Field("", pattern="^([0-9a-f]{8})*$")
    output: Sha256  # of the data after dosing
    dosed: Sha256  # SHA-256 of the dosed samples' values as they were written
    versions: dict[str, str]  # versions of the libraries that drew the noise and decoded the images

    @model_validator(mode="after")
    def _of_samples(self) -> Self:
        if self.ids[-1] >= self.samples or any(np.diff(self.positions) <= 0):
            raise MarshtestError(f"key: its ids must increase, and lie in 0..{self.samples - 1}.")
        return self

    @property
    def secret(self) -> int:
        """The seed of the dose."""
        return self.noise.seed

    def summary(self) -> dict[str, Any]:
        """What may be told of the dose."""
        return {"variance": self.noise.variance, "input": self.input, "output": self.output}

    @property
    def positions(self) -> NDArray[np.int64]:
        """[P] the ids as an array."""
        return np.array(self.ids, dtype=np.int64)

    @abstractmethod
    def layout(self, data: str | Path) -> Layout:
        """The data set at a path, in the layout of the data that were dosed."""

    def bases(self, data: str | Path) -> "Bases":
        """The dosed samples, read from the data set as it was before dosing.

        Raises:
            MarshtestError: the data set is not the one that was dosed, or has changed since.
        """
        now = digest(Path(data))
        if now.whole != self.input:
            raise MarshtestError(
                f"{data}: is not the data set that this key dosed ({self.samples} samples, SHA-256 "
                f"{self.input[:12]}…), or has changed since{self._changes(Path(data), now)}. Give the "
                "data as they were before dosing."
            )
        return self._checked(self.layout(data))

    def _changes(self, data: Path, now: Digest) -> str:
        """A clause on what differs in a folder; empty if the key cannot tell, or nothing is as it was."""
        if not self.files or not now.files:
            return ""
        changed = strangers(data, now, self.files)
        length, old_length = len(now.files), len(self.files)
        if len(changed) == length // MARK:
            return ""
        clauses = [f"{name!r} is new or changed" for name in changed[:3]]
        clauses += [f"{len(changed) - 3} more are"] * (len(changed) > 3)
        clauses += [f"there are {length // MARK} files and were {old_length // MARK}"] * (
            length != old_length
        )
        return f": {', '.join(clauses)}"

    def _checked(self, layout: Layout) -> "Bases":
        """The bases, if their noise, drawn and written anew, is what was written then."""
        values, labels = read(layout, self.positions)
        bases = Bases(self.positions, values, labels, self.noise)
        # The files are the same by now. This tells whether the libraries still draw and decode alike:
        # noise that is not what was trained on would acquit every model.
        if written_digest(bases) != self.dosed:
            installed = current_versions(self.depends)
            differing = [
                f"{name} {old}" for name, old in self.versions.items() if installed.get(name) != old
            ]
            raise MarshtestError(
                "key: the noise or the decoded images are not those that were written. "
                f"Install the versions of the key: {', '.join(differing) or 'they are installed'}."
            )
        return bases


class Key(NoiseKey):
    """A dose of noise in images or arrays."""

    unit: ClassVar[str] = (
        "one training sample's input, replaced by the same base with other noise; labels and all else fixed"
    )

    depends: ClassVar[tuple[str, ...]] = ("marshtest", "numpy", "pillow")

    format: Literal["marshtest key 1"] = "marshtest key 1"
    noise: Noise  # seed, ε² and scaling of the noise

    def layout(self, data: str | Path) -> Layout:
        return open_layout(data)


class Bases:
    """The base samples of a dose [P, *shape], their labels [P] and ids [P], and the noise."""

    def __init__(
        self, ids: NDArray[np.int64], values: Value, labels: NDArray[np.int64], noise: DoseNoise
    ) -> None:
        self.ids, self.values, self.labels, self.noise = ids, values, labels, noise

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Bases":
        return Bases(self.ids[rows], self.values[rows], self.labels[rows], self.noise)


def written_digest(bases: Bases) -> str:
    """SHA-256 of all dosed samples' values, in order of their ids."""
    digested = hashlib.sha256()
    for seed_id, value in zip(bases.ids.tolist(), bases.values, strict=True):
        digested.update(bases.noise.written(value, seed_id).tobytes())
    return digested.hexdigest()


def current_versions(names: Iterable[str] = Key.depends) -> dict[str, str]:
    """Versions of marshtest and of the libraries that a dose depends on."""
    return {name: version(name) for name in names}
