"""From a question to the tokens that a model reads.

    tokens   those of the text; of a chat, rendered by the model's own chat template
    scored   the tokens behind those that the text has in common with what goes before, both tokenised

A text that is longer than the model's context is cut round the mark, in the same places for all variants.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from marshtest.kit.records.base import Asked, Message
from marshtest.kit.texts.base import Counted, shared
from marshtest.kit.texts.scoring import Tokens
from marshtest.plumbing.errors import refused

STEP = 16  # tokens; room for a mark is a multiple of it, so that variants are cut alike
SPARE = 8  # tokens that a model's tokenizer adds, or that the edges of a cut make


@dataclass(frozen=True)
class Rendered:
    """A text as a model was trained on it."""

    text: str
    border: int  # characters that are given and do not count
    span: tuple[int, int]  # the mark's place


class Reader:
    """Tokenises questions.

    Args:
        name: the model as it is given on the command line.
        tokenizer: a tokenizer of `transformers`.
        context: the most tokens that the model reads; None: any number.
    """

    def __init__(self, name: str, tokenizer: Any, context: int | None) -> None:
        self.name, self.tokenizer, self.context = name, tokenizer, context
        self.counted = Counted(name, context)
        self.untemplated = False  # whether chats were given as plain text
        # Variants share what goes before their mark, and the text about it.
        self._given = lru_cache(100)(self._templated)
        self._before = lru_cache(100)(lambda text, special: self._ids([text], special)[0])
        self._longest = lru_cache(100)(self._find_longest)

    def __call__(self, asked: Sequence[Asked]) -> list[Tokens]:
        """The tokens of each question.

        Raises:
            MarshtestError: the tokenizer swallows the mark, or its chat template refuses a chat.
        """
        rendered = [self._rendered(question) for question in asked]
        special = not self._has_template(asked)
        ids = self._ids([one.text for one in rendered], special)
        for row, tokens in enumerate(ids):
            if self.context is not None and len(tokens) > self.context:
                if asked[row].span != (0, 0):  # it has a mark
                    self.counted.cut.add(asked[row].group)
                rendered[row] = self._cut(rendered[row], self.context)
                ids[row] = self._ids([rendered[row].text], special)[0][: self.context]
        self.counted.note_alike(asked, ids)
        before: Counter[Asked] = Counter()
        texts = []
        for one, tokens, question in zip(rendered, ids, asked, strict=True):
            scored = self._scored(one, tokens, special)
            texts.append(Tokens(tokens, scored, question.group, before[question]))
            before[question] += 1
        return texts

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the audit should know of how texts were tokenised."""
        plain = "its tokenizer has no chat template, so chats are given as plain text"
        return (*self.counted.notes, *(plain,) * self.untemplated)

    def _has_template(self, asked: Sequence[Asked]) -> bool:
        chats = any(question.messages for question in asked)
        templated = bool(getattr(self.tokenizer, "chat_template", None))
        self.untemplated |= chats and not templated
        return chats and templated

    def _rendered(self, question: Asked) -> Rendered:
        plain = question.before + question.scored
        if not self._has_template([question]):
            return Rendered(plain, len(question.before), question.span)
        text = self._templated(question.messages, False)
        following = question.messages[question.given : question.given + 1]
        answered = bool(following) and following[0].role == "assistant"
        given = self._given(question.messages[: question.given], answered)
        mark = plain[slice(*question.span)]
        place = text.rfind(mark)  # −1, then the end stays: the template has changed the mark
        start = len(text) if place < 0 else place
        return Rendered(text, shared(text, given), (start, start + len(mark)))

    def _templated(self, messages: tuple[Message, ...], answered: bool) -> str:
        """A chat, rendered; with the words that introduce an answer, if one follows."""
        if not messages:
            return ""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        with refused(f"{self.name}: its chat template refuses a chat"):
            text: str = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=answered
            )
        return text

    def _ids(self, texts: Sequence[str], special: bool) -> list[tuple[int, ...]]:
        """Token ids of texts; special tokens are added unless a chat template did so."""
        # verbose: no warning of texts that are longer than the context.
        encoded = self.tokenizer(list(texts), add_special_tokens=special, verbose=False)
        return [tuple(ids) for ids in encoded["input_ids"]]

    def _scored(self, rendered: Rendered, ids: tuple[int, ...], special: bool) -> int:
        given = self._before(rendered.text[: rendered.border], special)
        return shared(given, ids)

    def _cut(self, rendered: Rendered, context: int) -> Rendered:
        """The text about the mark that fits the context: three parts before it to one behind it."""
        text, (start, end) = rendered.text, rendered.span
        left, right = text[:start], text[end:]
        needed = SPARE + STEP * (len(text[start:end].encode()) // STEP + 1)
        room = max(0, context - needed)
        behind = self._longest(right, room // 4, False)
        before = self._longest(left, room - self._length(behind), True)
        if before == left:  # there is room for more behind it
            behind = self._longest(right, room - self._length(left), False)
        gone = len(left) - len(before)
        return Rendered(
            before + text[start:end] + behind,
            max(0, rendered.border - gone),
            (len(before), len(before) + end - start),
        )

    def _length(self, text: str) -> int:
        return len(self._ids([text], False)[0])

    def _find_longest(self, text: str, room: int, at_end: bool) -> str:
        """The longest end, or beginning, of a text that has at most `room` tokens."""
        piece: Callable[[int], str] = (
            (lambda size: text[len(text) - size :]) if at_end else (lambda size: text[:size])
        )
        fits, too_long = 0, len(text) + 1
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self._length(piece(middle)) <= room:
                fits = middle
            else:
                too_long = middle
        return piece(fits)
