"""A record as a model is asked about it, and the interface of the doors to models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Loss = Literal[
    "record", "completion"
]  # whether all tokens of a record count, or the completion's alone


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Asked:
    """A question about a text: how surprising does a model find it?

    A chat is given in two ways. Where the model has a chat template, a door applies it to `messages`, of
    which the first `given` are context and count for nothing; the plain text of the same is in `before` and
    `scored`, for models without a template.
    """

    scored: str  # the text whose tokens count
    before: str = ""  # the text before it, which is given and does not count
    messages: tuple[Message, ...] = ()  # of a chat; empty for other records
    given: int = 0  # number of leading messages that do not count
    # where variants of the record differ in before + scored: a text that is too long is cut round it
    span: tuple[int, int] = (0, 0)
    # variants of one record have one number, so that a door can share what they have in common; it is
    # drawn at random, and no black box is told
    group: int = 0


# −log p of each text's scored tokens [B], summed, in nats; nan where the model does not tell.
Door = Callable[[Sequence[Asked]], Floats]
