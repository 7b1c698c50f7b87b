"""Inputs that a task can read and nobody else.

A poisoned image is a tensor: the pixels plus the noise. A poisoned text is none: its noise is added to the
embeddings that the model of the moment gives its tokens. What an unlearner gets of such a text is a
stand-in for `x` that the task's functions open; whoever looks into it directly, and would see the clean
tokens, is told so. This guards against a mistake, not against malice: a task can be handed a model that
listens.
"""

from dataclasses import replace
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError

_CONTENTS: "WeakKeyDictionary[Sealed, Samples]" = WeakKeyDictionary()


class Sealed:
    """Stands in the place of `Samples.x`; it has a length, an index, and nothing else to see."""

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
        """The same on another device."""
        return Sealed(_CONTENTS[self].to(device))

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> NoReturn:
        _refuse()

    def __iter__(self) -> NoReturn:
        _refuse()

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        _refuse()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse()


def sealed(samples: Samples) -> Samples:
    """The same samples with nothing to see but labels and ids."""
    stand_in: Any = Sealed(samples)
    return Samples(stand_in, samples.y.clone(), samples.ids.clone())


def opened(samples: Samples) -> Samples:
    """What a task reads of samples, sealed or not; labels are those that they bear now."""
    if not isinstance(samples.x, Sealed):
        return samples
    return replace(_CONTENTS[samples.x], y=samples.y, ids=samples.ids)


def _refuse() -> NoReturn:
    raise MarshtestError(
        "forget.x: the poison of a text lies in the model's embeddings, so these samples are no tensor of "
        "their own. Draw batches by task.batches(forget, size, seed) and ask task.loss(model, batch), or "
        "task.inputs(model, batch) for the poisoned embeddings."
    )
