"""Inputs that only a task can read.

A poisoned image is a tensor: the pixels plus the noise. A poisoned text is none: its noise is added to the
embeddings that the current model gives the text's tokens. An unlearner therefore gets a stand-in for `x`,
which the task's functions open. Code that looks into the stand-in itself would see the clean tokens, and
gets an error instead. This guards against mistakes, not against malice: a task can be handed a model that
listens.
"""

from dataclasses import replace
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError

# Kept outside the stand-in, so that neither `vars` nor a deep copy of it shows the clean tokens.
_CONTENTS: "WeakKeyDictionary[Sealed, Samples]" = WeakKeyDictionary()


class Sealed:
    """A stand-in for `Samples.x` that has a length and an index, and shows nothing else."""

    def __init__(self, content: Samples) -> None:
        _CONTENTS[self] = content

    def __len__(self) -> int:
        return len(_CONTENTS[self])

    def __getitem__(self, index: Tensor | slice) -> "Sealed":
        if not isinstance(index, Tensor | slice):
            _refuse()
        return Sealed(_CONTENTS[self][index])

    def __deepcopy__(self, memo: object) -> "Sealed":
        return self  # immutable

    def to(self, device: torch.device | str) -> "Sealed":
        """The same stand-in, its content on a device."""
        return Sealed(_CONTENTS[self].to(device))

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> NoReturn:
        _refuse()

    def __iter__(self) -> NoReturn:
        _refuse()

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        _refuse()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python itself asks for these, as copy and pickle do
            raise AttributeError(name)
        _refuse()


def sealed(samples: Samples) -> Samples:
    """The same samples with a stand-in for `x`, so that only labels and ids can be seen."""
    stand_in: Any = Sealed(samples)
    return Samples(stand_in, samples.y.clone(), samples.ids.clone())


def opened(samples: Samples) -> Samples:
    """The same samples with a readable `x`, for a task; their labels are those of `samples`."""
    if not isinstance(samples.x, Sealed):
        return samples
    return replace(_CONTENTS[samples.x], y=samples.y, ids=samples.ids)


def _refuse() -> NoReturn:
    raise MarshtestError(
        "forget.x: the poison of a text lies in the model's embeddings, so these samples are no tensor of "
        "their own. Draw batches by task.batches(forget, size, seed) and ask task.loss(model, batch), or "
        "task.inputs(model, batch) for the poisoned embeddings."
    )
