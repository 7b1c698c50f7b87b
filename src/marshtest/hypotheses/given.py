"""Poisons that a user brings in a file."""

import hashlib
from pathlib import Path

import torch

from marshtest.attacks import Poisoned
from marshtest.data.load import read_tensors
from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings


class Given(Settings):
    """A safetensors file of ids [P], their new features x [P, F] and, if labels change, y [P]."""

    path: str

    def poison(self, samples: Samples, count: int) -> Poisoned:
        """The samples with the poisons of the file in their places.

        Args:
            samples: the training samples.
            count: P, the number of poisons that the file must hold.

        Raises:
            MarshtestError: no such file, ids that no sample has, or shapes that do not fit.
        """
        tensors, where = read_tensors(self.path, "sets", ("ids", "x")), f"sets: {self.path}"
        ids, x = tensors["ids"].to(samples.ids), tensors["x"].to(samples.x)
        if len(ids) != count:
            raise MarshtestError(f"{where} holds {len(ids)} poisons; `poisons` says {count}.")
        strange = ids[~torch.isin(ids, samples.ids)].tolist()
        if strange or len(ids.unique()) < len(ids):
            fault = f"no training sample has id {strange[0]}" if strange else "an id comes twice"
            raise MarshtestError(
                f"{where}: {fault}. Ids are the row numbers of the training split."
            )
        positions = samples.positions(ids)
        y = tensors.get("y", samples.y[positions]).to(samples.y)
        if (
            x.shape != samples.x[positions].shape
            or len(y) != len(x)
            or not bool(torch.isfinite(x).all())
        ):
            raise MarshtestError(
                f"{where}: x is {list(x.shape)}, and y {list(y.shape)}; finite x "
                f"{list(samples.x[positions].shape)} and one label each are needed."
            )
        if not bool(torch.isin(y, samples.y.unique()).all()):
            raise MarshtestError(f"{where}: y holds a label that no training sample has.")
        given_x = samples.x.index_copy(0, positions, x)
        return Poisoned(
            Samples(given_x, samples.y.index_copy(0, positions, y), samples.ids), ids, 0
        )

    def digest(self) -> str:
        """Sixteen hex digits that tell the file's content; raises if it is no such file."""
        read_tensors(self.path, "sets", ("ids", "x"))
        return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()[:16]
