"""A language model as the auditor asks it: texts in, losses out."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Sequence

from marshtest.kit.records.base import Asked, Floats
from marshtest.plumbing.errors import MarshtestError


class TextModel(ABC):
    """A language model as the auditor asks it; a `Door` with a name."""

    name: str  # the model as it is given on the command line
    notes: tuple[str, ...] = ()  # what a reader should know of how the model is asked

    @abstractmethod
    def __call__(self, asked: Sequence[Asked]) -> Floats:
        """[B] −log p of each text's scored tokens, summed, in nats.

        Variants of one record are asked fastest together.
        """


def shared(one: Sequence[object], other: Sequence[object]) -> int:
    """Number of entries that two sequences begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


class Counted:
    """What a tokenizer does to the texts that were asked, counted as they come."""

    def __init__(self, name: str, context: int | None) -> None:
        self.name, self.context = name, context
        self.alike = 0  # variants that are tokenised like another one of their record
        self.cut: set[int] = set()  # groups of the dosed records that were cut to fit the context

    def note_alike(self, asked: Sequence[Asked], tokens: Sequence[Hashable]) -> None:
        """Count variants whose tokens are those of another variant of their record.

        Raises:
            MarshtestError: the tokens of no record differ, so nothing can be told from any answer.
        """
        texts: dict[int, dict[Hashable, set[str]]] = defaultdict(lambda: defaultdict(set))
        for question, ids in zip(asked, tokens, strict=True):
            texts[question.group][ids].add(question.before + question.scored)
        several = [by.values() for by in texts.values() if len(set().union(*by.values())) > 1]
        if several and all(len(by) == 1 for by in several):
            raise MarshtestError(
                f"{self.name}: its tokenizer swallows the mark: all variants of a record become the same "
                "tokens. Choose another mark."
            )
        self.alike += sum(len(same) - 1 for by in several for same in by)

    @property
    def notes(self) -> tuple[str, ...]:
        """The counts that are not 0, in words."""
        alike = (
            f"{self.alike:,} variants are tokenised like another of their record: the tokenizer "
            "swallows part of the mark, and their ranks are drawn by chance"
        )
        limit = "context" if self.context is None else f"{self.context} tokens"
        cut = (
            f"{len(self.cut):,} dosed records are longer than the model's {limit} and were cut round the "
            "mark"
        )
        return (alike,) * bool(self.alike) + (cut,) * bool(self.cut)
