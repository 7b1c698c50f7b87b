"""The key: what the auditor keeps, and what alone tells the dose's noise."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from marshtest.errors import MarshtestError
from marshtest.kit.layouts import Layout, Value, digest, open_layout, read
from marshtest.kit.noise import Noise
from marshtest.settings import Settings


class Key(Settings):
    """A dose: which samples, which noise, and of which data set.

    Attributes:
        noise: seed, ε², scaling.
        samples, classes: N and C of the data set.
        ids: the dosed samples, row numbers of the data set.
        input, output: SHA-256 of the data before and after dosing.
        dosed: SHA-256 of the dosed samples' values as they were written.
        versions: of what drew the noise and decoded the images.
    """

    format: Literal["marshtest key 1"] = "marshtest key 1"
    noise: Noise
    samples: int
    classes: int
    ids: tuple[int, ...]
    input: str
    output: str
    dosed: str
    versions: dict[str, str]

    @property
    def positions(self) -> NDArray[np.int64]:
        """[P] the ids as an array, increasing."""
        return np.array(self.ids, dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write the key as JSON, sealed with a digest of its own content."""
        content = self.model_dump(mode="json")
        sealed = {**content, "seal": _seal(content)}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sealed.items()]
        path.write_text("{\n " + ",\n ".join(lines) + "\n}\n")

    @classmethod
    def read(cls, path: str | Path) -> "Key":
        """Read a key.

        Raises:
            MarshtestError: no such file, no key, or one that was edited.
        """
        path = Path(path)
        try:
            content: Any = json.loads(path.read_text())
        except FileNotFoundError:
            raise MarshtestError(f"{path}: no such key file.") from None
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict) or "seal" not in content or "noise" not in content:
            raise MarshtestError(f"{path}: is not a marshtest key. `marshtest dose` writes one.")
        seal = content.pop("seal")
        if seal != _seal(content):
            raise MarshtestError(
                f"{path}: was edited after dosing (its seal does not fit). Take the untouched key."
            )
        return cls.parse(content, str(path))

    def bases(self, data: str | Path) -> "Bases":
        """The samples as they were before dosing.

        Raises:
            MarshtestError: the data set is not the one that was dosed, or has changed since.
        """
        layout = open_layout(data)
        if layout.samples != self.samples or digest(Path(data)) != self.input:
            raise MarshtestError(
                f"{data}: is not the data set that this key dosed ({self.samples} samples, SHA-256 "
                f"{self.input[:12]}…), or has changed since. Give the data as they were before dosing."
            )
        return self._checked(layout)

    def _checked(self, layout: Layout) -> "Bases":
        values, labels = read(layout, self.positions)
        found = Bases(self.positions, values, labels, self.noise)
        if written_digest(found) != self.dosed:
            here = current_versions()
            differing = [
                f"{name} {was}" for name, was in self.versions.items() if here[name] != was
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
