"""A completions endpoint that returns the log-probabilities of its prompt, as vLLM's does.

    POST URL/completions  {"model": …, "prompt": …, "echo": true, "logprobs": 1, "max_tokens": 0}
      or, if that returns none                     {…, "prompt_logprobs": 1, "max_tokens": 1}

Nothing is sent but the texts. Redirects are not followed, certificates are checked, and the key, which
comes from the environment alone, is sent over TLS or to this machine only.
"""

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from marshtest.kit.records.base import Asked, Floats
from marshtest.kit.texts.base import Counted, TextModel, shared
from marshtest.plumbing.errors import MarshtestError, first_line

KEY = "MARSHTEST_API_KEY"
TIMEOUT = 60.0  # seconds in which an answer must come
TRIES = 4
PATIENCE = 30.0  # seconds that a server may ask to wait before the next try
AT_ONCE = 4  # requests
AGAIN = {408, 425, 429, 500, 502, 503, 504}  # what may pass
DIALECTS: tuple[dict[str, Any], ...] = (
    {"echo": True, "logprobs": 1, "max_tokens": 0},
    {"prompt_logprobs": 1, "max_tokens": 1},
)
MOST = 2**26  # bytes of an answer that are read
TRIAL = "The ticket 3141 was closed in the morning."


@dataclass(frozen=True)
class Heard:
    """A prompt as an endpoint's model reads it."""

    tokens: tuple[str, ...]
    surprises: tuple[float, ...]  # −log p of each token; 0 for the first, which nothing foretells


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
        self.url, self.model, self._headers = _parsed(spec)
        self._post = _Post(spec, self.url, self._headers, rate, timeout)
        self._counted = Counted(spec, None)
        self._has_chats = False
        self._before = lru_cache(1000)(self._heard)  # variants share what goes before them
        self._dialect = self._understood()

    def __call__(self, asked: Sequence[Asked]) -> Floats:
        texts = [one.before + one.scored for one in asked]
        heard = dict(self._all_heard([*dict.fromkeys(texts)]))
        self._counted.note_alike(asked, [heard[text].tokens for text in texts])
        self._has_chats |= any(one.messages for one in asked)
        plain = (
            "chats are given as plain text: an endpoint for completions applies no chat template",
        )
        self.notes = (*self._counted.notes, *plain * self._has_chats)
        return np.array(
            [self._loss(one, heard[text]) for one, text in zip(asked, texts, strict=True)]
        )

    def _loss(self, asked: Asked, heard: Heard) -> float:
        """The surprise of the tokens behind those that the text has in common with what goes before."""
        given = self._before(asked.before).tokens if asked.before else ()
        return sum(heard.surprises[shared(given, heard.tokens) :])

    def _all_heard(self, texts: Sequence[str]) -> Iterator[tuple[str, Heard]]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                yield from zip(texts, pool.map(self._heard, texts), strict=True)
            except BaseException:  # nobody needs the other answers now
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _heard(self, text: str) -> Heard:
        heard = self._hear(text, self._dialect)
        if heard is None:
            raise MarshtestError(f"{self.name}: answered without the prompt's log-probabilities.")
        return heard

    def _understood(self) -> dict[str, Any]:
        """The first dialect in which the endpoint tells log-probabilities of a prompt."""
        for dialect in DIALECTS:
            heard = self._hear(TRIAL, dialect)
            if heard is not None and len(heard.tokens) > 1:
                return dialect
        raise MarshtestError(
            f"{self.name}: returns no log-probabilities of the prompt. Serve the model where completions "
            "know echo with logprobs, or prompt_logprobs, as with vLLM."
        )

    def _hear(self, text: str, dialect: dict[str, Any]) -> Heard | None:
        """The tokens of a prompt and their surprises; None where the answer has none."""
        answer = self._post({"model": self.model, "prompt": text, "temperature": 0, **dialect})
        if answer.get("model", self.model) != self.model:
            raise MarshtestError(
                f"{self.name}: another model answered, {answer['model']!r}. Give the name that is served."
            )
        try:
            choice = answer["choices"][0]
            told = choice.get("logprobs") if "echo" in dialect else choice.get("prompt_logprobs")
            if not told:
                return None
            written = (answer.get("usage") or {}).get("completion_tokens") or 0
            heard = _echoed(told, written) if "echo" in dialect else _prompted(told)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, StopIteration):
            raise MarshtestError(
                f"{self.name}: answered what no completions endpoint does. Give the URL up to /v1."
            ) from None
        if not np.isfinite(heard.surprises).all():
            raise MarshtestError(f"{self.name}: answered log-probabilities that are not finite.")
        return heard


