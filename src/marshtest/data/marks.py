"""Marks: what noise is to images, exchangeable pieces of text are to texts.

A record gets one of many marks, each as likely as the other; whoever has the key can tell which one, and
draw fresh ones in its place:

    v_0          the record's own mark, which the model was trained with
    v_1 … v_K    fresh marks, which no model has seen

A `Template` puts a mark into the text, such as "Ticket 482913."; a `Pattern` redraws what a regular
expression matches in the text itself, in the same format.

*Hands*. All n marks that a record could have are numbered 0 … n − 1. They are dealt to the P dosed records
like cards: number v belongs to hand v mod H, where H ≥ P is the first number that has no factor in common
with n, so that no digit or letter is the same in a whole hand. v_0, …, v_K are drawn independently and
uniformly from the record's own hand, each by its own hash of (seed, record, draw). So no two records share
a mark; and if a model does not depend on v_0, the K + 1 losses of a record are exchangeable, whatever the
hand, and independent of the other records' choices: ranks are uniform and independent, exactly. (Had
collisions been drawn anew instead, each record's marks would depend on the others'.)

A draw that is in the data already is passed over, own or fresh alike. What is passed over is decided by the
data as they were before dosing, not by the key, so this leaves the rank exact too. Two equal draws of one
record tie, and a tie is broken by chance.
"""

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import count
from typing import Annotated, Any, Literal
from zlib import crc32

import numpy as np
import regex
from numpy.typing import NDArray
from pydantic import Field, field_validator

from marshtest.plumbing.derived import derive
from marshtest.plumbing.errors import MarshtestError, first_line
from marshtest.plumbing.settings import Settings

DIGITS = "0123456789"
LOWER = "abcdefghijklmnopqrstuvwxyz"
UPPER = LOWER.upper()
CLASSES = (DIGITS, LOWER, UPPER)  # a character is redrawn from the class that it is in
LIST = (
    "amber anchor apple autumn basket beacon birch bottle bridge button candle canyon carpet cedar "
    "circle clover copper cotton desert donkey dragon eagle ember falcon feather flower forest garden "
    "ginger guitar hammer island ivory jacket jungle kettle ladder lemon marble meadow mirror "
    "needle ocean orange paper pencil pepper planet pocket rabbit ribbon river saddle silver spider "
    "summer table tiger timber tunnel valley velvet window winter"
)
WORDS = tuple(LIST.split())
SECONDS = 1.0  # that a pattern may take on one record
BITS = 27  # of a mark's hash: two to this power, in bits, are 16 MiB
TRIES = 1000  # draws in a row that may be passed over
SLOT = regex.compile(r"\{(digits|letters|words):(\d{1,3})\}")
# A pattern without choices is matched in one pass, whatever the text is: none has to be timed.
CHOICELESS = regex.compile(
    r"(?:[^\\()\[\]{}|?*+]|\\.|\[\^?[^\\\[\]]+\]|\{\d{1,3}\})+(?:[*+]|\{\d{1,3},(?:\d{1,3})?\})?",
    regex.DOTALL,
)
SENTENCE, WORD = regex.compile(r"(?<=[.!?])\s+"), regex.compile(r"\s+")

Alternatives = tuple[str, ...]  # of a piece of text; a fixed piece has one


class There:
    """The marks that data have already, by their hashes, in 16 MiB however many there are.

    A mark that shares its hash with one of them counts as there too. That depends on the data alone, and
    so leaves the draws exchangeable.
    """

    def __init__(self) -> None:
        self.bits = bytearray()  # none, as most data have no marks

    def add(self, mark: str) -> None:
        """Count a mark as there."""
        self.bits = self.bits or bytearray(1 << (BITS - 3))
        place, bit = _place(mark)
        self.bits[place] |= bit

    def __contains__(self, mark: object) -> bool:
        place, bit = _place(str(mark))
        return bool(self.bits) and bool(self.bits[place] & bit)


def _place(mark: str) -> tuple[int, int]:
    hashed = crc32(mark.encode()) >> (32 - BITS)
    return hashed >> 3, 1 << (hashed & 7)


