"""The certificate: what an audit said and of what, sealed by a digest and, with a key, by a signature.

    content     who asked, key, commitment, files and the whole answer of the audit
    digest      SHA-256 of the content in canonical JSON: sorted names, no blanks, UTF-8
    signature   Ed25519, of these same bytes

A page in HTML or PDF carries the JSON within, and is drawn from it alone; see
`marshtest.kit.certificates.forms`.
"""

import json
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from marshtest.kit.certificates.commitment import Moment, sha256
from marshtest.kit.certificates.signing import Signature
from marshtest.kit.judging import Question
from marshtest.kit.key import Sha256
from marshtest.kit.noise import Scaling
from marshtest.kit.sealed import LINE
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings

FORMAT = "marshtest certificate 1"
MOST_BYTES = 1 << 26  # no certificate is larger
MOST_ASKED_BY = 200  # characters of who asked
LIBRARIES = (
    *("numpy", "pandas", "scipy", "scikit-learn", "torch", "transformers"),
    *("fpdf2", "fonttools", "matplotlib", "jinja2"),
)
EMBEDDED = re.compile(rb"/Length (\d+)\n[^\0]{0,99}/Type /EmbeddedFile\n>>\nstream\n")
SCRIPT = re.compile(
    rb'<script type="application/json" id="certificate">\n(.*?)</script>', re.DOTALL
)


class Committed(Settings):
    """What a certificate keeps of the commitment to its key."""

    sha256: Sha256  # of the commitment's file
    date: Moment  # of dosing, as the commitment says it
    output: Sha256  # of the data after dosing


class File(Settings):
    """A file or folder that a model was opened from."""

    path: str  # as the auditor gave it
    sha256: Sha256


class Options(Settings):
    """Options of the audit, so far as they matter to ask again."""

    scaling: Scaling | None = None
    loss: Literal["record", "completion"] | None = None
    quantize: Literal["int8", "int4"] | None = None


class Content(Settings):
    """What is certified."""

    format: Literal["marshtest certificate 1"] = "marshtest certificate 1"
    date: Moment  # of the certificate, in UTC
    asked_by: str | None = Field(max_length=MOST_ASKED_BY)
    key: Sha256  # of the key's file
    commitment: Committed | None
    options: Options
    compared_with: str  # what stands in the dose's place in the other questions
    # of each model those that it was opened from; none of one that is known by its answers alone
    files: tuple[tuple[File, ...], ...]
    audit: dict[str, Any]  # what audit.json holds
    versions: dict[str, str]


@dataclass(frozen=True)
class Certificate:
    """An audit that can be checked by somebody who was not there."""

    content: dict[str, Any]  # a `Content` as plain JSON
    signature: Signature | None = None

    @cached_property
    def parsed(self) -> Content:
        """The content by its fields.

        Raises:
            MarshtestError: a field is missing, or has another type.
        """
        try:
            content = Content.parse(self.content, "certificate")
            Question.parse(content.audit.get("question", {}), "certificate.audit.question")
            return content
        except MarshtestError as error:  # it may quote a value of any length
            raise MarshtestError(f"{str(error)[:LINE]} Give an untouched certificate.") from None

    @property
    def canonical(self) -> bytes:
        """The bytes that digest and signature are of."""
        return canonical(self.content)

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return sha256(self.canonical)

    def to_json(self) -> str:
        """The certificate as JSON, with its digest and signature."""
        signature = self.signature.model_dump() if self.signature else None
        whole = {"certificate": self.content, "sha256": self.digest, "signature": signature}
        return json.dumps(whole, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def canonical(content: Any) -> bytes:
    """JSON whose bytes depend on the content alone, not on the order of names or on blanks."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8", "surrogatepass")


def checked_asked_by(text: str | None) -> str | None:
    """Who asked, if it is one line of at most 200 visible characters."""
    if text is None:
        return None
    if not text.strip() or len(text) > MOST_ASKED_BY or not text.isprintable():
        raise MarshtestError(
            f"--asked-by: must be one line of 1 to {MOST_ASKED_BY} visible characters. Got "
            f"{len(text):,} characters, {text[:40]!a}."
        )
    return text


def current_versions() -> dict[str, str]:
    """Versions of what asked the models and draws the page, so far as it is installed."""
    found = {"marshtest": version("marshtest"), "zlib": zlib.ZLIB_RUNTIME_VERSION}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def read_certificate(path: str | Path) -> tuple[Certificate, str, bytes]:
    """Read a certificate in any of its forms: it, the digest that its file states, and the file's bytes.

    Raises:
        MarshtestError: no such file, or no certificate.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise MarshtestError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        if len(data) > MOST_BYTES:  # what stands behind would go unread
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
        whole = json.loads(_embedded(data), object_pairs_hook=_each_once, parse_constant=_refuse)
        if set(whole) != {"certificate", "sha256", "signature"}:
            raise ValueError("it has other fields than certificate, sha256 and signature")
        content, stated, signature = whole["certificate"], whole["sha256"], whole["signature"]
        signed = None if signature is None else Signature.model_validate(signature)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"its content is no {FORMAT!r}")
        canonical(content)  # raises if a number is infinite
        return Certificate(content, signed), str(stated), data
    except ValidationError:
        raise MarshtestError(f"{path}: its signature is none of Ed25519.") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise MarshtestError(
            f"{path}: is no certificate that `marshtest audit --certificate` wrote ({error}). Give the "
            "file as it was written: a page that was printed or saved anew has lost what is checked."
        ) from None


def _embedded(data: bytes) -> bytes:
    """The JSON that a file of any form carries.

    Raises:
        ValueError: the file carries none.
    """
    if data.startswith(b"%PDF-"):
        if not (found := EMBEDDED.search(data)):
            raise ValueError("it has no attachment")
        return data[found.end() : found.end() + int(found[1])]
    if data.lstrip()[:1] == b"<":
        if not (element := SCRIPT.search(data)):
            raise ValueError("it has no script element of the certificate")
        return element[1]
    return data


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object, if it has no name twice: another reader could take the other one."""
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name stands twice in it")
    return names


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")
