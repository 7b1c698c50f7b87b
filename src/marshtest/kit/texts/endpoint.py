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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from marshtest.kit.records.base import Asked, Floats, Message
from marshtest.kit.texts.base import Counted, TextModel, shared
from marshtest.kit.texts.posting import KEY, Json, Post, is_here
from marshtest.plumbing.errors import MarshtestError

TIMEOUT = 60.0  # seconds in which an answer must come
AT_ONCE = 4  # requests
ECHO: Json = {"echo": True, "logprobs": 1, "max_tokens": 0}
PROMPT: Json = {"prompt_logprobs": 1, "max_tokens": 1}
TRIAL = "The ticket 3141 was closed in the morning."


@dataclass(frozen=True)
class Chat:
    """A chat as it is sent; `answered` says that the words that introduce an answer are part of it."""

    messages: tuple[Message, ...]
    answered: bool = False


Text = str | Chat


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
        self._before = lru_cache(1000)(self._heard)  # variants share what goes before them
        self._dialect = self._understood()

    def __call__(self, asked: Sequence[Asked]) -> Floats:
        texts = [self._text(one) for one in asked]
        heard = list(self._all_heard(texts))
        self._counted.note_alike(asked, [one.tokens for one in heard])
        plain = "chats are given as plain text, since the endpoint tells nothing of chats"
        self.notes = (*self._counted.notes, *(plain,) * (not self._templated))
        return np.array([self._loss(one, answer) for one, answer in zip(asked, heard, strict=True)])

    def _text(self, asked: Asked) -> Text:
        """A question as it is sent."""
        if asked.messages and self._knows_chats:
            return Chat(asked.messages)
        return asked.before + asked.scored

    def _given(self, asked: Asked) -> Text:
        """What goes before the part of a question that counts; false if there is nothing."""
        if not (asked.messages and self._knows_chats):
            return asked.before
        first = asked.messages[asked.given : asked.given + 1]
        answered = bool(first) and first[0].role == "assistant"
        return Chat(asked.messages[: asked.given], answered) if asked.given else ""

    def _loss(self, asked: Asked, heard: Heard) -> float:
        """The surprise of the tokens behind those that the text has in common with what goes before."""
        before = self._given(asked)
        given = self._before(before).tokens if before else ()
        return sum(heard.surprises[shared(given, heard.tokens) :])

    def _all_heard(self, texts: Sequence[Text]) -> Iterator[Heard]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                yield from pool.map(self._heard, texts)
            except BaseException:  # nobody needs the other answers now
                pool.shutdown(wait=False, cancel_futures=True)
                raise

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
                f"{self.name}: another model answered, {answer['model']!r}. Give the name that is served."
            )
        try:
            heard = _heard_in(answer, dialect)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, StopIteration):
            raise MarshtestError(
                f"{self.name}: answered what no completions endpoint does. Give the URL up to /v1."
            ) from None
        if heard is not None and not np.isfinite(heard.surprises).all():
            raise MarshtestError(f"{self.name}: answered log-probabilities that are not finite.")
        return heard


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
    if not parts.hostname or not parts.fragment or parts.username or parts.query:
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        raise MarshtestError(f"{shown}: {form}")
    key = os.environ.get(KEY, "").strip()
    if key and parts.scheme != "https" and not is_here(parts.hostname):
        raise MarshtestError(f"{spec}: the key in ${KEY} would be sent in clear. Use https.")
    return parts._replace(fragment="").geturl().rstrip("/"), parts.fragment, key