def _echoed(told: dict[str, Any], written: int) -> Heard:
    """What `logprobs` of an echo says, without the tokens that were written behind the prompt."""
    end = len(told["tokens"]) - written
    tokens, values = told["tokens"][:end], told["token_logprobs"][:end]
    if len(tokens) != len(values):
        raise ValueError
    return Heard(tuple(map(str, tokens)), (0.0, *(-float(value) for value in values[1:])))


def _prompted(told: list[Any]) -> Heard:
    """What `prompt_logprobs` says: at each place the token that is there comes before likelier ones."""
    firsts = [next(iter(entry.items())) for entry in told[1:]]
    surprises = (0.0, *(-float(value["logprob"]) for _, value in firsts))
    return Heard(("", *(token for token, _ in firsts)), surprises)


def _parsed(spec: str) -> tuple[str, str, dict[str, str]]:
    """URL of the completions, the model's name, and headers with the key, if there is one."""
    parts = urlsplit(spec)
    if not parts.hostname or not parts.fragment or parts.username or parts.query:
        raise MarshtestError(
            f"{parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()}: an endpoint is "
            f"http://HOST:PORT/v1#MODEL, or https; its key is read from ${KEY}."
        )
    key = os.environ.get(KEY, "").strip()
    if key and parts.scheme != "https" and not _is_here(parts.hostname):
        raise MarshtestError(f"{spec}: the key in ${KEY} would be sent in clear. Use https.")
    headers = {"Content-Type": "application/json", "User-Agent": "marshtest"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    url = parts._replace(fragment="", path=f"{parts.path.rstrip('/')}/completions").geturl()
    return url, parts.fragment, headers


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # the texts and the key are for the host that was named


class _Post:
    """Sends JSON and returns JSON; tries again where a fault may pass, and no faster than a rate."""

    def __init__(
        self, name: str, url: str, headers: dict[str, str], rate: float | None, timeout: float
    ) -> None:
        self.name, self.url, self.headers, self.timeout = name, url, headers, timeout
        self._gap, self._next, self._lock = 1 / rate if rate else 0.0, 0.0, threading.Lock()
        handlers: list[Any] = [_NoRedirects()]
        if _is_here(urlsplit(url).hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))  # no proxy lies on the way
        self._opener = urllib.request.build_opener(*handlers)  # checks certificates

    def __call__(self, content: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(content).encode()
        for attempt in range(1, TRIES + 1):
            self._wait_for_turn()
            request = urllib.request.Request(self.url, data, self.headers)
            try:
                with self._opener.open(request, timeout=self.timeout) as response:
                    return self._parsed(response.read(MOST + 1))
            except urllib.error.HTTPError as error:
                fault, wait = self._refusal(error), _asked_to_wait(error.headers)
                if error.code not in AGAIN:
                    break
            except (OSError, HTTPException) as error:
                fault, wait = self._unreached(error), None
            if attempt < TRIES:
                time.sleep(2.0 ** (attempt - 2) if wait is None else wait)
        raise MarshtestError(f"{self.name}: {fault}")

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        time.sleep(turn - now)

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            if len(content) > MOST:
                raise ValueError
            return dict(json.loads(content))
        except (ValueError, TypeError, RecursionError):
            raise MarshtestError(
                f"{self.name}: answered no JSON object. Give the URL up to /v1."
            ) from None

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """What the server says of a status that is an error, in a line."""
        said = error.read(2000).decode(errors="replace")
        try:
            told = json.loads(said)
            inner = told.get("error", told)
            said = str(inner.get("message") or inner) if isinstance(inner, dict) else str(inner)
        except (ValueError, AttributeError):
            pass
        words = " ".join(said.split())[:200]
        key = f" Its key is read from ${KEY}." if error.code in (401, 403) else ""
        return f"refused with status {error.code} ({words or error.reason}).{key}"

    def _unreached(self, error: Exception) -> str:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"did not answer within {self.timeout:g} s, in {TRIES} tries."
        return f"cannot be reached ({first_line(reason) if isinstance(reason, Exception) else reason})."


def _asked_to_wait(headers: Message) -> float | None:
    """Seconds that a server asks to wait, if it says a number, and no more than PATIENCE."""
    said = headers.get("Retry-After", "")
    return min(PATIENCE, float(said)) if said.isdigit() else None
