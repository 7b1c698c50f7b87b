"""JSON sent to a server over HTTP: patient, polite, and to nobody else."""

import json
import math
import threading
import urllib.error
import urllib.request
from email.message import Message
from http.client import HTTPException, IncompleteRead
from ipaddress import ip_address
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

from marshtest.plumbing.errors import MarshtestError, first_line

Json = dict[str, Any]
TRIES = 4
PATIENCE = 30.0  # seconds that a server may ask to wait before the next try
KEY = "MARSHTEST_API_KEY"  # the environment variable of the key
MENDS = {  # what to do about a status
    401: f" Its key is read from ${KEY}.",
    403: f" Its key is read from ${KEY}.",
    404: " Give the URL up to /v1, and the model's name as it is served.",
}
AGAIN = {408, 425, 429, 500, 502, 503, 504}  # what may pass
MOST, PIECE = 2**26, 2**16  # bytes of an answer that are read, in all and at once


def is_here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class RefusedError(MarshtestError):
    """A server's answer that is an error, with its status."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # the texts and the key are for the host that was named


class Post:
    """Sends JSON to a server and returns its JSON.

    Args:
        name: the address as it is given on the command line, for errors.
        key: sent as a bearer's token; may be empty.
        rate: the most requests a second; None: any number.
        timeout: seconds in which each answer must come.

    Raises:
        MarshtestError: a rate that is not above 0; later, what the server refuses, in a line, and what is
            still wrong after some tries.
    """

    def __init__(self, name: str, key: str, rate: float | None, timeout: float) -> None:
        if rate is not None and not 0 < rate < math.inf:
            raise MarshtestError(
                f"{name}: the most requests a second (--rate) must be above 0. Got {rate:g}."
            )
        self.name, self.timeout = name, timeout
        self.headers = {"Content-Type": "application/json", "User-Agent": "marshtest"}
        self.headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._gap, self._next, self._lock = 1 / rate if rate else 0.0, 0.0, threading.Lock()
        handlers: list[Any] = [_NoRedirects()]
        if is_here(urlsplit(name).hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))  # no proxy lies on the way
        self._opener = urllib.request.build_opener(*handlers)  # checks certificates

    def __call__(self, url: str, content: Json) -> Json:
        data = json.dumps(content).encode()
        for attempt in range(1, TRIES + 1):
            self._wait_for_turn()
            request = urllib.request.Request(url, data, self.headers)
            try:
                with self._opener.open(request, timeout=self.timeout) as response:
                    return self._parsed(self._read(response))
            except urllib.error.HTTPError as error:
                fault: MarshtestError = self._refusal(error)
                wait = _asked_to_wait(error.headers)
                if error.code not in AGAIN:
                    break
            except (OSError, HTTPException) as error:
                fault, wait = self._unreached(error), None
            if attempt < TRIES:
                sleep(2.0 ** (attempt - 2) if wait is None else wait)
        raise fault

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        sleep(turn - now)

    def _read(self, response: Any) -> bytes:
        """The bytes of an answer; the socket's own time-out is one of each piece."""
        started, content = monotonic(), bytearray()
        while piece := response.read1(PIECE):
            content += piece
            if monotonic() - started > self.timeout:
                raise TimeoutError
            if len(content) > MOST:
                return b""  # no JSON object
        if response.length:  # it ended before what its header promised
            raise IncompleteRead(bytes(content), response.length)
        return bytes(content)

    def _parsed(self, content: bytes) -> Json:
        try:
            return dict(json.loads(content))
        except (ValueError, TypeError, RecursionError):
            raise MarshtestError(
                f"{self.name}: answered no JSON object. Give the URL up to /v1."
            ) from None

    def _refusal(self, error: urllib.error.HTTPError) -> RefusedError:
        """What the server says of a status that is an error, in a line."""
        said = error.read(2000).decode(errors="replace")
        try:
            told = json.loads(said)
            inner = told.get("error", told)
            said = str(inner.get("message") or inner) if isinstance(inner, dict) else str(inner)
        except (ValueError, AttributeError):
            pass
        words = "" if said.lstrip().startswith("<") else " ".join(said.split())[:200]  # no page
        mend = MENDS.get(error.code, "")
        line = f"{self.name}: refused with status {error.code} ({words or error.reason}).{mend}"
        return RefusedError(line, error.code)

    def _unreached(self, error: Exception) -> MarshtestError:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            fault = f"did not answer within {self.timeout:g} s, in {TRIES} tries"
        else:
            words = first_line(reason) if isinstance(reason, Exception) else reason
            fault = f"cannot be reached ({words})"
        return MarshtestError(f"{self.name}: {fault}.")


def _asked_to_wait(headers: Message) -> float | None:
    """Seconds that a server asks to wait, if it says a number, and no more than PATIENCE."""
    said = headers.get("Retry-After", "")
    return min(PATIENCE, float(said)) if said.isascii() and said.isdigit() else None
