"""The commitment: a digest of the key from the day of dosing, so that nobody can choose the key afterwards.

It is written beside the key and given away at once. It says nothing of which samples are dosed, how many,
or what the data were before: with these an auditee could see whether it has found all dosed samples.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field

from marshtest.kit.key import Count, Sha256
from marshtest.kit.layouts.folders import digest
from marshtest.kit.sealed import KEY_BYTES, Sealed
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings


def _real(moment: str) -> str:
    """The moment, if the calendar has it."""
    try:
        datetime.fromisoformat(moment)
    except ValueError:
        raise MarshtestError(f"{moment}: is no date that the calendar has.") from None
    return moment


Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"), AfterValidator(_real)]
MOST_BYTES = 10_000  # no commitment is larger
GUESSED = 1 << 40  # seeds below it can be tried one after the other


class Commitment(Settings):
    """What the auditor gives away on the day of dosing."""

    format: Literal["marshtest commitment 1"] = "marshtest commitment 1"
    date: Moment  # of dosing, in UTC
    key: Sha256  # of the key's file
    samples: Count  # N, the number of samples or records of the data set
    output: (
        Sha256  # of the data after dosing: of the file, or of a folder's file names and contents
    )

    @classmethod
    def of(cls, key_file: Path, out: Path, date: str) -> Self:
        """The commitment to a key that was just written, and to its dosed data."""
        content = key_file.read_bytes()
        key = json.loads(content)
        # A key of images has the digest of the dosed data already.
        output = key.get("output") or digest(out).whole
        return cls(date=date, key=sha256(content), samples=key["samples"], output=output)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a commitment; a MarshtestError if there is no such file, or it is none."""
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError
            content = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise MarshtestError(f"{path}: no such file. Give the commitment.") from None
        except (OSError, ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or content.get("format") != "marshtest commitment 1":
            raise MarshtestError(
                f"{path}: is no commitment. Give the file OUT.commitment.json that `marshtest dose` wrote."
            )
        return cls.parse(content, str(path))

    def to_json(self) -> str:
        """The commitment as it stands in its file."""
        return json.dumps(self.model_dump(), indent=2) + "\n"

    def refuse_other(self, key: str, path: Path) -> None:
        """Raise if the commitment is to another key than the one with the digest `key`."""
        if self.key != key:
            raise MarshtestError(
                f"{path}: is the commitment to another key (SHA-256 {self.key[:12]}…, and this one has "
                f"{key[:12]}…). Give the one that was written beside this key."
            )


def commit(key_file: Path, out: Path, file: Path) -> None:
    """Write the commitment to a key into a new file; an OSError if it exists."""
    commitment = Commitment.of(key_file, out, now())
    with file.open("x", encoding="utf-8", newline="") as stream:
        stream.write(commitment.to_json())


def key_digest(key: Sealed | str | Path) -> str:
    """SHA-256 of a key's file; of a key that is in memory, of the file that it is saved as."""
    if isinstance(key, Sealed):
        return sha256(key.to_json().encode())
    with Path(key).open("rb") as stream:  # larger than this is no key, which `read_key` says
        return sha256(stream.read(KEY_BYTES))


def sha256(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
