"""A completions endpoint that returns the log-probabilities of its prompt, as vLLM's does.

    POST URL/completions       {"model": …, "prompt": …, "echo": true, "logprobs": 1, "max_tokens": 0}
      or, if that tells none                        {…, "prompt_logprobs": 1, "max_tokens": 1}
    POST URL/chat/completions  {"model": …, "messages": …, "prompt_logprobs": 1, "max_tokens": 1}

Chats go the third way, so that the server's own chat template is used, and as plain text if that tells
nothing. Nothing is sent but the texts. Redirects are not followed, certificates are checked, and the key,
which comes from the environment alone, is sent over TLS or to this machine only.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from marshtest.kit.records.base import Asked, Floats, Message
from marshtest.kit.texts.base import Counted, TextModel, shared
from marshtest.kit.texts.posting import KEY, Json, Post, RefusedError, is_here
from marshtest.plumbing.errors import MarshtestError

TIMEOUT = 60.0  # seconds in which an answer must come
AT_ONCE = 4  # requests
TOO_LONG = {400, 413, 422}  # what servers answer to texts that do not fit their model
LESS = 0.8  # is left of such a text, and tried
ECHO: Json = {"echo": True, "logprobs": 1, "max_tokens": 0}
PROMPT: Json = {"prompt_logprobs": 1, "max_tokens": 1}
ROUNDED = 1e-3  # log-probabilities of what is sure may come out as much above 0
TRIAL = "The ticket 3141 was closed in the morning."


@dataclass(frozen=True)
class Chat:
    """A chat as it is sent; `answered` says that the words that introduce an answer are part of it."""

    messages: tuple[Message, ...]
    answered: bool = False


Text = str | Chat


@dataclass(frozen=True)
class Sent:
    """A question as it is sent."""

    text: Text
    before: Text  # what goes before the part of it that counts; empty if there is nothing


@dataclass(frozen=True)
class Heard:
    """A prompt as an endpoint's model reads it."""

    tokens: tuple[str, ...]
    surprises: tuple[float, ...]  # −log p of each token; 0 for a first one, which nothing foretells


class Endpoint(TextModel):
    """A model behind an endpoint.

    Args:
        spec: http://HOST:PORT/v1#MODEL, or https.
        rate: the most requests a second; None: as many as the server takes.
        timeout: seconds in which each answer must come.

    Raises:
        MarshtestError: no such address, a key that would be sent in clear, or no answer with the
            log-probabilities of this model.
    """

    def __init__(self, spec: str, rate: float | None = None, timeout: float = TIMEOUT) -> None:
        self.name = spec
        self._url, self.model, key = _parsed(spec)
        self._post = Post(spec, key, rate, timeout)
        self._counted, self._templated = Counted(spec, None), True
        self._parts: dict[
            tuple[int, int, int], float
        ] = {}  # what is left of texts that are too long
        self._before = lru_cache(1000)(self._heard)  # variants share what goes before them
        self._dialect = self._understood()

    def __call__(self, asked: Sequence[Asked]) -> Floats:
        answers = self._answered(asked)
        self._counted.note_alike(asked, [heard.tokens for _, heard in answers])
        plain = "chats are given as plain text, since the endpoint tells nothing of chats"
        self.notes = (*self._counted.notes, *(plain,) * (not self._templated))
        return np.array([self._loss(sent, heard) for sent, heard in answers])

    def _loss(self, sent: Sent, heard: Heard) -> float:
        """The surprise of the tokens behind those that the text has in common with what goes before."""
        given = self._before(sent.before).tokens if sent.before else ()
        return sum(heard.surprises[shared(given, heard.tokens) :])

    def _answered(self, asked: Sequence[Asked]) -> list[tuple[Sent, Heard]]:
        """What was sent for each question and what was heard, all variants of a record cut alike."""
        answers: dict[int, tuple[Sent, Heard]] = {}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                while stale := [
                    place
                    for place, one in enumerate(asked)
                    if place not in answers or answers[place][0] != self._sent(one)
                ]:
                    heard = pool.map(self._ask, [asked[place] for place in stale])
                    answers |= zip(stale, heard, strict=True)
            except BaseException:  # nobody needs the other answers now
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [answers[place] for place in range(len(asked))]

    def _ask(self, asked: Asked) -> tuple[Sent, Heard]:
        """Ask a question; a text that is refused is taken for too long, and cut until it is not."""
        while True:
            place, mark = _place(asked), asked.span[1] - asked.span[0]
            sent, part = self._sent(asked), self._parts.get(place, 1.0)
            try:
                return sent, self._heard(sent.text)
            except RefusedError as error:
                can_be_cut = isinstance(sent.text, str) and len(sent.text) > max(mark, len(TRIAL))
                if error.status not in TOO_LONG or not can_be_cut:
                    raise
            # Another thread may have cut the record's other variants further by now.
            self._parts[place] = min(part * LESS, self._parts.get(place, 1.0))
            if mark:
                self._counted.cut.add(asked.group)

    def _sent(self, asked: Asked) -> Sent:
        """A question as it is sent: a chat, or a text of which a part about the mark is left."""
        if asked.messages and self._knows_chats:
            first = asked.messages[asked.given : asked.given + 1]
            answered = bool(first) and first[0].role == "assistant"
            given = Chat(asked.messages[: asked.given], answered)
            return Sent(Chat(asked.messages), given if asked.given else "")
        text, (start, end) = asked.before + asked.scored, asked.span
        part = self._parts.get(_place(asked), 1.0)
        begin = start - int(start * part)
        last = end + int((len(text) - end) * part)
        return Sent(text[begin:last], text[begin : len(asked.before)])

    def _heard(self, text: Text) -> Heard:
        heard = self._hear(text, self._dialect if isinstance(text, str) else PROMPT)
        if heard is None:
            raise MarshtestError(f"{self.name}: answered without the prompt's log-probabilities.")
        return heard

    def _understood(self) -> Json:
        """The first dialect in which the endpoint tells log-probabilities of a prompt."""
        for dialect in (ECHO, PROMPT):
            heard = self._hear(TRIAL, dialect)
            if heard is not None and len(heard.tokens) > 1:
                if dialect is ECHO and not _plain("".join(heard.tokens)).endswith(_plain(TRIAL)):
                    raise MarshtestError(
                        f"{self.name}: answered about another text than it was sent."
                    )
                return dialect
        raise MarshtestError(
            f"{self.name}: returns no log-probabilities of the prompt. Serve the model where completions "
            "know echo with logprobs, or prompt_logprobs, as with vLLM."
        )

    @cached_property
    def _knows_chats(self) -> bool:
        """Whether the endpoint tells log-probabilities of chats, rendered by its own template."""
        try:
            self._templated = self._hear(Chat((Message("user", TRIAL),)), PROMPT) is not None
        except MarshtestError:  # no such address, or no template
            self._templated = False
        return self._templated

    def _hear(self, text: Text, dialect: Json) -> Heard | None:
        """The tokens of a prompt and their surprises; None where the answer has none."""
        content: Json = {"model": self.model, "temperature": 0, **dialect}
        if isinstance(text, str):
            answer = self._post(f"{self._url}/completions", content | {"prompt": text})
        else:
            answer = self._post(f"{self._url}/chat/completions", content | _chat(text))
        if answer.get("model", self.model) != self.model:
            raise MarshtestError(
                f"{self.name}: another model answered, {str(answer['model'])[:80]!r}. Give the name that "
                "is served."
            )
        try:
            heard = _heard_in(answer, dialect)
        except (
            AttributeError,
            IndexError,
            KeyError,
            OverflowError,
            TypeError,
            ValueError,
            StopIteration,
        ):
            raise MarshtestError(
                f"{self.name}: answered what no completions endpoint does. Give the URL up to /v1."
            ) from None
        if heard is not None and not np.isfinite(heard.surprises).all():
            raise MarshtestError(f"{self.name}: answered log-probabilities that are not finite.")
        if heard is not None and min(heard.surprises) < -ROUNDED:
            raise MarshtestError(f"{self.name}: answered log-probabilities above 0.")
        return heard


