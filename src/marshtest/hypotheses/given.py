"""Poisons that the reader brings."""

import hashlib
from pathlib import Path

import torch

from marshtest.attacks import Poisoned
from marshtest.data.load import read_tensors
from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings


class Given(Settings):
    """A safetensors file of ids [P], x [P, F] in the place of theirs and, where it differs, y [P]."""

    path: str

    def poison(self, samples: Samples, count: int) -> Poisoned:
        """The samples with these in their places.

        Raises:
            MarshtestError: no such file, ids that are not of the samples, or shapes that do not fit.
        """
        found, where = read_tensors(self.path, "sets", ("ids", "x")), f"sets: {self.path}"
        ids, x = found["ids"].to(samples.ids), found["x"].to(samples.x)
        if len(ids) != count:
            raise MarshtestError(f"{where} holds {len(ids)} poisons; `poisons` says {count}.")
        strange = ids[~torch.isin(ids, samples.ids)].tolist()
        if strange or len(ids.unique()) < len(ids):
            said = f"id {strange[0]} is of no training sample" if strange else "an id comes twice"
            raise MarshtestError(f"{where}: {said}. Ids are the row numbers of the training split.")
        at = samples.positions(ids)
        y = found.get("y", samples.y[at]).to(samples.y)
        if x.shape != samples.x[at].shape or len(y) != len(x) or not bool(torch.isfinite(x).all()):
            raise MarshtestError(
                f"{where}: x is {list(x.shape)}, and y {list(y.shape)}; finite x "
                f"{list(samples.x[at].shape)} and one label each are needed."
            )
        if not bool(torch.isin(y, samples.y.unique()).all()):
            raise MarshtestError(f"{where}: y holds a label that no training sample has.")
        given_x = samples.x.index_copy(0, at, x)
        return Poisoned(Samples(given_x, samples.y.index_copy(0, at, y), samples.ids), ids, 0)

    def digest(self) -> str:
        """Sixteen hex digits of the file, which must be one."""
        read_tensors(self.path, "sets", ("ids", "x"))
        return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()[:16]