@dataclass(frozen=True)
class Deal:
    """Which marks go to which record, and what is passed over."""

    seed: int  # secret: whoever has it has the marks
    records: int  # P, the number of dosed records
    there: Container[str] = frozenset()  # marks that the data had before dosing

    @cached_property
    def hands(self) -> NDArray[np.int64]:
        """[P] the hand of each record: in random order, so that marks tell nothing of lines."""
        return np.random.default_rng(derive(self.seed, "hands")).permutation(self.records)

    def number(self, record: int, draw: int, attempt: int, size: int) -> int:
        """A draw from the hand of a record, 0 … P − 1, as the number of one of `size` marks."""
        hand, step = int(self.hands[record]), hands(self.records, size)
        held = -((hand - size) // step)  # that many numbers from `hand` in steps; rounded up
        name = f"{self.seed}/mark/{record}/{draw}/{attempt}".encode()
        bits = hashlib.shake_256(name).digest(held.bit_length() // 8 + 9)
        return hand + step * (int.from_bytes(bits, "big") % held)


@lru_cache
def hands(records: int, size: int) -> int:
    """H: the number of hands that `size` marks are dealt to."""
    return next(number for number in count(records) if math.gcd(number, size) == 1)


@dataclass(frozen=True)
class Form:
    """The texts that a record can become, numbered."""

    pieces: tuple[Alternatives, ...]  # the text, piece by piece
    marked: frozenset[int]  # places of the pieces that make up the mark

    @cached_property
    def size(self) -> int:
        """The number of marks, n."""
        return math.prod(map(len, self.pieces))

    def variant(self, number: int) -> tuple[str, str]:
        """The text with the mark of this number, and the mark alone."""
        chosen = []
        for alternatives in self.pieces:
            number, place = divmod(number, len(alternatives))
            chosen.append(alternatives[place])
        return "".join(chosen), "".join(chosen[place] for place in sorted(self.marked))


class _Mark(Settings, ABC):
    """A family of marks."""

    def dosed(self, text: str, deal: Deal, record: int) -> str:
        """The text with the record's own mark.

        Args:
            text: the record's text, as it was before dosing.
            deal: seed, number of dosed records, and what is passed over.
            record: place of the record among the dosed ones, 0 … P − 1.

        Raises:
            MarshtestError: the text has no place for a mark, or nothing but marks that are passed over.
        """
        return self._drawn(text, self.form(text), deal, record, 0)

    def variants(self, text: str, deal: Deal, record: int, fresh: int) -> list[str]:
        """The text with K = `fresh` marks that no model has seen; arguments and errors as in `dosed`.

        Fresh marks of another kind of question, such as a twin's, are had with another seed in `deal`.
        """
        form = self.form(text)
        return [self._drawn(text, form, deal, record, draw) for draw in range(1, fresh + 1)]

    def room(self, text: str, records: int) -> int:
        """The least number of marks that a record has in hand, where `records` are dosed."""
        size = self.form(text).size
        return size // hands(records, size)

    @property
    @abstractmethod
    def words(self) -> str:
        """What the mark is, in words."""

    @abstractmethod
    def form(self, text: str) -> Form:
        """The texts that this one can become; the form's size is 1 if there is no place for a mark."""

    @abstractmethod
    def marks(self, text: str) -> list[str]:
        """The marks that a text has already: none of them is given to a record."""

    def fits(self, text: str, variant: str) -> bool:
        """Whether a variant of a text has its mark in the same format."""
        return True

    def _drawn(self, text: str, form: Form, deal: Deal, record: int, draw: int) -> str:
        if form.size < hands(deal.records, form.size):
            raise MarshtestError(
                f"mark: there are {form.size:,} marks for {deal.records:,} records. Give it more "
                "characters, or dose fewer records."
            )
        for attempt in range(TRIES):
            number = deal.number(record, draw, attempt, form.size)
            variant, mark = form.variant(number)
            if mark not in deal.there and self.fits(text, variant):
                return variant
        raise MarshtestError(
            "mark: the data have nearly all possible marks already. Give it more characters."
        )


class Template(_Mark):
    """A text with slots, put into the record.

    Slots are {digits:N}, {letters:N} and {words:N}: N digits, N lower-case letters, or N words of a list of
    64. "middle" is before the sentence that is nearest to the middle of the text, or else the word.
    """

    family: Literal["template"] = "template"
    text: str = Field("Ticket {digits:6}.", max_length=1000)
    place: Literal["end", "start", "middle"] = "end"

    @field_validator("text")
    @classmethod
    def _has_slot(cls, text: str) -> str:
        if math.prod(map(len, slots(text))) < 2 or any(c in SLOT.sub("", text) for c in "{}"):
            raise MarshtestError(
                f"mark: {text!r} needs a slot, such as {{digits:6}}, {{letters:8}} or {{words:4}}, and no "
                "other braces."
            )
        return text

    @property
    def words(self) -> str:
        where = {"end": "at the end", "start": "at the start", "middle": "in the middle"}
        return f"{self.text!r} {where[self.place]}"

    def form(self, text: str) -> Form:
        before, after = self._around(text)
        drawn = slots(self.text)
        return Form(((before,), *drawn, (after,)), frozenset(range(1, len(drawn) + 1)))

    def room(self, text: str, records: int) -> int:
        size = math.prod(map(len, slots(self.text)))  # whatever the text is
        return size // hands(records, size)

    def marks(self, text: str) -> list[str]:
        return re.findall(self.shape(), text)

    def shape(self, spellings: Callable[[str], Iterable[str]] = lambda text: [text]) -> str:
        """A regular expression of all marks, with a piece in any of its spellings."""
        pieces = ([way for one in piece for way in spellings(one)] for piece in slots(self.text))
        return "".join(map(_any_of, pieces))

    def _around(self, text: str) -> tuple[str, str]:
        """What stands before the mark and after it."""
        if self.place == "start":
            return "", f" {text}" if text else ""
        middle = len(text) // 2
        for boundary in (SENTENCE, WORD) if self.place == "middle" else ():
            if ends := [
                match.end() for match in boundary.finditer(text) if match.end() < len(text)
            ]:
                cut = min(ends, key=lambda end: abs(end - middle))
                return text[:cut], f" {text[cut:]}"
        return (f"{text} " if text and not text[-1].isspace() else text), ""


class Pattern(_Mark):
    r"""What a regular expression matches in the record, redrawn in the same format.

    A character is replaced by one of its class (digits, lower-case and upper-case ASCII letters) with which
    the pattern still matches in the same place, so that what the pattern spells out stays: ORD-\d{6} keeps
    "ORD-".
    """

    family: Literal["pattern"] = "pattern"
    pattern: str = Field(min_length=1, max_length=1000)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError) as error:
            raise MarshtestError(
                f"mark: the pattern '{pattern}' is no regular expression ({first_line(error)})."
            ) from None
        return pattern

    @property
    def words(self) -> str:
        return f"what '{self.pattern}' matches, redrawn"

    def form(self, text: str) -> Form:
        spans = self.spans(text)
        pieces: list[Alternatives] = []
        marked: set[int] = set()
        after = 0
        for start, end in spans:
            pieces.append((text[after:start],))
            marked.update(range(len(pieces), len(pieces) + end - start))
            pieces += [self._alternatives(text, start, end, place) for place in range(start, end)]
            after = end
        return Form((*pieces, (text[after:],)), frozenset(marked))

    def marks(self, text: str) -> list[str]:
        mark = "".join(match.group() for match in self._matches(text))
        return [mark] if mark else []

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The places (start, end) of all matches that are not empty.

        Raises:
            MarshtestError: the pattern takes too long on the text.
        """
        return [match.span() for match in self._matches(text) if match.group()]

    def _matches(self, text: str) -> list[Any]:
        try:
            return [*compiled(self.pattern).finditer(text, timeout=time_for(self.pattern))]
        except TimeoutError:
            raise self._slow(text) from None

    def fits(self, text: str, variant: str) -> bool:
        return self.spans(variant) == self.spans(text)

    def _alternatives(self, text: str, start: int, end: int, place: int) -> Alternatives:
        """The characters in a place of a match with which the pattern still matches from start to end."""
        own, head, tail = text[place], text[:place], text[place + 1 :]
        characters = next((c for c in CLASSES if own in c), own)
        pattern, seconds = compiled(self.pattern), time_for(self.pattern)
        try:
            matches = (
                (c, pattern.match(head + c + tail, start, timeout=seconds)) for c in characters
            )
            return tuple(c for c, match in matches if match and match.end() == end) or (own,)
        except TimeoutError:
            raise self._slow(text) from None

    def _slow(self, text: str) -> MarshtestError:
        return MarshtestError(
            f"mark: the pattern '{self.pattern}' takes more than {SECONDS:g} s on one record of "
            f"{len(text):,} characters. Write it without repeats inside repeats."
        )


Mark = Annotated[Template | Pattern, Field(discriminator="family")]


@cache
def compiled(pattern: str) -> Any:
    """A regular expression, ready to match."""
    return regex.compile(pattern)


@cache
def time_for(pattern: str) -> float | None:
    """Seconds that a pattern may take on a record; None if it cannot take long: a clock costs time, too."""
    return None if CHOICELESS.fullmatch(pattern) else SECONDS


@cache
def slots(text: str) -> tuple[Alternatives, ...]:
    """The pieces of a template: fixed ones, and a piece for each digit, letter or word of a slot."""
    pieces: list[Alternatives] = []
    end = 0
    for match in SLOT.finditer(text):
        pieces += [(text[end : match.start()],)] * (match.start() > end)
        pieces += _slot(match[1], int(match[2]))
        end = match.end()
    return (*pieces, *[(text[end:],)] * (end < len(text)))


def _slot(kind: str, length: int) -> list[Alternatives]:
    if kind == "words":
        return [
            WORDS if place == 0 else tuple(f" {word}" for word in WORDS) for place in range(length)
        ]
    return [tuple(DIGITS if kind == "digits" else LOWER)] * length


def _any_of(piece: Sequence[str]) -> str:
    # As a set, which is faster to look for; of bytes, in which other letters are several, it would be one.
    if all(len(text) == 1 and text.isascii() for text in piece):
        return f"[{''.join(map(regex.escape, piece))}]"
    return f"(?:{'|'.join(map(regex.escape, piece))})"