def _place(asked: Asked) -> tuple[int, int, int]:
    """What variants of one record have in common: the texts about their marks are as long."""
    start, end = asked.span
    return asked.group, start, len(asked.before) + len(asked.scored) - end


def _chat(chat: Chat) -> Json:
    turns = [{"role": message.role, "content": message.content} for message in chat.messages]
    return {"messages": turns, "add_generation_prompt": chat.answered}


def _plain(text: str) -> str:
    """The ASCII letters and digits of a text, small: tokenizers write spaces in many ways."""
    return re.sub("[^a-z0-9]", "", text.lower())


def _heard_in(answer: Json, dialect: Json) -> Heard | None:
    choice = answer["choices"][0]
    if "echo" in dialect:
        written = (answer.get("usage") or {}).get("completion_tokens") or 0
        return _echoed(choice["logprobs"], written) if choice.get("logprobs") else None
    told = choice.get("prompt_logprobs") or answer.get("prompt_logprobs")  # of chats
    return _prompted(told) if told else None


def _echoed(told: dict[str, Any], written: int) -> Heard:
    """What `logprobs` of an echo says, without the tokens that were written behind the prompt."""
    end = len(told["tokens"]) - written
    tokens, values = told["tokens"][:end], told["token_logprobs"][:end]
    if len(tokens) != len(values):
        raise ValueError
    # A server that puts a token of its own before the text, and does not show it, knows the first one too.
    first = 0.0 if values[0] is None else -float(values[0])
    return Heard(tuple(map(str, tokens)), (first, *(-float(value) for value in values[1:])))


def _prompted(told: list[Any]) -> Heard:
    """What `prompt_logprobs` says: at each place the token that is there comes before likelier ones."""
    firsts = [next(iter(entry.items())) for entry in told[1:]]
    surprises = (0.0, *(-float(value["logprob"]) for _, value in firsts))
    return Heard(("", *(token for token, _ in firsts)), surprises)


def _parsed(spec: str) -> tuple[str, str, str]:
    """URL up to /v1, the model's name, and the key, if there is one."""
    form = f"an endpoint is http://HOST:PORT/v1#MODEL, or https; its key is read from ${KEY}."
    try:
        parts = urlsplit(spec)
    except ValueError:
        raise MarshtestError(f"{spec}: {form}") from None
    strange = parts.scheme not in ("http", "https") or parts.username or parts.query
    if strange or not parts.hostname or not parts.fragment:
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        raise MarshtestError(f"{shown}: {form}")
    key = os.environ.get(KEY, "").strip()
    if key and parts.scheme != "https" and not is_here(parts.hostname):
        raise MarshtestError(f"{spec}: the key in ${KEY} would be sent in clear. Use https.")
    return parts._replace(fragment="").geturl().rstrip("/"), parts.fragment, key
