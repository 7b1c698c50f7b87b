"""Steps of one kind, which cost alike: counted at first and now and then, and taken as known between.

To count a step every operation passes through Python, which takes two to three times as long as a GPU's
step. A step of a method of ours on a model of ours, or of `transformers`, does the same operations whenever
its tensors have the same shapes, so its cost is known once two of a kind have cost the same. A model of a
user's factory may skip layers by what it has learned, and is counted throughout; should another's cost
differ from step to step all the same, a step that is counted again shows it.
"""

from collections.abc import Hashable
from dataclasses import dataclass

from marshtest.data.samples import Samples
from marshtest.data.sealed import opened

EVERY = 64  # of so many steps of a kind one is counted again


@dataclass
class Alike:
    """What is known of the steps of one kind.

    Attributes:
        flops, operations: of the last step that was counted.
        alike: counted steps in a row that cost the same.
        since: steps that were taken as known since one was counted.
    """

    flops: int = -1
    operations: int = 0
    alike: int = 0
    since: int = 0
    differs: bool = False  # two counted steps of this kind cost differently

    @property
    def known(self) -> bool:
        """Whether the next step need not be counted."""
        return self.alike > 1 and not self.differs and self.since < EVERY - 1

    def counted(self, flops: int, operations: int) -> None:
        """Take note of a step that was counted."""
        self.differs = self.differs or (self.alike > 0 and flops != self.flops)
        self.flops, self.operations = flops, operations
        self.alike, self.since = self.alike + 1, 0


def kind_of(batch: object) -> Hashable | None:
    """What a step on this mini-batch depends on, but for the numbers in it; None if that is not known."""
    if isinstance(batch, Samples):
        batch = opened(batch)  # sealed, where the poison of a text lies in the embeddings
        x = batch.x
        return tuple(x.shape), x.dtype, batch.y.dtype, batch.perturbation_rows is None
    if isinstance(batch, tuple):
        kinds = tuple(map(kind_of, batch))
        return None if None in kinds else kinds
    return batch if isinstance(batch, bool | str) else None
